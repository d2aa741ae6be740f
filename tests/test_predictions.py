"""predictions.bin: what a run predicted, each evaluation once, whatever happened to the run."""

import json
import resource

import numpy as np
import pytest
from conftest import make_split
from test_resume import EVERY, UNITS, folder, run

import data
from harness import evaluation_log, predictions
from harness.errors import CannotWrite
from harness.predictions import PredictionLog

COUNT = 20
EMPTY = np.zeros([28, 28], np.float32)


def dataset_of(**numbers):
    """A data set of COUNT test images. Args: task -> number of classes."""
    tasks = [data.Task(task, tuple(map(str, range(number))), ()) for task, number in numbers.items()]
    split = make_split(COUNT)
    return data.Dataset("made", split, split, EMPTY, EMPTY, tuple(tasks))


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
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores SIGXFSZ, so that writing more than this fails, as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(CannotWrite, match=f"{predictions.NAME}: cannot be written .*too large"):
            write(tmp_path, [10, 20, 30])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
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
