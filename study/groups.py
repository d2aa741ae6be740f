"""What records have to say: accuracies over seeds, gains over a baseline, intervals, p-values.

Values of seeds, [S], may have a second dimension, [S, N], of the test images: records since
numerics 2 keep what was predicted for each. Then intervals and p-values are for new seeds and
new images, and for new seeds and these images otherwise.

A `Group` holds the records of one setting, a study is a list of groups in the order of tables.
All accuracies and recalls are shares of 1.
"""

import typing

import numpy as np
import scipy.stats

from harness.names import LAST_EVALUATIONS
from study import intervals, per_image, runs

SEEDS_OF_AN_INTERVAL = 3  # with fewer, a table has differences and no interval
SEEDS_OF_A_PAGE = 5  # with fewer, a page does not show a setting
SIGNIFICANCE = 0.05  # of all comparisons that are made together
# Of sharing, with default settings; in the order of tables.
KINDS = ("none", "channel", "layer", "nddr", "hard sharing", "dense")
# Of the ten ranks of a starved run, 0 being the article with the most images.
RANKS = {"commonest": slice(0, 3), "between": slice(3, 7), "rarest": slice(7, 10)}


class Group(typing.NamedTuple):
    """The runs of one setting, which differ in their seeds."""

    condition: float  # the number of training images; in the replication, batch norm's decay
    setting: str  # its name without them
    records: dict  # seed -> record of a run that ended, sorted by seed
    diverged: int = 0  # how many runs did not end

    def accuracies(self, task="mean"):
        """Each run's accuracy, a list."""
        return [accuracy(record, task) for record in self.records.values()]

    def gains(self, baseline, task="mean", **of):
        """Differences from runs of the same seed. Args: of, as `accuracy` takes them.

        Returns: seed -> gain, for seeds that both have.
        """
        return {
            seed: accuracy(self.records[seed], task, **of) - accuracy(other, task, **of)
            for seed, other in baseline.records.items()
            if seed in self.records
        }

    def of_seeds(self, seeds):
        """The group with these seeds only."""
        records = {seed: record for seed, record in self.records.items() if seed in seeds}
        return self._replace(records=records)


def accuracy(record, task, end=None, count=LAST_EVALUATIONS):
    """A run's mean accuracy in its last `count` evaluations, or in as many up to `end`.

    `task` may be "group_by_article", too.
    """
    is_recorded = end is None and count == LAST_EVALUATIONS
    if is_recorded and task in record["accuracy_test_last"]:
        return record["accuracy_test_last"][task]
    tag = "accuracy_test" if task == "mean" else f"accuracy_test_{task}"
    return float(np.mean(record["curves"][tag][1][:end][-count:]))


def find(study, setting, condition=None):
    """The group of a setting in a list of groups; an empty one if there is none."""
    for group in study:
        if group.setting == setting and condition in (None, group.condition):
            return group
    return Group(condition, setting, {})


def baseline_of(study, group, setting="none"):
    """The group that another one is compared with."""
    return find(study, setting, group.condition)


def records_of(study):
    """All records of a list of groups."""
    return [record for group in study for record in group.records.values()]


def tasks_of(study):
    """The tasks' names and "mean"."""
    return list(records_of(study)[0]["accuracy_test_last"])


def seeds_of(study):
    return {seed for group in study for seed in group.records}


def shown(name, studies):
    """The groups that a study's tables and pictures show, those that it borrows first."""
    definition, own = runs.STUDIES[name], studies.get(name, [])
    images, seeds = {group.condition for group in own}, seeds_of(own)
    borrowed = [
        group.of_seeds(seeds)
        for other, settings in definition.borrowed.items()
        for group in studies.get(other, [])
        if group.setting in settings and group.condition in images
    ]
    return [*borrowed, *(group for group in own if group.setting not in definition.hidden)]


def with_seeds(studies, fewest):
    """The studies without the settings that have fewer seeds."""
    return {
        name: [group for group in study if len(group.records) >= fewest]
        for name, study in studies.items()
    }


# --- Statistics ---


