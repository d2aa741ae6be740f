"""A run is never lost and never in doubt: killed, stopped, doubled, or on a full disk."""

import errno
import gzip
import json
import os
import platform
import random
import re
import shutil
import signal
import time

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import config_of, run_script, run_train, start_train
from test_train import SMALL, assert_one_sentence, read_scalars

import data
import model
import train

UNITS = {"none": "--cross_stitch=False", "channel": "--cross_stitch_unit=channel"}
STEPS = 80
GIVEN = (
    "--dataset=synthetic",
    "--run_name=synthetic-run",
    "--batch_size=32",
    "--eval_every=20",
    "--batch_norm_decay=0.9",
)
LENGTH = f"--max_steps={STEPS}"
OFTEN = "--save_checkpoint_secs=0.4"


def run(logdir, *arguments, prelude="", **options):
    return run_train(
        f"--logdir={logdir}", *GIVEN, *arguments, prelude=f"{SMALL}; {prelude}", **options
    )


def run_afresh(logdir, *arguments, prelude="", **environment):
    """As `run`, in a process that shares nothing with another."""
    given = (f"--logdir={logdir}", *GIVEN, *arguments)
    return run_script("train.py", *given, prelude=f"{SMALL}; {prelude}", **environment)


def begin(logdir, *arguments):
    """A run in the background. Returns: the process."""
    return start_train(f"--logdir={logdir}", *GIVEN, *arguments, prelude=SMALL)


def folder(logdir):
    return logdir / "synthetic-run"


def steps_saved(logdir):
    """Steps of the checkpoints in the folder, in order."""
    return sorted(int(p.stem.split("-")[1]) for p in folder(logdir).glob("model.ckpt-*.index"))


def await_checkpoint_after(step, logdir, process):
    """Waits until there is one. Returns: whether there will be, or the process has ended."""
    while process.poll() is None:
        if any(saved > step for saved in steps_saved(logdir)):
            return True
        time.sleep(0.01)
    return False


def tensors(logdir):
    """Name -> bytes of every value in the last checkpoint."""
    reader = tf.train.load_checkpoint(tf.train.latest_checkpoint(folder(logdir)))
    return {name: reader.get_tensor(name).tobytes() for name in reader.get_variable_to_shape_map()}


def outcome(logdir):
    """All that must not depend on what happened to the run on its way."""
    results = json.loads((folder(logdir) / "results.json").read_text())
    curves = read_scalars(folder(logdir))
    curves.pop("summary/images_per_second", None)  # there is none of a life of one step
    for tag, points in curves.items():
        steps = [step for step, _ in points]
        at_start = [0] if "from" in tag else []  # the units' weights
        assert steps == at_start + list(range(20, STEPS + 1, 20)), tag  # each once, and no gap
    said = ("global_step", "loss_total", "accuracy_test", "accuracy_test_last", "cross_stitch")
    return tensors(logdir), curves, {name: results[name] for name in said}


def assert_same_outcome(one, other):
    for mine, its in zip(one, other, strict=True):  # tensors, curves, results
        for name in mine.keys() | its.keys():
            assert mine.get(name) == its.get(name), name


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """unit -> what a run that nothing interrupts ends in."""
    outcomes = {}

    def of(unit):
        if unit not in outcomes:
            logdir = tmp_path_factory.mktemp("undisturbed")
            finished = run_afresh(logdir, UNITS[unit], LENGTH)
            assert finished.returncode == 0, finished.stderr
            outcomes[unit] = outcome(logdir)
        return outcomes[unit]

    return of


@pytest.fixture(scope="session")
def two_checkpoints(tmp_path_factory):
    """A log folder with a run that saved at steps 20 and 40. Returns: it."""
    logdir = tmp_path_factory.mktemp("two")
    for steps in (20, 40):
        assert run(logdir, UNITS["none"], f"--max_steps={steps}").returncode == 0
    assert steps_saved(logdir) == [20, 40]
    return logdir


# --- Killed and stopped ---


