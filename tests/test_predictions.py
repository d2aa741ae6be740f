"""What a run predicted: predictions.bin, predictions.csv, and the mistakes in TensorBoard."""

import csv
import io
import json

import numpy as np
import PIL.Image
import pytest
from conftest import files_of_at_most, make_split, run_script, run_train
from tensorboard.backend.event_processing import event_accumulator
from test_own_images import made, written
from test_resume import EVERY, UNITS, folder, run

import data
from harness import evaluation_log, mistakes, predictions
from harness.errors import CannotWrite
from harness.predictions import PredictionLog

COUNT = 20
EMPTY = np.zeros([28, 28], np.float32)


def dataset_of(**numbers):
    """A data set of COUNT test images. Args: task -> number of classes."""
    tasks = [
        data.Task(task, tuple(map(str, range(number))), ()) for task, number in numbers.items()
    ]
    split = make_split(COUNT)
    return data.Dataset("made", split, split, EMPTY, EMPTY, None, tuple(tasks))


DATASET = dataset_of(label=255, kind=256)
LABELS = {"label": np.arange(COUNT), "kind": np.arange(COUNT) * 13}


def classes_at(step):
    """At step 10, all is right. At each later evaluation, one more label is wrong."""
    wrong = np.arange(COUNT) < step // 10 - 1
    return {"label": np.where(wrong, 254, LABELS["label"]), "kind": LABELS["kind"]}


def write(folder, steps, step=0):
    """Writes evaluations as a run does that resumes after `step`."""
    with PredictionLog(folder, step, DATASET) as log:
        for at in steps:
            log.append(at, classes_at(at))
        log.sync()


def read(folder):
    return np.fromfile(folder / predictions.NAME, predictions.layout(DATASET))


def finish(folder, steps, averaged):
    """Resumes after the last of these steps and ends. Returns: as `PredictionLog.finish`."""
    with PredictionLog(folder, steps[-1], DATASET) as log:
        return log.finish(averaged, LABELS)


def test_each_evaluation_has_a_fixed_number_of_bytes_and_says_what_was_predicted(tmp_path):
    write(tmp_path, [10, 20])
    first, second = read(tmp_path)
    # The step, a byte for each of 255 classes, two for each of 256.
    assert (tmp_path / predictions.NAME).stat().st_size == 2 * (8 + COUNT + 2 * COUNT)
    assert second["step"] == 20 and second["classes"]["label"].tolist() == [254, *range(1, COUNT)]
    assert second["classes"]["kind"].tolist() == LABELS["kind"].tolist()  # up to 247


def test_a_run_that_resumes_cuts_off_what_it_makes_again(tmp_path):
    write(tmp_path, [10, 20, 30])
    write(tmp_path, [30, 40], step=25)
    assert read(tmp_path)["step"].tolist() == [10, 20, 30, 40]
    write(tmp_path, [10])
    assert read(tmp_path)["step"].tolist() == [10]


@pytest.mark.parametrize("torn", [b"\x1e", b"\x1e" + bytes(7), bytes(100), b"\xff" * 200])
def test_a_torn_or_damaged_evaluation_is_dropped(torn, tmp_path):
    write(tmp_path, [10, 20])
    with open(tmp_path / predictions.NAME, "ab") as file:
        file.write(torn)
    write(tmp_path, [40], step=35)
    assert read(tmp_path)["step"].tolist() == [10, 20, 40]


def test_at_the_end_five_evaluations_are_left_and_say_how_often_an_image_was_right(tmp_path):
    steps = list(range(10, 80, 10))
    write(tmp_path, steps)
    correct = finish(tmp_path, steps, steps[-5:])
    # Label 0 is wrong since step 20, label 1 since 30, label 5 since 70, which is the last.
    assert correct == {"label": "001234" + "5" * (COUNT - 6), "kind": "5" * COUNT}
    assert read(tmp_path)["step"].tolist() == steps[-5:]
    assert finish(tmp_path, steps, steps[-5:]) == correct  # killed before its results, it goes on
    # With more epochs, the new evaluations follow the last five.
    write(tmp_path, [80], step=70)
    assert read(tmp_path)["step"].tolist() == [*steps[-5:], 80]


def test_what_is_lost_is_not_counted(tmp_path):
    write(tmp_path, [30, 40])
    assert finish(tmp_path, [40], [20, 30, 40]) is None
    assert finish(tmp_path, [40], [30, 40])["kind"] == "2" * COUNT


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path):
    with files_of_at_most(100):
        with pytest.raises(CannotWrite, match=f"{predictions.NAME}: cannot be written .*too large"):
            write(tmp_path, [10, 20, 30])
    write(tmp_path, [20, 30], step=10)
    assert read(tmp_path)["step"].tolist() == [10, 20, 30]


def test_a_runs_file_agrees_with_its_evaluations(monkeypatch, tmp_path):
    """Two evaluations, the accuracies of both and the digits of results.json are one thing."""
    finished = run(tmp_path, UNITS["none"], f"--max_steps={2 * EVERY}")
    assert finished.returncode == 0, finished.stderr
    results = json.loads((folder(tmp_path) / "results.json").read_text())
    curves = evaluation_log.curves(folder(tmp_path))
    monkeypatch.setattr(data, "SYNTHETIC_SIZES", (1200, 200))
    dataset = data.load("synthetic")
    evaluations = np.fromfile(folder(tmp_path) / predictions.NAME, predictions.layout(dataset))
    assert evaluations["step"].tolist() == [EVERY, 2 * EVERY]
    for task in dataset.tasks:
        right = evaluations["classes"][task.name] == task.labels(dataset.test)
        _, accuracies = curves[f"accuracy_test_{task.name}"]
        assert right.mean(axis=1) == pytest.approx(accuracies, abs=1e-6)
        assert [int(digit) for digit in results["correct_last"][task.name]] == list(right.sum(0))


