"""The study: its records, the tables and pictures made from them, and making them again."""

import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import threading
import time
import types

import filelock
import numpy as np
import PIL.Image
import pytest
from conftest import ROOT, SECONDS, command_of, has_fashion_mnist, run_script

import data
from harness import evaluation_log, processor
from harness.errors import Failed
from harness.names import PLACES
from study import (
    groups,
    image_pictures,
    machines,
    making,
    markdown,
    pages,
    pictures,
    plot,
    records,
    repetition,
    replication,
    reproduce,
    running,
    runs,
    starved_table,
    tables,
)
from study.groups import Group

RECORDS_FOLDER = ROOT / "study" / "records"
FOUND = reproduce.read_all(RECORDS_FOLDER, groups.SEEDS_OF_A_PAGE)
STUDIES, REPLICATED, TABLES = FOUND
PAGE = ROOT / "study" / "README.md"


def made_record(seed, article, group):
    means = {"article": article, "group": group, "mean": (article + group) / 2}
    points = [[1, 2, 3], [0.0, group + 0.01, group + 0.03]]
    return {"seed": seed, "accuracy_test_last": means, "versions": {"tensorflow": "2.21.0"},
            "machine": {"processor": "AMD EPYC", "threads": 1}, "cross_stitch": {},
            "curves": {"accuracy_test_group_by_article": points}}  # fmt: skip


def made_groups(**settings):
    """A study's groups on 1,000 images: setting -> seed -> accuracies of article and group."""
    return [
        Group(1000, name, {seed: made_record(seed, *shares) for seed, shares in by_seed.items()})
        for name, by_seed in settings.items()
    ]


def rows_of(table):
    return [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in table.splitlines()
        if line.startswith("|")
    ]


def cells(table, setting):
    """The cells of a setting's row, by the column's title."""
    rows = rows_of(table)
    (row,) = [row for row in rows if setting in row[:2]]  # the condition may stand before it
    return dict(zip(rows[0], row))


# --- Tables ---


def test_a_row_is_the_mean_over_seeds_with_students_interval():
    study = made_groups(none={0: (0.7, 0.9), 1: (0.8, 0.9), 2: (0.9, 0.9)})
    row = cells(tables.accuracy_table(study, ["none"]), "none")
    # Deviation 10, error 10 / sqrt(3), and t is 4.303 for two degrees of freedom.
    assert row["article"] == "80.00 ± 24.84"
    assert row["group"] == "90.00 ± 0.00"
    assert row["mean"] == "85.00 ± 12.42"
    assert row["seeds"] == "3" and "images" not in row  # all rows have as many


def test_a_table_of_several_numbers_of_images_names_them_in_its_rows():
    of_more = [g._replace(condition=3000) for g in made_groups(channel={0: (0.8, 0.8)})]
    table = tables.accuracy_table([*made_groups(none={0: (0.7, 0.7)}), *of_more], ["none"])
    assert cells(table, "none")["images"] == "1,000"
    assert cells(table, "channel")["images"] == "3,000"


def test_gains_compare_runs_of_one_seed():
    study = made_groups(
        none={0: (0.7, 0.7), 1: (0.9, 0.9), 2: (0.1, 0.1), 4: (0.5, 0.5)},
        channel={0: (0.71, 0.71), 1: (0.93, 0.93), 3: (1.0, 1.0), 4: (0.52, 0.52)},
    )
    # 1, 3 and 2 points, of the three seeds that both have, however different the seeds are.
    row = cells(tables.accuracy_table(study, ["none"]), "channel")
    assert row["article"] == row["group"] == row["mean"] == "+2.00 ± 2.48 (3 seeds)"


def test_the_gain_over_a_second_baseline_has_a_column():
    study = made_groups(none={0: (0.7, 0.7)}, channel={0: (0.8, 0.8)}, layer={0: (0.9, 0.9)})
    row = cells(tables.accuracy_table(study, ["none", "channel"]), "layer")
    assert row["article"] == "+20.00" and row["over channel (mean)"] == "+10.00"


def test_fewer_than_three_seeds_have_no_interval_and_a_missing_run_no_figure():
    study = made_groups(none={0: (0.7, 0.7), 3: (0.8, 0.8)}, channel={1: (0.8, 0.8)})
    table = tables.accuracy_table(study, ["none"])
    assert cells(table, "none")["mean"] == "75.00" and cells(table, "channel")["mean"] == "–"


def test_a_run_that_diverged_is_counted_and_not_averaged():
    (none,) = made_groups(none={0: (0.7, 0.7), 1: (0.8, 0.8)})
    row = cells(tables.accuracy_table([none._replace(diverged=1)]), "none")
    assert row["seeds"] == "2, 1 diverged" and row["article"].startswith("75.00")


def test_a_tiny_loss_is_not_written_as_minus_zero():
    study = made_groups(none={0: (0.7, 0.7)}, channel={0: (0.699999, 0.699999)})
    row = cells(tables.accuracy_table(study, ["none"]), "channel")
    assert row["mean"] == "+0.00"


def test_a_page_shows_settings_with_five_seeds(tmp_path):
    few, many = ({seed: (0.7, 0.7) for seed in range(count)} for count in (4, 5))
    for group in made_groups(none=many, channel=few, **{"start 0.9": many}):
        for seed, record in group.records.items():
            path = tmp_path / "levers" / f"{runs.name_of(f'1000 {group.setting}', seed)}.json"
            path.parent.mkdir(exist_ok=True)
            named = {"setting": f"1000 {group.setting}", "command": "", "network": "one"}
            path.write_text(json.dumps({**record, **named}))
    for fewest, shown in {5: ["none", "start 0.9"], 1: ["none", "channel", "start 0.9"]}.items():
        _, _, texts = reproduce.read_all(tmp_path, fewest)
        assert [row[0] for row in rows_of(texts["levers"])[2:]] == shown


def test_records_of_settings_that_no_table_shows_make_no_table():
    """As in a study that was killed after its first run, which lends its towers to another."""
    (lent,) = made_groups(alone_half={0: (0.7, 0.7)})
    texts = tables.all_tables({"levers": [lent._replace(setting="alone half")]})
    assert texts == {}


def test_mean_weights_have_their_lowest_and_highest_seed_and_their_distance():
    group, none = made_groups(layer=dict.fromkeys(range(2), (0.7, 0.7)), none={0: (0.7, 0.7)})
    for record, weight in zip(group.records.values(), (0.8, 0.6)):
        record["cross_stitch"] = {"cross_stitch_1": [[1, 0], [0, weight]]}
        record["distances"] = {"cross_stitch_1": [[0, 0], [0, 1 - weight]]}
    definition = runs.STUDIES["few_article_labels"]
    of_fewer_labels = group._replace(condition=300)  # the page tells of the units with 1,000
    _, _, row = rows_of(tables.units_table([of_fewer_labels, none, group], definition))
    still = ["1.00 (1.00, 1.00)", "0.00 (0.00, 0.00)", "0.00 (0.00, 0.00)"]
    # Of four weights one moved by 0.2 and 0.4: the root mean squares are 0.1 and 0.2.
    assert row == ["layer", "1", *still, "0.70 (0.60, 0.80)", "0.15"]
    for record in group.records.values():  # weights that cannot leave 0
        record["flags"] = {"cross_stitch_own_only": True}
    _, _, row = rows_of(tables.units_table([none, group], definition))
    assert row[2:6] == ["1.00 (1.00, 1.00)", "0", "0", "0.70 (0.60, 0.80)"]


def test_a_picture_of_single_settings_shows_the_first_condition(monkeypatch, tmp_path):
    (group,) = made_groups(**{"start 0.7": {0: (0.7, 0.9)}})
    drawn = []
    monkeypatch.setitem(pictures.PICTURES, "weights at the end", lambda *given: drawn.append(given))
    monkeypatch.setitem(pictures.PICTURES, "few article labels", lambda *given: drawn.append(given))
    study = [group._replace(condition=300), group]
    pictures.draw({"few_article_labels": study}, tmp_path)
    assert [[g.condition for g in shown] for shown, *_ in drawn] == [[300, 1000], [1000]]


def test_p_values_are_corrected_as_holm_says():
    # The smallest times three, the next times two, and none below the one before it.
    np.testing.assert_allclose(groups.holm(np.array([0.04, 0.01, 0.03])), [0.06, 0.03, 0.06])
    np.testing.assert_allclose(groups.holm(np.array([0.9, 0.6])), [1, 1])


def test_equal_gains_have_no_p_value_whatever_their_rounding():
    none = [0.742, 0.105, 0.31, 0.031, 0.849]
    gains = [(share + 0.005) - share for share in none]
    assert len(set(gains)) > 1 and groups.p_value(gains) == 1


def of_all_images(study):
    return [group._replace(condition=runs.ALL_IMAGES) for group in study]


