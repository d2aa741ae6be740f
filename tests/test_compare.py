"""study.compare: whether sharing helps on one's own labels, from one command."""

import csv
import json
import re
import signal
import subprocess
import time
import types

import numpy as np
import PIL.Image
import pytest
from conftest import SECONDS, command_of, run_script
from test_own_images import made, written

import data
import train
from harness import choices, matrices, process
from harness.errors import Failed
from study import (
    answer,
    answer_pictures,
    command_line,
    compare,
    comparison,
    intervals,
    per_image,
    pictures,
    plot,
    records,
    watching,
)
from study.gains import Gain, gains_of
from study.groups import Group
from study.runs import Run


def run_compare(where, *arguments, **options):
    """Compares, started in a folder whose folder "mine" has the images."""
    usual = {"--data_dir": "mine", "--tasks": "label,kind", "--name": "test"}
    names = {word.partition("=")[0] for word in arguments}
    given = [f"{name}={value}" for name, value in usual.items() if name not in names]
    return run_script("study.compare", *given, *arguments, prelude=there(where), **options)


def there(where):
    return f"import os; os.chdir({str(where)!r})"


def folder_in(where, name="test"):
    return where / "logs" / "compare" / name


# --- What it answers ---


def made_record(setting, seed, label, kind, accuracies=(0.5,) * 10, flags=None):
    """Args: digits of both tasks, the curve of accuracy, and flags of train.py."""
    steps = list(range(1, len(accuracies) + 1))
    names = "accuracy_test", "accuracy_test_label", "accuracy_test_kind"
    return {
        "setting": setting, "seed": seed, "correct_last": {"label": label, "kind": kind},
        "curves": {name: [steps, list(accuracies)] for name in names}, "global_step": steps[-1],
        "train_images": {"label": {"a": 30, "b": 30}, "kind": {"x": 60}}, "resumed_after": 0,
        "wall_seconds": 9.0, "machine": {"processor": "AMD EPYC", "threads": 1}, "numerics": 1,
        "versions": {"tensorflow": "2.21.0", "python": "3.11", "tf-slim": "1.1.0", "numpy": "2"},
        "flags": {"train_examples": 60, "label_only": None, "starve": 1, **(flags or {})},
    }  # fmt: skip


def made_study(seeds=5, images=400, gain=0.0, diverged=0, **others):
    """None and channel, which is right about `gain` more of the labels; kinds are left to chance."""
    random, settings = np.random.RandomState(0), {"none": 0.0, "channel": gain}
    hard = random.uniform(0.3, 0.7, images)  # how often each image is right
    found = []
    for setting, more in settings.items():
        records = {
            seed: made_record(
                setting,
                seed,
                *("".join(map(str, random.binomial(5, share))) for share in (hard + more, hard)),
                **others,
            )
            for seed in range(seeds - (diverged if setting != "none" else 0))
        }
        found.append(Group(0, setting, records, diverged if setting != "none" else 0))
    return found


ABOUT = answer.About("python -m study.compare", "mine-custom", False)


def written_answer(study, folder, about=ABOUT):
    answer.write(study, about, folder)
    return (folder / answer.PAGE).read_text(encoding="utf-8")


def test_a_record_without_predictions_is_named(tmp_path):
    study = made_study()
    study[1].records[3]["correct_last"] = None
    with pytest.raises(Failed, match="seed 3 of 'channel' lost its predictions. Delete its record"):
        answer.write(study, ABOUT, tmp_path)


def test_a_gain_is_named_with_its_interval_and_what_is_not_significant_is_counted(tmp_path):
    page = written_answer(made_study(gain=0.2), tmp_path)
    told = re.search(r"^\*\*channel gains (.*) ± (.*) points on label \(p < 0.001\)", page, re.M)
    assert float(told[1]) == pytest.approx(20, abs=3)
    assert "points on the mean of the tasks" in page
    assert "The other difference is not significant." in page
    for picture in (answer.PICTURE, answer.CURVES):
        assert f"({picture})" in page and (tmp_path / picture).read_bytes()[:4] == b"\x89PNG"


def test_without_a_gain_the_largest_difference_is_named(tmp_path):
    page = written_answer(made_study(), tmp_path)
    assert re.search(
        r"^\*\*No setting differs significantly from none\. The largest difference:"
        r" channel, (label|kind|the mean of the tasks), [+-]\d\.\d\d ± \d\.\d\d points"
        r" \(p = [01]\.\d{3} after correction for 3 comparisons\)\.\*\*$",
        page,
        re.M,
    )


