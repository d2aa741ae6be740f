"""Who owns a run's folder: one process at a time, and no longer than the folder is there.

A process that trains locks the file `lock` and writes a random number into it. If somebody
deletes the folder meanwhile, another run may begin in a new one of the same name. The process
that lost its folder must write nothing there. So it compares the number before it writes.

A checkpoint takes so long to write that this is not enough. It is made in `saving-<number>` and
then renamed, which fails in a folder that has no such draft.
"""

import contextlib
import fcntl
import pathlib
import secrets
import shutil
import typing

from harness import files
from harness.errors import CannotWrite, Failed, InUse, appending

LOCK = "lock"
DRAFTS = "saving-" + "[0-9a-f]" * 16


def new_number():
    """A random number that no other process and no other run has: 16 hexadecimal digits."""
    return secrets.token_hex(8)


class Claim(typing.NamedTuple):
    """A process's claim to a run's folder."""

    folder: pathlib.Path
    number: str  # of this process

    @property
    def draft(self):
        """The folder in which checkpoints are made."""
        return self.folder / f"saving-{self.number}"

    def holds(self):
        """Whether the folder is still this process's."""
        try:
            return (self.folder / LOCK).read_text(errors="replace") == self.number
        except (FileNotFoundError, NotADirectoryError):
            return False

    def check(self):
        """Raises: Failed, the folder is no longer this process's. Writing to a deleted file
        raises nothing."""
        if self.holds():
            return
        lost = "the folder was deleted"
        if (self.folder / LOCK).exists():
            lost += ", and another run began there"
        elif self.folder.exists():
            lost = f"its file {LOCK}, which keeps other processes out, was deleted"
        raise Failed(f"{self.folder}: {lost}, so this run ends.")

    def write_json(self, name, content):
        """Replaces a file in the folder, if that is still this process's.

        Raises: as `check`; CannotWrite.
        """
        self.check()
        with CannotWrite.instead_of_system_errors(self.folder / name):
            files.write_json(self.folder / name, content)


@contextlib.contextmanager
def claimed(run_dir):
    """Creates the folder and keeps other processes out of it.

    Yields: a `Claim`. Raises: InUse, another process is there; Failed, the folder cannot be
      locked.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with appending(run_dir / LOCK):
        lock = open(run_dir / LOCK, "ab", buffering=0)
    with lock:
        try:
            # The system releases the lock when the process ends, however it ends.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUse(
                f"{run_dir}: another process is using this run. Wait for it, or choose another"
                " --run_name."
            ) from None
        except PermissionError as error:
            raise Failed(
                f"{run_dir}: cannot be locked ({error.strerror}): another process is using this"
                " run, or its file system allows no locks. Wait for it, or choose a --logdir on"
                " another one."
            ) from error
        except OSError as error:
            raise Failed(
                f"{run_dir}: its file system has no file locks ({error.strerror}), which keep"
                " other processes out of a run. Choose a --logdir on another one."
            ) from error
        claim = Claim(run_dir, new_number())
        with CannotWrite.instead_of_system_errors(run_dir / LOCK):
            lock.truncate(0)
            left = claim.number.encode()
            while left:  # a full disk may take a part of it
                left = left[lock.write(left) :]
        claim.check()
        for killed in run_dir.glob(DRAFTS):
            shutil.rmtree(killed, ignore_errors=True)
        claim.draft.mkdir()
        try:
            yield claim
        finally:
            shutil.rmtree(claim.draft, ignore_errors=True)