def kill_on_the_way(logdir, unit, most, dice):
    """Runs to the end, killed (SIGKILL) at random instants. Returns: the number of kills."""
    kills, step = 0, 0
    while True:
        process = begin(logdir, UNITS[unit], LENGTH, OFTEN)
        # Not while it imports: each life must come further than the one before.
        if kills < most and await_checkpoint_after(step, logdir, process):
            time.sleep(dice.uniform(0, 1))
            process.kill()
        output, errors = process.communicate()
        if step:  # killed behind its last checkpoint, it has no more to do
            assert f"Resuming after step {step}." in output or step == STEPS
        if process.returncode == 0:
            return kills
        assert process.returncode == -signal.SIGKILL, errors
        kills, step = kills + 1, steps_saved(logdir)[-1]


@pytest.mark.slow
def test_a_run_killed_three_times_ends_in_the_same_bits(undisturbed, tmp_path):
    kills = kill_on_the_way(tmp_path, "channel", 3, random.Random())
    assert kills == 3
    left = {path.name.partition(".data-")[0] for path in folder(tmp_path).glob("*.data-*")}
    assert left == {f"model.ckpt-{step}" for step in steps_saved(tmp_path)}  # no half of one
    assert_same_outcome(outcome(tmp_path), undisturbed("channel"))


@pytest.mark.soak
@pytest.mark.parametrize("unit", UNITS)
def test_soak_of_kills(unit, undisturbed, tmp_path):
    wanted, kills = int(os.environ.get("SOAK_KILLS", 100)), 0
    while kills < wanted:
        most = min(10, wanted - kills)
        kills += kill_on_the_way(tmp_path / "logs", unit, most, random.Random())
        assert_same_outcome(outcome(tmp_path / "logs"), undisturbed(unit))
        shutil.rmtree(tmp_path / "logs")
        print(f"{unit}: {kills} kills", flush=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "number, more, advice",
    [
        (signal.SIGINT, (), "Run the same command to resume."),
        (signal.SIGTERM, ("--overwrite",), "Run the same command without --overwrite to resume."),
    ],
)
def test_a_signal_ends_the_step_saves_and_the_run_goes_on(
    number, more, advice, undisturbed, tmp_path
):
    process = begin(tmp_path, UNITS["none"], LENGTH, OFTEN, *more)
    assert await_checkpoint_after(0, tmp_path, process)
    process.send_signal(number)
    output, errors = process.communicate()
    assert process.returncode == 128 + number
    step = steps_saved(tmp_path)[-1]
    assert f"Stopped after step {step} of {STEPS}" in errors and "Traceback" not in errors
    assert advice in errors
    again = run(tmp_path, UNITS["none"], LENGTH)
    assert again.returncode == 0 and f"Resuming after step {step}." in again.stdout
    assert f"{STEPS} steps, the last {STEPS - step} of them in" in again.stdout
    assert_same_outcome(outcome(tmp_path), undisturbed("none"))


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGUSR1,
        *(
            pytest.param(number, marks=pytest.mark.slow)
            for number in (signal.SIGHUP, signal.SIGUSR2, signal.SIGXCPU)
        ),
    ],
)
def test_a_lost_terminal_and_a_batch_systems_warning_are_such_signals(number, tmp_path):
    heard = (
        f"{SMALL}; import signal; signal.signal({int(number)}, signal.SIG_DFL)"  # if under nohup
    )
    process = start_train(f"--logdir={tmp_path}", *GIVEN, "--num_epochs=1000", OFTEN, prelude=heard)
    assert await_checkpoint_after(0, tmp_path, process)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == 128 + number and "Stopped after step" in errors


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_is_ignored_from_the_start_stays_ignored(number, tmp_path):
    """As nohup arranges for SIGHUP, and a script's `train.py &` for SIGINT."""
    ignored = f"{SMALL}; import signal; signal.signal({int(number)}, signal.SIG_IGN)"
    process = start_train(f"--logdir={tmp_path}", *GIVEN, LENGTH, OFTEN, prelude=ignored)
    assert await_checkpoint_after(0, tmp_path, process)
    process.send_signal(number)
    process.communicate()
    assert process.returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="needs an x86 processor")
