"""Trains a cross-stitch network on Fashion-MNIST: two labels of one image, two towers.

    python train.py                                  # channel units, 30 epochs
    python train.py --cross_stitch=False             # the same towers, nothing shared
    python train.py --num_epochs=2                   # a taste, two minutes
    tensorboard --logdir=logs

Each run writes event files, checkpoints and results.json to a folder of its
own below --logdir. The same command goes on with a run that stopped, and ends
in the same bits. `python train.py --help` lists the flags.
"""

import collections
import contextlib
import importlib.metadata
import json
import logging
import os
import pathlib
import platform
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings

import filelock
from absl import app, flags

if __name__ == "__main__":
    # Until there is something to save, Ctrl-C ends it without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def native_stderr_silenced():
    """TensorFlow's libraries greet the terminal before they read any log level."""
    terminal, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        os.close(nowhere)


os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# TensorFlow would import Keras, unasked: half a second and 50 MB. Of the legacy
# kind it takes note that there is none.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
with native_stderr_silenced():
    import numpy as np
    import tensorflow as tf_v2
    import tensorflow.compat.v1 as tf
    import tqdm
    from tensorboard.backend.event_processing import event_accumulator
    from tensorboard.plugins.hparams import summary_v2 as hparams  # api wants Keras
    from tensorboard.summary.v1 import text_pb

    import data
    import model

FLAGS = flags.FLAGS
TAG = "summary/"  # what the reference's tags begin with
EVALUATION_BATCH_SIZE = 250
LAST_EVALUATIONS = 5  # accuracy_test_last is their mean
LOSS_EVERY = 20  # steps between losses that the progress bar shows
LOCK = "lock"  # in the run's folder, like the next; what a run leaves there besides:
SETTINGS, RESULTS = "settings.json", "results.json"
LEFT = ("events.out.tfevents.*", "checkpoint*", "model.ckpt-*", "graph.pbtxt", "results.*")

# --- The network ---
flags.DEFINE_string("tasks", "article,group", "Names from TASKS in data.py, a tower each.")
flags.DEFINE_boolean("cross_stitch", True, "Stitch the towers together; else they share nothing.")
flags.DEFINE_enum(
    "cross_stitch_unit",
    "channel",
    model.UNITS,
    "Weights by channel, by layer, or by pair of values.",
)
flags.DEFINE_float(
    "cross_stitch_init", 1.0, "Start weight of a task's own tower; the others share the rest."
)
flags.DEFINE_float(
    "cross_stitch_learning_rate_scale", 1.0, "The units' learning rate, as a multiple."
)
flags.DEFINE_boolean(
    "cross_stitch_own_only", False, "Fix the weights of the other towers at 0: units, no sharing."
)
flags.DEFINE_string("init_from", None, "Folder of a finished run whose towers to start with.")
flags.DEFINE_boolean("hard_sharing", False, "One tower for all tasks, each with its own output.")
flags.DEFINE_float("keep_prob", 0.8, "Share of the fc_3 activations that dropout keeps.")
flags.DEFINE_float("batch_norm_decay", 0.999, "Decay of batch norm's moving statistics.")
# --- Training ---
flags.DEFINE_float("learning_rate", 0.001, "Adam's learning rate.")
flags.DEFINE_float("l2_scale", 1e-5, "Factor of the L2 loss on conv and fc weights.")
flags.DEFINE_integer("num_epochs", 30, "Passes over the training images.")
flags.DEFINE_integer("batch_size", 128, "Images a step.")
flags.DEFINE_integer("max_steps", 0, "Stop after so many steps; 0 sets no cap.")
flags.DEFINE_integer(
    "train_examples", 0, "Train on so many images, equally many of each article; 0 takes all."
)
flags.DEFINE_integer(
    "holdout", 0, "Evaluate on so many training images, kept from training, not on the test set."
)
flags.DEFINE_integer("eval_every", 100, "Steps between evaluations on the whole test set.")
flags.DEFINE_integer(
    "seed", 0, "Decides start weights, choice and order of images, dropout, synthetic images."
)
# --- Files ---
flags.DEFINE_enum(
    "dataset", "auto", data.DATASETS, "auto: Fashion-MNIST, or drawn images where it cannot be had."
)
flags.DEFINE_string(
    "data_dir",
    None,
    "Folder with the four Fashion-MNIST files; without it "
    f"{data.FOLDER_VARIABLE}, the user's cache, or a download into it.",
)
flags.DEFINE_string("logdir", "logs", "Folder below which each run has its own.")
flags.DEFINE_string("run_name", None, "The run's folder; by default it follows from the flags.")
flags.DEFINE_string("export_dir", None, "Folder to be made: the trained network as a SavedModel.")
flags.DEFINE_boolean("eval_only", False, "Evaluate a finished run; train nothing.")
flags.DEFINE_boolean("overwrite", False, "Delete what an earlier run left in the folder.")
flags.DEFINE_float(
    "save_checkpoint_secs", 300, "Seconds between checkpoints; the end has one, too."
)
flags.DEFINE_integer("keep_checkpoints", 3, "How many of the last checkpoints are kept.")

