"""All that TensorBoard shows of a run. The event files are for TensorBoard only: the program
reads its evaluations from evaluations.jsonl.
"""

import contextlib
import logging
import re
import threading
import time
import warnings

import numpy as np
import tensorflow.compat.v1 as tf
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
from tensorboard.plugins.hparams import summary_v2 as hparams  # its `api` imports Keras
from tensorboard.plugins.hparams.summary import session_end_pb
from tensorboard.summary.v1 import text_pb

from harness.errors import CannotWrite, brief
from harness.names import CLASS_TAG

tf_logger = logging.getLogger("tensorflow")
TAG = "summary/"  # prefix of the original's tags
OF_FLAGS = "events.out.tfevents-flags"  # TensorBoard reads all files with tfevents in their names
FIRST_COLUMNS = ("sharing", "cross_stitch_init", "seed", "num_epochs")  # of the HParams page


def tag_of(name):
    """The tag of a name in evaluations.jsonl. Curves of single classes already begin with
    "tasks/"; all others get the prefix "summary/". TensorBoard sorts groups by name, so that
    the summary comes first."""
    return name if name.startswith(CLASS_TAG) else TAG + name


def without_tasks(summary, tasks):
    """A batch's summary without the curves of tasks that it does not train. Args and returns:
    serialised summaries."""
    names = {f"{TAG}{kind}_{task}" for task in tasks for kind in ("loss", "accuracy_train")}
    values = [v for v in tf.Summary.FromString(summary).value if v.tag not in names]
    return tf.Summary(value=values).SerializeToString()