def test_onednn_is_used_unless_the_user_turns_it_off(tmp_path):
    """Its kernels round differently, so the weights tell whether it was used."""
    results, weights = {}, {}
    for chosen in (None, "0", "1"):
        logdir = tmp_path / str(chosen)
        finished = run_afresh(logdir, "--max_steps=2", TF_ENABLE_ONEDNN_OPTS=chosen)
        assert finished.returncode == 0, finished.stderr
        results[chosen] = json.loads((folder(logdir) / "results.json").read_text())
        weights[chosen] = tensors(logdir)
    assert [results[chosen]["machine"]["onednn"] for chosen in (None, "0", "1")] == ["1", "0", "1"]
    assert weights[None] == weights["1"] != weights["0"]


@pytest.mark.slow
def test_a_clock_that_is_set_back_changes_no_result(undisturbed, tmp_path):
    """The names of event files begin with the time: here the first file's is an hour ahead."""
    assert run(tmp_path, UNITS["none"], "--max_steps=40").returncode == 0
    (path,) = folder(tmp_path).glob("events.out.tfevents.*")
    events, out, tfevents, then, rest = path.name.split(".", 4)
    path.rename(path.with_name(".".join([events, out, tfevents, str(int(then) + 3600), rest])))
    assert run(tmp_path, UNITS["none"], LENGTH).returncode == 0
    assert_same_outcome(outcome(tmp_path), undisturbed("none"))


@pytest.mark.slow
def test_a_second_interrupt_ends_it_at_once(tmp_path):
    # Steps of a second, the first of which it would otherwise finish.
    process = begin(tmp_path, "--batch_size=1200", "--num_epochs=1000", OFTEN)
    assert await_checkpoint_after(0, tmp_path, process)
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGINT
    assert "Traceback" not in errors


# --- Two runs in one place ---


def test_a_second_process_is_refused_and_a_killed_ones_lock_is_none(tmp_path):
    first = begin(tmp_path, "--num_epochs=1000", OFTEN)
    assert await_checkpoint_after(0, tmp_path, first)
    second = run(tmp_path, "--num_epochs=1000")
    assert_one_sentence(second, "another process", "--run_name")
    assert first.poll() is None
    first.kill()
    first.communicate()
    step = steps_saved(tmp_path)[-1]
    third = run(tmp_path, f"--max_steps={step + 1}")
    assert third.returncode == 0 and f"Resuming after step {step}." in third.stdout, third.stderr


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_is_named_as_such(error, tmp_path):
    """The lowest call, fcntl.flock, fails as it does on such a file system."""
    no_locks = (
        f"{SMALL}\nimport fcntl, os\ndef flock(*_): raise OSError({error}, os.strerror({error}))\n"
        "fcntl.flock = flock"
    )
    finished = run(tmp_path, LENGTH, prelude=no_locks)
    assert_one_sentence(finished, "file locks", os.strerror(error), "--logdir")


@pytest.mark.slow
def test_a_lock_file_that_another_program_left_is_no_process(tmp_path):
    folder(tmp_path).mkdir()
    (folder(tmp_path) / train.LOCK).write_text("4711 somewhere")
    assert run(tmp_path, "--max_steps=1").returncode == 0


def test_other_flags_are_refused_with_both_values_and_overwrite_starts_afresh(tmp_path):
    assert run(tmp_path, "--max_steps=2", "--seed=1").returncode == 0
    before = tensors(tmp_path)
    refused = run(tmp_path, "--max_steps=4", "--seed=2", "--lr=0.01")
    before_flags, now = "--learning_rate=0.001 --seed=1", "not --learning_rate=0.01 --seed=2"
    assert_one_sentence(refused, before_flags, now)
    shorter = run(tmp_path, "--max_steps=1", "--seed=1")
    assert_one_sentence(shorter, "2 steps", "--overwrite")
    assert tensors(tmp_path) == before
    note = tmp_path / "synthetic-run" / "notes.txt"
    note.write_text("the user's own")
    afresh = run(tmp_path, "--max_steps=2", "--seed=2", "--overwrite")
    assert afresh.returncode == 0 and "Going on" not in afresh.stdout, afresh.stderr
    assert note.exists() and steps_saved(tmp_path) == [2]
    assert len(list(folder(tmp_path).glob("events*"))) == 1
    assert tensors(tmp_path) != before


