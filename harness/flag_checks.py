"""Which values train.py's flags may have, alone, together, and with the data.

Everywhere here, `flags` is name -> value, and `given` the names of the flags on the command line.
"""

import ctypes
import functools
import os
import warnings

from harness import process
from harness.errors import Failed
from harness.flag_rules import label_only, words_of
from harness.names import PLACES

# Rates and scales lie between these: float32 holds their squares and their product, too.
SMALLEST, LARGEST = 1e-18, 1e18


def check(flags, given, known_tasks):
    """Checks what absl does not. The error names both of two flags that conflict.

    Args:
      flags, given: as everywhere here.
      known_tasks: names of tasks, for a message.

    Raises:
      Failed.
    """
    check_alone(flags, known_tasks)
    check_together(flags, given)


def refuse(flags, is_wrong, names, message):
    """Raises: Failed, if something is wrong: the flags of these names, and why."""
    if is_wrong:
        values = " ".join(f"--{name}={flags[name]}" for name in names.split())
        raise Failed(f"{values}: {message}")


def check_alone(flags, known_tasks):
    """Checks each flag's value. Args and raises: as `check`."""
    refuse_if = functools.partial(refuse, flags)
    tasks, places = words_of(flags["tasks"]), words_of(flags["cross_stitch_at"])
    known = ", ".join(known_tasks)
    in_lower_case = [task.lower() for task in tasks]  # TensorFlow takes these for the same name
    refuse_if(
        not all(tasks) or len(tasks) > len(set(in_lower_case)),
        "tasks",
        f"must be some of {known}, or names of label files, each once, with commas between",
    )
    # Curves of TensorBoard and evaluations.jsonl: accuracies and, with units, mean weights.
    curves = [*tasks, *(f"{task}_by_article" for task in tasks)]
    curves += [f"{to}_from_{source}" for to in tasks for source in tasks]
    twice = next((name for name in curves if curves.count(name) > 1), None)
    refuse_if(twice, "tasks", f"two curves would have the name {twice}: rename a task")
    refuse_if(
        not set(places) <= set(PLACES) or len(places) > len(set(places)),
        "cross_stitch_at",
        f"must be some of {', '.join(PLACES)}, each once, with commas between",
    )
    # Every comparison with nan is false.
    init = flags["cross_stitch_init"]
    refuse_if(not -10 <= init <= 10, "cross_stitch_init", "must be between -10 and 10")
    refuse_if(not 0 < flags["save_checkpoint_secs"] < float("inf"), "save_checkpoint_secs",
              "must be above 0")  # fmt: skip
    limits = f"must be from {SMALLEST} to {LARGEST}"
    for name in ("cross_stitch_learning_rate_scale", "learning_rate"):
        refuse_if(not SMALLEST <= flags[name] <= LARGEST, name, limits)
    is_scale = flags["l2_scale"] == 0 or SMALLEST <= flags["l2_scale"] <= LARGEST
    refuse_if(not is_scale, "l2_scale", f"{limits}, or 0")
    refuse_if(not SMALLEST <= flags["keep_prob"] <= 1, "keep_prob", "must be above 0 and at most 1")
    decay = flags["batch_norm_decay"]
    refuse_if(not 0 <= decay < 1, "batch_norm_decay", "must be at least 0 and below 1")
    # Such a decay, or one that float32 rounds to 1, would keep the start values for ever.
    refuse_if(
        ctypes.c_float(decay).value == 1, "batch_norm_decay", "is 1 in float32: choose a lower one"
    )
    refuse_if(not 0 <= flags["balance"] <= 1, "balance", "must be between 0 and 1")
    for name in ("data_dir", "logdir", "export_dir"):
        refuse_if(flags[name] == "", name, "must name a folder")
    is_root = flags["export_dir"] and os.path.abspath(flags["export_dir"]) == "/"
    refuse_if(is_root, "export_dir", "must name a folder of its own")
    refuse_if(flags["init_from"] == "", "init_from", "must name the folder of a finished run")
    name = flags["run_name"]
    is_path = name is not None and (not name.strip(".") or "/" in name)
    refuse_if(is_path, "run_name", "must be the name of one folder below --logdir")