ALIASES = {
    "cross_stitch_enabled": "cross_stitch",
    "lr": "learning_rate",
    "n_epoch": "num_epochs",
    "n_batch_size": "batch_size",
    "reg_lambda": "l2_scale",
}
for alias, name in ALIASES.items():
    flags.DEFINE_alias(alias, name)

TASK_NAMES = {task.name for task in data.TASKS}
# Written so that nan is refused, too.
LIMITS = {
    "tasks": (
        lambda v: (
            v and set(v.split(",")) <= TASK_NAMES and len(v.split(",")) == len(set(v.split(",")))
        ),
        f"must be some of {', '.join(sorted(TASK_NAMES))}, each once, with commas between",
    ),
    "cross_stitch_init": (lambda v: -10 <= v <= 10, "must lie between -10 and 10"),
    "cross_stitch_learning_rate_scale": (lambda v: 0 < v < float("inf"), "must be above 0"),
    "keep_prob": (lambda v: 0 < v <= 1, "must be above 0, and 1 at most"),
    "batch_norm_decay": (lambda v: 0 <= v < 1, "must be 0 or more, and below 1"),
    "learning_rate": (lambda v: 0 < v < float("inf"), "must be above 0"),
    "l2_scale": (lambda v: 0 <= v < float("inf"), "must be 0 or more"),
    "num_epochs": (lambda v: v >= 1, "must be 1 or more"),
    "batch_size": (lambda v: v >= 1, "must be 1 or more"),
    "train_examples": (lambda v: v >= 0, "must be 0 or more"),
    "holdout": (lambda v: v >= 0, "must be 0 or more"),
    "max_steps": (lambda v: v >= 0, "must be 0 or more"),
    "eval_every": (lambda v: v >= 1, "must be 1 or more"),
    "seed": (lambda v: 0 <= v < 2**32, "must be 0 or more, and below 2^32"),
    "save_checkpoint_secs": (lambda v: 0 < v < float("inf"), "must be above 0"),
    "keep_checkpoints": (
        lambda v: v >= 2,
        "must be 2 or more, so that one is left where the newest is damaged",
    ),
    "data_dir": (lambda v: v != "", "must name a folder"),
    "init_from": (lambda v: v != "", "must name the folder of a finished run"),
    "export_dir": (
        lambda v: v is None or v != "" and not os.path.exists(os.path.expanduser(v)),
        "must name a folder that does not exist yet",
    ),
    "run_name": (
        lambda v: v is None or bool(v.strip(".")) and "/" not in v,
        "must be the name of one folder below --logdir",
    ),
}
for name, (holds, message) in LIMITS.items():
    flags.register_validator(name, holds, message)
flags.register_multi_flags_validator(
    ["dataset", "data_dir"],
    lambda given: not (given["dataset"] == "synthetic" and given["data_dir"]),
    "the synthetic set is drawn and reads no folder: leave out one of the two",
)
flags.register_multi_flags_validator(
    ["overwrite", "eval_only"],
    lambda given: not (given["overwrite"] and given["eval_only"]),
    "one deletes what the other is to evaluate: leave out one of the two",
)
flags.register_multi_flags_validator(
    ["hard_sharing", "cross_stitch"],
    lambda given: not (given["hard_sharing"] and given["cross_stitch"]),
    "with one tower there is nothing to stitch: add --cross_stitch=False",
)
flags.register_multi_flags_validator(
    ["cross_stitch_own_only", "cross_stitch_init"],
    lambda given: not given["cross_stitch_own_only"] or given["cross_stitch_init"] == 1,
    "the other towers' weights are fixed where they start, at 0 for --cross_stitch_init=1 alone",
)


# Do not bear on a run's result; nor does its length bear on what came before.
FREE = {"data_dir", "logdir", "run_name", "export_dir", "eval_only"}
FREE |= {"overwrite", "save_checkpoint_secs", "keep_checkpoints"}
LENGTH = {"num_epochs", "max_steps"}
OF_UNITS = {name for name in FLAGS if name.startswith("cross_stitch_")}


class RunError(Exception):
    """The run cannot go on; the message is one sentence for the user."""


def flag_values():
    """This program's flags, aliases aside: name -> value."""
    own = FLAGS.get_flags_for_module(sys.modules[__name__])
    return {flag.name: flag.value for flag in own if flag.name not in ALIASES}


def stitch_unit():
    """What `model.build` takes: one of `model.UNITS`, or None; one task shares nothing."""
    return FLAGS.cross_stitch_unit if FLAGS.cross_stitch and "," in FLAGS.tasks else None


