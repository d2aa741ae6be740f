"""Trains a cross-stitch network on Fashion-MNIST: two labels of one image, two towers.

    python train.py                                  # channel units, 30 epochs
    python train.py --cross_stitch=False             # the same towers, sharing nothing
    python train.py --num_epochs=2                   # a first look, a few minutes
    tensorboard --logdir=logs

Each run has a folder of its own below --logdir, with event files, checkpoints and
results.json. Run the same command again to resume a run that stopped: it ends with
the same bits. `python train.py --help` lists the flags.

The file reads from top to bottom: flags, session loop, hooks, results, export; then
what protects a run against second processes, other flags and damaged files.
"""

import collections
import contextlib
import dataclasses
import fcntl
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

from absl import app, flags


@contextlib.contextmanager
def stderr_held_back():
    """Discards what is written to stderr, unless the process dies meanwhile."""
    watch = 'said=$(cat); case $said in *done) ;; *) printf "%s\\n" "$said" >&2 ;; esac'
    watcher = subprocess.Popen(["sh", "-c", watch], stdin=subprocess.PIPE)
    terminal = os.dup(2)
    os.dup2(watcher.stdin.fileno(), 2)
    try:
        yield
        os.write(2, b"done")
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        watcher.communicate()


if __name__ == "__main__":
    # Until there is something to save, Ctrl-C ends the program without a traceback.
    interrupt_handler = signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Keeps TensorFlow from importing Keras, which takes half a second and 50 MB.
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    if platform.machine() in ("x86_64", "AMD64"):
        # By default, TensorFlow uses oneDNN on recent processors only. On older ones, too,
        # it makes training a quarter faster.
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    # TensorFlow's libraries write to stderr when they are imported, whatever the log level.
    import_context = stderr_held_back()
else:
    import_context = contextlib.nullcontext()

with import_context:
    import numpy as np
    import tensorflow as tf_v2
    import tensorflow.compat.v1 as tf
    import tqdm
    from tensorboard.backend.event_processing import event_accumulator
    from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
    from tensorboard.plugins.hparams import summary_v2 as hparams  # its `api` imports Keras
    from tensorboard.plugins.hparams.summary import session_end_pb
    from tensorboard.summary.v1 import text_pb

    import data
    import model

FLAGS = flags.FLAGS
for flag in FLAGS.get_flags_for_module(sys.modules[__name__]):
    delattr(FLAGS, flag.name)  # of an earlier run in the same process, as in a notebook

# --- Flags ---


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
flags.DEFINE_boolean("hard_sharing", False, "The same as --share_until=fc_3: one tower, no units.")
define_hyper_parameters("keep_prob", "batch_norm_decay")

# Training
define_hyper_parameters("learning_rate", "l2_scale")
flags.DEFINE_integer("num_epochs", 30, "Passes over the training images.", lower_bound=1)
flags.DEFINE_integer("batch_size", 128, "Images per step.", lower_bound=1)
flags.DEFINE_integer("max_steps", 0, "Stop after this many steps; 0 for no limit.", lower_bound=0)
flags.DEFINE_integer(
    "train_examples", 0, "Train on this many images, balanced by article; 0 for all.", lower_bound=0
)
flags.DEFINE_integer(
    "holdout", 0, "Evaluate on this many training images, not on the test set.", lower_bound=0
)
flags.DEFINE_integer(
    "threads", 0, "Cores to use; 0 for all. Results differ in rounding.", lower_bound=0
)
flags.DEFINE_integer("eval_every", 100, "Steps between evaluations.", lower_bound=1)
flags.DEFINE_integer(
    "seed", 0, "Start weights, choice and order of images, dropout.", 0, upper_bound=2**32 - 1
)