def check_together(flags, given):
    """Checks flags against each other. Args and raises: as `check`."""
    refuse_if = functools.partial(refuse, flags)
    one = "leave out one of the two"
    refuse_if(
        flags["dataset"] == "synthetic" and flags["data_dir"],
        "dataset data_dir",
        f"synthetic images are drawn, not read from a folder: {one}",
    )
    refuse_if(
        flags["starve"] > 1 and flags["train_examples"],
        "starve train_examples",
        f"each of the two chooses the training images: {one}",
    )
    refuse_if(
        flags["starve"] > 1 and flags["label_only"],
        "starve label_only",
        f"each of the two leaves articles with few labels: {one}",
    )
    refuse_if(
        flags["device"] == "gpu" and flags["threads"],
        "device threads",
        f"--threads are those of the CPU: {one}",
    )
    refuse_if(
        flags["device"] == "gpu" and flags["precision"] == "bfloat16" and not flags["eval_only"],
        "device precision",
        f"bfloat16 is for CPUs: {one}",
    )
    refuse_if(
        flags["overwrite"] and flags["eval_only"],
        "overwrite eval_only",
        f"--overwrite deletes what --eval_only is to evaluate: {one}",
    )
    # Without --tasks, the data decides which there are.
    unknown = label_only(flags).keys() - set(words_of(flags["tasks"]))
    refuse_if(
        "tasks" in given and unknown,
        "label_only tasks",
        f"{', '.join(sorted(unknown))} is none of the tasks",
    )
    one_tower, shared = PLACES[-1], flags["share_until"]
    refuse_if(
        flags["hard_sharing"] and shared not in (None, one_tower),
        "hard_sharing share_until",
        f"hard sharing is --share_until={one_tower}: {one}",
    )
    asks_for_units = "cross_stitch" in given and flags["cross_stitch"]
    no_units = f"hard sharing has one tower and so no units: {one}"
    refuse_if(asks_for_units and flags["hard_sharing"], "hard_sharing cross_stitch", no_units)
    refuse_if(asks_for_units and shared == one_tower, "share_until cross_stitch", no_units)
    within = PLACES[: PLACES.index(shared) + 1] if shared else ()
    refuse_if(
        "cross_stitch_at" in given and set(words_of(flags["cross_stitch_at"])) & set(within),
        "share_until cross_stitch_at",
        "--cross_stitch_at must name layers after --share_until",
    )
    refuse_if(
        flags["cross_stitch_own_only"] and flags["cross_stitch_init"] != 1,
        "cross_stitch_own_only cross_stitch_init",
        "units that share nothing need --cross_stitch_init=1",
    )


def check_with_data(flags, given, dataset):
    """Checks what needs the data. Prints how many labels are known if some are not, and warns of
    labels that no batch uses.

    Args:
      flags, given: as everywhere here.
      dataset: a `data.Dataset`.

    Raises:
      Failed: there are too few images.
      DataError: too few images have labels of the same tasks.
    """
    batch_size, num_examples = flags["batch_size"], len(dataset.train.images)
    few = f"there are only {num_examples:,} training images"
    refuse(flags, batch_size > num_examples, "batch_size", few)
    for which, split in dataset.splits().items():
        known, all_images = dataset.number_of_labels(split), len(split.images)
        if min(known.values()) < all_images:
            counts = ", ".join(f"{task} {count:,}" for task, count in known.items())
            named = "held-out" if which == "test" and flags["holdout"] else which
            process.say(f"Known labels of the {all_images:,} {named} images: {counts}.")
    unused = dataset.unused_labels(batch_size)
    if unused:
        counts = ", ".join(f"{count:,} of {task}" for task, count in unused.items())
        warnings.warn(
            f"labels that are not used, because fewer than --batch_size={batch_size} images"
            f" have labels of the same tasks: {counts}"
        )
    if "balance" in given and not dataset.has_unknown_labels():
        warnings.warn("ignored, because all training labels are known: --balance")


def warn_of_single_image(flags, dataset):
    """Warns if an epoch ends with a batch of one image, of which batch norm makes a constant.

    Args: as `check_with_data`.
    """
    left = len(dataset.train.images) % flags["batch_size"]
    if left == 1 and not dataset.has_unknown_labels():
        warnings.warn(
            "the last batch of each epoch has one image, and batch norm needs several: choose"
            f" another --batch_size than {flags['batch_size']}"
        )
