"""Arrays as numpy saves them: read exactly, or refused in a sentence that says what to do."""

import hashlib
import io
import os
import re
import warnings

import numpy as np
import pytest
from conftest import IMAGES, LABELS, idx_bytes, write

import data
from harness import idx, npy

COUNT = 40
PIXELS = np.random.RandomState(0).randint(0, 256, [COUNT, 8, 8, 3]).astype(np.uint8)
FOUR, TWO = np.arange(COUNT) % 4, np.arange(COUNT) % 2


def saved(folder, **changes):
    """A folder with images and labels of the tasks "label" and "kind", or with others for them.

    None leaves an array out.
    """
    folder.mkdir(exist_ok=True)
    for half in ("train", "test"):
        for name, array in {"images": PIXELS, "label": FOUR, "kind": TWO, **changes}.items():
            if array is not None:
                np.save(folder / f"{half}-{name}.npy", array)
    return folder


def load(folder, *tasks, **options):
    return data.load("auto", folder, tasks=tasks, **options)


# --- What is read ---


def test_arrays_are_read_as_they_were_saved_and_nothing_is_said(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = load(saved(tmp_path / "mine"), "label", "kind")
    assert dataset.name == "mine-custom"
    np.testing.assert_array_equal(dataset.train.images, PIXELS)
    np.testing.assert_array_equal(dataset.test.images, PIXELS)
    images, labels = dataset.train_batch(0, 10, seed=0)
    order = data.epoch_order(COUNT, 0, 0)[:10]
    np.testing.assert_array_equal(images, dataset.standardise(PIXELS[order]))
    np.testing.assert_array_equal(labels["label"], FOUR[order])
    np.testing.assert_array_equal(labels["kind"], TWO[order])
    assert labels["label"].dtype == np.int32


@pytest.mark.filterwarnings("ignore:.*not the official")
def test_the_same_arrays_in_idx_files_are_the_same_data(tmp_path):
    for prefix in ("train", "t10k"):
        write(tmp_path / "idx", {
            f"{prefix}-images-idx4-ubyte.gz": idx_bytes(PIXELS),
            f"{prefix}-labels-idx1-ubyte.gz": idx_bytes(FOUR.astype(np.uint8)),
            f"{prefix}-kind-labels-idx1-ubyte.gz": idx_bytes(TWO.astype(np.uint8)),
        })  # fmt: skip
    of_idx, of_npy = (load(f, "label", "kind") for f in (tmp_path / "idx", saved(tmp_path / "npy")))
    assert of_idx.fingerprint() == of_npy.fingerprint()
    np.testing.assert_array_equal(of_idx.mean, of_npy.mean)
    np.testing.assert_array_equal(of_idx.scale, of_npy.scale)


@pytest.mark.parametrize("kind", ["i1", "u1", "<i2", ">u2", "<i4", ">i4", "<u8", ">i8"])
def test_labels_are_integers_of_any_type_and_byte_order(kind, tmp_path):
    expected = load(saved(tmp_path / "mine")).fingerprint()
    assert load(saved(tmp_path / "mine", label=FOUR.astype(kind))).fingerprint() == expected


def test_a_task_may_have_1000_classes(tmp_path):
    labels = np.arange(2000) % 1000
    images = np.resize(PIXELS, [2000, 4, 4])
    dataset = load(saved(tmp_path / "mine", images=images, label=labels))
    assert dataset.tasks[0].classes == tuple(map(str, range(1000)))
    np.testing.assert_array_equal(dataset.batch(dataset.test, slice(None))[1]["label"], labels)


def test_a_label_255_is_one_like_others(tmp_path):
    labels = np.arange(256, dtype=np.uint8)
    images = np.resize(PIXELS, [256, 4, 4])
    assert len(load(saved(tmp_path / "mine", images=images, label=labels)).tasks[0].classes) == 256


@pytest.mark.parametrize("largest, kind", [(254, "<u1"), (255, "<i4")])
def test_the_fingerprint_digests_labels_up_to_254_as_bytes(largest, kind, tmp_path):
    """As in IDX files, so that a run on the same data resumes."""
    images = np.resize(PIXELS, [largest + 1, 4, 4])
    labels = np.arange(largest + 1)
    dataset = load(saved(tmp_path / "mine", images=images, label=labels))
    classes = "\n".join(["label", *map(str, labels)]).encode()
    half = images.tobytes() + labels.astype(kind).tobytes()
    assert dataset.fingerprint() == hashlib.sha256(2 * half + classes).hexdigest()[:16]


def test_images_with_a_single_channel_are_grey(tmp_path):
    with_channel = load(saved(tmp_path / "mine", images=PIXELS[..., :1]))
    grey = load(saved(tmp_path / "mine", images=PIXELS[..., 0]))
    assert with_channel.image_shape() == (8, 8, 1)
    assert with_channel.fingerprint() == grey.fingerprint()
    assert with_channel.train_batch(0, 10, 0)[0].shape == (10, 8, 8, 1)


def test_a_newer_header_is_read(tmp_path):
    folder = saved(tmp_path / "mine")
    with open(folder / "train-images.npy", "wb") as file:
        np.lib.format.write_array(file, 255 - PIXELS, version=(2, 0))
    np.testing.assert_array_equal(load(folder).train.images, 255 - PIXELS)


def test_without_labels_named_label_another_task_is_trained_and_balances_a_subset(tmp_path):
    kinds = np.arange(COUNT) % 5 // 4  # four times as many of one kind
    folder = saved(tmp_path / "mine", label=None, kind=kinds)
    dataset = load(folder, "kind", train_examples=16)
    assert dataset.images_by_class() == {"kind": {"0": 8, "1": 8}}
    with pytest.raises(data.DataError, match="train-label.npy is missing. There are files of kind"):
        load(folder)


def test_the_first_task_balances_a_subset(tmp_path):
    kinds = np.arange(COUNT) % 5 // 4
    folder = saved(tmp_path / "mine", kind=kinds)
    first = load(folder, "kind", "label", train_examples=16).images_by_class()
    second = load(folder, "label", "kind", train_examples=16).images_by_class()
    assert set(first["kind"].values()) == {8} and set(second["label"].values()) == {4}
    assert set(second["kind"].values()) != {8}


def test_names_of_classes_stand_beside_the_arrays(tmp_path):
    folder = saved(tmp_path / "mine")
    (folder / "kind-classes.txt").write_text("small\nlarge\n")
    assert load(folder, "kind").tasks[0].classes == ("small", "large")


def test_labels_that_numpy_saved_lie_beside_fashion_mnist(files, cache, tmp_path):
    folder = write(tmp_path / "mine", files)
    for half, count in (("train", 30), ("test", 20)):
        np.save(folder / f"{half}-hands.npy", np.arange(count) % 3)
    dataset = data.load("fashion_mnist", folder, tasks=["article", "hands"])
    assert dataset.name == "fashion_mnist"
    np.testing.assert_array_equal(dataset.train.labels["hands"], np.arange(30) % 3)


def test_label_files_that_have_the_name_of_a_task_of_data_py_are_not_ignored_in_silence(
    files, cache, tmp_path
):
    folder = write(tmp_path / "data", files)
    np.save(folder / "train-group.npy", np.zeros(3, int))
    with pytest.warns(UserWarning, match="train-group.npy: not used, because .* rename it"):
        data.load("fashion_mnist", folder)


def test_fashion_mnist_in_arrays_is_a_data_set_of_ones_own(files, cache, tmp_path):
    (tmp_path / "mine").mkdir()
    for name, content in files.items():
        prefix, array = name.split("-")[:2]
        half = {"train": "train", "t10k": "test"}[prefix]
        values = idx.parse(io.BytesIO(content), name)
        np.save(tmp_path / "mine" / f"{half}-{array.replace('labels', 'label')}.npy", values)
    dataset = load(tmp_path / "mine")
    assert dataset.name == "mine-custom" and [task.name for task in dataset.tasks] == ["label"]


def test_an_archive_beside_fashion_mnist_hides_nothing(files, cache, tmp_path):
    folder = write(tmp_path / "mine", files)
    np.savez(folder / "train-images.npz", PIXELS)
    dataset = data.load("fashion_mnist", folder)
    assert [task.name for task in dataset.tasks] == ["article", "group"]


def test_each_array_may_have_its_own_kind_of_file(tmp_path):
    folder = saved(tmp_path / "mine")
    expected = load(folder).fingerprint()
    for name, array in (("images-idx4", PIXELS), ("labels-idx1", FOUR.astype(np.uint8))):
        write(folder, {f"t10k-{name}-ubyte.gz": idx_bytes(array)})
    (folder / "test-images.npy").unlink()
    (folder / "test-label.npy").unlink()
    assert load(folder).fingerprint() == expected


# --- What is refused ---

PICKLED = "which are never loaded, as they can run any program. Save an array of numbers"
BAD = {
    "images of 0 to 1": ({"images": PIXELS / 255}, "train-images.npy: the images are float64, from 0 to 1. Save uint8, 0 to 255: np.save(name, np.rint(x * 255).astype(np.uint8))"),
    "images of -1 to 1": ({"images": np.float32(PIXELS / 127.5 - 1)}, "float32, from -1 to 1. Save uint8, 0 to 255: np.save(name, np.rint((x + 1) * 127.5).astype(np.uint8))"),
    "floats of 0 to 255": ({"images": PIXELS.astype(">f4")}, "from 0 to 255. Save uint8, 0 to 255: np.save(name, np.rint(x).astype(np.uint8))"),
    "integers": ({"images": PIXELS.astype(int)}, "the images are int64, from 0 to 255. Save uint8"),
    "standardised": ({"images": PIXELS / 64 - 2}, "the images are float64, from -2 to 1.98438. Save uint8, 0 to 255: np.save(name, np.rint((x - low) * 255 / (high - low)).astype(np.uint8)), with low and high of all images"),
    "not a number": ({"images": np.where(PIXELS > 3, PIXELS / 255, np.nan)}, "some values are not finite"),
    "complex": ({"images": PIXELS * 1j}, "the images are complex128; they must be uint8, 0 to 255"),
    "truth values": ({"images": PIXELS > 9}, "the images are bool, from 0 to 1. Save uint8, 0 to 255: np.save(name, np.rint(x * 255)"),
    "objects for images": ({"images": PIXELS.astype(object)}, PICKLED),
    "flat images": ({"images": PIXELS.reshape(COUNT, -1)}, "has shape [40, 192]; images have [N, H, W] or [N, H, W, C]. Save x.reshape(-1, height, width)"),
    "channels first": ({"images": PIXELS.transpose(0, 3, 1, 2)}, "channels come first. Save x.transpose(0, 2, 3, 1)"),
    "Fortran's order": ({"images": np.asfortranarray(PIXELS)}, "train-images.npy: holds an array in Fortran's order. Save it with np.save(name, np.ascontiguousarray(x))"),
    "no images": ({"images": PIXELS[:0]}, "train-images.npy: holds an empty array, of shape [0, 8, 8, 3]"),
    "images without height": ({"images": PIXELS[:, :0]}, "holds an empty array"),
    "no labels": ({"label": FOUR[:0]}, "train-label.npy: holds an empty array, of shape [0]"),
    "floats": ({"label": FOUR / 1}, "train-label.npy: the labels are float64; they must be integers: np.save(name, x.astype(int))"),
    "unknown as nan": ({"label": np.where(FOUR > 2, np.nan, FOUR)}, "the labels are float64; they must be integers: np.save(name, np.where(np.isnan(x), -1, x).astype(int))"),
    "objects": ({"label": FOUR.astype(object)}, PICKLED),
    "strings": ({"label": FOUR.astype(str)}, "the labels are strings; they must be integers: np.save(name, np.searchsorted(names, x)), with the names sorted"),
    "a column": ({"label": FOUR[:, None]}, "train-label.npy: has shape [40, 1]; labels have [N]. Save x[:, 0]"),
    "one-hot": ({"label": np.eye(4, dtype=int)[FOUR]}, "has shape [40, 4]; labels have [N]. Save x.argmax(axis=1) if they are one-hot"),
    "one-hot floats": ({"label": np.eye(4)[FOUR]}, "has shape [40, 4]; labels have [N]. Save x.argmax(axis=1) if they are one-hot"),
    "a number": ({"label": np.int64(3)}, "has shape []; labels have [N]"),
    "fewer labels": ({"label": FOUR[1:]}, "train-label.npy: has 39 labels, but there are 40 images"),
    "too large": ({"label": FOUR + 997}, "its largest label is 1,000. A task may have 1,000 classes: 0 to 999"),
    "enormous": ({"label": FOUR.astype(np.uint64) + np.uint64(2**64 - 4)}, "its largest label is 18,446,744,073,709,551,615"),
}  # fmt: skip


@pytest.mark.parametrize("changes, words", BAD.values(), ids=BAD)
def test_arrays_that_cannot_be_used_get_a_sentence_that_says_what_to_do(changes, words, tmp_path):
    with pytest.raises(data.DataError, match=re.escape(words)) as caught:
        load(saved(tmp_path / "mine", **changes))
    assert str(caught.value).startswith(f"{tmp_path}/mine/train-") and "\n" not in str(caught.value)


def test_the_remedies_for_images_give_what_they_say(tmp_path):
    for x in (PIXELS / 255, np.float32(PIXELS / 127.5 - 1), PIXELS.astype(">f4")):
        folder = saved(tmp_path / "mine", images=x)
        with pytest.raises(data.DataError) as caught:
            load(folder)
        (remedy,) = re.findall(r"np\.save\(name, (.*)\)$", str(caught.value))
        np.testing.assert_array_equal(eval(remedy, {"np": np, "x": x}), PIXELS)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_what_is_pickled_is_never_unpickled(tmp_path):
    trap = np.array([Payload(str(tmp_path / "sprung"))] * COUNT, object)
    with pytest.raises(data.DataError, match="pickled"):
        load(saved(tmp_path / "mine", label=trap))
    assert not (tmp_path / "sprung").exists()
    np.load(tmp_path / "mine" / "train-label.npy", allow_pickle=True)
    assert (tmp_path / "sprung").exists()  # the trap works


TORN = {
    "empty": lambda content: b"",
    "cut off in its header": lambda content: content[:50],
    "a page": lambda content: b"<html>404</html>",
    "a header that is no dictionary": lambda content: content.replace(b"'descr'", b"'descr "),
    "a header of another program": lambda content: content.replace(b"(40, ", b"(4.0,"),
    "a version to come": lambda content: content.replace(b"NUMPY\x01", b"NUMPY\x09"),
}  # fmt: skip


@pytest.mark.parametrize("tear", TORN.values(), ids=TORN)
def test_what_np_save_did_not_write_is_named(tear, tmp_path):
    folder = saved(tmp_path / "mine")
    path = folder / "test-images.npy"
    path.write_bytes(tear(path.read_bytes()))
    with pytest.raises(data.DataError, match=f"^{path}: damaged, or not written by np.save$"):
        load(folder)


@pytest.mark.parametrize("array", ["images", "label"])
def test_a_file_that_ends_too_early_or_too_late_is_named(array, tmp_path):
    folder = saved(tmp_path / "mine")
    path = folder / f"train-{array}.npy"
    whole = path.read_bytes()
    for content, words in ((whole[:-1], "ends too early"), (whole + b"\0", "goes on after its")):
        path.write_bytes(content)
        with pytest.raises(data.DataError, match=f"^{path}: {words}.*Copy or save it again"):
            load(folder)


def test_a_header_that_announces_more_than_the_file_holds_costs_no_memory(tmp_path):
    folder = saved(tmp_path / "mine")
    path = folder / "train-images.npy"
    path.write_bytes(path.read_bytes().replace(b"(40, 8, 8, 3), }   ", b"(4000000000, 8, 8, 3)}"))
    with pytest.raises(data.DataError, match="ends too early: .* announces 768,000,000,000 bytes"):
        load(folder)


@pytest.mark.parametrize("array", ["images", "label"])
def test_an_archive_of_arrays_is_refused_whatever_its_name(array, tmp_path):
    folder = saved(tmp_path / "mine", **{array: None})
    words = "is an archive of np.savez. Save each array by itself: np.save(name, x)"
    for name in (f"train-{array}.npz", f"train-{array}.npy"):
        with open(folder / name, "wb") as file:
            np.savez(file, PIXELS)
        with pytest.raises(data.DataError, match=re.escape(f"{folder / name}: {words}")):
            load(folder)


@pytest.mark.parametrize("name, array", [(IMAGES, "images"), (LABELS, "label")])
def test_two_kinds_of_files_for_one_array_are_refused(name, array, files, tmp_path):
    folder = write(saved(tmp_path / "mine"), {name: files[name]})
    words = f"{name} and .*train-{array}.npy: delete one, as they are of the same {array}"
    with pytest.raises(data.DataError, match=words):
        load(folder)


@pytest.mark.parametrize("missing, what", [
    ("train-images", "training images"), ("test-images", "test images"),
    ("train-kind", "labels of the training images"), ("test-kind", "labels of the test images"),
])  # fmt: skip
def test_a_file_that_only_one_half_has_is_named_with_what_belongs_there(missing, what, tmp_path):
    path = saved(tmp_path / "mine") / f"{missing}.npy"
    path.unlink()
    with pytest.raises(data.DataError, match=f"^{path}: is missing. Save the {what} there.$"):
        load(tmp_path / "mine", "label", "kind")


def test_a_folder_without_images_is_named_with_the_names_that_images_have(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"")
    words = f"{tmp_path}: holds no images, neither train-images.npy nor {IMAGES}. Name a folder"
    with pytest.raises(data.DataError, match=f"^{words}"):
        load(tmp_path)


def test_images_is_no_tasks_name(tmp_path):
    with pytest.raises(data.DataError, match="tasks: 'images' is the name of the images' files"):
        load(saved(tmp_path / "mine"), "label", "images")


def test_fashion_mnists_tasks_are_refused_for_arrays_and_so_are_arrays_for_it(tmp_path):
    folder = saved(tmp_path / "mine", article=FOUR)
    with pytest.raises(data.DataError, match="'article' is a label of .* Rename train-article.npy"):
        load(folder, "article")
    with pytest.raises(data.DataError, match="'group' .* Their own labels are the task 'label'"):
        load(folder, "group")
    with pytest.raises(data.DataError, match="leave out --dataset=fashion_mnist"):
        data.load("fashion_mnist", folder)


def test_a_folder_in_place_of_a_file_is_named(tmp_path):
    (tmp_path / "train-images.npy").mkdir()
    with pytest.raises(data.DataError, match="train-images.npy: cannot be read .Is a directory"):
        npy.read(tmp_path / "train-images.npy", "")