# Files
flags.DEFINE_enum(
    "dataset", "auto", data.DATASETS, "auto: the folder's files, or synthetic images without any."
)
flags.DEFINE_string("data_dir", None, f"Data folder; by default {data.FOLDER_VARIABLE} or a cache.")
flags.DEFINE_string("logdir", "logs", "Folder below which each run has its own.")
flags.DEFINE_string("run_name", None, "The run's folder; by default it follows from the flags.")
flags.DEFINE_string("export_dir", None, "Folder for the trained network as a SavedModel.")
flags.DEFINE_boolean("eval_only", False, "Evaluate a finished run; train nothing.")
flags.DEFINE_boolean("overwrite", False, "Delete what an earlier run left in the folder.")
flags.DEFINE_float("save_checkpoint_secs", 300, "Seconds between checkpoints.")
flags.DEFINE_integer(
    "keep_checkpoints", 3, "How many to keep; 2 at least, in case one is damaged.", lower_bound=2
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


TASK_NAMES = sorted(task.name for task in data.TASKS)


def are_different(value):
    names = value.split(",")
    return all(names) and len(names) == len(set(names))


def are_places(value):
    names = value.split(",")
    return set(names) <= set(model.PLACES) and len(names) == len(set(names))


above_0 = (lambda v: 0 < v < float("inf"), "must be above 0")
VALIDATORS = {  # absl's own bounds on floats accept nan
    "tasks": (
        are_different,
        f"must be some of {', '.join(TASK_NAMES)}, or names of label files, each once, with"
        " commas between",
    ),
    "cross_stitch_at": (
        are_places,
        f"must be some of {', '.join(model.PLACES)}, each once, with commas between",
    ),
    "cross_stitch_init": (lambda v: -10 <= v <= 10, "must be between -10 and 10"),
    "cross_stitch_learning_rate_scale": above_0,
    "keep_prob": (lambda v: 0 < v <= 1, "must be above 0 and at most 1"),
    "batch_norm_decay": (lambda v: 0 <= v < 1, "must be at least 0 and below 1"),
    "learning_rate": above_0,
    "l2_scale": (lambda v: 0 <= v < float("inf"), "must be at least 0"),
    "save_checkpoint_secs": above_0,
    "data_dir": (lambda v: v != "", "must name a folder"),
    "init_from": (lambda v: v != "", "must name the folder of a finished run"),
    "export_dir": (lambda v: v != "", "must name a folder"),
    "run_name": (
        lambda v: v is None or bool(v.strip(".")) and "/" not in v,
        "must be the name of one folder below --logdir",
    ),
}
for name, (is_valid, message) in VALIDATORS.items():
    flags.register_validator(name, is_valid, message)


def is_given(name):
    return FLAGS[name].present > 0


ONE_TOWER = model.PLACES[-1]  # tasks that share the layers up to here have no towers of their own


def refuse(first, second, are_at_odds, message):
    """Refuses the values of two flags together."""
    flags.register_multi_flags_validator(
        [first, second], lambda v: not are_at_odds(v[first], v[second]), message
    )


refuse("dataset", "data_dir", lambda dataset, folder: dataset == "synthetic" and folder,
       "synthetic images are drawn, not read from a folder: leave out one of the two")  # fmt: skip
refuse("overwrite", "eval_only", lambda overwrite, only: overwrite and only,
       "--overwrite deletes what --eval_only is to evaluate: leave out one of the two")  # fmt: skip
refuse("hard_sharing", "share_until", lambda hard, until: hard and until not in (None, ONE_TOWER),
       "hard sharing is --share_until=fc_3: leave out one of the two")  # fmt: skip
for name, one_tower in (("hard_sharing", True), ("share_until", ONE_TOWER)):
    refuse(name, "cross_stitch", lambda value, stitch, one_tower=one_tower: value == one_tower
           and stitch and is_given("cross_stitch"),
           "hard sharing has one tower and so no units: leave out one of the two")  # fmt: skip
refuse("share_until", "cross_stitch_at", lambda until, at: is_given("cross_stitch_at") and until
       and set(at.split(",")) & set(model.PLACES[: model.PLACES.index(until) + 1]),
       "units connect towers, which begin after the shared layers: name later places")  # fmt: skip
refuse("cross_stitch_own_only", "cross_stitch_init", lambda own, init: own and init != 1,
       "units that share nothing need --cross_stitch_init=1")  # fmt: skip


def flag_values():
    """This program's flags without the aliases: name -> value."""
    own = FLAGS.get_flags_for_module(sys.modules[__name__])
    return {flag.name: flag.value for flag in own if flag.name not in ALIASES}


def config_from_flags():
    values = {f.name: FLAGS[f.name].value for f in dataclasses.fields(model.Config)}
    return model.Config(**values | ({"share_until": ONE_TOWER} if FLAGS.hard_sharing else {}))


def kind_of_sharing():
    """ "hard_sharing", the kind of unit, or "none". One task has nothing to share."""
    if FLAGS.hard_sharing:
        return "hard_sharing"
    return FLAGS.cross_stitch_unit if FLAGS.cross_stitch and "," in FLAGS.tasks else "none"


# --- Training ---

NUMERICS = 1  # a run of the same flags, data and machine ends with the same bits if this agrees
EVALUATION_BATCH_SIZE = 250


class RunError(Exception):
    """The run cannot continue; the message is one sentence for the user."""


def run():
    """Does what the flags ask: trains or resumes a run, evaluates it, exports it."""
    started = time.perf_counter()
    if FLAGS.hard_sharing or FLAGS.share_until == ONE_TOWER:  # two names, but one run
        FLAGS.hard_sharing, FLAGS.share_until, FLAGS.cross_stitch = True, None, False
    dataset = data.load(
        FLAGS.dataset,
        FLAGS.data_dir,
        FLAGS.seed,
        FLAGS.tasks.split(",") if FLAGS["tasks"].present else None,
        FLAGS.train_examples,
        FLAGS.holdout,
    )
    FLAGS.tasks = ",".join(task.name for task in dataset.tasks)
    of_units = sorted(f"--{name}" for name in UNIT_FLAGS if is_given(name))
    if of_units and kind_of_sharing() in ("none", "hard_sharing"):
        warnings.warn(f"this network has no units, so it makes no use of {', '.join(of_units)}")
    num_examples = len(dataset.train.images)
    if FLAGS.batch_size > num_examples:
        raise data.DataError(
            f"--batch_size={FLAGS.batch_size}: there are only {num_examples:,} training images"
        )
    last_step = FLAGS.num_epochs * data.steps_per_epoch(num_examples, FLAGS.batch_size)
    last_step = min(last_step, FLAGS.max_steps or last_step)

    run_dir = pathlib.Path(os.path.expanduser(FLAGS.logdir)) / run_name(dataset.name)
    check_path(run_dir)
    results = None if FLAGS.overwrite else results_of_finished(run_dir)
    if FLAGS.eval_only and not results:
        raise RunError(f"{run_dir}: not a finished run. Train it first, without --eval_only.")
    finished = results and (FLAGS.eval_only or results["global_step"] == last_step)
    session_config = thread_settings(len(dataset.tasks), kind_of_sharing())
    # A finished run is only read: it may be on a disk that cannot be written.
    with contextlib.nullcontext() if finished else claimed(run_dir):
        settings = settings_from_flags(dataset)
        step = results["global_step"] if finished else last_step
        exported = FLAGS.export_dir and finished and is_exported(settings, step)
        if FLAGS.export_dir and not exported:
            check_export_folder()
        check_settings(run_dir, dataset, settings)
        if finished:
            print(f"{run_dir}: this run is finished. Choose another --run_name for a new one.\n")
            print(table(results))
        else:
            write_json(run_dir / SETTINGS, settings)
            print(
                f"Writing to {run_dir}\nWatch it: tensorboard --logdir={FLAGS.logdir}", flush=True
            )
            results = train_and_report(dataset, run_dir, last_step, session_config, started)
            print("\n" + table(results))
        if FLAGS.eval_only:
            net = build(dataset)
            with restored(net.graph, run_dir) as session:
                shares, confusions = evaluate(session, net, dataset)
            print("\nEvaluated: " + ", ".join(f"{n} {share:.4f}" for n, share in shares.items()))
            for task in dataset.tasks:
                print("\n" + confusion_table(task, confusions[task.name]))
        if FLAGS.export_dir and not exported:
            export(dataset, run_dir, settings, step)
        if FLAGS.export_dir:
            print(f"\n{FLAGS.export_dir}: holds this run's network.")


def build(dataset):
    """Builds the graph that the flags ask for. Returns: a `model.Model`."""
    tasks = [(task.name, len(task.classes)) for task in dataset.tasks]
    return model.build(tasks, config_from_flags(), (dataset.mean, dataset.scale))


def train(net, dataset, run_dir, last_step, session_config):
    """Trains up to `last_step`, from the folder's newest checkpoint if there is one.

    Args:
      net: a `model.Model`.
      dataset: a `data.Dataset`.
      run_dir: the run's folder.
      last_step: global step to train to.
      session_config: a `tf.ConfigProto`.

    Returns:
      The step it resumed after, or 0; the step reached; the number of the signal that
      stopped it before `last_step`, or None; training speed in images a second, or None
      for a single step; the units' mean weights, scope -> [T, T]; and the confusion
      matrices, as `evaluate` returns them.

    Raises:
      RunError: the run cannot be resumed, has diverged, or cannot be saved.
    """
    # The session's own ops join "train": the graph page stays tidy.
    with net.graph.as_default(), tf.name_scope("train/"), signals_noted() as signals:
        scaffold, checkpoint, first_step = resume(net, dataset, run_dir, last_step)
        if first_step:
            print(f"Resuming after step {first_step:,}.", flush=True)

        keep_event_files_in_order(run_dir)
        writer = tf.summary.FileWriterCache.get(str(run_dir))
        describe_run(net, writer, first_step, dataset.name, run_dir.name)
        evaluation = EvaluationHook(net, last_step, writer, dataset, run_dir)
        progress = ProgressHook(net, dataset, evaluation, last_step)
        hooks = [
            DivergenceHook(net, last_step),
            SummaryHook(net, last_step, writer),
            evaluation,
            progress,
            CheckpointHook(net, run_dir, scaffold),
        ]
        with (
            progress.bar,
            tf.train.SingularMonitoredSession(
                hooks, scaffold, config=session_config, checkpoint_filename_with_path=checkpoint
            ) as session,
        ):
            for step in range(first_step, last_step):
                if signals:
                    break
                batch = dataset.train_batch(step, FLAGS.batch_size, FLAGS.seed)
                session.run(net.train_op, feed(net, batch, training=True))
            # The raw session has no hooks, which would count this as a training step.
            raw = session.raw_session()
            step, stitches = raw.run([net.global_step, net.stitches])
            confusions = evaluation.confusions
            if step == last_step:
                # A run that was killed after its last checkpoint has no step left to evaluate at.
                confusions = confusions or evaluate(raw, net, dataset)[1]
                add_confusion_pictures(writer, dataset, confusions, last_step)
                describe_end(writer, last_step)
        tf.summary.FileWriterCache.clear()  # closes the event file
    stopped_by = signals[0] if step < last_step else None
    return first_step, int(step), stopped_by, progress.images_per_second, stitches, confusions


def feed(net, batch, training):
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
    for batch in dataset.test_batches(EVALUATION_BATCH_SIZE):
        predictions = session.run(net.predictions, feed(net, batch, training=False))
        implied = dataset.implied(predictions["article"]) if "article" in predictions else {}
        for name, label in batch[1].items():
            np.add.at(confusions[name], (label, predictions[name]), 1)
            if name in implied:
                by_article[f"{name}_by_article"] += int(np.sum(implied[name] == label))
    correct = {name: int(np.trace(matrix)) for name, matrix in confusions.items()} | by_article
    return {name: count / len(dataset.test.images) for name, count in correct.items()}, confusions


CPU_QUOTA = "/sys/fs/cgroup/cpu.max"


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


def thread_settings(num_tasks, sharing):
    """Gives every tower an equal share of the cores. That is faster than all cores on one
    tower's op after the other, except for dense units: their matrix product is larger than
    both towers.

    Call it before `model.build`: TensorFlow creates its threads once for the process, as
    early as it compiles a function.

    Args:
      num_tasks: number of tasks.
      sharing: as `kind_of_sharing` returns it.

    Returns:
      A `tf.ConfigProto` for the session.
    """
    towers = 1 if sharing in ("dense", "hard_sharing") else min(num_tasks, cores())
    threads = cores() // towers
    try:
        tf_v2.config.threading.set_intra_op_parallelism_threads(threads)
    except RuntimeError:
        raise RunError(
            "TensorFlow has already started its threads in this process. Start train.py in a new"
            " process, or before any other use of TensorFlow."
        ) from None
    return tf.ConfigProto(
        intra_op_parallelism_threads=threads,
        inter_op_parallelism_threads=max(towers, 2),  # a tower's two gradients, at least
    )


# --- Hooks: each has one job ---

TAG = "summary/"  # prefix of the original's tags
LOSS_EVERY = 20  # steps between losses in the progress bar


class EvaluationStepHook(tf.train.SessionRunHook):
    """Base of hooks that act at every evaluation: each --eval_every steps, and at the last.

    Steps are global steps, so a resumed run acts at the same ones as an uninterrupted run.
    """

    def __init__(self, net, last_step):
        self.net, self._last_step = net, last_step

    def after_create_session(self, session, coord):
        self.step = int(session.run(self.net.global_step))

    def before_run(self, run_context):
        self.step += 1
        self.due = self.step % FLAGS.eval_every == 0 or self.step == self._last_step
        return tf.train.SessionRunArgs(self.fetches())

    def fetches(self):
        """What the training step computes for this hook."""
        return []

    def after_run(self, run_context, run_values):
        if self.due:
            self.act(run_context.session, run_values.results)


class DivergenceHook(EvaluationStepHook):
    """Ends the run when a loss is NaN or infinite, or at an evaluation a weight."""

    def fetches(self):
        return self.net.losses

    def after_run(self, run_context, run_values):
        if not np.all(np.isfinite(list(run_values.results.values()))):
            raise RunError(diverged("loss", self.step))
        super().after_run(run_context, run_values)

    def act(self, session, _):
        if not session.run(self.net.finite):
            raise RunError(diverged("weights", self.step))


def describe_run(net, writer, step, dataset_name, run_name):
    """Writes what TensorBoard shows of the run as a whole: its graph, flags and HParams."""
    # TensorBoard drops earlier events of this step and later: a run that was killed
    # wrote some after its last checkpoint, and they are written again.
    start = tf.SessionLog(status=tf.SessionLog.START)
    writer.add_session_log(start, step + 1 if step else 0)
    # Without the function library: the page would list its branches of tf.cond, too.
    graph_def = net.graph.as_graph_def()
    graph_def.ClearField("library")
    writer.add_event(tf.Event(wall_time=time.time(), graph_def=graph_def.SerializeToString()))
    if step > 0:
        return
    settings = {"sharing": kind_of_sharing(), **flag_values(), "dataset": dataset_name}
    text = "\n\n".join(f"**{name}** {value}" for name, value in settings.items())
    shown = {
        name: "" if value is None else value
        for name, value in settings.items()
        if name not in NO_EFFECT_ON_RESULT
    }
    # TensorBoard takes the columns of one run for all of them.
    tasks = dict.fromkeys([*TASK_NAMES, *net.labels])
    tags = ["accuracy_test", *(f"accuracy_test_{task}" for task in tasks), "loss_total"]
    columns = hparams.hparams_config_pb(
        [hparams.HParam(name) for name in shown],
        [hparams.Metric(TAG + tag, display_name=tag) for tag in tags],
    )
    # TensorBoard sorts the columns by name, after those that are marked as different. The
    # mark puts first what people compare.
    first = ("sharing", "cross_stitch_init", "seed", "num_epochs")
    plugin_data = columns.value[0].metadata.plugin_data
    content = plugin_data_pb2.HParamsPluginData.FromString(plugin_data.content)
    for column in content.experiment.hparam_infos:
        column.differs = column.name in first
    plugin_data.content = content.SerializeToString()
    for summary in (text_pb("run", text), columns, hparams.hparams_pb(shown, trial_id=run_name)):
        writer.add_summary(tf.Summary.FromString(summary.SerializeToString()), 0)


def describe_end(writer, step):
    """Writes the run's status for the HParams page."""
    end = session_end_pb(api_pb2.STATUS_SUCCESS)
    writer.add_summary(tf.Summary.FromString(end.SerializeToString()), step)


class SummaryHook(EvaluationStepHook):
    """Writes losses and accuracies of the training batch, and the weights of the units."""

    def __init__(self, net, last_step, writer):
        super().__init__(net, last_step)
        self._writer = writer

    def after_create_session(self, session, coord):
        super().after_create_session(session, coord)
        if self.step == 0:
            self._add_units(session)

    def fetches(self):
        return self.net.summary_op if self.due else []

    def act(self, session, summary_of_batch):
        self._writer.add_summary(summary_of_batch, self.step)
        self._add_units(session)
        if self.net.stitches:
            stitches = session.run(self.net.stitches)
            add_unit_picture(self._writer, stitches, list(self.net.labels), self.step)

    def _add_units(self, session):
        if self.net.stitches:
            self._writer.add_summary(session.run(self.net.unit_summary_op), self.step)


class EvaluationHook(EvaluationStepHook):
    """Writes the accuracies on the whole test set, and the training speed since the last time."""

    def __init__(self, net, last_step, writer, dataset, run_dir):
        super().__init__(net, last_step)
        self._writer, self._dataset, self._run_dir = writer, dataset, run_dir
        self._mark = None  # time and step since when speed is measured
        self.accuracies = {}  # task -> share of the test images, at the last evaluation
        self.confusions = None  # as `evaluate` returns them
        self.seconds = 0.0  # spent on evaluation so far

    def after_run(self, run_context, run_values):
        self._mark = self._mark or (time.perf_counter(), self.step)  # skips the slow first step
        super().after_run(run_context, run_values)

    def act(self, session, _):
        now = time.perf_counter()
        shares, self.confusions = evaluate(session, self.net, self._dataset)
        self.accuracies = {name: shares[name] for name in self.net.labels}
        values = {f"accuracy_test_{name}": share for name, share in shares.items()}
        values["accuracy_test"] = np.mean(list(self.accuracies.values()))
        since, first = self._mark
        if self.step > first:
            images = images_between(self._dataset, first, self.step)
            values["images_per_second"] = images / (now - since)
        summary = tf.Summary()
        for tag, value in values.items():
            summary.value.add(tag=TAG + tag, simple_value=value)
        self._writer.add_summary(summary, self.step)
        flush(self._writer, self._run_dir)  # TensorBoard shows the evaluation at once
        self._mark = time.perf_counter(), self.step
        self.seconds += self._mark[0] - now


class ProgressHook(tf.train.SessionRunHook):
    """A bar with the time left, training speed, the batch's loss and the test accuracies."""

    def __init__(self, net, dataset, evaluation, last_step):
        self._net, self._dataset, self._evaluation = net, dataset, evaluation
        self.images_per_second = None  # without evaluation and the first step
        self.bar = tqdm.tqdm(
            desc=dataset.name,
            total=last_step,
            dynamic_ncols=True,
            smoothing=0.05,
            mininterval=0.5 if sys.stderr.isatty() else 30,
            # It fits a terminal of 80 columns.
            bar_format="{desc} {percentage:.0f}%|{bar}|ETA {remaining}{postfix}",
        )

    def after_create_session(self, session, coord):
        step = int(session.run(self._net.global_step))
        # Otherwise the bar would count the steps of an earlier session as this one's.
        self.bar.initial = self.bar.n = self.bar.last_print_n = step
        self._start = None
        self._loss = float("nan")  # until it is first computed

    def before_run(self, run_context):
        # Not at every step: the L2 loss reads all weights, and takes 2 % of a step.
        due = self._start is None or self.bar.n % LOSS_EVERY == 0
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
        tests = [f"{name} {share:.3f}" for name, share in self._evaluation.accuracies.items()]
        self.bar.set_postfix_str(" ".join([speed, f"loss {self._loss:.3f}", *tests]), refresh=False)
        self.bar.update()


def images_between(dataset, first, last):
    """How many images the steps after `first`, up to and with `last`, train on."""
    start, end = (dataset.images_before(step, FLAGS.batch_size) for step in (first, last))
    return end - start


def add_confusion_pictures(writer, dataset, confusions, step):
    for task in dataset.tasks:
        counts = confusions[task.name]
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        panels = {task.name: (shares, counts)}
        add_picture(writer, f"confusion_{task.name}", step,
                    panels, task.classes, ("label", "prediction"), 1, False)  # fmt: skip


def add_unit_picture(writer, stitches, tasks, step):
    limit = max(1.0, *(np.abs(weights).max() for weights in stitches.values()))
    written = np.vectorize("{:.3f}".format)
    panels = {scope: (weights, written(weights)) for scope, weights in stitches.items()}
    add_picture(writer, "mean_weights", step, panels, tasks, ("to", "from"), limit, True)


def add_picture(writer, tag, step, *matrices):
    """Adds a picture for TensorBoard. Args: matrices, as `img.matrices.draw` takes them."""
    from img import matrices as pictures  # matplotlib takes a second: not before the first step

    png = pictures.draw(*matrices)
    summary = tf.Summary()
    summary.value.add(tag=TAG + tag, image=tf.Summary.Image(encoded_image_string=png))
    writer.add_summary(summary, step)


# --- Results ---

SETTINGS, RESULTS = "settings.json", "results.json"  # files in the run's folder
LAST_EVALUATIONS = 5  # accuracy_test_last is their mean


def train_and_report(dataset, run_dir, last_step, session_config, started):
    """Trains a run to its end, or exits if a signal stops it. Returns: its results."""
    version = commit()  # now: the user may commit while the run trains
    versions = {
        "python": platform.python_version(),
        "tensorflow": tf_v2.__version__,  # its distribution has several names
        "tf-slim": importlib.metadata.version("tf-slim"),
        "numpy": np.__version__,
    }
    net = build(dataset)
    resumed_after, step, stopped_by, images_per_second, stitches, confusions = train(
        net, dataset, run_dir, last_step, session_config
    )
    if stopped_by:
        print(
            f"Stopped after step {step:,} of {last_step:,} and saved. {how_to_resume().capitalize()}.",
            file=sys.stderr,
        )
        sys.exit(128 + stopped_by)  # as shells report a process that a signal ended
    # Accuracies and loss are read from the event files, which a resumed run continues;
    # times and commit are those of the last session, since `resumed_after`.
    curves = read_scalars(run_dir)
    tests = {task.name: curves[f"accuracy_test_{task.name}"] for task in dataset.tasks}
    tests["mean"] = curves["accuracy_test"]
    results = {
        "dataset": dataset.name,
        "seed": FLAGS.seed,
        "flags": flag_values(),
        "versions": versions,
        "numerics": NUMERICS,
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
        "recall": {
            task.name: dict(zip(task.classes, recalls(confusions[task.name])))
            for task in dataset.tasks
        },
        "confusion": {name: matrix.tolist() for name, matrix in confusions.items()},
        "resumed_after": resumed_after,
        "images_per_second": images_per_second and round(images_per_second, 1),
        "wall_seconds": round(time.perf_counter() - started, 1),
    }
    write_json(run_dir / RESULTS, results)
    return results


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
    if not (run_dir / RESULTS).exists():
        return None
    results = read_json(run_dir / RESULTS)
    newest = max(steps_saved(run_dir), default=0)
    return results if newest <= results["global_step"] else None


def recalls(confusion):
    """Share of each class's images that is predicted correctly; None for a class without images."""
    return [
        round(row[index] / row.sum(), 6) if row.sum() else None
        for index, row in enumerate(confusion)
    ]


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


def read_scalars(run_dir):
    """All scalars in a run's event files. Returns: tag without its prefix -> values."""
    events = event_accumulator.EventAccumulator(str(run_dir), {event_accumulator.SCALARS: 0})
    curves = {}
    for tag in events.Reload().Tags()[event_accumulator.SCALARS]:
        # A resumed run may have written a step twice: the last value counts. And 0.9213,
        # not the 0.9212999939918518 that this float32 is as a float.
        values = {event.step: float(str(np.float32(event.value))) for event in events.Scalars(tag)}
        curves[tag[len(TAG) :]] = list(values.values())
    return curves


def machine():
    """What the order of sums, and so the last bits of a result, may depend on."""
    try:
        cpuinfo = pathlib.Path("/proc/cpuinfo").read_text()
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
    """The commit of this program, with "-dirty" if its files differ; None if unknown."""
    here = pathlib.Path(__file__).resolve().parent
    # Not the commit of another repository that this program only lies in.
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(here.parent)}

    def git(*command):
        output = subprocess.check_output(
            ["git", *command], cwd=here, env=environment, stderr=subprocess.DEVNULL
        )
        return output.decode().strip()

    try:
        program = ("train.py", "model.py", "data.py")
        changed = git("--no-optional-locks", "status", "--porcelain", "--", *program)
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


