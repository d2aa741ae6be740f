"""Writes a trained network as a SavedModel, whole or not at all."""

import os
import pathlib
import shutil

import tensorflow.compat.v1 as tf

from harness import checkpoints, folder
from harness.errors import Failed, brief
from harness.files import read_json, write_json

EXPORTED = "run.json"  # in an export's folder: of which run it is, and of which step


class Export:
    """The folder of an export.

    Args:
      name: --export_dir.
      settings: what determines the run's result, as settings.json has it.
      defaults: flag -> its default.
    """

    def __init__(self, name, settings, defaults):
        self._name, self._settings, self._defaults = name, settings, defaults
        self._folder = pathlib.Path(os.path.realpath(folder.expanded(name)))
        # Renamed to the folder when the export is whole.
        self._draft = self._folder.with_name(f".{self._folder.name}.unfinished-export")

    def holds(self, step):
        """Whether the folder holds the network of this run at this step."""
        found = read_json(self._folder / EXPORTED)
        try:
            before = folder.completed(found["settings"], self._settings, self._defaults)
            differing = folder.differing(before, self._settings, self._defaults)
            # A network is the same on any device.
            return set(differing) <= {"device"} and found["global_step"] == step
        except (KeyError, TypeError):  # another program's file
            return False

    def prepare(self):
        """Raises: Failed, the folder holds something; OSError, it cannot be written."""
        for path in (folder.expanded(self._name), self._folder):
            folder.check_path(path)
        is_used = self._folder.exists() and not self._folder.is_dir()
        if is_used or (self._folder.exists() and any(self._folder.iterdir())):
            raise Failed(f"{self._folder}: holds something else. Choose another --export_dir.")
        shutil.rmtree(self._draft, ignore_errors=True)  # what a killed export left
        self._draft.mkdir(parents=True)
        existed = self._folder.exists()
        try:  # now, and not after hours of training
            self._draft.replace(self._folder)
        except OSError as error:
            self._draft.rmdir()
            raise Failed(
                f"{self._folder}: cannot be replaced ({error.strerror}). Choose a new --export_dir."
            ) from error
        if not existed:
            self._folder.rmdir()

    def write(self, server, run_dir, session_config):
        """Writes the newest checkpoint's network.

        Args:
          server: a graph with its tensors `images` and `outputs`, name -> tensor.
          run_dir: the run's folder.
          session_config: a `tf.ConfigProto`.

        Raises:
          Failed: there is no checkpoint, or the network cannot be written.
          OSError: another file cannot be written.
        """
        with checkpoints.restored(server.graph, run_dir, session_config) as (session, step):
            images = {"images": server.images}
            signature = tf.saved_model.predict_signature_def(images, server.outputs)
            try:
                builder = tf.saved_model.Builder(str(self._draft))
                builder.add_meta_graph_and_variables(
                    session, [tf.saved_model.SERVING], {"serving_default": signature}
                )
                builder.save()
            except tf.errors.OpError as error:
                problem = f"cannot be written ({brief(error.message)})"
                raise Failed(f"{self._folder}: {problem}.") from error
        write_json(self._draft / EXPORTED, {"settings": self._settings, "global_step": step})
        self._draft.replace(self._folder)
