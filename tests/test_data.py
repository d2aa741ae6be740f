"""The data: correct labels, correct order, correct statistics, and never the wrong files."""

import contextlib
import errno
import functools
import gzip
import http.server
import os
import pathlib
import resource
import socket
import ssl
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


@functools.cache
def drawn():
    """Returns the whole synthetic set, which takes seconds to draw."""
    return data.load("synthetic")


# --- Labels ---


def test_the_groups_are_those_of_the_table():
    group = {task.name: task for task in data.TASKS}["group"]
    members = {
        name: {a for a in range(10) if group.from_article[a] == index}
        for index, name in enumerate(group.classes)
    }
    assert members == {"Shoes": {5, 7, 9}, "For Women": {3, 6, 8}, "Other": {0, 1, 2, 4}}


def test_every_article_has_a_class_in_every_task():
    for task in data.TASKS:
        if task.name != "rotation":
            assert len(task.from_article) == len(data.ARTICLES) == 10
            assert set(task.from_article) == set(range(len(task.classes)))


def test_a_batch_has_the_labels_of_its_images(fashion_mnist):
    images, labels = fashion_mnist.train_batch(step=500, batch_size=128, seed=3)
    order = data.epoch_order(60000, 3, epoch=1)[(500 - 469) * 128 :][:128]
    articles = fashion_mnist.train.articles[order]
    np.testing.assert_array_equal(labels["article"], articles)
    np.testing.assert_array_equal(labels["group"] == 0, np.isin(articles, [5, 7, 9]))
    np.testing.assert_array_equal(labels["group"] == 1, np.isin(articles, [3, 6, 8]))
    np.testing.assert_array_equal(
        images, fashion_mnist.standardise(fashion_mnist.train.images[order])
    )


# --- Standardisation ---


def test_standardised_training_images_have_mean_0_and_deviation_1(fashion_mnist):
    assert fashion_mnist.train.images.shape == (60000, 28, 28)
    assert fashion_mnist.test.images.shape == (10000, 28, 28)
    assert fashion_mnist.train.images.dtype == fashion_mnist.train.articles.dtype == np.uint8
    np.testing.assert_array_equal(np.bincount(fashion_mnist.train.articles), [6000] * 10)
    z = fashion_mnist.standardise(fashion_mnist.train.images)
    assert z.dtype == np.float32 and z.shape == (60000, 28, 28, 1)
    np.testing.assert_allclose(z.mean(axis=0, dtype=np.float64), 0, atol=1e-5)
    np.testing.assert_allclose(z.std(axis=0, dtype=np.float64), 1, atol=1e-5)
    # Test images are standardised with the statistics of the training images.
    raw, z_test = fashion_mnist.test.images, fashion_mnist.standardise(fashion_mnist.test.images)
    mean, deviation = (f(fashion_mnist.train.images[:, 14, 14]) for f in (np.mean, np.std))
    np.testing.assert_allclose(z_test[:, 14, 14, 0], (raw[:, 14, 14] - mean) / deviation, atol=1e-6)


# --- Fewer training images, held-out images ---


def images_of(split):
    return {image.tobytes() for image in split.images}


def test_a_subset_is_balanced_and_the_seed_chooses_it():
    whole = drawn().train
    small, large = data.balanced_subset(whole, 300, 0), data.balanced_subset(whole, 1003, 0)
    assert np.bincount(small.articles).tolist() == [30] * 10
    assert sorted(np.bincount(large.articles)) == [100] * 7 + [101] * 3
    assert images_of(small) < images_of(large) < images_of(whole)
    assert images_of(small) == images_of(data.balanced_subset(whole, 300, 0))
    assert len(images_of(small) & images_of(data.balanced_subset(whole, 300, 1))) < 50
    # Each image keeps its label.
    place = {image.tobytes(): article for image, article in zip(whole.images, whole.articles)}
    assert [place[image.tobytes()] for image in small.images] == small.articles.tolist()


def starved(split, ratio, seed):
    """Article -> the numbers, in `split`, of its images that are kept."""
    numbered = split._replace(images=np.arange(len(split.articles)))
    kept = data.starved_subset(numbered, ratio, seed)
    assert np.all(np.diff(kept.images) > 0)  # in their original order, none twice
    np.testing.assert_array_equal(kept.articles, split.articles[kept.images])
    return {a: set(kept.images[kept.articles == a].tolist()) for a in range(10)}


WHOLE = data.Split(np.zeros([60000, 1]), np.repeat(np.arange(10, dtype=np.uint8), 6000))


def test_a_starved_set_falls_geometrically_from_all_images_to_one_in_r():
    sizes = sorted(map(len, starved(WHOLE, 100, seed=4).values()), reverse=True)
    assert sizes[0] == 6000 and sizes[-1] == 60 and sum(sizes) == 14891
    np.testing.assert_allclose(np.divide(sizes[:-1], sizes[1:]), 100 ** (1 / 9), rtol=0.02)
    assert [len(kept) for kept in starved(WHOLE, 1, seed=4).values()] == [6000] * 10


def test_of_a_starved_set_a_larger_ratio_keeps_a_part_of_what_a_smaller_one_keeps():
    for smaller, larger in ((1, 2), (2, 10), (10, 100), (100, 5000)):
        some, fewer = (starved(WHOLE, ratio, seed=1) for ratio in (smaller, larger))
        assert all(fewer[article] <= some[article] for article in range(10))
        assert all(fewer.values())  # of every article, one image at least
    assert starved(WHOLE, 10, seed=1) != starved(WHOLE, 10, seed=11)  # the same ranks, other images


def test_ten_seeds_give_each_article_each_rank_once():
    ranks = np.array([data.ranks_of_articles(seed) for seed in range(10)])
    for line in (*ranks, *ranks.T):
        assert sorted(line) == list(range(10))
    sizes = {article: len(kept) for article, kept in starved(WHOLE, 100, seed=3).items()}
    by_size = sorted(sizes, key=sizes.get, reverse=True)
    assert [ranks[3][article] for article in by_size] == list(range(10))


def test_a_starved_set_is_the_same_on_every_machine():
    kept = starved(WHOLE, 5000, seed=0)
    order = np.random.RandomState([0, 0, 3]).permutation(60000)  # the same in every numpy release
    rarest = data.ranks_of_articles(0).index(9)
    assert kept[rarest] == {next(i for i in order if WHOLE.articles[i] == rarest)}


def test_held_out_images_are_taken_before_others_are_starved(fashion_mnist, monkeypatch):
    monkeypatch.setattr(data, "read", lambda *_: ("fashion_mnist", *fashion_mnist[1:3]))
    dataset = data.load(holdout=10000, starve=100, seed=2)
    np.testing.assert_array_equal(dataset.test.images, fashion_mnist.train.images[50000:])
    counts = np.bincount(fashion_mnist.train.articles[:50000])
    kept = dataset.images_by_class()
    for article, (rank, count) in enumerate(zip(data.ranks_of_articles(2), counts)):
        assert kept["article"][data.ARTICLES[article]] == round(count * 100 ** (-rank / 9))
    groups = {}
    for article, group in enumerate(data.TASKS[1].from_article):
        name = data.TASKS[1].classes[group]
        groups[name] = groups.get(name, 0) + kept["article"][data.ARTICLES[article]]
    assert kept["group"] == groups


def test_a_subset_is_balanced_by_as_many_classes_as_the_labels_have():
    split = data.Split(np.arange(2400), np.tile(np.arange(12, dtype=np.uint8), 200))
    chosen = data.balanced_subset(split, 120, 0)
    assert np.bincount(chosen.articles).tolist() == [10] * 12


