"""The data: correct labels, correct order, correct statistics, and never the wrong files."""

import contextlib
import errno
import functools
import gzip
import http.server
import os
import pathlib
import re
import resource
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import tracemalloc
import warnings

import numpy as np
import pytest
from conftest import ROOT

import data

MEMBERS = {"Shoes": {5, 7, 9}, "For Women": {3, 6, 8}, "Other": {0, 1, 2, 4}}  # of the groups


def make_split(count, seed=0):
    images = np.random.RandomState(seed).randint(0, 256, [count, 28, 28]).astype(np.uint8)
    return data.Split(images, {"article": (np.arange(count) % 10).astype(np.uint8)})


def make_dataset(count, **options):
    split = make_split(count)
    return data.with_statistics("made", split, split, **options)


# --- Labels ---


def test_the_articles_and_groups_are_those_of_the_table():
    article, group = data.TASKS
    assert article.classes == data.ARTICLES and article.from_article == tuple(range(10))
    for index, name in enumerate(group.classes):
        assert {a for a in range(10) if group.from_article[a] == index} == MEMBERS[name]


def test_a_batch_has_the_labels_of_its_images(fashion_mnist):
    images, labels = fashion_mnist.train_batch(step=500, batch_size=128, seed=3)
    order = data.epoch_order(60000, 3, epoch=1)[(500 - 469) * 128 :][:128]
    articles = fashion_mnist.train.labels["article"][order]
    np.testing.assert_array_equal(labels["article"], articles)
    for index, name in enumerate(data.TASKS[1].classes):
        np.testing.assert_array_equal(labels["group"] == index, np.isin(articles, [*MEMBERS[name]]))
    raw = fashion_mnist.train.images[order]
    np.testing.assert_array_equal(images, fashion_mnist.standardise(raw))
    assert images.dtype == np.float32 and labels["article"].dtype == np.int32


def test_article_labels_imply_the_labels_of_the_group_only():
    sleeves = data.Task("sleeves", ("no", "yes"), ())
    implied = make_dataset(10, tasks=(*data.TASKS, sleeves)).implied(np.arange(10))
    assert implied.keys() == {"group"}
    assert implied["group"].tolist() == [2, 2, 2, 1, 2, 0, 1, 0, 1, 0]


# --- Standardisation ---


def test_standardised_training_images_have_mean_0_and_deviation_1():
    dataset = make_dataset(300)
    z = dataset.standardise(dataset.train.images)
    assert z.dtype == np.float32 and z.shape == (300, 28, 28, 1)
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(z.std(axis=0), 1, atol=1e-5)


def test_real_test_images_are_standardised_with_the_statistics_of_the_training_images(
    fashion_mnist,
):
    train, test = fashion_mnist.train, fashion_mnist.test
    assert train.images.shape == (60000, 28, 28) and test.images.shape == (10000, 28, 28)
    assert train.images.dtype == train.main_labels().dtype == np.uint8
    np.testing.assert_array_equal(np.bincount(train.main_labels()), [6000] * 10)
    z = fashion_mnist.standardise(test.images)[:, 14, :, 0]  # one row of each image
    mean, deviation = train.images[:, 14].mean(axis=0), train.images[:, 14].std(axis=0)
    np.testing.assert_allclose(z, (test.images[:, 14] - mean) / deviation, atol=1e-5)


def test_a_constant_pixel_becomes_zero():
    train = make_split(20)
    train.images[:, 3, 4] = 7
    dataset = data.with_statistics("made", train, train)
    brighter = train.images.copy()
    brighter[:, 3, 4] = 255  # a test image may differ there
    z = dataset.standardise(brighter)
    assert np.all(z[:, 3, 4] == 0)
    assert np.all(np.isfinite(z)) and np.all(z.std(axis=0)[np.arange(28) != 3] > 0.5)


# --- Batches ---


def test_an_epoch_has_every_image_once():
    assert data.steps_per_epoch(60000, 128) == 469 and data.steps_per_epoch(256, 128) == 2
    dataset = make_dataset(300)
    everything = {image.tobytes() for image in dataset.standardise(dataset.train.images)}
    for epoch in range(2):
        batches = [dataset.train_batch(epoch * 3 + i, 128, seed=0)[0] for i in range(3)]
        assert [len(batch) for batch in batches] == [128, 128, 44]
        assert {image.tobytes() for batch in batches for image in batch} == everything


def test_the_order_depends_only_on_seed_and_epoch():
    dataset = make_dataset(300)

    def batch(step, seed):
        data.epoch_order.cache_clear()
        return dataset.train_batch(step, 128, seed)[0]

    forwards = [batch(step, 5) for step in range(7)]
    backwards = [batch(step, 5) for step in reversed(range(7))][::-1]
    for one, other in zip(forwards, backwards):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(forwards[0], batch(0, 6))
    assert not np.array_equal(forwards[0], forwards[3])  # the same place in the next epoch


def test_the_test_batches_are_the_test_split_in_order():
    dataset = make_dataset(25)
    images, labels = zip(*dataset.test_batches(10))
    assert [len(batch) for batch in images] == [10, 10, 5]
    expected = dataset.standardise(dataset.test.images)
    np.testing.assert_array_equal(np.concatenate(images), expected)
    articles = np.concatenate([batch["article"] for batch in labels])
    np.testing.assert_array_equal(articles, dataset.test.labels["article"])


# --- Fewer training images, held-out images ---

