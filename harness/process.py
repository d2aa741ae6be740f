"""How a program starts and ends, and what it says when it fails."""

import contextlib
import io
import logging
import os
import pathlib
import re
import subprocess
import sys
import textwrap
import warnings

from absl import app, flags

from harness import environment, host, signals, thread_limit
from harness.errors import Failed

# --- TensorFlow's import ---


@contextlib.contextmanager
def quiet_import(is_program=True):
    """Holds back what TensorFlow's import, within it, writes to stderr whatever the log level. It
    is shown if the import ends the process. Calls `environment.prepare` before.

    Args:
      is_program: whether the program is run. If it is only imported, nothing is changed.
    """
    if not is_program:
        yield
        return
    # With stderr closed (`2>&-`), the next file that is opened would take its number.
    while (null := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(null)
    sys.stderr = sys.stderr or open(2, "w", closefd=False)
    try:
        with signals.interrupts_end_it():
            thread_limit.check(thread_limit.cores())
    except Failed as error:
        end(sys.argv, error)
    if host.is_there():
        host.enter()
    environment.prepare()
    # `tail` holds the text back: it prints it if this process dies, and is killed otherwise.
    terminal, tail = os.dup(2), None
    with contextlib.suppress(OSError):  # such as a container without `tail`
        tail = subprocess.Popen(["tail", "-n", "99"], stdin=subprocess.PIPE, stdout=terminal)
        os.dup2(tail.stdin.fileno(), 2)
    try:
        with signals.interrupts_end_it():
            yield
    except BaseException:
        host.leave()
        raise
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        if tail:
            tail.kill()
            tail.wait()
            tail.stdin.close()


# --- From the command line to the exit code ---


def run(main, check_flags=None, known_only=False):
    """Runs main(argv) as the program. It ends with one sentence if something is wrong.

    Args:
      main: takes the program's name and the arguments that are not flags.
      check_flags: checks of flags what absl does not, and raises Failed.
      known_only: whether main takes flags that this program does not define, too.
    """

    def parse_or_end(argv):
        try:
            return parse(argv, check_flags, known_only)
        except Failed as error:
            end(argv, error)
        except (SystemExit, OSError) as error:  # of --help, in `--help | head -1` without a reader
            try:
                print(end="", flush=True)
            except OSError:
                drop_output()
            sys.exit(getattr(error, "code", 1))

    def main_and_flush(argv):
        try:
            environment.warn_of_ignored()
            main(argv)
            print(end="", flush=True)
        except Failed as error:
            end(argv, error, error.exit_code)
        except OSError as error:
            drop_output()  # what it still holds may be what cannot be written
            place = f"{error.filename}: " if error.filename else ""
            end(argv, f"{place}{error.strerror or error}")

    environment.prepare()  # for the processes that this one starts, too
    format_before, levels = warnings.formatwarning, {}
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not None, and not a notebook's
            stream.reconfigure(errors="replace")  # for terminals without ° and é
    for library in ("tensorflow", "tensorboard", "matplotlib"):
        levels[library] = logging.getLogger(library).level
        logging.getLogger(library).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.formatwarning = format_warning
            warnings.simplefilter("default", UserWarning)  # whatever PYTHONWARNINGS says
            warnings.filterwarnings("ignore", module="tensorflow")  # deprecations in tf-slim
            app.run(main_and_flush, flags_parser=parse_or_end)
    finally:  # a notebook's process goes on
        warnings.formatwarning = format_before
        for library, level in levels.items():
            logging.getLogger(library).setLevel(level)
        host.leave()


def parse(argv, check_flags=None, known_only=False):
    """Parses a command line. Returns: what is no flag. Raises: Failed, a flag is wrong."""
    try:
        others = flags.FLAGS(argv, known_only)
    except flags.Error as error:
        raise Failed(str(error)) from error
    except UnicodeDecodeError as error:
        named = " ".join(word for word in argv if "flagfile" in word)
        raise Failed(
            f"{named}: is not text ({error.reason}). Write one flag on a line, in UTF-8."
        ) from error
    refuse_logging_flags()
    if check_flags:
        check_flags()
    return others


def say(text):
    """Prints a text, if anybody is there to read it."""
    try:
        print(text, flush=True)
    except OSError:  # a closed pipe, or a full disk
        drop_output()


def drop_output():
    """Throws away what is printed from now on, and what is not written yet."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # not a file, or closed
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def forget_flags(module_name):
    """Undoes a module's definitions of flags, so that the same process can load it again."""
    for flag in flags.FLAGS.get_flags_for_module(sys.modules[module_name]):
        delattr(flags.FLAGS, flag.name)


def end(argv, message, exit_code=1):
    """Prints one sentence and ends the program."""
    with contextlib.suppress(OSError):  # whoever read stderr may be gone
        print(f"{pathlib.Path(argv[0]).name}: {message}", file=sys.stderr, flush=True)
    sys.exit(exit_code)


def refuse_logging_flags():
    """Raises: Failed, one of absl's own flags for logging is given: nothing here logs."""
    for flag in flags.FLAGS.get_flags_for_module("absl.logging"):
        if flag.present:
            is_folder = flag.name == "log_dir" and "logdir" in flags.FLAGS
            hint = " The folder for runs is --logdir." if is_folder else ""
            raise Failed(f"--{flag.name}: has no effect in this program. Leave it out.{hint}")


RULE = "*" * 78


def format_warning(message, *_):
    """A box that nobody overlooks, in place of a line of source code."""
    whole = {"break_long_words": False, "break_on_hyphens": False}  # names of files
    return "\n".join(["", RULE, *textwrap.wrap(f"WARNING: {message}", 78, **whole), RULE, "", ""])


def warnings_in(output):
    """The texts of the warnings that a program wrote in such boxes, a list, with single spaces."""
    boxes = re.findall(
        rf"^{re.escape(RULE)}\nWARNING:\s(.*?)\n{re.escape(RULE)}$", output, re.S | re.M
    )
    return [" ".join(text.split()) for text in boxes]
