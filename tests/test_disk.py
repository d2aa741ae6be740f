"""Images that stay on the disk: the same batches as in memory, little memory, and files that change."""

import gzip
import os
import re
import subprocess
import time
import tracemalloc
import warnings

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import SECONDS, command_of, idx_bytes, run_train, start_train, write

import data
from harness import cgroups, disk, download, evaluation_log

COUNT = 90
PIXELS = np.random.RandomState(0).randint(0, 256, [COUNT, 8, 8, 3]).astype(np.uint8)


@pytest.fixture
def large(monkeypatch):
    """Makes every file of images too large for memory, and a piece four images."""
    monkeypatch.setattr(disk, "IN_MEMORY", 80)
    monkeypatch.setattr(disk, "PIECE", 4 * PIXELS[0].size)


def as_npy(folder, images=PIXELS):
    """Images and labels of three classes, as numpy saves them."""
    folder.mkdir(exist_ok=True)
    for half in ("train", "test"):
        np.save(folder / f"{half}-images.npy", images)
        np.save(folder / f"{half}-label.npy", np.arange(len(images)) % 3)
    return folder


def as_idx(folder, images=PIXELS):
    """The same arrays in unpacked IDX files."""
    for prefix in ("train", "t10k"):
        labels = (np.arange(len(images)) % 3).astype(np.uint8)
        write(folder, {
            f"{prefix}-images-idx{images.ndim}-ubyte": gzip.decompress(idx_bytes(images)),
            f"{prefix}-labels-idx1-ubyte": gzip.decompress(idx_bytes(labels)),
        })  # fmt: skip
    return folder


def load(folder, **options):
    return data.load("auto", folder, **options)


pytestmark = pytest.mark.filterwarnings("ignore:.*not the official")


# --- The same as in memory ---


