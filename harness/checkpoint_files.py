"""The checkpoints in a run's folder: which of them are the run's own, and which are whole."""

import contextlib
import pathlib
import re
import warnings

import tensorflow.compat.v1 as tf

from harness import files
from harness.errors import Failed, brief
from harness.names import NUMBER, SETTINGS


def newest_whole(run_dir, variables=None):
    """The newest checkpoint of a folder that is whole.

    Reading every value tests its checksum. A damaged checkpoint is skipped with a warning.

    Args:
      run_dir: the folder.
      variables: what the checkpoint must hold; by default the default graph's network.

    Returns:
      Its path or None, and the paths of all checkpoints, newest first.

    Raises:
      Failed: a checkpoint is of another network, or all are damaged.
    """
    steps = sorted(steps_saved(run_dir), reverse=True)
    others = ", ".join(f"model.ckpt-{step}" for step in sorted(steps_of_others(run_dir)))
    if others and not steps:
        raise Failed(
            f"{run_dir}: its checkpoints ({others}) are those of another run, or lack their .json"
            " files. Copy these, too, choose another --run_name, or start over with --overwrite."
        )
    if others:
        warnings.warn(f"{run_dir}: another run saved {others}, so that is skipped.")
    if steps and not any(run_dir.glob("model.ckpt-*")):
        raise gone(run_dir)
    paths = [str(run_dir / f"model.ckpt-{step}") for step in steps]
    # Of the network alone: a graph for serving has none of Adam's moments.
    variables = variables or tf.global_variables("network/")
    shapes = {v.op.name: v.shape.as_list() for v in variables}
    for path in paths:
        try:
            reader = tf.train.load_checkpoint(path)
            found = reader.get_variable_to_shape_map()
            for name in found:
                reader.get_tensor(name)
        except (MemoryError, tf.errors.ResourceExhaustedError):
            raise
        except Exception as error:  # its class depends on what is damaged
            warnings.warn(f"{path}: damaged, so it is skipped. ({brief(error)})")
            continue
        if {name: shape for name, shape in found.items() if name.startswith("network/")} != shapes:
            raise Failed(
                f"{path}: not a checkpoint of this network. Choose another --run_name, or start"
                " over with --overwrite."
            )
        return path, paths
    if paths:
        raise Failed(
            f"{run_dir}: no checkpoint of this run can be read. If its disk is in order, start over"
            " with --overwrite."
        )
    return None, paths


def gone(run_dir):
    """The error of a run that was finished and has no checkpoints any more."""
    return Failed(f"{run_dir}: its checkpoints are gone. Train again with --overwrite.")


def steps_saved(run_dir):
    """The steps of a run's own checkpoints, whole or not."""
    found = {step_of(path) for path in run_dir.glob("model.ckpt-*")} - {None}
    return (found | steps_listed(run_dir)) - steps_of_others(run_dir)


def steps_of_others(run_dir):
    """The steps of checkpoints in a run's folder that another run saved there.

    A run that an earlier version began has no number, and all are its own.
    """
    number, found = number_of(run_dir), run_dir.glob("model.ckpt-*.index")
    return {
        step_of(path)
        for path in found
        if number and files.read_json(note_of(path.with_suffix(""))).get(NUMBER) != number
    } - {None}


def number_of(run_dir):
    """The number of a folder's run, or None."""
    return files.read_json(run_dir / SETTINGS).get(NUMBER)


def note_of(checkpoint):
    """The path of the .json file beside a checkpoint. The file holds the number of the run; if a
    signal stopped the evaluation of that step, also the summary of its batch."""
    return checkpoint.with_name(f"{checkpoint.name}.json")


def adopt(run_dir, number):
    """Gives all checkpoints of a folder the number of its run."""
    for path in run_dir.glob("model.ckpt-*.index"):
        note = note_of(path.with_suffix(""))
        files.write_json(note, {**files.read_json(note), NUMBER: number})


def steps_listed(run_dir):
    """The steps in the file `checkpoint`, which lists those that were saved completely."""
    try:
        state = tf.train.get_checkpoint_state(str(run_dir))
    except ValueError:  # empty, as a power cut may leave it
        state = None
    return {step_of(path) for path in state.all_model_checkpoint_paths} - {None} if state else set()


def step_of(checkpoint):
    """The global step in the name of a checkpoint, such as model.ckpt-469, or of its files."""
    found = re.search(r"model\.ckpt-(\d+)(\.index|\.data-[\d-]+of-\d+)?$", str(checkpoint))
    return found and int(found[1])


def holds_network(run_dir):
    """Whether a checkpoint that can be read is one of this program's."""
    for index in run_dir.glob("model.ckpt-*.index"):
        with contextlib.suppress(Exception):  # its class depends on what is damaged
            names = tf.train.load_checkpoint(str(index.with_suffix("")))
            if any(name.startswith("network/") for name in names.get_variable_to_shape_map()):
                return True
    return False


def delete_incomplete(run_dir):
    """Deletes what a run that was killed while saving left: data without an index.

    Older data is kept: a copy of the run may merely lack its index.
    """
    newest = max(steps_listed(run_dir), default=-1)
    for path in run_dir.glob("model.ckpt-*.data-*"):
        index = path.with_name(path.name.partition(".data-")[0] + ".index")
        if ".tempstate" in path.name or ((step_of(path) or -1) > newest and not index.exists()):
            path.unlink()


def delete(path):
    """Deletes a checkpoint's files, the index and its note last: what a kill leaves is then
    deleted with the next one."""
    path = pathlib.Path(path)
    found = path.parent.glob(f"{path.name}.*")
    # The index without its note would be another run's checkpoint.
    for file in sorted(found, key=lambda f: (f.suffix == ".json", f.suffix == ".index")):
        file.unlink()
