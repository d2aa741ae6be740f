"""How the records of runs are made, read and compared.

A record is a small text file: what a run of train.py left, and the command that repeats it.
"""

import csv
import hashlib
import json
import pathlib
import shlex
import shutil
import subprocess
import sys
import typing

import numpy as np

import data
from harness import evaluation_log, files, predictions
from harness.errors import Diverged, Failed, InUse
from harness.files import read_json
from harness.names import NUMERICS, RESULTS, numerics_of
from study import groups, numerics, runs


class Folders(typing.NamedTuple):
    """Where runs and their records are."""

    runs: pathlib.Path
    records: pathlib.Path

    def run(self, run):
        return self.runs / run.study / run.name

    def record(self, run):
        return self.records / run.study / f"{run.name}.json"

    def command(self, run):
        """The command of a run: python train.py and its flags, a list."""
        given = flags_of(run)
        if run.source:
            given["init_from"] = self.run(run.source)
        given |= {"logdir": self.run(run).parent, "run_name": run.name}
        return ["python", "train.py", *(f"--{name}={value}" for name, value in given.items())]

    def has_record(self, run):
        return self.record(run).exists()

    def has_weights(self, run):
        """Whether the run has finished and its checkpoint is still there."""
        folder = self.run(run)
        return (folder / RESULTS).exists() and any(folder.glob("model.ckpt-*"))


def flags_of(run):
    """The flags of train.py, apart from those that name folders: name -> value."""
    return {"dataset": "fashion_mnist", **run.flags, "seed": run.seed}


# --- Making ---


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
    recorded = records_in(run.study, folders.records).values()
    numerics.check_alike(folders.record(run).parent, [record, *recorded])
    write_record(folders.record(run), record)
    return record


def write_record(path, record):
    """Writes one line for each entry, so that differences can be read. Raises: OSError."""
    lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in record.items()]
    files.write(path, "{\n" + ",\n".join(lines) + "\n}\n")


def train(run, folders, stop, *more_flags):
    """Runs train.py to the end.

    Args:
      run: a `runs.Run`.
      folders: `Folders`.
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
        # An earlier reproduce.py that was killed may have left this run training.
        if process.returncode != InUse.exit_code and not stop.is_set():
            raise Failed(
                f"{run.study}/{run.name}: {message} Its log is {log}. If that does not help,"
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
        if "per_second" not in name and not name.startswith("tasks/")
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


# --- Reading ---


def read_record(path, *names):
    """Reads a record that must have these entries. Raises: Failed, it is damaged."""
    try:
        record = read_json(path)
        for name in names:
            record[name]
    except KeyError:
        raise Failed(f"{path}: damaged. Delete it to run it again.") from None
    return record


def read_all(folder):
    """Reads the records of all studies.

    Args:
      folder: path of the records, which has a folder for each study.

    Returns:
      study -> list of `groups.Group` in the order of `runs.STUDIES`, fewest images first.

    Raises:
      Failed: a record is damaged.
    """
    there = [study for study in runs.STUDIES if (folder / study).is_dir()]
    studies = {study: read(study, folder) for study in there}
    for study in there:
        borrowed = list(runs.STUDIES[study].borrowed)
        if borrowed:
            shown = groups.records_of(groups.shown(study, studies))
            numerics.check_alike(f"{folder / study} and {', '.join(borrowed)}", shown)
    return studies


def records_in(study, folder):
    """The records of one study. Returns: path -> record. Raises: Failed, one is damaged."""
    paths = sorted((folder / study).glob("*.json"))
    return {path: read_record(path, "setting", "seed", "command") for path in paths}


def read(study, folder):
    """Reads the records of one study. Returns and raises: as `read_all`, its list of groups."""
    settings, found = runs.settings_of(study), {}
    read_records = records_in(study, folder)
    numerics.check_alike(folder / study, read_records.values())
    for path, record in read_records.items():
        setting, seed = record["setting"], record["seed"]
        if setting not in settings or seed not in runs.STUDIES[study].seeds:
            raise Failed(
                f"{path}: runs.py has no setting {setting!r} with seed {seed}. Add it, or delete"
                " this file."
            )
        if path.stem != runs.name_of(setting, seed):
            raise Failed(
                f"{path}: is the record of {runs.name_of(setting, seed)}. Rename it, or delete it."
            )
        found.setdefault(setting, {})[seed] = record
    return [
        groups.Group(
            *settings[setting],
            {seed: r for seed, r in sorted(found[setting].items()) if "diverged" not in r},
            sum("diverged" in record for record in found[setting].values()),
        )
        for setting in sorted(settings, key=lambda setting: settings[setting][0])
        if setting in found
    ]


def check_numerics(missing, folder):
    """Checks that runs may be added to the records in this folder, before they are made.

    Raises: Failed, their studies have records of other numerics than this program's.
    """
    other = {}
    studies = {run.study for run in missing}
    # What a table borrows is in it, too.
    borrowing = {name for name, of in runs.STUDIES.items() if studies & of.borrowed.keys()}
    studies |= {name for study in studies for name in runs.STUDIES[study].borrowed} | borrowing
    for study in sorted(studies, key=list(runs.STUDIES).index):
        for record in records_in(study, folder).values():
            if numerics_of(record) != NUMERICS:
                other[study] = numerics_of(record)
    if other:
        names = ", ".join(f"{study} (numerics {number})" for study, number in other.items())
        raise Failed(
            f"this program computes with numerics {NUMERICS}, and adds no run to the records of"
            f" {names}, because no table mixes numerics. Choose other studies with --only, or"
            f" delete the folders of these in {folder} to make all their runs anew."
        )


# --- Comparing ---

FLAGS_OF_FOLDERS = ("logdir", "run_name", "init_from")  # flags of train.py that name folders


def check(chosen, folders):
    """Raises: Failed, a record is of another command or other flags than its run."""
    for run in chosen:
        path = folders.record(run)
        if path.exists() and not is_record_of(run, read_json(path), folders):
            raise Failed(f"{path}: made with other flags. Delete it to run it again.")


def is_record_of(run, record, folders):
    """Whether the record's command and flags are those of the run, apart from folders."""

    def without_folders(command):
        prefixes = tuple(f"--{name}=" for name in FLAGS_OF_FOLDERS)
        return {a.partition("=")[0] if a.startswith(prefixes) else a for a in command[2:]}

    recorded = shlex.split(record["command"])
    if without_folders(recorded) != without_folders(folders.command(run)):
        return False
    # A run that diverged recorded no flags.
    return "diverged" in record or flags_of(run).items() <= record.get("flags", {}).items()


