"""The data: correct labels, correct order, correct statistics, and never the wrong files."""

import io
import pathlib
import random
import struct
import warnings

import numpy as np
import pytest
from conftest import IMAGES, idx_bytes, make_split, write

import data
from harness import idx

MEMBERS = {"Shoes": {5, 7, 9}, "For Women": {3, 6, 8}, "Other": {0, 1, 2, 4}}  # of the groups


def make_dataset(count, **options):
    split = make_split(count)
    return data.with_statistics("made", split, split, **options)


# --- Labels ---


def test_the_articles_and_groups_are_those_of_the_table():
    article, group = data.TASKS
    assert article.classes == data.ARTICLES and article.from_article == tuple(range(10))
    # As the data set's authors number them.
    assert " ".join(data.ARTICLES) == (
        "T-shirt/top Trouser Pullover Dress Coat Sandal Shirt Sneaker Bag Ankle boot"
    )
    assert group.classes == tuple(MEMBERS)
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
    implied = make_dataset(10)._replace(tasks=(*data.TASKS, sleeves)).implied(np.arange(10))
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


@pytest.mark.parametrize("side, count", [(28, 250), (8, 250), (56, 62), (1000, 1)])
def test_an_evaluation_takes_no_more_pixels_at_a_time_than_of_250_small_images(side, count):
    images = np.zeros([251 if side < 100 else 2, side, side], np.uint8)
    split = make_split(len(images))._replace(images=images)
    dataset = data.with_statistics("made", split, split)
    assert len(next(dataset.test_batches())[0]) == count


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
        subset = data.choose_images(NUMBERED, size, 1, seed)
        assert np.all(np.diff(subset.images) > 0)  # in their original order, none twice
        np.testing.assert_array_equal(subset.main_labels(), NUMBERED.main_labels()[subset.images])
        return set(subset.images), sorted(np.bincount(subset.main_labels()))

    (small, of_small), (large, of_large) = chosen(300, 0), chosen(1003, 0)
    assert of_small == [30] * 10 and of_large == [100] * 7 + [101] * 3
    assert small < large and small == chosen(300, 0)[0]
    assert len(small & chosen(300, 1)[0]) < 50


def starved(ratio, seed):
    """Article -> the numbers, in NUMBERED, of its images that are kept."""
    kept = data.choose_images(NUMBERED, 0, ratio, seed)
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


def permutation(count, *key):
    """A shuffle with the Mersenne Twister: Python's own, whose key has 32 bits in each number."""
    twister = random.Random(sum(number << 32 * place for place, number in enumerate(key)))
    order = list(range(count))
    for last in range(count - 1, 0, -1):
        other = count
        while other > last:  # as many bits as `last` has
            other = twister.getrandbits(32) & (2 ** last.bit_length() - 1)
        order[last], order[other] = order[other], order[last]
    return order


def test_the_order_and_what_is_chosen_are_the_same_on_every_machine():
    """Computed here without numpy, so that no release of numpy can change both sides."""
    assert data.epoch_order(300, 5, 1).tolist() == permutation(300, 5, 1)
    ranks = [7, 2, 9, 4, 0, 6, 3, 8, 5, 1]  # of the articles, with seed 0
    for subset, of_subset, sizes in (
        (data.choose_images(NUMBERED, 300, 1, 0), 2, [30] * 10),
        (data.choose_images(NUMBERED, 0, 100, 0), 3, [round(6000 / 100 ** (r / 9)) for r in ranks]),
    ):
        order = permutation(60000, 0, 0, of_subset)
        kept = [[i for i in order if i % 10 == a][:size] for a, size in enumerate(sizes)]
        assert subset.images.tolist() == sorted(sum(kept, []))


@pytest.fixture
def load_real(fashion_mnist, monkeypatch):
    """`data.load` of Fashion-MNIST with options, without reading the files again."""
    read = "fashion_mnist", None, fashion_mnist.train, fashion_mnist.test
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


# --- Which files ---


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
    np.testing.assert_array_equal(idx_bytes(dataset.train.images), files[IMAGES])
    with pytest.raises(data.DataError, match="leave out --dataset=fashion_mnist"):
        data.load("fashion_mnist", tmp_path)
    with pytest.raises(data.DataError, match="not Fashion-MNIST and show no articles"):
        data.load("auto", tmp_path, starve=2)


@pytest.mark.filterwarnings("ignore:.*not the official")
@pytest.mark.parametrize("half", ["train", "t10k"])
def test_one_half_of_another_data_set_makes_the_set_a_custom_one(half, files, cache, tmp_path):
    folder = write(tmp_path / "my digits", files)
    write(folder, {name: idx_bytes(255 - idx.parse(io.BytesIO(c), name)) for name, c in files.items()
                   if name.startswith(half) and "images" in name})  # fmt: skip
    dataset = data.load("auto", folder)
    (label,) = dataset.tasks
    assert (
        dataset.name == "my_digits-custom"
        and label.name == "label"
        and label.classes == tuple("0123456789")
    )


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


@pytest.mark.filterwarnings("ignore:.*not the official")
def test_a_relative_folder_is_named_with_the_folder_it_was_looked_for_in(
    files, tmp_path, monkeypatch
):
    """As the user moves on, FASHION_MNIST_DIR=fm names another folder."""
    monkeypatch.setenv(data.FOLDER_VARIABLE, "fm")
    monkeypatch.chdir(write(tmp_path / "home", {f"fm/{name}": c for name, c in files.items()}))
    assert len(data.load("auto").train.images) == 30
    with pytest.raises(data.DataError, match=f"{tmp_path}/home/fm/train-kind.npy is missing"):
        data.load("auto", tasks=["label", "kind"])
    (tmp_path / "home" / "fm" / "label-classes.txt").write_text("only one")
    with pytest.raises(data.DataError, match=f"^{tmp_path}/home/fm/label-classes.txt: has 1 names"):
        data.load("auto", tasks=["label"])
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path / "away")
    with pytest.raises(data.DataError, match=f"^{tmp_path}/away/fm: cannot be read"):
        data.load("auto")


def test_a_data_set_in_the_root_folder_has_a_name(files, tmp_path, monkeypatch):
    monkeypatch.setattr(pathlib.Path, "resolve", lambda _: pathlib.Path("/"))
    with pytest.warns(UserWarning, match="not the official"):
        assert data.load("auto", write(tmp_path, files)).name == "root-custom"


# --- Label files ---


def write_labels(folder, name, train, test, classes=None):
    """IDX label files of a task, and the names of the classes."""
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
    (None, None, "train-hands.npy: is missing. Save the labels of the training images there.$"),
    ([0] * 29, None, "has 29 labels, but there are 30 images"),
    ([255] * 29 + [0], None, "mine: every label of task 'hands' is 0. A task needs"),
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
    (("mean", TWO, TEN), "choose another"), (("Total", TWO, TEN), "choose another"),
    (("group", TWO, TEN), "there are two tasks"),
])  # fmt: skip
def test_a_wrong_task_is_named(task, words, small, monkeypatch):
    monkeypatch.setattr(data, "TASKS", (*data.TASKS, data.Task(*task)))
    with pytest.raises(data.DataError, match=words) as caught:
        data.load("synthetic", tasks=["article", task[0]])
    assert f"{task[0]!r} in TASKS of data.py" in str(caught.value)


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