class Events:
    """The event files of a run that trains. A context manager, which begins with the graph.

    Args:
      run_dir: the run's folder.
      graph: the run's.
      done: the last step of which all is written; TensorBoard drops later events, as the run
        makes them again.
      check: raises Failed if the folder is no longer the run's.
    """

    def __init__(self, run_dir, graph, done, check=lambda: None):
        keep_event_files_in_order(run_dir)
        self._run_dir, self._graph, self._done, self._check = run_dir, graph, done, check
        self._writer, self._cannot_draw = tf.summary.FileWriter(str(run_dir)), False

    def __enter__(self):
        # The file's thread logs an error and a traceback if the disk is full; `flush` reports it.
        self._excepthook, threading.excepthook = threading.excepthook, lambda _: None
        self._level = tf_logger.level
        tf_logger.setLevel(logging.CRITICAL)
        try:
            self._check()
            self._add_start()
            # The first event creates the file: at once, while the folder is the run's.
            self.flush()
        except Exception:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        # All that a run needs was flushed before its last checkpoint. After a full disk, this
        # would raise another error over the first.
        with contextlib.suppress(Exception):
            self._writer.close()
        threading.excepthook = self._excepthook
        tf_logger.setLevel(self._level)

    def _add_start(self):
        start = tf.SessionLog(status=tf.SessionLog.START)
        # Without the function library: the page would list its branches of tf.cond, too.
        graph_def = self._graph.as_graph_def()
        graph_def.ClearField("library")
        event = tf.Event(wall_time=time.time(), graph_def=graph_def.SerializeToString())
        with self._errors():
            self._writer.add_session_log(start, self._done + 1)
            self._writer.add_event(event)

    def add(self, summary, step):
        """Writes a serialised summary. Returns: its scalars, name -> number."""
        with self._errors():
            self._writer.add_summary(summary, step)
        values = tf.Summary.FromString(summary).value
        scalars = {v.tag: v.simple_value for v in values if v.HasField("simple_value")}
        return {tag.removeprefix(TAG): value for tag, value in scalars.items()}

    def add_scalars(self, values, step):
        """Writes numbers. Args: name -> number. Returns: the same, as `add`."""
        summary = tf.Summary()
        for name, value in values.items():
            summary.value.add(tag=tag_of(name), simple_value=value)
        return self.add(summary.SerializeToString(), step)

    def add_flags(self, flags, compared, tasks, run_name, step):
        """Writes the run's flags as text and for the HParams page, which compares runs by them.

        A resumed run may have other ones. The page shows the first that it finds, so these are in
        a file of their own, which is the first by name and is replaced.

        Args:
          flags: name -> value.
          compared: those that can make a difference, name -> value.
          tasks: names of all tasks.
          run_name: the run's name.
          step: that the run has reached.
        """
        text = "\n\n".join(f"**{name}** {value}" for name, value in flags.items())
        shown = {name: "" if value is None else value for name, value in compared.items()}
        # TensorBoard shows the columns of one run for all of them: name every task in each.
        names = ["accuracy_test", *(f"accuracy_test_{task}" for task in tasks), "loss_total"]
        columns = hparams.hparams_config_pb(
            [hparams.HParam(name) for name in shown],
            [hparams.Metric(TAG + name, display_name=name) for name in names],
        )
        # TensorBoard sorts the columns by name, after those that are marked as different.
        plugin_data = columns.value[0].metadata.plugin_data
        content = plugin_data_pb2.HParamsPluginData.FromString(plugin_data.content)
        for column in content.experiment.hparam_infos:
            column.differs = column.name in FIRST_COLUMNS
        plugin_data.content = content.SerializeToString()
        # Serialised, because TensorBoard's class of the message is not TensorFlow's.
        # As bytes: a path may not be valid UTF-8.
        self.add(text_pb("run", text.encode(errors="replace")).SerializeToString(), step)
        self._check()
        with self._errors(), tf.io.TFRecordWriter(str(self._run_dir / OF_FLAGS)) as file:
            file.write(tf.Event(file_version="brain.Event:2").SerializeToString())
            for proto in (columns, hparams.hparams_pb(shown, run_name)):
                summary = tf.Summary.FromString(proto.SerializeToString())
                file.write(tf.Event(wall_time=time.time(), summary=summary).SerializeToString())

    def add_unit_picture(self, mean_weights, tasks, step):
        """Draws the units' mean weights. Args: scope -> [T, T]; names of the tasks; the step."""
        limit = max(1.0, *(np.abs(weights).max() for weights in mean_weights.values()))
        written = np.vectorize(lambda weight: f"{round(weight, 3) + 0.0:.3f}")  # never -0.000
        panels = {scope: (weights, written(weights)) for scope, weights in mean_weights.items()}
        axes = ("to", "from")
        self._add_picture(
            "mean_weights", step, panels=panels, names=tasks, axes=axes, limit=limit, signed=True
        )

    def add_confusion(self, task, classes, counts, images, step):
        """Draws a confusion matrix, [classes, classes]: row = label, column = prediction.

        Its title says how many of the images have a label, if not all.
        """
        known = counts.sum()
        title = task if known == images else f"{task}: {known:,} of {images:,} images"
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axes = ("label", "prediction")
        panels = {title: (shares, counts)}
        self._add_picture(
            f"confusion_{task}",
            step,
            panels=panels,
            names=classes,
            axes=axes,
            limit=1,
            signed=False,
        )

    def add_mistakes(self, task, images, titles, step):
        """Draws images that the network is wrong about. Args: as `mistakes.draw`."""
        if len(images):
            self._add_picture(f"mistakes_{task}", step, "mistakes", images=images, titles=titles)

    def add_results(self, tasks, images, confusions, mistakes, step):
        """Draws confusion matrices and the worst mistakes, and writes that the run has ended.

        Args:
          tasks: `data.Task`s.
          images: those of the test split, [N, H, W] or [N, H, W, C] uint8.
          confusions: task -> as `add_confusion` takes it.
          mistakes: as `predictions.worst` returns them.
          step: the run's last.
        """
        for task in tasks:
            self.add_confusion(task.name, task.classes, confusions[task.name], len(images), step)
            rows = [row for row, _ in mistakes[task.name]]
            titles = [
                (task.classes[one.label], task.classes[one.prediction])
                for _, one in mistakes[task.name]
            ]
            self.add_mistakes(task.name, np.asarray(images[rows]) if rows else [], titles, step)
        self.add(session_end_pb(api_pb2.STATUS_SUCCESS).SerializeToString(), step)
        self.flush()

    def _add_picture(self, name, step, module="matrices", **shown):
        """Adds a picture. Where one cannot be drawn, the run goes on without any.

        Args: its name; the step; the module of harness/ that draws it, and what its `draw` takes.
        """
        if self._cannot_draw:
            return
        try:
            from harness import matrices, mistakes  # now: Matplotlib's import takes a second

            draw = {"matrices": matrices.draw, "mistakes": mistakes.draw}[module]
            png = draw(**shown)
        except Exception as error:  # in matplotlib, anything
            self._cannot_draw = True
            reason = f"{type(error).__name__}: {brief(error)}"
            warnings.warn(
                f"TensorBoard will show no pictures, because drawing one failed: {reason}"
            )
            return
        summary = tf.Summary()
        image = tf.Summary.Image(encoded_image_string=png)
        summary.value.add(tag=TAG + name, image=image)
        self.add(summary.SerializeToString(), step)

    def flush(self):
        """Writes all events so far to the disk. Raises: CannotWrite; Failed, the folder is no
        longer the run's."""
        self._check()
        with self._errors():
            self._writer.flush()

    @contextlib.contextmanager
    def _errors(self):
        """Raises CannotWrite for any error within. TensorFlow writes in a thread of its own, so
        any call may be the one that reports a full disk."""
        try:
            yield
        except Exception as error:  # its class depends on the system's error
            raise CannotWrite(
                f"{self._run_dir}: the event file cannot be written ({brief(error)})."
            ) from error


def keep_event_files_in_order(run_dir):
    """Lets a new event file be the last by name: TensorBoard reads them in that order.

    Names hold the second of their creation, which a clock that is set back repeats.
    """
    now = int(time.time())
    pattern = r"events\.out\.tfevents\.(\d+)(\..+)"
    found = [re.fullmatch(pattern, path.name) for path in run_dir.glob("events.out.tfevents.*")]
    names = sorted(match[0] for match in found if match)
    if not names or int(re.fullmatch(pattern, names[-1])[1]) < now:
        return
    # Before all that are there: files of one machine differ in nothing but the second.
    first = min(now, int(re.fullmatch(pattern, names[0])[1])) - len(names)
    for index, name in enumerate(names):
        rest = re.fullmatch(pattern, name)[2]
        earlier = f"events.out.tfevents.{first + index:010d}{rest}"
        (run_dir / name).rename(run_dir / earlier)