# 60,000 articles; in place of each image its number, so that it shows where it went.
NUMBERED = data.Split(np.arange(60000), {"article": np.tile(np.arange(10, dtype=np.uint8), 6000)})


def test_a_subset_is_balanced_and_the_seed_chooses_it():
    def chosen(size, seed):
        subset = data.balanced_subset(NUMBERED, size, seed)
        assert np.all(np.diff(subset.images) > 0)  # in their original order, none twice
        np.testing.assert_array_equal(subset.main_labels(), NUMBERED.main_labels()[subset.images])
        return set(subset.images), sorted(np.bincount(subset.main_labels()))

    (small, of_small), (large, of_large) = chosen(300, 0), chosen(1003, 0)
    assert of_small == [30] * 10 and of_large == [100] * 7 + [101] * 3
    assert small < large and small == chosen(300, 0)[0]
    assert len(small & chosen(300, 1)[0]) < 50


def starved(ratio, seed):
    """Article -> the numbers, in NUMBERED, of its images that are kept."""
    kept = data.starved_subset(NUMBERED, ratio, seed)
    assert np.all(np.diff(kept.images) > 0)
    np.testing.assert_array_equal(kept.main_labels(), NUMBERED.main_labels()[kept.images])
    return {a: set(kept.images[kept.main_labels() == a].tolist()) for a in range(10)}


def test_a_starved_set_falls_geometrically_from_all_images_to_one_in_r():
    sizes = sorted(map(len, starved(100, seed=4).values()), reverse=True)
    assert sizes[0] == 6000 and sizes[-1] == 60
    np.testing.assert_allclose(np.divide(sizes[:-1], sizes[1:]), 100 ** (1 / 9), rtol=0.02)
    assert [len(kept) for kept in starved(1, seed=4).values()] == [6000] * 10


def test_of_a_starved_set_a_larger_ratio_keeps_a_part_of_what_a_smaller_one_keeps():
    for smaller, larger in ((1, 2), (2, 10), (10, 100), (100, 5000)):
        some, fewer = (starved(ratio, seed=1) for ratio in (smaller, larger))
        assert all(fewer[article] <= some[article] for article in range(10))
        assert all(fewer.values())  # of every article, one image at least
    assert starved(10, seed=1) != starved(10, seed=11)  # the same ranks, other images


def test_ten_seeds_give_each_article_each_rank_once():
    ranks = np.array([data.ranks_of_articles(seed) for seed in range(10)])
    for line in (*ranks, *ranks.T):
        assert sorted(line) == list(range(10))
    sizes = {article: len(kept) for article, kept in starved(100, seed=3).items()}
    by_size = sorted(sizes, key=sizes.get, reverse=True)
    assert [ranks[3][article] for article in by_size] == list(range(10))


def test_a_starved_set_is_the_same_on_every_machine():
    order = np.random.RandomState([0, 0, 3]).permutation(60000)  # the same in every numpy release
    rarest = data.ranks_of_articles(0).index(9)
    first = next(i for i in order if NUMBERED.main_labels()[i] == rarest)
    assert starved(5000, seed=0)[rarest] == {first}


@pytest.fixture
def load_real(fashion_mnist, monkeypatch):
    """`data.load` of Fashion-MNIST with options, without reading the files again."""
    read = "fashion_mnist", fashion_mnist.train, fashion_mnist.test
    monkeypatch.setattr(data, "read", lambda *_: read)
    return data.load


def test_held_out_images_are_the_last_ones_and_are_not_used_for_training(fashion_mnist, load_real):
    held = load_real(train_examples=1000, holdout=5000)
    np.testing.assert_array_equal(held.test.images, fashion_mnist.train.images[55000:])
    np.testing.assert_array_equal(
        held.test.labels["article"], fashion_mnist.train.labels["article"][55000:]
    )
    others = {image.tobytes() for image in fashion_mnist.train.images[:55000]}
    assert len(held.train.images) == 1000
    assert {image.tobytes() for image in held.train.images} <= others


def test_held_out_images_are_taken_before_others_are_starved(fashion_mnist, load_real):
    dataset = load_real(holdout=10000, starve=100, seed=2)
    np.testing.assert_array_equal(dataset.test.images, fashion_mnist.train.images[50000:])
    counts = np.bincount(fashion_mnist.train.labels["article"][:50000])
    ranks = np.array(data.ranks_of_articles(2))
    kept = np.round(counts * 100.0 ** (-ranks / 9)).astype(int)
    assert dataset.images_by_class() == {
        "article": dict(zip(data.ARTICLES, kept)),
        "group": {name: kept[list(members)].sum() for name, members in MEMBERS.items()},
    }


def test_a_subset_is_standardised_with_its_own_statistics_and_keeps_all_test_images(
    fashion_mnist, load_real
):
    few = load_real(train_examples=300)
    assert len(few.train.images) == 300 and len(few.test.images) == 10000
    np.testing.assert_allclose(few.mean, few.train.images.mean(axis=0), rtol=1e-5)
    assert few.fingerprint() != fashion_mnist.fingerprint()


@pytest.mark.parametrize("asked, there", [
    ({"train_examples": 55001}, "55,000"), ({"holdout": 60000, "train_examples": 0}, "60,000"),
])  # fmt: skip
def test_asking_for_more_images_than_there_are_is_an_error(asked, there, load_real):
    with pytest.raises(data.DataError, match=f"there are {there} training images"):
        load_real(**{"holdout": 5000, **asked})


# --- Files ---

IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"


def idx(array):
    header = struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape)
    return gzip.compress(header + array.tobytes(), 1, mtime=0)


