"""The study: its records, what is computed from them, and that they can be made again."""

import json
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, command_of, run_script

sys.path.insert(0, str(ROOT / "img"))
import report  # noqa: E402

RECORDS = report.read_records(ROOT / "img" / "records")


def made_record(seed, article, group):
    means = {"article": article, "group": group, "mean": (article + group) / 2}
    points = [[1, 2, 3], [0.0, group + 0.01, group + 0.03]]
    return {"seed": seed, "accuracy_test_last": means,
            "curves": {"accuracy_test_group_by_article": points}}  # fmt: skip


def study(**settings):
    """A study's groups, of hand-made records."""
    return {
        (1000, name): {seed: made_record(seed, *shares) for seed, shares in runs.items()}
        for name, runs in settings.items()
    }


def cells(table, setting):
    """The cells of a setting's row, by the column's title."""
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in table.splitlines()]
    (row,) = [row for row in rows if row[1] == setting]
    return dict(zip(rows[0], row))


def test_a_row_is_the_mean_over_seeds_with_students_interval():
    groups = study(none={0: (0.8, 0.9), 1: (0.9, 0.9)})
    row = cells(report.table(groups, ["none"]), "none")
    # Two values 10 points apart: deviation 7.07, error 5, and t is 12.706 for one degree.
    assert row["article"] == "85.00 ± 63.53"
    assert row["group"] == "90.00 ± 0.00"
    assert row["mean"] == "87.50 ± 31.77"
    assert row["seeds"] == "2" and row["training images"] == "1,000"


def test_gains_are_paired_by_seed():
    groups = study(none={0: (0.7, 0.7), 1: (0.9, 0.9), 2: (0.1, 0.1)},
                   channel={0: (0.71, 0.71), 1: (0.93, 0.93), 3: (1.0, 1.0)})  # fmt: skip
    row = cells(report.table(groups, ["none"]), "channel")
    # 1 and 3 points, of the two seeds that both have, however wide the seeds lie.
    assert row["mean, against none"] == "+2.00 ± 12.71 (2 seeds)"


def test_what_one_seed_says_has_no_interval_and_a_missing_run_no_figure():
    groups = study(none={0: (0.7, 0.7)}, channel={1: (0.8, 0.8)})
    row = cells(report.table(groups, ["none"]), "channel")
    assert row["mean"] == "80.00" and row["mean, against none"] == "–"


def test_a_run_that_diverged_is_counted_and_not_averaged():
    groups = study(none={0: (0.7, 0.7), 1: (0.8, 0.8)})
    groups[1000, "none"][2] = {"seed": 2, "diverged": "the loss became NaN"}
    row = cells(report.table(groups, []), "none")
    assert row["seeds"] == "2, 1 diverged" and row["article"].startswith("75.00")


def test_no_loss_is_written_as_minus_nothing():
    groups = study(none={0: (0.7, 0.7)}, channel={0: (0.699999, 0.699999)})
    assert cells(report.table(groups, ["none"]), "channel")["mean, against none"] == "+0.00"


def test_pictures_leave_out_what_diverged(tmp_path):
    groups = study(none={0: (0.7, 0.7)}, channel={0: (0.8, 0.8)})
    more = {(300, setting): dict(runs) for (_, setting), runs in groups.items()}
    for by_seed in more.values():
        by_seed[1] = {"seed": 1, "diverged": "the loss became NaN"}
    (picture,) = report.draw({"B": {**groups, **more}}, tmp_path)
    assert picture.name == "few_examples.png" and picture.exists()


def test_a_table_goes_between_its_marks_and_nowhere_else(tmp_path):
    page, records = tmp_path / "page.md", {"B": study(none={0: (0.7, 0.9)})}
    page.write_text("Before\n<!-- table B -->\nold\n<!-- end of table -->\nAfter\n")
    report.write_tables(records, page)
    lines = page.read_text().splitlines()
    assert lines[:2] == ["Before", "<!-- table B -->"] and lines[-2:] == [
        "<!-- end of table -->",
        "After",
    ]
    assert cells("\n".join(lines[2:-2]), "none")["mean"] == "80.00"
    page.write_text("somebody's page")
    with pytest.raises(report.Unusable, match="<!-- table B -->"):
        report.write_tables(records, page)
    assert page.read_text() == "somebody's page"


def test_the_group_read_off_the_article_is_compared_with_the_groups_tower():
    row = cells(report.table(study(none={0: (0.7, 0.9)}), []), "none")
    assert row["group read off article, against group"] == "-28.67"  # (0 + 91 + 93) / 3 - 90


def test_readmes_tables_are_those_of_the_records():
    readme = (ROOT / "README.md").read_text()
    tables = report.study_tables(RECORDS)
    assert tables
    for name, table in tables.items():
        assert f"<!-- table {name} -->\n{table}\n<!-- end of table -->" in readme, name