EXPORTED = "run.json"  # in an export's folder: of which run it is, and of which step


def export_folders():
    """The folder --export_dir, and the one that gets its name when the export is whole."""
    folder = pathlib.Path(os.path.expanduser(FLAGS.export_dir))
    return folder, folder.with_name(f".{folder.name}.unfinished-export")


def is_exported(settings, step):
    """Whether --export_dir holds the network of this run at this step."""
    record = export_folders()[0] / EXPORTED
    found = read_json(record) if record.exists() else {}
    try:
        return completed(found["settings"], settings) == settings and found["global_step"] == step
    except (KeyError, TypeError):  # another program's file
        return False


def check_export_folder():
    """Raises: RunError, --export_dir holds something; OSError, it cannot be written."""
    folder, draft = export_folders()
    check_path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder}: holds something else. Choose another --export_dir.")
    shutil.rmtree(draft, ignore_errors=True)  # what a killed export left
    draft.mkdir(parents=True)  # finds out now, and not after hours of training
    draft.rmdir()


def export(dataset, run_dir, settings, step):
    """Writes the newest checkpoint's network as a SavedModel. Raises: RunError."""
    folder, draft = export_folders()
    server = model.build_server(
        [(task.name, task.classes) for task in dataset.tasks], config_from_flags()
    )
    with restored(server.graph, run_dir) as session:
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
def restored(graph, run_dir):
    """Yields: a session with the newest checkpoint's values. Raises: RunError, there is none."""
    with graph.as_default(), tf.Session(graph=graph) as session:
        checkpoint, _ = newest_checkpoint(run_dir)
        if checkpoint is None:
            raise RunError(f"{run_dir}: its checkpoints are gone. Train again with --overwrite.")
        tf.train.Saver().restore(session, checkpoint)
        yield session


