"""The evaluations of a run, one JSON object a line, in the file evaluations.jsonl.

A line has the step and what TensorBoard shows at that step, each value under its tag without
the prefix "summary/". Step 0 has the units' weights before training, if there are units.
"""

import contextlib
import itertools
import json
import warnings

import numpy as np

from harness import files
from harness.errors import CannotWrite
from harness.names import LAST_EVALUATIONS

NAME = "evaluations.jsonl"  # in the run's folder


class EvaluationLog:
    """The file of a run that trains. A context manager.

    Args:
      run_dir: the run's folder.
      done: the last step of which all is written, or -1. Later lines are deleted, as the run
        makes them again.
      every: steps between evaluations.

    Raises:
      CannotWrite: the file cannot be written.
    """

    def __init__(self, run_dir, done, every):
        self._path = run_dir / NAME
        with self._errors():
            self._file = open(self._path, "ab")
            lines = ((line["step"], size) for line, size in whole_lines(self._path))
            # Up to the first that is later: behind it, nothing can be kept.
            kept = list(itertools.takewhile(lambda line: line[0] <= done, lines))
            self._file.truncate(sum(size for _, size in kept))
        missing = set(range(every, done + 1, every)) - {step for step, _ in kept}
        if missing:
            warnings.warn(
                f"{self._path}: lacks {len(missing):,} evaluations up to step {done:,}, such as"
                f" that of step {min(missing):,}. Results and curves will be without them."
            )

    def append(self, step, values):
        """Adds a line. Args: the step, and name -> number. Raises: CannotWrite."""
        # 0.9213, not the 0.9212999939918518 that this float32 is as a float.
        numbers = {name: float(str(np.float32(value))) for name, value in values.items()}
        with self._errors():
            self._file.write(json.dumps({"step": step, **numbers}).encode() + b"\n")
            self._file.flush()

    def sync(self):
        """Returns when all lines are on the disk. Raises: CannotWrite."""
        with self._errors():
            files.sync(self._file)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):  # of the line that could not be written
            self._file.close()

    def _errors(self):
        return CannotWrite.instead_of_system_errors(self._path)


def whole_lines(path):
    """Reads the lines up to one that is damaged or torn, as a power cut or a kill leaves it.

    Yields:
      (dictionary, size in bytes); nothing if there is no such file.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    for line in content.splitlines(keepends=True):
        try:
            values = json.loads(line)
            is_whole = isinstance(values["step"], int) and line.endswith(b"\n")
        except (ValueError, TypeError, KeyError):
            return
        if not is_whole:
            return
        yield values, len(line)


def curves(run_dir):
    """Reads the file. Returns: name -> (steps, values), two lists; {} without the file."""
    found = {}
    for line, _ in whole_lines(run_dir / NAME):
        step = line.pop("step")
        for name, value in line.items():
            steps, values = found.setdefault(name, ([], []))
            steps.append(step)
            values.append(value)
    return found


def last_steps(run_dir):
    """The steps of the evaluations of which a run's accuracy is the mean, a list."""
    steps, _ = curves(run_dir).get("accuracy_test", ([], []))
    return steps[-LAST_EVALUATIONS:]
