"""What the scripts of this folder do alike: start and end, write files, refuse flags."""

import contextlib
import io
import json
import os
import pathlib
import subprocess
import sys

from absl import app, flags

ROOT = pathlib.Path(__file__).resolve().parent.parent


class Failed(Exception):
    """The program cannot go on; the message is one sentence for the user."""


def run(main):
    """Runs main(argv) as the program.

    What a terminal cannot show becomes a question mark, and an expected error a sentence.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not None, as without a terminal
            stream.reconfigure(errors="replace")

    def main_and_flush(argv):
        script = pathlib.Path(argv[0]).name
        try:
            refuse_flags_without_effect()
            main(argv)
            print(end="", flush=True)
        except Failed as error:
            sys.exit(f"{script}: {error}")
        except OSError as error:
            if sys.stdout:  # what it still holds may be what cannot be written
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            place = f"{error.filename}: " if error.filename else ""
            sys.exit(f"{script}: {place}{error.strerror or error}")

    app.run(main_and_flush)


def write(path, content):
    """Writes a file as a whole, or leaves the old one.

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
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        error.filename = str(path)
        raise


def write_record(path, record):
    """Writes one line for each entry, so that differences can be read. Raises: OSError."""
    lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in record.items()]
    write(path, "{\n" + ",\n".join(lines) + "\n}\n")


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


def import_tensorflow_quietly():
    """Imports it once, before threads start: it writes to stderr, whatever the log level."""
    terminal, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        import tensorflow  # noqa: F401
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        os.close(nowhere)


def refuse_flags_without_effect():
    """Raises: Failed, one of absl's own flags for logging is given: nothing here logs."""
    for flag in flags.FLAGS.get_flags_for_module("absl.logging"):
        if flag.present:
            raise Failed(f"--{flag.name}: has no effect in this program. Leave it out.")