def run_name(dataset_name):
    """For example fashion_mnist-channel-seed0-learning_rate=0.01: what differs is named."""
    if FLAGS.run_name:
        # Nobody may take a run on drawn images for one on Fashion-MNIST.
        marked = dataset_name != "synthetic" or dataset_name in FLAGS.run_name
        return FLAGS.run_name if marked else f"{FLAGS.run_name}-{dataset_name}"
    said = {"cross_stitch", "cross_stitch_unit", "hard_sharing", "seed", "dataset"} | FREE
    if not FLAGS.cross_stitch:
        said |= OF_UNITS
    others = [
        f"{name}={pathlib.Path(value).name if name == 'init_from' else value}"
        for name, value in flag_values().items()
        if name not in said and value != FLAGS[name].default
    ]
    sharing = "hard_sharing" if FLAGS.hard_sharing else stitch_unit() or "none"
    return "-".join([dataset_name, sharing, f"seed{FLAGS.seed}", *others])


# --- The run's folder ---


@contextlib.contextmanager
def claimed(run_dir):
    """Makes the folder and keeps other processes out of it. Raises: RunError, one is there."""
    run_dir.mkdir(parents=True, exist_ok=True)
    # The system takes the lock from a process that ends, whichever way it does.
    try:
        lock = filelock.FileLock(run_dir / LOCK).acquire(timeout=0)
    except filelock.Timeout:
        raise RunError(
            f"{run_dir}: another process is at this run. Wait for it, or say another --run_name."
        ) from None
    with lock:
        yield


def read_json(path):
    try:
        return json.loads(path.read_text())
    except ValueError:
        raise RunError(f"{path}: damaged. Delete it, or start afresh with --overwrite.") from None


def write_json(path, content):
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps(content, indent=2) + "\n")
    draft.replace(path)


def check_settings(run_dir, dataset):
    """Refuses to go on with what other flags, other data or another program began.

    With --overwrite it deletes that instead. Raises: RunError.
    """
    left = [path for pattern in LEFT for path in run_dir.glob(pattern)]
    record = run_dir / SETTINGS
    # Before anything is deleted or written.
    if FLAGS.init_from and (FLAGS.overwrite or not left):
        if check_source(dataset).resolve() == run_dir.resolve():
            raise RunError(f"--init_from={run_dir}: the run's own folder. Say another --run_name.")
    if FLAGS.overwrite:
        record.unlink(missing_ok=True)
        for path in left:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    elif left and not record.exists():
        raise RunError(
            f"{run_dir}: its files are not of a run that this program can go on with."
            " Say another --run_name, or --overwrite to delete them."
        )
    aside = FREE | LENGTH | (set() if FLAGS.cross_stitch else OF_UNITS)
    bearing = {name: value for name, value in flag_values().items() if name not in aside}
    settings = {**bearing, "dataset": dataset.name, "data": dataset.fingerprint()}
    before = read_json(record) if record.exists() else settings
    # A flag that the program had not yet, had no effect either.
    before = {name: FLAGS[name].default for name in bearing} | before
    differences = [
        f"{f'--{name}=' if name in FLAGS else f'{name} '}{before.get(name)}, now {settings.get(name)}"
        for name in {**before, **settings}
        if before.get(name) != settings.get(name)
    ]
    if differences:
        raise RunError(
            f"{run_dir}: this run was begun with {', '.join(differences)}."
            " Say another --run_name, or --overwrite to start afresh."
        )
    write_json(record, settings)


def sweep(run_dir):
    """Deletes what a save that was killed left: megabytes that no checkpoint refers to."""
    for path in run_dir.glob("model.ckpt-*.data-*"):
        index = path.with_name(path.name.partition(".data-")[0] + ".index")
        if ".tempstate" in path.name or not index.exists():
            path.unlink()


def newest_checkpoint(run_dir, variables=None):
    """The newest of the folder's checkpoints that is whole and fits the default graph's
    network, or the given variables of it.

    Every value is read, and so its checksum tested. A damaged one is passed over
    with a warning.

    Returns: its path or None, and the paths of all, oldest last.
    Raises: RunError, one is of another network, or all are damaged.
    """
    numbers = [re.fullmatch(r"model\.ckpt-(\d+)\.index", p.name) for p in run_dir.iterdir()]
    steps = sorted((int(number[1]) for number in numbers if number), reverse=True)
    paths = [str(run_dir / f"model.ckpt-{step}") for step in steps]
    # Beside the network's there are Adam's moments, where the graph is one that trains.
    variables = variables or tf.global_variables("network/")
    shapes = {v.op.name: v.shape.as_list() for v in variables}
    for path in paths:
        try:
            reader = tf.train.load_checkpoint(path)
            found = reader.get_variable_to_shape_map()
            for name in found:
                reader.get_tensor(name)
        except Exception as error:  # its kind depends on what is damaged
            warnings.warn(f"{path}: damaged, going on from the one before. ({brief(error)})")
            continue
        if {name: shape for name, shape in found.items() if name.startswith("network/")} != shapes:
            raise RunError(
                f"{path}: not a checkpoint of this network. Say another --run_name, or"
                " --overwrite to start afresh."
            )
        return path, paths
    if paths:
        raise RunError(
            f"{run_dir}: none of its {len(paths)} checkpoints can be read. Start afresh with"
            " --overwrite."
        )
    return None, paths