# --- The run's folder: its name, one process, one set of flags ---

LOCK = "lock"
RUN_FILES = ("events.out.tfevents.*", "checkpoint*", "model.ckpt-*", "graph.pbtxt", "results.*")
# Flags that change the result by rounding at most. The flags below only set a run's length.
NO_EFFECT_ON_RESULT = {"data_dir", "logdir", "run_name", "export_dir", "eval_only"}
NO_EFFECT_ON_RESULT |= {"overwrite", "save_checkpoint_secs", "keep_checkpoints", "threads"}
LENGTH_OF_RUN = {"num_epochs", "max_steps"}
UNIT_FLAGS = {name for name in FLAGS if name.startswith("cross_stitch_")} - ALIASES.keys()
FORMER_DEFAULTS = {"batch_norm_decay": 0.999}  # of earlier versions, whose runs resume


def run_name(dataset_name):
    """The name of the run's folder, for example fashion_mnist-channel-seed0-learning_rate=0.01.

    It names every flag that can change the result and differs from its default.
    """
    if FLAGS.run_name:
        # Nobody may mistake a run on synthetic images for one on Fashion-MNIST.
        marked = dataset_name != "synthetic" or dataset_name in FLAGS.run_name
        return FLAGS.run_name if marked else f"{FLAGS.run_name}-{dataset_name}"
    left_out = {"cross_stitch", "cross_stitch_unit", "hard_sharing", "seed", "dataset"}
    left_out |= NO_EFFECT_ON_RESULT | (set() if FLAGS.cross_stitch else UNIT_FLAGS)

    def name_for(defaults):
        others = [
            f"{name}={pathlib.Path(value).name if name == 'init_from' else value}"
            for name, value in flag_values().items()
            if name not in left_out and value != defaults.get(name, FLAGS[name].default)
        ]
        return "-".join([dataset_name, kind_of_sharing(), f"seed{FLAGS.seed}", *others])

    former = pathlib.Path(os.path.expanduser(FLAGS.logdir)) / name_for(FORMER_DEFAULTS)
    if (former / SETTINGS).exists():
        settings = read_json(former / SETTINGS)
        if all(settings.get(name) == FLAGS[name].value for name in FORMER_DEFAULTS):
            return former.name
    return name_for({})