def test_the_gains_of_all_studies_are_corrected_together():
    none, channel = of_all_images(made_groups(
        none=dict.fromkeys(range(3), (0.7, 0.7)),
        channel={0: (0.71, 0.71), 1: (0.72, 0.72), 2: (0.73, 0.73)},
    ))  # fmt: skip
    steady = {0: (0.79999, 0.8), 1: (0.8, 0.8), 2: (0.80001, 0.8)}
    layer, own_only = of_all_images(made_groups(layer=steady, **{"channel own only": steady}))
    studies = {
        "full": [none, channel, layer, own_only],  # whose control is not compared with channel
        "where": [channel],
        "starved": [none],
        "fast_units": [none, layer],  # a question of its own
        "few_group_labels": [none, layer],  # a table that corrects its own p-values
    }
    over_none, over_channel = tables.comparisons_text(studies).split("\n\n")
    # Channel's p is 0.074: gains of 1, 2 and 3 points are 3.46 standard errors. It is there
    # twice, so Holm doubles it.
    left = "layer, 60,000 images for 5 epochs (+10.00, p < 0.001)"
    left = f"{left}; {left.replace('layer', 'channel own only')}"
    following = "Next: channel, 60,000 images for 5 epochs (+2.00, p = 0.148)."
    line = f"Of 4 differences from none, 2 have p < 0.05 after Holm: {left}. {following}"
    assert over_none == line
    # Of 9, 8 and 7 points: t is 13.86, and p is 1 - t / √(t² + 2) for two degrees of freedom.
    left = "layer, 60,000 images for 5 epochs (+8.00, p = 0.005)"
    assert over_channel == f"Of 1 differences from channel, 1 have p < 0.05 after Holm: {left}."


def test_units_are_compared_with_the_same_units_that_share_nothing():
    study = of_all_images(made_groups(**{
        "none": dict.fromkeys(range(3), (0.6, 0.6)),
        "channel": {0: (0.71, 0.71), 1: (0.72, 0.72), 2: (0.73, 0.73)},
        "channel own only": dict.fromkeys(range(3), (0.7, 0.7)),
        "nddr": {0: (0.71, 0.71), 1: (0.72, 0.72), 2: (0.74, 0.74)},
        "nddr own only": {0: (0.7, 0.7), 1: (0.7, 0.7), 2: (0.71, 0.71)},
    }))  # fmt: skip
    table = tables.gains_table(study, runs.STUDIES["full"])
    # Both gain 1, 2 and 3 points: p is 0.074, which Holm doubles.
    for units in ("channel", "nddr"):
        assert f"| {units} | mean | 60,000 | 3 | +2.00 ± 2.48 | 0.148 |" in table


def test_units_that_share_nothing_are_compared_in_each_task_where_a_table_shows_tasks():
    study = made_groups(**{
        "none": dict.fromkeys(range(3), (0.6, 0.6)),
        "nddr": {0: (0.71, 0.9), 1: (0.72, 0.9), 2: (0.73, 0.9)},
        "nddr own only": dict.fromkeys(range(3), (0.7, 0.8)),
    })  # fmt: skip
    table = tables.tasks_table(study, runs.STUDIES["few_labels_control"])
    # Three equal gains have p = 1, so Holm doubles the other's 0.074.
    assert "| nddr | article | 1,000 | 3 | +2.00 ± 2.48 | 0.148 |" in table
    assert "| nddr | group | 1,000 | 3 | +10.00 ± 0.00 | 1.000 |" in table


def test_a_task_with_few_labels_stands_beside_what_the_article_says_of_it():
    study = made_groups(none=dict.fromkeys(range(3), (0.7, 0.9)))
    table = tables.tasks_table(study, runs.STUDIES["few_group_labels"])
    # Derived, 0, 91 and 93 %, which is 61.33 in the mean; of its own tower, 90.
    assert cells(table, "none")["group by article"] == "-28.67 ± 0.00"
    other = tables.tasks_table(study, runs.STUDIES["few_article_labels"])
    assert "by article" not in other


def test_a_question_fixed_beforehand_is_not_corrected():
    study = made_groups(none=dict.fromkeys(range(3), (0.7, 0.7)),
                        **{"rate x1000": {s: (0.71 + s / 100,) * 2 for s in range(3)}})  # fmt: skip
    table = tables.gains_table(study, runs.STUDIES["fast_units"])
    assert "*The question fixed beforehand: p = 0.074.* *Made with" in table


def test_a_study_that_was_stopped_at_its_first_runs_has_tables():
    (fast,) = made_groups(**{"rate x1000": {210: (0.7, 0.7)}})  # none is not there yet
    texts = tables.all_tables({"fast_units": [fast], "all_images": of_all_images([fast])})
    assert "rate x1000" in texts["fast_units"] and "fixed beforehand" not in texts["fast_units"]
    assert "rate x1000" in texts["all_images"] and "results" not in texts


def starved_record(seed, recalls):
    """A record of a starved run. `recalls` begin with the article that has most images."""
    record = made_record(seed, 0.7, 0.7)
    record["ranks"] = {f"article {i}": (i + seed) % 10 for i in range(10)}
    by_article = {name: recalls[rank] for name, rank in record["ranks"].items()}
    record["train_images"] = {"article": {n: 6000 - 600 * r for n, r in record["ranks"].items()}}
    record["recall_last"] = {"article": by_article}
    record["f1_last"] = {"article": {name: r / 2 for name, r in by_article.items()}}
    return record


def starved_groups(gains_of_rarest):
    """Runs without units, and channel units that raise the recall of the last three ranks."""
    none = [0.9] * 3 + [0.8] * 4 + [0.5] * 3
    by_setting = {"none": {}, "channel": {}}
    for seed, gain in enumerate(gains_of_rarest):
        by_setting["none"][seed] = starved_record(seed, none)
        gained = [0.89, 0.90, 0.91, *none[3:7], 0.5, 0.5, 0.5 + 3 * gain]
        by_setting["channel"][seed] = starved_record(seed, gained)
    return [Group(runs.STARVED_IMAGES, name, by_seed) for name, by_seed in by_setting.items()]


def test_starved_articles_are_compared_by_rank_whichever_article_has_it():
    table = starved_table.ranks_table(starved_groups([0.10, 0.20, 0.30]), runs.STUDIES["starved"])
    assert cell_of({"starved": table}, "starved", "none", "recall, rarest") == "50.00 ± 0.00"
    assert cell_of({"starved": table}, "starved", "none", "F1, between") == "40.00 ± 0.00"
    # 10, 20 and 30 points: deviation 10, and t is 4.303 for two degrees of freedom.
    for measure, cell in {
        "recall, commonest": "+0.00 ± 0.00",
        "recall, between": "+0.00 ± 0.00",
        "recall, rarest": "+20.00 ± 24.84",
        "recall, rarest - commonest": "+20.00 ± 24.84",
        "F1, rarest - commonest": "+10.00 ± 12.42",
    }.items():
        assert cell_of({"starved": table}, "starved", "channel", measure) == cell, measure


def test_of_starved_runs_only_the_question_fixed_beforehand_is_not_corrected():
    study = starved_groups([0.10, 0.10001, 0.10002])
    table = starved_table.ranks_table(study, runs.STUDIES["starved"])
    (line,) = [li for li in table.splitlines() if "Holm" in li]
    gains = groups.starved_comparisons(study)["recall, rarest - commonest", "channel"]
    assert f"fixed beforehand: {markdown.p_equals(groups.p_value(gains))}.*" in line
    # Nine others: recall and F1 of three ranks, F1's difference, and two accuracies. Those of
    # the rarest and F1's difference are all 10 points, the others 0.
    assert "3 of 9 other comparisons" in line
    assert "recall, rarest of channel +10.00 ± 0.00 (p < 0.001)" in line
    assert "commonest of channel" not in line.replace("rarest - commonest", "")


def test_a_setting_is_compared_with_the_same_in_float32_and_with_nothing_else():
    of_none = {seed: (0.7 + 0.01 * seed, 0.9) for seed in range(3)}
    study = made_groups(
        none=of_none,
        **{"none bfloat16": {seed: (a - 0.001, g) for seed, (a, g) in of_none.items()}},
    )
    for seed, record in study[1].records.items():
        record["differ_in_float32"] = {"article": 20 + 10 * seed, "group": 7}
    text = tables.all_tables({"precision": study})["precision"]
    (row,) = rows_of(text)[2:]
    differences = ["-0.10 ± 0.00", "+0.00 ± 0.00", "-0.05 ± 0.00"]
    assert row == ["none bfloat16", "3", *differences, "20 to 40", "7 to 7"]
    assert "comparisons" not in tables.all_tables({"precision": study})


def test_units_at_one_place_are_compared_with_runs_of_the_same_seeds():
    def made(setting, seeds, share):
        return Group(runs.ALL_IMAGES, setting, {s: made_record(s, share, share) for s in seeds})

    full = [made("none", range(200, 208), 0.7), made("start 0.7", range(200, 208), 0.5)]
    where = [made("layer at fc_3", range(200, 203), 0.8)]
    table = tables.all_tables({"full": full, "where": where})["where"]
    assert [row[:2] for row in rows_of(table)[2:4]] == [["none", "3"], ["layer at fc_3", "3"]]
    assert cells(table, "layer at fc_3")["mean"] == "+10.00 ± 0.00"


def test_the_group_by_article_is_compared_with_the_groups_tower():
    row = cells(tables.accuracy_table(made_groups(none={0: (0.7, 0.9)})), "none")
    assert row["group by article"] == "-28.67"  # (0 + 91 + 93) / 3 - 90