def gains_of(group, baseline, task="mean"):
    """What each seed gains over the baseline's run of the same seed. Returns: [S] or [S, N]."""
    seeds = [seed for seed in group.records if seed in baseline.records]
    if has_predictions([group.of_seeds(seeds), baseline.of_seeds(seeds)], task):
        return per_image.differences(group, baseline, task)
    return list(group.gains(baseline, task).values())


def levels_of(group, task="mean"):
    """Each run's accuracy. Returns: [S] or [S, N]."""
    if has_predictions([group], task):
        return per_image.values(group, task)
    return group.accuracies(task)


def has_predictions(study, task):
    """Whether all records of these groups keep what was predicted for each image."""
    found = records_of(study)
    return bool(found) and all(
        r.get("correct_last") and task in {*r["correct_last"], per_image.MEAN} for r in found
    )


def is_enough(gains):
    """Whether there are enough seeds for an interval and a p-value. Args: a sequence, one each."""
    return len(gains) >= SEEDS_OF_AN_INTERVAL


def half_width_for_new_images(values):
    """As `half_width`, for new seeds and new images. Args: [S, N]."""
    return float(intervals.estimate(values).half_width) if is_enough(values) else float("nan")


def half_width(values):
    """Half of the 95 % confidence interval of the mean, for new seeds and these images, by
    Student's t; nan for few seeds. Args: [S] or [S, N]."""
    if not is_enough(values):
        return float("nan")
    values = np.reshape(values, (len(values), -1)).mean(axis=1)
    return scipy.stats.t.ppf(0.975, len(values) - 1) * scipy.stats.sem(values)


def prediction_limits(values):
    """Between which limits another value like these lies with 95 % probability."""
    half = half_width(values) * np.sqrt(len(values) + 1)
    return np.mean(values) - half, np.mean(values) + half


def p_value(gained):
    """Of a t-test that the mean of these gains is not 0; 1 if they are all the same.

    Args: [S] or [S, N].
    """
    if np.ndim(gained) == 2:
        return float(intervals.estimate(gained).p)
    # Equal gains differ by rounding, as they are differences of accuracies.
    return 1.0 if np.ptp(gained) < 1e-9 else float(scipy.stats.ttest_1samp(gained, 0).pvalue)


def holm(probabilities):
    """Holm's correction. Returns: for each p-value, the one over all comparisons together."""
    probabilities = np.asarray(probabilities)
    order = np.argsort(probabilities)
    factors = np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(1, np.maximum.accumulate(factors * probabilities[order]))
    return corrected


def corrected(compared):
    """P-values of comparisons, corrected after Holm. Args: key -> gains. Returns: key -> p."""
    p_values = holm([p_value(gained) for gained in compared.values()])
    return dict(zip(compared, map(float, p_values)))


# --- Starved runs ---


def by_rank(record, measure):
    """A measure of each article in a starved run, the article with the most images first."""
    articles = sorted(record["ranks"], key=record["ranks"].get)
    return np.array([record[measure]["article"][article] for article in articles])


def gains_by_rank(group, none, measure):
    """What each rank gains over the run without units of the same seed. Returns: [seeds, 10]."""
    gained = [
        by_rank(record, measure) - by_rank(none.records[seed], measure)
        for seed, record in group.records.items()
        if seed in none.records
    ]
    return np.reshape(gained, (-1, 10))


def starved_measures(record):
    """What is compared of a starved run: the recall and F1 of each third of the ranks, the
    difference of the first and the last, and the accuracies. Returns: name -> share of 1."""
    measures = {}
    for measure in ("recall", "F1"):
        values = by_rank(record, f"{measure.lower()}_last")
        means = {name: values[ranks].mean() for name, ranks in RANKS.items()}
        means["rarest - commonest"] = means["rarest"] - means["commonest"]
        measures |= {f"{measure}, {name}": float(mean) for name, mean in means.items()}
    return measures | {f"accuracy, {task}": accuracy(record, task) for task in ("article", "group")}


def starved_comparisons(study):
    """What starved runs gain over those without units.

    Returns:
      (measure, setting) -> the gain of each seed.
    """
    levels = {g.setting: {s: starved_measures(r) for s, r in g.records.items()} for g in study}
    none = levels.pop("none", {})
    return {
        (name, setting): [of[seed][name] - none[seed][name] for seed in of if seed in none]
        for setting, of in levels.items()
        for name in next(iter(of.values()))
    }
