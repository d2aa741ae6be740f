"""What a run predicted for each image that it is evaluated on.

predictions.bin has the last evaluations. It only grows while the run trains, by the same number
of bytes for each evaluation: the step, and for each task the class of every image, in the order
of the images. At the end, the evaluations of which a run's accuracy is the mean are left. numpy
reads it:

    np.fromfile("predictions.bin", predictions.layout(dataset))
"""

import contextlib
import csv
import heapq
import io
import os
import typing

import numpy as np

from harness import files
from harness.errors import CannotWrite
from harness.names import LAST_EVALUATIONS

NAME, TABLE = "predictions.bin", "predictions.csv"  # in the run's folder
NO_LABEL = "-"
MISTAKES = 24  # of a task that TensorBoard shows


def layout(dataset):
    """What an evaluation is in the file.

    Args:
      dataset: has tasks, each with a name and classes, and a test split with images.

    Returns:
      A numpy dtype with the fields "step" and "classes", which has a field for each task: uint8,
      or uint16 for more than 255 classes. So the largest number is never a class.
    """
    count = len(dataset.test.images)
    kinds = {task.name: "<u1" if len(task.classes) <= 255 else "<u2" for task in dataset.tasks}
    classes = [(name, kind, (count,)) for name, kind in kinds.items()]
    return np.dtype([("step", "<i8"), ("classes", classes)])


def digits(counts, labels):
    """Args: [N] int each. Returns: a digit for each image, NO_LABEL for a negative label."""
    return "".join(str(n) if label >= 0 else NO_LABEL for n, label in zip(counts, labels))


class PredictionLog:
    """The file of a run that trains. A context manager. TABLE, of the network before, is deleted.

    Args:
      run_dir: the run's folder.
      done: the last step of which all is written, or -1. Later evaluations are deleted, as the
        run makes them again.
      dataset: as `layout` takes it.

    Raises:
      CannotWrite: the file cannot be written.
    """

    def __init__(self, run_dir, done, dataset):
        self._path, self._layout = run_dir / NAME, layout(dataset)
        with self._errors():
            (run_dir / TABLE).unlink(missing_ok=True)  # of the network before
            self._file = open(self._path, "a+b")
            self._file.truncate(self._layout.itemsize * self._number_up_to(done))

    def append(self, step, classes):
        """Adds an evaluation. Args: the step, and task -> [N] int. Raises: CannotWrite."""
        evaluation = np.zeros([], self._layout)
        evaluation["step"] = step
        for name, of_task in classes.items():
            evaluation["classes"][name] = of_task
        with self._errors():
            self._file.write(evaluation.tobytes())
            self._file.flush()

    def sync(self):
        """Returns when all evaluations are on the disk. Raises: CannotWrite."""
        with self._errors():
            files.sync(self._file)

    def finish(self, steps, labels):
        """Deletes all but the last LAST_EVALUATIONS evaluations. None can be added after it.

        Args:
          steps: of the evaluations of which the run's accuracy is the mean.
          labels: task -> [N] int, negative if unknown.

        Returns:
          task -> a digit for each image: how many of those evaluations predicted it correctly;
          NO_LABEL for an image without a label of this task.
          None if one of them is not in the file, as in a run that an earlier version began.

        Raises:
          CannotWrite.
        """
        size = self._layout.itemsize
        with self._errors():
            all_bytes = self._file.seek(0, os.SEEK_END)
            self._file.seek(max(0, all_bytes - LAST_EVALUATIONS * size))
            content = self._file.read()
            if len(content) < all_bytes:
                files.write(self._path, content)
        evaluations = np.frombuffer(content, self._layout)
        if evaluations["step"].tolist() != steps:
            return None
        return {
            task: digits(np.sum(evaluations["classes"][task] == of_task, axis=0), of_task)
            for task, of_task in labels.items()
        }

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):  # of the evaluation that could not be written
            self._file.close()

    def _number_up_to(self, step):
        """How many evaluations come before the first that is later, torn or damaged."""
        size, before = self._layout.itemsize, 0
        whole = self._file.seek(0, os.SEEK_END) // size
        for number in range(whole):
            self._file.seek(number * size)
            found = int.from_bytes(self._file.read(8), "little")
            if not before < found <= step:
                return number
            before = found
        return whole

    def _errors(self):
        return CannotWrite.instead_of_system_errors(self._path)


# --- Of a finished run ---


class Predicted(typing.NamedTuple):
    """What a network says of an image, for one task."""

    label: int  # negative: unknown
    prediction: int
    probability: float  # of the prediction


def of_batch(logits, labels):
    """Args: [B, classes] float and [B] int. Returns: a `Predicted` of each image, a list."""
    predictions = np.argmax(logits, axis=1)
    # Of the class with the largest logit: 1 / sum(exp(z - max)).
    shares = 1 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1, dtype=float)
    return [Predicted(*of) for of in zip(labels.tolist(), predictions.tolist(), shares.tolist())]


def table(rows, tasks, places):
    """A table of all images, for pandas and spreadsheets.

    Args:
      rows: for each image, task -> its `Predicted`.
      tasks: the tasks, each with a name and classes.
      places: where each image is in its file.

    Returns:
      CSV in UTF-8, with the mark by which spreadsheets know it: bytes.
    """
    text = io.StringIO()
    writer, kinds = csv.writer(text), ("label", "prediction", "probability")
    writer.writerow(["row", *(f"{task.name}_{kind}" for task in tasks for kind in kinds)])
    for place, of_image in zip(places, rows):
        cells = [place]
        for task in tasks:
            label, prediction, probability = of_image[task.name]
            cells += [
                task.classes[label] if label >= 0 else "",
                task.classes[prediction],
                f"{probability:.6f}",
            ]
        writer.writerow(cells)
    return text.getvalue().encode("utf-8-sig")


def worst(rows, tasks):
    """The mistakes with the highest probability, MISTAKES at most.

    Args:
      rows: for each image, task -> its `Predicted`; only the mistakes found stay in memory.
      tasks: names of the tasks.

    Returns:
      task -> list of (index of the image, its `Predicted`), the highest probability first.
    """
    found = {task: [] for task in tasks}
    for index, of_image in enumerate(rows):
        for task, heap in found.items():
            one = of_image[task]
            if 0 <= one.label != one.prediction:
                entry = one.probability, -index, one
                (heapq.heappush if len(heap) < MISTAKES else heapq.heappushpop)(heap, entry)
    return {
        task: [(-index, one) for _, index, one in sorted(heap, reverse=True)]
        for task, heap in found.items()
    }