# --- Of a finished run ---


def test_a_probability_is_that_of_the_prediction():
    logits = np.log(np.array([[0.2, 0.5, 0.3], [0.9, 0.06, 0.04]], np.float32)) + 7
    first, second = predictions.of_batch(logits, np.array([2, 0]))
    assert first == (2, 1, pytest.approx(0.5)) and second == (0, 0, pytest.approx(0.9))


def test_the_worst_mistakes_are_those_with_the_highest_probability():
    right, wrong = predictions.Predicted(0, 0, 1.0), predictions.Predicted(0, 1, 0.5)
    rows = [
        {"label": right if index % 2 else wrong._replace(probability=index / 100), "kind": right}
        for index in range(100)
    ]
    found = predictions.worst(iter(rows), ["label", "kind"])
    assert [index for index, _ in found["label"]] == list(range(98, 50, -2))
    assert found["label"][0] == (98, (0, 1, 0.98)) and found["kind"] == []


NAMES = 'plain\n"quoted", with a comma\n上衣\n'


def read_table(content):
    return list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline="")))


def test_a_table_holds_names_as_they_are():
    task = data.Task("label", tuple(NAMES.splitlines()), ())
    rows = [
        {"label": predictions.Predicted(1, 2, 0.75)},
        {"label": predictions.Predicted(0, 0, 1.0)},
    ]
    content = predictions.table(rows, [task], [500, 502])
    assert content.startswith(b"\xef\xbb\xbfrow,label_label,label_prediction,label_probability\r\n")
    first, second = read_table(content)
    assert list(first.values()) == ["500", '"quoted", with a comma', "上衣", "0.750000"]
    assert list(second.values()) == ["502", "plain", "plain", "1.000000"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run on held-out images of one's own. Returns: its log folder, its command line."""
    where = tmp_path_factory.mktemp("own")
    images, labels, _ = made((8, 8, 3), 90, classes=3)
    written(where / "mine", (images, labels, labels // 2))
    (where / "mine" / "label-classes.txt").write_text(NAMES, encoding="utf-8")
    given = (f"--data_dir={where / 'mine'}", "--tasks=label,kind", f"--logdir={where / 'logs'}",
             "--max_steps=2", "--holdout=30", "--batch_size=30", "--run_name=run")  # fmt: skip
    ended = run_train(*given)
    assert ended.returncode == 0, ended.stderr
    return where / "logs" / "run", given


def test_an_evaluated_run_writes_what_it_predicts_for_each_image(finished):
    run_dir, given = finished
    evaluated = run_train(*given, "--eval_only")
    assert evaluated.returncode == 0, evaluated.stderr
    assert f"\n{run_dir / predictions.TABLE}: holds label and prediction" in evaluated.stdout
    rows = read_table((run_dir / predictions.TABLE).read_bytes())
    places, names = [int(row["row"]) for row in rows], NAMES.splitlines()
    assert len(set(places)) == 30 and set(places) < set(range(90))  # of the training file
    assert [row["label_label"] for row in rows] == [names[place % 3] for place in places]
    results = json.loads((run_dir / "results.json").read_text())
    for task in ("label", "kind"):
        right = np.mean([row[f"{task}_label"] == row[f"{task}_prediction"] for row in rows])
        assert right == pytest.approx(results["accuracy_test"][task])
    assert all(1 / 3 <= float(row["label_probability"]) <= 1 for row in rows)


def test_a_disk_that_cannot_be_written_is_a_warning(finished):
    run_dir, given = finished
    (run_dir / predictions.TABLE).unlink(missing_ok=True)
    # Python ignores SIGXFSZ, so that writing more than this fails, as on a full disk.
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))"
    evaluated = run_script("train.py", *given, "--eval_only", prelude=limit)
    assert evaluated.returncode == 0, evaluated.stderr
    assert "Evaluated: label" in evaluated.stdout
    words = " ".join(evaluated.stderr.split())
    assert f"WARNING: {run_dir / predictions.TABLE}: cannot be written (File too large)." in words
    assert str(run_dir / predictions.TABLE) not in evaluated.stdout
    assert not (run_dir / predictions.TABLE).exists()


def test_tensorboard_shows_the_mistakes_of_each_task(finished):
    run_dir, _ = finished
    events = event_accumulator.EventAccumulator(str(run_dir), {event_accumulator.IMAGES: 0})
    events.Reload()
    results = json.loads((run_dir / "results.json").read_text())
    wrong = {task for task in ("label", "kind") if results["accuracy_test"][task] < 1}
    shown = {tag for tag in events.Tags()["images"] if "mistakes" in tag}
    assert shown == {f"summary/mistakes_{task}" for task in wrong} and wrong


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1), (12, 8, 2), (8, 8, 3), (8, 8, 4)])
def test_images_of_any_kind_are_drawn(shape):
    images = np.random.RandomState(0).randint(0, 256, [7, *shape]).astype(np.uint8)
    names = [("a", "b")] * 6 + [("a name that is much too long for a title", "上衣")]
    png = mistakes.draw(images, names)
    width, height = PIL.Image.open(io.BytesIO(png)).size
    assert width > 2 * height  # two rows of six


def test_a_title_that_is_long_has_two_lines():
    assert mistakes.title_of("Coat", "Shirt") == "Coat → Shirt"
    assert mistakes.title_of("a" * 22, "b" * 23) == "a" * 22 + "\n→ " + "b" * 21 + "…"