@pytest.mark.parametrize("options", [
    {}, {"holdout": 20}, {"train_examples": 31}, {"holdout": 15, "train_examples": 30, "seed": 7},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("save", [as_npy, as_idx])
def test_a_data_set_on_the_disk_is_that_in_memory(save, options, tmp_path, monkeypatch):
    folder = save(tmp_path / "mine")
    expected = load(folder, **options)
    monkeypatch.setattr(disk, "IN_MEMORY", 80)
    monkeypatch.setattr(disk, "PIECE", 1000)
    found = load(folder, **options)
    assert isinstance(found.train.images, disk.Rows) and isinstance(found.test.images, disk.Rows)
    assert isinstance(expected.train.images, np.ndarray)
    assert found.fingerprint() == expected.fingerprint()
    np.testing.assert_array_equal(found.mean, expected.mean)
    np.testing.assert_array_equal(found.scale, expected.scale)
    assert found.images_by_class() == expected.images_by_class()

    def batches(dataset):
        steps = [dataset.train_batch(step, 8, seed=3) for step in range(20)]
        return [*steps, *dataset.test_batches(7)]

    for one, other in zip(batches(found), batches(expected), strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1]["label"], other[1]["label"])


@pytest.mark.parametrize("shape", [(COUNT, 8, 8), (COUNT, 8, 8, 1)], ids=str)
def test_grey_images_on_the_disk_have_one_channel(shape, large, tmp_path):
    images = PIXELS[..., 0].reshape(shape)
    dataset = load(as_npy(tmp_path / "mine", images))
    assert dataset.train.images.shape == (COUNT, 8, 8)
    batch, _ = dataset.batch(dataset.train, np.array([5, 3, 3]))
    np.testing.assert_array_equal(batch, dataset.standardise(PIXELS[[5, 3, 3], ..., 0]))


def test_rows_are_read_in_the_order_that_was_asked_for(large, tmp_path):
    rows = load(as_npy(tmp_path / "mine")).train.images
    random = np.random.RandomState(1)
    for indices in (
        slice(None),
        slice(7, 30),
        slice(0, 0),
        [4],
        [9, 8, 7, 7, 8],
        random.permutation(COUNT),
    ):
        np.testing.assert_array_equal(np.asarray(rows[indices]), PIXELS[indices])
    chosen = random.permutation(COUNT)[:50]
    np.testing.assert_array_equal(np.asarray(rows[chosen][10:20]), PIXELS[chosen[10:20]])


def test_packed_files_are_unpacked_into_memory(large, tmp_path):
    folder = as_idx(tmp_path / "mine")
    expected = load(folder).fingerprint()
    for path in list(folder.iterdir()):
        write(folder, {f"{path.name}.gz": gzip.compress(path.read_bytes())})
        path.unlink()
    dataset = load(folder)
    assert isinstance(dataset.train.images, np.ndarray) and dataset.fingerprint() == expected


def test_packed_files_that_do_not_fit_into_memory_are_to_be_unpacked(large, tmp_path, monkeypatch):
    path = as_idx(tmp_path / "mine") / "train-images-idx4-ubyte"
    packed = path.with_name(f"{path.name}.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    monkeypatch.setattr(cgroups, "memory", lambda: [15000])
    words = f"{packed}: its .* do not fit into memory. Unpack it, .*: gunzip {packed}"
    with pytest.raises(data.DataError, match=words):
        load(tmp_path / "mine")
    monkeypatch.setattr(cgroups, "memory", lambda: [18000])
    assert len(load(tmp_path / "mine").train.images) == COUNT


def test_copies_of_a_file_are_compared_on_the_disk(large, tmp_path):
    folder = as_idx(tmp_path / "mine")
    name = "train-images-idx4-ubyte"
    content = (folder / name).read_bytes()
    write(folder, {f"{name}.gz": gzip.compress(content)})
    assert len(load(folder).train.images) == COUNT
    write(folder, {f"{name}.gz": gzip.compress(content[:-1] + b"\0")})
    with pytest.raises(data.DataError, match=f"{name} differ. Delete the wrong one"):
        load(folder)


# --- What it costs ---


@pytest.mark.parametrize("options", [{}, {"train_examples": 2000, "holdout": 3000}], ids=str)
def test_a_data_set_on_the_disk_takes_little_memory(options, tmp_path, monkeypatch):
    folder = as_npy(tmp_path / "mine", np.resize(PIXELS, [20_000, 32, 32]))
    for name, value in (("IN_MEMORY", 1000), ("PIECE", 10**6)):
        monkeypatch.setattr(disk, name, value)
    tracemalloc.start()
    try:
        dataset = load(folder, **options)
        dataset.train_batch(0, 100, seed=0)
        for _ in dataset.test_batches(100):
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10e6 < dataset.train.images.file.path.stat().st_size / 2


def test_each_image_is_read_once(tmp_path, monkeypatch):
    folder = as_npy(tmp_path / "mine")
    monkeypatch.setattr(disk, "IN_MEMORY", 80)
    monkeypatch.setattr(disk, "PIECE", PIXELS[0].size)
    count, pread = [], os.pread
    monkeypatch.setattr(os, "pread", lambda *a: count.append(a[1]) or pread(*a))
    load(folder)
    # The first piece, an image, tells that some values are above 1.
    assert sum(count) == 2 * (PIXELS.nbytes + PIXELS[0].size)


def test_statistics_are_exact_for_any_number_of_images():
    split = data.Split(np.tile(np.array([0, 255], np.uint8), 12_500_000)[:, None, None],
                       {"article": np.zeros(1, np.uint8)})  # fmt: skip
    dataset = data.with_statistics("made", split, data.Split(split.images[:1], split.labels))
    assert dataset.mean == 127.5
    np.testing.assert_allclose(dataset.scale, 1 / 127.5, rtol=1e-6)


def test_the_largest_value_is_that_of_the_file_whatever_is_chosen_of_it(large, tmp_path):
    dark = np.ones_like(PIXELS)
    with pytest.warns(UserWarning, match="train-images.npy: no value is above 1"):
        load(as_npy(tmp_path / "mine", dark))
    dark[-1, -1] = 2
    folder = as_npy(tmp_path / "mine", dark)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(folder, holdout=10)


def test_the_official_checksum_is_computed_only_of_files_of_an_official_size(
    files, cache, tmp_path, monkeypatch
):
    hashed, sha256 = [], download.sha256
    monkeypatch.setattr(download, "sha256", lambda v: hashed.append(v.size) or sha256(v))
    data.load("fashion_mnist", write(tmp_path / "official", files))
    assert sorted(hashed) == sorted(size for size, _ in download.VALUES.values())
    hashed.clear()
    load(as_idx(tmp_path / "mine"))
    assert hashed == []


def test_files_are_closed_with_their_data_set(large, tmp_path):
    folder, before = as_npy(tmp_path / "mine"), len(os.listdir("/dev/fd"))
    dataset = load(folder, holdout=10)
    assert len(os.listdir("/dev/fd")) == before + 1  # the test file was let go
    del dataset
    assert len(os.listdir("/dev/fd")) == before


# --- Files that change ---


def evaluate(dataset):
    return sum(len(images) for images, _ in dataset.test_batches(10))


@pytest.mark.parametrize("save", [as_npy, as_idx])
def test_a_file_that_is_cut_off_is_named(save, large, tmp_path):
    folder = save(tmp_path / "mine")
    dataset = load(folder)
    (path,) = folder.glob("train-images*")
    os.truncate(path, path.stat().st_size // 2)
    for use in (evaluate, lambda d: [d.train_batch(step, 20, 0) for step in range(4)]):
        with pytest.raises(data.DataError, match=f"^{path}: was cut off .*run the same command"):
            use(dataset)


def test_a_file_that_was_only_touched_is_read_on(large, tmp_path):
    folder = as_npy(tmp_path / "mine")
    dataset = load(folder)
    for name in ("train", "test"):
        os.utime(folder / f"{name}-images.npy", (1, 1))
    assert evaluate(dataset) == evaluate(dataset) == COUNT


@pytest.mark.parametrize("name", ["train-images.npy", "test-images.npy"])
def test_other_content_ends_the_run_at_the_next_evaluation(name, large, tmp_path):
    folder = as_npy(tmp_path / "mine")
    dataset = load(folder)
    assert evaluate(dataset) == COUNT
    content = (folder / name).read_bytes()
    with open(folder / name, "r+b") as file:
        file.write(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(folder / name, (1, 1))
    with pytest.raises(data.DataError, match=f"^{folder / name}: its images differ"):
        evaluate(dataset)


def test_a_file_in_place_of_an_open_one_changes_nothing(large, tmp_path):
    folder = as_npy(tmp_path / "mine")
    dataset = load(folder)
    expected, _ = dataset.train_batch(0, 20, 0)
    np.save(tmp_path / "other.npy", 255 - PIXELS)
    os.replace(tmp_path / "other.npy", folder / "train-images.npy")
    np.testing.assert_array_equal(dataset.train_batch(0, 20, 0)[0], expected)
    assert evaluate(dataset) == COUNT


# --- Runs ---

ON_DISK = "from harness import disk; disk.IN_MEMORY = 80"


def cut_off(path):
    os.truncate(path, 5000)


def change(path):
    with open(path, "r+b") as file:
        file.seek(-PIXELS.nbytes, os.SEEK_END)
        file.write(255 - PIXELS)


@pytest.mark.slow
@pytest.mark.parametrize("spoil, words", [(cut_off, "was cut off"), (change, "its images differ")])
def test_a_run_whose_file_is_spoilt_ends_with_a_sentence_and_resumes_with_the_same_bits(
    spoil, words, tmp_path
):
    folder = as_npy(tmp_path / "mine")
    disk_logs, memory_logs = tmp_path / "disk", tmp_path / "memory"
    path = folder / "train-images.npy"
    given = (f"--data_dir={folder}", "--batch_size=10", "--eval_every=50", "--save_checkpoint_secs=0.01",
             "--run_name=spoilt")  # fmt: skip
    started = start_train(*given, f"--logdir={disk_logs}", "--num_epochs=2000", prelude=ON_DISK)
    end = time.monotonic() + SECONDS
    while not list(disk_logs.glob("*/model.ckpt-1?.index")):
        assert started.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    spoil(path)
    _, errors = started.communicate(SECONDS)
    assert started.returncode == 1 and "Traceback" not in errors
    (sentence,) = [line for line in errors.splitlines() if line.startswith("train.py: ")]
    assert sentence.startswith(f"train.py: {path}: {words}")

    np.save(path, PIXELS)
    more = ("--num_epochs=10",)  # 90 steps
    resumed = run_train(*given, *more, f"--logdir={disk_logs}", prelude=ON_DISK)
    assert resumed.returncode == 0 and "Resuming after step" in resumed.stdout, resumed.stderr
    undisturbed = run_train(*given, *more, f"--logdir={memory_logs}")
    assert undisturbed.returncode == 0, undisturbed.stderr
    assert curves(disk_logs / "spoilt") == curves(memory_logs / "spoilt")


def test_mistakes_in_test_images_on_the_disk_are_shown(tmp_path):
    """A network cannot learn labels that are drawn at random."""
    folder = as_npy(tmp_path / "mine")
    np.save(folder / "test-label.npy", np.random.RandomState(0).randint(0, 3, COUNT))
    finished = run_train(f"--data_dir={folder}", f"--logdir={tmp_path}", "--run_name=run", "--batch_size=10",
                         "--max_steps=2", prelude=ON_DISK)  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "run" / "results.json").exists()
    shown = {
        value.tag
        for path in (tmp_path / "run").glob("events.*")
        for event in tf.train.summary_iterator(str(path))
        for value in event.summary.value
    }
    assert any("mistakes_label" in tag for tag in shown), shown


def curves(run_dir):
    """The values of all evaluations, apart from the speed."""
    found = evaluation_log.curves(run_dir)
    found.pop("images_per_second", None)
    assert found["accuracy_test"][0] == [50, 90]
    return found


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="only Linux says it")
def test_more_than_a_gigabyte_of_images_is_trained_without_a_copy_in_memory(tmp_path):
    """630d4e2 held at least two copies of the images, more than 2.4 GB."""
    count, block = 1_531_000, np.random.RandomState(0).randint(0, 256, 784 * 1000, np.uint8)
    folder = as_idx(
        tmp_path / "mine", np.zeros([100, 28, 28], np.uint8) + block[:78400].reshape(100, 28, 28)
    )
    with open(folder / "train-images-idx3-ubyte", "wb") as file:
        file.write(np.array([0x803, count, 28, 28], ">u4").tobytes())
        for _ in range(count // 1000):
            file.write(block)
    with open(folder / "train-labels-idx1-ubyte", "wb") as file:
        file.write(np.array([0x801, count], ">u4").tobytes())
        file.write((np.arange(count) % 3).astype(np.uint8))
    given = (f"--data_dir={folder}", f"--logdir={tmp_path / 'logs'}", "--max_steps=3")
    try:
        with subprocess.Popen(command_of("train.py", *given), stderr=subprocess.PIPE) as process:
            peak = 0
            while process.poll() is None:
                peak = max(peak, anonymous_memory(process.pid))
                time.sleep(0.01)
            errors = process.stderr.read().decode()
    finally:
        (folder / "train-images-idx3-ubyte").unlink()
    assert process.returncode == 0, errors
    print(f"{peak / 1e6:,.0f} MB")  # with -s
    assert 100e6 < peak < count * 784


def anonymous_memory(pid):
    """Bytes of a process's memory that no file holds; 0 if it has ended."""
    try:
        with open(f"/proc/{pid}/status") as file:
            found = re.search(r"RssAnon:\s*(\d+) kB", file.read())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0
