"""Images of one's own, from arrays to an exported network: any size, up to four channels."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import PIL.Image
import pytest
from conftest import ROOT, SECONDS, run_train, start_train
from test_serving import LOAD

import data
from harness import matrices

(CODE,) = re.findall(r"```python\n(import numpy.*?)```", (ROOT / "README.md").read_text(), re.S)
(COMMAND,) = re.findall(r"^python train.py (--data_dir=FOLDER --tasks=.*)$", (ROOT / "README.md").read_text(), re.M)  # fmt: skip


def made(shape, count=60, classes=20, seed=0):
    """Images of so many classes that can be told apart, their labels, and five kinds of them."""
    random = np.random.RandomState(seed)
    labels = np.arange(count) % classes
    patterns = np.random.RandomState(9).randint(0, 256, [classes, *shape])
    noise = random.randint(-60, 60, [count, *shape])
    images = np.clip(patterns[labels] + noise, 0, 255).astype(np.uint8)
    return images, labels, labels % 5


def written(folder, training, test=None):
    """Writes both splits with README's code, word for word. Returns: the folder."""
    folder.mkdir(exist_ok=True)
    before = os.getcwd()
    os.chdir(folder)
    try:
        exec(CODE, {"training": training, "test": test or training})
    finally:
        os.chdir(before)
    return folder


def load(folder, tasks=("label", "kind"), **options):
    return data.load("auto", folder, tasks=list(tasks), **options)


# --- Reading ---


