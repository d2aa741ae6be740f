"""Finds the arrays of a folder, images and labels, and checks that they can be used.

Each array is an IDX file or a .npy file. "t10k" and "test" both mean the test images:

    images          train-images-idx3-ubyte.gz, or idx4        train-images.npy
    label           t10k-labels-idx1-ubyte.gz                  test-label.npy
    a task "kind"   t10k-kind-labels-idx1-ubyte.gz             test-kind.npy
"""

import math
import os
import warnings

import numpy as np

from harness import disk, idx, npy
from harness.errors import DataError

MAX_CLASSES = 1000
UNKNOWN_IN_IDX = 255  # a label that is not known; in .npy files, any negative one
HALVES = {"train": "train", "t10k": "test"}  # first word of an IDX file's name -> of a .npy file's
IMAGES_OF = {"train": "training images", "t10k": "test images"}  # in messages

# --- Finding ---


def idx_names(prefix, array):
    """The names that an array's IDX file may have. Args: "train" or "t10k"; "images" or a task."""
    if array == "images":
        return [f"{prefix}-images-idx{dimensions}-ubyte.gz" for dimensions in (3, 4)]
    words = [prefix, "labels"] if array == "label" else [prefix, array, "labels"]
    return ["-".join([*words, "idx1-ubyte.gz"])]


def npy_path(folder, prefix, array):
    return folder / f"{HALVES[prefix]}-{array}.npy"


def paths_of(folder, prefix, array):
    """Finds the file of an array.

    Args:
      folder: path of the folder that the user named.
      prefix: "train" or "t10k".
      array: "images", or the name of a task.

    Returns: its paths, several if there are copies of an IDX file; [] if there is none.
    Raises: DataError, it is there in two kinds of files, or in a .npz file.
    """
    path = npy_path(folder, prefix, array)
    kinds = [*(idx.paths_in(folder, name) for name in idx_names(prefix, array)), [path]]
    found = [paths for paths in kinds if os.path.lexists(paths[0])]
    if len(found) > 1:
        both = " and ".join(str(paths[0]) for paths in found)
        raise DataError(f"{both}: delete one, as they are of the same {array}")
    if not found and os.path.lexists(path.with_suffix(".npz")):
        raise DataError(npy.npz_sentence(path.with_suffix(".npz")))
    return found[0] if found else []


# --- Reading ---


def read_folder(folder, names, what_to_do):
    """Reads the images of a folder that the user named, and the labels that came with IDX images.

    Args:
      folder: its path.
      names: names of the four official files.
      what_to_do: ends the message if a file cannot be read.

    Returns: official name -> `disk.File`; with images in .npy files, without labels.
    Raises: DataError.
    """
    folder = folder.absolute()  # so that messages say where the file was looked for
    images = {prefix: paths_of(folder, prefix, "images") for prefix in HALVES}
    if not any(images.values()):
        raise DataError(f"{problem_without_images(folder, names)}. {what_to_do}")
    is_npy = any(path.suffix == ".npy" for paths in images.values() for path in paths)
    files = {}
    for name in names:
        prefix, array = name.split("-")[:2]
        if array == "images":
            if is_npy and not images[prefix]:
                missing = npy_path(folder, prefix, array)
                raise DataError(f"{missing}: is missing. Save the {IMAGES_OF[prefix]} there.")
            files[name] = read(images[prefix] or [folder / name], what_to_do)
        elif not is_npy:
            files[name] = read(paths_of(folder, prefix, "label") or [folder / name], what_to_do)
    return files


def problem_without_images(folder, names):
    """Says why no images are found in a folder. Args: as `read_folder`."""
    try:
        os.listdir(folder)
    except OSError as error:
        return f"{folder}: cannot be read ({error.strerror})"
    expected = npy_path(folder, "train", "images").name
    return f"{folder}: holds no images, neither {expected} nor {next(iter(names))}"


def read_labels(folder, prefix, task, count, what_to_do):
    """Reads a task's labels of so many images from the file in a folder.

    Returns: as `labels_of`. Raises: DataError.
    """
    if task == "images":
        raise DataError(f"tasks: {task!r} is the name of the images' files: choose another one")
    folder = folder.absolute()
    paths = paths_of(folder, prefix, task)
    if not paths and any(paths_of(folder, half, task) for half in HALVES):
        missing = npy_path(folder, prefix, task)
        raise DataError(f"{missing}: is missing. Save the labels of the {IMAGES_OF[prefix]} there.")
    if not paths:
        names = (path.stem.removeprefix("train-") for path in folder.glob("train-*.npy"))
        others = sorted(name for name in names if name not in ("images", task))
        hint = f". There are files of {', '.join(others)}" if others else ""
        problem = f"and {npy_path(folder, prefix, task)} is missing{hint}"
        raise DataError(f"tasks: {task!r} is not in TASKS of data.py, {problem}")
    return labels_of(read(paths, what_to_do), count)


