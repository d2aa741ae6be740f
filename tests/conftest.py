"""What the tests share: the program as a user starts it, the real data, and small files."""

import contextlib
import gzip
import io
import os
import pathlib
import resource
import signal
import struct
import subprocess
import sys

import numpy as np
import pytest
import warm

import data
from harness import download, idx

# In the background of a script, a process ignores Ctrl-C. The runs that tests start must not.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = pathlib.Path(__file__).resolve().parent.parent

SECONDS = 600  # after so many, a process hangs: on a slow machine, some take four minutes

# Nothing listens on port 9 of this host, and no test may leave it.
OFFLINE = "from harness import download; download.MIRRORS = ('http://127.0.0.1:9/',)"
# A synthetic set that is drawn and trained on in no time.
SMALL = "import data; data.SYNTHETIC_SIZES = (1200, 200)"


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


@contextlib.contextmanager
def files_of_at_most(number_of_bytes):
    """Within, this process writes no larger files: as on a full disk, since Python ignores
    SIGXFSZ."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (number_of_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


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


# --- Two short runs ---

GIVEN = ("--max_steps=5", "--eval_every=2", "--batch_norm_decay=0.8")
STEPS = [2, 4, 5]  # of their evaluations
CHANNEL = "synthetic-channel-seed0-batch_norm_decay=0.8-max_steps=5-eval_every=2"
NONE = CHANNEL.replace("channel", "none")


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Two short runs, with units and without. Returns: log folder, name -> process.

    Tests only read them.
    """
    logdir = tmp_path_factory.mktemp("logs")
    given = (f"--logdir={logdir}", "--dataset=synthetic", *GIVEN)
    return logdir, {  # the first as a user starts it, in a process of its own
        True: run_script("train.py", *given, "--cross_stitch=True", prelude=SMALL),
        False: run_train(*given, "--cross_stitch=False", prelude=SMALL),
    }


# --- Data sets ---

IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"


FOLDER = pathlib.Path(os.environ.get(data.FOLDER_VARIABLE) or download.cache_folder())


def has_fashion_mnist():
    """Whether the real data set is in the named folder or the user's cache."""
    return all((FOLDER / name).exists() for name in download.FILES)


@pytest.fixture(scope="session")
def fashion_mnist():
    """The real data set; never downloaded."""
    if not has_fashion_mnist():
        message = f"Fashion-MNIST is not in {FOLDER}: set {data.FOLDER_VARIABLE}"
        # A green CI that never saw the real data would say nothing.
        (pytest.fail if os.environ.get("CI") else pytest.skip)(message)
    return data.load("fashion_mnist", FOLDER)


def make_split(count, seed=0):
    images = np.random.RandomState(seed).randint(0, 256, [count, 28, 28]).astype(np.uint8)
    return data.Split(images, {"article": (np.arange(count) % 10).astype(np.uint8)})


def idx_bytes(array):
    header = struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape)
    return gzip.compress(header + array.tobytes(), 1, mtime=0)


@pytest.fixture
def files():
    """Returns four small files that are not the official ones: name -> content."""
    contents = {}
    for seed, (prefix, count) in enumerate((("train", 30), ("t10k", 20))):
        split = make_split(count, seed)
        contents[f"{prefix}-images-idx3-ubyte.gz"] = idx_bytes(split.images)
        contents[f"{prefix}-labels-idx1-ubyte.gz"] = idx_bytes(split.main_labels())
    return contents


@pytest.fixture
def cache(files, tmp_path, monkeypatch):
    """Makes the cache empty and the small files official. Returns the cache's folder."""
    monkeypatch.delenv(data.FOLDER_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr(download, "FILES", {name: download.sha256(c) for name, c in files.items()})
    parsed = {name: idx.parse(io.BytesIO(content), name) for name, content in files.items()}
    values = {name: (array.size, download.sha256(array)) for name, array in parsed.items()}
    monkeypatch.setattr(download, "VALUES", values)
    monkeypatch.setattr(download, "MIRRORS", ("http://127.0.0.1:9/",))  # nothing listens there
    return download.cache_folder()


def write(folder, contents):
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def small(monkeypatch):
    """Makes the synthetic set small, which is drawn in no time."""
    monkeypatch.setattr(data, "SYNTHETIC_SIZES", (20, 10))