def test_a_subset_is_standardised_with_its_own_statistics_and_keeps_all_test_images(fashion_mnist):
    few = data.load("fashion_mnist", os.environ.get(data.FOLDER_VARIABLE), train_examples=300)
    assert len(few.train.images) == 300 and len(few.test.images) == 10000
    np.testing.assert_allclose(few.mean, few.train.images.mean(axis=0), rtol=1e-5)
    assert few.fingerprint() != fashion_mnist.fingerprint()


def test_held_out_images_are_the_last_ones_and_are_not_used_for_training(fashion_mnist):
    folder = os.environ.get(data.FOLDER_VARIABLE)
    held = data.load("fashion_mnist", folder, train_examples=1000, holdout=5000)
    np.testing.assert_array_equal(held.test.images, fashion_mnist.train.images[55000:])
    np.testing.assert_array_equal(held.test.articles, fashion_mnist.train.articles[55000:])
    others = data.Split(fashion_mnist.train.images[:55000], None)
    assert images_of(held.train) <= images_of(others)
    assert len(held.train.images) == 1000


@pytest.mark.parametrize("asked", [{"train_examples": 701}, {"holdout": 1200}])
def test_asking_for_more_images_than_there_are_is_an_error(asked, monkeypatch):
    monkeypatch.setattr(data, "SYNTHETIC_SIZES", (1200, 20))
    with pytest.raises(data.DataError, match="there are (700|1,200) training images"):
        data.load("synthetic", **{"holdout": 500, **asked})


def test_article_labels_imply_the_labels_of_the_group_only():
    split = make_split(10, np.random.RandomState(0))
    dataset = data.with_statistics("made", split, split, data.TASKS)
    implied = dataset.implied(np.arange(10))
    assert implied.keys() == {"group"}
    assert implied["group"].tolist() == [2, 2, 2, 1, 2, 0, 1, 0, 1, 0]


def make_split(count, random):
    images = random.randint(0, 256, [count, 28, 28]).astype(np.uint8)
    return data.Split(images, (np.arange(count) % 10).astype(np.uint8))


def test_a_constant_pixel_becomes_zero():
    train = make_split(20, np.random.RandomState(0))
    train.images[:, 3, 4] = 7
    dataset = data.with_statistics("made", train, train)
    brighter = train.images.copy()
    brighter[:, 3, 4] = 255  # a test image may differ there
    z = dataset.standardise(brighter)
    assert np.all(z[:, 3, 4] == 0)
    assert np.all(np.isfinite(z)) and np.all(z.std(axis=0)[np.arange(28) != 3] > 0.5)


# --- Batches ---


def test_an_epoch_has_every_image_once():
    assert data.steps_per_epoch(60000, 128) == 469
    split = make_split(300, np.random.RandomState(0))
    split.images[:, 0, 0], split.images[:, 0, 1] = np.arange(300) % 256, np.arange(300) // 256
    dataset = data.with_statistics("made", split, split)
    for epoch in range(2):
        batches = [dataset.train_batch(epoch * 3 + i, 128, seed=0)[0] for i in range(3)]
        assert [len(batch) for batch in batches] == [128, 128, 44]
        seen = np.concatenate(batches)
        everything = dataset.standardise(split.images)
        assert {image.tobytes() for image in seen} == {image.tobytes() for image in everything}


def test_the_last_batch_of_a_real_epoch_has_96_images(fashion_mnist):
    sizes = [len(fashion_mnist.train_batch(step, 128, 0)[0]) for step in (0, 467, 468, 469)]
    assert sizes == [128, 128, 96, 128]


def test_the_order_depends_only_on_seed_and_epoch():
    split = make_split(300, np.random.RandomState(0))
    dataset = data.with_statistics("made", split, split)

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
    split = make_split(25, np.random.RandomState(1))
    dataset = data.with_statistics("made", split, split)
    images, labels = zip(*dataset.test_batches(10))
    assert [len(batch) for batch in images] == [10, 10, 5]
    np.testing.assert_array_equal(np.concatenate(images), dataset.standardise(split.images))
    np.testing.assert_array_equal(np.concatenate([x["article"] for x in labels]), split.articles)


# --- Rotation ---


@pytest.fixture
def turning():
    """Returns a data set with the task rotation, and the same set without it."""
    split = make_split(300, np.random.RandomState(0))
    tasks = tuple(task for task in data.TASKS if task.name in ("article", "rotation"))
    return data.with_statistics("made", split, split, tasks), data.with_statistics(
        "made", split, split
    )


def raw(dataset, images):
    """Returns the pixels before they were standardised."""
    return np.round(images[..., 0] / dataset.scale + dataset.mean).astype(np.uint8)


def test_turning_a_turned_image_back_gives_the_original(turning):
    dataset, upright = turning
    for step in range(6):
        turned, labels = dataset.train_batch(step, 128, seed=3)
        images, _ = upright.train_batch(step, 128, seed=3)
        assert set(labels["rotation"]) == {0, 1, 2, 3}
        for one, other, turn in zip(raw(dataset, turned), raw(upright, images), labels["rotation"]):
            np.testing.assert_array_equal(np.rot90(one, -turn), other)


def test_turned_images_are_standardised_with_the_statistics_of_turned_images(turning):
    split = turning[0].train
    split.images[:, :, :14] = 0  # constant in upright images
    split.images[:, 3, 20] = 7  # and one more constant pixel
    dataset = data.with_statistics("made", split, split, turning[0].tasks)
    seen = np.concatenate([np.rot90(split.images, turns, axes=(1, 2)) for turns in range(4)])
    scores = dataset.standardise(seen)[..., 0]
    np.testing.assert_allclose(scores.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(scores.std(axis=0), 1, atol=1e-4)


def test_turns_depend_only_on_seed_epoch_and_image_and_test_images_keep_theirs(turning):
    dataset, _ = turning

    def turns(epoch, seed):
        """Returns the turns in the order of the split, not of the epoch."""
        batches = [dataset.train_batch(3 * epoch + i, 128, seed)[1]["rotation"] for i in range(3)]
        return np.concatenate(batches)[np.argsort(data.epoch_order(300, seed, epoch))]

    first = turns(0, seed=1)
    for other in (turns(1, seed=1), turns(0, seed=2)):
        assert 0.1 < np.mean(first == other) < 0.4  # a quarter agrees by chance
    np.testing.assert_array_equal(first, turns(0, seed=1))
    assert abs(np.corrcoef(first, dataset.train.articles)[0, 1]) < 0.2
    of_test = [
        np.concatenate([b["rotation"] for _, b in dataset.test_batches(n)]) for n in (7, 100)
    ]
    np.testing.assert_array_equal(*of_test)
    assert np.bincount(of_test[0]).min() > 300 / 8


# --- Files ---


def idx(array):
    header = struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape)
    return gzip.compress(header + array.tobytes(), 1, mtime=0)


@pytest.fixture
def files():
    """Returns four small files that are not the official ones: name -> content."""
    random = np.random.RandomState(0)
    contents = {}
    for prefix, count in (("train", 30), ("t10k", 20)):
        split = make_split(count, random)
        contents[f"{prefix}-images-idx3-ubyte.gz"] = idx(split.images)
        contents[f"{prefix}-labels-idx1-ubyte.gz"] = idx(split.articles)
    return contents


def write(folder, contents):
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


def test_files_that_are_not_official_are_used_with_a_warning(files, tmp_path):
    with pytest.warns(UserWarning, match="not the official Fashion-MNIST"):
        dataset = data.load("auto", write(tmp_path, files))
    assert dataset.name == f"{tmp_path.name}-custom"
    assert [(task.name, task.classes[:2]) for task in dataset.tasks] == [("article", ("0", "1"))]
    assert len(dataset.train.images) == 30 and len(dataset.test.images) == 20
    np.testing.assert_array_equal(dataset.test.articles, np.arange(20) % 10)
    np.testing.assert_array_equal(idx(dataset.train.images), files["train-images-idx3-ubyte.gz"])


