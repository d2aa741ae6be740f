"""The pictures of the study, from groups of records.

Which pictures a study has, its entry in `runs.STUDIES` says, by their names in PICTURES.
"""

import functools

import numpy as np

from harness import matrices
from harness.errors import Failed
from harness.matrices import figure, matplotlib
from harness.names import PLACES, unit_scope
from harness.unit_weights import WEIGHT_BINS
from study import groups, image_pictures, plot, runs
from study.groups import baseline_of, find, gains_of, half_width, half_width_for_new_images

COLOURS = {"none": "tab:orange", "channel": "tab:blue", "layer": "tab:green"}
COLOURS |= {"nddr": "tab:olive", "hard sharing": "tab:red", "dense": "tab:purple"}
COLOURS |= {"start 0.7": "tab:brown", "rate x1000": "tab:pink"}
LABELS = {"none": "no units", "channel": "channel units", "layer": "layer units"}
LABELS |= {"nddr": "nddr units", "dense": "dense units"}
LABELS |= {"start 0.7": "channel units, start 0.7", "rate x1000": "channel units, rate x1000"}
PLACE_OF = {unit_scope(place): place for place in PLACES}
SMOOTHED_ABOVE = 30  # curves with more points than this are smoothed

PANELS = plot.PANEL | {"figsize": (11, 4.6)}  # side by side
TWO_ROWS = plot.PANEL | {"figsize": (8, 8)}
LEGEND_BELOW = {"loc": "outside lower center", "ncols": 4, "fontsize": 9, "frameon": False}


@matrices.plain_style()
def draw(studies, out):
    """Draws every picture for which there are records.

    Args:
      studies: study -> list of groups, as `records.read_all` returns them.
      out: path of the folder for the pictures.

    Returns:
      The paths of the pictures.
    """
    paths = []
    for name in studies:
        study, definition = groups.shown(name, studies), runs.STUDIES[name]
        beside = [
            (group, baseline_of(studies[other], group))
            for other, settings in definition.beside.items()
            for group in studies.get(other, [])
            if group.setting in settings
        ]
        for file, (kind, *settings) in definition.pictures.items():
            of_first = [g for g in study if g.condition == definition.first_condition]
            chosen = [g for g in of_first if g.setting in settings] if settings else study
            if chosen and {group.setting for group in chosen} >= set(settings):
                paths.append(PICTURES[kind](chosen, out / file, beside))
    return [path for path in paths if path]


def label_of(setting):
    """What a picture's legend calls a setting."""
    return LABELS.get(setting, setting)


def colour_of(setting):
    """A setting of the user's own is grey."""
    return COLOURS.get(setting, "tab:gray")


def seeds_text(group):
    count = len(group.records)
    return f"{count} seeds" if count > 1 else "1 seed"


def draw_band(axes, group, tag, colour, label, smoothing=0.6):
    """Draws the runs faintly, and the mean and one standard deviation of the smoothed runs, at
    the steps at which all have a value."""
    curves = [record["curves"][tag] for record in group.records.values()]
    for of_run in curves:
        axes.plot(*of_run, color=colour, alpha=0.12, linewidth=0.7)
    steps = sorted(set.intersection(*(set(of_run) for of_run, _ in curves)))
    curves = [[values[of_run.index(step)] for step in steps] for of_run, values in curves]
    if len(steps) <= SMOOTHED_ABOVE:
        smoothing = 0  # over few points, the smoothed curve would lag behind
    smoothed = np.array([plot.smooth(values, smoothing) for values in curves])
    mean = smoothed.mean(axis=0)
    axes.plot(steps, mean, color=colour, linewidth=1.8, label=label)
    if len(curves) > 1:
        deviation = smoothed.std(axis=0, ddof=1)
        axes.fill_between(steps, mean - deviation, mean + deviation, color=colour, alpha=0.2, lw=0)


def draw_points(axes, places, columns, colour, label, **style):
    """Draws the mean of each column of values, and its 95 % interval, in percent: for new images,
    if the values are of images, [S, N]."""

    def half_of(values):
        for_new_images = np.ndim(values) == 2
        return half_width_for_new_images(values) if for_new_images else half_width(values)

    axes.errorbar(
        places,
        [100 * np.mean(values) if len(values) else np.nan for values in columns],
        [100 * half_of(values) for values in columns],
        fmt="o", color=colour, label=label, **style,
    )  # fmt: skip


def draw_curves(scalar, study, path, beside):
    """Draws one scalar over training, for each group.

    Args:
      scalar: which of plot.PICTURES.
      study: list of groups.
      path: the file to write.
      beside: groups of other studies, each with its baseline; only `draw_images` draws them.

    Returns:
      The path, or None if there is nothing to compare.
    """
    _, tag, label, corner, _ = plot.PICTURES[scalar]
    picture = figure.Figure(**plot.PANEL)
    axes = picture.subplots()
    for group in study:
        name = f"{label_of(group.setting)} ({seeds_text(group)})"
        draw_band(axes, group, tag, colour_of(group.setting), name)
    axes.set(xlabel="step", ylabel=label)
    axes.legend(loc=corner, fontsize=9)
    return plot.save(picture, axes, path)