def test_figures_of_page_and_csv_are_those_of_the_records(tmp_path):
    study = made_study(seeds=3, gain=0.1)
    page = written_answer(study, tmp_path)
    none, channel = (
        np.array([[int(d) for d in r["correct_last"]["kind"]] for r in g.records.values()]) / 5
        for g in study
    )
    found = intervals.estimate(channel - none)
    per_seed = (channel - none).mean(axis=1)
    alone = 4.303 * per_seed.std(ddof=1) / np.sqrt(3)
    text = f"{100 * found.mean:+.2f} ± {100 * found.half_width:.2f} ({100 * alone:.2f})"
    (row,) = [line for line in page.splitlines() if line.startswith("| channel")]
    assert text in row
    (row,) = [line for line in page.splitlines() if line.startswith("| none")]
    assert f"| {100 * none.mean():.2f} ± " in row
    with open(tmp_path / answer.GAINS, encoding="utf-8-sig", newline="") as file:
        rows = {(row["setting"], row["task"]): row for row in csv.DictReader(file)}
    assert set(rows) == {("channel", task) for task in ("label", "kind", "mean")}
    kind = rows["channel", "kind"]
    assert (kind["seeds"], kind["images"]) == ("3", "400")
    assert float(kind["gain"]) == pytest.approx(100 * found.mean, rel=1e-4)
    assert float(kind["half_width"]) == pytest.approx(100 * found.half_width, rel=1e-4)
    label, mean = (float(rows["channel", task]["gain"]) for task in ("label", "mean"))
    assert mean == pytest.approx((label + float(kind["gain"])) / 2, rel=1e-4)


def test_the_page_says_what_each_setting_is_and_where_all_figures_are(tmp_path):
    settings = {"none": {"cross_stitch": False}, "fast": {"lr": "0.1", "init_from": "my runs"}}
    page = written_answer(made_study(), tmp_path, ABOUT._replace(settings=settings))
    assert "none `--cross_stitch=False`, fast `--lr=0.1 '--init_from=my runs'`." in page
    for file in re.findall(r"\]\((.*?)\)", page):
        assert (tmp_path / file).exists()
    assert f"({answer.GAINS})" in page


def test_p_values_are_corrected_together(tmp_path):
    study = made_study(gain=0.1)
    gains = gains_of(study)
    alone = {
        task: float(intervals.estimate(per_image.differences(study[1], study[0], task)).p)
        for task in ("label", "kind", "mean")
    }
    ordered = sorted(alone, key=alone.get)
    corrected = {gain.task: gain.p for gain in gains}
    assert corrected[ordered[0]] == pytest.approx(3 * alone[ordered[0]])
    assert corrected[ordered[2]] == pytest.approx(
        min(1, max(alone[ordered[2]], 2 * alone[ordered[1]]))
    )


def test_two_seeds_have_no_interval_and_the_page_says_so(tmp_path):
    page = written_answer(made_study(seeds=2), tmp_path)
    assert "**With two seeds, nobody can tell a gain from chance" in page
    (row,) = [line for line in page.splitlines() if line.startswith("| channel")]
    assert "±" not in row and "p <" not in page and "p =" not in page


def test_a_run_that_diverged_costs_its_setting_the_seed(tmp_path):
    about = ABOUT._replace(diverged={"none": [], "channel": [4]})
    page = written_answer(made_study(seeds=5, diverged=1), tmp_path, about)
    assert "| channel | 4, 1 diverged |" in page
    assert "channel diverged with seed 4, and is compared without." in page
    nothing = made_study(seeds=2, diverged=2)
    assert "Every run of the other settings diverged" in written_answer(nothing, tmp_path, about)
    none = Group(0, "none", {}, 3)
    with pytest.raises(Failed, match="every run of none diverged"):
        answer.write([none], ABOUT, tmp_path)


RISING = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.91]


@pytest.mark.parametrize("study, about, said", [
    ({"seeds": 5, "images": 2000}, ABOUT, []),
    ({"seeds": 4, "images": 2000}, ABOUT, ["4 seeds make wide intervals"]),
    ({"images": 2000}, ABOUT._replace(left_out=("layer", "nddr")), ["runs of layer, nddr, too"]),
    ({"images": 2000}, ABOUT._replace(seeds_left_out=(5, 6)), ["runs of seeds 5 to 6, too"]),
    ({"images": 2000}, ABOUT._replace(answered=(2, 3)), ["after the answer of 3 was known"]),
    ({"images": 2000}, ABOUT._replace(answered=(2,)), []),  # of two, there was no answer
    ({"seeds": 7, "images": 2000, "diverged": 2}, ABOUT._replace(
        answered=(6,), diverged={"none": [], "channel": [5, 6]}
    ), ["diverged with seed 5", "after the answer of 6 was known"]),
    ({"images": 2000, "flags": {"train_examples": 0}}, ABOUT, ["All seeds train on the same"]),
    ({"images": 2000, "flags": {"train_examples": 0, "starve": 2}}, ABOUT, []),
    ({"images": 2000, "flags": {"train_examples": 0, "label_only": "kind:9"}}, ABOUT, []),
    ({"images": 1999}, ABOUT._replace(is_held_out=True), ["1,999 held-out training images: one"]),
    ({"images": 1999}, ABOUT, ["1,999 test images"]),
    ({"images": 2000, "accuracies": RISING}, ABOUT, ["still rising (none, channel)"]),
    ({"images": 2000, "accuracies": RISING[:9]}, ABOUT, ["Fewer than 10 evaluations"]),
])  # fmt: skip
def test_what_it_cannot_say_is_there_only_where_it_is_so(study, about, said, tmp_path):
    page = written_answer(made_study(**study), tmp_path, about)
    _, _, found = page.partition("## What it cannot say\n\n")
    lines = found.splitlines()
    assert len(lines) == len(said), lines
    for line, words in zip(lines, said):
        assert words in line