def brief(error):
    """The first sentence of what TensorFlow has to say."""
    return (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0]


def flush(writer, run_dir):
    """Puts all events so far on the disk. Raises: RunError, it does not take them."""
    # A file that was deleted takes them, too, and nobody would ever read them.
    if not (run_dir / LOCK).exists():
        raise RunError(f"{run_dir}: the folder is gone, and so this run ends.")
    try:
        writer.flush()
    except Exception as error:  # of whichever class: it depends on the system's error
        raise RunError(
            f"{run_dir}: the event file cannot be written ({brief(error)}). Once it can, the"
            " same command goes on from the last checkpoint."
        ) from error


def check_source(dataset):
    """Returns: the folder --init_from, of a finished run whose towers can be taken.

    Raises: RunError, it is not finished, was stitched, or differs in its tasks or data.
    """
    source = pathlib.Path(os.path.expanduser(FLAGS.init_from))
    if not (source / RESULTS).exists():
        raise RunError(f"--init_from={source}: not the folder of a finished run")
    if not any(source.glob("model.ckpt-*.index")):
        raise RunError(f"--init_from={source}: its checkpoints are gone. Train it again.")
    wanted = {name: FLAGS[name].value for name in ("tasks", "hard_sharing", "holdout")}
    wanted |= {"cross_stitch": False, "dataset": dataset.name}
    settings = {name: FLAGS[name].default for name in wanted} | read_json(source / SETTINGS)
    differing = [f"--{name}={v}" for name, v in wanted.items() if settings[name] != v]
    if differing:
        raise RunError(f"--init_from={source}: must be a run with {' '.join(differing)}")
    return source


# --- The session's hooks ---


class EvaluationHook(tf.train.SessionRunHook):
    """Every --eval_every steps, and at the last, writes to the event file what the
    batch trained on shows, the accuracy on the whole test set and the units' weights.
    Ends a run whose loss is no longer a number."""

    def __init__(self, net, dataset, run_dir, last_step):
        self._net, self._dataset, self._last_step = net, dataset, last_step
        self._run_dir, self._writer = run_dir, tf.summary.FileWriterCache.get(str(run_dir))
        self.accuracies = {}  # task -> share of the test images, at the last evaluation
        self.seconds = 0.0  # spent on evaluation so far

    def after_create_session(self, session, coord):
        self._step = session.run(self._net.global_step)
        self._mark = None
        # What stands behind the checkpoint gives way to what is made now.
        start = tf.SessionLog(status=tf.SessionLog.START)
        self._writer.add_session_log(start, self._step + 1 if self._step else 0)
        # The newest graph is the one TensorBoard shows. Without its library: that
        # page would list a hundred branches of tf.cond beside the network.
        graph_def = session.graph.as_graph_def()
        graph_def.ClearField("library")
        graph = graph_def.SerializeToString()
        self._writer.add_event(tf.Event(wall_time=time.time(), graph_def=graph))
        if self._step == 0:
            settings = {**flag_values(), "dataset": self._dataset.name}
            lines = [f"**{name}** {value}" for name, value in settings.items()]
            self._add(text_pb("run", "\n\n".join(lines)).SerializeToString())
            self._add_hparams(settings)
            self._add_units(session)

    def _add(self, serialised):
        self._writer.add_summary(tf.Summary.FromString(serialised), self._step)

    def _add_hparams(self, settings):
        """For TensorBoard's HParams page: what is compared, and this run's flags."""
        bearing = {n: "" if v is None else v for n, v in settings.items() if n not in FREE}
        names = ["accuracy_test", *(f"accuracy_test_{n}" for n in self._net.labels), "loss_total"]
        metrics = [hparams.Metric(TAG + name, display_name=name) for name in names]
        columns = [hparams.HParam(name) for name in bearing]
        self._add(hparams.hparams_config_pb(columns, metrics).SerializeToString())
        self._add(hparams.hparams_pb(bearing).SerializeToString())

    def _add_units(self, session):
        if self._net.stitches:
            self._add(session.run(self._net.unit_summary_op))

    def before_run(self, run_context):
        self._step += 1
        # Counted in global steps, so that a restored run evaluates where the
        # uninterrupted one does.
        due = self._step % FLAGS.eval_every == 0 or self._step == self._last_step
        return tf.train.SessionRunArgs([self._net.losses, self._net.summary_op if due else []])

    def after_run(self, run_context, run_values):
        now = time.perf_counter()
        losses, summary_of_batch = run_values.results
        if not np.all(np.isfinite(list(losses.values()))):
            raise RunError(diverged("loss", self._step))
        if not summary_of_batch:
            self._mark = self._mark or (now, self._step)  # after the first step's warm-up
            return
        if not run_context.session.run(self._net.finite):
            raise RunError(diverged("weights", self._step))
        shares = evaluate(run_context.session, self._net, self._dataset)
        values = {f"accuracy_test_{name}": share for name, share in shares.items()}
        self.accuracies = {name: shares[name] for name in self._net.labels}
        values["accuracy_test"] = np.mean(list(self.accuracies.values()))
        if self._mark:
            since, first = self._mark
            images = images_between(self._dataset, first, self._step)
            values["images_per_second"] = images / (now - since)
        summary = tf.Summary()
        for tag, value in values.items():
            summary.value.add(tag=TAG + tag, simple_value=value)
        self._writer.add_summary(summary_of_batch, self._step)
        self._writer.add_summary(summary, self._step)
        self._add_units(run_context.session)
        flush(self._writer, self._run_dir)
        self._mark = time.perf_counter(), self._step
        self.seconds += self._mark[0] - now