def test_a_study_of_ones_own_shows_what_its_entry_says(monkeypatch, tmp_path):
    none = {"none": runs.NO_UNITS, "mine": {}}
    schedule = {runs.STARVED_IMAGES: {"starve": 100, "eval_every": 1, "num_epochs": 1}}
    own = runs.Study(
        none,
        schedule,
        range(3),
        question=("mine", "recall, commonest"),
        table="ranks",
        pictures={"mine.png": ("ranks",), "curve.png": ("accuracy", "none", "mine")},
    )
    monkeypatch.setitem(runs.STUDIES, "own", own)
    study = [g._replace(setting=name) for g, name in zip(starved_groups([0.1, 0.2, 0.3]), none)]
    for record in groups.records_of(study):
        record["curves"]["accuracy_test"] = [[1, 2], [0.5, 0.6]]
    text = tables.all_tables({"own": study})["own"]
    # Of -1, 0 and +1 points for each seed's three commonest, the mean is 0.
    assert "*The question fixed beforehand: p = 1.000.*" in text
    assert cell_of({"own": text}, "own", "mine", "recall, rarest") == "+20.00 ± 24.84"
    names = [path.name for path in pictures.draw({"own": study}, tmp_path)]
    assert names == ["mine.png", "curve.png"]


@pytest.mark.parametrize("shows", [
    {"table": "rank"}, {"more_tables": {"x": "kind"}}, {"pictures": {"x.png": ("curve",)}}
])  # fmt: skip
def test_what_no_study_can_show_is_named(shows, monkeypatch):
    own = runs.Study({"none": runs.NO_UNITS}, runs.FIVE_EPOCHS, range(3), **shows)
    monkeypatch.setitem(runs.STUDIES, "own", own)
    with pytest.raises(
        Failed, match="^runs.py: own shows '(rank|kind|curve)'; choose one of gains"
    ):
        reproduce.check_what_is_shown()


# --- Tables of the replication ---


def replicated_record(setting, seed, share, last=None, **more):
    """A record of 30 epochs: all at `share`, the last at `last`; at 0.999 a point lower."""
    shares = np.array([share] * 29 + [last or share])
    curves = {
        decay: {task: (shares - less).tolist() for task in ("article", "group")}
        for decay, less in (("0.9", 0.0), ("0.999", 0.01))
    }
    return {"setting": setting, "seed": seed, "repetition": 0, "epochs": 30,
            "accuracy_test": curves, "versions": {"torch": "2.11"}, "device": "GPU", "precision": "TF32", **more}  # fmt: skip


def write_replicated(folder, *records):
    for number, record in enumerate(records):
        (folder / f"{number}.json").write_text(json.dumps(record))
    return replication.read(folder, fewest_seeds=1)


def test_the_replications_questions_compare_runs_of_one_seed_and_decay(tmp_path):
    dense = [replicated_record("dense", 10 + s, 0.9 + 0.01 * s) for s in range(1, 4)]
    for record, less in zip(dense, (0.02, 0.03, 0.01)):
        for task, shares in record["accuracy_test"]["0.999"].items():
            record["accuracy_test"]["0.999"][task] = [share - less for share in shares]
    none = [replicated_record("none", 10 + s, 0.9) for s in range(1, 4)]
    study, made = write_replicated(tmp_path, *none, *dense)
    rows = {row[0]: row[1:3] for row in rows_of(replication.questions_table(study, made))[2:]}
    # Another gain lies within t · s · √(1 + 1/3) of the mean: 4.303 · 1 · 1.155 = 4.97.
    pairs = {row[0]: row[4] for row in rows_of(replication.questions_table(study, made))[2:]}
    assert pairs["dense over none at 0.9"] == "-2.97 to +6.97"
    # At 0.9 dense gains 1, 2 and 3 points, at 0.999 two, three and one less.
    assert rows == {
        "dense over none at 0.999 (primary)": ["3", "+0.00 ± 4.30"],
        "dense over none at 0.9": ["3", "+2.00 ± 2.48"],
        "the first less the second": ["3", "-2.00 ± 2.48"],
    }


def test_of_the_replications_questions_only_the_last_four_are_corrected(tmp_path):
    random = np.random.RandomState(0)
    settings = ("none", "dense", "channel", "layer")
    records = [replicated_record(setting, seed, random.uniform(0.9, 0.92))
               for setting in settings for seed in range(10, 20)]  # fmt: skip
    study, made = write_replicated(tmp_path, *records)
    table = rows_of(replication.questions_table(study, made))[2:]
    p_texts = {row[0]: row[3] for row in table}
    assert [title for title, text in p_texts.items() if "Holm" in text] == [
        "channel over none at 0.9", "layer over none at 0.9",
    ]  # fmt: skip

    def p_of(setting, decay=0.9):
        gained = np.array(list(replication.paired_gains(study, setting, decay).values()))
        return groups.p_value(gained)

    shown = float(p_texts["dense over none at 0.999 (primary)"])
    assert shown == pytest.approx(p_of("dense", 0.999), abs=6e-4)
    smaller, larger = sorted((p_of("channel"), p_of("layer")))
    corrected = sorted(
        float(p_texts[f"{setting} over none at 0.9"].removesuffix(" (Holm)"))
        for setting in ("channel", "layer")
    )
    # The other two have no records yet, and count all the same.
    expected = min(1, 4 * smaller), min(1, max(4 * smaller, 3 * larger))
    assert corrected == pytest.approx(expected, abs=6e-4)


SURE, UNSURE = [0.02, 0.03], [-0.02, 0.03]  # gains of every other seed; of ten, p < 0.001 and 0.6


@pytest.mark.parametrize("first, second, seeds, words", [
    (SURE, [0.04, 0.06], range(10, 20), [None, None, None]),
    (SURE, UNSURE, range(10, 20), [None, None, "not asked"]),
    (UNSURE, SURE, range(10, 20), [None, "not asked", "not asked"]),
    # A look before all seeds are there would be one more chance.
    (SURE, SURE, range(10, 19), ["not yet", "not yet", "not yet"]),
])  # fmt: skip
def test_a_question_is_asked_if_the_one_before_was_significant(
    first, second, seeds, words, tmp_path
):
    """Of dense units, at 0.999 and then at 0.9."""
    none = [replicated_record("none", seed, 0.9) for seed in seeds]
    dense = [replicated_record("dense", seed, 0.9) for seed in seeds]
    for decay, gains in (("0.999", first), ("0.9", second)):
        for seed, record in zip(seeds, dense):
            for task, shares in record["accuracy_test"][decay].items():
                record["accuracy_test"][decay][task] = [s + gains[seed % 2] for s in shares]
    study, made = write_replicated(tmp_path, *none, *dense)
    p_texts = [row[3] for row in rows_of(replication.questions_table(study, made))[2:]]
    assert [text if text.startswith("not") else None for text in p_texts] == words


def test_a_question_is_answered_although_a_run_diverged(tmp_path):
    """Or else it could never be."""
    none = [replicated_record("none", seed, 0.9) for seed in range(10, 20)]
    dense = [replicated_record("dense", seed, 0.9 + seed / 1000) for seed in range(10, 20)]
    dense[3]["diverged"] = True
    study, made = write_replicated(tmp_path, *none, *dense)
    first = rows_of(replication.questions_table(study, made))[2]
    assert first[1] == "9" and first[3] == "< 0.001"


@pytest.mark.parametrize("change, words", [
    ({"seed": 20}, "the replication has no seed 20; its seeds, 10 to 19"),
    ({"epochs": 2}, "of a run of 2 epochs; the replication's have 30"),
])  # fmt: skip
def test_the_replication_has_no_runs_but_those_that_were_fixed_beforehand(change, words, tmp_path):
    with pytest.raises(Failed, match=f"0.json: {words}"):
        write_replicated(tmp_path, replicated_record("none", 10, 0.9) | change)


def test_a_replicated_run_that_diverged_is_counted_and_not_averaged(tmp_path):
    records = [replicated_record("none", seed, 0.9) for seed in range(10, 15)]
    diverged = replicated_record("none", 15, 0.1, diverged=True)
    study, made = write_replicated(tmp_path, *records, diverged)
    row = rows_of(replication.summary_table(study, made))[2]
    assert row[2] == "5, 1 diverged" and row[5] == "90.00 ± 0.00"
    found = pages.Found({}, study, replication.all_tables(study, made, {}))
    mark = "<!-- replicated; 0.9 none; seeds -->"
    assert pages.with_figures(f"over 4{mark} seeds", found) == f"over 5{mark} seeds"


def test_the_replication_shows_settings_with_enough_seeds(tmp_path):
    records = [replicated_record(setting, seed, 0.9) for setting, count in
               (("none", 5), ("dense", 2)) for seed in range(10, 10 + count)]  # fmt: skip
    study, made = write_replicated(tmp_path, *records)
    assert len(rows_of(replication.questions_table(study, made))) == 2  # two seeds: no interval
    study, _ = replication.read(tmp_path, fewest_seeds=5)
    assert {group.setting for group in study} == {"none"}
    # A first record of the new program does not hide those of the earlier one.
    note = {"note": f"{replication.NOT_REPEATED}, five seeds."}
    new = replicated_record("none", 15, 0.9)
    write_replicated(tmp_path, *({**record, **note} for record in records), new)
    study, _ = replication.read(tmp_path, fewest_seeds=5)
    assert list(groups.find(study, "none", 0.9).records) == [10, 11, 12, 13, 14]


