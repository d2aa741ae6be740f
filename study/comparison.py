"""The folder of a comparison: its name, what its runs have in common, and what else it holds."""

import pathlib
import re
import shlex

from harness import files
from harness.errors import Failed
from harness.names import NUMERICS
from study import command_line
from study.runs import name_of as name_of_run

PARAMETERS = "comparison.json"  # what a folder compares
# That change no result, so a comparison goes on with others.
CHANGEABLE = {"data_dir", "dataset", "threads", "save_checkpoint_secs", "keep_checkpoints"}


def name_of(dataset, given):
    """The name of a comparison's folder, for example mine-custom-tasks=label,kind."""
    others = {name: value for name, value in given.items() if name not in CHANGEABLE}
    if "init_from" in others:
        others["init_from"] = pathlib.Path(others["init_from"]).name
    for name, value in others.items():  # 1e-3 and 0.001 are one comparison
        number = command_line.number_in(value)
        others[name] = f"{number:.15g}" if isinstance(number, float) else value
    words = [dataset.name, *(f"{name}={others[name]}" for name in sorted(others))]
    return re.sub(r"[^\w.,=+-]", "_", "-".join(words))


def parameters(dataset, settings, given):
    """What a folder's records have in common; the content of comparison.json."""
    return {
        "dataset": dataset.name,
        "data": f"{dataset.fingerprint()} {dataset.fingerprint_of_classes()}",
        "flags": {name: value for name, value in given.items() if name not in CHANGEABLE},
        "numerics": NUMERICS,
        "settings": settings,
    }


def write_parameters(folder, now):
    """Adds what is compared now to what the folder holds."""
    before = files.read_json(folder / PARAMETERS)
    settings = before.get("settings", {}) | now["settings"]
    files.write_json(folder / PARAMETERS, before | now | {"settings": settings})


# --- Whether it is the command's ---


def check(folder, now):
    """Raises: Failed, the folder holds another comparison. Args: now, the `parameters`."""
    before = files.read_json(folder / PARAMETERS)
    another = "Choose another --name."
    if not before:
        # A start that was killed may leave the latter.
        of_this_program = {"lock", pathlib.Path(PARAMETERS).stem + ".part"}
        if any(path.name not in of_this_program for path in folder.iterdir()):
            raise Failed(f"{folder}: holds no comparison of this program. {another}")
        return
    if not command_line.are_alike(before["flags"], now["flags"]):
        was, asked = (
            shlex.join(command_line.words_of(of["flags"])) or "no flags" for of in (before, now)
        )
        raise Failed(f"{folder}: was started with {was}, not {asked}. {another}")
    if before["dataset"] != now["dataset"]:
        raise Failed(
            f"{folder}: was started with data called {before['dataset']}, which are called"
            f" {now['dataset']} now. {another}"
        )
    if before["data"] != now["data"]:
        raise Failed(f"{folder}: images, labels or classes have changed since it began. {another}")
    if before["numerics"] != now["numerics"]:
        raise Failed(
            f"{folder}: another version of the program made its runs (numerics"
            f" {before['numerics']}, now {now['numerics']}). {another}"
        )
    alike = {name.casefold(): name for name in before["settings"]}
    for name in now["settings"].keys() - before["settings"].keys():
        other = alike.get(name.casefold())
        if other:  # some systems take files of such names for one
            raise Failed(f"{folder}: has a setting {other!r}. Choose another name than {name!r}.")
    for name in before["settings"].keys() & now["settings"].keys():
        begun = (folder / "runs").glob(name_of_run(name, "*"))
        if all(path.suffix == ".log" for path in begun):  # train.py refused to begin
            continue
        was, asked = (of["settings"][name] for of in (before, now))
        if not command_line.are_alike(was, asked):
            was, asked = (" ".join(command_line.words_of(flags_)) for flags_ in (was, asked))
            raise Failed(
                f"{folder}: its setting {name!r} is {was}, not {asked}. Choose another name."
            )


def check_data(made, folders, before, now):
    """Checks that the data are those that the runs began with; if not, deletes their records.

    Args: the runs; `records.Folders`; the `parameters` of before, and of now. Raises: Failed.
    """
    if (before["dataset"], before["data"]) == (now["dataset"], now["data"]):
        return
    for run in made:  # nobody knows which of them have seen the others
        folders.record(run).unlink()
    raise Failed(
        f"{folders.runs}: images, labels or classes have changed while the runs trained, so that"
        f" {len(made)} runs are not used. Choose another --name; or restore the data, and run the"
        " same command."
    )


# --- What else it holds ---


def others_with_runs(folder, settings, count):
    """Runs in this folder that the command leaves out. Args: its settings; its number of seeds.

    Returns: the other settings that have any; the seeds of these settings that are not asked for.
    """
    known, seeds = files.read_json(folder / PARAMETERS)["settings"], {}
    for name in known:
        paths = folder.glob(f"runs/{name_of_run(name, '*')}.json")
        seeds[name] = {int(path.stem.rpartition("-seed")[2]) for path in paths}
    others = tuple(name for name in known if name not in settings and seeds[name])
    of_these = set().union(*(seeds[name] for name in settings))
    return others, tuple(sorted(seed for seed in of_these if seed >= count))


def answered_before(folder, count):
    """The smaller numbers of seeds with which this folder's comparison was answered before."""
    answered = files.read_json(folder / PARAMETERS).get("answered", ())
    return tuple(seeds for seeds in answered if seeds < count)


def note_answer(folder, count):
    """Notes with how many seeds the comparison is answered."""
    state = files.read_json(folder / PARAMETERS)
    answered = sorted({*state.get("answered", ()), count})
    files.write_json(folder / PARAMETERS, state | {"answered": answered})
