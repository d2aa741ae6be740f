"""Finds and reads IDX files of images and labels, the format of MNIST and Fashion-MNIST.

Functions that open a file take `what_to_do`, a sentence for the user. It ends the message if the
file cannot be read.
"""

import gzip
import io
import math
import os
import pathlib
import typing
import warnings
import zlib

import numpy as np

from harness.errors import DataError


class File(typing.NamedTuple):
    """An IDX file that was read."""

    path: pathlib.Path
    values: np.ndarray  # uint8, read-only, of one, three or four dimensions


# --- Finding ---


def paths_in(folder, name):
    """Finds a file in a folder: packed or unpacked, with a dot or a hyphen before "idx".

    torchvision keeps the files in FashionMNIST/raw, of which any part may be named. Kaggle's
    zip file has each file in a folder of the file's name.
    Returns: the paths that exist, or the one where the file is missing.
    """
    hyphens = name, name.removesuffix(".gz")
    names = [*hyphens, *(n.replace("-idx", ".idx") for n in hyphens)]
    for below in (".", "raw", "FashionMNIST/raw"):
        paths = [folder / below / n for n in names]
        paths += [path / n for path in paths for n in names]
        paths = [path for path in paths if os.path.lexists(path) and not os.path.isdir(path)]
        if paths:
            return paths
    return [folder / name]


def read_folder(folder, names, what_to_do):
    """Reads files of a folder that the user named; images may have channels (idx4).

    Returns: name -> `File`. Raises: DataError.
    """
    files = {}
    for name in names:
        kinds = dict.fromkeys((name, name.replace("idx3", "idx4")))
        paths = {kind: paths_in(folder, kind)[0] for kind in kinds}
        found = [kind for kind in kinds if os.path.lexists(paths[kind])]
        if len(found) > 1:
            both = " and ".join(map(str, paths.values()))
            raise DataError(f"{both}: delete one, as they are of the same images")
        files[name] = read_in(folder, (found or [name])[0], what_to_do)
    return files


def read_in(folder, name, what_to_do):
    """Reads one IDX file of a folder. If there are several copies, they must agree.

    Returns: a `File`. Raises: DataError.
    """
    first, *copies = (read(path, what_to_do) for path in paths_in(folder, name))
    for copy in copies:
        if not np.array_equal(first.values, copy.values):
            raise DataError(f"{first.path} and {copy.path} differ. Delete the wrong one.")
    return first


# --- Reading ---


def read(path, what_to_do):
    """Reads the IDX file of this path. Returns: a `File`. Raises: DataError."""
    return File(path, parse(read_bytes(path, what_to_do), path))


def read_bytes(path, what_to_do):
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). {what_to_do}") from error


def parse(content, path):
    """Reads the content of an IDX file, gzipped or not; error messages name its path.

    Returns: a read-only uint8 array of one, three or four dimensions that is not empty.
    Raises: DataError, the file is damaged, empty, not IDX, or a zip bomb.
    """
    stream = io.BytesIO(content)
    if content.startswith(b"\x1f\x8b"):
        stream = gzip.GzipFile(fileobj=stream)
    try:
        with stream:
            dimensions = {b"\0\0\x08" + bytes([n]): n for n in (1, 3, 4)}.get(stream.read(4), 0)
            shape = [int(n) for n in np.frombuffer(stream.read(4 * dimensions), ">u4")]
            if not dimensions or len(shape) != dimensions:
                raise DataError(f"{path}: not an IDX file of images or labels, packed or unpacked")
            size = int(np.prod(shape, dtype=object))
            # Fashion-MNIST is compressed about 2 to 1, a zip bomb 1000 to 1. Size 0 must be
            # refused here: numpy cannot make an array of shape 0 x 2^32 x 2^32.
            if not 0 < size <= max(2**24, 128 * len(content)):
                problem = f"which does not fit a file of {len(content):,} bytes"
                raise DataError(f"{path}: its header announces {size:,} values, {problem}")
            # Ask for one value more: gzip checks its CRC only when it reaches the end.
            values = stream.read(size + 1)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path}: damaged ({error})") from error
    if len(values) != size:
        raise DataError(f"{path}: its header announces {size:,} values, but it holds more or fewer")
    return np.frombuffer(values, np.uint8).reshape(shape)


# --- Images and their labels ---


def images_and_labels(images, labels):
    """Checks that two files hold images and their labels.

    Args: two of `File`.
    Returns: [N, H, W] or [N, H, W, C] uint8 images; [N] uint8 labels. Raises: DataError.
    """
    for file, dimensions in ((images, (3, 4)), (labels, (1,))):
        if file.values.ndim not in dimensions:
            expected = " or ".join(map(str, dimensions))
            raise DataError(f"{file.path}: not an IDX file of bytes with {expected} dimension(s)")
    check_image_shape(images)
    count, labels_count = len(images.values), len(labels.values)
    if labels_count != count:
        problem = f"has {labels_count:,} labels, but {images.path} has {count:,} images"
        raise DataError(f"{labels.path}: {problem}")
    if images.values.max() <= 1:
        warnings.warn(f"{images.path}: no value is above 1. Multiply images of 0 to 1 by 255.")
    check_labels(labels)
    grey = images.values.ndim == 4 and images.values.shape[3] == 1
    return images.values[..., 0] if grey else images.values, labels.values


def check_image_shape(images):
    """Raises: DataError, images of this file's shape cannot be used."""
    path, (height, width, channels) = images.path, (*images.values.shape[1:], 1)[:3]
    if channels > 4 and height <= 4:
        raise DataError(f"{path}: channels come first. Write images.transpose(0, 2, 3, 1) to it.")
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


def check_labels(labels):
    """Raises: DataError, this file has a label above 254."""
    if labels.values.max() == 255:
        problem = "has a label 255. Every image must have a label, at most 254."
        raise DataError(f"{labels.path}: {problem}")
