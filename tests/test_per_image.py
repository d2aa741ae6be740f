"""Gains with intervals for new images, of records that keep what was predicted for each image."""

import re

import numpy as np
import pytest

from study import groups, image_tables, intervals, markdown, pages, per_image, runs, tables
from study.groups import Group

IMAGES = 400


def record(seed, right, counts=None):
    """Of five evaluations, of IMAGES images with one task's label and half as many with two."""
    random = np.random.RandomState(seed)
    counts = random.binomial(5, right, IMAGES) if counts is None else counts
    digits = "".join(map(str, counts))
    half = "".join(d if i % 2 else per_image.NO_LABEL for i, d in enumerate(digits))
    known = counts[1::2]
    last = {"a": counts.mean() / 5, "b": known.mean() / 5}
    last["mean"] = (last["a"] + last["b"]) / 2
    return {
        "seed": seed, "correct_last": {"a": digits, "b": half}, "accuracy_test_last": last,
        "curves": {"accuracy_test": [[], [0] * 5]},
    }  # fmt: skip


def group(name, right, seeds=5, first=0):
    return Group(1000, name, {s: record(first + 100 * s, right) for s in range(seeds)})


NONE, MORE = group("none", 0.8), group("channel", 0.84, first=7)


@pytest.mark.parametrize("task", ["a", "b", "mean"])
def test_the_mean_of_the_images_is_the_accuracy_that_the_record_names(task):
    for of in MORE.records.values():
        shares = per_image.shares(of, task)
        assert np.mean(shares) == pytest.approx(groups.accuracy(of, task))
    assert len(per_image.shares(MORE.records[0], "b")) == IMAGES // 2
    gained = groups.gains_of(MORE, NONE, task)
    assert gained.shape == (5, IMAGES // 2 if task == "b" else IMAGES)
    np.testing.assert_allclose(gained.mean(axis=1), list(MORE.gains(NONE, task).values()))


@pytest.mark.parametrize("one_in", [2, 10])
def test_images_without_a_label_add_no_doubt_of_their_own_to_the_mean_of_the_tasks(one_in):
    """Half the sum of two means is never less certain than half the sum of their intervals."""

    def with_few(of):
        digits = of["correct_last"]["a"]
        few = "".join(d if i % one_in == 0 else per_image.NO_LABEL for i, d in enumerate(digits))
        return of | {"correct_last": {"a": digits, "b": few}}

    study = NONE._replace(records={seed: with_few(of) for seed, of in NONE.records.items()})
    half = {
        task: intervals.estimate(per_image.values(study, task)).half_width
        for task in ("a", "b", "mean")
    }
    assert half["mean"] < 1.05 * (half["a"] + half["b"]) / 2


def test_a_table_has_the_interval_for_new_images_and_in_brackets_that_over_seeds():
    gained = groups.gains_of(MORE, NONE, "a")
    new, seeds = intervals.estimate(gained).half_width, groups.half_width(list(gained.mean(axis=1)))
    expected = f"+{100 * gained.mean():.2f} ± {100 * new:.2f} ({100 * seeds:.2f})"
    assert tables.gain_cell(MORE, NONE, "a") == expected and new > seeds
    assert groups.p_value(gained) == intervals.estimate(gained).p
    corrected = groups.corrected({"one": gained, "other": gained})
    assert corrected["one"] == pytest.approx(min(1, 2 * intervals.estimate(gained).p))


def test_one_record_without_predictions_leaves_the_interval_over_seeds():
    older = {**MORE.records[2], "correct_last": None}
    gained = groups.gains_of(MORE._replace(records={**MORE.records, 2: older}), NONE, "a")
    assert np.shape(gained) == (5,)
    assert re.fullmatch(r"\+\d\.\d\d ± \d\.\d\d", markdown.interval(gained, "+"))


def test_two_seeds_have_no_interval():
    few = [g.of_seeds({0, 1}) for g in (MORE, NONE)]
    assert re.fullmatch(r"\+\d\.\d\d", tables.gain_cell(*few, "a"))


@pytest.mark.parametrize("figure", ["0.10 ± 0.15 (0.04)", "0.10 ± 0.15 (0.04) (5 seeds)",
                                    "0.60 (0.56, 0.65)", "0.10 ± 0.04 (5 seeds)", "8 of 8"])  # fmt: skip
def test_a_figure_with_both_intervals_can_stand_in_a_sentence(figure):
    assert re.fullmatch(pages.FIGURE, figure)


# --- Single images ---


def test_images_that_changed_are_counted_for_each_exchange_of_signs():
    # The first image is gained by both seeds, the second by one and lost by the other, and the
    # third is gained by one seed in three of five evaluations.
    values = np.array([[1.0, 1.0, 0.6], [1.0, -1.0, 0.0]])
    assert per_image.of_exchanges(values).tolist() == [1, 1, 1, 1]
    values[1, 2] = 0.4  # now half, in the mean
    assert per_image.of_exchanges(values).tolist() == [2, 1, 1, 2]


def gaining(at, share):
    """Groups of eight seeds: without units no image is right; with layer units, `at` are in this
    share of the evaluations, and with nddr units in none."""
    counts = np.zeros(IMAGES, int)
    none = {seed: record(seed, 0, counts) for seed in range(8)}
    layer = {seed: record(seed, 0, np.where(at, round(5 * share), 0)) for seed in range(8)}
    return [Group(1000, n, of) for n, of in (("none", none), ("layer", layer), ("nddr", none))]


CONTROLLED = runs.Study({}, {}, range(8), controls={"layer": "layer own only"})


def test_a_table_counts_the_images_that_the_best_kind_changed():
    none, layer, nddr = gaining(np.arange(IMAGES) < 30, 0.6)
    of_seeds = nddr.records | {0: layer.records[0]}  # seven seeds differ
    own_only = nddr._replace(setting="layer own only", records=of_seeds)
    table = image_tables.changed_table([none, layer, own_only], CONTROLLED)
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    assert [row[:5] for row in rows] == [
        ["layer over none", "a", "8", "30", "0"],
        ["layer over none", "b", "8", "15", "0"],
        ["layer over layer own only", "a", "8", "30", "0"],
        ["layer over layer own only", "b", "8", "15", "0"],
    ]
    # Over none, one seed exchanged leaves 6 / 8 of 0.6, less than half: 2 of 256 ways. Over the
    # other, exchanging the seed without a difference changes nothing: 4 ways of 256.
    assert [row[5] for row in rows[:2]] == ["0.00", "0.00"]
    assert [row[6] for row in rows] == ["0.031"] * 4  # 4 * 2 / 256, and 2 * 4 / 256


def test_with_few_seeds_no_p_value_of_exchanges_could_be_small():
    study = [g.of_seeds(range(5)) for g in gaining(np.arange(IMAGES) < 30, 0.6)]
    row = image_tables.changed_table(study, CONTROLLED).splitlines()[2].split(" | ")
    assert row[3:] == ["30", "0", "0.00", "– |"]


def test_a_table_says_how_many_images_would_show_a_gain_of_a_tenth():
    none, more, _ = gaining(np.arange(IMAGES) < 30, 0.6)
    study = [none, more._replace(setting="channel")]
    of_a, of_b, of_mean = (
        line.split(" | ") for line in image_tables.needed_table(study, None).splitlines()[2:]
    )
    gained = groups.gains_of(study[1], none, "a")
    # The seeds agree in all, so only images vary: 2.365 and 0.896 are t of seven degrees.
    expected = np.var(gained[0], ddof=1) * np.square((2.365 + 0.896) / 0.001)
    estimated, at_most = of_a[5].split(" ")
    assert estimated == at_most.strip("()")
    assert float(estimated.replace(",", "")) == pytest.approx(expected, rel=0.05)
    assert of_a[2] == "0.00 (0.00)" and of_a[4] == "0.00"
    assert of_a[0] == "| a" and of_b[0] == "| b" and of_mean[0] == "| mean"


def test_records_without_predictions_have_no_table_of_images():
    older = [
        group._replace(records={s: {**r, "correct_last": None} for s, r in group.records.items()})
        for group in gaining(np.arange(IMAGES) < 30, 0.6)
    ]
    assert image_tables.needed_table(older, None) is None
    assert image_tables.changed_table(older, None) is None


def test_a_table_with_two_intervals_leaves_out_what_is_gained_over_the_second_baseline():
    study = gaining(np.arange(IMAGES) < 30, 0.6)
    header = tables.accuracy_table(study, ["none", "layer"]).splitlines()[0]
    assert header == "| setting | seeds | a | b | mean |"