@pytest.fixture
def files():
    """Returns four small files that are not the official ones: name -> content."""
    contents = {}
    for seed, (prefix, count) in enumerate((("train", 30), ("t10k", 20))):
        split = make_split(count, seed)
        contents[f"{prefix}-images-idx3-ubyte.gz"] = idx(split.images)
        contents[f"{prefix}-labels-idx1-ubyte.gz"] = idx(split.main_labels())
    return contents


@pytest.fixture
def cache(files, tmp_path, monkeypatch):
    """Makes the cache empty and the small files official. Returns the cache's folder."""
    monkeypatch.delenv(data.FOLDER_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr(data, "FILES", {name: data.sha256(c) for name, c in files.items()})
    values = {name: data.sha256(data.parse_idx(c, name)) for name, c in files.items()}
    monkeypatch.setattr(data, "VALUES", values)
    monkeypatch.setattr(data, "MIRRORS", ("http://127.0.0.1:9/",))  # nothing listens there
    return data.cache_folder()


def write(folder, contents):
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_official_files_give_no_warning(fashion_mnist):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Without a folder, load looks where the fixture does: the variable, then the cache.
        assert data.load("fashion_mnist").name == "fashion_mnist"


@pytest.mark.filterwarnings("ignore:.*not the official")
def test_files_that_are_not_official_are_used_with_a_warning(files, tmp_path):
    with pytest.warns(UserWarning, match="not the official Fashion-MNIST"):
        dataset = data.load("auto", write(tmp_path, files))
    assert dataset.name == f"{tmp_path.name}-custom"
    assert [(task.name, task.classes) for task in dataset.tasks] == [("label", (*"0123456789",))]
    np.testing.assert_array_equal(dataset.test.labels["label"], np.arange(20) % 10)
    np.testing.assert_array_equal(idx(dataset.train.images), files[IMAGES])
    with pytest.raises(data.DataError, match="leave out --dataset=fashion_mnist"):
        data.load("fashion_mnist", tmp_path)
    with pytest.raises(data.DataError, match="not Fashion-MNIST and show no articles"):
        data.load("auto", tmp_path, starve=2)


@pytest.mark.filterwarnings("ignore:.*not the official")
@pytest.mark.parametrize("half", ["train", "t10k"])
def test_one_half_of_another_data_set_makes_the_set_a_custom_one(half, files, cache, tmp_path):
    folder = write(tmp_path / "my digits", files)
    write(folder, {name: idx(255 - data.parse_idx(c, name)) for name, c in files.items()
                   if name.startswith(half) and "images" in name})  # fmt: skip
    (label,) = data.load("auto", folder).tasks
    assert label.name == "label" and label.classes == tuple("0123456789")


def test_data_dir_overrides_the_environment_variable(files, cache, tmp_path, monkeypatch):
    monkeypatch.setenv(data.FOLDER_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(data.DataError, match="nowhere"):
        data.load("auto")
    assert len(data.load("auto", write(tmp_path / "mine", files)).train.images) == 30


@pytest.mark.filterwarnings("ignore:.*not the official")
@pytest.mark.parametrize("folder", ["~/", ".", "..", "../mine//.", "~/../mine"])
@pytest.mark.parametrize("named_by", ["data_dir", "variable"])
def test_a_data_set_has_the_name_of_its_folder_however_that_is_written(
    folder, named_by, files, tmp_path, monkeypatch
):
    home = tmp_path / "mine"
    write_labels(write(home, files), "sleeves", [0, 1] * 15, [0, 1] * 10)
    (home / "below").mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home / "below" if folder == ".." else home)
    monkeypatch.setenv(data.FOLDER_VARIABLE, folder if named_by == "variable" else "/nowhere")
    named = folder if named_by == "data_dir" else None
    assert data.load("auto", named, tasks=["label", "sleeves"]).name == "mine-custom"


def test_a_data_set_in_the_root_folder_has_a_name(files, tmp_path, monkeypatch):
    monkeypatch.setattr(pathlib.Path, "resolve", lambda _: pathlib.Path("/"))
    with pytest.warns(UserWarning, match="not the official"):
        assert data.load("auto", write(tmp_path, files)).name == "root-custom"


def packed(header, *values):
    return gzip.compress(struct.pack(f">{len(header)}I", *header) + bytes(values))


DAMAGED = {
    "missing": (IMAGES, lambda content: None),
    "truncated": (IMAGES, lambda content: content[:-20]),
    "one bit flipped": (IMAGES, lambda c: c[:999] + bytes([c[999] ^ 1]) + c[1000:]),
    "not gzip": (LABELS, lambda content: b"<html>404</html>"),
    "empty": (LABELS, lambda content: b""),
    "wrong magic": (IMAGES, lambda content: packed([0xD03, 0, 0, 0])),
    "header only": (IMAGES, lambda content: packed([0x803, 0, 28, 28])),
    "wrong dimensions": (IMAGES, lambda content: idx(np.zeros([30, 32, 32], np.uint8))),
    "fewer labels": (LABELS, lambda content: idx(np.zeros(29, np.uint8))),
    "more than announced": (LABELS, lambda c: gzip.compress(gzip.decompress(c) + b"\0")),
    "less than announced": (LABELS, lambda c: gzip.compress(gzip.decompress(c)[:-1])),
    "four billion images": (IMAGES, lambda content: packed([0x803, 2**32 - 1, 28, 28])),
    "no images of endless size": (IMAGES, lambda c: packed([0x803, 0, 2**32 - 1, 2**32 - 1])),
    "labels for images": (IMAGES, lambda content: idx(np.zeros(30, np.uint8))),
    "images for labels": (LABELS, lambda content: idx(np.zeros([30, 28, 28], np.uint8))),
}


@pytest.mark.filterwarnings("ignore:.*not the official")
@pytest.mark.parametrize("fault", DAMAGED)
def test_a_damaged_file_is_named_and_refused(fault, files, tmp_path):
    name, damage = DAMAGED[fault]
    files[name] = damage(files[name])
    write(tmp_path, {name: content for name, content in files.items() if content is not None})
    # Even with "auto", a damaged file never leads to the synthetic set.
    with pytest.raises(data.DataError) as caught:
        data.load("auto", tmp_path)
    assert name in str(caught.value)


@pytest.mark.parametrize("folder", [
    "taken", "link", "file", "loop", "/", "~nobody-of-this-name", " ", "/dev/null", "a" * 300,
])  # fmt: skip
def test_a_file_that_cannot_be_read_is_named_in_a_sentence(folder, files, tmp_path, monkeypatch):
    # Not made with chmod, because root can read any file.
    for name in ("taken", "link"):
        write(tmp_path / name, {name: c for name, c in files.items() if name != IMAGES})
    (tmp_path / "taken" / IMAGES).mkdir()
    (tmp_path / "link" / IMAGES).symlink_to(IMAGES)
    (tmp_path / "file").write_bytes(files[LABELS])
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(data.DataError, match=f"{folder}/*{IMAGES}: cannot be read") as caught:
        data.load("auto", folder)
    assert str(caught.value).endswith(data.WHAT_TO_DO) and "\n" not in str(caught.value)


@pytest.mark.parametrize("other", ["train-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte.gz"])
def test_official_files_under_each_others_names_are_refused(other, files, cache, tmp_path):
    files[IMAGES], files[other] = files[other], files[IMAGES]
    with pytest.raises(data.DataError, match=f"{IMAGES}: this is the official {other}"):
        data.load("auto", write(tmp_path / "mine", files))


# --- Memory ---

MANY = 2**26
BOMBS = {  # values that the header announces, and what follows it
    "more than announced": (10, bytes(MANY)),
    "more than announced, at the reader's limit": (2**24, bytes(MANY)),
    "as much as announced": (MANY, bytes(MANY)),
    "less than announced": (MANY, np.random.RandomState(0).bytes(2**16)),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_small_file_cannot_make_the_reader_use_much_memory(kind):
    announced, values = BOMBS[kind]
    content = gzip.compress(values, 1)
    header = gzip.compress(struct.pack(">2I", 0x801, announced))  # gzip files may be concatenated
    tracemalloc.start()
    try:
        with pytest.raises(data.DataError, match="bomb.gz: its header announces"):
            data.parse_idx(header + content, "bomb.gz")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MANY * 0.9


def test_blank_images_that_compress_well_are_read():
    blank = np.zeros([20_000, 28, 28], np.uint8)
    assert data.parse_idx(idx(blank), "blank.gz").shape == blank.shape


# --- Files as other programs leave them ---


def plain(name):
    return name.removesuffix(".gz")


@pytest.mark.parametrize("layout", [
    "{plain}", "{packed}", "{dot}",
    "raw/{plain}", "FashionMNIST/raw/{packed}",  # torchvision
    "{plain}/{plain}", "{packed}/{plain}", "raw/{plain}/{packed}",  # Kaggle
])  # fmt: skip
def test_files_as_other_programs_leave_them_are_official(layout, files, cache, tmp_path):
    for pack in (bytes, gzip.compress):
        folder = tmp_path / pack.__name__
        for name, content in files.items():
            dot = plain(name).replace("-idx", ".idx")
            path = layout.format(plain=plain(name), packed=name, dot=dot)
            write(folder, {path: pack(gzip.decompress(content))})
            for empty in (name, plain(name)):  # an empty folder of its name hides no file
                with contextlib.suppress(FileExistsError):
                    (folder / empty).mkdir()
        dataset = data.load("fashion_mnist", folder)
        assert dataset.name == "fashion_mnist"
        np.testing.assert_array_equal(idx(dataset.train.images), files[IMAGES])


@pytest.mark.parametrize("path", [plain(LABELS), f"{plain(LABELS)}/{plain(LABELS)}"])
def test_a_file_that_is_there_twice_must_agree(path, files, cache, tmp_path):
    content = gzip.decompress(files[LABELS])
    folder = write(tmp_path / "mine", {**files, path: content})
    assert len(data.load("fashion_mnist", folder).train.images) == 30
    write(folder, {path: content[:-1] + b"\0"})
    with pytest.raises(data.DataError, match=f"{folder / path} differ. Delete the wrong one"):
        data.load("fashion_mnist", folder)


def test_the_files_in_keras_cache_are_used_if_they_are_official(files, cache, tmp_path):
    folder = write(tmp_path / "keras" / "datasets" / "fashion-mnist", files)
    assert len(data.load("fashion_mnist").train.images) == 30
    assert not cache.exists()
    (folder / LABELS).write_bytes(idx(np.zeros(30, np.uint8)))
    with pytest.raises(data.DataError, match=f"{LABELS}: missing"):  # and the mirror is dead
        data.load("fashion_mnist")


# --- Label files ---


def write_labels(folder, name, train, test, classes=None):
    """Label files of a task, made as README shows it, and the names of the classes."""
    for prefix, labels in (("train", train), ("t10k", test)):
        header = struct.pack(">II", 0x801, len(labels))
        content = header + np.array(labels, np.uint8).tobytes()
        write(folder, {f"{prefix}-{name}-labels-idx1-ubyte": content})
    if classes is not None:
        content = classes if isinstance(classes, bytes) else "\n".join(classes).encode()
        write(folder, {f"{name}-classes.txt": content})


@pytest.fixture
def labelled(files, cache, tmp_path):
    """A folder with the small files, which count as official, and labels of a task "hands"."""
    folder = write(tmp_path / "mine", files)
    write_labels(folder, "hands", [0, 1] * 15, [1, 0] * 10)
    return folder


def load_labels(folder, *tasks, **options):
    return data.load("fashion_mnist", folder, tasks=tasks or ["hands"], **options)


def test_label_files_are_a_task_with_a_class_for_every_label(labelled):
    write_labels(labelled, "sleeves", np.arange(30) % 3, np.arange(20) % 2)
    dataset = load_labels(labelled, "article", "sleeves")
    assert dataset.tasks[1].classes == ("0", "1", "2")
    _, labels = dataset.train_batch(0, 30, seed=0)
    np.testing.assert_array_equal(labels["sleeves"], data.epoch_order(30, 0, 0) % 3)
    assert [b["sleeves"].tolist() for _, b in dataset.test_batches(20)] == [[0, 1] * 10]
    assert dataset.images_by_class()["sleeves"] == {"0": 10, "1": 10, "2": 10}
    assert dataset.implied(np.arange(3)) == {}


def test_label_files_and_names_lie_in_torchvisions_folder_and_no_folder_hides_them(labelled):
    write_labels(labelled / "raw", "held", [0, 1] * 15, [1, 0] * 10, ["left", "right"])
    for name in ("train-held-labels-idx1-ubyte.gz", "held-classes.txt"):
        (labelled / name).mkdir()
    tasks = load_labels(labelled, "held").tasks
    assert tasks[0].classes == ("left", "right")
    (labelled / "held-classes.txt").rmdir()
    (labelled / "raw" / "held-classes.txt").rename(labelled / "held-classes.txt")
    assert load_labels(labelled, "held").tasks == tasks


@pytest.mark.parametrize("options", [
    {"train_examples": 10}, {"holdout": 12}, {"train_examples": 9, "holdout": 5}, {"starve": 3},
])  # fmt: skip
def test_labels_follow_their_images_into_subsets_and_held_out_images(options, labelled):
    write_labels(labelled, "number", np.arange(30), np.arange(20))
    whole = load_labels(labelled, "number")
    dataset = load_labels(labelled, "number", **options)
    for split in [dataset.train, *([dataset.test] if "holdout" in options else [])]:
        np.testing.assert_array_equal(split.images, whole.train.images[split.labels["number"]])


def test_the_fingerprint_covers_labels_and_names_of_classes(labelled):
    seen = [load_labels(labelled, "article").fingerprint(), load_labels(labelled).fingerprint()]
    write_labels(labelled, "hands", [0, 1] * 15, [1, 0] * 10, "ab")
    seen.append(load_labels(labelled).fingerprint())
    write_labels(labelled, "hands", [1, 0] * 15, [1, 0] * 10, "ab")
    seen.append(load_labels(labelled).fingerprint())
    assert len(set(seen)) == 4


@pytest.mark.parametrize("train, classes, words", [
    (None, None, "'hands' is not in TASKS of data.py, and .*train-hands-labels.* is missing"),
    ([0] * 29, None, "each of the 30 images"),
    ([0, 255] * 15, None, "Every image must have a label"),
    ([0, 1, 2] * 10, "ab", "classes.txt: has 2 names, but the labels have 3 classes"),
    ([0, 1] * 15, "abc", "classes.txt: has 3 names, but the labels have 2 classes"),
    ([0, 1, 2] * 10, "aba", "hands-classes.txt: two of its classes have the same name"),
])  # fmt: skip
def test_wrong_label_files_are_refused_in_a_sentence(train, classes, words, labelled):
    if train is None:
        (labelled / "train-hands-labels-idx1-ubyte").unlink()
    else:
        write_labels(labelled, "hands", train, [0] * 20, classes)
    with pytest.raises(data.DataError, match=words):
        load_labels(labelled, "article", "hands")


@pytest.mark.parametrize("name", ["mean", "on hands", "é", "-hands"])
def test_a_task_from_label_files_of_a_name_that_cannot_be_used_is_not_sought_in_tasks(
    name, labelled
):
    write_labels(labelled, name, [0, 1] * 15, [0] * 20)
    with pytest.raises(data.DataError, match="from label files: .*name") as caught:
        load_labels(labelled, "article", name)
    assert repr(name) in str(caught.value) and "TASKS" not in str(caught.value)


@pytest.mark.parametrize("content", [
    "nein\nÄrmel\n".encode(),
    "nein\r\nÄrmel\r\n".encode("utf-8-sig"),  # Windows: its ends of lines, a byte order mark
    "nein\rÄrmel\r".encode(),  # an old Mac
    b"\xef\xbb\xbfnein\n\xef\xbb\xbf" + "Ärmel".encode(),  # two files in one
    "nein\nÄrmel\n\ufeff \n".encode(),  # a third line of nothing but a mark and a space
])  # fmt: skip
def test_names_of_classes_are_read_without_a_mark(content, labelled):
    write_labels(labelled, "hands", [0, 1] * 15, [0] * 20, content)
    assert load_labels(labelled).tasks[0].classes == ("nein", "Ärmel")


NOT_UTF_8, INVISIBLE = "not text in UTF-8. Save it", "cannot be shown: give it a name"


@pytest.mark.parametrize("content, words", [
    ("nein\nÄrmel\n".encode("utf-16"), NOT_UTF_8),  # as Windows saves it
    ("no\nyes\n".encode("utf-16-le"), NOT_UTF_8),
    ("no\nyes\n".encode("utf-32"), NOT_UTF_8),
    ("nein\nÄrmel\n".encode("latin-1"), NOT_UTF_8),
    ("nein\n\ufffdrmel\n".encode(), NOT_UTF_8),  # an earlier program could not read it
    (b"\x89PNG\r\n\x1a\n\0\0", NOT_UTF_8),
    ("nein\n\u200b\n".encode(), INVISIBLE),  # zero width
    ("nein\n\u200d\u2060\u00ad\ufe0f\n".encode(), INVISIBLE),  # joiners and marks
    (b"nein\n\x1b[2Jja\n", INVISIBLE),  # moves the cursor
    ("nein\n \u00a0\u3000\n".encode(), "has 1 names.*one name a line"),
    (b"", "has 0 names.*one name a line"),
])  # fmt: skip
def test_names_of_classes_that_cannot_be_read_are_refused_in_a_sentence(content, words, labelled):
    write_labels(labelled, "hands", [0, 1] * 15, [0] * 20, content)
    with pytest.raises(data.DataError, match=words) as caught:
        load_labels(labelled)
    message = str(caught.value)
    assert message.startswith(f"{labelled}/hands-classes.txt: ") and message.isprintable()


def test_names_of_classes_behind_a_broken_link_are_not_left_out(labelled):
    (labelled / "hands-classes.txt").symlink_to("nowhere")
    with pytest.raises(data.DataError, match="hands-classes.txt: cannot be read"):
        load_labels(labelled)


@pytest.mark.parametrize("name", ["می‌خواهم", "👩‍🔬", "Ä", "…", "日本", "a b", "$", "\u0915\u094d"])
def test_visible_names_of_classes_stay_as_they_are(name, labelled):
    write_labels(labelled, "hands", [0, 1] * 15, [0] * 20, ["no", name])
    assert load_labels(labelled).tasks[0].classes == ("no", name)


def test_a_label_that_no_image_has_is_a_warning(labelled):
    write_labels(labelled, "hands", [0, 2] * 15, [0] * 20)
    with pytest.warns(UserWarning, match="no training image has label 1"):
        assert len(load_labels(labelled).tasks[0].classes) == 3


# --- Tasks of one's own ---


@pytest.fixture
def small(monkeypatch):
    """Makes the synthetic set small, which is drawn in no time."""
    monkeypatch.setattr(data, "SYNTHETIC_SIZES", (20, 10))


TWO, TEN = ("two", "other"), (0,) * 10


@pytest.mark.parametrize("task, words", [
    (("hands", TWO, (2, *TEN[1:])), "label 2"), (("hands", TWO, (-1, *TEN[1:])), "label -1"),
    (("hands", TWO, (0.5, *TEN[1:])), "label 0.5"),
    (("hands", TWO, ()), "0 labels for the 10 articles"),
    (("hands", TWO, TEN[1:]), "9 labels for the 10 articles"),
    (("hands", (), TEN), "its classes must be names"),
    (("hands", (1, 2), TEN), "its classes must be names"),
    (("hands", ("two", "two"), TEN), "two of its classes have the same name"),
    (("hands", ("two", ""), TEN), "class '' cannot be shown"),
    (("hands", ("two", "\u200b"), TEN), "cannot be shown"),
    (("worn on hands", TWO, TEN), "letters"), (("a/b", TWO, TEN), "letters"),
    (("mean", TWO, TEN), "choose another"), (("group", TWO, TEN), "there are two tasks"),
])  # fmt: skip
def test_a_wrong_task_is_named(task, words, small, monkeypatch):
    monkeypatch.setattr(data, "TASKS", (*data.TASKS, data.Task(*task)))
    with pytest.raises(data.DataError, match=words) as caught:
        data.load("synthetic", tasks=["article", task[0]])
    assert f"{task[0]!r} in TASKS of data.py" in str(caught.value)


# --- Download ---

END = re.escape(f"). {data.WHAT_TO_DO}")  # of the message
WRONG_FILE = "what it sent is not the official file"


class Mirror(http.server.BaseHTTPRequestHandler):
    """Sends the file of this name from its server's `contents`, with its server's `send`."""

    def do_GET(self):
        name = self.path.strip("/")
        self.server.asked.append(name)
        self.server.send(self, self.server.contents.get(name))

    def log_message(self, *_):
        pass

    def handle(self):
        with contextlib.suppress(OSError):  # the client gave up and closed the connection
            super().handle()


def send(answer, content, status=200, **headers):
    answer.send_response(404 if content is None else status)
    for name, value in headers.items():
        answer.send_header(name.replace("_", "-"), value)
    answer.end_headers()
    answer.wfile.write(content or b"")


def send_whole(answer, content):
    send(answer, content, Content_Length=str(len(content or b"")))


def send_half(answer, content):
    send(answer, content[: len(content) // 2], Content_Length=str(len(content)))


@pytest.fixture
def mirror(monkeypatch):
    """Starts mirrors on loopback: mirror(contents) returns the server."""
    servers, over = [], threading.Event()

    def start(contents, send=send_whole):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
        server.contents, server.send, server.over, server.asked = contents, send, over, []
        server.address = f"127.0.0.1:{server.server_port}"
        server.url = f"http://{server.address}/"
        threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
        servers.append(server)
        return server

    monkeypatch.setattr(data, "MAX_SILENT_SECONDS", 0.3)
    yield start
    over.set()
    for server in servers:
        server.shutdown()
        server.server_close()


def use(monkeypatch, *servers):
    monkeypatch.setattr(data, "MIRRORS", tuple(server.url for server in servers))


def contents_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_download_fills_the_cache_once(files, cache, mirror, monkeypatch, capsys):
    server = mirror(files)
    use(monkeypatch, server)
    for _ in range(2):
        assert len(data.load("fashion_mnist").train.images) == 30
    assert sorted(server.asked) == sorted(files)
    assert contents_of(cache) == files
    shown = capsys.readouterr().err
    assert all(f"Downloading {name}: 100%" in shown for name in files)


def silent(answer, _):
    answer.server.over.wait(60)


FAULTS = {  # how a mirror fails, and the reason that the message gives
    "403": (lambda answer, _: answer.send_error(403), "HTTP 403"),
    "404": (lambda answer, _: send(answer, None), "HTTP 404"),
    "an HTML page": (lambda answer, _: send_whole(answer, b"<html>Log in</html>"), WRONG_FILE),
    "nothing": (lambda answer, _: send_whole(answer, b""), WRONG_FILE),
    "hangs up": (lambda answer, _: None, "Remote end closed connection"),
    "cut half way": (send_half, "IncompleteRead"),
    "cut half way, of no length": (lambda a, c: send(a, c[: len(c) // 2]), WRONG_FILE),
    "silent": (silent, "timed out"),
    "stalls half way": (lambda *args: (send_half(*args), silent(*args)), "timed out"),
    "redirects to nowhere": (
        lambda answer, _: send(answer, b"", 302, Location="ftp://elsewhere.invalid/"),
        "ftp://elsewhere.invalid",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failing_mirror_leaves_no_file_and_the_next_one_is_used(
    fault, files, cache, mirror, monkeypatch
):
    send, reason = FAULTS[fault]
    failing, whole = mirror(files, send), mirror(files)
    look_up = socket.getaddrinfo

    def know_addresses_only(host, *arguments, **options):
        if host == "nowhere.invalid":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return look_up(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", know_addresses_only)
    mirrors = "http://nowhere.invalid/", "http://127.0.0.1:9/", failing.url
    monkeypatch.setattr(data, "MIRRORS", mirrors)
    others = {name: content for name, content in files.items() if name != IMAGES}
    write(cache, others)
    words = (
        f"^{cache / IMAGES}: missing, and no mirror could be used .nowhere.invalid: cannot resolve"
        f" the name; 127.0.0.1:9: Connection refused; {failing.address}: .*{reason}.*{END}$"
    )
    # A wrong file never leads to the synthetic set.
    kind = data.DataError if reason == WRONG_FILE else data.Unreachable
    with pytest.raises(data.DataError, match=words) as caught:
        data.load("fashion_mnist")
    assert caught.type is kind and contents_of(cache) == others
    monkeypatch.setattr(data, "MIRRORS", (*mirrors, whole.url))
    assert len(data.load("fashion_mnist").train.images) == 30
    assert contents_of(cache) == files
    assert failing.asked == [IMAGES, IMAGES] and whole.asked == [IMAGES]


@pytest.mark.parametrize("headers", [{"Content_Encoding": "gzip"}, {"Content_Length": "unknown"}])
def test_a_mirror_with_odd_headers_is_used(headers, files, cache, mirror, monkeypatch):
    use(monkeypatch, mirror(files, functools.partial(send, **headers)))
    assert len(data.load("fashion_mnist").train.images) == 30
    assert contents_of(cache) == files


def test_two_processes_may_download_at_once(files, cache, mirror):
    both = threading.Barrier(2)

    def send_to_both(answer, content):
        both.wait(60)
        send_whole(answer, content)

    program = (
        f"import data; data.FILES, data.VALUES = {data.FILES!r}, {data.VALUES!r}\n"
        f"data.MIRRORS = ({mirror(files, send_to_both).url!r},); data.MAX_SILENT_SECONDS = 60\n"
        "print(len(data.load('fashion_mnist').train.images))"
    )
    command = [sys.executable, "-c", program]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    for process in [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in range(2)]:
        output, shown = process.communicate(timeout=120)
        assert output == "30\n"
        assert "Downloading" in shown and "http" not in shown  # pooch's log lines name addresses
    assert contents_of(cache) == files


def test_a_full_disk_does_not_lead_to_the_synthetic_set(cache, files, mirror, monkeypatch):
    use(monkeypatch, mirror({name: bytes(100_000) for name in files}))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores SIGXFSZ, so a write beyond the limit fails as it does on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(data.DataError, match="cannot be saved there"):
            data.load("auto")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(cache.iterdir()) == []


def refuse(**_):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@pytest.mark.parametrize("fault, reason", [
    ("a file", "File exists|Not a directory"), ("a name too long", "File name too long"),
    ("no permission", "Permission denied"),
])  # fmt: skip
def test_a_cache_that_cannot_be_written_is_named_before_a_download(
    fault, reason, files, cache, mirror, tmp_path, monkeypatch
):
    if fault == "a file":
        cache.write_text("a file where the folder should be")
    elif fault == "a name too long":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ("long" * 100)))
    else:  # root may write anywhere
        monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)
    server = mirror(files)
    use(monkeypatch, server)
    words = rf"fashion-mnist: the download cannot be saved there \({reason}"
    with pytest.raises(data.DataError, match=words) as caught:
        data.load("auto")
    assert server.asked == [] and str(caught.value).endswith(data.WHAT_TO_DO)


def test_a_damaged_file_in_the_cache_is_downloaded_again(files, cache, mirror, monkeypatch):
    write(cache, {**files, IMAGES: files[IMAGES][:-1]})
    with pytest.raises(data.DataError, match=f"{IMAGES}: damaged"):  # never the synthetic set
        data.load("auto")
    server = mirror(files)
    use(monkeypatch, server)
    assert len(data.load("auto").train.images) == 30
    assert server.asked == [IMAGES]


def test_without_files_and_network_auto_draws_images(cache, small):
    with pytest.raises(data.DataError, match="missing, and no mirror could be used"):
        data.load("fashion_mnist")
    with pytest.warns(UserWarning, match="NOT FASHION-MNIST.*Connection refused"):
        assert data.load("auto").name == "synthetic"


def test_without_a_home_the_cache_is_in_the_systems_temporary_folder(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    # As os.path.expanduser does for an unknown user without HOME.
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert data.cache_folder() == pathlib.Path(tempfile.gettempdir(), "fashion-mnist")


@pytest.fixture
def no_settings(monkeypatch):
    """Removes the environment variables of this machine that concern the network."""
    for name in list(os.environ):
        if name.lower().endswith(("_proxy", "_ca_bundle")) or name == "SSLKEYLOGFILE":
            monkeypatch.delenv(name)


@pytest.mark.parametrize("variable, value, reason", [
    ("ALL_PROXY", "socks5://127.0.0.1:9", "refused|SOCKS"), ("ALL_PROXY", "socks9://me", "SOCKS"),
    ("http_proxy", "http://", "proxy"), ("http_proxy", "http://127.0.0.1:99999", "99999|port"),
    ("http_proxy", "http://.local:9", "label|resolve"),
    ("http_proxy", "http://\udcff:9", "udcff|resolve"),
    ("HTTPS_PROXY", "http://[::1", "::1"), ("HTTPS_PROXY", "http://my proxy:1", "my proxy"),
    ("REQUESTS_CA_BUNDLE", "/nowhere/ca.pem", "/nowhere/ca.pem"),
    ("CURL_CA_BUNDLE", "/dev/null", "certificate|X509|PEM"),
    ("SSLKEYLOGFILE", "/nowhere/keys", "No such file"),
])  # fmt: skip
def test_what_another_program_set_is_named_and_auto_falls_back(
    variable, value, reason, cache, mirror, no_settings, small, monkeypatch
):
    look_up = socket.getaddrinfo
    monkeypatch.setattr(  # the network ends at this machine
        socket, "getaddrinfo", lambda *a, **k: look_up("127.0.0.1", *a[1:], **k)
    )
    monkeypatch.setenv(variable, value)
    address = mirror({}, lambda answer, _: None).address  # it speaks no TLS, and hangs up
    scheme = "http" if variable.lower() in ("http_proxy", "all_proxy") else "https"
    monkeypatch.setattr(data, "MIRRORS", (f"{scheme}://{address}/",))
    with pytest.warns(UserWarning, match="NOT FASHION-MNIST") as caught:
        assert data.load("auto").name == "synthetic"
    message = str(caught[0].message)
    assert message.partition(address)[2] and re.search(reason, message)
    assert f"change how it is reached: {variable})" in message and "\n" not in message
    assert WRONG_FILE not in message and "saved" not in message
    assert list(data.cache_folder().iterdir()) == []


def test_the_password_of_a_proxy_is_not_shown(cache, no_settings, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://me:secret@my proxy:99999")
    with pytest.raises(data.Unreachable, match="my proxy") as caught:
        data.load("fashion_mnist")
    assert "secret" not in str(caught.value)


# --- The synthetic set ---


def test_the_synthetic_set_depends_only_on_the_seed(small):
    once, again, other = (data.load("synthetic", seed=seed).fingerprint() for seed in (0, 0, 1))
    assert once == again != other


def test_synthetic_images_differ_within_and_between_articles(monkeypatch):
    monkeypatch.setattr(data, "SYNTHETIC_SIZES", (2000, 500))
    _, train, test, *_ = data.load("synthetic")
    for split, size in ((train, 2000), (test, 500)):
        assert split.images.shape == (size, 28, 28)
        assert split.images.dtype == split.main_labels().dtype == np.uint8
        np.testing.assert_array_equal(np.bincount(split.main_labels()), [size // 10] * 10)
    assert len({image.tobytes() for image in train.images}) == len(train.images)
    means = np.array([train.images[train.main_labels() == a].mean(axis=0) for a in range(10)])
    distances = np.abs(test.images[:, np.newaxis] - means).sum(axis=(2, 3))
    share = np.mean(distances.argmin(axis=1) == test.main_labels())
    # The nearest mean tells the article sometimes, and by far not always.
    assert 0.2 < share < 0.9


def test_drawn_images_have_no_label_files(small):
    with pytest.raises(data.DataError, match="'sleeves' is not in TASKS.*drawn images have no"):
        data.load("synthetic", tasks=["article", "sleeves"])