def test_records_of_the_earlier_program_count_until_others_answer_the_first_question(tmp_path):
    note = f"{replication.NOT_REPEATED}, five seeds."
    earlier = replicated_record("none", 0, 0.5, note=note)
    study, made = write_replicated(tmp_path, earlier)
    assert list(groups.find(study, "none", 0.9).records) == [0] and note in made
    again = replicated_record("none", 10, 0.8) | {"repetition": 1}
    seeds = range(10, 20)
    later = [again, *(replicated_record("none", seed, 0.9) for seed in seeds)]
    dense = [replicated_record("dense", seed, 0.9) for seed in seeds]
    # A session on a GPU was too short for all seeds.
    study, made = write_replicated(tmp_path, earlier, *later, *dense[:9])
    assert list(groups.find(study, "none", 0.9).records) == [0] and note in made
    study, made = write_replicated(tmp_path, earlier, *later, *dense)
    group = groups.find(study, "none", 0.9)
    assert list(group.records) == [*seeds] and group.accuracies() == pytest.approx([0.9] * 10)
    assert "earlier" not in made


def test_a_replicated_runs_accuracy_is_of_its_last_five_epochs(tmp_path):
    study, _ = write_replicated(tmp_path, replicated_record("none", 10, 0.9, last=0.8))
    last = groups.find(study, "none", 0.999).records[10]["accuracy_test_last"]
    assert last == pytest.approx({"article": 0.87, "group": 0.87, "mean": 0.87})


def test_a_damaged_record_of_the_replication_is_named(tmp_path):
    record = replicated_record("none", 0, 0.9)
    del record["repetition"]
    (tmp_path / "none-seed0.json").write_text(json.dumps(record))
    with pytest.raises(Failed, match="none-seed0.json: damaged"):
        replication.read(tmp_path, fewest_seeds=1)


@pytest.mark.filterwarnings("ignore:Precision loss")  # equal values, on purpose
def test_both_programs_are_compared_with_welchs_interval(tmp_path):
    shares = [0.90, 0.91, 0.92]
    study, _ = write_replicated(
        tmp_path, *(replicated_record("none", 10 + s, share) for s, share in enumerate(shares))
    )
    ours = made_groups(none={seed: (share, share) for seed, share in enumerate([0.89] * 3)})
    (row,) = rows_of(replication.programs_table(study, ours))[2:]
    # One side has no variance, so the interval is that of the other: 4.303 / sqrt(3) points.
    assert row == ["none", "3 and 3", "89.00 ± 0.00", "91.00 ± 2.48", "+2.00 ± 2.48"]


def test_what_the_pages_say_of_the_originals_claim_is_what_the_records_say():
    def limits(decay, task):
        dense = groups.find(REPLICATED, "dense", decay)
        gained = list(dense.gains(groups.baseline_of(REPLICATED, dense), task).values())
        middle, half = 100 * np.mean(gained), 100 * groups.half_width(gained)
        return middle - half, middle + half

    low, high = limits(0.999, "mean")
    readme = (ROOT / "README.md").read_text()
    assert "the interval excludes 2, but neither 1 nor 0" in readme
    assert low < 0 and 1 < high < 2
    assert (
        limits(0.9, "mean")[1] < 1 and "More than 1 % is outside the interval." in PAGE.read_text()
    )
    assert limits(0.9, "article")[1] < 0  # "in the article they lose"


# --- Lines under tables ---


def test_a_table_names_the_numerics_and_versions_it_was_made_with():
    older, newer = made_record(0, 0.7, 0.7), made_record(1, 0.7, 0.7)
    assert "TensorFlow 2.21.0, numerics 1, on AMD EPYC." in machines.made_with([older, newer])
    newer |= {"numerics": 2, "versions": {"tensorflow": "2.20.0"}, "flags": {"holdout": 10000}}
    line = machines.made_with([older, newer])
    assert "TensorFlow 2.20.0 and 2.21.0, numerics 1 and 2, on" in line
    assert "10,000 held-out training images" in line


def test_a_table_names_the_kinds_of_machine_and_the_seeds_of_each():
    records = [made_record(seed, 0.7, 0.7) for seed in (0, 1, 2, 4, 5)]
    newer = {"processor": "Intel(R) Xeon(R) Processor", "vectors": "avx512f", "onednn": "1"}
    for record in records[3:]:
        record["machine"] = {**newer, "threads": 2}
    line = machines.made_with([*records, made_record(7, 0.7, 0.7)])
    intel = "Intel Xeon with avx512f, 2 cores a run (seeds 4 to 5)"
    assert f"on AMD EPYC (seeds 0 to 2, 7) and {intel}." in line


# --- The pages ---


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A page of one's own with the table "full"."""
    path = tmp_path / "page.md"
    monkeypatch.setattr(pages, "PAGES", {path: ("full",)})
    return path


def found_of(study):
    return pages.Found({"full": study}, [], tables.all_tables({"full": study}))


PLACE = "<!-- table full -->\n<!-- end of table -->\n"


def test_a_table_is_written_between_its_marks_and_nowhere_else(page):
    page.write_text("Before\n<!-- table full -->\nold\n<!-- end of table -->\nAfter\n")
    pages.write(found_of(of_all_images(made_groups(none={0: (0.7, 0.9)}))))
    lines = page.read_text().splitlines()
    assert lines[:2] == ["Before", "<!-- table full -->"]
    assert lines[-2:] == ["<!-- end of table -->", "After"]
    table = "\n".join(lines[2:-2])
    assert "old" not in table
    assert cells(table, "none")["mean"] == "80.00"


# Gains of 1, 2 and 3 points, and of none, one and two.
GAINING = {
    "none": dict.fromkeys(range(3), (0.7, 0.7)),
    "channel": {seed: (0.71 + seed / 100, 0.7) for seed in range(3)},
    "layer": {seed: (0.7, 0.7 + seed / 100) for seed in range(3)},
}


@pytest.mark.parametrize("figure, mark", [
    ("2.00 ± 2.48", "full; channel; article"),  # t is 4.303 for two degrees of freedom
    ("2.00 ± 2.48", "full; channel 3; article"),
    ("3", "full; channel; seeds"),
    ("0.074", "p of full; channel; article"),  # 3.46 standard errors
    ("0.148", "p after Holm of full; channel; mean"),  # of two comparisons
    ("1.000", "p after Holm from channel of full; layer; mean"),  # half a point less in each seed
    ("2 of 3", "seeds with a gain of full; layer; group"),
    ("2.50", "gain of full; channel; article; seeds 1 to 2"),
    ("–", "p of full; channel; article; seeds 1 to 2"),  # two seeds are too few
    ("–", "full; nddr; mean"),
    ("–", "p of full; nddr; mean"),
    ("–", "gain of full; nddr; mean"),
    ("–", "seeds with a gain of full; nddr; mean"),
    ("–", "p after Holm of where; layer at fc_3; mean"),
    ("–", "replicated; 0.9 dense; mean"),
    ("–", "full; nddr; p (Holm)"),
])  # fmt: skip
def test_the_figure_before_a_mark_is_the_records(figure, mark, page):
    found = found_of(of_all_images(made_groups(**GAINING)))
    for old in (
        "1,234",
        "-0.1",
        "+1.00 ± 2.00",
        "8 of 8",
        "-1.08 to +2.17",
        "–",
        "0.5 (0.1, -0.7)",
    ):
        page.write_text(f"{PLACE}In 3 of 5 of them (p = {old}<!-- {mark} -->) by 0.1 ± 0.2.\n")
        assert pages.text_of(page, found).endswith(
            f"In 3 of 5 of them (p = {figure}<!-- {mark} -->) by 0.1 ± 0.2.\n"
        )


def test_the_gain_at_the_end_is_that_of_the_last_evaluation():
    study = of_all_images(made_groups(**GAINING))
    for group in study:
        for seed, record in group.records.items():
            last = 0.8 if group.setting == "none" else 0.81 + seed / 100
            record["curves"] = {"accuracy_test_article": [[1, 2], [0.5, last]]}
    mark = "<!-- gain at the end of full; channel; article -->"
    text = pages.with_figures(f"a gain of 1{mark}", found_of(study))
    assert text == f"a gain of 2.00 ± 2.48{mark}"  # 1, 2 and 3 points


@pytest.mark.parametrize("before, p, after", [
    ("p = 0.5", 0.0004, "p < 0.001"), ("p < 0.001", 0.0004, "p < 0.001"),
    ("p < 0.001", 0.014, "p = 0.014"), ("p = 0.5", 0.014, "p = 0.014"),
])  # fmt: skip
def test_a_small_p_value_in_a_sentence_is_less_than_a_number(before, p, after):
    mark = "<!-- full; channel; p (Holm) -->"
    table = markdown.as_table(["units", "p (Holm)"], [["channel", markdown.p_text(p)]])
    found = pages.Found({}, [], {"full": table})
    assert pages.with_figures(f"({before}{mark})", found) == f"({after}{mark})"


