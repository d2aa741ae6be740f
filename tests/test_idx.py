"""IDX files: damaged, too large, or as other programs leave them."""

import contextlib
import gzip
import io
import pathlib
import re
import shlex
import struct
import tracemalloc

import numpy as np
import pytest
from conftest import IMAGES, LABELS, idx_bytes, write

import data
from harness import idx

# --- Damaged files ---


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
    "wrong dimensions": (IMAGES, lambda content: idx_bytes(np.zeros([30, 32, 32], np.uint8))),
    "fewer labels": (LABELS, lambda content: idx_bytes(np.zeros(29, np.uint8))),
    "more than announced": (LABELS, lambda c: gzip.compress(gzip.decompress(c) + b"\0")),
    "less than announced": (LABELS, lambda c: gzip.compress(gzip.decompress(c)[:-1])),
    "four billion images": (IMAGES, lambda content: packed([0x803, 2**32 - 1, 28, 28])),
    "no images of endless size": (IMAGES, lambda c: packed([0x803, 0, 2**32 - 1, 2**32 - 1])),
    "labels for images": (IMAGES, lambda content: idx_bytes(np.zeros(30, np.uint8))),
    "images for labels": (LABELS, lambda content: idx_bytes(np.zeros([30, 28, 28], np.uint8))),
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


@pytest.mark.parametrize("name", ["taken", "link"])
def test_a_file_that_cannot_be_read_is_named_in_a_sentence(name, files, tmp_path):
    # Not made with chmod, because root can read any file.
    folder = write(tmp_path, {name: c for name, c in files.items() if name != IMAGES})
    path = folder / IMAGES
    if name == "taken":
        path.mkdir()
    else:
        path.symlink_to(IMAGES)
    assert_cannot_be_read(path, folder)


@pytest.mark.parametrize("folder", [
    "file", "loop", "nowhere", "~nobody-of-this-name", " ", "/dev/null", "a" * 300,
])  # fmt: skip
def test_a_folder_that_cannot_be_read_is_named_in_a_sentence(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path)
    assert_cannot_be_read(tmp_path / folder, folder)


def assert_cannot_be_read(path, folder):
    with pytest.raises(data.DataError, match=f"^{path}: cannot be read") as caught:
        data.load("auto", folder)
    assert str(caught.value).endswith(data.WHAT_TO_DO) and "\n" not in str(caught.value)


HELD = {
    "labels in a column": (LABELS, packed([0x802, 30, 1], *[1] * 30), "has shape [30, 1]; labels have [N]. Save x[:, 0]"),
    "labels of four bytes": (LABELS, packed([0xC01, 30], *bytes(120)), "holds int32 values; IDX files must hold bytes. Save the array with np.save, as README shows"),
    "images of floats": (IMAGES, packed([0xD03, 30, 4, 4], *bytes(1920)), "holds float32 values; IDX files must hold bytes"),
    "flat images": (IMAGES, packed([0x802, 30, 784], *bytes(30 * 784)), "has shape [30, 784]; images have [N, H, W] or [N, H, W, C]"),
    "blank images": (IMAGES, packed([0x803, 40_000, 28, 28], *bytes(40_000 * 784)), "times its own size. If that is right, unpack it: gunzip "),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*not the official")
@pytest.mark.parametrize("name, content, words", HELD.values(), ids=HELD)
def test_a_sentence_says_what_a_file_holds_and_what_to_do(name, content, words, files, tmp_path):
    write(tmp_path, {**files, name: content})
    with pytest.raises(data.DataError, match=re.escape(words)) as caught:
        data.load("auto", tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / name}: ")


def test_what_is_unpacked_as_the_sentence_says_is_read():
    blank = gzip.decompress(HELD["blank images"][1])
    assert idx.parse(io.BytesIO(blank), "blank").shape == (40_000, 28, 28)


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
        with pytest.raises(data.DataError, match="bomb.gz: .*its header announces"):
            idx.parse(io.BytesIO(header + content), "bomb.gz")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MANY * 0.9


def test_blank_images_that_compress_well_are_read():
    blank = np.zeros([20_000, 28, 28], np.uint8)
    assert idx.parse(io.BytesIO(idx_bytes(blank)), "blank.gz").shape == blank.shape


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
        np.testing.assert_array_equal(idx_bytes(dataset.train.images), files[IMAGES])


def test_the_command_that_unpacks_a_file_can_be_pasted():
    packed_file = pathlib.Path("/my data/it's.gz")
    with pytest.raises(data.DataError) as refused:
        idx.check_packed(packed_file, 10**12, 100)
    command = str(refused.value).partition("unpack it: ")[2]
    assert shlex.split(command) == ["gunzip", str(packed_file)]


@pytest.mark.parametrize("path", [plain(LABELS), f"{plain(LABELS)}/{plain(LABELS)}"])
def test_a_file_that_is_there_twice_must_agree(path, files, cache, tmp_path):
    content = gzip.decompress(files[LABELS])
    folder = write(tmp_path / "mine", {**files, path: content})
    assert len(data.load("fashion_mnist", folder).train.images) == 30
    write(folder, {path: content[:-1] + b"\0"})
    with pytest.raises(data.DataError, match=f"{folder / path} differ. Delete the wrong one"):
        data.load("fashion_mnist", folder)


@pytest.mark.filterwarnings("ignore:.*not the official")
def test_idx_files_of_colour_images_are_read_packed_or_not(files, tmp_path):
    colour = {}
    for name, content in files.items():
        if "images" in name:
            grey = idx.parse(io.BytesIO(content), name)
            content = idx_bytes(np.stack([grey, 255 - grey, grey // 2], axis=-1))
        colour[name.replace("idx3", "idx4")] = content
    packed = data.load("auto", write(tmp_path / "packed", colour))
    assert packed.image_shape() == (28, 28, 3)
    unpacked = {plain(name): gzip.decompress(content) for name, content in colour.items()}
    assert (
        data.load("auto", write(tmp_path / "plain", unpacked)).fingerprint() == packed.fingerprint()
    )
    with pytest.raises(data.DataError, match=f"{IMAGES} and .*idx4-ubyte.gz: delete one"):
        data.load("auto", write(tmp_path / "packed", {IMAGES: files[IMAGES]}))


@pytest.mark.filterwarnings("ignore:.*not the official")
def test_the_labels_of_other_images_are_the_task_label_with_up_to_255_classes(files, tmp_path):
    for prefix in ("train", "t10k"):
        files[f"{prefix}-images-idx3-ubyte.gz"] = idx_bytes(np.ones([255, 4, 4], np.uint8) * 9)
        files[f"{prefix}-labels-idx1-ubyte.gz"] = idx_bytes(np.arange(255, dtype=np.uint8))
    (label,) = data.load("auto", write(tmp_path, files)).tasks
    assert label.name == "label" and label.classes == tuple(map(str, range(255)))