def diverged(what, step):
    faster = FLAGS.cross_stitch_learning_rate_scale > 1
    rate = "--cross_stitch_learning_rate_scale" if faster else "--learning_rate"
    return (
        f"the {what} became NaN or infinite at step {step:,}, and training ends there; it was not"
        f" saved. Try a lower {rate}."
    )


class CheckpointHook(tf.train.CheckpointSaverHook):
    """Saves by time and at the end, events before weights, and no weights that are NaN."""

    def __init__(self, net, run_dir, scaffold):
        super().__init__(
            str(run_dir), FLAGS.save_checkpoint_secs, scaffold=scaffold, save_graph_def=False
        )
        self._net, self._run_dir = net, run_dir

    def after_create_session(self, session, coord):
        # TensorFlow's hook would save here, over the checkpoint just restored:
        # killed while at it, it would leave none.
        self._timer.update_last_triggered_step(session.run(self._global_step_tensor))

    def _save(self, session, step):
        if not session.run(self._net.finite):
            raise RunError(diverged("weights", step))
        # An event that is not on the disk before its checkpoint is never made again.
        flush(self._summary_writer, self._run_dir)
        try:
            return super()._save(session, step)
        except tf.errors.OpError as error:  # of some kinds the session would make a quiet end
            raise RunError(
                f"{self._run_dir}: the checkpoint cannot be written ({brief(error.message)})."
                " Once it can, the same command goes on from the one before."
            ) from error


class ProgressHook(tf.train.SessionRunHook):
    """A bar with time left, training speed, the batch's loss and the test accuracies."""

    def __init__(self, net, dataset, evaluation, last_step):
        self._net, self._dataset, self._evaluation = net, dataset, evaluation
        self.images_per_second = None  # of training alone, after the first step
        self.bar = tqdm.tqdm(
            desc=dataset.name,
            total=last_step,
            dynamic_ncols=True,
            smoothing=0.05,
            mininterval=0.5 if sys.stderr.isatty() else 30,
            # All of it fits a terminal of 80 columns.
            bar_format="{desc} {percentage:.0f}%|{bar}|ETA {remaining}{postfix}",
        )

    def after_create_session(self, session, coord):
        self.bar.initial = self.bar.n = int(session.run(self._net.global_step))
        self._start = None
        self._loss = float("nan")  # until the first that is due

    def before_run(self, run_context):
        # Not at every step: the L2 loss reads all weights, and takes a fiftieth of one.
        due = self.bar.n % LOSS_EVERY == 0
        return tf.train.SessionRunArgs(self._net.loss if due else [])

    def after_run(self, run_context, run_values):
        self._loss = run_values.results or self._loss
        now = time.perf_counter() - self._evaluation.seconds
        if self._start is None:
            self._start, self._first = now, self.bar.n + 1
        else:
            images = images_between(self._dataset, self._first, self.bar.n + 1)
            self.images_per_second = images / (now - self._start)
        speed = f"{self.images_per_second or 0:.0f} img/s"
        shares = self._evaluation.accuracies.items()
        tests = [f"{name} {share:.3f}" for name, share in shares]
        state = " ".join([speed, f"loss {self._loss:.3f}", *tests])
        self.bar.set_postfix_str(state, refresh=False)
        self.bar.update()


def images_between(dataset, first, last):
    """How many training images the steps from `first` up to, not with, `last` take."""
    start, end = (dataset.images_before(step, FLAGS.batch_size) for step in (first, last))
    return end - start


def feed(net, batch, training):
    images, labels = batch
    by_task = {net.labels[name]: labels[name] for name in net.labels}
    return {net.x: images, net.is_training: training, **by_task}


