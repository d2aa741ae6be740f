"""Reads .npy files, in which numpy saves an array: np.save("train-images.npy", images)."""

from numpy.lib import format as npy_format

from harness import disk
from harness.errors import DataError

READERS = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}


def read(path, what_to_do):
    """Reads the .npy file of this path. Returns: a `disk.File`. Raises: DataError."""
    return disk.read_file(path, parse, what_to_do)


def parse(file, path):
    """Reads a .npy file; error messages name its path.

    Args:
      file: the binary file, at its start.

    Returns: a read-only array of any type but Python objects, which are never unpickled.
    Raises: DataError, the file is damaged, empty, not .npy, or in Fortran's order.
    """
    if file.read(4) == b"PK\3\4":
        raise DataError(npz_sentence(path))
    file.seek(0)
    try:
        shape, is_fortran, dtype = READERS[npy_format.read_magic(file)](file)
    except OSError:
        raise
    except Exception as error:  # of the parser of Python's literals, which numpy uses
        raise DataError(f"{path}: damaged, or not written by np.save") from error
    if dtype.hasobject:
        raise DataError(
            f"{path}: holds pickled Python objects, which are never loaded, as they can run any"
            " program. Save an array of numbers."
        )
    if is_fortran and len(shape) > 1:
        advice = "np.save(name, np.ascontiguousarray(x))"
        raise DataError(f"{path}: holds an array in Fortran's order. Save it with {advice}.")
    return disk.read(file, path, shape, dtype)


def npz_sentence(path):
    """What to do with an archive of arrays."""
    return f"{path}: is an archive of np.savez. Save each array by itself: np.save(name, x)"