def test_intervals_in_readmes_words_stand_in_the_tables():
    chapter = (ROOT / "README.md").read_text().partition("## Results")[2].partition("\n## ")[0]
    tables = report.tables(RECORDS)
    words = re.sub(r"<!-- table .*?<!-- end of table -->", "", chapter, flags=re.S)
    said = re.findall(r"[+-]?\d+\.\d+ ± \d+\.\d+", words)
    assert len(said) >= 4
    for interval in said:
        assert f" {interval} |" in tables or f"+{interval} |" in tables, interval


def test_every_picture_is_drawn_from_the_records(tmp_path):
    pictures = report.draw(RECORDS, tmp_path)
    assert pictures
    for path in pictures:
        assert path.stat().st_size > 10000 and (ROOT / "img" / path.name).exists()
        assert f"](img/{path.name})" in (ROOT / "README.md").read_text()


def test_records_say_how_they_were_made():
    paths = [path for path in (ROOT / "img" / "records").glob("*/*.json")]
    assert paths
    for path in paths:
        record = json.loads(path.read_text())
        assert record["command"].startswith("python train.py ")
        if "diverged" in record:
            continue
        assert not record["commit"].endswith("-dirty"), path
        assert record["versions"].keys() >= {"python", "tensorflow", "tf-slim", "numpy"}
        # What is told of the run agrees with its own curve.
        for task, share in record["accuracy_test_last"].items():
            tag = "accuracy_test" + ("" if task == "mean" else f"_{task}")
            np.testing.assert_allclose(np.mean(record["curves"][tag][1][-5:]), share, atol=1e-6)


# --- Made again ---


def reproduce(*arguments):
    return run_script("img/reproduce.py", *arguments)


def test_a_study_that_is_killed_goes_on_and_its_records_are_verified(fashion_mnist, tmp_path):
    given = ("--quick", "--only=D", f"--logdir={tmp_path}", "--jobs=1")
    records = tmp_path / "quick" / "records" / "D"
    process = subprocess.Popen(command_of("img/reproduce.py", *given), stderr=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL)  # fmt: skip
    while not list(records.glob("*.json")):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (first,) = records.glob("*.json")
    made = first.stat().st_mtime_ns

    finished = reproduce(*given)
    assert finished.returncode == 0, finished.stderr
    assert "1 of 2 runs have their record." in finished.stdout
    assert first.stat().st_mtime_ns == made
    assert len(list(records.glob("*.json"))) == 2
    assert "| 1,000 | channel own only | 2 |" in (tmp_path / "quick" / "tables.md").read_text()
    # Weights of what is recorded are not kept.
    assert not list(tmp_path.rglob("model.ckpt-*"))

    original = json.loads(first.read_text())
    changed = json.loads(first.read_text())
    changed["curves"]["loss_total"][1][0] += 1e-6
    first.write_text(json.dumps(changed))
    verified = reproduce(*given, "--seeds=1", "--verify")
    assert verified.returncode == 1 and "Traceback" not in verified.stderr
    assert f"{first.stem}: curves came out otherwise" in verified.stderr

    # A lost record is made again, though what is left of its run has no weights.
    first.unlink()
    finished = reproduce(*given, "--seeds=1")
    assert finished.returncode == 0, finished.stderr
    again = json.loads(first.read_text())
    times = {"images_per_second": 0, "wall_seconds": 0}
    assert again | times == original | times


def test_a_record_of_the_study_is_made_again(fashion_mnist, tmp_path):
    verified = reproduce("--verify", "--records_to_verify=1", "--only=B", "--verify_images=60000",
                         f"--logdir={tmp_path}")  # fmt: skip
    assert verified.returncode == 0, verified.stderr
    assert "the same bits" in verified.stdout or "bits cannot be compared" in verified.stdout
    assert not verified.stderr  # none of TensorFlow's greetings


def test_records_are_those_of_the_commands_of_the_study(tmp_path):
    shown = reproduce("--show")
    assert shown.returncode == 0, shown.stderr
    copied = pathlib.Path(shutil.copytree(ROOT / "img" / "records", tmp_path / "records"))
    other = sorted(copied.glob("B/*none-seed0.json"))[0]
    other.write_text(other.read_text().replace(" --num_epochs=", " --num_epochs=9"))
    refused = reproduce("--show", f"--records={copied}")
    assert refused.returncode == 1 and f"{other}: made by other flags" in refused.stderr
    other.write_text("{")
    refused = reproduce("--show", f"--records={copied}")
    assert refused.returncode == 1 and f"{other}: damaged" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    "flag, word",
    [
        ("--only=Z", "A, B, C"),
        ("--jobs=0", "jobs"),
        ("--smoothing=0", "smoothing"),
        ("more", "more"),
    ],
)
def test_bad_flags_of_the_study_are_named(flag, word):
    refused = reproduce(flag)
    assert refused.returncode != 0 and word in refused.stderr + refused.stdout
    assert "Traceback" not in refused.stderr