def evaluate(session, net, dataset):
    """Accuracy on the whole test set. Returns: task -> share of the images, [0, 1].

    Where a task's labels follow from the article, there is "<task>_by_article", too:
    what the article's tower predicts, translated.
    """
    right = collections.Counter()
    for batch in dataset.test_batches(EVALUATION_BATCH_SIZE):
        predictions = session.run(net.predictions, feed(net, batch, training=False))
        implied = dataset.implied(predictions["article"]) if "article" in predictions else {}
        for name, label in batch[1].items():
            right[name] += int(np.sum(predictions[name] == label))
            if name in implied:
                right[f"{name}_by_article"] += int(np.sum(implied[name] == label))
    return {name: count / len(dataset.test.images) for name, count in right.items()}


def cores():
    """How many this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    return len(affinity(0)) if affinity else os.cpu_count()


def side_by_side(num_towers, unit):
    """Gives every tower an equal share of the cores. That is faster than all cores on
    one tower's op after the other, save for dense units, whose one matrix product
    is larger than both towers.

    To be called before `model.build`: TensorFlow makes the threads of its ops once,
    for the whole process, and compiling a function is enough of an occasion.

    Returns: the `tf.ConfigProto` for the session.
    """
    towers = 1 if unit == "dense" else min(num_towers, cores())
    tf_v2.config.threading.set_intra_op_parallelism_threads(cores() // towers)
    return tf.ConfigProto(
        intra_op_parallelism_threads=cores() // towers,
        inter_op_parallelism_threads=max(towers, 2),  # a tower's two gradients, at least
    )


@contextlib.contextmanager
def signals_noted():
    """Lets a step end before SIGINT or SIGTERM do what they ask. A second one acts at once.

    Yields: a list, empty until one arrives, then with its number.
    """
    noted = []

    def note(number, _):
        noted.append(number)
        signal.signal(number, signal.SIG_DFL)

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield noted
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def trained_alone(source):
    """Finds the towers of a finished run, for the default graph.

    Returns: what a scaffold takes as init_fn.
    Raises: RunError, it has no checkpoint that is whole and fits.
    """
    towers = [v for v in tf.global_variables("network/") if not v.op.name.endswith("/alpha")]
    try:
        checkpoint, _ = newest_checkpoint(source, towers)
    except RunError:  # whose advice is for a run's own folder
        checkpoint = None
    if checkpoint is None:
        raise RunError(
            f"--init_from={source}: none of its checkpoints can be used. Train it again."
        )
    saver = tf.train.Saver(towers)
    return lambda _, session: saver.restore(session, checkpoint)


def train(net, dataset, run_dir, last_step, config):
    """Trains up to `last_step`, from the folder's newest checkpoint if there is one.

    Returns: step reached, the signal that ended it before that or None, training
    speed in images a second (None for a single step), and unit scope -> [T, T]
    mean weights.

    Raises: RunError.
    """
    # The session's own ops join "train", so that the graph page stays tidy.
    with net.graph.as_default(), tf.name_scope("train/"), signals_noted() as signals:
        sweep(run_dir)
        newest, checkpoints = newest_checkpoint(run_dir)
        done = int(newest.rpartition("-")[2]) if newest else 0
        if done > last_step:
            raise RunError(
                f"{run_dir}: has {done:,} steps, more than the {last_step:,} asked for."
                " Say another --run_name, or --overwrite to start afresh."
            )
        if done:
            print(f"Going on after step {done:,}.", flush=True)
        saver = tf.train.Saver(max_to_keep=FLAGS.keep_checkpoints)
        # The damaged ones count as oldest, and go first.
        whole = checkpoints.index(newest) if newest else 0
        saver.recover_last_checkpoints(checkpoints[:whole] + checkpoints[whole:][::-1])
        borrows = FLAGS.init_from and not newest
        init_fn = trained_alone(check_source(dataset)) if borrows else None
        scaffold = tf.train.Scaffold(init_op=net.initializer, init_fn=init_fn, saver=saver)
        evaluation = EvaluationHook(net, dataset, run_dir, last_step)
        progress = ProgressHook(net, dataset, evaluation, last_step)
        with (
            progress.bar,
            tf.train.SingularMonitoredSession(
                hooks=[evaluation, progress, CheckpointHook(net, run_dir, scaffold)],
                scaffold=scaffold,
                config=config,
                checkpoint_filename_with_path=newest,
            ) as session,
        ):
            for step in range(done, last_step):
                if signals:
                    break
                batch = dataset.train_batch(step, FLAGS.batch_size, FLAGS.seed)
                session.run(net.train_op, feed(net, batch, training=True))
            # Past the hooks, which count training steps.
            step, stitches = session.raw_session().run([net.global_step, net.stitches])
        tf.summary.FileWriterCache.clear()  # closes the event file
    stopped_by = signals[0] if step < last_step else None
    return int(step), stopped_by, progress.images_per_second, stitches


@contextlib.contextmanager
def restored(graph, run_dir):
    """A session with the newest checkpoint's values in the graph's variables.

    Yields: it. Raises: RunError, there is no checkpoint.
    """
    with graph.as_default(), tf.Session(graph=graph) as session:
        checkpoint, _ = newest_checkpoint(run_dir)
        if checkpoint is None:
            raise RunError(f"{run_dir}: its checkpoints are gone. Train it anew with --overwrite.")
        tf.train.Saver().restore(session, checkpoint)
        yield session


def export(dataset, run_dir, export_dir):
    """Writes the newest checkpoint's network as a SavedModel. Raises: RunError, it cannot."""
    tasks = [(task.name, task.classes) for task in dataset.tasks]
    server = model.build_server(tasks, stitch_unit(), FLAGS.hard_sharing)
    with restored(server.graph, run_dir) as session:
        signature = tf.saved_model.predict_signature_def({"images": server.images}, server.outputs)
        try:
            builder = tf.saved_model.Builder(export_dir)
            builder.add_meta_graph_and_variables(
                session, [tf.saved_model.SERVING], {"serving_default": signature}
            )
            builder.save()
        except tf.errors.OpError as error:
            raise RunError(f"{export_dir}: cannot be written ({brief(error.message)}).") from error
    print(f"\nExported to {export_dir}")


