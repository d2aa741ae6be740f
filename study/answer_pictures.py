"""The pictures of study.compare's page: what each setting gains, and accuracy over training."""

import numpy as np

from harness import matrices
from harness.matrices import figure, matplotlib
from study import groups, pictures, plot
from study.gains import name_of, tasks_of

KEY = "bars: 95 % intervals, not corrected; filled dots: significant after correction"


def colours(names):
    """A colour for each of these names."""
    of_map = matplotlib.colormaps["tab10"].colors
    return {name: of_map[index % len(of_map)] for index, name in enumerate(names)}


@matrices.plain_style()
def draw_gains(gains, path):
    """Draws a dot and a bar for each setting and task, and a line at 0. Returns: the path."""
    settings = list(dict.fromkeys(gain.setting for gain in gains))
    of_tasks = colours(dict.fromkeys(gain.task for gain in gains))
    step = 0.7 / len(of_tasks)
    height = 1.7 + len(settings) * max(0.5, 0.17 * len(of_tasks))
    picture = figure.Figure(**plot.PANEL | {"figsize": (8, height)})
    axes = picture.subplots()
    for position, (task, colour) in enumerate(of_tasks.items()):
        shift = step * (position - (len(of_tasks) - 1) / 2)
        shown = {settings.index(gain.setting) + shift: gain for gain in gains if gain.task == task}
        axes.errorbar(
            [100 * gain.mean for gain in shown.values()], list(shown),
            xerr=[100 * gain.half_width for gain in shown.values()],
            fmt="none", color=colour, capsize=3, label=name_of(task),
        )  # fmt: skip
        for place, gain in shown.items():
            face = colour if gain.is_significant else "white"
            axes.plot(100 * gain.mean, place, "o", color=colour, markerfacecolor=face)
    axes.axvline(0, color="black", linewidth=1)
    axes.set_yticks(range(len(settings)), [name[: matrices.LONGEST] for name in settings])
    axes.set(ylim=(len(settings) - 0.5, -0.5), xlabel="gain over none, points of accuracy")
    picture.legend(**pictures.LEGEND_BELOW, title=KEY, title_fontsize=9)
    return plot.save(picture, axes, path)


@matrices.plain_style()
def draw_accuracies(study, path):
    """Draws the accuracy of each task over training, a panel each. Returns: the path."""
    tasks = tasks_of(study)[:-1]
    width = max(8, 4.2 * len(tasks))  # inches
    picture = figure.Figure(**plot.PANEL | {"figsize": (width, 4.6)})
    panels = np.ravel(picture.subplots(1, len(tasks)))
    shown = [group for group in study if group.records]
    labels = labels_of(shown)
    of_settings = colours(group.setting for group in shown)
    for panel, task in zip(panels, tasks):
        for group in shown:
            colour, label = of_settings[group.setting], labels[group.setting]
            pictures.draw_band(panel, group, f"accuracy_test_{task}", colour, label)
        everything = np.concatenate([
            record["curves"][f"accuracy_test_{task}"][1] for record in groups.records_of(shown)
        ])  # fmt: skip
        panel.set(title=task, xlabel="step", ylim=plot.axis_limits(everything, (12, 0)))
    panels[0].set_ylabel("accuracy")
    # A column needs 0.6 inches, and 0.065 for each letter.
    columns = int(width / (0.6 + 0.065 * max(map(len, labels.values())))) or 1
    legend_below = pictures.LEGEND_BELOW | {"ncols": columns}
    picture.legend(*panels[0].get_legend_handles_labels(), **legend_below)
    return plot.save(picture, panels, path)


def labels_of(study):
    """What the legend calls each setting: with its seeds, if not all have as many."""
    counts = {len(group.records) for group in study}
    return {
        group.setting: group.setting[: matrices.LONGEST]
        + (f" ({pictures.seeds_text(group)})" if len(counts) > 1 else "")
        for group in study
    }
