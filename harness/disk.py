"""Reads arrays from files, whatever the format of their headers.

Functions that open a file take `what_to_do`, a sentence for the user. It ends the message if the
file cannot be read.
"""

import contextlib
import math
import os
import pathlib
import typing

import numpy as np

from harness.errors import DataError

CHUNK = 2**20  # bytes to read at a time


class File(typing.NamedTuple):
    """A file whose array was read."""

    path: pathlib.Path
    values: np.ndarray  # read-only, not empty


@contextlib.contextmanager
def opened(path, what_to_do):
    """Opens a file to read bytes. Raises: DataError, it cannot be read."""
    try:
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). {what_to_do}") from error


def size_of(path, shape, dtype):
    """Returns the bytes of an array. Raises: DataError, it is empty."""
    size = math.prod(shape) * dtype.itemsize  # of Python's integers, which never overflow
    if size == 0 or min(shape, default=1) <= 0:
        raise DataError(f"{path}: holds an empty array, of shape {list(shape)}")
    return size


def read(file, path, shape, dtype):
    """Reads the array that fills an open file from its position to its end.

    Returns: a read-only array. Raises: DataError, the file has another size.
    """
    size, start = size_of(path, shape, dtype), file.tell()
    check_size(path, size, file.seek(0, os.SEEK_END) - start)
    file.seek(start)
    return read_stream(file, path, shape, dtype)


def read_stream(stream, path, shape, dtype):
    """As `read`, from a stream whose size is known only at its end."""
    size, count = size_of(path, shape, dtype), 0
    values = np.empty(size, np.uint8)
    while chunk := stream.read(CHUNK):  # gzip checks its CRC only when it reaches the end
        check_size(path, size, max(size, count + len(chunk)))
        values[count : count + len(chunk)] = np.frombuffer(chunk, np.uint8)
        count += len(chunk)
    check_size(path, size, count)
    values.flags.writeable = False
    return values.view(dtype).reshape(shape)


def check_size(path, expected, found):
    """Raises: DataError, a file holds fewer or more bytes of values than its header announces."""
    if found != expected:
        problem = "ends too early" if found < expected else "goes on after its array"
        advice = f"its header announces {expected:,} bytes of values. Copy or save it again."
        raise DataError(f"{path}: {problem}: {advice}")