# --- The report ---


def scalars(run_dir):
    """All scalars of a run's event files. Returns: tag without its prefix -> values."""
    events = event_accumulator.EventAccumulator(str(run_dir), {event_accumulator.SCALARS: 0})
    tags = events.Reload().Tags()[event_accumulator.SCALARS]
    curves = {}
    for tag in tags:
        # The last value of a step that a resumed run made again; and 0.9213, not
        # the 0.9212999939918518 that this float32 is as a float.
        values = {event.step: float(str(np.float32(event.value))) for event in events.Scalars(tag)}
        curves[tag[len(TAG) :]] = list(values.values())
    return curves


def machine():
    try:
        cpuinfo = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        cpuinfo = ""
    named = re.search(r"model name\s*:\s*(.+)", cpuinfo)
    processor = named[1] if named else platform.processor() or platform.machine()
    return {"processor": processor, "threads": cores()}


def commit():
    """The commit of this program, marked where its files differ; None if unknown."""
    here = pathlib.Path(__file__).resolve().parent
    # No commit of a repository that this program merely lies in.
    own = {**os.environ, "GIT_CEILING_DIRECTORIES": str(here.parent)}

    def git(*command):
        output = subprocess.check_output(
            ["git", *command], cwd=here, env=own, stderr=subprocess.DEVNULL
        )
        return output.decode().strip()

    try:
        # Of the program alone: the study that runs it writes pictures beside it.
        program = ("train.py", "model.py", "data.py")
        changed = git("--no-optional-locks", "status", "--porcelain", "--", *program)
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def make_results(dataset, run_dir, step, images_per_second, stitches, wall_seconds, version):
    """What results.json holds. Accuracies and loss are read back from the event files,
    which a resumed run continues; times and commit are those of the last sitting."""
    curves = scalars(run_dir)
    tests = {task.name: curves[f"accuracy_test_{task.name}"] for task in dataset.tasks}
    tests["mean"] = curves["accuracy_test"]
    libraries = ("tensorflow", "tf-slim", "numpy")
    return {
        "dataset": dataset.name,
        "seed": FLAGS.seed,
        "flags": flag_values(),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in libraries},
        },
        "machine": machine(),
        "commit": version,
        "global_step": step,
        "loss_total": curves["loss_total"][-1],
        "accuracy_test": {name: values[-1] for name, values in tests.items()},
        "accuracy_test_last": {
            name: round(float(np.mean(values[-LAST_EVALUATIONS:])), 6)
            for name, values in tests.items()
        },
        "cross_stitch": {
            scope: np.round(weights.astype(float), 6).tolist()
            for scope, weights in stitches.items()
        },
        "images_per_second": images_per_second and round(images_per_second, 1),
        "wall_seconds": round(wall_seconds, 1),
    }


def table(results):
    """The results as a person reads them."""
    names = list(results["accuracy_test"])
    width = max(map(len, names)) + 3
    minutes, seconds = divmod(round(results["wall_seconds"]), 60)
    speed = results["images_per_second"]
    unit = results["flags"]["cross_stitch_unit"] if results["cross_stitch"] else "none"
    unit = "hard sharing" if results["flags"].get("hard_sharing") else unit

    def row(title, cells):
        return title.ljust(26) + "".join(str(cell).rjust(width) for cell in cells)

    lines = [
        f"{results['dataset']}, {unit}, seed {results['seed']}:"
        f" {results['global_step']:,} steps in {minutes} min {seconds} s"
        + (f", {speed:,.0f} images/s" if speed else ""),
        "",
        row("", names),
        row(
            "held-out accuracy" if results["flags"].get("holdout") else "test accuracy",
            [f"{v:.4f}" for v in results["accuracy_test"].values()],
        ),
        row(
            f"  last {LAST_EVALUATIONS} evaluations",
            [f"{v:.4f}" for v in results["accuracy_test_last"].values()],
        ),
    ]
    if results["cross_stitch"]:
        lines += ["", row("mean weights, to \\ from", names[:-1])]
    for scope, weights in results["cross_stitch"].items():
        for name, row_weights in zip(names, weights):
            title = f"{scope if name == names[0] else '':<17}{name}"
            lines.append(row(title, [f"{round(w, 3) + 0.0:.3f}" for w in row_weights]))
    return "\n".join(lines)