def test_official_files_give_no_warning(fashion_mnist):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Without a folder, load looks where the fixture does: the variable, then the cache.
        assert data.load("fashion_mnist").name == "fashion_mnist"


def test_data_dir_overrides_the_environment_variable(files, tmp_path, monkeypatch):
    monkeypatch.setenv(data.FOLDER_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(data.DataError, match="nowhere"):
        data.load("auto")
    with pytest.warns(UserWarning):
        assert len(data.load("auto", write(tmp_path, files)).train.images) == 30


@pytest.mark.filterwarnings("ignore:.*not the official")
@pytest.mark.parametrize("folder", [
    "~", "~/", ".", "./", "..", "../mine", "../mine/", "../mine//.", "~/../mine",
])  # fmt: skip
@pytest.mark.parametrize("named_by", ["data_dir", "variable"])
def test_a_data_set_has_the_name_of_its_folder_however_that_is_written(
    folder, named_by, files, tmp_path, monkeypatch
):
    home = tmp_path / "mine"
    (home / "below").mkdir(parents=True)
    write_labels(write(home, files), "sleeves", [0, 1] * 15, [0, 1] * 10)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home / "below" if folder == ".." else home)
    monkeypatch.setenv(data.FOLDER_VARIABLE, folder if named_by == "variable" else "/nowhere")
    named = folder if named_by == "data_dir" else None
    dataset = data.load("auto", named, tasks=["article", "sleeves"])
    assert dataset.name == "mine-custom"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may change the root folder")