def draw_images(study, path, beside):
    """Draws accuracy of the kinds of sharing, and what each setting gains over none, against the
    number of training images. As `draw_curves`."""
    levels, gained = {}, {}  # setting -> training images -> values of all seeds
    for group, none in (*((group, baseline_of(study, group)) for group in study), *beside):
        of_setting = levels.setdefault(group.setting, {}), gained.setdefault(group.setting, {})
        for columns, values in zip(of_setting, (group.accuracies(), group.gains(none).values())):
            columns.setdefault(group.condition, list(values))
    if len({images for columns in gained.values() for images in columns}) < 2:
        return None
    kinds = [name for name in groups.KINDS if name in levels]
    more = sorted(set(gained) - set(kinds))
    picture = figure.Figure(**TWO_ROWS)
    above, below = picture.subplots(2, 1, sharex=True, height_ratios=[2, 3])

    def draw_setting(axes, name, columns, position):
        """`position` keeps the points of different settings apart."""
        places = np.array(list(columns)) * 1.04 ** (position - 2)
        columns = list(columns.values())
        draw_points(axes, places, columns, colour_of(name), label_of(name), capsize=3)

    for position, name in enumerate([*kinds, *more]):
        if name in kinds:
            draw_setting(above, name, levels[name], position)
        if name != "none":
            draw_setting(below, name, gained[name], position)
    below.axhline(0, color=COLOURS["none"], linewidth=1)
    ticks = sorted({images for columns in gained.values() for images in columns})
    above.set(xscale="log", ylabel="test accuracy, mean of the tasks, %")
    below.set_xticks(ticks, [f"{images:,}" for images in ticks])
    below.minorticks_off()
    below.set(xlabel="training images", ylabel="gain over no units, points")
    labels = {}  # each once
    for axes in (above, below):
        for handle, label in zip(*axes.get_legend_handles_labels()):
            labels.setdefault(label, handle)
    picture.legend(labels.values(), labels, **LEGEND_BELOW | {"ncols": 3})
    return plot.save(picture, (above, below), path)


def draw_few_labels(task, study, path, beside):
    """Draws a task's accuracy with few labels of it, a line for each setting, and the gains over
    none, against the number of labels. As `draw_curves`."""
    numbers = sorted({group.condition for group in study})
    settings = list(dict.fromkeys(group.setting for group in study))
    picture = figure.Figure(**TWO_ROWS)
    above, below = picture.subplots(2, 1, sharex=True, height_ratios=[2, 3])
    for position, name in enumerate(settings):
        of_setting = [group for group in study if group.setting == name]
        gained = [gains_of(group, baseline_of(study, group), task) for group in of_setting]
        # In order, and not quite at the same place, so that no point hides another.
        places = np.array([numbers.index(group.condition) for group in of_setting])
        places = places + 0.07 * (position - (len(settings) - 1) / 2)
        style = {"capsize": 3, "linestyle": "-", "linewidth": 1}
        columns = [group.accuracies(task) for group in of_setting]
        draw_points(above, places, columns, colour_of(name), label_of(name), **style)
        if name != "none":
            draw_points(below, places, gained, colour_of(name), label_of(name), **style)
    below.axhline(0, color=COLOURS["none"], linewidth=1)
    below.set_xticks(range(len(numbers)), [f"{number:,}" for number in numbers])
    below.set(
        xlim=(-0.5, len(numbers) - 0.5),
        xlabel=f"images with a label of {task}",
        ylabel="gain over no units, points",
    )
    above.set(ylabel=f"test accuracy, {task}, %")
    picture.legend(*above.get_legend_handles_labels(), **LEGEND_BELOW | {"ncols": 3})
    return plot.save(picture, (above, below), path)


def draw_weights(study, path, beside):
    """Draws the units' mean weights over training, a panel for each unit. As `draw_curves`."""
    group = study[0]
    tags = [tag for tag in next(iter(group.records.values()))["curves"] if "_from_" in tag]
    scopes = sorted({tag.split("/")[0] for tag in tags})
    pairs = sorted({tag.split("/")[1] for tag in tags})
    picture = figure.Figure(**PANELS)
    axes = np.ravel(picture.subplots(1, len(scopes), sharey=True))
    for panel, scope in zip(axes, scopes):
        for pair, colour in zip(pairs, matplotlib.colormaps["tab10"].colors):
            draw_band(panel, group, f"{scope}/{pair}", colour, pair.replace("_", " "), 0)
        panel.set(title=f"{scope}, after {PLACE_OF[scope]}", xlabel="step")
    axes[0].set_ylabel("mean weight")
    units = label_of(group.setting).capitalize()
    picture.suptitle(f"{units}, {group.condition:,} images, {seeds_text(group)}")
    picture.legend(*axes[0].get_legend_handles_labels(), **LEGEND_BELOW)
    return plot.save(picture, axes, path)


