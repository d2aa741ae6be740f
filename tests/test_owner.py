"""A run whose folder is deleted while it trains, and perhaps made again by another run."""

import functools
import json
import random
import shutil
import signal
import time

import pytest
import tensorflow.compat.v1 as tf
from conftest import SECONDS, files_of_at_most
from test_resume import (
    LENGTH,
    OFTEN,
    UNITS,
    assert_same_outcome,
    await_checkpoint_after,
    begin,
    folder,
    outcome,
    run,
    saved_twice,  # noqa: F401 (a fixture)
    steps_saved,
    two_checkpoints,  # noqa: F401 (a fixture)
)
from test_train import assert_one_sentence, results_in, tensors

from harness import checkpoint_files, checkpoints, owner
from harness.errors import CannotWrite, Failed
from harness.events import Events
from harness.progress import Progress


def delete(run_dir):
    """Deletes a folder in which a process may be writing."""
    while run_dir.exists():
        shutil.rmtree(run_dir, ignore_errors=True)


def number_in(file):
    return json.loads(file.read_text())["run"]


NO_SPACE_FOR_RESULTS = """
import errno, os
from harness import files
write = files.write
def full(path, content):
    if path.name == "results.json":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    write(path, content)
files.write = full
"""


def test_results_that_do_not_fit_on_the_disk_are_written_by_the_same_command(tmp_path):
    failed = run(tmp_path, "--max_steps=2", prelude=NO_SPACE_FOR_RESULTS)
    assert_one_sentence(failed, "results.json: cannot be written", "same command")
    assert not (folder(tmp_path) / "results.json").exists()
    again = run(tmp_path, "--max_steps=2")
    assert again.returncode == 0, again.stderr
    assert results_in(folder(tmp_path))["global_step"] == 2


@pytest.mark.slow
def test_a_run_whose_folder_another_run_took_ends_and_leaves_nothing_there(tmp_path):
    lost = begin(tmp_path, UNITS["none"], "--num_epochs=1000", OFTEN)
    assert await_checkpoint_after(0, tmp_path, lost)
    lost.send_signal(signal.SIGSTOP)  # while the other one starts
    delete(folder(tmp_path))
    other = begin(tmp_path, UNITS["none"], "--num_epochs=1000", "--learning_rate=0.01", OFTEN)
    assert await_checkpoint_after(0, tmp_path, other)
    lost.send_signal(signal.SIGCONT)
    _, errors = lost.communicate(SECONDS)
    assert lost.returncode == 1 and "Traceback" not in errors
    words = "the folder was deleted, and another run began there, so this run ends."
    assert errors.splitlines()[-1] == f"train.py: {folder(tmp_path)}: {words}"
    assert (folder(tmp_path) / "progress.json").exists()  # which the other one still writes
    other.send_signal(signal.SIGTERM)
    other.communicate(SECONDS)
    assert other.returncode == 128 + signal.SIGTERM
    number = number_in(folder(tmp_path) / "settings.json")
    notes = list(folder(tmp_path).glob("model.ckpt-*.json"))
    assert len(notes) == len(steps_saved(tmp_path)) > 0
    assert {number_in(note) for note in notes} == {number}
    assert len(list(folder(tmp_path).glob("events.out.tfevents.*"))) == 1
    assert not list(folder(tmp_path).glob("saving-*"))


def numbered(run_dir, step, number):
    (run_dir / f"model.ckpt-{step}.json").write_text(json.dumps({"run": number}))


def test_a_start_takes_no_checkpoint_of_another_run(two_checkpoints, tmp_path):  # noqa: F811
    numbered(folder(tmp_path), 20, "another's")
    before = tensors(folder(tmp_path))
    again = run(tmp_path, UNITS["none"], "--max_steps=11")
    assert again.returncode == 0 and "Resuming after step 10." in again.stdout, again.stderr
    assert "WARNING" in again.stderr and "another run saved model.ckpt-20" in again.stderr
    for step in (10, 11):
        numbered(folder(tmp_path), step, "another's")
    refused = run(tmp_path, UNITS["none"], "--max_steps=40")
    assert_one_sentence(refused, "model.ckpt-20) are those of another run, or lack", "--overwrite")
    assert tensors(folder(tmp_path)) == before  # nothing is lost