@pytest.mark.parametrize(
    "shape", [(8, 8), (12, 20), (64, 64), (8, 8, 1), (32, 32, 2), (32, 32, 3), (16, 8, 4)], ids=str
)
def test_images_of_any_size_are_standardised_by_pixel_and_channel(shape, tmp_path):
    images, labels, kinds = given = made(shape)
    dataset = load(written(tmp_path / "mine", given))
    assert dataset.name == "mine-custom" and dataset.image_shape() == (*shape, 1)[:3]
    batch, of_batch = dataset.batch(dataset.train, np.arange(60))
    assert batch.shape == (60, *shape, 1)[:4] and batch.dtype == np.float32
    np.testing.assert_allclose(batch.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(batch.std(axis=0), 1, atol=1e-4)
    first = images[:, 0, 0].reshape(60, -1)[:, 0] - batch.dtype.type(dataset.mean.ravel()[0])
    np.testing.assert_allclose(batch[:, 0, 0, 0], first * dataset.scale.ravel()[0], rtol=1e-5)
    np.testing.assert_array_equal(of_batch["label"], labels)
    np.testing.assert_array_equal(of_batch["kind"], kinds)


def test_the_labels_of_ones_own_images_are_the_task_label_and_may_have_names(tmp_path):
    folder = written(tmp_path / "mine", made((8, 8), count=600, classes=300))
    (label,) = load(folder, tasks=()).tasks
    assert label.name == "label" and label.classes == tuple(map(str, range(300)))
    names = [f"kind of thing {i}" for i in range(300)]
    (folder / "label-classes.txt").write_text("\n".join(names))
    (label,) = load(folder, tasks=()).tasks
    assert label.classes == tuple(names)


def test_a_subset_of_ones_own_images_has_as_many_of_each_label(tmp_path):
    dataset = load(
        written(tmp_path / "mine", made((8, 8), count=90, classes=30)), train_examples=60
    )
    assert set(dataset.images_by_class()["label"].values()) == {2}


BAD = {
    "channels first": (made((3, 32, 32)), "channels come first. Save x.transpose(0, 2, 3, 1)"),
    "five channels": (made((8, 8, 5)), "the images have 5 channels; they may have 1 to 4"),
    "odd size": (made((30, 33)), "30x33 pixels, not multiples of 4: crop them to 28x32, or pad them to 32x36"),
    "too small": (made((2, 8)), "2x8 pixels, not multiples of 4: pad them to 4x8"),
    "one class": (made((8, 8), classes=1), "every label of task 'label' is 0. A task needs at least two classes"),
}  # fmt: skip


@pytest.mark.parametrize("given, words", BAD.values(), ids=BAD)
def test_images_that_cannot_be_used_get_a_sentence_that_says_what_to_do(given, words, tmp_path):
    folder = written(tmp_path / "mine", given)
    with pytest.raises(data.DataError, match=re.escape(words)):
        load(folder)


def test_images_of_0_to_1_get_a_warning(tmp_path):
    images, labels, kinds = made((8, 8))
    folder = written(tmp_path / "mine", (np.uint8(images / 255.0), labels, kinds))
    with pytest.warns(UserWarning, match="train-images.npy: no value is above 1"):
        data.load("auto", folder, tasks=["label"])


def test_training_and_test_images_have_one_shape(tmp_path):
    folder = written(tmp_path / "mine", made((8, 8)), made((8, 12)))
    with pytest.raises(data.DataError, match="differ in height, width or channels"):
        load(folder)


@pytest.mark.parametrize("task", ["article", "group"])
def test_tasks_of_fashion_mnist_are_refused_for_other_images(task, tmp_path):
    folder = written(tmp_path / "mine", made((8, 8)))
    with pytest.raises(data.DataError, match=f"{task}.* Their own labels are the task 'label'"):
        load(folder, tasks=[task])


@pytest.mark.skipif(sys.platform == "darwin", reason="its disks hold UTF-8 names only")
def test_a_folder_may_have_a_name_that_is_no_utf8(tmp_path):
    folder = written(tmp_path / os.fsdecode(b"caf\xe9"), made((8, 8)))
    trained = run_train(f"--data_dir={folder}", "--tasks=label,kind", "--batch_size=20",
                        "--num_epochs=1", f"--logdir={tmp_path}")  # fmt: skip
    assert trained.returncode == 0 and "Traceback" not in trained.stderr, trained.stderr


def test_weights_that_need_more_memory_than_there_is_get_a_sentence(tmp_path):
    folder = written(tmp_path / "mine", made((64, 64, 3)))
    limited = "import resource; resource.setrlimit(resource.RLIMIT_AS, (6 * 10**10,) * 2)"
    refused = run_train(f"--data_dir={folder}", "--tasks=label,kind", "--cross_stitch_unit=dense",
                        "--batch_size=20", f"--logdir={tmp_path / 'logs'}", prelude=limited)  # fmt: skip
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    (sentence,) = [line for line in refused.stderr.splitlines() if line.startswith("train.py: ")]
    assert re.search(
        r"takes at least 86\.5 GB of memory, and this process may use [\d.]+ GB\.", sentence
    )
    # Nothing stands in the way of the same name with another unit.
    assert not list(tmp_path.rglob("settings.json"))


# --- Pictures ---


def test_matrices_of_many_classes_have_one_size():
    def size_of(count):
        names = [f"a class with a name, {i:3}" for i in range(count)]
        png = matrices.draw({"label": (np.eye(count), np.eye(count))}, names, ("", ""), 1, False)
        return PIL.Image.open(io.BytesIO(png)).size

    assert size_of(20)[0] < size_of(31)[0] == size_of(255)[0]


# --- An afternoon ---


@pytest.mark.slow
def test_readmes_way_from_arrays_to_an_exported_network(tmp_path):
    """Files and command word for word; then a kill, a resume, the pictures, and an export."""
    shape = (32, 32, 3)
    test = made(shape, 100, seed=1)
    folder = written(tmp_path / "mine", made(shape, 400), test)
    given = [*COMMAND.replace("FOLDER", str(folder)).split(), "--eval_every=5", "--batch_size=40",
             "--num_epochs=4", "--batch_norm_decay=0.8"]  # fmt: skip
    logs, export = tmp_path / "logs", tmp_path / "export"
    killed = start_train(*given, f"--logdir={logs}", "--save_checkpoint_secs=0.01")
    end = time.monotonic() + SECONDS
    while not list(logs.glob("*/model.ckpt-1*.index")):
        assert killed.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait(SECONDS)
    resumed = run_train(*given, f"--logdir={logs}", f"--export_dir={export}")
    assert resumed.returncode == 0, resumed.stderr
    (run_dir,) = logs.iterdir()
    assert run_dir.name.startswith("mine-custom-channel-seed0-tasks=label,kind")
    results = json.loads((run_dir / "results.json").read_text())
    assert results["accuracy_test"]["label"] > 0.5  # of 20 classes
    assert np.shape(results["confusion"]["label"]) == (20, 20)
    events = b"".join(path.read_bytes() for path in run_dir.glob("*tfevents*"))
    assert b"summary/confusion_label" in events and b"summary/confusion_kind" in events

    np.save(tmp_path / "raw.npy", test[0])
    answered = subprocess.run(
        [sys.executable, "-c", LOAD, export, tmp_path / "raw.npy", tmp_path / "out.npz"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert answered.returncode == 0, answered.stderr
    answers = np.load(tmp_path / "out.npz")
    for kind in ("loaded", "lite"):
        correct = np.mean(answers[f"{kind} label_id"] == test[1])
        assert correct == pytest.approx(results["accuracy_test"]["label"])