@pytest.mark.slow
def test_the_same_data_in_another_folder_is_no_difference(fashion_mnist, tmp_path):
    def trained(*arguments, **options):
        return run_train(f"--logdir={tmp_path}", "--run_name=run", "--batch_size=8",
                         "--dataset=fashion_mnist", *arguments, **options)  # fmt: skip

    there = os.environ.get(data.FOLDER_VARIABLE) or data.cache_folder()
    here = tmp_path / "here"
    shutil.copytree(there, here)
    assert trained("--max_steps=1").returncode == 0
    again = trained("--max_steps=2", f"--data_dir={here}")
    assert again.returncode == 0 and "Resuming after step 1." in again.stdout, again.stderr
    labels = here / "t10k-labels-idx1-ubyte.gz"
    content = bytearray(gzip.decompress(labels.read_bytes()))
    content[8] = (content[8] + 1) % 10
    labels.write_bytes(gzip.compress(bytes(content)))
    other = trained("--max_steps=3", f"--data_dir={here}")
    assert_one_sentence(other, str(here), "not the official Fashion-MNIST")
    given = ("--max_steps=3", f"--data_dir={here}", "--dataset=auto", "--tasks=article,group")
    other = trained(*given)
    assert other.returncode == 1 and "Traceback" not in other.stderr
    official, other_data = (
        f"--dataset={name} classes [0-9a-f]{{16}} data [0-9a-f]{{16}}"
        for name in ("fashion_mnist", "here-custom")
    )
    assert re.search(f"started with {official}, not {other_data}. Resume", other.stderr), (
        other.stderr
    )


# --- Faults ---


def limited(number_of_bytes):
    """Python ignores SIGXFSZ, so that writing more than this fails, as on a full disk."""
    return f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({number_of_bytes},) * 2)"


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["checkpoint", "events"])
def test_a_full_disk_ends_the_run_and_harms_no_checkpoint(fault, two_checkpoints, tmp_path):
    shutil.copytree(two_checkpoints, tmp_path, dirs_exist_ok=True)
    before = tensors(tmp_path)
    # A checkpoint has 78 MB, the graph in an event file a few hundred thousand bytes.
    limit = limited(20_000_000 if fault == "checkpoint" else 10_000)
    failed = run_afresh(tmp_path, UNITS["none"], LENGTH, "--save_checkpoint_secs=1", prelude=limit)
    assert_one_sentence(failed, str(folder(tmp_path)), "File too large", "same command")
    assert tensors(tmp_path) == before and steps_saved(tmp_path) == [20, 40]


@pytest.mark.slow
def test_a_log_folder_that_vanishes_ends_the_run(tmp_path):
    process = begin(tmp_path, "--num_epochs=1000", OFTEN)
    assert await_checkpoint_after(0, tmp_path, process)
    shutil.rmtree(folder(tmp_path), ignore_errors=True)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert "Traceback" not in errors
    assert str(folder(tmp_path)) in errors.splitlines()[-1]


@pytest.mark.parametrize("logdir", ["/proc/logs", "/sys/logs"])  # where even root makes nothing
def test_a_log_folder_that_cannot_be_written_is_named(logdir):
    assert_one_sentence(run(logdir, "--max_steps=1"), logdir)


SPOILT = {
    "truncated": lambda path: os.truncate(f"{path}.data-00000-of-00001", 1_000_000),
    "without a shard": lambda path: os.remove(f"{path}.data-00000-of-00001"),
    "a bit flipped": lambda path: flip_a_bit(f"{path}.data-00000-of-00001"),
    "index truncated": lambda path: os.truncate(f"{path}.index", 100),
}


def flip_a_bit(path):
    with open(path, "r+b") as file:
        file.seek(50_000_000)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 4]))