@pytest.mark.parametrize("text, words", [
    ("somebody's page", "has no place for a table; add <!-- table full -->"),
    ("<!-- table full -->\nA sentence.\n<!-- table where -->\n<!-- end of table -->", "no place"),
    (f"{PLACE}{PLACE}", "has <!-- table full --> more than once"),
    (f"{PLACE}a gain<!-- full; channel; mean -->", "has no figure directly before it"),
    (f"{PLACE}0.1 <!-- full; channel; mean -->", "has no figure directly before it"),
    (f"{PLACE}0.1<!-- full; channel -->", "<!-- full; channel --> names no figure"),
    (f"{PLACE}0.1<!-- fool; channel; mean -->", "names no figure"),
    (f"{PLACE}0.1<!-- q of full; channel; mean -->", "names no figure"),
    (f"{PLACE}0.1<!-- p of weights; layer 3; moved -->", "names no figure"),
    (f"{PLACE}0.1<!-- p after Holm of full; channel; article -->", "must name the mean"),
    (f"{PLACE}0.1<!-- p after Holm of full; channel; mean; seeds 0 to 1 -->", "must name the mean"),
    (f"{PLACE}0.1<!-- full; channel; mean; seeds 0 to 1 -->", "names no figure"),
    (f"{PLACE}0.1<!-- full; chanel; mean -->", "names no cell of table full"),
    (f"{PLACE}0.1<!-- full; channel; men -->", "names no cell of table full"),
    (f"{PLACE}0.1<!-- p of full; chanel; mean -->", "names no row and task of table full"),
    (f"{PLACE}0.1<!-- p of full; channel; men -->", "names no row and task of table full"),
    (f"{PLACE}0.1<!-- full; 3; mean -->", "names 3 cells"),
    (f"{PLACE}0.1<!-- full; channel; setting -->", "names 'channel', which is not a figure"),
])  # fmt: skip
def test_a_mark_that_is_not_understood_gets_a_sentence_and_nothing_is_written(text, words, page):
    page.write_text(text)
    with pytest.raises(Failed, match=f"^{re.escape(str(page))}: ") as refused:
        pages.write(found_of(of_all_images(made_groups(**GAINING))))
    assert words in str(refused.value) and page.read_text() == text


@pytest.fixture(params=list(pages.PAGES), ids=["study", "tables", "readme"])
def published(request):
    return request.param


def test_the_pages_say_what_the_records_say(published):
    """All tables and figures. What has no records yet would be "–"."""
    assert pages.text_of(published, FOUND) == published.read_text()
    assert not re.search(f"{pages.NO_RECORDS}<!--", published.read_text())


def test_each_falsified_figure_is_mended(published):
    def falsified(match):
        digits = str.maketrans("0123456789", "1234567890")
        return match[1].translate(digits) + match[2]

    marked = f"({pages.FIGURE})(<!-- (?!speed;)[^<>]*;[^<>]* -->)"
    text = published.read_text()
    false, count = re.subn(marked, falsified, text)
    pairs = list(zip(re.findall(marked, text), re.findall(marked, false), strict=True))
    assert len(pairs) == count >= 6 and all(right != wrong for right, wrong in pairs)
    assert pages.with_figures(false, FOUND) == text


def test_a_cell_in_a_sentence_is_that_of_the_table(published):
    for figure, mark in re.findall(rf"({pages.FIGURE})<!-- (.*?) -->", published.read_text()):
        if " of " not in mark and not mark.startswith("speed;"):
            cell = cell_of(TABLES, *mark.split("; ")).lstrip("+< ")
            assert re.sub(r", \d+ diverged$", "", cell) == figure, mark


# In sentences without a mark, and why they need none.
WITHOUT_MARK = {
    "95 %": "of intervals",
    "p < 0.05": "what is called significant",
    "about 2 %": "the original's claim",
    "About 2 %": "the original's claim",
    "more than 1 %": "the original's claim",
    "More than 1 %": "the original's claim",
    "within half a point of": "a rule that was fixed beforehand",
    "show a gain of 0.1 points": "a size that the table of images is made for",
    "half a point in favour": "a size that an interval is compared with",
    "lost 1.0 points on all images and 1.6 on 1,000 (three seeds each), and 1.7 on 300": (
        "its records are deleted: git show 8ad2734^"
    ),
    "gained 0.05 ± 0.02 points (four": "its records are deleted: git show 2c77aab^",
    "gained -0.01 ± 0.02 points, while channel units gained 0.04 ± 0.02 over": (
        "its records are deleted: git show 8ad2734^"
    ),
    "TensorFlow 2.15 to 2.21": "versions",
    "Python 3.10 to 3.13": "versions",
}
SAYS_A_FIGURE = (
    r"±|\bp ?[=<>] ?\d|(?:\d|\b(?:half|an?|one|two|three)) ?(?:%|(?:percent(?:age)? )?points?\b|percent)"
    r"|(?<![\d.])\d+\.\d\d(?![\d.])|\b(?:gain|lose|lost)\w* (?:by |of )?[+-]?\d"
)


def words_of(page):
    """A page without tables, code blocks, and figures that have a mark."""
    text = re.sub(r"<!-- table .*?<!-- end of table -->", "", page.read_text(), flags=re.S)
    text = re.sub(r"^```.*?^```|^\|.*?$", "", text, flags=re.S | re.M)
    return re.sub(rf"{pages.FIGURE}<!-- [^<>]*;[^<>]* -->", "FIGURE", text)


def test_each_figure_in_a_sentence_has_a_mark_or_a_reason_why_not(published):
    words = words_of(published)
    for exception in WITHOUT_MARK:
        words = words.replace(exception, "")
    found = [
        words[max(0, m.start() - 40) : m.end() + 20] for m in re.finditer(SAYS_A_FIGURE, words)
    ]
    assert not found


def test_each_figure_without_a_mark_is_on_a_page():
    text = "".join(words_of(page) for page in pages.PAGES)
    assert all(exception in text for exception in WITHOUT_MARK)


@pytest.mark.parametrize("text", [
    "gains 0.1 ± 0.2", "p = 0.05", "with p < 0.01", "30 % longer", "30% longer", "5 percent",
    "1.0 points", "1 point", "two points", "half a percentage point", "0.15 with", "gains 0.1",
])  # fmt: skip
def test_such_figures_need_a_mark(text):
    assert re.search(SAYS_A_FIGURE, text)


def test_the_tables_are_there():
    assert set(TABLES) >= {"full", "few_images", "starved", "results", "replicated"}


def test_tables_fit_the_width_of_a_page_on_github():
    for name, table in TABLES.items():
        for row in rows_of(table):
            assert len(row) <= 8, name
            assert len("| " + " | ".join(row) + " |") <= 110, (name, row)


def cell_of(texts, name, row, column):
    """A cell by its table's name, its row's first two cells or one of them, and its title."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", texts[name] + "\n", re.M):
        titles, _, *rows = rows_of(block)
        if column in titles and not found:  # the first of several
            found += [cells[titles.index(column)] for cells in rows
                      if row in (*cells[:2], " ".join(cells[:2]))]  # fmt: skip
    (cell,) = found
    return cell


def metadata_of(picture):
    with PIL.Image.open(picture) as image:
        return dict(image.text)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The study's pictures, drawn from its records. Returns: path -> matplotlib's figure."""
    figures, save = {}, plot.save

    def save_and_keep(picture, axes, path):
        figures[path] = picture
        return save(picture, axes, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plot, "save", save_and_keep)
        if not has_fashion_mnist():  # which would be downloaded
            patch.setitem(pictures.PICTURES, "images whose group gained", lambda *given: None)
        paths = reproduce.draw_all(FOUND, tmp_path_factory.mktemp("drawn"))
    assert paths and paths == list(figures)
    return figures


def test_every_picture_of_the_page_shows_the_values_of_the_records(drawn):
    pages = {path.name: path for path in (ROOT / "img").glob("*.png")}
    del pages["compare.png"]  # study.compare's, whose records are not kept here
    if not has_fashion_mnist():
        del pages["images_that_gained.png"]
    here = {n: p for n, p in pages.items() if plot.CHECKSUM in metadata_of(p)}
    assert here.keys() == {path.name for path in drawn}  # none is left from other records
    for path in drawn:
        assert path.stat().st_size > 10000 and f"](../img/{path.name})" in PAGE.read_text()
        assert metadata_of(here[path.name])[plot.CHECKSUM] == metadata_of(path)[plot.CHECKSUM]


def test_there_is_no_picture_of_the_replication_without_units_to_draw(tmp_path):
    assert (
        replication.draw(made_groups(none={0: (0.7, 0.7)}, layer={0: (0.7, 0.7)}), tmp_path) == []
    )


def test_units_without_runs_of_the_same_seeds_are_not_drawn(tmp_path):
    none = {seed: (0.7, 0.7) for seed in range(5)}
    others = {seed: (0.8, 0.8) for seed in range(5, 10)}
    assert replication.draw(made_groups(none=none, dense=others), tmp_path) == []