def test_a_data_set_in_the_root_folder_has_a_name(files, tmp_path):
    write(tmp_path, files)
    program = (
        "import os, warnings, data; warnings.simplefilter('ignore')\n"
        f"os.chroot({str(tmp_path)!r}); os.chdir('/'); print(data.load('auto', '/').name)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert shown.stdout == "root-custom\n", shown.stderr


IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
DAMAGED = {
    "missing": (IMAGES, lambda content: None),
    "truncated": (IMAGES, lambda content: content[:-20]),
    "one bit flipped": (IMAGES, lambda c: c[:999] + bytes([c[999] ^ 1]) + c[1000:]),
    "not gzip": (LABELS, lambda content: b"<html>404</html>"),
    "empty": (LABELS, lambda content: b""),
    "wrong magic": (IMAGES, lambda content: gzip.compress(b"\0\0\x0d\3" + bytes(12))),
    "header only": (IMAGES, lambda content: idx(np.zeros([0, 28, 28], np.uint8))),
    "wrong dimensions": (IMAGES, lambda content: idx(np.zeros([30, 32, 32], np.uint8))),
    "fewer labels": (LABELS, lambda content: idx(np.zeros(29, np.uint8))),
    "a label above 9": (LABELS, lambda content: idx(np.full(30, 10, np.uint8))),
    "more than announced": (LABELS, lambda c: gzip.compress(gzip.decompress(c) + b"\0")),
    "less than announced": (LABELS, lambda c: gzip.compress(gzip.decompress(c)[:-1])),
    "four billion images": (
        IMAGES,
        lambda content: gzip.compress(struct.pack(">4I", 0x803, 2**32 - 1, 28, 28)),
    ),
    "no images of endless size": (
        IMAGES,
        lambda content: gzip.compress(struct.pack(">4I", 0x803, 0, 2**32 - 1, 2**32 - 1)),
    ),
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


# Not made with chmod, because root can read any file.
UNREADABLE = {
    "a folder in a file's place": lambda folder: (folder / IMAGES).mkdir(),
    "a link to itself": lambda folder: (folder / IMAGES).symlink_to(IMAGES),
    "a file in the folder's place": lambda folder: (folder.rmdir(), folder.touch()),
    "one of the files in the folder's place": lambda folder: (
        folder.rmdir(),
        folder.write_bytes(idx(np.zeros(30, np.uint8))),
    ),
    "a folder that links to itself": lambda folder: (folder.rmdir(), folder.symlink_to(folder)),
}


@pytest.mark.parametrize("fault", UNREADABLE)
def test_a_file_that_cannot_be_read_is_named_and_refused(fault, files, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    UNREADABLE[fault](folder)
    with contextlib.suppress(OSError):
        write(folder, {name: content for name, content in files.items() if name != IMAGES})
    with pytest.raises(data.DataError, match="cannot be read") as caught:
        data.load("auto", folder)
    assert str(folder / IMAGES) in str(caught.value)


@pytest.mark.parametrize("folder", ["/", "//", "~nobody-of-this-name", " ", "/dev/null", "a" * 300])
def test_a_folder_without_the_files_is_named_in_a_sentence(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(data.DataError, match=f"{IMAGES}: cannot be read") as caught:
        data.load("auto", folder)
    assert str(caught.value).endswith(data.WHAT_TO_DO) and "\n" not in str(caught.value)


@pytest.fixture
def official(fashion_mnist):
    """Returns the paths of the official files: name -> path."""
    folder = pathlib.Path(os.environ.get(data.FOLDER_VARIABLE) or data.cache_folder()).resolve()
    return {name: folder / name for name in data.FILES}


@pytest.mark.parametrize("other", sorted(data.FILES.keys() - {IMAGES}))
def test_official_files_under_each_others_names_are_refused(other, official, tmp_path):
    official[IMAGES], official[other] = official[other], official[IMAGES]
    for name, path in official.items():
        (tmp_path / name).symlink_to(path)
    with pytest.raises(data.DataError) as caught:
        data.load("auto", tmp_path)
    assert str(tmp_path / IMAGES) in str(caught.value) and other in str(caught.value)


@pytest.mark.parametrize("name", data.FILES)
def test_a_bit_flipped_anywhere_is_refused_or_changes_no_value(name, official):
    content = official[name].read_bytes()
    values = data.parse_idx(content, name)
    # A changed bit does no harm in the time or the file name of gzip's header (RFC 1952),
    # and in the unused bits of the last byte before the checksum.
    assert content[3] == 8  # the header's only optional field is the file name
    header = content.index(b"\0", 10) + 1
    harmless = {*range(header), len(content) - 9}
    everywhere = np.linspace(0, len(content) - 1, 8 if "images" in name else 1000).astype(int)
    for i, position in enumerate({*everywhere, *range(len(content) - 9, len(content))}):
        damaged = bytearray(content)
        damaged[position] ^= 1 << i % 8
        try:
            read = data.parse_idx(bytes(damaged), name)
        except data.DataError as error:
            assert name in str(error)
        else:
            assert position in harmless
            np.testing.assert_array_equal(read, values)


# --- Memory ---


@pytest.mark.parametrize("members", [1, 16])
@pytest.mark.parametrize("announced", [10, 2**24 // 784, 2**28 // 784])
def test_a_bomb_is_not_unpacked(announced, members):
    """256 MB in a file of 300 kB: more than the header announces, or as much."""
    header = struct.pack(">4I", 0x803, announced, 28, 28)
    if members == 1:
        bomb = gzip.compress(header + bytes(2**28))
    else:
        bomb = gzip.compress(header) + gzip.compress(bytes(2**28 // members)) * members
    tracemalloc.start()
    try:
        with pytest.raises(data.DataError, match="bomb.gz: its header announces"):
            data.parse_idx(bomb, "bomb.gz")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**28 / 4


def test_a_header_cannot_make_the_reader_use_more_memory_than_the_file_can_fill():
    incompressible = np.random.RandomState(0).bytes(2**20)
    content = gzip.compress(struct.pack(">2I", 0x801, 900 * 2**20) + incompressible)
    tracemalloc.start()
    try:
        with pytest.raises(data.DataError):
            data.parse_idx(content, "labels.gz")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100 * len(content)


def test_blank_images_that_compress_well_are_read():
    blank = np.zeros([20_000, 28, 28], np.uint8)
    assert data.parse_idx(idx(blank), "blank.gz").shape == blank.shape


# --- Files as other programs leave them ---


def plain_name(name):
    return name.removesuffix(".gz")


LAYOUTS = {  # how other programs leave the files: name -> path below the folder, content
    "unpacked": lambda name, c: (plain_name(name), gzip.decompress(c)),
    "unpacked, with a dot": lambda name, c: (
        plain_name(name).replace("-idx", ".idx"),
        gzip.decompress(c),
    ),
    "packed again": lambda name, c: (name, gzip.compress(gzip.decompress(c), 1)),
    "torchvision's raw": lambda name, c: (f"raw/{plain_name(name)}", gzip.decompress(c)),
    "torchvision's root": lambda name, c: (f"FashionMNIST/raw/{name}", c),
    "in folders of their names, as Kaggle unzips them": lambda name, c: (
        f"{plain_name(name)}/{plain_name(name)}",
        gzip.decompress(c),
    ),
    "in folders of their packed names": lambda name, c: (f"{name}/{plain_name(name)}", c),
    "in folders of their names in torchvision's folder": lambda name, c: (
        f"raw/{plain_name(name)}/{name}",
        c,
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_as_other_programs_leave_them_are_official(layout, files, cache, tmp_path):
    folder = tmp_path / "mine"
    for name, content in files.items():
        path, content = LAYOUTS[layout](name, content)
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    dataset = data.load("fashion_mnist", folder)
    assert dataset.name == "fashion_mnist"
    np.testing.assert_array_equal(idx(dataset.train.images), files[IMAGES])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name_of_folder", [plain_name, str])
def test_an_empty_folder_of_the_files_name_hides_no_file(
    layout, name_of_folder, files, cache, tmp_path
):
    folder = tmp_path / "mine"
    for name, content in files.items():
        path, content = LAYOUTS[layout](name, content)
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
        with contextlib.suppress(FileExistsError):
            (folder / name_of_folder(name)).mkdir()
    assert len(data.load("fashion_mnist", folder).train.images) == 30


def test_the_file_beside_and_the_file_in_a_folder_of_its_name_must_agree(files, cache, tmp_path):
    folder = write(tmp_path, files)
    inside = folder / plain_name(LABELS) / plain_name(LABELS)
    inside.parent.mkdir()
    inside.write_bytes(gzip.decompress(files[LABELS])[:-1] + b"\0")
    with pytest.raises(data.DataError, match="differ. Delete the wrong one") as caught:
        data.load("fashion_mnist", folder)
    assert str(inside) in str(caught.value)


def test_the_real_files_are_official_when_unpacked(fashion_mnist, official, tmp_path):
    for name, path in official.items():
        (tmp_path / plain_name(name)).write_bytes(gzip.decompress(path.read_bytes()))
    assert data.load("fashion_mnist", tmp_path).fingerprint() == fashion_mnist.fingerprint()


def test_a_packed_and_an_unpacked_file_that_differ_are_refused(files, tmp_path):
    write(tmp_path, files)
    unpacked = tmp_path / plain_name(LABELS)
    unpacked.write_bytes(gzip.decompress(files[LABELS]))
    with pytest.warns(UserWarning):
        data.load("auto", tmp_path)
    unpacked.write_bytes(gzip.decompress(files[LABELS])[:-1] + b"\0")
    with pytest.raises(data.DataError, match="differ") as caught:
        data.load("auto", tmp_path)
    assert str(unpacked) in str(caught.value)


def test_the_files_in_keras_cache_are_used_if_they_are_official(files, cache, tmp_path):
    folder = tmp_path / "keras" / "datasets" / "fashion-mnist"
    folder.mkdir(parents=True)
    write(folder, files)
    assert len(data.load("fashion_mnist").train.images) == 30
    assert not cache.exists()
    (folder / LABELS).write_bytes(idx(np.zeros(30, np.uint8)))
    with pytest.raises(data.DataError, match=f"{LABELS}: missing"):  # and the mirror is dead
        data.load("fashion_mnist")


# --- Another data set under the same names ---


@pytest.mark.filterwarnings("ignore:.*not the official")
@pytest.mark.parametrize("half", ["train", "t10k"])
def test_one_half_of_another_data_set_makes_the_set_a_custom_one(half, files, official, tmp_path):
    folder = tmp_path / "my digits"
    folder.mkdir()
    for name, path in official.items():
        content = files[name] if name.startswith(half) else path.read_bytes()
        (folder / name).write_bytes(content)
    dataset = data.load("auto", folder, tasks=["article", "group"])
    assert dataset.name == "my_digits-custom"
    assert dataset.tasks[0].classes == tuple("0123456789")
    assert dataset.tasks[1].name == "group"  # asked for


@pytest.mark.filterwarnings("ignore:.*not the official")
def test_another_data_set_is_refused_where_fashion_mnist_is_asked_for(files, tmp_path):
    with pytest.raises(data.DataError, match="not the official Fashion-MNIST") as caught:
        data.load("fashion_mnist", write(tmp_path, files))
    assert "leave out --dataset=fashion_mnist" in str(caught.value)


# --- Label files ---


def write_labels(folder, name, train, test, classes=None):
    """Label files of a task, made as README shows it."""
    for prefix, labels in (("train", train), ("t10k", test)):
        (folder / f"{prefix}-{name}-labels-idx1-ubyte").write_bytes(
            struct.pack(">II", 0x801, len(labels)) + np.array(labels, np.uint8).tobytes()
        )
    if classes:
        (folder / f"{name}-classes.txt").write_text("\n".join(classes) + "\n", encoding="utf-8")


@pytest.fixture
def labelled(files, cache, tmp_path):
    """A folder with the small files, which count as official, and labels of a task "sleeves"."""
    folder = tmp_path / "mine"
    folder.mkdir()
    write_labels(write(folder, files), "sleeves", np.arange(30) % 3, np.arange(20) % 2)
    return folder


def test_label_files_are_a_task_with_a_class_for_every_label(labelled):
    dataset = data.load("fashion_mnist", labelled, tasks=["article", "sleeves"])
    assert dataset.tasks[1].classes == ("0", "1", "2")
    _, labels = dataset.train_batch(0, 30, seed=0)
    order = data.epoch_order(30, 0, 0)
    np.testing.assert_array_equal(labels["sleeves"], order % 3)
    assert [b["sleeves"].tolist() for _, b in dataset.test_batches(20)] == [[0, 1] * 10]
    assert dataset.implied(np.arange(3)) == {}


def test_classes_of_label_files_may_have_names(labelled):
    write_labels(labelled, "sleeves", np.arange(30) % 3, np.arange(20) % 2, ["no", "short", "long"])
    dataset = data.load("fashion_mnist", labelled, tasks=["sleeves"])
    assert dataset.tasks[0].classes == ("no", "short", "long")


def test_label_files_and_their_names_may_lie_in_torchvisions_folder(labelled):
    (labelled / "raw").mkdir()
    write_labels(labelled / "raw", "hands", [0, 1] * 15, [1, 0] * 10, ["left", "right"])
    dataset = data.load("fashion_mnist", labelled, tasks=["hands"])
    assert dataset.tasks[0].classes == ("left", "right")
    (labelled / "raw" / "hands-classes.txt").rename(labelled / "hands-classes.txt")
    assert data.load("fashion_mnist", labelled, tasks=["hands"]).tasks == dataset.tasks


def test_a_folder_of_its_name_hides_no_label_file_and_no_names_of_classes(labelled):
    (labelled / "raw").mkdir()
    write_labels(labelled / "raw", "hands", [0, 1] * 15, [1, 0] * 10, ["left", "right"])
    for name in ("train-hands-labels-idx1-ubyte.gz", "hands-classes.txt"):
        (labelled / name).mkdir()
    dataset = data.load("fashion_mnist", labelled, tasks=["hands"])
    assert dataset.tasks[0].classes == ("left", "right")


def test_labels_follow_their_images_into_subsets_and_held_out_images(labelled):
    write_labels(labelled, "number", np.arange(30), np.arange(20))
    whole = data.load("fashion_mnist", labelled, tasks=["number"])
    for options in ({"train_examples": 10}, {"holdout": 12}, {"train_examples": 9, "holdout": 5}):
        dataset = data.load("fashion_mnist", labelled, tasks=["number"], **options)
        splits = [dataset.train, *([dataset.test] if "holdout" in options else [])]
        for split in splits:
            numbers = split.labels["number"]
            np.testing.assert_array_equal(split.images, whole.train.images[numbers])


def test_the_fingerprint_covers_labels_and_names_of_classes(labelled):
    def fingerprint():
        return data.load("fashion_mnist", labelled, tasks=["article", "sleeves"]).fingerprint()

    seen = [data.load("fashion_mnist", labelled).fingerprint(), fingerprint()]
    write_labels(labelled, "sleeves", np.arange(30) % 3, np.arange(20) % 2, "abc")
    seen.append(fingerprint())
    write_labels(labelled, "sleeves", np.arange(1, 31) % 3, np.arange(20) % 2, "abc")
    seen.append(fingerprint())
    assert len(set(seen)) == 4


WRONG_LABELS = {
    "no file": (lambda folder: None, "train-hands-labels-idx1-ubyte"),
    "too few": (
        lambda folder: write_labels(folder, "hands", [0] * 29, [0] * 20),
        "each of the 30 images",
    ),
    "missing labels": (
        lambda folder: write_labels(folder, "hands", [0, 255] * 15, [0] * 20),
        "Every image must have a label",
    ),
    "too few names": (
        lambda folder: write_labels(folder, "hands", [0, 1, 2] * 10, [0] * 20, "ab"),
        "2 names, but the labels have 3 classes",
    ),
    "too many names": (
        lambda folder: write_labels(folder, "hands", [0, 1] * 15, [0] * 20, "abc"),
        "3 names, but the labels have 2 classes",
    ),
    "two equal names": (
        lambda folder: write_labels(folder, "hands", [0, 1, 2] * 10, [0] * 20, "aba"),
        "hands-classes.txt: two of its classes have the same name",
    ),
    "two that differ": (
        lambda folder: [
            write_labels(folder, "hands", [0, 1] * 15, [0] * 20),
            (folder / "t10k-hands-labels-idx1-ubyte.gz").write_bytes(
                gzip.compress(struct.pack(">II20B", 0x801, 20, *[1] * 20))
            ),
        ],
        "differ. Delete the wrong one",
    ),
}


@pytest.mark.parametrize("fault", WRONG_LABELS)
def test_wrong_label_files_are_refused_in_a_sentence(fault, labelled):
    make, words = WRONG_LABELS[fault]
    make(labelled)
    with pytest.raises(data.DataError, match=words):
        data.load("fashion_mnist", labelled, tasks=["article", "hands"])


@pytest.mark.parametrize("name", ["mean", "on hands", "é", "-hands"])
def test_a_task_from_label_files_of_a_name_that_cannot_be_used_is_not_sought_in_tasks(
    name, labelled
):
    write_labels(labelled, name, [0, 1] * 15, [0] * 20)
    with pytest.raises(data.DataError, match="from label files: .*name") as caught:
        data.load("fashion_mnist", labelled, tasks=["article", name])
    assert repr(name) in str(caught.value) and "TASKS" not in str(caught.value)


NAMED = {  # how a file of the names of two classes, "nein" and "Ärmel", may be written
    "UTF-8": "nein\nÄrmel\n".encode(),
    "UTF-8 with a byte order mark": "nein\nÄrmel\n".encode("utf-8-sig"),
    "the lines of Windows": "nein\r\nÄrmel\r\n".encode("utf-8-sig"),
    "the lines of an old Mac": "nein\rÄrmel\r".encode(),
    "two files in one, with two marks": b"\xef\xbb\xbfnein\n\xef\xbb\xbf" + "Ärmel".encode(),
    "nothing but a mark and spaces in a third line": "nein\nÄrmel\n\ufeff \n".encode(),
}


@pytest.mark.parametrize("encoding", NAMED)
def test_names_of_classes_are_read_without_a_mark(encoding, labelled):
    write_labels(labelled, "hands", [0, 1] * 15, [0] * 20)
    (labelled / "hands-classes.txt").write_bytes(NAMED[encoding])
    dataset = data.load("fashion_mnist", labelled, tasks=["hands"])
    assert dataset.tasks[0].classes == ("nein", "Ärmel")


def test_names_of_classes_are_utf_8_in_every_locale(labelled):
    write_labels(labelled, "hands", [0, 1] * 15, [0] * 20)
    (labelled / "hands-classes.txt").write_bytes("nein\nÄrmel\n".encode())
    program = (
        f"import data; data.FILES, data.VALUES = {data.FILES!r}, {data.VALUES!r}\n"
        f"loaded = data.load('fashion_mnist', {str(labelled)!r}, tasks=['hands'])\n"
        "print(ascii(loaded.tasks[0].classes))"
    )
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    shown = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT, env={**os.environ, **plain}, capture_output=True, text=True,
    )  # fmt: skip
    assert shown.stdout == "('nein', '\\xc4rmel')\n", shown.stderr


NOT_UTF_8, INVISIBLE = "not text in UTF-8. Save it", "cannot be shown: give it a name"
WRONG_NAMES = {  # contents of the file, and what is said of it
    "UTF-16 as Windows saves it": ("nein\nÄrmel\n".encode("utf-16"), NOT_UTF_8),
    "UTF-16, big-endian, without a mark": ("no\nyes\n".encode("utf-16-be"), NOT_UTF_8),
    "UTF-16, little-endian, without a mark": ("no\nyes\n".encode("utf-16-le"), NOT_UTF_8),
    "UTF-32": ("no\nyes\n".encode("utf-32"), NOT_UTF_8),
    "Latin-1": ("nein\nÄrmel\n".encode("latin-1"), NOT_UTF_8),
    "Shift-JIS": ("いいえ\nはい\n".encode("shift-jis"), NOT_UTF_8),
    "Latin-1 that a program has replaced before": ("nein\n\ufffdrmel\n".encode(), NOT_UTF_8),
    "a picture": (b"\x89PNG\r\n\x1a\n\0\0", NOT_UTF_8),
    "a name of zero width": ("nein\n\u200b\n".encode(), INVISIBLE),
    "a name of joiners and marks": ("nein\n\u200d\u2060\u00ad\ufe0f\n".encode(), INVISIBLE),
    "a name of control characters": (b"nein\n\x07\x7f\n", INVISIBLE),
    "a name that moves the cursor": (b"nein\n\x1b[2Jja\n", INVISIBLE),
    "a name of spaces": ("nein\n \u00a0\u3000\n".encode(), "has 1 names.*one name a line"),
    "no name": (b"", "has 0 names.*one name a line"),
}


@pytest.mark.parametrize("fault", WRONG_NAMES)
def test_names_of_classes_that_cannot_be_read_are_refused_in_a_sentence(fault, labelled):
    write_labels(labelled, "hands", [0, 1] * 15, [0] * 20)
    path = labelled / "hands-classes.txt"
    content, words = WRONG_NAMES[fault]
    path.write_bytes(content)
    with pytest.raises(data.DataError, match=words) as caught:
        data.load("fashion_mnist", labelled, tasks=["hands"])
    assert str(caught.value).startswith(f"{path}: ") and str(caught.value).isprintable()


def test_names_of_classes_behind_a_broken_link_are_not_left_out(labelled):
    write_labels(labelled, "hands", [0, 1] * 15, [0] * 20)
    (labelled / "hands-classes.txt").symlink_to("nowhere")
    with pytest.raises(data.DataError, match="hands-classes.txt: cannot be read"):
        data.load("fashion_mnist", labelled, tasks=["hands"])


@pytest.mark.parametrize("name", ["می‌خواهم", "👩‍🔬", "Ä", "…", "日本", "a b", "$", "\u0915\u094d"])
def test_visible_names_of_classes_stay_as_they_are(name, labelled):
    write_labels(labelled, "hands", [0, 1] * 15, [0] * 20, ["no", "yes"])
    (labelled / "hands-classes.txt").write_bytes(f"no\n{name}\n".encode())
    dataset = data.load("fashion_mnist", labelled, tasks=["hands"])
    assert dataset.tasks[0].classes == ("no", name)


def test_a_label_that_no_image_has_is_a_warning(labelled):
    write_labels(labelled, "hands", [0, 2] * 15, [0] * 20)
    with pytest.warns(UserWarning, match="no training image has label 1"):
        dataset = data.load("fashion_mnist", labelled, tasks=["hands"])
    assert len(dataset.tasks[0].classes) == 3


def test_drawn_images_have_no_label_files():
    with pytest.raises(data.DataError, match="drawn images have no labels"):
        data.load("synthetic", tasks=["article", "sleeves"])


# --- Tasks of one's own ---

WRONG_TASKS = {
    "a label beyond the classes": (("hands", ("two", "other"), (2, *[0] * 9)), "label 2"),
    "a label below 0": (("hands", ("two", "other"), (-1, *[0] * 9)), "label -1"),
    "a label that is no whole number": (("hands", ("two", "other"), (0.5, *[0] * 9)), "label 0.5"),
    "no labels": (("hands", ("two", "other"), ()), "0 labels for the 10 articles"),
    "nine labels": (("hands", ("two", "other"), (0,) * 9), "9 labels for the 10 articles"),
    "no classes": (("hands", (), (0,) * 10), "classes"),
    "classes that are no names": (("hands", (1, 2), (0,) * 10), "classes"),
    "two classes of one name": (("hands", ("two", "two"), (0,) * 10), "have the same name"),
    "a class without a name": (("hands", ("two", ""), (0,) * 10), "class '' cannot be shown"),
    "a class of zero width": (("hands", ("two", "\u200b"), (0,) * 10), "cannot be shown"),
    "a name that is no scope": (("worn on hands", ("two", "other"), (0,) * 10), "letters"),
    "a name with a slash": (("a/b", ("two", "other"), (0,) * 10), "letters"),
    "the name of the mean": (("mean", ("two", "other"), (0,) * 10), "choose another"),
    "a name that is taken": (("group", ("two", "other"), (0,) * 10), "two tasks"),
}


@pytest.mark.parametrize("fault", WRONG_TASKS)
def test_a_wrong_task_is_named_before_any_work(fault, monkeypatch):
    (name, classes, labels), word = WRONG_TASKS[fault]
    monkeypatch.setattr(data, "TASKS", (*data.TASKS, data.Task(name, classes, labels)))
    with pytest.raises(data.DataError, match=word) as caught:
        data.checked([data.TASKS[0], data.TASKS[-1]])
    assert repr(name) in str(caught.value) and "in TASKS of data.py" in str(caught.value)


# --- Download ---


def test_without_a_home_the_cache_is_in_the_systems_temporary_folder(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    # As os.path.expanduser does for an unknown user without HOME.
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert data.cache_folder() == pathlib.Path(tempfile.gettempdir(), "fashion-mnist")


@pytest.mark.parametrize("error, reason", [
    (socket.gaierror(-2, "Name or service not known"), "cannot resolve the name"),
    (ssl.SSLCertVerificationError(1, "certificate verify failed"), "certificate verify failed"),
    (ConnectionRefusedError(111, "Connection refused"), "Connection refused"),
])  # fmt: skip
def test_a_mirror_that_cannot_be_connected_gives_the_systems_reason(
    error, reason, cache, monkeypatch
):
    """The lowest call, of the socket module, fails in the network's place."""

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(data.DataError, match=reason) as caught:
        data.load("fashion_mnist")
    assert "127.0.0.1:9:" in str(caught.value)


def send_whole(answer, content):
    answer.send_response(404 if content is None else 200)
    answer.send_header("Content-Length", str(len(content or b"")))
    answer.end_headers()
    answer.wfile.write(content or b"")


def send_half(answer, content, announced=True):
    answer.send_response(200)
    if announced:
        answer.send_header("Content-Length", str(len(content)))
    answer.end_headers()
    answer.wfile.write(content[: len(content) // 2])


def linger(answer, byte=b""):
    """Sends a byte now and then, or nothing, until the test ends or the client hangs up."""
    for _ in range(1200):
        if answer.server.over.wait(0.05):
            return
        answer.wfile.write(byte)
    answer.server.client_never_gave_up = True


SILENT, SLOW = 0.5, 1  # MAX_SILENT_SECONDS and MAX_DOWNLOAD_SECONDS in the tests of FAULTS
WRONG_FILE = "what it sent is not the official file"
FAULTS = {  # how a mirror fails, and the reason that the message gives
    "403": (lambda answer, _: answer.send_error(403), "HTTP 403"),
    "404": (lambda answer, _: send_whole(answer, None), "HTTP 404"),
    "an HTML page": (
        lambda answer, _: send_whole(answer, b"<html>Log in first</html>"),
        WRONG_FILE,
    ),
    "nothing": (lambda answer, _: send_whole(answer, b""), WRONG_FILE),
    "hangs up": (lambda answer, _: None, "Remote end closed connection"),
    "cut half way": (send_half, "IncompleteRead"),
    "cut half way, of no announced length": (
        lambda *args: send_half(*args, announced=False),
        WRONG_FILE,
    ),
    # Either the wait for the answer or the read time-out of requests ends first.
    "silent": (lambda answer, _: linger(answer), f"no answer in {SILENT} seconds|timed out"),
    "stalls half way": (lambda *args: (send_half(*args), linger(args[0])), "timed out"),
    "drips for ever": (
        lambda *args: (send_half(*args), linger(args[0], b"x")),
        f"not finished in {SLOW} seconds",
    ),
    "drips before it answers": (
        lambda answer, _: linger(answer, b"x"),
        f"no answer in {SILENT} seconds",
    ),
}


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


@pytest.fixture
def mirror():
    """Starts mirrors on loopback: mirror(contents) returns the server."""
    servers, over = [], threading.Event()

    def start(contents, send=send_whole):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
        server.contents, server.send, server.over = contents, send, over
        server.asked, server.client_never_gave_up = [], False
        server.address = f"127.0.0.1:{server.server_port}"
        server.url = f"http://{server.address}/"
        threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
        servers.append(server)
        return server

    yield start
    over.set()
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def cache(files, tmp_path, monkeypatch):
    """Makes the cache empty and the small files official. Returns the cache's folder."""
    monkeypatch.delenv(data.FOLDER_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr(data, "FILES", {name: data.sha256(c) for name, c in files.items()})
    values = {name: data.sha256(data.parse_idx(c, name).tobytes()) for name, c in files.items()}
    monkeypatch.setattr(data, "VALUES", values)
    monkeypatch.setattr(data, "MIRRORS", ("http://127.0.0.1:9/",))  # nothing listens there
    return data.cache_folder()


def test_a_download_fills_the_cache_once(files, cache, mirror, monkeypatch, capsys):
    server = mirror(files)
    monkeypatch.setattr(data, "MIRRORS", (server.url,))
    assert len(data.load("fashion_mnist").train.images) == 30
    assert len(data.load("fashion_mnist").train.images) == 30
    assert sorted(server.asked) == sorted(files)
    assert sorted(path.name for path in cache.iterdir()) == sorted(files)
    shown = capsys.readouterr().err
    assert all(f"Downloading {name}: 100%" in shown for name in files)


def test_the_next_mirror_is_used_if_one_lacks_or_garbles_a_file(files, cache, mirror, monkeypatch):
    lacking, whole = mirror({}), mirror(files)
    garbling = mirror({name: b"<html>Log in first</html>" for name in files})
    monkeypatch.setattr(data, "MIRRORS", ("http://127.0.0.1:9/",)
                        + tuple(server.url for server in (lacking, garbling, whole)))  # fmt: skip
    assert len(data.load("fashion_mnist").train.images) == 30
    assert all(server.asked for server in (lacking, garbling, whole))
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == files


def test_a_mirror_that_calls_gzip_an_encoding_is_used(files, cache, mirror, monkeypatch):
    def send_as_encoded(answer, content):
        answer.send_response(200)
        answer.send_header("Content-Encoding", "gzip")
        answer.end_headers()
        answer.wfile.write(content)

    monkeypatch.setattr(data, "MIRRORS", (mirror(files, send_as_encoded).url,))
    assert len(data.load("fashion_mnist").train.images) == 30
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == files


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failing_mirror_leaves_no_file_and_the_next_one_is_used(
    fault, files, cache, mirror, monkeypatch
):
    send, reason = FAULTS[fault]
    failing, whole = mirror(files, send), mirror(files)
    monkeypatch.setattr(data, "MAX_SILENT_SECONDS", SILENT)
    monkeypatch.setattr(data, "MAX_DOWNLOAD_SECONDS", SLOW)
    cache.mkdir(parents=True)
    others = {name: content for name, content in files.items() if name != IMAGES}
    write(cache, others)
    monkeypatch.setattr(data, "MIRRORS", (failing.url,))
    with pytest.raises(
        data.DataError, match=rf"{IMAGES}: .*{failing.address}: ({reason})"
    ) as caught:
        data.load("fashion_mnist")
    # A wrong file never leads to the synthetic set.
    assert isinstance(caught.value, data.Unreachable) == (reason != WRONG_FILE)
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == others
    monkeypatch.setattr(data, "MIRRORS", (failing.url, whole.url))
    assert len(data.load("fashion_mnist").train.images) == 30
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == files
    assert failing.asked == [IMAGES, IMAGES] and whole.asked == [IMAGES]
    assert not failing.client_never_gave_up


def test_the_message_names_every_mirror_and_its_reason(files, cache, mirror, monkeypatch):
    forbidding = mirror(files, lambda answer, _: answer.send_error(403))
    garbling = mirror(dict.fromkeys(files, b"junk"))
    silent = mirror(files, lambda answer, _: linger(answer))
    refusing = "127.0.0.1:9"
    servers = (forbidding, garbling, silent)
    look_up = socket.getaddrinfo

    def know_addresses_only(host, *arguments, **options):
        if host == "nowhere.invalid":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return look_up(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", know_addresses_only)
    mirrors = *(server.url for server in servers), f"http://{refusing}/", "http://nowhere.invalid/"
    monkeypatch.setattr(data, "MIRRORS", mirrors)
    monkeypatch.setattr(data, "MAX_SILENT_SECONDS", 0.5)
    with pytest.raises(data.DataError) as caught:
        data.load("auto")
    assert not isinstance(caught.value, data.Unreachable)
    message = str(caught.value)
    assert message.startswith(f"{cache / IMAGES}: missing, and no mirror could be used (")
    assert f"{forbidding.address}: HTTP 403; {garbling.address}: {WRONG_FILE}; " in message
    assert f"; {silent.address}: " in message
    assert f"; {refusing}: Connection refused; nowhere.invalid: cannot resolve the name" in message
    assert message.endswith(f"). {data.WHAT_TO_DO}") and "\n" not in message


@pytest.mark.parametrize("step", ["getaddrinfo", "connect"])
def test_a_mirror_that_cannot_be_connected_in_time_is_given_up(step, cache, monkeypatch):
    # A firewall drops all packets: the time-out of requests is for each of a name's addresses,
    # and does not include the look-up of the name.
    over, waited_to_the_end = threading.Event(), []
    monkeypatch.setattr(data, "MAX_SILENT_SECONDS", 0.2)

    def hang(*_):
        if not over.wait(60):
            waited_to_the_end.append(True)
        raise OSError

    monkeypatch.setattr(*{
        "getaddrinfo": (socket, "getaddrinfo", hang), "connect": (socket.socket, "connect", hang),
    }[step])  # fmt: skip
    with pytest.raises(data.Unreachable, match="127.0.0.1:9: no answer in 0.2 seconds"):
        data.load("fashion_mnist")
    assert not waited_to_the_end
    over.set()


def start_download(server):
    """Starts a process that loads the set from one mirror and prints the number of images."""
    program = (
        f"import data; data.FILES, data.VALUES = {data.FILES!r}, {data.VALUES!r}\n"
        f"data.MIRRORS = ({server.url!r},)\n"
        "data.MAX_SILENT_SECONDS = 60; print(len(data.load('fashion_mnist').train.images))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_two_processes_may_download_at_once(files, cache, mirror):
    both = threading.Barrier(2)

    def send_to_both(answer, content):
        both.wait(60)
        send_whole(answer, content)

    server = mirror(files, send_to_both)
    processes = [start_download(server) for _ in range(2)]
    for process in processes:
        output, shown = process.communicate(timeout=120)
        assert output == "30\n"
        assert "Downloading" in shown and "http" not in shown  # pooch's log lines name addresses
    assert sorted(server.asked) == sorted([*files] * 2)
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == files


def test_a_killed_download_leaves_no_file_under_the_real_name(files, cache, mirror, monkeypatch):
    half_way = threading.Event()

    def stop_half_way(answer, content):
        send_half(answer, content)
        half_way.set()
        linger(answer)

    monkeypatch.setattr(data, "MIRRORS", (mirror(files).url,))
    process = start_download(mirror(files, stop_half_way))
    assert half_way.wait(60)
    process.kill()
    process.communicate()
    assert not any((cache / name).exists() for name in files)
    assert len(data.load("fashion_mnist").train.images) == 30


def test_a_full_disk_does_not_lead_to_the_synthetic_set(cache, files, mirror, monkeypatch):
    monkeypatch.setattr(data, "MIRRORS", (mirror({n: bytes(100_000) for n in files}).url,))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores SIGXFSZ, so a write beyond the limit fails as it does on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(data.DataError, match="cannot be saved there"):
            data.load("auto")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(cache.iterdir()) == []


def test_garbled_downloads_leave_no_file_and_no_synthetic_set(files, cache, mirror, monkeypatch):
    monkeypatch.setattr(data, "MIRRORS", (mirror(dict.fromkeys(files, b"junk")).url,))
    with pytest.raises(data.DataError, match="not the official file"):
        data.load("auto")
    assert list(cache.iterdir()) == []


def test_without_files_and_network(cache, monkeypatch):
    monkeypatch.setattr(data, "SYNTHETIC_SIZES", (20, 10))
    with pytest.raises(data.DataError, match="missing, and no mirror could be used"):
        data.load("fashion_mnist")
    with pytest.warns(UserWarning, match="NOT FASHION-MNIST.*Connection refused"):
        assert data.load("auto").name == "synthetic"


SET_BY_OTHERS = {  # environment variable, value, part of the real reason
    "a SOCKS proxy where nothing listens": ("ALL_PROXY", "socks5://127.0.0.1:9", "refused|SOCKS"),
    "a SOCKS proxy of no version": ("ALL_PROXY", "socks9://127.0.0.1:9", "SOCKS"),
    "a SOCKS proxy without a host": ("ALL_PROXY", "socks5://", "proxy|SOCKS"),
    "a proxy without a host": ("http_proxy", "http://", "proxy"),
    "a proxy of another scheme": ("https_proxy", "ftp://127.0.0.1:9", "proxy|scheme"),
    "a proxy that is no address": ("HTTPS_PROXY", "http://[::1", "::1"),
    "a proxy with a space": ("HTTPS_PROXY", "http://my proxy:1", "my proxy"),
    "a proxy of a port that cannot be": ("http_proxy", "http://127.0.0.1:99999", "99999|port"),
    "a proxy with an empty label": ("http_proxy", "http://.local:9", "label|resolve"),
    "a proxy in another encoding": ("http_proxy", "http://\udcff:9", "udcff|resolve"),
    "certificates that are not there": ("REQUESTS_CA_BUNDLE", "/nowhere/ca.pem", "/nowhere/ca.pem"),
    "curl's certificates that are not there": ("CURL_CA_BUNDLE", "/nowhere/ca.pem", "ca.pem"),
    "certificates that are none": ("REQUESTS_CA_BUNDLE", "/dev/null", "certificate|X509|PEM"),
    "a key log in no folder": ("SSLKEYLOGFILE", "/nowhere/keys", "No such file"),
    "exceptions in another encoding": ("NO_PROXY", "[::1,127.0.0.1/99,\udcff/9", "surrogates|SSL"),
}


@pytest.fixture
def no_settings(monkeypatch):
    """Removes the environment variables of this machine that concern the network."""
    for name in list(os.environ):
        if name.lower().endswith(("_proxy", "_ca_bundle")) or name in ("SSLKEYLOGFILE", "NO_PROXY"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize("case", SET_BY_OTHERS)
def test_what_another_program_set_is_named_and_auto_falls_back(
    case, cache, mirror, no_settings, monkeypatch
):
    variable, value, reason = SET_BY_OTHERS[case]
    look_up = socket.getaddrinfo
    monkeypatch.setattr(  # the network ends at this machine
        socket, "getaddrinfo", lambda *a, **k: look_up("127.0.0.1", *a[1:], **k)
    )
    monkeypatch.setattr(data, "SYNTHETIC_SIZES", (20, 10))
    monkeypatch.setenv(variable, value)
    address = mirror({}, lambda answer, _: None).address  # it speaks no TLS, and hangs up
    scheme = "http" if variable.lower() in ("http_proxy", "all_proxy") else "https"
    monkeypatch.setattr(data, "MIRRORS", (f"{scheme}://{address}/",))
    with pytest.raises(data.Unreachable, match=f"{address}: .*({reason})") as caught:
        data.load("fashion_mnist")
    message = str(caught.value)
    assert "\n" not in message and WRONG_FILE not in message and "saved" not in message
    assert variable in message or variable == "NO_PROXY"
    with pytest.warns(UserWarning, match="NOT FASHION-MNIST"):
        assert data.load("auto").name == "synthetic"
    assert list(data.cache_folder().iterdir()) == []


def test_the_password_of_a_proxy_is_not_shown(cache, no_settings, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://me:secret@my proxy:99999")
    with pytest.raises(data.Unreachable, match="my proxy") as caught:
        data.load("fashion_mnist")
    assert "secret" not in str(caught.value)


def test_a_mirror_that_announces_no_number_of_bytes_is_used(files, cache, mirror, monkeypatch):
    def send_with_odd_length(answer, content):
        answer.send_response(200)
        answer.send_header("Content-Length", "unknown")
        answer.end_headers()
        answer.wfile.write(content)

    monkeypatch.setattr(data, "MIRRORS", (mirror(files, send_with_odd_length).url,))
    assert len(data.load("fashion_mnist").train.images) == 30


def test_a_mirror_that_redirects_to_nowhere_is_not_a_wrong_file(cache, mirror, monkeypatch):
    def redirect(answer, _):
        answer.send_response(302)
        answer.send_header("Location", "ftp://elsewhere.invalid/")
        answer.end_headers()

    monkeypatch.setattr(data, "MIRRORS", (mirror({}, redirect).url,))
    with pytest.raises(data.Unreachable, match="ftp://elsewhere.invalid"):
        data.load("fashion_mnist")


def test_a_damaged_file_in_the_cache_is_downloaded_again(files, cache, mirror, monkeypatch):
    cache.mkdir(parents=True)
    write(cache, files)
    (cache / IMAGES).write_bytes(files[IMAGES][:-1])
    with pytest.raises(data.DataError, match=f"{IMAGES}: damaged"):  # never the synthetic set
        data.load("auto")
    server = mirror(files)
    monkeypatch.setattr(data, "MIRRORS", (server.url,))
    assert len(data.load("auto").train.images) == 30
    assert server.asked == [IMAGES]


def test_a_cache_that_is_a_file_is_named(cache):
    cache.parent.joinpath("fashion-mnist").write_text("a file where the folder should be")
    with pytest.raises(data.DataError, match="fashion-mnist"):
        data.load("auto")


def test_a_cache_that_cannot_be_searched_is_named(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ("long" * 100)))
    with pytest.raises(data.DataError, match="fashion-mnist: the download cannot be saved there"):
        data.load("auto")


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder closed to root")
def test_a_cache_that_cannot_be_written_is_named_before_a_download(
    files, cache, mirror, monkeypatch
):
    cache.symlink_to("/proc/self")
    server = mirror(files)
    monkeypatch.setattr(data, "MIRRORS", (server.url,))
    with pytest.raises(data.DataError, match="fashion-mnist: the download cannot be saved there"):
        data.load("auto")
    assert server.asked == []


def test_a_cache_without_write_permission_is_named_with_the_reason(cache, monkeypatch):
    def refuse(**_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)  # root may write anywhere
    cache.mkdir(parents=True)
    with pytest.raises(data.DataError, match=r"saved there \(Permission denied\)"):
        data.load("auto")


# --- The synthetic set ---


def test_the_synthetic_set_has_the_shapes_and_labels_of_fashion_mnist():
    dataset = drawn()
    assert dataset.name == "synthetic"
    for split, size in zip((dataset.train, dataset.test), data.SYNTHETIC_SIZES):
        assert split.images.shape == (size, 28, 28)
        assert split.images.dtype == split.articles.dtype == np.uint8
        np.testing.assert_array_equal(np.bincount(split.articles), [size // 10] * 10)


def test_the_synthetic_set_depends_only_on_the_seed(monkeypatch):
    monkeypatch.setattr(data, "SYNTHETIC_SIZES", (600, 100))
    once, again, other = (data.load("synthetic", seed=seed) for seed in (0, 0, 1))
    for one, same in zip((*once.train, *once.test), (*again.train, *again.test)):
        np.testing.assert_array_equal(one, same)
    assert not np.array_equal(once.train.images, other.train.images)


def test_synthetic_images_differ_within_and_between_articles():
    dataset = drawn()
    assert len({image.tobytes() for image in dataset.train.images}) == len(dataset.train.images)
    means = [dataset.train.images[dataset.train.articles == a].mean(axis=0) for a in range(10)]
    nearest = [
        min(range(10), key=lambda a: np.abs(image - means[a]).sum())
        for image in dataset.test.images[:500]
    ]
    share = np.mean(nearest == dataset.test.articles[:500])
    # The nearest mean tells the article sometimes, and by far not always.
    assert 0.2 < share < 0.9