def draw_spread_of_weights(study, path, beside):
    """Draws how the weights of the channels are spread at the end, all seeds together. As
    `draw_curves`."""
    group = study[0]
    records, tasks = list(group.records.values()), groups.tasks_of([group])[:-1]
    if {np.ndim(of_unit) for of_unit in records[0]["weights"].values()} != {3}:
        raise Failed(f"{path}: {group.setting} has no weights of channels to draw.")
    counts = {
        scope: sum(np.array(record["weights"][scope]) for record in records)
        for scope in records[0]["weights"]
    }
    picture = figure.Figure(**PANELS)
    axes = np.ravel(picture.subplots(1, len(counts), sharex=True))
    for panel, (scope, of_unit) in zip(axes, counts.items()):
        for i, to in enumerate(tasks):
            for j, source in enumerate(tasks):
                shares = 100 * of_unit[i, j] / of_unit[i, j].sum()
                label = f"{to} from {source}"
                panel.stairs(shares, WEIGHT_BINS, label=label, linewidth=1.5)
        panel.set(title=f"{scope}, after {PLACE_OF[scope]}", xlabel="weight at the end")
    axes[0].set_ylabel("share of the channels, %")
    picture.suptitle(f"{label_of(group.setting).capitalize()}, {seeds_text(group)} together")
    picture.legend(*axes[0].get_legend_handles_labels(), **LEGEND_BELOW)
    return plot.save(picture, axes, path)


def draw_places(study, path, beside):
    """Draws the gain over none of units at one place, and of shared layers, by place. As
    `draw_curves`."""
    none = find(study, "none")
    if not none.records:
        return None
    picture = figure.Figure(**plot.PANEL)
    axes = picture.subplots()
    rows = [
        (LABELS[kind], COLOURS[kind], [*(f"{kind} at {place}" for place in PLACES), kind])
        for kind in ("channel", "layer")
    ]
    shared = [f"shared until {place}" for place in PLACES[:-1]]
    rows.append(("layers shared until here", COLOURS["hard sharing"], [*shared, "hard sharing"]))
    for offset, (label, colour, settings) in enumerate(rows):
        columns = [list(find(study, name).gains(none).values()) for name in settings]
        places = np.arange(len(settings)) + 0.12 * (offset - 1)
        draw_points(axes, places, columns, colour, label, capsize=3)
    axes.axhline(0, color=COLOURS["none"], linewidth=1)
    ticks = [*PLACES, "all places"]
    axes.set_xticks(range(len(ticks)), ticks)
    axes.set(
        xlim=(-0.4, len(ticks) - 0.6),
        xlabel="place of the unit, or depth of sharing",
        ylabel="gain over no units, points",
    )
    picture.legend(**LEGEND_BELOW)
    return plot.save(picture, axes, path)


def draw_ranks(study, path, beside):
    """Draws the recall without units, and each setting's gain in it, by the article's rank. As
    `draw_curves`."""
    none, others = find(study, "none"), [group for group in study if group.setting != "none"]
    if not none.records:
        return None
    picture = figure.Figure(**TWO_ROWS)
    above, below = picture.subplots(2, 1, sharex=True, height_ratios=[2, 3])
    ranks, style = np.arange(10), {"markersize": 4, "capsize": 2}
    recalls = np.array([groups.by_rank(r, "recall_last") for r in none.records.values()])
    # Each seed has another article at a rank: an interval would end above 100 %.
    above.plot(ranks, 100 * recalls.T, ".", color=COLOURS["none"], alpha=0.4)
    above.plot(ranks, 100 * recalls.mean(axis=0), "o-", color=COLOURS["none"], label=LABELS["none"])
    for position, group in enumerate(others):
        gained = groups.gains_by_rank(group, none, "recall_last")
        if len(gained):
            places = ranks + 0.14 * (position - (len(others) - 1) / 2)
            colour, label = colour_of(group.setting), label_of(group.setting)
            draw_points(below, places, gained.T, colour, label, **style)
    below.axhline(0, color=COLOURS["none"], linewidth=1)
    (first, *_) = none.records.values()
    images = sorted(first["train_images"]["article"].values(), reverse=True)
    below.set_xticks(ranks, [f"{count:,}" for count in images])
    above.set(ylabel="recall, %", ylim=(0, 102))
    below.set(xlabel="training images of the article", ylabel="gain in recall, points")
    handles = above.get_legend_handles_labels()[0] + below.get_legend_handles_labels()[0]
    picture.legend(handles=handles, **LEGEND_BELOW | {"ncols": 3})
    return plot.save(picture, (above, below), path)


# What a picture can show: name in `runs.STUDIES` -> function.
PICTURES = {
    "accuracy": functools.partial(draw_curves, 0),
    "loss": functools.partial(draw_curves, 1),
    "weights over training": draw_weights,
    "weights at the end": draw_spread_of_weights,
    "places": draw_places,
    "images": draw_images,
    "few article labels": functools.partial(draw_few_labels, "article"),
    "ranks": draw_ranks,
    "images whose group gained": functools.partial(image_pictures.draw_gained, "group"),
}