def test_whoever_chooses_the_best_setting_is_sent_to_held_out_images(tmp_path):
    study = made_study(images=2000)
    study.append(study[1]._replace(setting="layer"))
    assert "Choose with --holdout" in written_answer(study, tmp_path)
    held_out = written_answer(study, tmp_path, ABOUT._replace(is_held_out=True))
    assert "--holdout" not in held_out and "2,000 held-out training images" in held_out
    study = made_study(images=2000)  # one setting besides none leaves nothing to choose
    assert "--holdout" not in written_answer(study, tmp_path)


# --- Its pictures ---


def pixels(path):
    return np.array(PIL.Image.open(path).convert("RGB")).astype(int)


def test_a_dot_is_filled_if_its_gain_is_significant(tmp_path):
    gain = Gain("channel", "label", 5, 400, 0.01, 0.002, 0.002, p=0.051)
    hollow, filled = (
        pixels(answer_pictures.draw_gains([gain._replace(p=p)], tmp_path / f"{p}.png"))
        for p in (0.051, 0.049)
    )
    assert hollow.shape == filled.shape
    changed = np.argwhere((hollow != filled).any(axis=2))
    # Only the inside of one dot changes, from white to the colour of the task.
    assert len(changed) > 30 and (changed.max(axis=0) - changed.min(axis=0) < 20).all()
    middle = tuple(changed.mean(axis=0).astype(int))
    assert hollow[middle].tolist() == [255, 255, 255]
    assert filled[middle].tolist() == [31, 119, 180]  # tab:blue


def test_runs_that_are_evaluated_at_other_steps_are_drawn_at_those_that_all_have(tmp_path):
    """As with few labels, of which seeds hide others: an epoch has more steps or fewer."""
    study = made_study()
    for record in study[1].records.values():
        for name, (steps, values) in record["curves"].items():
            more = range(11, 12 + record["seed"])
            record["curves"][name] = [[*steps, *more], [*values, *(0.5 for _ in more)]]
    written_answer(study, tmp_path)
    assert (tmp_path / answer.CURVES).exists()


def test_a_band_is_mean_and_deviation_of_the_seeds_at_the_steps_that_all_have():
    """With few labels, seeds hide others, and an epoch has more steps or fewer."""
    curves = {0: [[1, 2, 3], [0.1, 0.2, 0.3]], 1: [[1, 3, 4], [0.3, 0.5, 0.9]]}
    records = {seed: {"curves": {"accuracy_test": curve}} for seed, curve in curves.items()}
    axes = matrices.figure.Figure().subplots()
    pictures.draw_band(axes, Group(1, "none", records), "accuracy_test", "red", "none")
    mean, (band,) = axes.lines[-1], axes.collections
    assert list(mean.get_xdata()) == [1, 3] and mean.get_ydata() == pytest.approx([0.2, 0.4])
    # Of 0.1 and 0.3, and of 0.3 and 0.5: the root of 0.02.
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx((0.2 - 0.02**0.5, 0.4 + 0.02**0.5))


def test_curves_are_smoothed_as_tensorboard_does():
    assert plot.smooth([3, 3, 3], 0.6) == pytest.approx([3, 3, 3])
    assert plot.smooth([0, 1], 0.5) == pytest.approx([0, 1 / 1.5])  # weights 0.5 and 1


def test_the_page_says_how_many_steps_the_settings_have_and_how_many_seeds_are_left(tmp_path):
    study = made_study(diverged=4)
    for record in study[1].records.values():
        record["global_step"] = 1234
    page = written_answer(study, tmp_path, ABOUT._replace(diverged={"channel": [1, 2, 3, 4]}))
    assert "With one seed, nobody can tell" in page and "1 seed makes no interval" in page
    assert "6 runs of 10 to 1,234 steps" in page