def check_path(folder):
    """Raises: RunError, TensorFlow would take the name for a pattern or a remote address."""
    if re.search(r"^~|[][*?\\]|:/", str(folder)):
        raise RunError(
            f"{folder}: cannot be used, because TensorFlow reads * ? [ ] \\ and :/ as more than"
            " characters, and ~ stands for no known home. Choose another folder."
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
    ignored = NO_EFFECT_ON_RESULT | LENGTH_OF_RUN | (set() if FLAGS.cross_stitch else UNIT_FLAGS)
    settings = {name: value for name, value in flag_values().items() if name not in ignored}
    settings |= {"dataset": dataset.name, "data": dataset.fingerprint()}
    return settings | {"classes": dataset.fingerprint_of_classes()}


def completed(before, now):
    """Adds to the settings `before` what an earlier version did not write: it acted as the
    flag's default, and its classes are taken for those of `now`."""
    defaults = {name: FLAGS[name].default for name in now if name in FLAGS}
    return defaults | FORMER_DEFAULTS | {"classes": now["classes"]} | before


def check_settings(run_dir, dataset, now):
    """Refuses to resume what other flags, other data or another program started.

    With --overwrite it deletes that instead.

    Args:
      run_dir: the run's folder.
      dataset: a `data.Dataset`.
      now: as `settings_from_flags` returns them.

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
    elif left and not record.exists():
        raise RunError(
            f"{run_dir}: holds files of something that this program cannot resume. Choose another"
            " --run_name, or delete them with --overwrite."
        )
    before = completed(read_json(record), now) if record.exists() else now
    differing = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    # Without units, their flags are not recorded: --cross_stitch says it all.
    differing = [name for name in differing if name in now or name not in UNIT_FLAGS]
    if differing:
        started, asked = (
            " ".join(
                f"--{name}={settings.get(name)}"
                if name in FLAGS
                else f"{name} {settings.get(name)}"
                for name in differing
            )
            for settings in (before, now)
        )
        raise RunError(
            f"{run_dir}: this run was started with {started}, not {asked}. Resume it with the"
            " former, choose another --run_name, or start over with --overwrite."
        )


def check_source(dataset):
    """Returns: the folder --init_from, of a finished run whose towers fit this one.

    Raises: RunError, it is not finished, has units, or has other tasks or data.
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
    settings = {name: FLAGS[name].default for name in wanted} | read_json(source / SETTINGS)
    differing = [f"--{name}={v}" for name, v in wanted.items() if settings[name] != v]
    if differing:
        raise RunError(f"--init_from={source}: must be a run with {' '.join(differing)}.")
    classes = dataset.fingerprint_of_classes()
    if settings.get("classes", classes) != classes:
        raise RunError(f"--init_from={source}: its tasks have other classes. Train it again.")
    return source


def read_json(path):
    try:
        return json.loads(path.read_text())
    except ValueError:
        raise RunError(f"{path}: damaged. Delete it, or start over with --overwrite.") from None


def write_json(path, content):
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps(content, indent=2) + "\n")
    draft.replace(path)