def test_a_replication_of_few_epochs_is_drawn(tmp_path):
    def made_group(setting, accuracy):
        curves = {"accuracy_test": [[1, 2, 3, 4, 5, 6], [accuracy] * 6]}
        made = {seed: made_record(seed, 0.8, 0.8) | {"curves": curves} for seed in range(3)}
        return Group(0.9, setting, made)

    (path,) = replication.draw([made_group("none", 0.8), made_group("channel", 0.81)], tmp_path)
    assert path.stat().st_size > 10000


def test_no_legend_is_wider_than_its_picture(drawn):
    for path, picture in drawn.items():
        legends = [*picture.legends, *(panel.get_legend() for panel in picture.axes)]
        boxes = [legend.get_window_extent() for legend in legends if legend]
        assert boxes or any(panel.images for panel in picture.axes), path.name
        assert all(0 <= b.x0 and b.x1 <= picture.bbox.x1 for b in boxes), path.name


IMAGES_THAT_GAIN = [9000 - 7 * k for k in range(30)]


def groups_of_images():
    """Three seeds of two settings: the units make 30 images right, some in more evaluations."""

    def digits_of(gained):
        digits = np.zeros(10000, int)
        digits[IMAGES_THAT_GAIN] = gained
        return "".join(map(str, digits))

    def made_group(setting, gained):
        curves = {"accuracy_test": [[1, 2, 3, 4, 5], [0.5] * 5]}
        record = made_record(0, 0.8, 0.8 + 0.001 * np.mean(gained)) | {"curves": curves}
        record["correct_last"] = {"article": digits_of(3), "group": digits_of(gained)}
        record["flags"] = {"holdout": 0}
        return Group(60000, setting, {seed: record for seed in range(3)})

    return [made_group("none", 0), made_group("nddr", [4] * 10 + [5] * 14 + [1] * 6)]


def test_the_picture_of_images_shows_those_that_gained_most(fashion_mnist, monkeypatch, tmp_path):
    kept, test = [], fashion_mnist.test
    monkeypatch.setattr(plot, "save", lambda picture, axes, path: kept.append(picture))
    image_pictures.draw_gained("group", groups_of_images(), tmp_path / "gained.png", [])
    (picture,) = kept
    # Images that gain as much in the order of the file.
    expected = [*sorted(IMAGES_THAT_GAIN[10:24]), *sorted(IMAGES_THAT_GAIN[:10])]
    groups_of_articles = ["Other"] * 3 + ["For Women", "Other", "Shoes", "For Women", "Shoes"]
    groups_of_articles += ["For Women", "Shoes"]
    for place, (panel, index) in enumerate(zip(picture.axes, expected, strict=True)):
        article = test.labels["article"][index]
        assert panel.get_title() == f"{data.ARTICLES[article]}: {groups_of_articles[article]}"
        assert panel.get_xlabel() == ("0 → 100 %" if place < 14 else "0 → 80 %")
        shown = panel.images[0].get_array()
        # A dark thing on white, where the file has a bright one on black.
        assert np.array_equal(shown, 255 - test.images[index].astype(int))