def test_seeds_that_only_one_of_two_settings_has_are_not_counted(tmp_path):
    none, channel = made_study()
    study = [none.of_seeds({2, 3, 4}), channel.of_seeds({0, 1, 2, 3})]
    page = written_answer(study, tmp_path, ABOUT._replace(diverged={}))
    assert "| none | 3 |" in page and "| channel | 2 |" in page
    assert "With two seeds, nobody can tell" in page and "2 seeds make no interval" in page
    assert "evaluations a run" not in page  # there are enough of them
    page = written_answer([none.of_seeds({0}), channel.of_seeds({1})], tmp_path)
    assert 'No seed has finished both "none" and another setting' in page


def test_long_names_of_settings_are_not_cut_off_at_the_edges_of_a_picture(tmp_path):
    none, channel = made_study()
    names = [f"a setting of my own with a name of words {i}" for i in range(4)]
    study = [none, *(channel._replace(setting=name) for name in names)]
    answer.write(study, ABOUT, tmp_path)
    for name in (answer.PICTURE, answer.CURVES):
        picture = pixels(tmp_path / name)
        assert (picture[:, [0, 1, -2, -1]] == 255).all() and (picture[[0, -1]] == 255).all(), name


def test_a_folder_whose_name_is_no_utf8_leaves_a_page(tmp_path):
    command = "python -m study.compare --data_dir=caf\udce9"  # as Python shows such an argument
    assert "--data_dir=caf?" in written_answer(
        made_study(), tmp_path, ABOUT._replace(command=command)
    )


# --- What it refuses ---


@pytest.fixture
def where(tmp_path):
    """A folder in which "mine" has 8x8 images with the labels "label" and "kind"."""
    written(tmp_path / "mine", made((8, 8), 120), made((8, 8), 100, seed=1))
    return tmp_path


def assert_one_sentence(finished, *words):
    """It ended with an error, in one sentence that has these words."""
    assert finished.returncode == 1, finished.stderr
    assert "Traceback" not in finished.stderr
    (sentence,) = [li for li in finished.stderr.splitlines() if li.startswith("compare.py: ")]
    for word in words:
        assert word in sentence, sentence


@pytest.mark.parametrize("given, words", [
    (["--settings=none,chanel"], ["'chanel' is none of none, channel,"]),
    (["--settings=none"], ["nothing to compare it with"]),
    (["--settings=layer,layer"], ["'layer' is named twice"]),
    (["--settings=none,layer", "--setting=Layer: --lr=0.1"], ["named twice"]),
    (["--setting=layer: --seed=3"], ["--seed"]),
    (["--setting=nddr: --learning_rate=0.1"], ["'nddr' is named twice"]),
    (["--setting=dense: --lr=1"], ["'dense' is the name of a setting of --settings"]),
    (["--setting=fast units --lr=1"], ["--setting=fast units --lr=1: must be a name"]),
    (["--setting=x: --holdout=5"], ["--holdout", "outside of --setting"]),
    (["--setting=../x: --lr=1"], ["must be a name of letters and digits"]),
    (["--seed=3"], ["--seed:", "--seeds"]),
    (["--overwrite"], ["--overwrite:", "Leave it out"]),
    (["--cross_stitch_unit=nddr"], ["--cross_stitch_unit:", "--settings"]),
    (["--cross_stitch_enabled=False"], ["--cross_stitch:", "--settings"]),
    (["--share_until=fc_3"], ["--share_until:", "--settings"]),
    (["--data_dir="], ["--data_dir=: must name a folder"]),
    (["--tasks=kind"], ["--tasks=kind: one task", "such as --tasks=kind,label"]),
    (["--num_epochs", "3"], ["3: not a flag", "--name=value"]),
    (["--eval_every=0x20"], ["--eval_every=0x20", "decimal digits"]),
    (["--seeds=1"], ["--seeds=1:", "one seed"]),
    (["--name=../x"], ["--name=../x:"]),
    (["--tasks=label"], ["--tasks=label: one task"]),
    (["--tasks=label,colour"], ["colour", "is missing"]),
    (["--dataset=synthetic", "--tasks=article,group"], ["synthetic images differ"]),
])  # fmt: skip
def test_a_wrong_command_line_gets_one_sentence_before_anything_is_written(given, words, where):
    assert_one_sentence(run_compare(where, *given), *words)
    assert not (where / "logs").exists()