# --- Protection: stopped runs, damaged files, full disks, divergence ---


def resume(net, dataset, run_dir, last_step):
    """Finds what the run starts from, for the default graph.

    Returns: a `tf.train.Scaffold`, the path of a checkpoint and its step; None and 0 for a new run.
    Raises: RunError, the run cannot be resumed.
    """
    delete_incomplete_checkpoints(run_dir)
    newest, checkpoints = newest_checkpoint(run_dir)
    # A checkpoint is named after its global step: model.ckpt-469.
    step = int(newest.rpartition("-")[2]) if newest else 0
    if step > last_step:
        raise RunError(
            f"{run_dir}: has {step:,} steps, more than the {last_step:,} of this command. Choose"
            " another --run_name, or start over with --overwrite."
        )
    saver = tf.train.Saver(max_to_keep=FLAGS.keep_checkpoints)
    # The saver deletes from the front of its list: the damaged ones, then the oldest.
    first_whole = checkpoints.index(newest) if newest else 0
    saver.recover_last_checkpoints(checkpoints[:first_whole] + checkpoints[first_whole:][::-1])
    init_fn = None
    if FLAGS.init_from and not newest:
        init_fn = restore_towers(check_source(dataset))
    scaffold = tf.train.Scaffold(init_op=net.initializer, init_fn=init_fn, saver=saver)
    return scaffold, newest, step


