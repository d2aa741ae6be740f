"""Files of which the old or the new content survives, and the commit of this program."""

import contextlib
import json
import os
import pathlib
import subprocess

from harness.errors import NOT_SUPPORTED

ROOT = pathlib.Path(__file__).resolve().parent.parent


def write(path, content):
    """Replaces a file as a whole. After a power cut or a full disk, it has the old content or
    the new.

    Args:
      path: the file; its folder is made.
      content: bytes, or text, which becomes UTF-8.

    Raises:
      OSError: it cannot. It names the file.
    """
    draft = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as file:
            file.write(content if isinstance(content, bytes) else content.encode())
            file.flush()
            sync(file)
        draft.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        error.filename = str(path)
        raise


def sync(file):
    """Returns when a file's content is on the disk, as far as its file system can tell."""
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise


def write_json(path, content):
    """Replaces a file with this content, as `write` does."""
    write(path, json.dumps(content, indent=2) + "\n")


def read_json(path):
    """Returns a JSON file's dictionary; {} if it is missing, damaged or holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


# --- Git ---


def git(*command, folder=None):
    """Runs git in this repository, or in another folder that is one. Returns: its output, or None
    if it is not a clone."""
    folder = folder or ROOT
    # Not in a repository that this one only lies in, or that a hook has set.
    environment = {name: value for name, value in os.environ.items() if name[:4] != "GIT_"}
    environment["GIT_CEILING_DIRECTORIES"] = str(folder.parent)
    options = ["--no-optional-locks", "-c", f"safe.directory={folder}"]  # another user's clone
    options += ["-c", "core.fileMode=false"]
    try:
        return subprocess.check_output(
            ["git", *options, *command],
            cwd=folder, env=environment, stderr=subprocess.DEVNULL, errors="replace",
        ).strip()  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None


# What can change a run's result.
PROGRAM = ("train.py", "model.py", "data.py", "harness")


def commit(folder=None, program=PROGRAM):
    """The commit of the program, with "-dirty" if its files differ; or "unknown"."""
    head = git("rev-parse", "HEAD", folder=folder)
    return head + ("-dirty" if changed(*program, folder=folder) else "") if head else "unknown"


def changed(*paths, folder=None, counts_new=True):
    """Whether files have other content than in the commit. A checkout may change more: their mode,
    their times, the ends of their lines.

    Args:
      paths: of files or folders, as git takes them.
      folder: as `git` takes it.
      counts_new: whether a file that is not in the commit is a change.
    """
    compare = ("diff", "HEAD", "--no-ext-diff", "--no-textconv", "--ignore-cr-at-eol")
    new = ("ls-files", "--others", "--exclude-standard")
    commands = (compare, new) if counts_new else (compare,)
    return any(git(*command, "--", *paths, folder=folder) for command in commands)