@pytest.mark.parametrize("given, words", [
    (["--leaning_rate=0.1"], ["compare.py: Unknown command line flag 'leaning_rate'"]),
    (["--setting=fast: --leaning_rate=0.1", "--batch_size=40"], ["--setting=fast: ", "leaning_rate"]),
    (["--num_epochs=x"], ["num_epochs"]),
    (["--batch_size=500"], ["compare.py: --batch_size=500: there are only 120 training images"]),
    (["--label_only=kind:60", "--balance=500"], ["balance=500", "between 0 and 1"]),
    (["--setting=warm: --init_from=runs/a", "--batch_size=40"], ["--setting=warm: --init_from=", "/runs/a: not the folder"]),
    (["--settings=hard_sharing", "--share_until=pool_1", "--batch_size=40"], ["--settings=hard sharing: ", "--share_until=pool_1"]),
])  # fmt: skip
def test_what_train_py_refuses_is_refused_before_any_run(given, words, where):
    settings = () if any("--settings" in word for word in given) else ("--settings=none",)
    finished = run_compare(where, *settings, "--setting=y: --lr=0.01", *given)
    assert_one_sentence(finished, *words)
    assert str(where) in finished.stderr or "init_from" not in finished.stderr
    assert [path.name for path in folder_in(where).iterdir()] == ["lock"]


@pytest.mark.parametrize("one, other", [
    ("--tasks=label,kind", "--tasks=label, kind"),
    ("--cross_stitch_at=pool_1,fc_3", "--cross_stitch_at=fc_3,pool_1"),
    ("--init_from=A", "--init_from=A/"), ("--learning_rate=0.001", "--learning_rate=1e-3"),
    ("--cross_stitch_own_only", "--cross_stitch_own_only=true"),
])  # fmt: skip
def test_a_comparison_is_known_by_what_its_flags_mean(one, other, tmp_path):
    def asked_for(flag, setting, name="mine"):
        given = command_line.of_all_runs([flag])
        settings = command_line.settings_of(["none"], [f"{name}: '{setting}'"])
        return {"dataset": "d", "data": "0", "numerics": 1, "flags": given, "settings": settings}

    comparison.write_parameters(tmp_path, asked_for(one, "--batch_size=32"))
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine-seed0").mkdir()
    comparison.check(tmp_path, asked_for(other, "--batch_size=032"))
    with pytest.raises(Failed, match="was started with"):
        comparison.check(tmp_path, asked_for("--num_epochs=3", "--batch_size=32"))
    with pytest.raises(Failed, match="its setting 'mine' is"):
        comparison.check(tmp_path, asked_for(one, "--batch_size=64"))
    (tmp_path / "runs" / "mine-seed0").rename(tmp_path / "runs" / "mine-seed0.log")
    comparison.check(tmp_path, asked_for(one, "--batch_size=64"))  # no run of it has begun
    with pytest.raises(Failed, match="has a setting 'mine'. Choose another name than 'Mine'"):
        comparison.check(tmp_path, asked_for(one, "--batch_size=32", "Mine"))


def test_a_folder_is_named_by_what_its_flags_mean():
    dataset = types.SimpleNamespace(name="mine")
    names = {
        comparison.name_of(dataset, command_line.of_all_runs(words))
        for words in (["--lr=1e-3", "--n_epoch=3"], ["--num_epochs=3", "--learning_rate=0.001"])
    }
    assert names == {"mine-learning_rate=0.001-num_epochs=3"}


def test_a_relative_folder_of_data_in_the_environment_is_the_one_that_the_user_meant(where):
    given = ("--data_dir=mine", "--tasks=label,colour")
    by_flag = run_compare(where, *given)
    by_variable = run_script(
        "study.compare", given[1], prelude=there(where), FASHION_MNIST_DIR="mine"
    )
    assert str(where / "mine") in by_flag.stderr
    assert by_variable.stderr == by_flag.stderr


def test_it_knows_how_many_steps_a_run_has():
    defaults = {name: train.FLAGS[name].default for name in ("num_epochs", "batch_size")}
    assert defaults == {"num_epochs": compare.EPOCHS, "batch_size": compare.BATCH_SIZE}
    labels = np.arange(1000) % 10
    split = data.Split(labels[:, None, None].astype(np.uint8), {"label": labels, "kind": labels})
    tasks = [data.Task(name, tuple("0123456789"), ()) for name in ("label", "kind")]
    dataset = data.with_statistics("mine", split, split, tuple(tasks))
    assert compare.steps_of({}, dataset) == (30 * 8, 128)
    given = {"train_examples": "300", "num_epochs": "2", "batch_size": "100"}
    assert compare.steps_of(given, dataset) == (6, 100)
    assert compare.steps_of(given | {"max_steps": "4"}, dataset) == (4, 100)
    # A batch with both labels, and eight without one of them, or as many of each.
    some = {"label_only": "kind:128", "num_epochs": "1"}
    assert compare.steps_of(some, dataset) == (1 + 7, 128)
    assert compare.steps_of(some | {"balance": "1"}, dataset) == (7 + 7, 128)
    assert compare.steps_of({"train_examples": "3_00", "num_epochs": "1"}, dataset) == (3, 128)


