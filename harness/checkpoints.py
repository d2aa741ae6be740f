"""A run's checkpoints: where it starts, and what it saves."""

import contextlib
import json
import pathlib
import typing
import warnings

import tensorflow.compat.v1 as tf

from harness import evaluation_log, files
from harness.checkpoint_files import (
    delete,
    delete_incomplete,
    gone,
    newest_whole,
    note_of,
    number_of,
    step_of,
)
from harness.errors import CannotWrite, Failed, brief
from harness.names import NUMBER, RESULTS

UNEVALUATED = "unevaluated"  # beside a checkpoint: the summary of its batch, in hexadecimal digits

# --- Starting ---


class Start(typing.NamedTuple):
    """What a run starts from."""

    saver: "Saver"  # of the run's checkpoints
    step: int  # that the run has reached, 0 for a new run
    done: int  # the last step of which all is written; -1 for a new run, without the line of step 0
    summary: bytes | None  # of the step's batch, if a signal stopped its evaluation
    set_variables: typing.Callable  # gives all variables of a session their values


def find_start(claim, *, last_step, every, keep, initializer, tower_variables, init_folder):
    """Deletes checkpoints that are half written, and results of evaluations that are made again;
    finds what the run of the default graph starts from.

    Args:
      claim: the process's `owner.Claim` to the run's folder.
      last_step: the step that the run is to reach.
      every: steps between evaluations.
      keep: how many checkpoints to keep.
      initializer: operation that gives all variables their start values.
      tower_variables: those that a new run takes from another run, if it starts from one.
      init_folder: None, or a function that returns that run's folder or raises Failed.

    Returns:
      A `Start`.

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
    # What is written of the step itself goes, too, if a signal stopped its evaluation. A run's last
    # step is evaluated even off the schedule: a run that goes on from there drops that evaluation,
    # and one that ends there makes it, if the run was stopped there on the way to a later step.
    is_partial = summary or (
        step % every and (step < last_step or evaluation_log.last_steps(run_dir)[-1:] != [step])
    )
    done = step - 1 if is_partial or not newest else step
    claim.check()  # again: reading takes seconds, and next the run's files are cut back
    if files.read_json(run_dir / RESULTS).get("global_step", -1) > done:
        (run_dir / RESULTS).unlink()  # its last evaluation goes, so it is not finished any more
    return Start(Saver(saver, claim, in_order, keep), step, done, summary, set_variables)


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
            raise gone(run_dir)
        tf.train.Saver().restore(session, checkpoint)
        step = step_of(checkpoint)
        last_step = files.read_json(run_dir / RESULTS).get("global_step", step)
        if step < last_step:
            warnings.warn(
                f"{run_dir}: its checkpoint of step {last_step:,} is damaged, so this is the network"
                f" of step {step:,}. To train to step {last_step:,} again, delete {RESULTS} there"
                " and run the command that trained it."
            )
        yield session, step


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
                with open(file, "rb") as content:
                    files.sync(content)
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
