"""Writes a trained network as a SavedModel, whole or not at all."""

import contextlib
import errno
import fcntl
import os
import pathlib
import re
import secrets
import shutil

import tensorflow.compat.v1 as tf

from harness import checkpoint_files, checkpoints, folder
from harness.errors import Failed, brief
from harness.files import read_json, write_json
from harness.names import NUMBER

NOT_OF_MEMORY = [
    os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE)
]
EXPORTED = "run.json"  # in an export's folder: of which run it is, and of which step


class Export:
    """The folder of an export.

    Args:
      name: --export_dir.
      settings: what determines the run's result, as settings.json has it.
      defaults: flag -> its default.
      run_dir: the run's folder.
    """

    def __init__(self, name, settings, defaults, run_dir):
        self._name, self._settings, self._defaults = name, settings, defaults
        self._run_dir = run_dir
        self._folder = pathlib.Path(os.path.realpath(folder.expanded(name)))

    def holds(self, step):
        """Whether the folder holds the network of this run at this step."""
        found = read_json(self._folder / EXPORTED)
        try:
            before = folder.completed(found["settings"], self._settings, self._defaults)
            differing = folder.differing(before, self._settings, self._defaults)
            # A run that was started over has another number; older exports have none.
            is_same_run = found.get(NUMBER) in (None, checkpoint_files.number_of(self._run_dir))
            # A network is the same on any device.
            is_same_network = set(differing) <= {"device"} and found["global_step"] == step
            return is_same_run and is_same_network
        except (KeyError, TypeError):  # another program's file
            return False

    def prepare(self):
        """Raises: Failed, the folder holds something or cannot be written."""
        for path in (folder.expanded(self._name), self._folder):
            folder.check_path(path)
        self._check_is_free()
        with self._errors(), self._new_draft():  # now, and not after hours of training
            pass

    def write(self, server, session_config):
        """Writes the newest checkpoint's network.

        Args:
          server: a graph with its tensors `images` and `outputs`, name -> tensor.
          session_config: a `tf.ConfigProto`.

        Raises:
          Failed: there is no checkpoint, or the network cannot be written.
        """
        with checkpoints.restored(server.graph, self._run_dir, session_config) as (session, step):
            images = {"images": server.images}
            signature = tf.saved_model.predict_signature_def(images, server.outputs)
            with self._errors(), self._new_draft() as draft:
                builder = tf.saved_model.Builder(str(draft))
                builder.add_meta_graph_and_variables(
                    session, [tf.saved_model.SERVING], {"serving_default": signature}
                )
                builder.save()
                number = checkpoint_files.number_of(self._run_dir)
                about = {"settings": self._settings, "global_step": step, NUMBER: number}
                write_json(draft / EXPORTED, about)
                self._put_in_place(draft, step)

    def _check_is_free(self):
        """Raises: Failed, the folder holds something, or is a file."""
        is_file = self._folder.exists() and not self._folder.is_dir()
        if is_file or (self._folder.exists() and any(self._folder.iterdir())):
            is_export = isinstance(read_json(self._folder / EXPORTED).get("settings"), dict)
            which = " (an export of another run, or of another step)" if is_export else ""
            raise Failed(
                f"{self._folder}: holds something else{which}. Choose another --export_dir."
            )

    @contextlib.contextmanager
    def _new_draft(self):
        """Yields: a new folder beside the export's, of this process alone, which is deleted at
        the end if it is still there. First deletes what killed exports left."""
        before, after = f".{self._folder.name}.", "unfinished-export"
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        for path in self._folder.parent.iterdir():
            if path.name.startswith(before) and path.name.endswith(after):
                delete_unless_locked(path)
        draft, lock = None, None
        while not draft or not draft.exists():  # another process took it for one that was left
            if lock is not None:
                os.close(lock)
            draft = self._folder.with_name(f"{before}{secrets.token_hex(4)}.{after}")
            draft.mkdir()
            lock = os.open(draft, os.O_RDONLY)
            with contextlib.suppress(OSError):  # a file system without locks: nobody deletes it
                fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield draft
        finally:
            shutil.rmtree(draft, ignore_errors=True)
            os.close(lock)

    def _put_in_place(self, draft, step):
        """Makes a draft the export. Raises: Failed, the folder holds something by now; OSError."""
        try:
            draft.replace(self._folder)
        except OSError:  # or a file system that cannot rename a folder
            if self.holds(step):  # another process has exported the same
                return
            self._check_is_free()
            copy(draft, self._folder)

    @contextlib.contextmanager
    def _errors(self):
        """Raises Failed for any error within. It names the folder that the user knows."""
        try:
            yield
        except (Failed, MemoryError):
            raise
        except Exception as error:  # of the disk or, in TensorFlow, anything
            if is_of_memory(error):
                raise
            reason = getattr(error, "strerror", None) or brief(getattr(error, "message", error))
            reason = re.sub(rf"\.{re.escape(self._folder.name)}\.\w+\.unfinished-export",
                            lambda _: self._folder.name, reason)  # fmt: skip
            raise Failed(
                f"{self._folder}: the network cannot be written there, or its draft in the folder"
                f" above ({reason}). Choose another --export_dir."
            ) from error


def is_of_memory(error):
    """Whether TensorFlow found too little memory. Its error for a full disk is the same."""
    exhausted = isinstance(error, tf.errors.ResourceExhaustedError)
    return exhausted and not any(reason in error.message for reason in NOT_OF_MEMORY)


def delete_unless_locked(draft):
    """Deletes a draft, unless a process that is still there is writing it."""
    try:
        lock = os.open(draft, os.O_RDONLY)
    except OSError:
        return
    with contextlib.suppress(OSError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(draft, ignore_errors=True)
    os.close(lock)


def copy(draft, folder):
    """Copies a draft into an empty or missing folder, all of it or nothing.

    Folders come first, as no second process can make the same ones, and last the file which says
    that the export is whole.
    """
    paths = sorted(draft.rglob("*"), key=lambda path: (path.name == EXPORTED, not path.is_dir()))
    made = []
    try:
        folder.mkdir(exist_ok=True)
        for path in paths:
            there = folder / path.relative_to(draft)
            if path.is_dir():
                there.mkdir()
            made.append(there)
            if not path.is_dir():
                shutil.copyfile(path, there)
    except OSError:
        for path in reversed(made):
            with contextlib.suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink()
        raise
