"""Finds and reads IDX files of images and labels, the format of MNIST and Fashion-MNIST."""

import gzip
import os
import shlex
import zlib

import numpy as np

from harness import disk, memory
from harness.errors import DataError

# The third byte of a file: the type of its values. Only bytes are read.
TYPES = {
    b"\x08": "uint8", b"\x09": "int8", b"\x0b": "int16",
    b"\x0c": "int32", b"\x0d": "float32", b"\x0e": "float64",
}  # fmt: skip


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


def read(path, what_to_do):
    """Reads the IDX file of this path. Returns: a `disk.File`. Raises: DataError."""
    return disk.read_file(path, parse, what_to_do)


def parse(file, path):
    """Reads an IDX file, gzipped or not; error messages name its path.

    Args:
      file: the binary file, at its start.

    Returns: a read-only uint8 array of one to four dimensions that is not empty, or `disk.Rows`.
    Raises: DataError, the file is damaged, empty, not IDX, a zip bomb, or unpacked too large.
    """
    is_packed = file.read(2) == b"\x1f\x8b"
    size_of_file = file.seek(0, os.SEEK_END)
    file.seek(0)
    stream = gzip.GzipFile(fileobj=file) if is_packed else file
    try:
        shape = read_header(stream, path)
        if not is_packed:
            return disk.read(file, path, shape, np.dtype(np.uint8))
        check_packed(path, disk.size_of(path, shape, np.dtype(np.uint8)), size_of_file)
        return disk.read_stream(stream, path, shape, np.dtype(np.uint8))
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path}: damaged ({error})") from error


def read_header(stream, path):
    """Returns: the array's shape. Raises: DataError, the file is not IDX or holds no bytes."""
    magic = stream.read(4)
    kind, dimensions = magic[2:3], int.from_bytes(magic[3:], "big")
    shape = [int(n) for n in np.frombuffer(stream.read(4 * dimensions), ">u4")]
    name = TYPES.get(kind)
    if magic[:2] != b"\0\0" or not name or len(shape) != dimensions or not 1 <= dimensions <= 4:
        raise DataError(f"{path}: not an IDX file of images or labels, packed or unpacked")
    if name != "uint8":
        advice = "Save the array with np.save, as README shows"
        raise DataError(f"{path}: holds {name} values; IDX files must hold bytes. {advice}.")
    return shape


def check_packed(path, size, size_of_file):
    """Raises: DataError, a packed file announces too many bytes, as a zip bomb does."""
    # Fashion-MNIST is compressed about 2 to 1, a zip bomb 1000 to 1.
    if size > max(2**24, 128 * size_of_file):
        problem = f"its header announces {size:,} values, {size // size_of_file} times its own size"
        raise DataError(f"{path}: {problem}. If that is right, unpack it: {unpack(path)}")
    # Small files are read whatever the system says of its memory.
    if size > max(disk.IN_MEMORY, memory.free()):
        problem = f"its {size / 1e9:.1f} GB of values do not fit into memory"
        advice = f"Unpack it, as they can stay on the disk: {unpack(path)}"
        raise DataError(f"{path}: {problem}. {advice}")


def unpack(path):
    """The command that unpacks a file."""
    return shlex.join(["gunzip", str(path)])
