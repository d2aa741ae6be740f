"""What a run predicted for each image of its evaluations, in the file predictions.bin.

The file only grows while the run trains, by the same number of bytes for each evaluation: the
step, and for each task the class of every image, in the order of the images. At the end, the
evaluations of which a run's accuracy is the mean are left. numpy reads it:

    np.fromfile("predictions.bin", predictions.layout(dataset))
"""

import contextlib
import os

import numpy as np

from harness import files
from harness.errors import CannotWrite
from harness.names import LAST_EVALUATIONS

NAME = "predictions.bin"  # in the run's folder


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


class PredictionLog:
    """The file of a run that trains. A context manager.

    Args:
      run_dir: the run's folder.
      step: step of the checkpoint that the run resumes from, or 0. Later evaluations are deleted,
        as the run makes them again.
      dataset: as `layout` takes it.

    Raises:
      CannotWrite: the file cannot be written.
    """

    def __init__(self, run_dir, step, dataset):
        self._path, self._layout = run_dir / NAME, layout(dataset)
        with self._errors():
            self._file = open(self._path, "a+b")
            self._file.truncate(self._layout.itemsize * self._number_up_to(step))

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
            os.fsync(self._file.fileno())

    def finish(self, steps, labels):
        """Deletes all but the last LAST_EVALUATIONS evaluations. None can be added after it.

        Args:
          steps: of the evaluations of which the run's accuracy is the mean.
          labels: task -> [N] int.

        Returns:
          task -> a digit for each image: how many of those evaluations predicted it correctly.
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
            task: "".join(map(str, np.sum(evaluations["classes"][task] == of_task, axis=0)))
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