@pytest.mark.slow
@pytest.mark.parametrize("fault", SPOILT)
def test_a_damaged_checkpoint_is_found_out(fault, two_checkpoints, tmp_path):
    shutil.copytree(folder(two_checkpoints), tmp_path, dirs_exist_ok=True)
    SPOILT[fault](tmp_path / "model.ckpt-40")
    net = model.build([(task.name, len(task.classes)) for task in data.TASKS[:2]], config_of(None))
    with net.graph.as_default(), pytest.warns(UserWarning, match="model.ckpt-40: damaged"):
        newest, _ = train.newest_checkpoint(tmp_path)
    assert newest == str(tmp_path / "model.ckpt-20")


@pytest.mark.slow
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(
    two_checkpoints, undisturbed, tmp_path
):
    shutil.copytree(two_checkpoints, tmp_path, dirs_exist_ok=True)
    SPOILT["truncated"](folder(tmp_path) / "model.ckpt-40")
    finished = run(tmp_path, UNITS["none"], LENGTH)
    assert finished.returncode == 0, finished.stderr
    assert "WARNING" in finished.stderr and "model.ckpt-40" in finished.stderr
    assert "Resuming after step 20." in finished.stdout
    assert_same_outcome(outcome(tmp_path), undisturbed("none"))


@pytest.mark.slow
def test_where_all_checkpoints_are_damaged_the_run_is_refused(two_checkpoints, tmp_path):
    shutil.copytree(two_checkpoints, tmp_path, dirs_exist_ok=True)
    for step in (20, 40):
        SPOILT["truncated"](folder(tmp_path) / f"model.ckpt-{step}")
    refused = run(tmp_path, UNITS["none"], LENGTH)
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert "none of its 2 checkpoints" in refused.stderr.splitlines()[-1]
    assert steps_saved(tmp_path) == [20, 40]


@pytest.mark.slow
def test_a_checkpoint_of_another_network_is_refused_and_kept(two_checkpoints, tmp_path):
    assert run(tmp_path, UNITS["channel"], "--max_steps=1").returncode == 0
    for path in folder(two_checkpoints).glob("model.ckpt-40*"):
        shutil.copy(path, folder(tmp_path))
    refused = run(tmp_path, UNITS["channel"], LENGTH)
    assert_one_sentence(refused, "model.ckpt-40", "not a checkpoint of this network")
    assert steps_saved(tmp_path) == [1, 40]


def test_a_run_with_more_epochs_is_not_finished_until_it_ends(two_checkpoints, tmp_path):
    shutil.copytree(folder(two_checkpoints), folder(tmp_path))
    process = begin(tmp_path, UNITS["none"], "--num_epochs=1000", OFTEN)
    assert await_checkpoint_after(40, tmp_path, process)
    process.kill()
    process.communicate()
    given = (UNITS["none"], "--max_steps=40")
    assert_one_sentence(run(tmp_path, *given, "--eval_only"), "not a finished run")
    served = tmp_path / "served"
    exported = run(tmp_path, *given, f"--export_dir={served}")
    assert_one_sentence(exported, "more than the 40 of this command")
    assert not served.exists()
    towers = run(tmp_path, "--max_steps=40", "--seed=1", f"--init_from={folder(tmp_path)}",
                 "--run_name=synthetic-other")  # fmt: skip
    assert_one_sentence(towers, "not the folder of a finished run")


def test_other_classes_of_a_task_are_refused(two_checkpoints, tmp_path):
    shutil.copytree(folder(two_checkpoints), folder(tmp_path))
    other = "data.TASKS = (data.TASKS[0], data.TASKS[1]._replace(from_article=(0, 1) * 5))"
    refused = run(tmp_path, UNITS["none"], "--max_steps=60", prelude=other)
    assert_one_sentence(refused, "was started with classes ", "--overwrite")
    settings = folder(tmp_path) / "settings.json"
    known = json.loads(settings.read_text())
    del known["classes"]  # as an earlier version wrote it
    settings.write_text(json.dumps(known))
    finished = run(tmp_path, UNITS["none"], "--max_steps=40", prelude=other)
    assert finished.returncode == 0, finished.stderr


