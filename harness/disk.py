"""Reads arrays from files, whatever the format of their headers. Large ones stay on the disk.

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

IN_MEMORY = 500_000_000  # bytes up to which an array is read whole
CHUNK = 2**20  # bytes to read at a time
PIECE = 2**24  # bytes of an array to look at at a time


class File(typing.NamedTuple):
    """A file whose array was read."""

    path: pathlib.Path
    values: np.ndarray  # or `Rows`; read-only, not empty


@contextlib.contextmanager
def opened(path, what_to_do):
    """Opens a file to read bytes. Raises: DataError, it cannot be read."""
    try:
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). {what_to_do}") from error


def read_file(path, parse, what_to_do):
    """Reads the array of a file. Args: parse, function of the open file and its path.

    Returns: a `File`. Raises: DataError.
    """
    with opened(path, what_to_do) as file:
        return File(path, parse(file, path))


def size_of(path, shape, dtype):
    """Returns the bytes of an array. Raises: DataError, it is empty."""
    size = math.prod(shape) * dtype.itemsize  # of Python's integers, which never overflow
    if size == 0 or min(shape, default=1) <= 0:
        raise DataError(f"{path}: holds an empty array, of shape {list(shape)}")
    return size


def read(file, path, shape, dtype):
    """Reads the array that fills an open file from its position to its end.

    Returns: a read-only array, or `Rows` if it is large. Raises: DataError, the file has another
      size.
    """
    size, start = size_of(path, shape, dtype), file.tell()
    check_size(path, size, file.seek(0, os.SEEK_END) - start)
    file.seek(start)
    if size > IN_MEMORY and len(shape) > 1:
        return Rows(OpenFile(file, path), start, np.arange(shape[0]), tuple(shape[1:]), dtype)
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


# --- Arrays that stay on the disk ---


class OpenFile:
    """A file that is kept open, so that nobody can put another one in its place.

    Args:
      file: the open file, which may be closed afterwards.
      path: names it in messages.
    """

    def __init__(self, file, path):
        self.path = path
        self._descriptor = os.dup(file.fileno())
        self._state = self._state_now()

    def __del__(self):
        os.close(self._descriptor)

    def read(self, start, size):
        """Reads bytes from a place in the file. Raises: DataError, it cannot, or they are gone."""
        parts = []
        while size:
            try:
                parts.append(os.pread(self._descriptor, size, start))
            except OSError as error:
                raise DataError(f"{self.path}: cannot be read ({error.strerror}).") from error
            if not parts[-1]:
                problem = "was cut off after this program had opened it. Restore the file"
                raise DataError(f"{self.path}: {problem}, and run the same command again.")
            start, size = start + len(parts[-1]), size - len(parts[-1])
        return b"".join(parts)

    def has_changed(self):
        """Returns whether its size or time has changed since this was last asked.

        Raises: DataError, the file system cannot tell.
        """
        before, self._state = self._state, self._state_now()
        return before != self._state

    def _state_now(self):
        try:
            status = os.fstat(self._descriptor)
        except OSError as error:  # as on a network disk
            raise DataError(f"{self.path}: cannot be read ({error.strerror}).") from error
        return status.st_size, status.st_mtime_ns


class Rows:
    """An array on the disk. Indexing it chooses rows, without reading them; np.asarray reads them.

    Not mapped to memory: a file that is cut off while it is mapped ends the process.

    Args:
      file: an `OpenFile`.
      start: place of the first value in it.
      rows: numbers of the array's rows that are in this one, [N] int.
      row_shape, dtype: of a row.
    """

    def __init__(self, file, start, rows, row_shape, dtype):
        self.file, self.dtype, self.shape = file, dtype, (len(rows), *row_shape)
        self._start, self._rows = start, rows

    ndim = property(lambda self: len(self.shape))
    size = property(lambda self: math.prod(self.shape))

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, indices):
        return Rows(self.file, self._start, self._rows[indices], self.shape[1:], self.dtype)

    def reshape(self, shape):
        """As numpy's; the number of rows stays."""
        return Rows(self.file, self._start, self._rows, tuple(shape[1:]), self.dtype)

    def __array__(self, dtype=None, copy=None):
        values = np.empty(self.shape, self.dtype)
        size = values[:1].nbytes  # of a row
        order = np.argsort(self._rows, kind="stable")  # a disk is read fastest in its order
        ends = np.flatnonzero(np.diff(self._rows[order]) != 1) + 1
        for run in np.split(order, ends) if len(order) else []:  # rows that follow each other
            content = self.file.read(self._start + int(self._rows[run[0]]) * size, len(run) * size)
            values[run] = np.frombuffer(content, self.dtype).reshape(-1, *self.shape[1:])
        return values if dtype is None else values.astype(dtype, copy=False)


def pieces(array):
    """Yields an array, or `Rows`, in parts of `PIECE` bytes or one row."""
    count = max(1, PIECE // (math.prod(array.shape[1:]) * array.dtype.itemsize))
    for start in range(0, len(array), count):
        yield np.asarray(array[start : start + count])


def changed(arrays):
    """Returns the paths of those files of arrays on the disk that changed since last asked."""
    files = {array.file for array in arrays if isinstance(array, Rows)}
    return [file.path for file in files if file.has_changed()]


def are_equal(one, other):
    """Returns whether two arrays, or `Rows`, hold the same values."""
    return one.shape == other.shape and all(
        np.array_equal(*parts) for parts in zip(pieces(one), pieces(other))
    )
