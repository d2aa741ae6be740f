"""A run's checkpoints: where it starts, what it saves, and what a kill or a bad disk left."""

import contextlib
import json
import pathlib
import re
import warnings

import tensorflow.compat.v1 as tf

from harness import files
from harness.errors import CannotWrite, Failed, brief
from harness.names import NUMBER, SETTINGS

UNEVALUATED = "unevaluated"  # beside a checkpoint: the summary of its batch, in hexadecimal digits

# --- Starting ---


def find_start(claim, last_step, every, keep, initializer, tower_variables, init_folder):
    """Deletes checkpoints that are half written, and finds what the run of the default graph
    starts from.

    Args:
      claim: the process's `owner.Claim` to the run's folder.
      last_step: the step that the run is to reach.
      every: steps between evaluations.
      keep: how many checkpoints to keep.
      initializer: operation that gives all variables their start values.
      tower_variables: those that a new run takes from another run, if it starts from one.
      init_folder: None, or a function that returns that run's folder or raises Failed.

    Returns:
      A `Saver` for the run's checkpoints; the step that the run has reached, 0 for a new run;
      the last step of which all is written, -1 for a new run, which has not even the line of
      step 0; the summary of the former step's batch, if a signal stopped its evaluation, or else
      None; and a function of a session that gives all variables their values.

    Raises:
      Failed: the run cannot be resumed, or the other run cannot be used.
    """
    claim.check()
    run_dir = claim.folder
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
        saver = tf.train.Saver(max_to_keep=None)  # `Saver` deletes those of before
        tower_saver = tf.train.Saver(tower_variables) if starts_from_other else None
    # The first are deleted first: the damaged ones, then the oldest.
    first_whole = paths.index(newest) if newest else 0
    in_order = paths[:first_whole] + paths[first_whole:][::-1]
    init_checkpoint = newest_of_other(init_folder(), tower_variables) if starts_from_other else None

    def set_variables(session):
        if newest:
            saver.restore(session, newest)
            return
        session.run(initializer)
        if starts_from_other:
            tower_saver.restore(session, init_checkpoint)

    note = files.read_json(note_of(pathlib.Path(newest))) if newest else {}
    summary = bytes.fromhex(note.get(UNEVALUATED, "")) or None
    # What is written of the step itself goes, too, if a signal stopped its evaluation, or if it
    # was the last step of a shorter run, at which a longer one has no evaluation.
    is_partial = summary or not newest or (step % every and step < last_step)
    done = step - 1 if is_partial else step
    claim.check()  # again: reading takes seconds, and next the run's files are cut back
    return Saver(saver, claim, in_order, keep), step, done, summary, set_variables


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


class Saver:
    """Saves a run's checkpoints, and deletes all but the last of them.

    Args:
      saver: a `tf.train.Saver` that deletes nothing.
      claim: the process's `owner.Claim` to the run's folder.
      paths: of the checkpoints that are there, those to delete first at the front.
      keep: how many to keep.
    """

    def __init__(self, saver, claim, paths, keep):
        self._saver, self._claim, self._paths, self._keep = saver, claim, paths, keep
        self._number = number_of(claim.folder)

    def save(self, session, step, summary=None):
        """Writes a checkpoint.

        Args:
          session, step: whose variables, and the global step.
          summary: of the step's training batch, serialised, if its evaluation is not written yet.

        Raises:
          CannotWrite; Failed, the folder is no longer the run's.
        """
        folder, draft = self._claim.folder, self._claim.draft
        path, made = folder / f"model.ckpt-{step}", draft / f"model.ckpt-{step}"
        self._claim.check()
        try:
            unevaluated = {UNEVALUATED: summary.hex()} if summary else {}
            note_of(made).write_text(json.dumps({NUMBER: self._number, **unevaluated}))
            self._saver.save(
                session, str(draft / "model.ckpt"), step, write_meta_graph=False, write_state=False
            )
            # The index last: with it, the checkpoint is there.
            index = made.with_name(f"{made.name}.index")
            for file in (*draft.glob("*.data-*"), note_of(made), index):
                file.replace(folder / file.name)
            self._paths = [other for other in self._paths if other != str(path)] + [str(path)]
            kept = self._paths[-self._keep :]
            # With relative paths in the file `checkpoint`, a copy of the run names its own files.
            names = [pathlib.Path(name).name for name in kept]
            tf.train.update_checkpoint_state(str(folder.absolute()), path.name, names)
            for old in self._paths[: -self._keep]:
                delete(old)
            self._paths = kept
        except (tf.errors.OpError, OSError, ValueError) as error:  # ValueError: no folder
            self._claim.check()
            raise CannotWrite(
                f"{folder}: the checkpoint cannot be written ({brief(error)})."
            ) from error


def delete(path):
    """Deletes a checkpoint's files, the index last: what a kill leaves is then deleted with the
    next one."""
    path = pathlib.Path(path)
    found = path.parent.glob(f"{path.name}.*")
    for file in sorted(found, key=lambda f: f.suffix == ".index"):
        file.unlink()


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
    others = ", ".join(f"model.ckpt-{step}" for step in sorted(steps_of_others(run_dir)))
    if others and not steps:
        raise Failed(
            f"{run_dir}: its checkpoints ({others}) are those of another run, or lack their .json"
            " files. Copy these, too, choose another --run_name, or start over with --overwrite."
        )
    if others:
        warnings.warn(f"{run_dir}: another run saved {others}, so that is skipped.")
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
    """The path of the file beside a checkpoint that has the number of its run, and what its
    evaluation needs if a signal stopped that."""
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