def restore_towers(source):
    """Restores the towers of the finished run in the folder `source`, in the default graph.

    Returns: an init_fn for a scaffold.
    Raises: RunError, no checkpoint is whole and fits.
    """
    towers = [v for v in tf.global_variables("network/") if not v.op.name.endswith("/alpha")]
    try:
        checkpoint, _ = newest_checkpoint(source, towers)
    except RunError:  # its advice is for a run's own folder
        checkpoint = None
    if checkpoint is None:
        raise RunError(
            f"--init_from={source}: none of its checkpoints can be used. Train it again."
        )
    saver = tf.train.Saver(towers)
    return lambda _, session: saver.restore(session, checkpoint)


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
        except Exception as error:  # its class depends on what is damaged
            warnings.warn(f"{path}: damaged; using the previous checkpoint. ({brief(error)})")
            continue
        if {name: shape for name, shape in found.items() if name.startswith("network/")} != shapes:
            raise RunError(
                f"{path}: not a checkpoint of this network. Choose another --run_name, or start"
                " over with --overwrite."
            )
        return path, paths
    if paths:
        raise RunError(
            f"{run_dir}: none of its {len(paths)} checkpoints can be read. Start over with"
            " --overwrite."
        )
    return None, paths


def steps_saved(run_dir):
    """The steps of a folder's checkpoints, in any order."""
    names = [re.fullmatch(r"model\.ckpt-(\d+)\.index", path.name) for path in run_dir.iterdir()]
    return [int(name[1]) for name in names if name]


