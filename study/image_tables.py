"""The tables of single images: how many would show a gain, and how many answers units change.

As the tables of tables.py, in Markdown, from groups of records; None if the records do not keep
what was predicted for each image.
"""

import numpy as np

from study import groups, intervals, per_image
from study.groups import baseline_of, find
from study.markdown import as_table, interval, number, p_text

SHOWN = 0.001  # the gain that is to be shown, as a share of 1: 0.1 points
SEEDS = (8, 16, 32)
SEEDS_OF_EXCHANGES = 6  # with fewer, p cannot be below 0.05: all exchanged are as none


def gains_of(study, setting, task, baseline="none"):
    """What a setting gains at each image. Returns: [S, N], or None if it is not known."""
    group = find(study, setting)
    gained = groups.gains_of(group, baseline_of(study, group, baseline), task)
    return gained if np.ndim(gained) == 2 and groups.is_enough(gained) else None


def gains_most(study):
    """Which kind of sharing gains most in the mean of the tasks; None if no images are known."""
    kinds = [g.setting for g in study if g.setting in groups.KINDS and g.setting != "none"]
    gained = {kind: gains_of(study, kind, per_image.MEAN) for kind in kinds}
    means = {kind: np.mean(gains) for kind, gains in gained.items() if gains is not None}
    return max(means, key=means.get, default=None)


def needed_table(study, definition):
    """How much the gain of default units varies with the seed and with the image, and how many
    test images would show a gain of SHOWN with so many seeds: by the estimates, and in brackets if
    seeds differ as much as they may. Args and returns: as `tables.gains_table`."""
    rows = []
    for task in groups.tasks_of(study):
        gained = gains_of(study, "channel", task)
        if gained is None:
            return None
        of_one, most = intervals.variances(gained), intervals.most_of_seed(gained)
        row = [task, interval(gained, "+"), f"{deviation(of_one.of_seed)} ({deviation(most)})"]
        row += [deviation(of_one.of_image), deviation(of_one.of_rest)]
        row += [f"{images(of_one, s)} ({images(of_one._replace(of_seed=most), s)})" for s in SEEDS]
        rows.append(row)
    header = ["channel units", "gain", "of a seed", "of an image", "rest"]
    return as_table([*header, *(f"{seeds} seeds" for seeds in SEEDS)], rows)


def deviation(variance):
    """A standard deviation in points."""
    return number(100 * np.sqrt(variance))


def images(of_one, seeds):
    """How many images are needed, to two digits."""
    count = intervals.images_needed(of_one, SHOWN, seeds)
    return "never" if count is None else f"{round(count, min(0, 2 - len(str(count)))):,}"


def changed_table(study, definition):
    """How many images' share of right answers the kind that gains most changes by at least half,
    over none and over the same units that share nothing, against all exchanges of signs over the
    seeds. Args and returns: as `tables.gains_table`."""
    best = gains_most(study)
    if best is None:
        return None
    rows, p_values = [], []
    for baseline in filter(None, ("none", definition.controls.get(best))):
        for task in groups.tasks_of(study)[:-1]:
            gains = gains_of(study, best, task, baseline)
            if gains is None:
                continue
            means = gains.mean(axis=0)
            more, less = (int(np.sum(per_image.is_changed(sign * means))) for sign in (1, -1))
            counts = per_image.of_exchanges(gains)
            by_chance = number(np.mean(counts[1:-1]))  # the first exchanges no seed, the last all
            rows.append([f"{best} over {baseline}", task, len(gains), more, less, by_chance])
            p_values.append(np.mean(counts >= counts[0]))
    shown = ["–"] * len(rows)
    tested = [place for place, row in enumerate(rows) if row[2] >= SEEDS_OF_EXCHANGES]
    for place, p in zip(tested, groups.holm([p_values[place] for place in tested])):
        shown[place] = p_text(p)
    header = ["setting", "task", "seeds", "gained", "lost", "by chance", "p (Holm)"]
    return as_table(header, [[*row, p] for row, p in zip(rows, shown)])
