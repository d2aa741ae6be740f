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


def git(*command):
    """Runs git in this repository. Returns: its output, or None if this is not a clone of it."""
    # Not in a repository that this one only lies in, or that a hook has set.
    environment = {name: value for name, value in os.environ.items() if name[:4] != "GIT_"}
    environment["GIT_CEILING_DIRECTORIES"] = str(ROOT.parent)
    options = ["--no-optional-locks", "-c", f"safe.directory={ROOT}"]  # another user's clone
    try:
        return subprocess.check_output(
            ["git", *options, *command],
            cwd=ROOT, env=environment, stderr=subprocess.DEVNULL, errors="replace",
        ).strip()  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None


# What can change a run's result.
PROGRAM = ("train.py", "model.py", "data.py", "harness")


def commit():
    """The commit of the program, with "-dirty" if its files differ; or "unknown"."""
    head = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--", *PROGRAM)
    return head + ("-dirty" if changed else "") if head else "unknown"