def delete_incomplete_checkpoints(run_dir):
    """Deletes what a run that was killed while saving left: data without an index."""
    for path in run_dir.glob("model.ckpt-*.data-*"):
        index = path.with_name(path.name.partition(".data-")[0] + ".index")
        if ".tempstate" in path.name or not index.exists():
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


class CheckpointHook(tf.train.CheckpointSaverHook):
    """Saves every --save_checkpoint_secs and at the end, but never weights that are NaN."""

    def __init__(self, net, run_dir, scaffold):
        super().__init__(
            str(run_dir), FLAGS.save_checkpoint_secs, scaffold=scaffold, save_graph_def=False
        )
        self._net, self._run_dir = net, run_dir

    def after_create_session(self, session, coord):
        # TensorFlow's hook would save here, over the checkpoint that was just restored.
        # A run killed while saving would have lost it.
        self._timer.update_last_triggered_step(session.run(self._global_step_tensor))

    def _save(self, session, step):
        if not session.run(self._net.finite):
            raise RunError(diverged("weights", step))
        # A resumed run writes no events from before its checkpoint: they must be on the disk.
        flush(self._summary_writer, self._run_dir)
        try:
            return super()._save(session, step)
        except tf.errors.OpError as error:  # a session ends quietly at some of these
            raise RunError(
                f"{self._run_dir}: the checkpoint cannot be written ({brief(error.message)}). Once"
                f" it can, {how_to_resume()} from the previous one."
            ) from error


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


def how_to_resume():
    without = " without --overwrite" if FLAGS.overwrite else ""  # which would start over
    return f"run the same command{without} to resume"


def diverged(what, step):
    faster = FLAGS.cross_stitch_learning_rate_scale > 1
    rate = "--cross_stitch_learning_rate_scale" if faster else "--learning_rate"
    return (
        f"the {what} became NaN or infinite at step {step:,}, so training stopped there without"
        f" saving. Try a lower {rate}."
    )


@contextlib.contextmanager
def signals_noted():
    """Lets a step end before a signal stops the run. A second signal acts at once.

    SIGHUP means a lost terminal; batch systems send SIGUSR1 before they stop a job. A
    signal that was ignored from the start, as `nohup` arranges, stays ignored.

    Yields: a list that is empty until a signal arrives, and then holds its number.
    """
    noted = []

    def note(number, _):
        noted.append(number)
        signal.signal(number, signal.SIG_DFL)

    previous = {
        number: signal.signal(number, note)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
        if signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield noted
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def brief(error):
    """The first sentence of an error's message."""
    return (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0]


def format_warning(message, *_):
    """A box that nobody overlooks, in place of a line of source code."""
    rule = "*" * 78
    return "\n".join(["", rule, *textwrap.wrap(f"WARNING: {message}", 78), rule, "", ""])


def check_command_line(arguments):
    """Refuses what would have no effect. Args: arguments, those that are no flags."""
    if arguments:
        sys.exit(
            f"train.py: {arguments[0]}: not a flag. Write every flag as --name=value, for example"
            " --cross_stitch=False."
        )
    for flag in FLAGS.get_flags_for_module("absl.logging"):
        if flag.present:
            hint = " The folder for runs is --logdir." if flag.name == "log_dir" else ""
            sys.exit(f"train.py: --{flag.name}: has no effect in this program. Leave it out.{hint}")


def main(arguments):
    """Runs the program. Every expected error becomes one sentence and exit code 1."""
    check_command_line(arguments[1:])
    warnings.formatwarning = format_warning
    warnings.filterwarnings("ignore", module="tensorflow")  # deprecations inside tf-slim
    # The event file's thread ends with a traceback if the disk is full; `flush` reports it.
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
            f"train.py: {brief(error.message)}. What was saved before is unharmed:"
            f" {how_to_resume()}."
        )


if __name__ == "__main__":
    format_before = warnings.formatwarning
    try:
        with warnings.catch_warnings():
            app.run(main)
    finally:  # a notebook's process goes on
        signal.signal(signal.SIGINT, interrupt_handler)
        warnings.formatwarning, threading.excepthook = format_before, threading.__excepthook__
