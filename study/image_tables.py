"""The tables of single images: how many would show a gain, and how many answers units change.

As the tables of tables.py, in Markdown, from groups of records; None if the records do not keep
what was predicted for each image.
"""

import numpy as np

from study import groups, intervals, per_image
from study.groups import baseline_of
from study.markdown import as_table, interval, number, p_text

SHOWN = 0.001  # the gain that is to be shown, as a share of 1: 0.1 points
SEEDS = (8, 16, 32)


def gains_of_kinds(study):
    """What the kinds of sharing gain at each image, in the mean of the tasks. Returns: group's
    setting -> [S, N]."""
    gained = {
        group.setting: groups.gains_of(group, baseline_of(study, group))
        for group in study
        if group.setting in groups.KINDS and group.setting != "none"
    }
    return {name: of for name, of in gained.items() if np.ndim(of) == 2 and groups.is_enough(of)}


def needed_table(study, definition):
    """How much a gain varies with the seed and with the image, and how many test images would
    show a gain of SHOWN with so many seeds. Args and returns: as `tables.gains_table`."""
    rows = []
    for setting, gained in gains_of_kinds(study).items():
        of_one = intervals.variances(gained)
        counts = [intervals.images_needed(of_one, SHOWN, seeds) for seeds in SEEDS]
        rows.append([
            setting, interval(gained, "+"), *(number(100 * np.sqrt(part)) for part in of_one),
            *("none would" if count is None else f"{rounded(count):,}" for count in counts),
        ])  # fmt: skip
    header = ["setting", "gain", "of a seed", "of an image", "rest"]
    return as_table([*header, *(f"{seeds} seeds" for seeds in SEEDS)], rows) if rows else None


def rounded(count):
    """To two digits: a variance from a few seeds does not say more."""
    digits = max(0, len(str(count)) - 2)
    return round(count, -digits)


def changed_table(study, definition):
    """How many images' share of right answers the kind that gains most changes by at least half,
    against all exchanges of signs over the seeds. Args and returns: as `tables.gains_table`."""
    gained = gains_of_kinds(study)
    if not gained:
        return None
    best = max(gained, key=lambda name: np.mean(gained[name]))
    group, rows = groups.find(study, best), []
    for task in groups.tasks_of(study):
        if task != per_image.MEAN:
            of_task = groups.gains_of(group, baseline_of(study, group), task)
            counts = per_image.changed(of_task)
            means = of_task.mean(axis=0)
            more, less = (int(np.sum(sign * means > 0.5 - 1e-9)) for sign in (1, -1))
            by_chance = number(np.mean(counts[1:-1]))  # the last exchanges all
            p = p_text(np.mean(counts >= counts[0]))
            rows.append([best, task, len(of_task), more, less, by_chance, p])
    header = ["setting", "task", "seeds", "gained", "lost", "by chance, together", "p"]
    return as_table(header, rows)
