"""Starts train.py in processes that have TensorFlow already, as importing it takes seconds.

A server that has imported it, and done nothing else, forks for each start. The flags,
the exit code and the signals are the program's own. Not so: what Python and TensorFlow
read when they start, the hash seed, and the end of the interpreter; what depends on
these is tested in processes from nothing (`conftest.run_script`).
"""

import contextlib
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import tempfile

from harness import environment

# As train.py does, before the server imports what they are for.
environment.tensorflow_defaults()
_FORKS = multiprocessing.get_context("forkserver")
# What train.py imports, and for its first picture. One that is not found costs time: train.py
# then imports it itself.
_FORKS.set_forkserver_preload(
    [
        "tensorboard.plugins.hparams.summary_v2",
        "tensorboard.summary.v1",
        "tqdm",
        "harness.process",
        "data",
        "model",
        "matplotlib.backends.backend_agg",
        "matplotlib.figure",
        "matplotlib.style",
    ]
)


def _become(command, environment, outputs):
    """Does in the forked process what a command of `conftest.command_of` does in a new one."""
    for descriptor, path in enumerate(outputs, 1):
        os.dup2(os.open(path, os.O_WRONLY), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    _, _, program, *arguments = command  # python -c program ...
    sys.argv = ["-c", *arguments]
    exec(program, {})


class Process:
    """A started script, with subprocess.Popen's poll, wait, kill and so on.

    Its output goes to files, to which a limit on the size of files applies, too.
    """

    def __init__(self, command, environment):
        self._folder = tempfile.TemporaryDirectory()
        self._outputs = [pathlib.Path(self._folder.name, name) for name in ("stdout", "stderr")]
        for path in self._outputs:
            path.touch()
        given = command, environment, self._outputs
        self._process = _FORKS.Process(target=_become, args=given, daemon=True)
        self._process.start()

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self.returncode

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout)
        return self.returncode

    def send_signal(self, number):
        # The server may have seen its end before this process has.
        with contextlib.suppress(ProcessLookupError):
            if self.poll() is None:
                os.kill(self._process.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def output(self):
        """What it has written to stdout so far."""
        return self._outputs[0].read_text()

    def communicate(self, timeout=600):
        """Waits for its end. Returns: what it wrote to stdout and to stderr."""
        self.wait(timeout)
        return tuple(path.read_text() for path in self._outputs)
