"""Makes the record of a run, with train.py."""

import csv
import hashlib
import shlex
import shutil
import signal
import subprocess
import sys

import numpy as np

import data
from harness import evaluation_log, predictions
from harness.errors import Diverged, Failed, InUse
from harness.files import read_json
from harness.names import NUMERICS, RESULTS
from study import numerics, records, runs


def make(run, folders, stop, *more_flags):
    """Does `train` and writes the run's record. Returns: the record. Raises: Failed."""
    diverged = train(run, folders, stop, *more_flags)
    record = {"command": shlex.join(folders.command(run)), "setting": run.setting}
    if diverged:
        record |= {"seed": run.seed, "diverged": diverged, "numerics": NUMERICS}
    else:
        folder = folders.run(run)
        record |= read_json(folder / RESULTS)
        record |= {"sha256": checksum(folder), "curves": curves_of(folder)}
        if runs.is_also_in_float32(run):
            record["differ_in_float32"] = differ_in_float32(run, folders, stop, *more_flags)
    recorded = records.records_in(run.study, folders.records).values()
    numerics.check_alike(folders.record(run).parent, [record, *recorded])
    records.write_record(folders.record(run), record)
    return record


def train(run, folders, stop, *more_flags):
    """Runs train.py to the end.

    Args:
      run: a `runs.Run`.
      folders: `records.Folders`.
      stop: a `threading.Event` that ends it early.
      *more_flags: arguments of train.py that do not belong to the study.

    Returns:
      None, or train.py's message if the run diverged.

    Raises:
      Failed: train.py failed, or was stopped.
    """
    if run.source and not folders.has_weights(run.source):
        diverged = train(run.source, folders, stop, *more_flags)
        if diverged:
            return diverged
    folder = folders.run(run)
    if (folder / RESULTS).exists() and not folders.has_weights(run):
        shutil.rmtree(folder)  # its record is missing, and cannot be made from what is left
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.parent / f"{run.name}.log"
    command = [sys.executable, *folders.command(run)[1:], *more_flags]
    while not stop.is_set():
        with (
            log.open("wb") as output,
            subprocess.Popen(command, stdout=output, stderr=output) as process,
        ):
            try:
                while process.poll() is None and not stop.wait(0.2):
                    pass
            finally:
                process.terminate()  # does nothing to a process that has ended
        if process.returncode == 0:
            return None
        message = said(log.read_text(encoding="utf-8", errors="replace"))
        if process.returncode == Diverged.exit_code:
            return message
        if process.returncode == -signal.SIGKILL and not stop.is_set():
            raise Failed(
                f"{run.study}/{run.name}: train.py was killed, perhaps as memory ran out. Close"
                " other programs, or make fewer runs at a time, and run the same command again. Its"
                f" log is {log}."
            )
        # An earlier reproduce.py that was killed may have left this run training.
        if process.returncode != InUse.exit_code and not stop.is_set():
            raise Failed(
                f"{run.study}/{run.name}: {message} Its log is {log}. If it fails again,"
                f" delete {folder}."
            )
        stop.wait(1)
    raise Failed("stopped")


def said(output):
    """The sentence in train.py's output with which it ended."""
    lines = (line for line in output.splitlines() if line.startswith("train.py: "))
    return next(lines, "train.py: ended without a message")


def prune(chosen, folders):
    """Deletes the checkpoints, 78 MB each, of runs that have a record."""
    for run in chosen:
        if folders.has_record(run):
            for path in folders.run(run).glob("model.ckpt-*"):
                path.unlink()


def curves_of(folder):
    """A run's evaluations, without speed and single classes. Returns: name -> [steps, values]."""
    return {
        name: list(points)
        for name, points in evaluation_log.curves(folder).items()
        if name != "images_per_second" and not name.startswith("tasks/")
    }


def checksum(folder):
    """SHA-256 of every value in a run's last checkpoint, Adam's moments included."""
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(folder))
    digest = hashlib.sha256()
    for name in sorted(reader.get_variable_to_shape_map()):
        digest.update(name.encode() + np.ascontiguousarray(reader.get_tensor(name)).tobytes())
    return digest.hexdigest()


def differ_in_float32(run, folders, stop, *more_flags):
    """For how many images float32 predicts another class, with the variables of a finished run.

    Args: as `train`. Returns: task -> number. Raises: Failed.
    """
    train(run, folders, stop, "--eval_only", *more_flags)  # which computes in float32
    given = {name: run.flags[name] for name in ("train_examples", "holdout") if name in run.flags}
    dataset, folder = data.load("fashion_mnist", seed=run.seed, **given), folders.run(run)
    last = np.fromfile(folder / predictions.NAME, predictions.layout(dataset))["classes"][-1]
    with (folder / predictions.TABLE).open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        task.name: sum(
            task.classes[predicted] != row[f"{task.name}_prediction"]
            for predicted, row in zip(last[task.name], rows, strict=True)
        )
        for task in dataset.tasks
    }