def read(paths, what_to_do):
    """Reads the array that each of these files holds. Returns: a `disk.File`. Raises: DataError."""
    first, *copies = (
        (npy if path.suffix == ".npy" else idx).read(path, what_to_do) for path in paths
    )
    for copy in copies:
        if not disk.are_equal(first.values, copy.values):
            raise DataError(f"{first.path} and {copy.path} differ. Delete the wrong one.")
    return first


# --- Images ---


def images_of(file):
    """Checks that a file holds images.

    Returns: an array or `disk.Rows`, [N, H, W] uint8, or [N, H, W, C] with C > 1. Raises: DataError.
    """
    path, values = file
    if values.ndim not in (3, 4):
        problem = f"has shape {list(values.shape)}; images have [N, H, W] or [N, H, W, C]"
        raise DataError(f"{path}: {problem}. Save x.reshape(-1, height, width).")
    check_shape(path, *values.shape[1:])
    if values.dtype != np.uint8:
        raise DataError(f"{path}: the images are {values.dtype}{advice_for(values)}")
    if all(piece.max() <= 1 for piece in disk.pieces(values)):  # the first piece tells, as a rule
        warnings.warn(f"{path}: no value is above 1. Multiply images of 0 to 1 by 255.")
    return values.reshape(values.shape[:3]) if values.shape[3:] == (1,) else values


def advice_for(values):
    """The end of a message: why these images are not uint8, and how to convert them."""
    if values.dtype.kind not in "biuf":
        return "; they must be uint8, 0 to 255"
    ends = [(piece.min(), piece.max()) for piece in disk.pieces(values)]
    low, high = float(np.min(ends)), float(np.max(ends))
    if not (np.isfinite(low) and np.isfinite(high)):
        return ", and some values are not finite. Replace these, and save uint8, 0 to 255."
    if 0 <= low and high <= 1:
        scaled = "x * 255"
    elif -1 <= low and high <= 1:
        scaled = "(x + 1) * 127.5"
    elif 0 <= low and high <= 255:
        scaled = "x"
    else:
        scaled = "(x - low) * 255 / (high - low)"
    advice = f"np.save(name, np.rint({scaled}).astype(np.uint8))"
    both = ", with low and high of all images" if "low" in scaled else ""
    return f", from {low:.6g} to {high:.6g}. Save uint8, 0 to 255: {advice}{both}"


def check_shape(path, height, width, channels=1):
    """Raises: DataError, images of this shape cannot be used."""
    if channels > 4 and height <= 4:
        raise DataError(f"{path}: channels come first. Save x.transpose(0, 2, 3, 1).")
    if channels > 4:
        raise DataError(f"{path}: the images have {channels} channels; they may have 1 to 4")
    if height % 4 or width % 4:
        smaller, larger = (
            f"{step(height / 4) * 4}x{step(width / 4) * 4}" for step in (math.floor, math.ceil)
        )
        fitting = f"pad them to {larger}"
        if min(height, width) >= 4:
            fitting = f"crop them to {smaller}, or {fitting}"
        problem = f"the images are {height}x{width} pixels, not multiples of 4"
        raise DataError(f"{path}: {problem}: {fitting}")


# --- Labels ---


def labels_of(file, count):
    """Checks that a file holds the labels of so many images.

    Returns: [N] uint8; int32 if one is above 254, or unknown, which is -1. Raises: DataError.
    """
    path, values = file
    if values.ndim != 1:
        advice = "x[:, 0]" if values.shape[1:] == (1,) else "x.argmax(axis=1) if they are one-hot"
        problem = f"has shape {list(values.shape)}; labels have [N]"
        raise DataError(f"{path}: {problem}. Save {advice}.")
    if values.dtype.kind not in "iu":
        is_text = values.dtype.kind in "SU"
        found, advice = (
            ("strings", "np.searchsorted(names, x)") if is_text else (values.dtype, "x.astype(int)")
        )
        if values.dtype.kind == "f" and np.isnan(values).any():  # as an integer, anything
            advice = "np.where(np.isnan(x), -1, x).astype(int)"
        advice = f"np.save(name, {advice})" + (", with the names sorted" if is_text else "")
        raise DataError(f"{path}: the labels are {found}; they must be integers: {advice}")
    if len(values) != count:
        raise DataError(f"{path}: has {len(values):,} labels, but there are {count:,} images")
    largest = int(values.max())
    if largest >= MAX_CLASSES:
        advice = f"A task may have {MAX_CLASSES:,} classes: 0 to {MAX_CLASSES - 1}."
        raise DataError(f"{path}: its largest label is {largest:,}. {advice}")
    is_unknown = values < 0 if path.suffix == ".npy" else values == UNKNOWN_IN_IDX
    if is_unknown.any():
        return np.where(is_unknown, np.int32(-1), values.astype(np.int32))
    return values.astype(np.uint8 if largest <= 254 else np.int32, copy=False)
