"""What the settings of a comparison of study.compare gain, for new seeds and new images."""

import typing

import numpy as np

from study import groups, markdown
from study.groups import SIGNIFICANCE
from study.per_image import MEAN, differences


class Gain(typing.NamedTuple):
    """What a setting gains over the baseline on a task, in shares of 1."""

    setting: str
    task: str  # or MEAN
    seeds: int  # that both have
    images: int
    mean: float
    half_width: float  # for new seeds and new images; nan with too few seeds
    half_width_of_seeds: float  # for new seeds and these images
    p: float  # for new seeds and new images, corrected after Holm; nan with too few seeds

    @property
    def is_significant(self):
        return self.p < SIGNIFICANCE

    def text(self):
        """For example "layer, kind, +0.31 ± 0.44 points"."""
        return f"{self.setting}, {name_of(self.task)}, {points(self.mean, self.half_width)} points"


def tasks_of(study):
    """The names of the tasks, and MEAN."""
    return [*groups.records_of(study)[0]["correct_last"], MEAN]


def estimated(values):
    """Args: [S, N]. Returns: mean, both half widths and p, nan with too few seeds."""
    mean = float(np.mean(values)) if len(values) else np.nan
    if not groups.is_enough(values):
        return mean, np.nan, np.nan, np.nan
    for_new_images = groups.half_width_for_new_images(values)
    return mean, for_new_images, groups.half_width(values), groups.p_value(values)


def gains_of(study):
    """All gains, whose p-values are corrected together. Returns: a list of `Gain`."""
    baseline, *others = study
    found = []
    for group in others:
        for task in tasks_of(study):
            values = differences(group, baseline, task)
            images = values.shape[1] if len(values) else 0
            found.append(Gain(group.setting, task, len(values), images, *estimated(values)))
    tested = [gain for gain in found if not np.isnan(gain.p)]
    corrected = iter(groups.holm([gain.p for gain in tested]).tolist())
    return [gain if np.isnan(gain.p) else gain._replace(p=next(corrected)) for gain in found]


def name_of(task):
    return "the mean of the tasks" if task == MEAN else task


def points(share, half_width, sign="+"):
    """For example +0.31 ± 0.44, in percent."""
    half = "" if np.isnan(half_width) else f" ± {100 * half_width:.2f}"
    return "–" if np.isnan(share) else markdown.number(100 * share, sign) + half