# Entries of a record that may differ although the result is the same.
NOT_COMPARED = {"command", "flags", "commit", "versions", "numerics", "machine"}
NOT_COMPARED |= {"images_per_second", "wall_seconds", "resumed_after"}
OF_UNITS = {"weights", "distances"}  # scope or variable -> values; older records have fewer


def compare(record, again, deviation):
    """Compares a record with a repetition of its run.

    Bits are compared if the record says that it was made on the same kind of machine with the
    same TensorFlow and numerics, otherwise accuracy.

    Args:
      record: the record.
      again: the record of the repetition.
      deviation: as `deviation_of_seeds` returns it.

    Returns:
      What was found, as a sentence.

    Raises:
      Failed: they do not agree, or this cannot be told.
    """
    names = record.keys() - NOT_COMPARED  # older records have fewer entries
    different = sorted(name for name in names if record[name] != comparable(name, record, again))
    if not different:
        return "the same bits"
    before, here = origin(record), origin(again)
    if before == here or "diverged" in {*record, *again}:
        raise Failed(f"{', '.join(different)} not as recorded")
    reasons = ", ".join(
        f"{name} {before.get(name, 'not recorded')} (here {value})"
        for name, value in here.items()
        if before.get(name, "not recorded") != value
    )
    recorded, now = (r["accuracy_test_last"]["mean"] for r in (record, again))
    if deviation is None:
        raise Failed(
            f"bits cannot be compared: {reasons}. Nor can accuracy, with fewer than three other"
            f" seeds: it was {recorded:.4f}, is {now:.4f}"
        )
    if abs(recorded - now) > 4 * deviation:
        raise Failed(
            f"accuracy {now:.4f} is further from the recorded {recorded:.4f} than four standard"
            f" deviations of seeds, {4 * deviation:.4f}; bits cannot be compared: {reasons}"
        )
    return (
        f"accuracy was {recorded:.4f}, is {now:.4f}: within four standard deviations of seeds,"
        f" {4 * deviation:.4f}; bits cannot be compared: {reasons}"
    )


def comparable(name, record, again):
    """The entry of the repetition, of whose units' values only those that the record has."""
    value = again.get(name)
    if name in OF_UNITS and value:
        value = {key: of_unit for key, of_unit in value.items() if key in record[name]}
    return value


def origin(record):
    """What decides in which order sums are added up, name -> value; older records lack some."""
    tensorflow = record.get("versions", {}).get("tensorflow")
    known = {"variables": {}, **record.get("machine", {}), **record, "TensorFlow": tensorflow}
    names = ("processor", "vectors", "bfloat16", "onednn", "threads", "variables", "TensorFlow",
             "numerics")  # fmt: skip
    return {name: known[name] for name in names if name in known}


def deviation_of_seeds(run, studies):
    """The standard deviation of accuracy over the other seeds of a run's setting.

    Args:
      run: a `runs.Run`.
      studies: as `read_all` returns them.

    Returns:
      The deviation. If fewer than three other seeds have a record, the largest of any setting
      on as many images, or None if there is none.
    """

    def deviations(of):
        enough = [g for g in of if len(g.records) >= groups.SEEDS_OF_AN_INTERVAL]
        return [np.std(group.accuracies(), ddof=1) for group in enough]

    images, name = runs.settings_of(run.study)[run.setting]
    group = groups.find(studies[run.study], name, images)
    others = group.of_seeds(group.records.keys() - {run.seed})
    counted = runs.STUDIES[run.study].condition
    similar = [
        group
        for study, of in studies.items()
        for group in of
        if runs.STUDIES[study].condition == counted and group.condition == images
    ]
    return max(deviations([others]) or deviations(similar), default=None)