def test_a_seed_that_chooses_too_few_labels_is_named_before_any_run(tmp_path):
    images, labels = np.zeros([600, 4, 4], np.uint8), np.arange(600) % 2
    labels[500:] = -1
    kinds = np.where(np.arange(600) % 3 == 0, 0, -1)
    kinds[500:] = -1  # no label at all, so train.py leaves these out after it has chosen
    kinds[:500:7] = 1
    written(tmp_path / "mine", (images, labels, kinds), (images, labels, kinds))
    given = {"dataset": "auto", "data_dir": str(tmp_path / "mine"), "tasks": "label,kind"}
    chosen = [choices.balanced(labels, 550, seed) for seed in range(10)]
    counts = [int(np.sum(kinds[of_seed] >= 0)) for of_seed in chosen]
    batch_size, few = min(counts) + 1, counts.index(min(counts))
    assert 0 < few and min(counts[:few]) >= batch_size
    given |= {"train_examples": "550", "batch_size": str(batch_size)}
    runs = [Run("runs", "mine", seed, given) for seed in range(10)]
    with pytest.raises(Failed, match=f"^mine, seed {few}: .*only {min(counts)} training images"):
        compare.check_seeds(runs)
    compare.check_seeds(runs[:few])


def test_what_train_py_warns_of_is_said_with_the_settings_that_it_is_about(where):
    given = {"dataset": "auto", "data_dir": str(where / "mine"), "tasks": "label,kind"}
    given["batch_size"] = "40"
    own = {
        "mine": {"cross_stitch": "False", "cross_stitch_init": "0.7"},
        "none": {"cross_stitch": "False"},
    }
    firsts = [Run("runs", name, 0, {**given, **of}) for name, of in own.items()]
    with pytest.warns(UserWarning, match="^mine: ignored, .*: --cross_stitch_init$") as caught:
        compare.check_flags(firsts, records.Folders(where, where), 2)
    assert len(caught) == 1
    firsts = [run._replace(flags=run.flags | {"batch_size": "119"}) for run in firsts]  # of 120
    with pytest.warns(UserWarning, match="^mine, none: the last batch of each epoch has one image"):
        compare.check_flags(firsts, records.Folders(where, where), 2)


@pytest.mark.parametrize("text", [
    "no space ends this line " * 9 + "at its end", "--init_from=/" + "a" * 90 + ": was trained",
    "/a/" + "b" * 75, "two  spaces", "one",
])  # fmt: skip
def test_what_a_box_says_can_be_read_from_it(text):
    output = "before\n" + "".join(map(process.format_warning, [text, "another"])) + "after\n"
    assert process.warnings_in(output) == [" ".join(text.split()), "another"]


def test_after_fifty_steps_of_a_run_it_says_how_long_all_take(tmp_path, monkeypatch, capsys):
    now = iter([100.0, 110.0, 130.0])  # its start, and two looks at the runs
    monkeypatch.setattr(watching.time, "monotonic", lambda: next(now))
    folders = [tmp_path / name for name in ("one", "other")]
    for folder in folders:
        folder.mkdir()
    # 100 steps of 10 images, and as much again for evaluations.
    bar = watching.Bar(dict.fromkeys(folders, watching.Cost(1000.0, 1000.0)), jobs=1)
    for step in (40, 60):
        (folders[0] / "progress.json").write_text(json.dumps({"step": step, "last_step": 100}))
        bar._update()
    # A step takes a second, so a run 200, and ten before its first step.
    assert "About 7 min 0 s for 2 runs. Shorter: fewer --seeds" in capsys.readouterr().out


def test_of_a_run_that_is_resumed_only_what_is_left_counts(tmp_path, monkeypatch, capsys):
    now = iter([100.0, 110.0, 130.0])  # its start, and two looks at the runs
    monkeypatch.setattr(watching.time, "monotonic", lambda: next(now))
    bar = watching.Bar(dict.fromkeys([tmp_path, tmp_path / "new"], watching.Cost(500.0, 500.0)), 1)
    for step in (820, 920):
        progress = {"first_step": 800, "step": step, "last_step": 1000}
        (tmp_path / "progress.json").write_text(json.dumps(progress))
        bar._update()
    # A step takes 0.2 s, and as long again for evaluations, so a run 400: a fifth is left of the
    # one, and all of the other, each after 10 s.
    assert "About 8 min 20 s for 2 runs." in capsys.readouterr().out
    assert bar._bar.n - bar._bar.initial == pytest.approx(0.12 * 1000)