def build(dataset):
    """The graph that the flags ask for. Returns: a `model.Model`."""
    return model.build(
        [(task.name, len(task.classes)) for task in dataset.tasks],
        unit=stitch_unit(),
        own_weight=FLAGS.cross_stitch_init,
        fixed_others=FLAGS.cross_stitch_own_only,
        stitch_rate_scale=FLAGS.cross_stitch_learning_rate_scale,
        hard_sharing=FLAGS.hard_sharing,
        learning_rate=FLAGS.learning_rate,
        l2_scale=FLAGS.l2_scale,
        keep_prob=FLAGS.keep_prob,
        batch_norm_decay=FLAGS.batch_norm_decay,
        seed=FLAGS.seed,
        statistics=(dataset.mean, dataset.scale),
    )


def train_and_report(dataset, run_dir, last_step, config, started):
    """Trains a run to its end and writes its results, or exits where a signal asks for it."""
    print(f"Writing to {run_dir}\nTo watch: tensorboard --logdir={FLAGS.logdir}", flush=True)
    version = commit()  # before somebody makes the next one
    net = build(dataset)
    step, stopped_by, images_per_second, stitches = train(net, dataset, run_dir, last_step, config)
    if stopped_by:
        print(
            f"Stopped after step {step:,} of {last_step:,}, and saved. The same command goes on"
            " from there.",
            file=sys.stderr,
        )
        sys.exit(128 + stopped_by)  # what a shell reports of a process that a signal ended
    seconds = time.perf_counter() - started
    results = make_results(dataset, run_dir, step, images_per_second, stitches, seconds, version)
    write_json(run_dir / RESULTS, results)
    print("\n" + table(results))


def run():
    """Loads, trains or finds trained, evaluates, exports."""
    started = time.perf_counter()
    dataset = data.load(
        FLAGS.dataset,
        FLAGS.data_dir,
        FLAGS.seed,
        FLAGS.tasks.split(","),
        FLAGS.train_examples,
        FLAGS.holdout,
    )
    num_examples = len(dataset.train.images)
    if FLAGS.batch_size > num_examples:
        raise data.DataError(
            f"--batch_size={FLAGS.batch_size}: there are {num_examples:,} training images"
        )
    last_step = FLAGS.num_epochs * data.steps_per_epoch(num_examples, FLAGS.batch_size)
    last_step = min(last_step, FLAGS.max_steps or last_step)

    run_dir = pathlib.Path(os.path.expanduser(FLAGS.logdir)) / run_name(dataset.name)
    report = run_dir / RESULTS
    if FLAGS.eval_only and not report.exists():
        raise RunError(f"{run_dir}: not a finished run. Train it first, without --eval_only.")
    with claimed(run_dir):
        check_settings(run_dir, dataset)
        results = read_json(report) if report.exists() else None
        config = side_by_side(1 if FLAGS.hard_sharing else len(dataset.tasks), stitch_unit())
        if results and (FLAGS.eval_only or results["global_step"] == last_step):
            print(f"{run_dir}: this run is finished. Another --run_name starts a new one.\n")
            print(table(results))
        else:
            train_and_report(dataset, run_dir, last_step, config, started)
        if FLAGS.eval_only:
            net = build(dataset)
            with restored(net.graph, run_dir) as session:
                shares = evaluate(session, net, dataset)
            print("\nEvaluated: " + ", ".join(f"{n} {share:.4f}" for n, share in shares.items()))
        if FLAGS.export_dir:
            export(dataset, run_dir, os.path.expanduser(FLAGS.export_dir))


def format_warning(message, *_):
    """A box that nobody overlooks, instead of a source line."""
    rule = "*" * 78
    return "\n".join(["", rule, *textwrap.wrap(f"WARNING: {message}", 78), rule, "", ""])


def main(_):
    warnings.formatwarning = format_warning
    warnings.filterwarnings("ignore", module="tensorflow")  # deprecations inside tf-slim
    # The event file's thread dies of a full disk; `flush` hears of it, and says it.
    threading.excepthook = lambda _: None
    for library in ("tensorflow", "tensorboard"):
        logging.getLogger(library).setLevel(logging.ERROR)
    try:
        run()
    except (data.DataError, RunError) as error:
        sys.exit(f"train.py: {error}")
    except OSError as error:
        sys.exit(f"train.py: {error.filename or FLAGS.logdir}: {error.strerror or error}")
    except tf.errors.OpError as error:
        sys.exit(
            f"train.py: {brief(error.message)}. What was saved before is unharmed, and the same"
            " command goes on from there."
        )


if __name__ == "__main__":
    app.run(main)