def test_all_checkpoints_of_a_run_that_an_earlier_version_began_are_its_own(
    two_checkpoints,  # noqa: F811
    tmp_path,
):
    settings = folder(tmp_path) / "settings.json"
    known = json.loads(settings.read_text())
    del known["run"]
    settings.write_text(json.dumps(known))
    for note in folder(tmp_path).glob("model.ckpt-*.json"):
        note.unlink()
    assert checkpoint_files.steps_saved(folder(tmp_path)) == {10, 20}
    again = run(tmp_path, UNITS["none"], "--max_steps=21")
    assert again.returncode == 0 and "Resuming after step 20." in again.stdout, again.stderr
    assert checkpoint_files.steps_saved(folder(tmp_path)) == {10, 20, 21}
    # From now on it has a number.
    numbered(folder(tmp_path), 21, "another's")
    assert checkpoint_files.steps_saved(folder(tmp_path)) == {10, 20}


# --- The lowest calls ---


@pytest.fixture
def variable():
    """A graph of one variable, and a session with it."""
    with tf.Graph().as_default(), tf.Session() as session:
        session.run(tf.get_variable("network/some", [3]).initializer)
        yield session


class Delayed:
    """A `tf.train.Saver` after whose every save something happens."""

    def __init__(self, then):
        self._saver, self._then = tf.train.Saver(max_to_keep=None), then

    def save(self, *args, **kwargs):
        self._saver.save(*args, **kwargs)
        self._then()


def test_a_folder_that_is_lost_while_a_checkpoint_is_written_gets_none_of_it(variable, tmp_path):
    run_dir = tmp_path / "run"

    def lose():
        delete(run_dir)
        run_dir.mkdir()
        (run_dir / "lock").write_text("another's")

    with owner.claimed(run_dir) as claim:
        saver = checkpoints.Saver(Delayed(lose), claim, [], 3)
        with pytest.raises(Failed, match="another run began there, so this run ends"):
            saver.save(variable, 7)
    assert [path.name for path in run_dir.iterdir()] == ["lock"]


def test_a_folder_that_is_deleted_while_a_checkpoint_is_written_is_not_made_again(
    variable, tmp_path
):
    run_dir = tmp_path / "run"
    with owner.claimed(run_dir) as claim:
        saver = checkpoints.Saver(Delayed(lambda: delete(run_dir)), claim, [], 3)
        with pytest.raises(Failed, match="the folder was deleted, so this run ends"):
            saver.save(variable, 7)
    assert not run_dir.exists()


def test_no_event_gets_into_a_folder_that_another_run_has(tmp_path):
    run_dir = tmp_path / "run"
    with (
        tf.Graph().as_default() as graph,
        owner.claimed(run_dir) as claim,
        Events(run_dir, graph, -1, claim.check) as events,
    ):
        delete(run_dir)
        run_dir.mkdir()
        (run_dir / "lock").write_text("another's")
        for step in range(100):  # TensorFlow's thread writes them before anyone flushes
            events.add_scalars({"loss_total": 1.0}, step)
        for write in (events.flush, lambda: events.add_flags({}, {}, ["label"], "run", 0)):
            with pytest.raises(Failed, match="another run began there, so this run ends"):
                write()
    assert [path.name for path in run_dir.iterdir()] == ["lock"]


def test_a_start_whose_folder_is_taken_while_it_reads_a_checkpoint_ends(
    two_checkpoints,  # noqa: F811
    tmp_path,
    monkeypatch,
):
    """Reading may take so long that the folder changes hands; next, files would be cut back."""

    def lost_meanwhile(run_dir):
        (run_dir / "lock").write_text("another's")
        path = str(run_dir / "model.ckpt-20")
        return path, [path]

    monkeypatch.setattr(checkpoints, "newest_whole", lost_meanwhile)
    with tf.Graph().as_default(), owner.claimed(folder(tmp_path)) as claim:
        variable = tf.get_variable("network/some", [3])
        with pytest.raises(Failed, match="another run began there, so this run ends"):
            checkpoints.find_start(
                claim,
                last_step=40,
                every=5,
                keep=3,
                initializer=variable.initializer,
                tower_variables=[variable],
                init_folder=None,
            )


def test_a_run_whose_lock_alone_is_deleted_says_so(variable, tmp_path):
    with owner.claimed(tmp_path / "run") as claim:
        (tmp_path / "run" / "lock").unlink()
        with pytest.raises(Failed, match="its file lock, .*, was deleted, so this run ends"):
            checkpoints.Saver(tf.train.Saver(), claim, [], 3).save(variable, 7)


