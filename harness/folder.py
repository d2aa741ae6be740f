"""A run's folder: its name, one set of settings, starting over, starting from another run."""

import os
import pathlib
import re
import shutil
import warnings

from harness import checkpoint_files, evaluation_log, flag_rules, owner, predictions
from harness.errors import Failed
from harness.files import read_json
from harness.names import NUMBER, NUMERICS, PROGRESS, RESULTS, SETTINGS, numerics_of

# What a run leaves, apart from its lock and its settings, in the order in which it is deleted:
# results first, as a run without them is not finished.
RUN_FILES = (RESULTS, "results.part", "settings.part", evaluation_log.NAME)
RUN_FILES += (predictions.NAME, predictions.TABLE, "predictions.part", PROGRESS)
RUN_FILES += ("events.out.tfevents*", "checkpoint", "checkpoint.tmp*", "model.ckpt-*")
# The first words of a run's name stand for these flags.
NAMED_FIRST = {"cross_stitch", "cross_stitch_unit", "hard_sharing", "seed", "dataset"}


# --- Its name ---


def run_name(wanted, dataset_name, sharing, flags, defaults):
    """The name of the run's folder, for example fashion_mnist-channel-seed0-learning_rate=0.01.

    Args:
      wanted: the name that the user wants, or None.
      dataset_name: name of the data set.
      sharing: as `names.sharing_of` returns it.
      flags: all flags that can change the result, name -> value.
      defaults: flag -> its default. The name has each flag that differs from it.
    """
    if wanted:
        # Nobody may mistake a run on synthetic images for one on Fashion-MNIST.
        marked = dataset_name != "synthetic" or dataset_name in wanted
        return wanted if marked else f"{wanted}-{dataset_name}"
    others = [
        f"{name}={pathlib.Path(value).name if name == 'init_from' else value}"
        for name, value in flags.items()
        if name not in NAMED_FIRST and value != defaults[name]
    ]
    return "-".join([dataset_name, sharing, f"seed{flags['seed']}", *others])


def check_path(folder):
    """Raises: Failed, TensorFlow would take the name for something else, or cannot read it."""
    if re.search(r"^~|[][*?\\]|:/", str(folder)):
        raise Failed(
            f"{folder}: cannot be used, because TensorFlow reads * ? [ ] \\ and :/ as more than"
            " characters, and ~ stands for no known home. Choose another folder."
        )
    if re.search(r"[\ud800-\udfff]", str(folder)):
        raise Failed(f"{folder}: this locale cannot read the name. Set PYTHONUTF8=1, or rename it.")


# --- One set of settings, and starting from another run ---


def check_settings(run_dir, settings, defaults, may_differ=()):
    """Refuses to resume what other flags, other data or another program started.

    Args:
      run_dir: the run's folder.
      settings: what determines the result of this command, name -> value.
      defaults: flag -> its default.
      may_differ: names of settings that are not compared.

    Raises:
      Failed.
    """
    record = run_dir / SETTINGS
    before = read_json(record)
    for name in ("numerics", NUMBER):  # `check_numerics` compares numerics
        before.pop(name, None)
    if files_of_run(run_dir) and not before:
        if not record.exists() and not checkpoint_files.holds_network(run_dir):
            raise Failed(
                f"{run_dir}: holds files of something that this program cannot resume. Choose"
                " another --run_name, or delete them with --overwrite."
            )
        warnings.warn(f"{record}: missing or damaged, so flags and data are not compared with it.")
    before = completed(before, settings, defaults) if before else settings
    if before.get("data") == settings.get("data"):
        may_differ = {*may_differ, "dataset"}  # your own data set is named after its folder
    names = [name for name in differing(before, settings, defaults) if name not in may_differ]
    if names:
        started, asked = (
            " ".join(shown(name, of.get(name), defaults) for name in names)
            for of in (before, settings)
        )
        raise Failed(
            f"{run_dir}: this run was started with {started}, not {asked}. Resume it with the"
            " former, choose another --run_name, or start over with --overwrite."
        )


def check_numerics(run_dir):
    """Raises: Failed, a version of this program with other rounding started the run."""
    before = read_json(run_dir / SETTINGS)
    numerics = numerics_of(before)
    if before and numerics != NUMERICS and checkpoint_files.steps_saved(run_dir):
        raise Failed(
            f"{run_dir}: this run was started with numerics {numerics}, and this version of the"
            f" program computes with numerics {NUMERICS}. Resume it with the former version, choose"
            " another --run_name, or start over with --overwrite."
        )


def shown(name, value, defaults):
    """A setting as text. The name of a data set is no value of the flag --dataset."""
    is_flag = name in defaults and name != "dataset"
    return f"--{name}={value}" if is_flag else f"{name} {value}"


