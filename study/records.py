"""Where runs and their records are, and how records are written, read and checked.

A record is a small text file: what a run of train.py left, and the command that repeats it.
"""

import json
import pathlib
import shlex
import typing

from harness import files
from harness.errors import Failed
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


def write_record(path, record):
    """Writes one line for each entry, so that differences can be read. Raises: OSError."""
    lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in record.items()]
    files.write(path, "{\n" + ",\n".join(lines) + "\n}\n")


# --- Reading ---

ENTRIES = ("setting", "seed", "command")  # without which a record of a study is damaged


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
    return {path: read_record(path, *ENTRIES) for path in paths}


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


# --- Whether a record is of its run ---

FLAGS_OF_FOLDERS = ("logdir", "run_name", "init_from")  # flags of train.py that name folders


def check(chosen, folders):
    """Raises: Failed, a record is damaged, or of another command or other flags than its run."""
    for run in chosen:
        path = folders.record(run)
        if path.exists() and not is_record_of(run, read_record(path, *ENTRIES), folders):
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