def test_without_fashion_mnist_the_picture_of_images_stays_as_it_is(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("FASHION_MNIST_DIR", str(tmp_path))
    path = tmp_path / "images_that_gained.png"
    path.write_bytes(b"as it was")
    assert pictures.draw({"all_images": groups_of_images()}, tmp_path) == []
    assert (
        f"{path} is not drawn, because it shows images of Fashion-MNIST" in capsys.readouterr().out
    )
    assert path.read_bytes() == b"as it was"


def test_a_pictures_checksum_is_of_its_values_and_not_of_their_rounding(tmp_path):
    def drawn(change):
        study = made_groups(
            none={0: (0.7, 0.7), 1: (0.8, 0.8), 2: (0.8, 0.7)},
            channel={0: (0.8, 0.8), 1: (0.8, 0.8 + change), 2: (0.9, 0.7)},
        )
        more = [group._replace(condition=300) for group in study]
        (path,) = pictures.draw({"few_images": [*more, *study]}, tmp_path)
        return metadata_of(path)[plot.CHECKSUM]

    assert drawn(0) == drawn(1e-9) != drawn(0.001)


def test_the_picture_of_few_images_shows_what_each_study_gains_over_its_own_runs(
    monkeypatch, tmp_path
):
    def spread(share):
        return {seed: (share + 0.01 * seed, share) for seed in range(3)}

    studies = {
        "few_images": made_groups(none=spread(0.7), channel=spread(0.72)),
        "best_lever": made_groups(none=spread(0.6), **{"start 0.7": spread(0.64)}),
        "fast_units": made_groups(none=spread(0.8), **{"rate x1000": spread(0.81)}),
    }
    studies["few_images"] += [g._replace(condition=300) for g in studies["few_images"]]
    kept = []
    monkeypatch.setattr(plot, "save", lambda picture, axes, path: kept.append(picture))
    pictures.draw(studies, tmp_path)
    shown = {points.get_label(): points[0].get_ydata() for points in kept[0].axes[1].containers}
    assert shown["channel units"] == pytest.approx([2, 2])
    assert shown["channel units, start 0.7"] == pytest.approx([4])
    assert shown["channel units, rate x1000"] == pytest.approx([1])


# --- The records ---


def test_records_say_how_they_were_made():
    paths = list(RECORDS_FOLDER.glob("*/*.json"))
    assert paths
    for path in paths:
        record = json.loads(path.read_text())
        if path.parent.name == "replication":
            # Those of the earlier program say so; a commit stands in all others.
            assert record.get("note", "").startswith(replication.NOT_REPEATED) or record["commit"]
            continue
        assert record["command"].startswith("python train.py ")
        assert "--batch_norm_decay=" in record["command"], path
        assert "=/" not in record["command"], path  # no folder of the machine that made it
        if "diverged" in record:
            continue
        assert not record["commit"].endswith("-dirty"), path
        assert record["versions"].keys() >= {"python", "tensorflow", "tf-slim", "numpy"}
        # The accuracies agree with the record's own curves.
        for task, share in record["accuracy_test_last"].items():
            tag = "accuracy_test" + ("" if task == "mean" else f"_{task}")
            np.testing.assert_allclose(np.mean(record["curves"][tag][1][-5:]), share, atol=1e-6)


def test_every_run_of_the_study_is_there_once():
    made = [(run.study, run.name) for run in runs.all_runs()]
    assert len(set(made)) == len(made)


def test_with_a_study_come_the_runs_of_others_that_its_table_shows():
    """Or else its gains would have nothing to be compared with."""
    made = {(run.study, run.setting, run.seed) for run in runs.runs_for(["precision"])}
    beside = {
        ("all_images", name, seed) for name in ("none", "channel") for seed in range(200, 205)
    }
    assert {one for one in made if one[0] != "precision"} == beside
    assert {run.study for run in runs.runs_for(["levers"])} == {"levers"}


def test_runs_that_start_with_the_same_towers_are_one_task():
    """Or else both would train those towers at the same time."""
    tasks = runs.in_tasks(runs.runs_of("levers"))
    together = [[(run.seed, run.setting) for run in task] for task in tasks if len(task) > 1]
    assert together == [
        [(seed, "1000 alone half"), (seed, "1000 alone first")] for seed in range(10)
    ]
    assert sum(map(len, tasks)) == len(runs.runs_of("levers"))


def test_records_are_those_of_the_commands_and_flags_of_the_study():
    chosen, folders = runs.all_runs(), records.Folders(pathlib.Path("logs"), RECORDS_FOLDER)
    there = {path for path in RECORDS_FOLDER.glob("*/*.json") if path.parent.name in runs.STUDIES}
    assert there and there <= {folders.record(run) for run in chosen}  # all of them are checked
    records.check(chosen, folders)  # raises Failed


@pytest.mark.parametrize("old, new, words", [
    (" --num_epochs=", " --num_epochs=9", "made with other flags"),
    ('"batch_norm_decay": 0.9,', '"batch_norm_decay": 0.999,', "made with other flags"),
    (' none"', ' nothing"', "runs.py has no setting '1000 nothing' with seed 0"),
    ('"seed": 0', '"seed": 300', "runs.py has no setting '1000 none' with seed 300"),
    ("{", "", "damaged"),
])  # fmt: skip
def test_a_record_that_is_not_of_the_study_is_named(old, new, words, tmp_path):
    (run,) = [r for r in runs.runs_of("few_images") if r.setting == "1000 none" and r.seed == 0]
    folders = records.Folders(tmp_path / "runs", tmp_path / "records")
    path = folders.record(run)
    path.parent.mkdir(parents=True)
    original = (RECORDS_FOLDER / "few_images" / path.name).read_text()
    path.write_text(original.replace(old, new, 1))
    with pytest.raises(Failed, match=re.escape(f"{path}: {words}")):
        records.check([run], folders)  # as the program does first
        reproduce.read_all(tmp_path / "records", fewest_seeds=1)


# --- Making them again ---


def train_as(code, monkeypatch, tmp_path, stop=None):
    """`making.train` of a run, with Python statements for train.py."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(f"import pathlib, sys\n{code}")
    (run, *_) = runs.runs_of("levers")
    folders = records.Folders(pathlib.Path("runs"), pathlib.Path("records"))
    return making.train(run, folders, stop or threading.Event())


@pytest.mark.parametrize("code, message", [
    ("sys.exit(0)", None),
    ("print('train.py: the loss grew.', file=sys.stderr); sys.exit(3)", "train.py: the loss grew."),
    # The folder is in use at first, by what an earlier reproduce.py left.
    ("was = pathlib.Path('was'); code = 0 if was.exists() else 4; was.touch(); sys.exit(code)", None),
])  # fmt: skip
def test_what_became_of_a_run_is_told_by_its_exit_code(code, message, monkeypatch, tmp_path):
    assert train_as(code, monkeypatch, tmp_path) == message


@pytest.mark.parametrize("code, words", [
    ("sys.exit('train.py: NaN or infinite, another process')", "train.py: NaN or infinite, another"),
    ("raise RuntimeError('nobody expects it')", "train.py: ended without a message"),
    ("import os; os.kill(os.getpid(), 9)", "train.py was killed, .* fewer runs at a time"),
])  # fmt: skip
def test_a_run_that_fails_ends_the_study_with_its_message(code, words, monkeypatch, tmp_path):
    with pytest.raises(Failed, match=f"levers/1000_.*: {words}.* Its log is "):
        train_as(code, monkeypatch, tmp_path)


def test_a_record_keeps_the_curves_of_tasks_whatever_their_names(tmp_path):
    line = {"step": 1, "accuracy_test_words_per_second": 0.5, "images_per_second": 9.0}
    (tmp_path / evaluation_log.NAME).write_text(json.dumps(line) + "\n")
    assert making.curves_of(tmp_path) == {"accuracy_test_words_per_second": [[1], [0.5]]}


def test_a_run_that_is_waited_for_can_be_stopped(monkeypatch, tmp_path):
    stop, began = threading.Event(), tmp_path / "began"

    def stop_when_it_has_begun():
        while not began.exists():
            time.sleep(0.01)
        stop.set()

    threading.Thread(target=stop_when_it_has_begun, daemon=True).start()
    with pytest.raises(Failed, match="^stopped$"):
        train_as("pathlib.Path('began').touch(); sys.exit(4)", monkeypatch, tmp_path, stop)


MACHINE = {"processor": "AMD EPYC", "vectors": "avx2", "onednn": "1", "threads": 1}


def made_result(accuracy, sha256, machine=MACHINE, **others):
    return {"accuracy_test_last": {"mean": accuracy}, "sha256": sha256, "machine": machine,
            "versions": {"tensorflow": "2.21.0"}, "numerics": 1, **others}  # fmt: skip


def test_bits_are_compared_where_the_record_says_it_was_made_on_this_kind_of_machine():
    record = made_result(0.9, "ab")
    assert repetition.compare(record, made_result(0.9, "ab"), 0.1) == "the same bits"
    with pytest.raises(Failed, match="sha256"):
        repetition.compare(record, made_result(0.9, "cd"), 0.1)
    # An older record names no variables: there were none.
    with pytest.raises(Failed, match="sha256"):
        repetition.compare(record, made_result(0.9, "cd", MACHINE | {"variables": {}}), 0.1)


def test_of_the_units_only_what_the_older_record_has_is_compared():
    """Distances of other variables than alpha, and histograms of other than channel units."""
    distances, others = {"cross_stitch_1": [[0.1]]}, {"cross_stitch_1/pairs": 0.3}
    record = made_result(0.9, "ab", weights={}, distances=distances)
    newer = {"weights": {"cross_stitch_1": [3, 1]}, "distances": {**distances, **others}}
    assert repetition.compare(record, made_result(0.9, "ab", **newer), 0.1) == "the same bits"
    first = made_result(0.9, "ab")  # which has neither
    assert repetition.compare(first, made_result(0.9, "ab", **newer), 0.1) == "the same bits"
    for less in ({**newer, "distances": {"cross_stitch_1": [[0.2]]}}, {**newer, "distances": others},
                 {"weights": newer["weights"]}):  # fmt: skip
        with pytest.raises(Failed, match="^distances not as recorded"):
            repetition.compare(record, made_result(0.9, "ab", **less), 0.1)


OTHER_ORIGINS = [
    {"numerics": 2},
    {"versions": {"tensorflow": "2.20.0"}},
    *({"machine": MACHINE | {name: "another"}} for name in MACHINE),
    {"machine": MACHINE | {"variables": {"ONEDNN_MAX_CPU_ISA": "AVX2"}}},
    {"machine": {"processor": "AMD EPYC", "threads": 1}},  # as the first records
    {"machine": {name: MACHINE[name] for name in ("processor", "threads", "vectors")}},
]


@pytest.mark.parametrize("other", OTHER_ORIGINS, ids=str)
def test_accuracy_is_compared_with_the_spread_of_seeds_where_bits_cannot_be(other):
    record, tolerance = made_result(0.9, "ab", **other), 0.008
    found = repetition.compare(record, made_result(0.893, "cd"), tolerance)
    assert "bits cannot be compared" in found and "0.8930" in found and "0.0080" in found
    with pytest.raises(Failed, match="0.8910 is further from the recorded 0.9000"):
        repetition.compare(record, made_result(0.891, "cd"), tolerance)


def test_accuracy_of_too_few_seeds_is_not_said_to_agree():
    older = made_result(0.9, "ab", machine={"processor": "AMD EPYC", "threads": 1})
    assert repetition.compare(older, made_result(0.9, "ab"), None) == "the same bits"
    with pytest.raises(Failed, match="fewer than three"):
        repetition.compare(older, made_result(0.9, "cd"), None)


def test_the_spread_of_seeds_leaves_out_the_record_that_is_verified():
    accuracies = {0: 0.5, 1: 0.90, 2: 0.91, 3: 0.92}
    study = made_groups(none={seed: (mean, mean) for seed, mean in accuracies.items()})
    run = runs.Run("levers", "1000 none", 0, {})
    # A deviation of 0.01, and t is 9.925 for two degrees of freedom and 99 %.
    expected = 9.925 * 2**0.5 * 0.01
    assert repetition.tolerance_of(run, {"levers": study}) == pytest.approx(expected, rel=1e-4)


def test_without_three_other_seeds_the_widest_spread_with_as_many_images_counts():
    def spread(width, count=3):
        return {seed: (0.9 + width * seed, 0.9 + width * seed) for seed in range(count)}

    studies = {
        "levers": made_groups(none={0: (0.9, 0.9)}),
        "few_images": made_groups(none=spread(0.01), channel=spread(0.02), layer=spread(0.1, 2)),
        "full": [group._replace(condition=60000) for group in made_groups(none=spread(0.2))],
    }
    run = runs.Run("levers", "1000 none", 0, {})
    expected = 9.925 * 2**0.5 * 0.02
    assert repetition.tolerance_of(run, studies) == pytest.approx(expected, rel=1e-4)
    assert repetition.tolerance_of(run, {"levers": studies["levers"]}) is None


def test_two_seeds_of_chance_are_within_the_tolerance_in_99_of_100_cases():
    random, far = np.random.RandomState(0), 0
    run = runs.Run("levers", "1000 none", 0, {})
    for _ in range(2000):
        one, again, *others = (0.9 + 0.01 * random.standard_normal(6)).tolist()
        study = made_groups(none={seed: (mean, mean) for seed, mean in enumerate([one, *others])})
        far += abs(one - again) > repetition.tolerance_of(run, {"levers": study})
    assert 0.005 < far / 2000 < 0.015


def test_records_of_a_study_that_is_not_asked_for_are_checked_as_well(tmp_path):
    """Because its table is written, too."""
    folder = tmp_path / "levers"
    shutil.copytree(RECORDS_FOLDER / "levers", folder)
    path = folder / "1000_channel-seed0.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"flags": record["flags"] | {"num_epochs": 10}}))
    given = ("--show", "--only=where", f"--records={tmp_path}")
    refused = reproduce_script(*given)
    assert refused.returncode == 1 and f"{path}: made with other flags" in refused.stderr
    path.rename(folder / "a_copy.json")
    refused = reproduce_script(*given)
    assert refused.returncode == 1 and "is the record of 1000_channel-seed0" in refused.stderr


def test_records_elsewhere_get_tables_beside_them_and_no_page(tmp_path):
    shutil.copytree(RECORDS_FOLDER / "levers", tmp_path / "levers")
    before = PAGE.read_text()
    drawn = reproduce_script("--draw", f"--records={tmp_path}")
    assert drawn.returncode == 0, drawn.stderr
    assert "| rate x1000 | 10 |" in (tmp_path / "tables.md").read_text()
    assert PAGE.read_text() == before


def test_seeds_that_did_not_end_are_counted_in_every_table():
    none, channel = made_groups(none=dict.fromkeys(range(3), (0.7, 0.9)),
                                channel={s: (0.71 + s / 100, 0.9) for s in range(3)})  # fmt: skip
    study = of_all_images([none, channel._replace(diverged=2)])
    for table in (tables.gains_table, tables.tasks_table):
        shown = cells(table(study, runs.STUDIES["few_group_labels"]), "channel")
        assert shown["seeds"] == "3, 2 diverged"


def test_a_picture_of_weights_shows_one_unit_and_refuses_what_has_no_channels(tmp_path):
    def with_weights(weights):
        (group,) = made_groups(channel={0: (0.7, 0.7), 1: (0.7, 0.7)})
        for record in group.records.values():
            record["weights"] = {"cross_stitch_3": weights}
        return [group]

    of_channels = np.ones([2, 2, 60], int).tolist()
    path = pictures.PICTURES["weights at the end"](
        with_weights(of_channels), tmp_path / "one.png", []
    )
    assert path.exists()
    with pytest.raises(Failed, match="no weights of channels"):
        pictures.PICTURES["weights at the end"](with_weights([1] * 60), tmp_path / "nddr.png", [])


def test_every_record_of_the_study_can_be_verified():
    folders = records.Folders(pathlib.Path("logs"), RECORDS_FOLDER)
    studies = records.read_all(RECORDS_FOLDER)
    recorded = list(filter(folders.has_record, runs.all_runs()))
    assert {run.study for run in recorded} == set(studies)
    for run in recorded:
        # Other seeds of starved runs have other rare articles.
        most = {"starved": 0.12, "best_lever": 0.065}.get(run.study, 0.04)  # 6 seeds of 300 images
        assert 0 < repetition.tolerance_of(run, studies) < most, run


def test_all_settings_of_a_seed_were_run_on_one_kind_of_machine():
    """And so were those of another study that a table shows beside them."""
    studies = records.read_all(RECORDS_FOLDER)
    for name in studies:
        kinds = {}
        for group in groups.shown(name, studies):
            for seed, record in group.records.items():
                kinds.setdefault((group.condition, seed), set()).add(machines.machine_of(record))
        assert kinds and all(len(of_seed) == 1 for of_seed in kinds.values()), (name, kinds)


def test_no_difference_between_places_of_units_is_significant():
    """As the page says of "Where sharing helps"."""
    where = groups.shown("where", STUDIES)
    rows = [[f"{kind} at {place}" for place in PLACES] for kind in ("channel", "layer")]
    rows.append(["shared until pool_1", "shared until pool_2", "hard sharing"])
    gains = {
        (one, other): list(groups.find(where, one).gains(groups.find(where, other)).values())
        for row in rows
        for one, other in itertools.combinations(row, 2)
    }
    assert len(gains) == 9 and all(len(of_seeds) == 5 for of_seeds in gains.values())
    assert min(groups.corrected(gains).values()) >= groups.SIGNIFICANCE


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="cores cannot be chosen here")
@pytest.mark.parametrize("jobs", [1, running.number_of_cores()])
def test_runs_at_a_time_share_all_cores(jobs, monkeypatch, tmp_path):
    shares = []
    monkeypatch.setattr(making, "make", lambda *_: shares.append(os.sched_getaffinity(0)))
    folders = records.Folders(tmp_path / "runs", tmp_path / "records")
    chosen = runs.runs_of("best_lever")[:4]
    assert len(list(running.on_shares_of_the_cores(chosen, folders, jobs))) == 4
    assert {len(share) for share in shares} == {running.number_of_cores() // jobs}


def test_a_second_study_in_a_folder_is_refused(tmp_path):
    folder = tmp_path / "quick" / "runs"
    folder.mkdir(parents=True)
    with filelock.FileLock(folder / "lock"):
        refused = reproduce_script("--quick", "--only=best_lever", f"--logdir={tmp_path}")
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert f"{folder}: another process is using this folder." in refused.stderr


def test_runs_that_this_processor_would_multiply_slowly_are_left_out(monkeypatch):
    chosen = [*runs.runs_of("precision"), *runs.runs_of("best_lever")]
    monkeypatch.setattr(processor, "BFLOAT16", ("no_such_instruction",))
    here, (sentence,) = reproduce.for_this_processor(chosen)
    assert here == [run for run in chosen if "bfloat16" not in run.setting]
    assert len(here) == len(chosen) - 10 and sentence.startswith("10 runs are left out: ")
    assert "no instructions for it" in sentence


def reproduce_script(*arguments):
    return run_script("study.reproduce", *arguments)


@pytest.fixture(scope="module")
def killed_study(fashion_mnist, tmp_path_factory):
    """A quick study of two runs, killed when the first has a record. Returns: flags, records."""
    logdir = tmp_path_factory.mktemp("study")
    given = ("--quick", "--only=best_lever", "--seeds=1", f"--logdir={logdir}", "--jobs=1")
    made = logdir / "quick" / "records" / "best_lever"
    process = subprocess.Popen(command_of("study.reproduce", *given), stderr=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL)  # fmt: skip
    end = time.monotonic() + SECONDS
    while not list(made.glob("*.json")):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return given, made


@pytest.mark.slow
def test_a_study_that_is_killed_resumes(killed_study):
    given, folder = killed_study
    first, *others = folder.glob("*.json")
    assert not others
    made = first.stat().st_mtime_ns

    finished = reproduce_script(*given)
    assert finished.returncode == 0, finished.stderr
    assert "1 of 2 runs have a record." in finished.stdout
    assert first.stat().st_mtime_ns == made
    assert len(list(folder.glob("*.json"))) == 2
    page = folder.parents[1] / "tables.md"
    assert "| start 0.7 | 1 |" in page.read_text()
    # Weights are not kept once a run has a record.
    assert not list(folder.parents[2].rglob("model.ckpt-*"))


def test_an_interrupt_between_two_runs_stops_the_others(monkeypatch, tmp_path):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # two jobs on any machine
    monkeypatch.setattr(reproduce, "FLAGS", types.SimpleNamespace(jobs=2, scheduler=None))
    chosen = runs.runs_of("levers")[:3]
    second_runs, ended = threading.Event(), {}

    def make(run, folders, stop):
        if run is chosen[0]:
            second_runs.wait()
        else:
            second_runs.set()
            ended[run.setting] = "stopped" if stop.wait(SECONDS) else "left alone"

    def interrupt(bar, _):
        raise KeyboardInterrupt

    monkeypatch.setattr(making, "make", make)
    monkeypatch.setattr(reproduce.ProgressBar, "update", interrupt)
    # Its traceback keeps what make_all had, as it does until the end of a program.
    with pytest.raises(KeyboardInterrupt) as traceback:  # noqa: F841
        reproduce.make_all(chosen, records.Folders(tmp_path / "runs", tmp_path / "records"))
    # The third may have begun in the place of the first.
    second, third = ({run.setting: "stopped"} for run in chosen[1:])
    assert ended in (second, second | third)


@pytest.mark.slow
def test_a_changed_record_is_found_and_a_lost_one_is_made_again(killed_study):
    given, folder = killed_study
    first = sorted(folder.glob("*.json"))[0]
    original = json.loads(first.read_text())
    changed = json.loads(first.read_text())
    changed["curves"]["loss_total"][1][0] += 1e-6
    first.write_text(json.dumps(changed))
    verified = reproduce_script(*(flag for flag in given if flag != "--jobs=1"), "--verify")
    assert verified.returncode == 1 and "Traceback" not in verified.stderr
    assert f"{first.stem}: curves not as recorded" in verified.stderr

    # What is left of its run has no weights.
    first.unlink()
    finished = reproduce_script(*given)
    assert finished.returncode == 0, finished.stderr
    again = json.loads(first.read_text())
    times = {"images_per_second": 0, "wall_seconds": 0}
    assert again | times == original | times


@pytest.mark.slow
def test_a_record_of_the_study_is_made_again(fashion_mnist, tmp_path):
    verified = reproduce_script("--verify", "--records_to_verify=1", "--only=few_images",
                                "--verify_images=60000", f"--logdir={tmp_path}")  # fmt: skip
    assert verified.returncode == 0, verified.stderr
    assert "the same bits" in verified.stdout or "bits cannot be compared" in verified.stdout
    assert not verified.stderr  # nothing that TensorFlow writes when it is imported


@pytest.mark.parametrize(
    "given, word",
    [
        ("--only=Z", "all_images, full, "),
        ("more", "more: not a flag"),
        ("--logtostderr", "--logtostderr"),
        ("--draw --verify", "At most one of (draw, show, verify)"),
        ("--scheduler=somewhere", "tcp://HOST:8786"),
        ("--scheduler=tcp://localhost:9 --jobs=2", "--nthreads"),
        ("--scheduler=tcp://localhost:9 --draw", "--draw"),
        ("--draw --only=levers", "--only has no effect with --draw: leave it out."),
        ("--show --seeds=3", "--seeds has no effect with --show"),
        ("--draw --logdir=logs", "--logdir has no effect with --draw"),
        ("--quick --records=logs", "--records has no effect with --quick"),
        ("--draw --records=study/record", "study/record: no such folder"),
        ("--verify_images=9", "--verify_images has no effect without --verify"),
    ],
)
def test_bad_flags_of_the_study_are_named(given, word):
    refused = reproduce_script(*given.split())
    assert refused.returncode != 0 and word in refused.stderr + refused.stdout
    assert "Traceback" not in refused.stderr


def test_a_quick_run_names_one_choice_of_training_images():
    """train.py refuses --starve with --train_examples."""
    made = runs.quick(runs.all_runs())
    assert {run.study for run in made} >= {"starved", "few_images"}
    for run in made:
        assert ("starve" in run.flags) != ("train_examples" in run.flags), run.name