def differing(before, now, defaults):
    """Compares the settings of two runs, however their flags are written.

    Args:
      before, now: settings, name -> value.
      defaults: flag -> its default.

    Returns:
      Names of the settings that differ, a list.
    """
    if before == now:
        return []
    unified = [flag_rules.unified(defaults | of) for of in (before, now)]
    # A network without units records none of their flags, so they are not compared.
    ignored = flag_rules.of_units(defaults) - now.keys()
    return [
        name
        for name in {**before, **now}
        if before.get(name) != now.get(name)
        and name not in ignored
        and not is_same(name, *(of.get(name) for of in unified))
    ]


def is_same(name, before, now):
    """Whether a setting has the same value. Two paths of one folder are the same."""
    if name == "init_from" and before and now:
        before, now = (os.path.realpath(expanded(path)) for path in (before, now))
    return before == now


def begin(claim, settings, starts_over):
    """Writes the settings of a run that trains; first deletes what an earlier one left, if it
    `starts_over`. Files of others stay.

    Args: the process's `owner.Claim`; what determines the result; whether the run starts over.
    Raises: Failed, the run was finished, but its checkpoints are gone.
    """
    run_dir = claim.folder
    saved = checkpoint_files.steps_saved(run_dir) | checkpoint_files.steps_of_others(run_dir)
    if not starts_over and (run_dir / RESULTS).exists() and not saved:
        raise checkpoint_files.gone(run_dir)
    claim.check()
    for path in files_of_run(run_dir) if starts_over else []:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    number = None if starts_over else checkpoint_files.number_of(run_dir)
    if not number:
        number = owner.new_number()
        # Of an earlier version, or in a copy without settings: these count as the run's own.
        checkpoint_files.adopt(run_dir, number)
    claim.write_json(SETTINGS, {**settings, "numerics": NUMERICS, NUMBER: number})


def completed(before, now, defaults):
    """Fills in settings that an earlier version did not record: flags with their defaults,
    shape and classes with those of `now`."""
    known = {name: defaults[name] for name in now if name in defaults}
    return known | {name: now[name] for name in ("shape", "classes") if name in now} | before


def init_folder(run_dir, settings, defaults):
    """The folder --init_from, of a finished run whose towers this one starts with.

    Args:
      run_dir: the run's own folder.
      settings: what determines this run's result, name -> value.
      defaults: flag -> its default.

    Returns:
      Its path.

    Raises:
      Failed: that run is not finished, has other tasks, classes, units or data, or is this one.
    """
    folder = expanded(settings["init_from"])
    if folder.resolve() == run_dir.resolve():
        raise Failed(f"--init_from={folder}: is the run's own folder. Choose another --run_name.")
    check_path(folder)
    if not results_of_finished(folder):
        raise Failed(f"--init_from={folder}: not the folder of a finished run.")
    if not any(folder.glob("model.ckpt-*.index")):
        raise Failed(f"--init_from={folder}: its checkpoints are gone. Train it again.")
    found = read_json(folder / SETTINGS)
    if not found:
        raise Failed(f"--init_from={folder}: its {SETTINGS} is missing or damaged. Train it again.")
    names = ("tasks", "share_until", "hard_sharing", "holdout", "dataset")
    wanted = {name: settings[name] for name in names}
    if "," in settings["tasks"]:  # a single tower has no units
        wanted["cross_stitch"] = False
    found = completed(found, {**wanted, "classes": settings["classes"]}, defaults)
    if found.get("data") == settings["data"]:  # in a folder of another name, perhaps
        del wanted["dataset"]
    wrong = [shown(n, value, defaults) for n, value in wanted.items() if found[n] != value]
    if wrong:
        raise Failed(f"--init_from={folder}: must be a run with {' '.join(wrong)}.")
    if found["classes"] != settings["classes"]:
        raise Failed(f"--init_from={folder}: its tasks have other classes. Train it again.")
    chosen, all_found = ("seed", "train_examples", "starve", "label_only"), {**defaults, **found}
    is_chosen_alike = all(all_found[name] == settings[name] for name in chosen)
    if is_chosen_alike and found.get("data") != settings["data"]:
        warnings.warn(f"--init_from={folder}: was trained on other images or labels than these.")
    return folder


# --- What is in it ---


def files_of_run(run_dir):
    """The files that a run left, apart from its lock and its settings. Returns: paths."""
    return [path for pattern in RUN_FILES for path in run_dir.glob(pattern)]


def results_of_finished(run_dir):
    """The results of a run, or None if it is not finished or has gone on with more epochs."""
    results = read_json(run_dir / RESULTS)
    # Checkpoints may be older, or deleted, as the study does once a run has a record.
    newest = max(checkpoint_files.steps_saved(run_dir), default=0)
    return results if newest <= results.get("global_step", -1) else None


def expanded(name):
    """The path of a folder that the user named, in which ~ stands for the home."""
    return pathlib.Path(os.path.expanduser(name))