def test_a_lock_on_a_full_disk_is_an_error_that_names_it(tmp_path):
    with files_of_at_most(10):  # bytes; the number in it has 16
        with pytest.raises(CannotWrite, match=f"{tmp_path}/lock: cannot be written"):
            with owner.claimed(tmp_path):
                pass


def test_what_a_killed_process_left_half_saved_is_deleted_by_the_next(tmp_path):
    left = tmp_path / "run" / "saving-0123456789abcdef"
    left.mkdir(parents=True)
    (left / "model.ckpt-7.data-00000-of-00001").touch()
    users = tmp_path / "run" / "saving-for-later"
    users.mkdir()
    with owner.claimed(tmp_path / "run") as claim:
        assert claim.draft.exists() and not left.exists()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["lock", users.name]


def test_the_step_is_noted_only_in_a_folder_of_ones_own(tmp_path):
    note = tmp_path / "progress.json"
    with owner.claimed(tmp_path) as claim:
        (tmp_path / "lock").write_text("another's")
        note.write_text("another's")
        progress = Progress("some", 7, 100, claim)
        progress.add_step(32, 1.5, 0.01)
        progress.close()
    assert note.read_text() == "another's"


def test_fewer_checkpoints_are_kept_from_the_next_on(variable, tmp_path):
    with owner.claimed(tmp_path / "run") as claim:
        for keep, steps in ((5, (1, 2, 3, 4, 5)), (2, (6,))):
            paths = [str(tmp_path / "run" / f"model.ckpt-{n}") for n in (1, 2, 3, 4, 5)]
            saver = checkpoints.Saver(
                tf.train.Saver(max_to_keep=None), claim, paths if keep == 2 else [], keep
            )
            for step in steps:
                saver.save(variable, step)
        left = {path.name for path in (tmp_path / "run").glob("model.ckpt-*")}
    kinds = ("data-00000-of-00001", "index", "json")
    assert left == {f"model.ckpt-{step}.{kind}" for step in (5, 6) for kind in kinds}
    assert checkpoint_files.steps_listed(tmp_path / "run") == {5, 6}


# --- At random times ---


@pytest.mark.parametrize("rounds", [
    pytest.param(2, marks=pytest.mark.slow), pytest.param(30, marks=pytest.mark.soak)
])  # fmt: skip
def test_soak_of_deletions(rounds, tmp_path):
    """A run is deleted at a random time, another begins in its place and is killed and resumed:
    what ends in the folder has the bits, evaluations and predictions of an undisturbed run of its
    flags."""
    dice, ends = random.Random(), set()

    @functools.cache
    def undisturbed(seed):
        logdir = tmp_path / f"undisturbed{seed}"
        finished = run(logdir, UNITS["channel"], LENGTH, f"--seed={seed}")
        assert finished.returncode == 0, finished.stderr
        return outcome(logdir)

    def started(logdir, seed):
        return begin(logdir, UNITS["channel"], LENGTH, OFTEN, f"--seed={seed}")

    life = time.perf_counter()
    undisturbed(0)
    life = time.perf_counter() - life
    for number in range(rounds):
        logdir = tmp_path / str(number)
        lost = started(logdir, 0)
        time.sleep(dice.uniform(0, life))
        if dice.random() < 0.5:  # it comes back when the other one is there
            lost.send_signal(signal.SIGSTOP)
        delete(folder(logdir))
        other = started(logdir, 1)
        time.sleep(dice.uniform(0, life))
        other.kill()
        other.communicate()
        other = started(logdir, 1)
        time.sleep(dice.uniform(0, life / 2))
        lost.send_signal(signal.SIGCONT)
        for process in (lost, other):
            _, errors = process.communicate(SECONDS)
            # Whoever comes second may be refused: the folder is in use, or of other flags.
            assert process.returncode in (0, 1, 4) and "Traceback" not in errors, errors
            ends |= {line.rpartition(": ")[2] for line in errors.splitlines()[-1:]}
        results = results_in(folder(logdir))
        assert_same_outcome(outcome(logdir), undisturbed(results["seed"]))
        assert steps_saved(logdir)[-1] == results["global_step"]
        shutil.rmtree(logdir)
    print("\n".join(sorted(ends)))