def test_by_default_it_compares_the_kinds_of_sharing_and_what_helps_where_labels_are_few():
    assert list(command_line.DEFAULT) == [
        "none", "channel", "layer", "nddr", "hard sharing", "start 0.7",
    ]  # fmt: skip


# --- A folder, and what may come after it ---

QUICK = ("--seeds=2", "--settings=none,hard_sharing", "--num_epochs=6", "--batch_size=40",
         "--batch_norm_decay=0.8")  # fmt: skip


def state_of(where):
    """Path below the folder -> when it was written, of its records."""
    folder = folder_in(where) / "runs"
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.json")}


@pytest.mark.slow
def test_a_users_day(where):
    """Killed and resumed, raised to three seeds; and what else may be in the folder's way."""
    command = command_of(
        "study.compare", "--data_dir=mine", "--tasks=label,kind", "--name=test", *QUICK,
        "--jobs=1",  # or else the runs may end before a second process has begun
        prelude=there(where),
    )  # fmt: skip
    killed = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + SECONDS
    while not state_of(where):
        assert killed.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    assert_one_sentence(run_compare(where, *QUICK), "another process", "--name")
    killed.send_signal(signal.SIGKILL)
    output, _ = killed.communicate()
    assert output.startswith("4 runs: none, hard sharing; seeds 0 to 1.")
    assert re.search(r"^About .* for 4 runs\. Shorter: ", output, re.M)

    before = state_of(where)
    resumed = run_compare(where, *QUICK)
    assert resumed.returncode == 0, resumed.stderr
    assert before.items() <= state_of(where).items()  # no record is made again
    runs_made = {f"{name}-seed{seed}.json" for name in ("none", "hard_sharing") for seed in (0, 1)}
    assert set(state_of(where)) == runs_made
    assert "**With two seeds, nobody can tell a gain from chance" in resumed.stdout
    assert not list(folder_in(where).glob("runs/*/model.ckpt-*"))

    before = state_of(where)
    more = run_compare(where, *QUICK, "--seeds=3", "--keep_runs")
    assert more.returncode == 0, more.stderr
    assert before.items() <= state_of(where).items() and len(state_of(where)) == 6
    path = folder_in(where) / answer.PAGE
    assert more.stdout.endswith(f"\n\nThe page with its pictures: {path}\n")
    page = path.read_text(encoding="utf-8")
    assert page.partition("## What")[0].split("![")[0].strip() in more.stdout
    assert "`python -m study.compare --data_dir=mine" in page and " ± " in page
    assert "hard sharing `--cross_stitch=False --hard_sharing=True`." in page
    assert "mine-custom: 120 training images, 100 test images; label (20 classes)" in page
    assert list(folder_in(where).glob("runs/*-seed2/model.ckpt-*"))
    assert "which the command leaves out" not in page

    # Seeds that are left out, or were added after a look.
    assert "after the answer of" not in page  # with two seeds, there was none
    fewer = run_compare(where, *QUICK)
    assert "This folder has runs of seeds 2, too" in fewer.stdout
    assert "after the answer of" not in fewer.stdout  # no seed was added
    state = folder_in(where) / comparison.PARAMETERS
    assert json.loads(state.read_text())["answered"] == [2, 3]

    # With one setting less, whose runs stay.
    fewer = run_compare(
        where, *QUICK[:1], "--settings=none", *QUICK[2:], "--setting=mine: --lr=0.1"
    )
    assert fewer.returncode == 0, fewer.stderr
    assert "This folder has runs of hard sharing, too" in fewer.stdout

    # Another comparison in its folder.
    other = run_compare(where, *QUICK[:-1])
    assert_one_sentence(other, "was started with", "--batch_norm_decay=0.8", "--name")
    assert_one_sentence(
        run_compare(where, *QUICK, "--setting=mine: --lr=0.1", "--tasks=kind,label"), "--tasks"
    )
    path = where / "mine" / "train-kind.npy"
    kinds = np.load(path)
    np.save(path, np.append(kinds[:-1], (kinds[-1] + 1) % 5))
    assert_one_sentence(run_compare(where, *QUICK), "have changed", "--name")
    state = folder_in(where) / comparison.PARAMETERS
    parameters = json.loads(state.read_text())
    np.save(path, kinds)
    state.write_text(json.dumps(parameters | {"numerics": -1}))
    assert_one_sentence(run_compare(where, *QUICK), "numerics -1", "--name")
    state.unlink()
    assert_one_sentence(run_compare(where, *QUICK), "holds no comparison", "--name")


