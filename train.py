"""Trains a cross-stitch network on Fashion-MNIST: two labels of one image, two towers.

    python train.py                                  # channel units, 30 epochs
    python train.py --cross_stitch=False             # the same towers, sharing nothing
    python train.py --num_epochs=2                   # a first look, a few minutes
    tensorboard --logdir=logs

Each run has a folder of its own below --logdir, with event files, checkpoints and
results.json. Run the same command again to resume a run that stopped: it ends with
the same bits. `python train.py --help` lists the flags.

The file reads from top to bottom: flags, training loop, what TensorBoard shows, the
command, results, export; then what protects a run: its folder, its checkpoints, errors;
at last the machine and the command line.
"""

import collections
import contextlib
import dataclasses
import fcntl
import functools
import importlib.metadata
import importlib.util
import json
import logging
import os
import pathlib
import platform
import re
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import typing
import warnings

from absl import app, flags

if __name__ == "__main__":
    # Until there is something to save, Ctrl-C ends the program without a traceback.
    interrupt_handler = signal.getsignal(signal.SIGINT)
    if interrupt_handler != signal.SIG_IGN:  # as in a script's `train.py &`
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # With stderr closed (`2>&-`), the next file that is opened would take its number.
    while (null := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(null)
    sys.stderr = sys.stderr or open(2, "w", closefd=False)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Keeps TensorFlow from importing Keras, which takes half a second and 50 MB.
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    if platform.machine() in ("x86_64", "AMD64"):
        # By default, TensorFlow uses oneDNN on recent processors only. On older ones, too,
        # it makes training a quarter faster.
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    # While it is imported, TensorFlow writes to stderr, whatever the log level. `tail` holds
    # that text back: it prints it if this process dies, and is killed otherwise.
    terminal, tail = os.dup(2), None
    with contextlib.suppress(OSError):  # such as a container without `tail`
        tail = subprocess.Popen(["tail", "-n", "99"], stdin=subprocess.PIPE, stdout=terminal)
        os.dup2(tail.stdin.fileno(), 2)

import numpy as np
import tensorflow as tf_v2
import tensorflow.compat.v1 as tf
import tqdm
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
from tensorboard.plugins.hparams import summary_v2 as hparams  # its `api` imports Keras
from tensorboard.plugins.hparams.summary import session_end_pb
from tensorboard.summary.v1 import text_pb

import data
import model

if __name__ == "__main__":
    os.dup2(terminal, 2)
    if tail:
        tail.kill()
        tail.wait()

FLAGS = flags.FLAGS
for flag in FLAGS.get_flags_for_module(sys.modules[__name__]):
    delattr(FLAGS, flag.name)  # of an earlier run in the same process, as in a notebook

# --- Flags ---

ONE_TOWER = model.PLACES[-1]  # tasks that share the layers up to here have no towers of their own


def define_hyper_parameters(*names):
    """Defines flags for fields of model.Config, with the defaults and help given there."""
    define = {bool: flags.DEFINE_boolean, float: flags.DEFINE_float, str: flags.DEFINE_string}
    for field in dataclasses.fields(model.Config):
        if field.name in names:
            is_choice = "enum_values" in field.metadata
            define_flag = flags.DEFINE_enum if is_choice else define[field.type]
            define_flag(field.name, field.default, **field.metadata)


# The network
flags.DEFINE_string(
    "tasks", "article,group", "Tasks, one tower each: from TASKS in data.py, or label files."
)
define_hyper_parameters("cross_stitch", "cross_stitch_unit", "cross_stitch_init")
define_hyper_parameters("cross_stitch_learning_rate_scale", "cross_stitch_own_only")
flags.DEFINE_string("init_from", None, "Folder of a finished run whose towers to start with.")
define_hyper_parameters("cross_stitch_at", "share_until")
flags.DEFINE_boolean(
    "hard_sharing", False, f"The same as --share_until={ONE_TOWER}: one tower, no units."
)
define_hyper_parameters("keep_prob", "batch_norm_decay")

# Training
define_hyper_parameters("learning_rate", "l2_scale")
flags.DEFINE_integer("num_epochs", 30, "Passes over the training images.", lower_bound=1)
flags.DEFINE_integer("batch_size", 128, "Images per step.", lower_bound=1)
flags.DEFINE_integer("max_steps", 0, "Stop after this many steps; 0 for no limit.", lower_bound=0)
flags.DEFINE_integer(
    "train_examples", 0, "Train on this many images, balanced by label; 0 for all.", lower_bound=0
)
flags.DEFINE_integer(
    "starve", 1, "Train on few images of some articles: the rarest keeps 1/R. 1 for all.", 1
)
flags.DEFINE_integer(
    "holdout", 0, "Evaluate on this many training images, not on the test set.", lower_bound=0
)
flags.DEFINE_integer(
    "threads", 0, "Cores to use; 0 for all. Results differ in rounding.", lower_bound=0
)
flags.DEFINE_enum("device", "cpu", ("cpu", "gpu"), "Where to train; a GPU trains the plain graph.")
flags.DEFINE_integer("eval_every", 100, "Steps between evaluations.", lower_bound=1)
flags.DEFINE_integer(
    "seed", 0, "Start weights, choice and order of images, dropout.", 0, upper_bound=2**32 - 1
)

# Files
flags.DEFINE_enum(
    "dataset",
    "auto",
    data.DATASETS,
    "auto: your folder's files, else Fashion-MNIST, else synthetic.",
)
flags.DEFINE_string("data_dir", None, f"Data folder; by default {data.FOLDER_VARIABLE} or a cache.")
flags.DEFINE_string("logdir", "logs", "Folder below which each run has its own.")
flags.DEFINE_string("run_name", None, "The run's folder; by default it follows from the flags.")
flags.DEFINE_string("export_dir", None, "Folder for the trained network as a SavedModel.")
flags.DEFINE_boolean("eval_only", False, "Evaluate a finished run; train nothing.")
flags.DEFINE_boolean("overwrite", False, "Delete what an earlier run left in the folder.")
flags.DEFINE_float("save_checkpoint_secs", 300, "Seconds between checkpoints.")
flags.DEFINE_integer(
    "keep_checkpoints", 3, "How many to keep; 2 at least, in case one is damaged.", 2, 10**6
)

# The original's names
ALIASES = {
    "cross_stitch_enabled": "cross_stitch",
    "lr": "learning_rate",
    "n_epoch": "num_epochs",
    "n_batch_size": "batch_size",
    "reg_lambda": "l2_scale",
}
for alias, name in ALIASES.items():
    flags.DEFINE_alias(alias, name)

# Flags that change the result by rounding at most, and those that only set a run's length
NO_EFFECT_ON_RESULT = {"data_dir", "logdir", "run_name", "export_dir", "eval_only"}
NO_EFFECT_ON_RESULT |= {"overwrite", "save_checkpoint_secs", "keep_checkpoints", "threads"}
LENGTH_OF_RUN = {"num_epochs", "max_steps"}
UNIT_FLAGS = {name for name in FLAGS if name.startswith("cross_stitch_")} - ALIASES.keys()

# --- The training loop ---

NUMERICS = 1  # raised by a change that alters a result's bits; results.json records it
EVALUATION_BATCH_SIZE = 250


class RunError(Exception):
    """The run cannot continue; the message is one sentence for the user."""


class Trained(typing.NamedTuple):
    """What `train` did."""

    resumed_after: int  # step of the checkpoint that it started from, or 0
    step: int  # global step reached
    stopped_by: int | None  # number of the signal that stopped it before the last step
    images_per_second: float | None  # training speed, unknown after a single step
    stitches: dict  # unit scope -> [T, T] mean weights
    confusions: dict | None  # of the last evaluation, as `evaluate` returns them


def train(net, dataset, run_dir, last_step, session_config):
    """Trains up to `last_step`, from the folder's newest checkpoint if there is one.

    Args:
      net: a `model.Model`.
      dataset: a `data.Dataset`.
      run_dir: the run's folder.
      last_step: global step to train to.
      session_config: a `tf.ConfigProto`.

    Returns:
      A `Trained`.

    Raises:
      RunError: the run cannot be resumed, has diverged, or cannot be saved.
    """
    with net.graph.as_default(), signals_noted() as signals:
        saver, first_step, set_variables = find_start(net, dataset, run_dir, last_step)
        net.graph.finalize()
        with (
            contextlib.closing(Progress(dataset.name, first_step, last_step)) as progress,
            event_writer(run_dir) as writer,
            tf.Session(config=session_config) as session,
        ):
            set_variables(session)
            write_start(writer, session, net, dataset.name, run_dir.name, first_step)
            step, confusions, saved_at = first_step, None, time.monotonic()

            for step in range(first_step + 1, last_step + 1):
                is_due = step % FLAGS.eval_every == 0 or step == last_step
                started = time.perf_counter()
                # Step and seed decide which images come, and in `model.dropout` which mask: a
                # resumed run continues with the same ones.
                batch = dataset.train_batch(step - 1, FLAGS.batch_size, FLAGS.seed)
                losses, summary = train_step(session, net, step, batch, is_due)
                progress.add_step(
                    len(batch[0]), sum(losses.values()), time.perf_counter() - started
                )
                if is_due:
                    check_weights(session, net, step)
                    shares, confusions = evaluate(session, net, dataset)
                    speed = progress.add_evaluation({task: shares[task] for task in net.labels})
                    write_evaluation(writer, session, net, step, summary, shares, speed)
                    write_classes(writer, dataset, confusions, step)
                    flush(writer, run_dir)  # TensorBoard shows it at once
                stopping = bool(signals)  # read once: a later signal waits for the next step
                seconds = time.monotonic() - saved_at
                if step == last_step or stopping or seconds >= FLAGS.save_checkpoint_secs:
                    save(session, net, saver, writer, run_dir, step)
                    saved_at = time.monotonic()
                if stopping:
                    break

            if step == last_step:
                if confusions is None:  # killed after the last checkpoint, before the results
                    _, confusions = evaluate(session, net, dataset)
                write_end(writer, dataset, confusions, step)
                flush(writer, run_dir)
            stitches = session.run(net.stitches)
    stopped_by = signals[0] if signals and step < last_step else None
    return Trained(first_step, step, stopped_by, progress.speed(), stitches, confusions)


def train_step(session, net, step, batch, is_due):
    """Trains on one batch; returns the losses of the weights before the step.

    Args:
      session: a session of the net's graph.
      net: a `model.Model`.
      step: the global step after this one.
      batch: images and labels, as `data.Dataset.train_batch` returns them.
      is_due: whether to compute the batch's summary.

    Returns:
      task -> cross-entropy, and the serialised summary or None.

    Raises:
      RunError: a loss is NaN or infinite.
    """
    # In a single run: a second one would update batch norm again, with other weights and
    # another dropout mask.
    fetches = {"train_op": net.train_op, "losses": net.losses}
    if is_due:
        fetches["summary"] = net.summary_op
    values = session.run(fetches, feed(net, batch, training=True))
    if not np.all(np.isfinite(list(values["losses"].values()))):
        raise RunError(diverged("loss", step))
    return values["losses"], values.get("summary")


def feed(net, batch, training):
    """A batch, images and labels by task, as a feed_dict."""
    images, labels = batch
    by_task = {net.labels[name]: labels[name] for name in net.labels}
    return {net.x: images, net.is_training: training, **by_task}


def evaluate(session, net, dataset):
    """Predicts the whole test set.

    Returns:
      task -> share of the images that is predicted correctly. If a task's labels follow
      from the article, "<task>_by_article" is the accuracy of what the article's
      prediction implies.
      task -> confusion matrix, [classes, classes]: row = label, column = prediction.
    """
    by_article = collections.Counter()
    confusions = {
        name: np.zeros([logits.shape[-1]] * 2, int) for name, logits in net.logits.items()
    }
    height, width, _ = dataset.image_shape()  # larger images, fewer at a time
    at_once = min(EVALUATION_BATCH_SIZE, max(1, EVALUATION_BATCH_SIZE * 28**2 // (height * width)))
    for batch in dataset.test_batches(at_once):
        predictions = session.run(net.predictions, feed(net, batch, training=False))
        implied = dataset.implied(predictions["article"]) if "article" in predictions else {}
        for name, label in batch[1].items():
            np.add.at(confusions[name], (label, predictions[name]), 1)
            if name in implied:
                by_article[f"{name}_by_article"] += int(np.sum(implied[name] == label))
    correct = {name: int(np.trace(matrix)) for name, matrix in confusions.items()} | by_article
    return {name: count / len(dataset.test.images) for name, count in correct.items()}, confusions


def find_start(net, dataset, run_dir, last_step):
    """Finds what the run starts from, for the default graph.

    Returns:
      A `tf.train.Saver` for the run's checkpoints; the step that the run has reached, 0
      for a new run; and a function of a session that gives all variables their values.

    Raises:
      RunError: the run cannot be resumed, or --init_from cannot be used.
    """
    delete_incomplete_checkpoints(run_dir)
    newest, checkpoints = newest_checkpoint(run_dir)
    step = step_of(newest) if newest else 0
    if step > last_step:
        raise RunError(
            f"{run_dir}: has {step:,} steps, more than the {last_step:,} of this command. Choose"
            " another --run_name, or start over with --overwrite."
        )
    towers = [v for v in tf.global_variables("network/") if not model.unit_of(v.op.name)]
    with tf.name_scope("train/"):  # keeps the graph page tidy
        saver = tf.train.Saver(max_to_keep=FLAGS.keep_checkpoints)
        tower_saver = tf.train.Saver(towers) if FLAGS.init_from and not newest else None
    # The saver deletes from the front of its list: the damaged ones, then the oldest.
    first_whole = checkpoints.index(newest) if newest else 0
    saver.recover_last_checkpoints(checkpoints[:first_whole] + checkpoints[first_whole:][::-1])
    source = checkpoint_of_source(dataset, towers) if tower_saver else None

    def set_variables(session):
        if newest:
            saver.restore(session, newest)
            return
        session.run(net.initializer)
        if tower_saver:
            tower_saver.restore(session, source)

    if step:
        print(f"Resuming after step {step:,}.", flush=True)
    return saver, step, set_variables


def check_weights(session, net, step):
    """Raises: RunError, a variable holds a NaN or an infinity."""
    if not session.run(net.finite):
        raise RunError(diverged("weights", step))


def save(session, net, saver, writer, run_dir, step):
    """Writes a checkpoint, but never weights that are NaN. Raises: RunError."""
    check_weights(session, net, step)
    # A resumed run does not write the events before its checkpoint again.
    flush(writer, run_dir)
    try:
        saver.save(session, str(run_dir / "model.ckpt"), step, write_meta_graph=False)
    except (tf.errors.OpError, ValueError) as error:  # ValueError: the folder is gone
        raise RunError(
            f"{run_dir}: the checkpoint cannot be written ({brief(error)}). Once it can,"
            f" {how_to_resume()} from the previous one."
        ) from error


class Progress:
    """A bar with the time left, training speed, cross-entropies and test accuracies.

    Speed is that of the training steps, without the first, in which TensorFlow compiles.
    """

    def __init__(self, name, first_step, last_step):
        self.bar = tqdm.tqdm(
            desc=name,
            initial=first_step,
            total=last_step,
            dynamic_ncols=True,
            smoothing=0.05,
            mininterval=0.5 if sys.stderr.isatty() else 30,
            # It fits a terminal of 80 columns.
            bar_format="{desc} {percentage:.0f}%|{bar}|ETA {remaining}{postfix}",
        )
        self._images, self._seconds = None, 0.0  # of all steps but the first
        self._evaluated = 0, 0.0  # images and seconds at the last evaluation
        self._loss, self._shares = float("nan"), {}

    def add_step(self, num_images, loss, seconds):
        if self._images is None:
            self._images = 0
        else:
            self._images, self._seconds = self._images + num_images, self._seconds + seconds
        self._loss = loss
        self._show()
        with contextlib.suppress(OSError):  # whoever read stderr may be gone
            self.bar.update()

    def close(self):
        with contextlib.suppress(OSError):
            self.bar.close()

    def add_evaluation(self, shares):
        """Args: task -> accuracy. Returns: training speed since the last evaluation, or None."""
        images, seconds = self._images - self._evaluated[0], self._seconds - self._evaluated[1]
        self._evaluated = self._images, self._seconds
        self._shares = shares
        self._show()
        return images / seconds if images else None

    def speed(self):
        """Images a second in training; None before the second step."""
        return self._images / self._seconds if self._images else None

    def _show(self):
        shares = [f"{name} {share:.3f}" for name, share in self._shares.items()]
        texts = [f"{self.speed() or 0:.0f} img/s", f"loss {self._loss:.3f}", *shares]
        self.bar.set_postfix_str(" ".join(texts), refresh=False)


# --- What TensorBoard shows ---

TAG = "summary/"  # prefix of the original's tags
COMPARED = ("sharing", "cross_stitch_init", "seed", "num_epochs")  # first on the HParams page


@contextlib.contextmanager
def event_writer(run_dir):
    """Yields: a `tf.summary.FileWriter` for the run's folder."""
    keep_event_files_in_order(run_dir)
    writer = tf.summary.FileWriter(str(run_dir))
    try:
        yield writer
    finally:
        # All that a run needs was flushed before its last checkpoint. After a full disk, this
        # would raise another error over the first.
        with contextlib.suppress(Exception):
            writer.close()


def write_start(writer, session, net, dataset_name, run_name, step):
    """Writes the run's graph; at step 0 also its flags and the units' weights."""
    # Makes TensorBoard drop what a killed process wrote after its last checkpoint.
    start = tf.SessionLog(status=tf.SessionLog.START)
    writer.add_session_log(start, step + 1 if step else 0)
    # Without the function library: the page would list its branches of tf.cond, too.
    graph_def = net.graph.as_graph_def()
    graph_def.ClearField("library")
    writer.add_event(tf.Event(wall_time=time.time(), graph_def=graph_def.SerializeToString()))
    if step == 0:
        write_flags(writer, net, dataset_name, run_name)
        if net.stitches:
            writer.add_summary(session.run(net.unit_summary_op), step)


def write_flags(writer, net, dataset_name, run_name):
    """Writes the run's flags as text and for the HParams page, which compares runs by them."""
    settings = {"sharing": kind_of_sharing(), **flag_values(), "dataset": dataset_name}
    text = "\n\n".join(f"**{name}** {value}" for name, value in settings.items())
    shown = {
        name: "" if value is None else value
        for name, value in settings.items()
        if name not in NO_EFFECT_ON_RESULT
    }
    # TensorBoard shows the columns of one run for all of them: name every task in each.
    tasks = dict.fromkeys([*TASK_NAMES, *net.labels])
    tags = ["accuracy_test", *(f"accuracy_test_{task}" for task in tasks), "loss_total"]
    columns = hparams.hparams_config_pb(
        [hparams.HParam(name) for name in shown],
        [hparams.Metric(TAG + tag, display_name=tag) for tag in tags],
    )
    # TensorBoard sorts the columns by name, after those that are marked as different.
    plugin_data = columns.value[0].metadata.plugin_data
    content = plugin_data_pb2.HParamsPluginData.FromString(plugin_data.content)
    for column in content.experiment.hparam_infos:
        column.differs = column.name in COMPARED
    plugin_data.content = content.SerializeToString()
    add_protos(writer, 0, text_pb("run", text), columns, hparams.hparams_pb(shown, run_name))


def write_evaluation(writer, session, net, step, summary_of_batch, shares, speed):
    """Writes a step's losses, accuracies and units.

    Args:
      writer, session, net, step: as in `train`.
      summary_of_batch: of the training batch, serialised.
      shares: accuracies on the test set, as `evaluate` returns them.
      speed: images a second in training since the last evaluation, or None.
    """
    writer.add_summary(summary_of_batch, step)
    if net.stitches:
        units, stitches = session.run([net.unit_summary_op, net.stitches])
        writer.add_summary(units, step)
        add_unit_picture(writer, stitches, list(net.labels), step)
    values = {f"accuracy_test_{name}": share for name, share in shares.items()}
    values["accuracy_test"] = np.mean([shares[task] for task in net.labels])
    if speed:
        values["images_per_second"] = speed
    summary = tf.Summary()
    for tag, value in values.items():
        summary.value.add(tag=TAG + tag, simple_value=value)
    writer.add_summary(summary, step)


def write_classes(writer, dataset, confusions, step):
    """Writes recall and F1 of each class, under tags of their own group."""
    summary = tf.Summary()
    for task in dataset.tasks:
        for measure, of in MEASURES.items():
            for index, value in enumerate(of(confusions[task.name])):
                if value is not None:
                    summary.value.add(tag=class_tag(task, index, measure), simple_value=value)
    writer.add_summary(summary, step)


def class_tag(task, index, measure):
    """For example class/article/0_T-shirt-top/recall: a slash would begin a part of the tag."""
    return f"class/{task.name}/{index}_{task.classes[index].replace('/', '-')}/{measure}"


def write_end(writer, dataset, confusions, step):
    """Writes the confusion matrices and, for the HParams page, that the run has ended."""
    for task in dataset.tasks:
        counts = confusions[task.name]
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        panels = {task.name: (shares, counts)}
        add_picture(writer, f"confusion_{task.name}", step,
                    panels, task.classes, ("label", "prediction"), 1, False)  # fmt: skip
    add_protos(writer, step, session_end_pb(api_pb2.STATUS_SUCCESS))


def add_protos(writer, step, *protos):
    """Adds summaries in TensorBoard's own class of the message."""
    for proto in protos:
        writer.add_summary(tf.Summary.FromString(proto.SerializeToString()), step)


def add_unit_picture(writer, stitches, tasks, step):
    limit = max(1.0, *(np.abs(weights).max() for weights in stitches.values()))
    written = np.vectorize("{:.3f}".format)
    panels = {scope: (weights, written(weights)) for scope, weights in stitches.items()}
    add_picture(writer, "mean_weights", step, panels, tasks, ("to", "from"), limit, True)


def add_picture(writer, tag, step, *matrices):
    """Adds a picture for TensorBoard. Where one cannot be drawn, the run goes on without any.

    Args: matrices, as `draw` of img/matrices.py takes them.
    """
    if getattr(writer, "cannot_draw", False):
        return
    try:
        png = from_img("matrices").draw(*matrices)
    except Exception as error:  # in matplotlib, anything
        writer.cannot_draw = True
        reason = f"{type(error).__name__}: {brief(error)}"
        warnings.warn(f"TensorBoard will show no pictures, because drawing one failed: {reason}")
        return
    summary = tf.Summary()
    summary.value.add(tag=TAG + tag, image=tf.Summary.Image(encoded_image_string=png))
    writer.add_summary(summary, step)


@functools.lru_cache
def from_img(name):
    """A module of img/, by its path: another package may be called img. Not imported before it
    is needed, as matplotlib takes a second."""
    path = pathlib.Path(__file__).resolve().parent / "img" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def flush(writer, run_dir):
    """Writes all events so far to the disk. Raises: RunError, it cannot."""
    # Writing to a deleted file raises nothing.
    if not (run_dir / LOCK).exists():
        raise RunError(f"{run_dir}: the folder was deleted, so this run ends.")
    try:
        writer.flush()
    except Exception as error:  # its class depends on the system's error
        raise RunError(
            f"{run_dir}: the event file cannot be written ({brief(error)}). Once it can,"
            f" {how_to_resume()} from the last checkpoint."
        ) from error


# --- The command ---


def run():
    """Does what the flags ask: trains or resumes a run, evaluates it, exports it."""
    started = time.perf_counter()
    dataset = load_dataset()
    last_step = FLAGS.num_epochs * data.steps_per_epoch(len(dataset.train.images), FLAGS.batch_size)
    last_step = min(last_step, FLAGS.max_steps or last_step)
    run_dir = pathlib.Path(os.path.expanduser(FLAGS.logdir)) / run_name(dataset.name)
    check_path(run_dir)
    results = None if FLAGS.overwrite else results_of_finished(run_dir)
    if FLAGS.eval_only and not results:
        raise RunError(f"{run_dir}: not a finished run. Train it first, without --eval_only.")
    is_finished = bool(results) and (FLAGS.eval_only or results["global_step"] == last_step)
    session_config = session_settings(len(dataset.tasks), kind_of_sharing())
    # A finished run is only read: it may be on a disk that cannot be written.
    with contextlib.nullcontext() if is_finished else claimed(run_dir):
        settings = settings_from_flags(dataset)
        step = results["global_step"] if is_finished else last_step
        exports = FLAGS.export_dir and not (is_finished and is_exported(settings, step))
        if exports:
            check_export_folder()
        net = None if is_finished else build(dataset)
        if net:
            check_memory(net)
        check_settings(run_dir, dataset, settings, is_finished)
        if is_finished:
            print(f"{run_dir}: this run is finished. Choose another --run_name for a new one.")
        else:
            write_json(run_dir / SETTINGS, settings)
            print(f"Writing to {run_dir}")
            print(f"Watch it: tensorboard --logdir={FLAGS.logdir}", flush=True)
            results = train_and_report(net, dataset, run_dir, last_step, session_config, started)
        if exports:  # before anything is printed, as nobody may be there to read it
            export(dataset, run_dir, settings, session_config)
        print("\n" + table(results))
        if FLAGS.eval_only:
            print("\n" + evaluation_text(dataset, run_dir, session_config))
        if FLAGS.export_dir:
            print(f"\n{FLAGS.export_dir}: holds this run's network.")


def load_dataset():
    """Loads the data that the flags ask for, and sets flags that follow from others or from it.

    Returns: a `data.Dataset`. Raises: data.DataError.
    """
    if FLAGS.hard_sharing or FLAGS.share_until == ONE_TOWER:  # two names, but one run
        FLAGS.hard_sharing, FLAGS.share_until, FLAGS.cross_stitch = True, None, False
    tasks = FLAGS.tasks.split(",") if is_given("tasks") else None
    dataset = data.load(
        FLAGS.dataset,
        FLAGS.data_dir,
        FLAGS.seed,
        tasks,
        FLAGS.train_examples,
        FLAGS.holdout,
        FLAGS.starve,
    )
    FLAGS.tasks = ",".join(task.name for task in dataset.tasks)
    of_units = sorted(f"--{name}" for name in UNIT_FLAGS if is_given(name))
    if of_units and not has_units():
        warnings.warn(
            f"ignored, because the network has no cross-stitch units: {', '.join(of_units)}"
        )
    num_examples = len(dataset.train.images)
    if FLAGS.batch_size > num_examples:
        raise data.DataError(
            f"--batch_size={FLAGS.batch_size}: there are only {num_examples:,} training images"
        )
    return dataset


def build(dataset):
    """Builds the graph that the flags ask for. Returns: a `model.Model`."""
    tasks = [(task.name, len(task.classes)) for task in dataset.tasks]
    # The fast forms are for CPUs: some would be compiled, which a GPU needs more packages for.
    fast = FLAGS.device == "cpu"
    statistics = dataset.mean, dataset.scale
    return model.build(tasks, config_from_flags(), statistics, fast, dataset.image_shape())


def is_given(name):
    return FLAGS[name].present > 0


def flag_values():
    """This program's flags without the aliases: name -> value."""
    own = FLAGS.get_flags_for_module(sys.modules[__name__])
    return {flag.name: flag.value for flag in own if flag.name not in ALIASES}


def config_from_flags():
    """Returns: the `model.Config` that the flags ask for."""
    values = {f.name: FLAGS[f.name].value for f in dataclasses.fields(model.Config)}
    return model.Config(**values | ({"share_until": ONE_TOWER} if FLAGS.hard_sharing else {}))


def kind_of_sharing():
    """ "hard_sharing", the kind of unit, or "none". One task has nothing to share."""
    if FLAGS.hard_sharing:
        return "hard_sharing"
    return FLAGS.cross_stitch_unit if FLAGS.cross_stitch and "," in FLAGS.tasks else "none"


def has_units():
    return kind_of_sharing() not in ("none", "hard_sharing")


# --- Results ---

SETTINGS, RESULTS = "settings.json", "results.json"  # files in the run's folder
LAST_EVALUATIONS = 5  # accuracy_test_last is their mean


def train_and_report(net, dataset, run_dir, last_step, session_config, started):
    """Trains a run to its end, or exits if a signal stops it. Returns: its results."""
    version = commit()  # now: the user may commit while the run trains
    events = from_img("events")  # now: if it is missing, no training is lost
    versions = {
        "python": platform.python_version(),
        "tensorflow": tf_v2.__version__,  # its distribution has several names
        "tf-slim": importlib.metadata.version("tf-slim"),
        "numpy": np.__version__,
    }
    trained = train(net, dataset, run_dir, last_step, session_config)
    if trained.stopped_by:
        with contextlib.suppress(OSError):  # whoever read stderr may be gone
            print(
                f"Stopped after step {trained.step:,} of {last_step:,} and saved."
                f" {how_to_resume().capitalize()}.",
                file=sys.stderr,
            )
        sys.exit(128 + trained.stopped_by)  # as shells report a process that a signal ended
    # Accuracies and loss are read from the event files, which a resumed run continues;
    # times and commit are those of the last process, since `resumed_after`.
    scalars = events.read_scalars(run_dir)
    curves = {tag.removeprefix(TAG): values for tag, (_, values) in scalars.items()}
    shares = {name: np.trace(counts) / counts.sum() for name, counts in trained.confusions.items()}
    shares["mean"] = np.mean([*shares.values()])
    tests = {  # without event files, what is known is the last evaluation
        name: curves.get("accuracy_test" + (f"_{name}" if name != "mean" else ""), [float(share)])
        for name, share in shares.items()
    }
    ranks = dict(zip(data.ARTICLES, data.ranks_of_articles(FLAGS.seed)))
    results = {
        "dataset": dataset.name,
        "seed": FLAGS.seed,
        "flags": flag_values(),
        "versions": versions,
        "numerics": NUMERICS,
        "machine": machine(),
        "device": device_name(),
        "commit": version,
        "global_step": trained.step,
        "loss_total": curves.get("loss_total", [None])[-1],
        "accuracy_test": {name: values[-1] for name, values in tests.items()},
        "accuracy_test_last": {name: last_mean(values) for name, values in tests.items()},
        "cross_stitch": {
            scope: np.round(weights.astype(float), 6).tolist()
            for scope, weights in trained.stitches.items()
        },
        "recall": {
            task.name: dict(zip(task.classes, recalls(trained.confusions[task.name])))
            for task in dataset.tasks
        },
        **{
            f"{measure}_last": {
                task.name: {
                    name: last_mean(curves.get(class_tag(task, index, measure)))
                    for index, name in enumerate(task.classes)
                }
                for task in dataset.tasks
            }
            for measure in MEASURES
        },
        "train_images": dataset.images_by_class(),
        "ranks": ranks if FLAGS.starve > 1 else None,  # of articles, 0 for the commonest
        "confusion": {name: matrix.tolist() for name, matrix in trained.confusions.items()},
        "resumed_after": trained.resumed_after,
        "images_per_second": trained.images_per_second and round(trained.images_per_second, 1),
        "wall_seconds": round(time.perf_counter() - started, 1),
    }
    write_json(run_dir / RESULTS, results)
    return results


def last_mean(values):
    """The mean of a curve's last values; None without any: a class's recall needs test images
    of it, its F1 those or predictions."""
    return values and round(float(np.mean(values[-LAST_EVALUATIONS:])), 6)


def table(results):
    """The results as text for the terminal."""
    names = list(results["accuracy_test"])
    width = max(map(len, names)) + 3
    minutes, seconds = divmod(round(results["wall_seconds"]), 60)
    speed = results["images_per_second"]
    sharing = results["flags"]["cross_stitch_unit"] if results["cross_stitch"] else "none"
    sharing = "hard sharing" if results["flags"].get("hard_sharing") else sharing
    steps = f"{results['global_step']:,} steps"
    if results.get("resumed_after"):
        steps += f", the last {results['global_step'] - results['resumed_after']:,} of them"
    evaluated = "held-out" if results["flags"].get("holdout") else "test"

    def row(title, cells):
        return title.ljust(26) + "".join(str(cell).rjust(width) for cell in cells)

    def accuracy_row(title, accuracies):
        return row(title, [f"{accuracies[name]:.4f}" for name in names])

    lines = [
        f"{results['dataset']}, {sharing}, seed {results['seed']}:"
        f" {steps} in {minutes} min {seconds} s" + (f", {speed:,.0f} images/s" if speed else ""),
        "",
        row("", names),
        accuracy_row(f"{evaluated} accuracy", results["accuracy_test"]),
        accuracy_row(f"  last {LAST_EVALUATIONS} evaluations", results["accuracy_test_last"]),
    ]
    if results["cross_stitch"]:
        lines += ["", row("mean weights, to \\ from", names[:-1])]
    for scope, weights in results["cross_stitch"].items():
        for name, row_weights in zip(names, weights):
            title = f"{scope if name == names[0] else '':<17}{name}"
            lines.append(row(title, [f"{round(w, 3) + 0.0:.3f}" for w in row_weights]))
    return "\n".join(lines)


def results_of_finished(run_dir):
    """The results of a run, or None if it is not finished or has gone on with more epochs."""
    results = read_json(run_dir / RESULTS)
    newest = max(steps_saved(run_dir), default=0)
    return results if newest <= results.get("global_step", -1) else None


def recalls(confusion):
    """Share of each class's images that is predicted correctly; None for a class without images."""
    return [
        round(row[index] / row.sum(), 6) if row.sum() else None
        for index, row in enumerate(confusion)
    ]


def f1_scores(confusion):
    """2 TP / (2 TP + FP + FN) of each class; None for one neither in the labels nor predicted."""
    found, counts = np.diag(confusion), confusion.sum(axis=0) + confusion.sum(axis=1)
    return [round(2 * f / n, 6) if n else None for f, n in zip(found, counts)]


MEASURES = {"recall": recalls, "f1": f1_scores}


def confusion_table(task, confusion):
    """Recall of every class and the confusion matrix, as text for the terminal."""
    width = max(6, len(str(confusion.max())) + 2)
    first = max(map(len, (*task.classes, task.name))) + 5
    lines = [f"{task.name}: a row for each class, a column for each prediction"]
    numbers = "".join(f"{i:>{width}}" for i in range(len(task.classes)))
    lines.append(" " * first + "  recall" + numbers)
    for index, (name, row, recall) in enumerate(zip(task.classes, confusion, recalls(confusion))):
        share = "-" if recall is None else f"{recall:.3f}"
        cells = "".join(f"{count:>{width}}" for count in row)
        lines.append(f"{index:>3} {name:<{first - 4}}{share:>8}{cells}")
    return "\n".join(lines)


def evaluation_text(dataset, run_dir, session_config):
    """Evaluates a finished run's network. Returns: accuracies and confusion matrices as text."""
    net = build(dataset)
    with restored(net.graph, run_dir, session_config) as (session, _):
        shares, confusions = evaluate(session, net, dataset)
    accuracies = ", ".join(f"{name} {share:.4f}" for name, share in shares.items())
    tables = [confusion_table(task, confusions[task.name]) for task in dataset.tasks]
    return "\n\n".join([f"Evaluated: {accuracies}", *tables])


def machine():
    """What the order of sums, and so the last bits of a result, may depend on."""
    try:
        cpuinfo = pathlib.Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        cpuinfo = ""
    named = re.search(r"model name\s*:\s*(.+)", cpuinfo)
    processor = named[1] if named else platform.processor() or platform.machine()
    # Machines of the same name may differ in this.
    vectors = [name for name in ("avx512f", "avx2", "avx") if re.search(rf"\b{name}\b", cpuinfo)]
    return {
        "processor": processor,
        "vectors": (vectors or [None])[0],
        "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS"),
        "threads": cores(),
    }


def commit():
    """The commit of this program, with "-dirty" if its files differ; or "unknown"."""
    git = from_img("command_line").git
    head = git("rev-parse", "HEAD")
    program = "train.py", "model.py", "data.py", "img/events.py"  # which reads the accuracies
    changed = git("status", "--porcelain", "--", *program)
    return head + ("-dirty" if changed else "") if head else "unknown"


# --- Export ---

EXPORTED = "run.json"  # in an export's folder: of which run it is, and of which step


def export_folders():
    """The folder --export_dir, and a draft that is renamed to it when the export is whole."""
    folder = pathlib.Path(os.path.realpath(os.path.expanduser(FLAGS.export_dir)))
    return folder, folder.with_name(f".{folder.name}.unfinished-export")


def is_exported(settings, step):
    """Whether --export_dir holds the network of this run at this step."""
    found = read_json(export_folders()[0] / EXPORTED)
    try:
        return completed(found["settings"], settings) == settings and found["global_step"] == step
    except (KeyError, TypeError):  # another program's file
        return False


def check_export_folder():
    """Raises: RunError, --export_dir holds something; OSError, it cannot be written."""
    folder, draft = export_folders()
    for path in (os.path.expanduser(FLAGS.export_dir), folder):
        check_path(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder}: holds something else. Choose another --export_dir.")
    shutil.rmtree(draft, ignore_errors=True)  # what a killed export left
    draft.mkdir(parents=True)
    existed = folder.exists()
    try:  # now, and not after hours of training
        draft.replace(folder)
    except OSError as error:
        draft.rmdir()
        raise RunError(
            f"{folder}: cannot be replaced ({error.strerror}). Choose a new --export_dir."
        ) from error
    if not existed:
        folder.rmdir()


def export(dataset, run_dir, settings, session_config):
    """Writes the newest checkpoint's network as a SavedModel. Raises: RunError."""
    folder, draft = export_folders()
    tasks = [(task.name, task.classes) for task in dataset.tasks]
    server = model.build_server(tasks, config_from_flags(), dataset.image_shape())
    with restored(server.graph, run_dir, session_config) as (session, step):
        signature = tf.saved_model.predict_signature_def({"images": server.images}, server.outputs)
        try:
            builder = tf.saved_model.Builder(str(draft))
            builder.add_meta_graph_and_variables(
                session, [tf.saved_model.SERVING], {"serving_default": signature}
            )
            builder.save()
        except tf.errors.OpError as error:
            raise RunError(f"{folder}: cannot be written ({brief(error.message)}).") from error
    write_json(draft / EXPORTED, {"settings": settings, "global_step": step})
    draft.replace(folder)


@contextlib.contextmanager
def restored(graph, run_dir, session_config):
    """Yields: a session with the newest checkpoint's values, and its step.

    Raises: RunError, there is none.
    """
    with graph.as_default(), tf.Session(graph=graph, config=session_config) as session:
        checkpoint, _ = newest_checkpoint(run_dir)
        if checkpoint is None:
            raise RunError(f"{run_dir}: its checkpoints are gone. Train again with --overwrite.")
        tf.train.Saver().restore(session, checkpoint)
        yield session, step_of(checkpoint)


# --- The run's folder: its name, one process, one set of flags ---

LOCK = "lock"
RUN_FILES = ("events.out.tfevents.*", "checkpoint", "checkpoint.tmp*", "model.ckpt-*")
RUN_FILES += ("results.json", "results.part")


def run_name(dataset_name):
    """The name of the run's folder, for example fashion_mnist-channel-seed0-learning_rate=0.01.

    It names every flag that can change the result and differs from its default.
    """
    if FLAGS.run_name:
        # Nobody may mistake a run on synthetic images for one on Fashion-MNIST.
        marked = dataset_name != "synthetic" or dataset_name in FLAGS.run_name
        return FLAGS.run_name if marked else f"{FLAGS.run_name}-{dataset_name}"
    left_out = {"cross_stitch", "cross_stitch_unit", "hard_sharing", "seed", "dataset"}
    left_out |= NO_EFFECT_ON_RESULT | (set() if has_units() else UNIT_FLAGS)
    others = [
        f"{name}={pathlib.Path(value).name if name == 'init_from' else value}"
        for name, value in flag_values().items()
        if name not in left_out and value != FLAGS[name].default
    ]
    return "-".join([dataset_name, kind_of_sharing(), f"seed{FLAGS.seed}", *others])


def check_path(folder):
    """Raises: RunError, TensorFlow would take the name for something else, or cannot read it."""
    if re.search(r"^~|[][*?\\]|:/", str(folder)):
        raise RunError(
            f"{folder}: cannot be used, because TensorFlow reads * ? [ ] \\ and :/ as more than"
            " characters, and ~ stands for no known home. Choose another folder."
        )
    if re.search(r"[\ud800-\udfff]", str(folder)):
        raise RunError(
            f"{folder}: this locale cannot read the name. Set PYTHONUTF8=1, or rename it."
        )


@contextlib.contextmanager
def claimed(run_dir):
    """Creates the folder and keeps other processes out of it. Raises: RunError, one is there."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with open(run_dir / LOCK, "a") as lock:
        try:
            # The system releases the lock when the process ends, however it ends.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"{run_dir}: another process is using this run. Wait for it, or choose another"
                " --run_name."
            ) from None
        except OSError as error:
            raise RunError(
                f"{run_dir}: its file system has no file locks ({error.strerror}), which keep"
                " other processes out of a run. Choose a --logdir on another one."
            ) from error
        yield


def settings_from_flags(dataset):
    """Returns: what determines the result, by flag; the content of settings.json."""
    ignored = NO_EFFECT_ON_RESULT | LENGTH_OF_RUN | (set() if has_units() else UNIT_FLAGS)
    settings = {name: value for name, value in flag_values().items() if name not in ignored}
    settings |= {"dataset": dataset.name, "data": dataset.fingerprint()}
    return settings | {"classes": dataset.fingerprint_of_classes()}


def completed(before, now):
    """Fills in settings that an earlier version did not record: flags with their defaults,
    the classes with those of `now`."""
    defaults = {name: FLAGS[name].default for name in now if name in FLAGS}
    return defaults | {"classes": now["classes"]} | before


def check_settings(run_dir, dataset, now, is_finished):
    """Refuses to resume what other flags, other data or another program started.

    With --overwrite it deletes that instead.

    Args:
      run_dir: the run's folder.
      dataset: a `data.Dataset`.
      now: as `settings_from_flags` returns them.
      is_finished: whether the run is only evaluated or exported, which any device can do.

    Raises:
      RunError.
    """
    left = [path for pattern in RUN_FILES for path in run_dir.glob(pattern)]
    record = run_dir / SETTINGS
    # Before anything is deleted or written.
    if FLAGS.init_from and (FLAGS.overwrite or not left):
        if check_source(dataset).resolve() == run_dir.resolve():
            raise RunError(
                f"--init_from={run_dir}: is the run's own folder. Choose another --run_name."
            )
    if FLAGS.overwrite:
        record.unlink(missing_ok=True)
        for path in left:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = read_json(record)
    if left and not FLAGS.overwrite and not before:
        if not record.exists() and not holds_network(run_dir):
            raise RunError(
                f"{run_dir}: holds files of something that this program cannot resume. Choose"
                " another --run_name, or delete them with --overwrite."
            )
        warnings.warn(f"{record}: missing or damaged, so flags and data are not compared with it.")
    before = completed(before, now) if before else now
    differing = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    # Without units, their flags are not recorded, so they cannot differ.
    differing = [name for name in differing if name in now or name not in UNIT_FLAGS]
    differing = [name for name in differing if name != "device" or not is_finished]
    if differing:
        named = {name: f"--{name}=" if name in FLAGS else f"{name} " for name in differing}
        started, asked = (
            " ".join(f"{text}{settings.get(name)}" for name, text in named.items())
            for settings in (before, now)
        )
        raise RunError(
            f"{run_dir}: this run was started with {started}, not {asked}. Resume it with the"
            " former, choose another --run_name, or start over with --overwrite."
        )


def check_source(dataset):
    """Returns: the folder --init_from, of a finished run whose towers fit this one.

    Raises: RunError, it is not finished, has units, or has other tasks, classes or data set.
    """
    source = pathlib.Path(os.path.expanduser(FLAGS.init_from))
    check_path(source)
    if not results_of_finished(source):
        raise RunError(f"--init_from={source}: not the folder of a finished run.")
    if not any(source.glob("model.ckpt-*.index")):
        raise RunError(f"--init_from={source}: its checkpoints are gone. Train it again.")
    same = ("tasks", "share_until", "hard_sharing", "holdout")
    wanted = {name: FLAGS[name].value for name in same}
    wanted |= {"cross_stitch": False} if len(dataset.tasks) > 1 else {}  # one tower has no units
    wanted["dataset"] = dataset.name
    settings = read_json(source / SETTINGS)
    if not settings:
        raise RunError(
            f"--init_from={source}: its {SETTINGS} is missing or damaged. Train it again."
        )
    settings = {name: FLAGS[name].default for name in wanted} | settings
    differing = [f"--{name}={v}" for name, v in wanted.items() if settings[name] != v]
    if differing:
        raise RunError(f"--init_from={source}: must be a run with {' '.join(differing)}.")
    classes = dataset.fingerprint_of_classes()
    if settings.get("classes", classes) != classes:
        raise RunError(f"--init_from={source}: its tasks have other classes. Train it again.")
    return source


def read_json(path):
    """A file's content; {} if it is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_json(path, content):
    """Replaces a file. After a power cut, it holds the old content or the new."""
    draft = path.with_suffix(".part")
    with open(draft, "w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


# --- Protection: stopped runs, damaged files, full disks, divergence ---


def newest_checkpoint(run_dir, variables=None):
    """The newest checkpoint of a folder that is whole.

    Reading every value tests its checksum. A damaged checkpoint is skipped with a warning.

    Args:
      run_dir: the folder.
      variables: what the checkpoint must hold; by default the default graph's network.

    Returns:
      Its path or None, and the paths of all checkpoints, newest first.

    Raises:
      RunError: a checkpoint is of another network, or all are damaged.
    """
    steps = sorted(steps_saved(run_dir), reverse=True)
    if steps and not any(run_dir.glob("model.ckpt-*")):
        raise RunError(f"{run_dir}: its checkpoints are gone. Train again with --overwrite.")
    paths = [str(run_dir / f"model.ckpt-{step}") for step in steps]
    # Of the network alone: a graph for serving has none of Adam's moments.
    variables = variables or tf.global_variables("network/")
    shapes = {v.op.name: v.shape.as_list() for v in variables}
    for path in paths:
        try:
            reader = tf.train.load_checkpoint(path)
            found = reader.get_variable_to_shape_map()
            for name in found:
                reader.get_tensor(name)
        except (MemoryError, tf.errors.ResourceExhaustedError):
            raise
        except Exception as error:  # its class depends on what is damaged
            warnings.warn(f"{path}: damaged, so it is skipped. ({brief(error)})")
            continue
        if {name: shape for name, shape in found.items() if name.startswith("network/")} != shapes:
            raise RunError(
                f"{path}: not a checkpoint of this network. Choose another --run_name, or start"
                " over with --overwrite."
            )
        return path, paths
    if paths:
        raise RunError(
            f"{run_dir}: no checkpoint of this run can be read. Start over with --overwrite."
        )
    return None, paths


def steps_saved(run_dir):
    """The steps of a folder's checkpoints, whole or not."""
    return {step_of(path) for path in run_dir.glob("model.ckpt-*")} - {None} | steps_listed(run_dir)


def steps_listed(run_dir):
    """The steps in the file `checkpoint`, which lists those that were saved completely."""
    try:
        state = tf.train.get_checkpoint_state(str(run_dir))
    except ValueError:  # empty, as a power cut may leave it
        state = None
    return {step_of(path) for path in state.all_model_checkpoint_paths} - {None} if state else set()


def step_of(checkpoint):
    """The global step in the name of a checkpoint, such as model.ckpt-469, or of its files."""
    found = re.search(r"model\.ckpt-(\d+)(\.index|\.data-[\d-]+of-\d+)?$", str(checkpoint))
    return found and int(found[1])


def checkpoint_of_source(dataset, towers):
    """The newest whole checkpoint of the run --init_from. Raises: RunError, none fits.

    Args:
      dataset: a `data.Dataset`.
      towers: the variables that it must hold.
    """
    source = check_source(dataset)
    try:
        checkpoint, _ = newest_checkpoint(source, towers)
    except RunError:  # its advice is for a run's own folder
        checkpoint = None
    if checkpoint is None:
        raise RunError(
            f"--init_from={source}: none of its checkpoints can be used. Train it again."
        )
    return checkpoint


def holds_network(run_dir):
    """Whether a checkpoint that can be read is one of this program's."""
    for index in run_dir.glob("model.ckpt-*.index"):
        with contextlib.suppress(Exception):  # its class depends on what is damaged
            names = tf.train.load_checkpoint(str(index.with_suffix("")))
            if any(name.startswith("network/") for name in names.get_variable_to_shape_map()):
                return True
    return False


def delete_incomplete_checkpoints(run_dir):
    """Deletes what a run that was killed while saving left: data without an index.

    Older data is kept: a copy of the run may merely lack its index.
    """
    newest = max(steps_listed(run_dir), default=-1)
    for path in run_dir.glob("model.ckpt-*.data-*"):
        index = path.with_name(path.name.partition(".data-")[0] + ".index")
        if ".tempstate" in path.name or ((step_of(path) or -1) > newest and not index.exists()):
            path.unlink()


def keep_event_files_in_order(run_dir):
    """Lets a new event file be the last by name: TensorBoard reads them in that order.

    Names hold the second of their creation, which a clock that is set back repeats.
    """
    now = int(time.time())
    paths = sorted(run_dir.glob("events.out.tfevents.*"))
    if paths and int(paths[-1].name.split(".")[3]) >= now:
        for index, path in enumerate(paths):
            *start, _, rest = path.name.split(".", 4)
            path.rename(
                path.with_name(".".join([*start, f"{now - len(paths) + index:010d}", rest]))
            )


def how_to_resume():
    without = " without --overwrite" if FLAGS.overwrite else ""  # which would start over
    return f"run the same command{without} to resume"


def diverged(what, step):
    faster = has_units() and FLAGS.cross_stitch_learning_rate_scale > 1
    rate = "--cross_stitch_learning_rate_scale" if faster else "--learning_rate"
    return (
        f"the {what} became NaN or infinite at step {step:,}, so training stopped there without"
        f" saving. Try a lower {rate}."
    )


@contextlib.contextmanager
def signals_noted():
    """Lets a step end before a signal stops the run. A second one of its kind acts at once.

    SIGHUP means a lost terminal; batch systems send SIGUSR1, SIGUSR2 or SIGXCPU before they
    stop a job. A signal that was ignored from the start, as `nohup` arranges, stays ignored.

    Yields: a list that is empty until a signal arrives, and then holds its number.
    """
    noted = []

    def note(number, _):
        noted.append(number)
        signal.signal(number, signal.SIG_DFL)
        with contextlib.suppress(OSError):  # the terminal may be lost
            os.write(2, b"\nStopping after this step. Once more: at once, without saving.\n")

    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    previous = {
        number: signal.signal(number, note)
        for number in (signal.Signals[name] for name in names)
        if signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield noted
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def brief(error):
    """The cause in an error's message. TensorFlow's begin with where in the graph it was."""
    *_, cause = re.split(r"\nNode: .*\n(?:.*root error.*\n\s*\(0\) \w+: )?", str(error))
    return (cause.splitlines() or [type(error).__name__])[0].rpartition("; ")[2].split(". ")[0]


def format_warning(message, *_):
    """A box that nobody overlooks, in place of a line of source code."""
    rule = "*" * 78
    whole = {"break_long_words": False, "break_on_hyphens": False}  # names of files
    return "\n".join(["", rule, *textwrap.wrap(f"WARNING: {message}", 78, **whole), rule, "", ""])


# --- Device and threads ---

CPU_QUOTA = "/sys/fs/cgroup/cpu.max"  # of a container
MEMORY_LIMITS = "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"
BYTES_OF_A_WEIGHT = 16  # its value, its gradient and Adam's two moments, 4 bytes each


def session_settings(num_tasks, sharing):
    """Chooses the device and how it is used. Call it before `model.build`: TensorFlow takes
    all memory of each GPU that it sees, and creates its threads, once for the process.

    Args:
      num_tasks: number of tasks.
      sharing: as `kind_of_sharing` returns it.

    Returns:
      A `tf.ConfigProto` for every session.

    Raises:
      RunError: there is no GPU, or TensorFlow was used before in this process.
    """
    gpus = tf_v2.config.list_physical_devices("GPU")
    if FLAGS.device == "gpu" and not gpus:
        raise RunError(
            "--device=gpu: TensorFlow finds no GPU. Install its libraries with pip install"
            " 'tensorflow[and-cuda]', or leave out the flag."
        )
    try:
        if FLAGS.device == "gpu":
            # A resumed run ends with the same bits on a GPU, too.
            tf_v2.config.experimental.enable_op_determinism()
            return tf.ConfigProto(gpu_options=tf.GPUOptions(allow_growth=True))
        tf_v2.config.set_visible_devices([], "GPU")
        return thread_settings(num_tasks, sharing)
    except RuntimeError:
        raise RunError(
            "TensorFlow has already started its threads in this process. Start train.py in a new"
            " process, or before any other use of TensorFlow."
        ) from None


def device_name():
    """Returns: "cpu", or the name of the GPU."""
    if FLAGS.device == "cpu":
        return "cpu"
    first = tf_v2.config.list_physical_devices("GPU")[0]
    return tf_v2.config.experimental.get_device_details(first).get("device_name", "gpu")


def cores():
    """How many cores this process may use: --threads, or what the system allows it."""
    affinity = getattr(os, "sched_getaffinity", None)  # only Linux has it
    allowed = len(affinity(0)) if affinity else os.cpu_count()
    try:  # a container's quota, in microseconds of processor time for each period
        quota, period = pathlib.Path(CPU_QUOTA).read_text().split()
        allowed = min(allowed, -(-int(quota) // int(period)))
    except (OSError, ValueError):  # no such file, or "max 100000"
        pass
    return FLAGS.threads or allowed


def check_memory(net):
    """Raises: RunError, the weights need more memory than this process may use."""
    with net.graph.as_default():
        count = sum(variable.shape.num_elements() for variable in tf.trainable_variables())
    needed, allowed = count * BYTES_OF_A_WEIGHT, memory()
    if needed > allowed:
        smaller = (
            "another --cross_stitch_unit" if kind_of_sharing() == "dense" else "smaller images"
        )
        raise RunError(
            f"the network has {count:,} weights. Training them takes at least"
            f" {needed / 1e9:,.1f} GB of memory, and this process may use {allowed / 1e9:,.1f} GB."
            f" Choose {smaller}."
        )


def memory():
    """How much memory this process may use, in bytes: all, or what the system allows it."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    sizes += [soft] if soft != resource.RLIM_INFINITY else []
    for path in MEMORY_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            sizes.append(int(pathlib.Path(path).read_text()))
    return min(sizes)


def thread_settings(num_tasks, sharing):
    """Gives every tower an equal share of the cores. That is faster than all cores on one
    tower's op after the other, except for dense units: their matrix product is larger than
    both towers.

    Args and returns: as `session_settings`. Raises: RuntimeError, the threads are there.
    """
    towers = 1 if sharing in ("dense", "hard_sharing") else min(num_tasks, cores())
    threads = cores() // towers
    tf_v2.config.threading.set_intra_op_parallelism_threads(threads)
    return tf.ConfigProto(
        device_count={"GPU": 0},
        intra_op_parallelism_threads=threads,
        inter_op_parallelism_threads=max(towers, 2),  # a tower's two gradients, at least
    )


# --- The command line ---

TASK_NAMES = sorted(task.name for task in data.TASKS)


def check_flags():
    """Checks what absl does not: values alone, then together. Raises: flags.Error."""

    def refuse(names, message):
        values = " ".join(f"--{name}={FLAGS[name].value}" for name in names.split())
        raise flags.IllegalFlagValueError(f"{values}: {message}")

    tasks, places = FLAGS.tasks.split(","), FLAGS.cross_stitch_at.split(",")
    if not all(tasks) or len(tasks) > len(set(tasks)):
        known = ", ".join(TASK_NAMES)
        refuse(
            "tasks",
            f"must be some of {known}, or names of label files, each once, with commas between",
        )
    if not set(places) <= set(model.PLACES) or len(places) > len(set(places)):
        known = ", ".join(model.PLACES)
        refuse("cross_stitch_at", f"must be some of {known}, each once, with commas between")
    # Every comparison with nan is false.
    if not -10 <= FLAGS.cross_stitch_init <= 10:
        refuse("cross_stitch_init", "must be between -10 and 10")
    for name in ("cross_stitch_learning_rate_scale", "learning_rate", "save_checkpoint_secs"):
        if not 0 < FLAGS[name].value < float("inf"):
            refuse(name, "must be above 0")
    if not 0 < FLAGS.keep_prob <= 1:
        refuse("keep_prob", "must be above 0 and at most 1")
    if not 0 <= FLAGS.batch_norm_decay < 1:
        refuse("batch_norm_decay", "must be at least 0 and below 1")
    if not 0 <= FLAGS.l2_scale < float("inf"):
        refuse("l2_scale", "must be at least 0")
    for name in ("data_dir", "logdir", "export_dir"):
        if FLAGS[name].value == "":
            refuse(name, "must name a folder")
    if FLAGS.export_dir and os.path.abspath(FLAGS.export_dir) == "/":
        refuse("export_dir", "must name a folder of its own")
    if FLAGS.init_from == "":
        refuse("init_from", "must name the folder of a finished run")
    if FLAGS.run_name is not None and (not FLAGS.run_name.strip(".") or "/" in FLAGS.run_name):
        refuse("run_name", "must be the name of one folder below --logdir")

    one = "leave out one of the two"
    if FLAGS.dataset == "synthetic" and FLAGS.data_dir:
        refuse("dataset data_dir", f"synthetic images are drawn, not read from a folder: {one}")
    if FLAGS.starve > 1 and FLAGS.train_examples:
        refuse("starve train_examples", f"each of the two chooses the training images: {one}")
    if FLAGS.device == "gpu" and FLAGS.threads:
        refuse("device threads", f"--threads are those of the CPU: {one}")
    if FLAGS.overwrite and FLAGS.eval_only:
        refuse("overwrite eval_only", f"--overwrite deletes what --eval_only is to evaluate: {one}")
    if FLAGS.hard_sharing and FLAGS.share_until not in (None, ONE_TOWER):
        refuse("hard_sharing share_until", f"hard sharing is --share_until={ONE_TOWER}: {one}")
    if is_given("cross_stitch") and FLAGS.cross_stitch:
        if FLAGS.hard_sharing:
            refuse(
                "hard_sharing cross_stitch", f"hard sharing has one tower and so no units: {one}"
            )
        if FLAGS.share_until == ONE_TOWER:
            refuse("share_until cross_stitch", f"hard sharing has one tower and so no units: {one}")
    if FLAGS.share_until and is_given("cross_stitch_at"):
        if set(places) & set(model.PLACES[: model.PLACES.index(FLAGS.share_until) + 1]):
            refuse("share_until cross_stitch_at", "units connect towers, which begin after the"
                   " shared layers: name later places")  # fmt: skip
    if FLAGS.cross_stitch_own_only and FLAGS.cross_stitch_init != 1:
        refuse("cross_stitch_own_only cross_stitch_init",
               "units that share nothing need --cross_stitch_init=1")  # fmt: skip


def parse_flags(arguments):
    """Parses the command line and exits with one sentence if it is wrong."""
    try:
        others = FLAGS(arguments)[1:]
        check_flags()
    except flags.Error as error:
        sys.exit(f"train.py: {error}")
    if others:
        sys.exit(
            f"train.py: {others[0]}: not a flag. Write every flag as --name=value, for example"
            " --cross_stitch=False."
        )
    for flag in FLAGS.get_flags_for_module("absl.logging"):
        if flag.present:
            hint = " The folder for runs is --logdir." if flag.name == "log_dir" else ""
            sys.exit(f"train.py: --{flag.name}: has no effect in this program. Leave it out.{hint}")
    return arguments[:1]


def main(_):
    """Runs the program. Every expected error becomes one sentence and exit code 1."""
    warnings.formatwarning = format_warning
    warnings.simplefilter("default", UserWarning)  # its own, whatever PYTHONWARNINGS says
    warnings.filterwarnings("ignore", module="tensorflow")  # deprecations inside tf-slim
    # The event file's thread ends with a traceback if the disk is full; `flush` reports it.
    threading.excepthook = lambda _: None
    for library in ("tensorflow", "tensorboard", "matplotlib"):
        logging.getLogger(library).setLevel(logging.ERROR)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not in a notebook
            stream.reconfigure(errors="replace")  # for terminals without ° and é
    if os.environ.pop("XLA_FLAGS", None):  # one of JAX's that is unknown here ends the process
        warnings.warn("XLA_FLAGS is ignored, because it may change results or end a run.")
    try:
        run()
    except (data.DataError, RunError) as error:
        sys.exit(f"train.py: {error}")
    except OSError as error:
        sys.exit(f"train.py: {error.filename or FLAGS.logdir}: {error.strerror or error}")
    except (MemoryError, tf.errors.ResourceExhaustedError):
        sys.exit(
            "train.py: there is not enough memory. Close other programs, or try a smaller"
            f" --batch_size. What was saved before is unharmed: {how_to_resume()}."
        )
    except tf.errors.OpError as error:
        sys.exit(
            f"train.py: {brief(error.message)}. What was saved before is unharmed:"
            f" {how_to_resume()}."
        )


if __name__ == "__main__":
    format_before = warnings.formatwarning
    try:
        with warnings.catch_warnings():
            app.run(main, flags_parser=parse_flags)
    finally:  # a notebook's process goes on
        signal.signal(signal.SIGINT, interrupt_handler)
        warnings.formatwarning, threading.excepthook = format_before, threading.__excepthook__
