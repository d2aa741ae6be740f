"""What a command of study.compare asks for: settings, and flags of train.py for all runs."""

import os
import re
import shlex

import data
from harness import flag_rules
from harness.errors import Failed
from harness.files import ROOT
from harness.names import ALIASES, PLACES
from study import runs

# Where labels are few, channel units gain much more if they start by mixing.
DEFAULT = {**runs.KINDS_OF_SHARING, "start 0.7": runs.START_07}
KINDS = {**DEFAULT, "dense": {"cross_stitch_unit": "dense"}}  # --settings' choice
BASELINE = "none"
EXAMPLE = '--setting="fast units: --cross_stitch_learning_rate_scale=1000"'

# Flags of train.py that each run gets from study.compare.
OF_RUNS = {"seed", "logdir", "run_name", "overwrite", "export_dir", "eval_only"}
# In which the settings of --settings differ.
OF_SETTINGS = {"cross_stitch", "cross_stitch_unit", "hard_sharing"}
# All runs are evaluated on the same images.
OF_ALL = {"data_dir", "dataset", "tasks", "holdout"}


def of_all_runs(words):
    """The flags for all runs: name -> value. Raises: Failed, this program sets one itself."""
    given = flags_in(words)
    for name in given:
        if name in OF_RUNS:
            hint = " The number of seeds is --seeds." if name == "seed" else ""
            raise Failed(f"--{name}: each run gets its own from this program. Leave it out.{hint}")
        is_hard_sharing = name == "share_until" and given[name] == PLACES[-1]
        if name in OF_SETTINGS or is_hard_sharing:
            raise Failed(f"--{name}: the settings differ in it. Use --settings, or {EXAMPLE}")
    return flag_rules.spelled_alike(given)


def flags_in(words):
    """Reads flags of train.py, whose values train.py will check.

    Args:
      words: such as ["--num_epochs=3", "--nocross_stitch"].

    Returns:
      name -> text.

    Raises:
      Failed: a word is not a flag, a flag is there twice, or its number is not decimal.
    """
    given = {}
    for word in words:
        found = re.fullmatch(r"--?([A-Za-z]\w*)(?:=(.*))?", word, re.S)
        if not found:
            raise Failed(f"{word}: not a flag. Write every flag as --name=value.")
        name, value = found[1], found[2]
        if value is None:  # --name or --noname
            name, value = (name[2:], "False") if name.startswith("no") else (name, "True")
        name = ALIASES.get(name, name)
        if re.fullmatch(r"0[xo][0-9a-fA-F]+", value):  # which absl reads, and this program not
            raise Failed(f"{word}: write the number with decimal digits.")
        if name in given:
            raise Failed(f"--{name}: is given twice")
        given[name] = value
    return given


def settings_of(chosen, own):
    """The settings to compare.

    Args:
      chosen: names of `KINDS`.
      own: such as "fast units: --cross_stitch_learning_rate_scale=1000".

    Returns:
      name -> flags of train.py, `BASELINE` first.

    Raises:
      Failed.
    """
    settings = {BASELINE: KINDS[BASELINE]}
    named = [name.strip().replace("_", " ") for name in chosen]
    for name in named:
        if name not in KINDS:
            raise Failed(f"--settings: {name!r} is none of {', '.join(KINDS)}. For one of your own,"
                         f" use {EXAMPLE}")  # fmt: skip
        settings[name] = KINDS[name]
    names = list(named)
    for text in own:
        name, given = own_setting(text)
        names.append(name)
        settings[name] = given
    for name in names:
        alike = [other for other in names if other.casefold() == name.casefold()]
        if len(alike) > 1:  # some systems take folders of such names for one
            raise Failed(f"the setting {name!r} is named twice. Give each a name of its own.")
        if name.casefold() in {*KINDS} - {*named}:
            raise Failed(f"{name!r} is the name of a setting of --settings. Choose another name.")
    if len(settings) == 1:
        raise Failed(f"--settings={BASELINE}: nothing to compare it with. Name another setting.")
    return settings


def own_setting(text):
    """A value of --setting. Returns: its name, and its flags. Raises: Failed."""
    name, _, words = text.partition(":")
    name = name.strip().replace("_", " ")
    try:
        own = flags_in(shlex.split(words))
    except ValueError:  # a quotation mark without its end
        own = {}
    if not own or not re.fullmatch(r"\w[\w .,=+-]*", name):
        raise Failed(
            f"--setting={text}: must be a name of letters and digits, a colon and flags of train.py,"
            f" such as {EXAMPLE}"
        )
    for flag in own:
        if flag in OF_RUNS:
            raise Failed(
                f"--setting={text}: each run gets --{flag} from this program. Leave it out."
            )
        if flag in OF_ALL:
            raise Failed(
                f"--setting={text}: all settings need the same --{flag}. Write it outside of --setting."
            )
    return name, own


def are_alike(one, other):
    """Whether flags of train.py mean the same, such as 1e-3 and 0.001. Args: name -> value or text."""

    def meaning(name, value):
        return os.path.realpath(value) if name == "init_from" else number_in(value)

    one, other = flag_rules.spelled_alike(one), flag_rules.spelled_alike(other)
    return one.keys() == other.keys() and all(
        meaning(name, value) == meaning(name, other[name]) for name, value in one.items()
    )


def number_in(value):
    """The number that a flag's value means, or else the value."""
    try:
        words = {"true": 1, "t": 1, "false": 0, "f": 0}
        return float(words.get(str(value).lower(), value))
    except ValueError:
        return value


def go_to_root():
    """Goes to the project's folder, where runs start. FASHION_MNIST_DIR stays the folder that the
    user meant.

    Returns: a function that gives a path as it was meant in the user's folder.
    """
    start = os.getcwd()
    is_there = os.path.samefile(start, ROOT)
    os.chdir(ROOT)

    def meant(path):
        path = os.path.expanduser(path)
        return path if is_there else os.path.join(start, path)

    if os.environ.get(data.FOLDER_VARIABLE):
        os.environ[data.FOLDER_VARIABLE] = meant(os.environ[data.FOLDER_VARIABLE])
    return meant


def words_of(flags_):
    """Flags as words of a command line. Args: name -> value."""
    return [f"--{name}={value}" for name, value in flags_.items()]
