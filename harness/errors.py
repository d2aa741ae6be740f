"""Errors that a program tells its user in one sentence, and the exit codes they end it with.

Other exit codes: 0 for success, and 128 + n after signal n, as shells report it.
"""

import contextlib
import errno
import re


class Failed(Exception):
    """The program cannot go on. The message is one sentence for the user: what to do."""

    exit_code = 1


class DataError(Failed):
    """The data cannot be used. The message names the file, the problem, and what to do."""


class Unreachable(DataError):
    """Fashion-MNIST is not on this machine, and no mirror can be reached or has it."""


# What a file system says of a call that it does not have.
NOT_SUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


@contextlib.contextmanager
def appending(path):
    """Raises Failed, within, if the file system of a run's file cannot add to files."""
    try:
        yield
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
        raise Failed(
            f"{path}: its file system cannot add to files ({error.strerror}), as mounts of object"
            " stores cannot. Choose a --logdir on another one, and copy the run when it ends."
        ) from error


class CannotWrite(Failed):
    """A run's file cannot be written. The run can be resumed from its last checkpoint."""

    @classmethod
    @contextlib.contextmanager
    def instead_of_system_errors(cls, path):
        """Raises it, within, in place of an OSError. Raises and does what `appending` does."""
        try:
            with appending(path):
                yield
        except OSError as error:
            raise cls(f"{path}: cannot be written ({error.strerror or error}).") from error


class NotFinished(Failed):
    """There is no finished run to evaluate. Flags and data are in order."""

    exit_code = 5


class Diverged(Failed):
    """A loss or a weight became NaN or infinite."""

    exit_code = 3


class InUse(Failed):
    """Another process is using the run's folder."""

    exit_code = 4


def brief(error):
    """The cause in an error's message. TensorFlow's begin with where in the graph it was."""
    *_, cause = re.split(r"\nNode: .*\n(?:.*root error.*\n\s*\(0\) \w+: )?", str(error))
    return (cause.splitlines() or [type(error).__name__])[0].rpartition("; ")[2].split(". ")[0]
