"""A run's checkpoints: where it starts, what it saves, and what a kill or a bad disk left."""

import contextlib
import re
import warnings

import tensorflow.compat.v1 as tf

from harness.errors import CannotWrite, Failed, brief

# --- Starting ---


def find_start(run_dir, last_step, keep, initializer, tower_variables, init_folder):
    """Deletes checkpoints that are half written, and finds what the run of the default graph
    starts from.

    Args:
      run_dir: the run's folder.
      last_step: the step that the run is to reach.
      keep: how many checkpoints to keep.
      initializer: operation that gives all variables their start values.
      tower_variables: those that a new run takes from another run, if it starts from one.
      init_folder: None, or a function that returns that run's folder or raises Failed.

    Returns:
      A `tf.train.Saver` for the run's checkpoints; the step that the run has reached, 0
      for a new run; and a function of a session that gives all variables their values.

    Raises:
      Failed: the run cannot be resumed, or the other run cannot be used.
    """
    delete_incomplete(run_dir)
    newest, paths = newest_whole(run_dir)
    step = step_of(newest) if newest else 0
    if step > last_step:
        raise Failed(
            f"{run_dir}: has {step:,} steps, more than the {last_step:,} of this command. Choose"
            " another --run_name, or start over with --overwrite."
        )
    starts_from_other = init_folder is not None and not newest
    with tf.name_scope("train/"):  # keeps the graph page tidy
        # With relative paths in the file `checkpoint`, a copy of the run names its own files.
        saver = tf.train.Saver(max_to_keep=keep, save_relative_paths=True)
        tower_saver = tf.train.Saver(tower_variables) if starts_from_other else None
    # The saver deletes from the front of its list: the damaged ones, then the oldest.
    first_whole = paths.index(newest) if newest else 0
    saver.recover_last_checkpoints(paths[:first_whole] + paths[first_whole:][::-1])
    init_checkpoint = newest_of_other(init_folder(), tower_variables) if starts_from_other else None

    def set_variables(session):
        if newest:
            saver.restore(session, newest)
            return
        session.run(initializer)
        if starts_from_other:
            tower_saver.restore(session, init_checkpoint)

    return saver, step, set_variables


def newest_of_other(folder, tower_variables):
    """The newest whole checkpoint of the run --init_from. Raises: Failed, none fits."""
    try:
        checkpoint, _ = newest_whole(folder, tower_variables)
    except Failed:  # its advice is for a run's own folder
        checkpoint = None
    if checkpoint is None:
        raise Failed(f"--init_from={folder}: none of its checkpoints can be used. Train it again.")
    return checkpoint


@contextlib.contextmanager
def restored(graph, run_dir, session_config):
    """Yields: a session with the newest checkpoint's values, and its step.

    Raises: Failed, there is none.
    """
    with graph.as_default(), tf.Session(graph=graph, config=session_config) as session:
        checkpoint, _ = newest_whole(run_dir)
        if checkpoint is None:
            raise Failed(f"{run_dir}: its checkpoints are gone. Train again with --overwrite.")
        tf.train.Saver().restore(session, checkpoint)
        yield session, step_of(checkpoint)


# --- Saving ---


def save(session, saver, run_dir, step):
    """Writes a checkpoint. Raises: CannotWrite."""
    try:
        saver.save(session, str(run_dir / "model.ckpt"), step, write_meta_graph=False)
    except (tf.errors.OpError, ValueError) as error:  # ValueError: the folder is gone
        raise CannotWrite(
            f"{run_dir}: the checkpoint cannot be written ({brief(error)})."
        ) from error


# --- What is in a folder ---


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
    if steps and not any(run_dir.glob("model.ckpt-*")):
        raise Failed(f"{run_dir}: its checkpoints are gone. Train again with --overwrite.")
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
            f"{run_dir}: no checkpoint of this run can be read. Start over with --overwrite."
        )
    return None, paths


def steps_saved(run_dir):
    """The steps of a folder's checkpoints, whole or not."""
    return {step_of(path) for path in run_dir.glob("model.ckpt-*")} - {None} | steps_listed(run_dir)


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
