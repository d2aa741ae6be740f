"""What train.py's flags mean for a run: which can change its result, and which mean the same.

Everywhere here, `flags` is name -> value, and `given` the names of the flags on the command line.
"""

import contextlib
import pathlib
import warnings

from harness.errors import Failed
from harness.names import PLACES, sharing_of

# --- Which can change a run's result ---

# Flags that a resumed run may change, as they change its result by rounding at most.
CHANGEABLE = {"data_dir", "logdir", "run_name", "export_dir", "eval_only"}
CHANGEABLE |= {"overwrite", "save_checkpoint_secs", "keep_checkpoints", "threads"}
LENGTH_OF_RUN = {"num_epochs", "max_steps"}  # which may change, too, but have a place in its name


def has_units(flags):
    """Whether the network has cross-stitch units."""
    return sharing_of(flags) not in ("none", "hard_sharing")


def of_units(flags):
    """The names of flags that matter only for a network with units."""
    return {name for name in flags if name.startswith("cross_stitch_")}


def shaping(flags):
    """Those that can change the run's result: name -> value."""
    ignored = CHANGEABLE | (set() if has_units(flags) else of_units(flags))
    return {name: value for name, value in flags.items() if name not in ignored}


def nearer_to_defaults(flags, defaults):
    """What to do, as a sentence, if a run diverged: which of its rates and scales to change."""
    names = ["learning_rate", "l2_scale", "keep_prob", "batch_norm_decay"]
    if has_units(flags):
        names += ["cross_stitch_learning_rate_scale", "cross_stitch_init"]
    others = [name for name in names if flags[name] != defaults[name]]
    if not others:
        return "Try a lower --learning_rate."
    values = ", ".join(f"--{name}={flags[name]} ({defaults[name]})" for name in others)
    return f"Try values nearer to the defaults, which are in brackets: {values}."


def warn_of_ignored(flags, given):
    """Warns of flags of units if the network has none, and of sharing if there is one task."""
    ignored = sorted(f"--{name}" for name in {*of_units(flags), "cross_stitch"} & given)
    if ignored and not has_units(flags):
        names = ", ".join(ignored)
        warnings.warn(f"ignored, because the network has no cross-stitch units: {names}")
    shares = sorted(f"--{name}" for name in {"hard_sharing", "share_until"} & given)
    is_asked = flags["hard_sharing"] or flags["share_until"]  # `unified` may exchange the two
    if shares and is_asked and "," not in flags["tasks"]:
        warnings.warn(f"ignored, because one task has nothing to share: {', '.join(shares)}")


def label_only(flags):
    """The flag --label_only: task -> number of labels. Raises: Failed."""
    counts = {}
    for word in flags["label_only"].split(",") if flags["label_only"] is not None else []:
        name, _, count = word.strip().rpartition(":")
        is_wrong = not name or name in counts or not count.isdecimal() or not int(count)
        message = "must be tasks with a number of labels each, such as article:1000,group:500"
        if is_wrong:
            raise Failed(f"--label_only={flags['label_only']}: {message}")
        counts[name] = int(count)
    return counts


def label_only_text(counts):
    """The flag's value, which does not depend on the order; None without any task."""
    return ",".join(f"{name}:{counts[name]}" for name in sorted(counts)) or None


# --- Which mean the same ---


def words_of(text):
    """The words of a list with commas between, which may have spaces around them."""
    return [word.strip() for word in text.split(",")]


def spelled_alike(flags):
    """Writes lists and paths in one way, whatever spaces, order or slashes they came with.

    Args:
      flags: all of them, or some.

    Returns:
      All that came in, name -> value.
    """
    flags = dict(flags)
    if flags.get("tasks"):
        flags["tasks"] = ",".join(words_of(flags["tasks"]))
    places = words_of(flags.get("cross_stitch_at") or "")
    if set(places) <= set(PLACES) and len(places) == len(set(places)):  # `check` refuses others
        flags["cross_stitch_at"] = ",".join(sorted(places, key=PLACES.index))
    if flags.get("label_only"):
        with contextlib.suppress(Failed):  # `check` refuses what it is
            flags["label_only"] = label_only_text(label_only(flags))
    if flags.get("init_from"):
        flags["init_from"] = str(pathlib.PurePath(flags["init_from"]))
    return flags


def unified(flags):
    """Gives flags that mean the same network the same values. Args and returns: all flags."""
    flags = spelled_alike(flags)
    if flags["hard_sharing"] or flags["share_until"] == PLACES[-1]:
        flags |= {"hard_sharing": True, "share_until": None, "cross_stitch": False}
    if flags["share_until"] in PLACES and "cross_stitch_at" in flags:
        # Before the towers begin, a place has no unit, named or not.
        places = PLACES[PLACES.index(flags["share_until"]) + 1 :]
        if set(places) <= set(flags["cross_stitch_at"].split(",")):
            flags["cross_stitch_at"] = ",".join(PLACES)
    if "," not in flags["tasks"]:  # one tower has nothing to share
        flags["cross_stitch"] = False
    return flags