def test_the_bar_of_a_resumed_run_shows_its_loss_and_the_rate_of_this_process():
    progress = train.Progress("some", 907, 1000)
    progress.bar.mininterval = 0
    start = time.perf_counter()
    for _ in range(10):
        time.sleep(0.01)
        progress.add_step(32, 1.5, 0.01)
    steps_a_second = 10 / (time.perf_counter() - start)
    shown = progress.bar.format_dict
    progress.close()
    assert shown["n"] == 917
    assert shown["rate"] < 2 * steps_a_second
    assert "loss 1.500" in shown["postfix"]


def test_speed_leaves_out_the_first_step_and_counts_from_the_last_evaluation():
    progress = train.Progress("some", 0, 100)
    progress.add_step(1000, 1.5, 60.0)
    assert progress.speed() is None and progress.add_evaluation({}) is None
    progress.add_step(30, 1.5, 0.5)
    assert progress.add_evaluation({}) == progress.speed() == 60
    progress.add_step(30, 1.5, 1.0)
    assert progress.speed() == 40
    assert progress.add_evaluation({"article": 0.5}) == 30
    progress.close()


def test_a_foreign_programs_checkpoint_is_refused_and_kept(tmp_path):
    folder(tmp_path).mkdir()
    with tf.Graph().as_default(), tf.Session() as session:
        foreign = tf.get_variable("foreign", [3])
        session.run(foreign.initializer)
        tf.train.Saver().save(session, str(folder(tmp_path) / "model.ckpt"), 7)
    before = tensors(tmp_path)
    assert_one_sentence(run(tmp_path, "--max_steps=9"), "synthetic-run", "--run_name")
    assert tensors(tmp_path) == before


def test_a_loss_that_is_no_number_ends_the_run_at_its_step(tmp_path):
    diverged = run(tmp_path, "--learning_rate=1e9", LENGTH, "--save_checkpoint_secs=0.1")
    assert_one_sentence(diverged, "NaN or infinite at step", "--learning_rate")
    for step in steps_saved(tmp_path):
        reader = tf.train.load_checkpoint(str(folder(tmp_path) / f"model.ckpt-{step}"))
        for name in reader.get_variable_to_shape_map():
            assert np.all(np.isfinite(reader.get_tensor(name))), name


@pytest.mark.slow
def test_weights_poisoned_by_the_last_step_are_not_saved(tmp_path):
    # Beyond float32: the first loss is still finite, and nothing after its step is.
    poisoned = run(tmp_path, "--learning_rate=1e39", "--max_steps=1")
    assert_one_sentence(poisoned, "weights", "step 1", "--learning_rate")
    assert steps_saved(tmp_path) == []


# --- What stands beside a run ---

CANNOT_DRAW = "import matplotlib.figure; matplotlib.figure.Figure.savefig = None"


@pytest.mark.slow
def test_a_run_whose_every_picture_fails_ends_in_the_same_bits(undisturbed, tmp_path):
    finished = run_afresh(tmp_path, UNITS["channel"], LENGTH, prelude=CANNOT_DRAW)
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr.count("TensorBoard will show no pictures") == 1
    assert_same_outcome(outcome(tmp_path), undisturbed("channel"))


@pytest.mark.parametrize("content", ["", "{", "[]", "null"])
def test_a_run_goes_on_where_its_settings_are_damaged(content, two_checkpoints, tmp_path):
    """As a power cut may leave them: the weights are worth more than the check."""
    shutil.copytree(two_checkpoints, tmp_path, dirs_exist_ok=True)
    (folder(tmp_path) / "settings.json").write_text(content)
    finished = run(tmp_path, UNITS["none"], "--max_steps=42")
    assert finished.returncode == 0 and "Resuming after step 40." in finished.stdout
    assert "WARNING" in finished.stderr and "settings.json" in finished.stderr
    # They are there again.
    refused = run(tmp_path, UNITS["none"], "--max_steps=42", "--learning_rate=0.5")
    assert_one_sentence(refused, "--learning_rate")


