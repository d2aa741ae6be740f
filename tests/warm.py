"""Starts train.py in a process that has TensorFlow already, as importing it takes seconds.

A server that has imported it, and done nothing else, forks for each start. What
follows is the program's own: its flags, environment, signals and exit.
"""

import multiprocessing
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import tempfile

_FORKS = multiprocessing.get_context("forkserver")
# What train.py imports. One that fails costs time: train.py then imports it itself.
_FORKS.set_forkserver_preload(
    ["tensorboard.plugins.hparams.summary_v2", "tensorboard.summary.v1", "tqdm", "model"]
)


def _become(script, arguments, prelude, environment, folder):
    """The forked process: is the script, as `conftest.command_of` has it."""
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [os.path.basename(script), *arguments]
    exec(prelude, {})
    runpy.run_path(script, run_name="__main__")


class Process:
    """A started script, used as one of subprocess.Popen with pipes."""

    def __init__(self, script, arguments, prelude, environment):
        self._folder = tempfile.TemporaryDirectory()
        given = str(script), [*map(str, arguments)], prelude, environment, self._folder.name
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
        if self.poll() is None:
            os.kill(self._process.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout=None):
        """Waits for its end. Returns: what it wrote to stdout and to stderr."""
        self.wait(timeout)
        folder = pathlib.Path(self._folder.name)
        return (folder / "stdout").read_text(), (folder / "stderr").read_text()
