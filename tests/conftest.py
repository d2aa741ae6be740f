"""What the tests share: the program as a user starts it, and the real data where it is."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest
import warm

import data

# In the background of a script, a process ignores Ctrl-C. The runs that tests start must not.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = pathlib.Path(__file__).resolve().parent.parent

SECONDS = 600  # after so many, a process hangs: on a slow machine, some take four minutes

# Nothing listens on port 9 of this host, and no test may leave it.
OFFLINE = "import data; data.MIRRORS = ('http://127.0.0.1:9/',)"


def config_of(unit, **options):
    """A `model.Config` with this cross-stitch unit, or without units for None."""
    import model  # takes seconds, which not all tests need

    if unit is None:
        return model.Config(cross_stitch=False, **options)
    return model.Config(cross_stitch_unit=unit, **options)


def command_of(script, *arguments, prelude=""):
    """The command that runs one of the project's programs.

    Args:
      script: path below the project's root, or a module such as study.plot.
      arguments: its command line.
      prelude: Python statements to execute first, in the same process.
    """
    paths = [str((ROOT / script).parent), str(ROOT)] if script.endswith(".py") else [str(ROOT)]
    start = (
        f"sys.argv[0] = {script!r}; runpy.run_path({str(ROOT / script)!r}, run_name='__main__')"
        if script.endswith(".py")
        else f"runpy.run_module({script!r}, run_name='__main__', alter_sys=True)"
    )
    program = f"import runpy, sys; sys.path[:0] = {paths!r}\n{prelude}\n{start}"
    return [sys.executable, "-c", program, *map(str, arguments)]


def with_variables(changes):
    """This process's environment variables with changes; None removes one."""
    variables = {**os.environ, **changes}
    return {name: value for name, value in variables.items() if value is not None}


def run_script(script, *arguments, prelude="", **environment):
    """Runs `command_of` the same arguments, `with_variables`. Returns: the process, with text."""
    command = command_of(script, *arguments, prelude=prelude)
    variables = with_variables(environment)
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=variables)


def start_train(*arguments, prelude="", **environment):
    """Starts train.py as `command_of` would, `with_variables`.

    Returns: the process, a `warm.Process`.
    """
    command = command_of("train.py", *arguments, prelude=prelude)
    return warm.Process(command, with_variables(environment))


def run_train(*arguments, **options):
    """Runs `start_train` to its end. Returns: as run_script does."""
    process = start_train(*arguments, **options)
    try:
        output, errors = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"train.py did not end: {arguments}\n{process.communicate()}")
    return subprocess.CompletedProcess(arguments, process.returncode, output, errors)


@pytest.fixture(scope="session")
def fashion_mnist():
    """The real data set, from the named folder or the user's cache; never downloaded."""
    folder = os.environ.get(data.FOLDER_VARIABLE) or data.cache_folder()
    if not all((pathlib.Path(folder) / name).exists() for name in data.FILES):
        message = f"Fashion-MNIST is not in {folder}: set {data.FOLDER_VARIABLE}"
        # A green CI that never saw the real data would say nothing.
        (pytest.fail if os.environ.get("CI") else pytest.skip)(message)
    return data.load("fashion_mnist", folder)