def test_a_run_goes_on_where_its_settings_are_gone(two_checkpoints, tmp_path):
    shutil.copytree(two_checkpoints, tmp_path, dirs_exist_ok=True)
    (folder(tmp_path) / "settings.json").unlink()
    finished = run(tmp_path, UNITS["none"], "--max_steps=42")
    assert finished.returncode == 0 and "Resuming after step 40." in finished.stdout
    assert "WARNING" in finished.stderr and "settings.json" in finished.stderr


@pytest.mark.parametrize("content", ["", "{}"])
def test_a_finished_run_whose_results_are_damaged_is_evaluated_again(
    content, two_checkpoints, tmp_path
):
    shutil.copytree(two_checkpoints, tmp_path, dirs_exist_ok=True)
    path = folder(tmp_path) / "results.json"
    before = json.loads(path.read_text())
    path.write_text(content)
    finished = run(tmp_path, UNITS["none"], "--max_steps=40")
    assert finished.returncode == 0, finished.stderr
    after = json.loads(path.read_text())
    for name in ("accuracy_test", "accuracy_test_last", "confusion", "global_step", "loss_total"):
        assert after[name] == before[name], name


def test_without_its_event_files_a_finished_run_still_has_results(two_checkpoints, tmp_path):
    shutil.copytree(two_checkpoints, tmp_path, dirs_exist_ok=True)
    path = folder(tmp_path) / "results.json"
    before = json.loads(path.read_text())
    path.unlink()
    for events in folder(tmp_path).glob("events.*"):
        events.unlink()
    finished = run(tmp_path, UNITS["none"], "--max_steps=40")
    assert finished.returncode == 0, finished.stderr
    after = json.loads(path.read_text())
    assert after["accuracy_test"] == pytest.approx(before["accuracy_test"])
    assert after["confusion"] == before["confusion"]


def test_a_copy_without_an_index_goes_on_from_the_checkpoint_before(two_checkpoints, tmp_path):
    shutil.copytree(two_checkpoints, tmp_path, dirs_exist_ok=True)
    (folder(tmp_path) / "model.ckpt-40.index").unlink()
    finished = run(tmp_path, UNITS["none"], "--max_steps=42")
    assert finished.returncode == 0 and "Resuming after step 20." in finished.stdout
    assert "WARNING" in finished.stderr and "model.ckpt-40" in finished.stderr


@pytest.mark.parametrize("lost, words", [
    ("*.index", "none of its 2 checkpoints"), ("model.ckpt-*", "its checkpoints are gone"),
])  # fmt: skip
def test_a_copy_without_its_checkpoints_is_not_trained_anew(lost, words, two_checkpoints, tmp_path):
    shutil.copytree(two_checkpoints, tmp_path, dirs_exist_ok=True)
    for path in folder(tmp_path).glob(lost):
        path.unlink()
    left = set(folder(tmp_path).iterdir())
    refused = run(tmp_path, UNITS["none"], "--max_steps=42")
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert words in refused.stderr.splitlines()[-1]
    assert left <= set(folder(tmp_path).iterdir())


@pytest.mark.slow
def test_an_export_of_an_older_checkpoint_names_its_step(two_checkpoints, tmp_path):
    shutil.copytree(two_checkpoints, tmp_path, dirs_exist_ok=True)
    SPOILT["truncated"](folder(tmp_path) / "model.ckpt-40")
    served = tmp_path / "served"
    exported = run(tmp_path, UNITS["none"], "--max_steps=40", f"--export_dir={served}")
    assert exported.returncode == 0 and "model.ckpt-40:" in exported.stderr
    assert json.loads((served / "run.json").read_text())["global_step"] == 20


def test_another_export_is_not_advised_to_be_deleted_with_the_run(two_checkpoints, tmp_path):
    shutil.copytree(two_checkpoints, tmp_path, dirs_exist_ok=True)
    served = tmp_path / "served"
    served.mkdir()
    (served / "run.json").write_text("")
    refused = run(tmp_path, UNITS["none"], "--max_steps=40", f"--export_dir={served}")
    assert_one_sentence(refused, str(served), "--export_dir")
    assert "--overwrite" not in refused.stderr