@pytest.mark.slow
def test_a_full_disk_ends_it_with_one_sentence_and_the_same_command_resumes(where):
    # Python ignores SIGXFSZ, so that writing more than this fails, as on a full disk.
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000,) * 2)"
    given = (*QUICK, "--settings=none,channel")
    usual = ("--data_dir=mine", "--tasks=label,kind", "--name=test")
    failed = run_script("study.compare", *usual, *given, prelude=f"{there(where)}; {limit}")
    assert_one_sentence(failed, "cannot be written", "same command")
    resumed = run_compare(where, *given)
    assert resumed.returncode == 0, resumed.stderr
    assert len(state_of(where)) == 4


def test_runs_whose_data_have_changed_while_they_trained_are_not_used(tmp_path):
    folders = records.Folders(tmp_path, tmp_path)
    run, before = Run("runs", "none", 0, {}), {"dataset": "mine-custom", "data": "1 2"}
    records.write_record(folders.record(run), {"seed": 0})
    comparison.check_data([run], folders, before, dict(before))
    assert folders.has_record(run)
    with pytest.raises(Failed, match="have changed while the runs trained"):
        comparison.check_data([run], folders, before, before | {"data": "1 3"})
    assert not folders.has_record(run)


# --- What is planted is found ---


def noisy(count, seed):
    """Images of ten patterns in so much noise that about half are recognised, and their labels."""
    random, labels = np.random.RandomState(seed), np.arange(count) % 10
    patterns = np.random.RandomState(9).randint(-64, 64, [10, 8, 8])
    images = 128 + patterns[labels] + random.normal(0, 90, [count, 8, 8])
    return np.clip(images, 0, 255).astype(np.uint8), labels


def planted(where, kinds_of, *settings):
    """Compares settings with none on two tasks, the second of which has labels of its own.

    Args:
      where: the folder.
      settings: flags that name the settings, and the seeds.
      kinds_of: function of the first task's labels, in both splits, and a RandomState. It
        returns the labels of the second.

    Returns:
      Task -> its row of gains.csv; and what the program prints.
    """
    (images, labels), (test_images, test_labels) = noisy(300, 0), noisy(1000, 1)
    kinds, test_kinds = kinds_of(labels, test_labels, np.random.RandomState(2))
    written(where / "mine", (images, labels, kinds), (test_images, test_labels, test_kinds))
    finished = run_compare(
        where, *settings, "--num_epochs=10", "--batch_size=50", "--eval_every=6",
        "--batch_norm_decay=0.8",
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    with open(folder_in(where) / answer.GAINS, encoding="utf-8-sig", newline="") as file:
        return {row["task"]: row for row in csv.DictReader(file)}, finished.stdout


@pytest.mark.slow
def test_random_labels_gain_nothing(tmp_path):
    def random_labels(labels, test_labels, random):
        return random.randint(0, 4, len(labels)), random.randint(0, 4, len(test_labels))

    gains, _ = planted(tmp_path, random_labels, "--seeds=5", "--settings=none,hard_sharing")
    assert float(gains["kind"]["p_holm"]) >= 0.05


@pytest.mark.slow
def test_a_planted_effect_is_found(fashion_mnist, tmp_path):
    """Both tasks are the article, but of one it is known for 100 images of 2,000. A tower of its
    own learns from these alone, one tower for both from all."""
    train = data.choose_images(fashion_mnist.train, 2000, 1, seed=0)
    test = fashion_mnist.test.take(slice(1000))
    articles, of_test = (split.labels["article"].astype(int) for split in (train, test))
    few = np.isin(np.arange(2000), choices.in_proportion(articles, 100, 0, "kind"))
    kinds = np.where(few, articles, -1)
    written(tmp_path / "mine", (train.images, articles, kinds), (test.images, of_test, of_test))
    found = run_compare(tmp_path, "--seeds=3", "--settings=none,hard_sharing", "--num_epochs=4",
                        "--batch_size=50", "--balance=0.5")  # fmt: skip
    assert found.returncode == 0, found.stderr
    with open(folder_in(tmp_path) / answer.GAINS, encoding="utf-8-sig", newline="") as file:
        (gain,) = [row for row in csv.DictReader(file) if row["task"] == "kind"]
    assert float(gain["gain"]) > 3 and float(gain["p_holm"]) < 0.05, gain
    assert "hard sharing gains" in found.stdout and "points on kind" in found.stdout
    page = (folder_in(tmp_path) / answer.PAGE).read_text()
    assert "known training labels: label 2,000, kind 100" in page


@pytest.mark.slow
def test_a_setting_that_hardly_learns_loses(tmp_path):
    def odd(labels, test_labels, random):
        return labels % 2, test_labels % 2

    slow = "--setting=slow: --cross_stitch=False --learning_rate=1e-5"
    gains, said = planted(tmp_path, odd, "--seeds=3", "--settings=none", slow)
    assert float(gains["label"]["gain"]) < -10 and float(gains["label"]["p_holm"]) < 0.05
    assert "slow loses" in said and "points on label" in said
