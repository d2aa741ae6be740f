"""A run is never lost and never in doubt: killed, stopped, doubled, or on a full disk."""

import errno
import functools
import gzip
import json
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
import test_train
from conftest import ROOT, SECONDS, config_of, run_train, start_train
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.plugins.hparams import plugin_data_pb2
from test_train import (
    SMALL,
    assert_one_sentence,
    read_scalars,
    results_in,
    run_afresh,
    tensors,
    without_compiler,
)

import data
import model
from harness import checkpoint_files, download, evaluation_log, files, owner, predictions, signals
from harness import folder as run_folder
from harness.errors import CannotWrite, Diverged, Failed, InUse
from harness.names import NUMERICS
from harness.progress import Progress

UNITS = {"none": "--cross_stitch=False", "channel": "--cross_stitch_unit=channel"}
EVERY, STEPS = 10, 40
GIVEN = ("--run_name=synthetic-run", "--batch_size=32", f"--eval_every={EVERY}")
LENGTH = f"--max_steps={STEPS}"
OFTEN = "--save_checkpoint_secs=0.4"


def run(logdir, *arguments, **options):
    return test_train.run(logdir, *GIVEN, *arguments, **options)


def begin(logdir, *arguments, prelude=""):
    """A run in the background. Returns: the process."""
    given = (f"--logdir={logdir}", "--dataset=synthetic", *GIVEN, *arguments)
    return start_train(*given, prelude=f"{SMALL}\n{prelude}")


def folder(logdir):
    return logdir / "synthetic-run"


def steps_saved(logdir):
    """Steps of the checkpoints in the folder, in order."""
    return sorted(int(p.stem.split("-")[1]) for p in folder(logdir).glob("model.ckpt-*.index"))


def await_checkpoint_after(step, logdir, process):
    """Waits until there is one. Returns: whether there will be, or the process has ended."""
    end = time.monotonic() + SECONDS
    while process.poll() is None:
        assert time.monotonic() < end
        if any(saved > step for saved in steps_saved(logdir)):
            return True
        time.sleep(0.01)
    return False


def outcome(logdir):
    """All that must not depend on what happened to the run on its way."""
    results, curves = results_in(folder(logdir)), read_scalars(folder(logdir))
    in_file = evaluation_log.curves(folder(logdir))
    for name, (steps, values) in in_file.items():
        shown = curves[name if name.startswith("tasks/") else f"summary/{name}"]
        assert list(zip(steps, np.float32(values))) == [(s, np.float32(v)) for s, v in shown], name
    assert len(in_file) == len(curves)
    curves.pop("summary/images_per_second", None)  # there is none of a life of one step
    for tag, points in curves.items():
        steps = [step for step, _ in points]
        at_start = [0] if "from" in tag else []  # the units' weights
        assert steps == at_start + list(range(EVERY, STEPS + 1, EVERY)), tag  # each once, no gap
    said = ("global_step", "loss_total", "accuracy_test", "accuracy_test_last", "cross_stitch")
    said += ("correct_last",)
    curves[predictions.NAME] = (folder(logdir) / predictions.NAME).read_bytes()
    return tensors(folder(logdir)), curves, {name: results[name] for name in said}


def assert_same_outcome(one, other):
    for mine, its in zip(one, other, strict=True):  # tensors, curves, results
        for name in mine.keys() | its.keys():
            assert mine.get(name) == its.get(name), name


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """unit -> what a run that nothing interrupts ends in, in a process of its own."""

    @functools.cache
    def of(unit):
        logdir = tmp_path_factory.mktemp("undisturbed")
        finished = run_afresh(logdir, *GIVEN, UNITS[unit], LENGTH)
        assert finished.returncode == 0, finished.stderr
        return outcome(logdir)

    return of


@pytest.fixture(scope="session")
def saved_twice(tmp_path_factory):
    """A log folder with a run that saved at steps 10 and 20, which tests only read."""
    logdir = tmp_path_factory.mktemp("twice")
    for steps in (10, 20):
        assert run(logdir, UNITS["none"], f"--max_steps={steps}").returncode == 0
    assert steps_saved(logdir) == [10, 20]
    return logdir.rename(tmp_path_factory.mktemp("moved") / "logs")


@pytest.fixture
def two_checkpoints(saved_twice, tmp_path):
    """A copy of that log folder of one's own, which is `tmp_path`, too."""
    return shutil.copytree(saved_twice, tmp_path, dirs_exist_ok=True)


# --- Killed and stopped ---


def kill_on_the_way(logdir, most, dice, *given):
    """Runs to the end, killed (SIGKILL) at random instants. Returns: the number of kills."""
    kills, step = 0, 0
    while True:
        process = begin(logdir, *given, LENGTH, OFTEN)
        # Not while it imports: each life must come further than the one before.
        if kills < most and await_checkpoint_after(step, logdir, process):
            time.sleep(dice.uniform(0, 0.5))
            process.kill()
        output, errors = process.communicate()
        if step:  # killed after its last step was saved, it resumes nothing
            assert f"Resuming after step {step}." in output or step == STEPS
        if process.returncode == 0:
            return kills
        assert process.returncode == -signal.SIGKILL, errors
        kills, step = kills + 1, steps_saved(logdir)[-1]


@pytest.mark.slow
def test_a_run_killed_three_times_ends_in_the_same_bits(undisturbed, tmp_path):
    kills = kill_on_the_way(tmp_path, 3, random.Random(), UNITS["channel"])
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
        kills += kill_on_the_way(tmp_path / "logs", most, random.Random(), UNITS[unit])
        assert_same_outcome(outcome(tmp_path / "logs"), undisturbed(unit))
        shutil.rmtree(tmp_path / "logs")
        print(f"{unit}: {kills} kills", flush=True)


@pytest.mark.slow
def test_a_signal_ends_the_step_saves_and_the_run_goes_on(undisturbed, tmp_path):
    before = 0
    for number, more, advice in (
        (signal.SIGTERM, ("--overwrite",), "Run the same command without --overwrite to resume."),
        (signal.SIGINT, (), "Run the same command to resume."),
    ):
        process = begin(tmp_path, UNITS["none"], LENGTH, OFTEN, *more)
        assert await_checkpoint_after(before, tmp_path, process)
        process.send_signal(number)
        _, errors = process.communicate()
        assert process.returncode == 128 + number
        before = steps_saved(tmp_path)[-1]
        assert f"Stopped after step {before} of {STEPS}" in errors and "Traceback" not in errors
        assert advice in errors
    again = run(tmp_path, UNITS["none"], LENGTH)
    assert again.returncode == 0 and f"Resuming after step {before}." in again.stdout
    assert f"{STEPS} steps, the last {STEPS - before} of them in" in again.stdout
    assert_same_outcome(outcome(tmp_path), undisturbed("none"))


def lines_of(logdir):
    return [json.loads(line) for line in (folder(logdir) / evaluation_log.NAME).open()]


# Each evaluation takes longer than the half second between two notes of the step.
SLOW_EVALUATION = """
import time
data.SYNTHETIC_SIZES = (1200, 4000)
batches = data.Dataset.test_batches
def slowly(self):
    for batch in batches(self):
        time.sleep(0.05)
        yield batch
data.Dataset.test_batches = slowly
"""


@pytest.mark.slow
def test_a_signal_stops_an_evaluation_which_the_resumed_run_completes(tmp_path):
    """The step is saved with its losses. The first evaluation is stopped twice, then the last."""
    given = (UNITS["channel"], "--eval_every=1", "--max_steps=3", "--seed=1")
    once = run(tmp_path / "once", *given, prelude=SLOW_EVALUATION)
    assert once.returncode == 0, once.stderr
    logdir = tmp_path / "stopped"
    note = folder(logdir) / "progress.json"
    for step, before in ((1, None), (1, 1), (3, 1)):
        process = begin(logdir, *given, prelude=SLOW_EVALUATION)

        def is_evaluating():
            if before == step:  # at once, as the step is trained
                return f"Resuming after step {step}." in process.output()
            return files.read_json(note).get("step") == step

        while process.poll() is None and not is_evaluating():
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate()
        assert process.returncode == 128 + signal.SIGTERM, errors
        assert f"Stopped after step {step} of 3 and saved." in errors
        assert before is None or f"Resuming after step {before}." in output
        assert steps_saved(logdir)[-1] == step
        assert [line["step"] for line in lines_of(logdir)] == list(range(step))
    again = run(logdir, *given, prelude=SLOW_EVALUATION)
    assert again.returncode == 0 and "Resuming after step 3." in again.stdout, again.stderr
    assert tensors(folder(logdir)) == tensors(folder(tmp_path / "once"))

    def written(logdir):
        lines, shown = lines_of(logdir), read_scalars(folder(logdir))
        shown.pop("summary/images_per_second", None)
        for line in lines:
            line.pop("images_per_second", None)
        return lines, shown, (folder(logdir) / predictions.NAME).read_bytes()

    assert written(logdir) == written(tmp_path / "once")


@pytest.mark.slow
def test_a_run_that_is_trained_on_has_the_evaluations_of_a_longer_one(undisturbed, tmp_path):
    """And not that of its former last step, which is no multiple of --eval_every."""
    assert run(tmp_path, UNITS["none"], "--max_steps=15").returncode == 0
    assert [line["step"] for line in lines_of(tmp_path)] == [10, 15]
    longer = run(tmp_path, UNITS["none"], LENGTH)
    assert longer.returncode == 0 and "Resuming after step 15." in longer.stdout, longer.stderr
    assert_same_outcome(outcome(tmp_path), undisturbed("none"))


@pytest.mark.slow
def test_a_finished_run_that_is_trained_on_and_killed_at_once_can_be_finished_again(tmp_path):
    short = (UNITS["none"], "--max_steps=15")
    assert run(tmp_path, *short).returncode == 0
    before = results_in(folder(tmp_path)), (folder(tmp_path) / predictions.NAME).read_bytes()
    process = begin(tmp_path, UNITS["none"], "--max_steps=100000")
    log, end = folder(tmp_path) / evaluation_log.NAME, time.monotonic() + SECONDS
    while all(line["step"] < 20 for line, _ in evaluation_log.whole_lines(log)):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert run(tmp_path, *short).returncode == 0
    assert [line["step"] for line in lines_of(tmp_path)] == [10, 15]
    after = results_in(folder(tmp_path))
    for name in ("global_step", "accuracy_test", "accuracy_test_last", "correct_last", "confusion"):
        assert after[name] == before[0][name], name
    assert (folder(tmp_path) / predictions.NAME).read_bytes() == before[1]


def test_evaluations_behind_a_later_one_are_cut_and_missed(tmp_path):
    """As two processes may leave them, on a disk whose locks another machine does not see."""
    path, steps = tmp_path / evaluation_log.NAME, (10, 20, 90, 30, 40)
    path.write_text("".join(f'{{"step": {step}, "accuracy_test": 0.5}}\n' for step in steps))
    with pytest.warns(UserWarning, match="lacks 2 evaluations up to step 40, such as .* step 30"):
        with evaluation_log.EvaluationLog(tmp_path, 40, 10):
            pass
    assert [line["step"] for line, _ in evaluation_log.whole_lines(path)] == [10, 20]


STOPPED_AT_13 = (
    "import os\nfrom harness.progress import Progress\nadd_step = Progress.add_step\n"
    "def stop_at_13(self, *given):\n"
    "    add_step(self, *given)\n"
    "    if self._step == 13: os.kill(os.getpid(), 15)\n"
    "Progress.add_step = stop_at_13"
)


def test_a_run_that_ends_where_it_was_stopped_has_the_accuracy_of_its_end(tmp_path):
    """Its last step is no multiple of --eval_every, so that it was stopped without an evaluation."""
    once = run(tmp_path / "once", UNITS["none"], "--max_steps=13")
    assert once.returncode == 0, once.stderr
    stopped = run(tmp_path, UNITS["none"], LENGTH, prelude=STOPPED_AT_13)
    assert "Stopped after step 13 of 40 and saved." in stopped.stderr
    assert [line["step"] for line in lines_of(tmp_path)] == [10]
    ended = run(tmp_path, UNITS["none"], "--max_steps=13")
    assert ended.returncode == 0, ended.stderr
    results, expected = (results_in(folder(where)) for where in (tmp_path, tmp_path / "once"))
    for name in ("global_step", "accuracy_test", "accuracy_test_last", "correct_last", "confusion"):
        assert results[name] == expected[name], name
    assert results["loss_total"] is None  # of step 13: its batch was trained in the other process
    assert [line["step"] for line in lines_of(tmp_path)] == [10, 13]


@pytest.mark.slow
def test_a_signal_stops_such_an_evaluation_too_and_the_run_is_not_finished(tmp_path):
    stopped = run(tmp_path, UNITS["none"], LENGTH, prelude=f"{STOPPED_AT_13}\n{SLOW_EVALUATION}")
    assert "Stopped after step 13 of 40 and saved." in stopped.stderr
    process = begin(tmp_path, UNITS["none"], "--max_steps=13", prelude=SLOW_EVALUATION)
    while process.poll() is None and "Resuming after step 13." not in process.output():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert not (folder(tmp_path) / "results.json").exists()
    assert [line["step"] for line in lines_of(tmp_path)] == [10]
    ended = run(tmp_path, UNITS["none"], "--max_steps=13", prelude=SLOW_EVALUATION)
    assert ended.returncode == 0, ended.stderr
    assert [line["step"] for line in lines_of(tmp_path)] == [10, 13]


SIGNALS = [getattr(signal, f"SIG{name}") for name in ("INT", "TERM", "HUP", "USR1", "USR2", "XCPU")]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_once_and_acts_at_once_the_second_time(number):
    missed = []
    before = signal.signal(number, lambda *_: missed.append(number))
    try:
        with signals.noted() as noted:
            assert not noted
            os.kill(os.getpid(), number)
            assert noted == [number]
            if number == signal.SIGXCPU:  # the system repeats it
                os.kill(os.getpid(), number)
                assert noted == [number]
            else:
                assert signal.getsignal(number) == signal.SIG_DFL
        os.kill(os.getpid(), number)
        assert missed == [number]  # the handler of before is back
        signal.signal(number, signal.SIG_IGN)
        with signals.noted() as noted:
            os.kill(os.getpid(), number)
            assert not noted
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", SIGNALS[:2])
def test_a_second_signal_is_the_notebooks_in_a_notebook(number, monkeypatch):
    monkeypatch.setattr(sys, "ps1", "In : ", raising=False)
    seen = []
    before = signal.signal(number, lambda *_: seen.append(number))
    try:
        with signals.noted() as noted:
            os.kill(os.getpid(), number)
            assert noted == [number] and not seen
            os.kill(os.getpid(), number)
            assert seen == [number]
    finally:
        signal.signal(number, before)


def test_the_message_of_sigxcpu_promises_nothing_of_its_repetitions(capfd):
    with signals.noted():
        os.kill(os.getpid(), signal.SIGXCPU)
    assert capfd.readouterr().err == "\nStopping after this step.\n"


def in_first_process(program):
    """Runs a program as the first process of a container. Returns: the finished process."""
    alone = ["unshare", "--pid", "--fork"]
    if not shutil.which("unshare") or subprocess.run([*alone, "true"]).returncode:
        pytest.skip("needs Linux, and root")
    start = f"import os, sys; sys.path.insert(0, {str(ROOT)!r}); from harness import signals"
    command = [*alone, sys.executable, "-c", f"{start}\nassert os.getpid() == 1\n{program}"]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("within, number", [
    *(("interrupts_end_it", number) for number in SIGNALS),
    *(("noted", number) for number in SIGNALS if number != signal.SIGXCPU),
])  # fmt: skip
def test_a_signal_ends_the_first_process_of_a_container(within, number):
    """For which the system has no default actions: at the start, and the second time later."""
    twice = f"os.kill(1, {number:d}); os.kill(1, {number:d}); print('still here')"
    # These tests may be started with nohup.
    default = f"import signal; signal.signal({number:d}, signal.SIG_DFL)"
    ended = in_first_process(f"{default}\nwith signals.{within}(): {twice}")
    assert ended.returncode == 128 + number and not ended.stdout, ended.stderr


@pytest.mark.slow
def test_a_signal_that_is_ignored_from_the_start_stays_ignored(tmp_path):
    """As nohup arranges for SIGHUP, and a script's `train.py &` for SIGINT."""
    ignored = "import signal; [signal.signal(n, signal.SIG_IGN) for n in (1, 2)]"
    process = begin(tmp_path, "--max_steps=10", OFTEN, prelude=ignored)
    assert await_checkpoint_after(0, tmp_path, process)
    for number in (signal.SIGHUP, signal.SIGINT):
        process.send_signal(number)
    process.communicate()
    assert process.returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="needs an x86 processor")
def test_onednn_is_used_unless_the_user_turns_it_off(tmp_path):
    """Its kernels round differently, so the weights tell whether it was used."""
    weights = []
    for chosen, used in ((None, "1"), ("0", "0")):
        logdir = tmp_path / used
        finished = run_afresh(logdir, *GIVEN, "--max_steps=1", TF_ENABLE_ONEDNN_OPTS=chosen)
        assert finished.returncode == 0, finished.stderr
        assert results_in(folder(logdir))["machine"]["onednn"] == used
        weights.append(tensors(folder(logdir)))
    assert weights[0] != weights[1]


@pytest.mark.slow
def test_another_programs_compiler_flags_change_no_bit(undisturbed, tmp_path):
    """They would compile the whole graph, which rounds differently, and takes six times as long."""
    compiled = {"TF_XLA_FLAGS": "--tf_xla_auto_jit=2 --tf_xla_cpu_global_jit"}
    finished = run_afresh(tmp_path, *GIVEN, UNITS["none"], LENGTH, **compiled)
    assert finished.returncode == 0 and "TF_XLA_FLAGS is ignored" in finished.stderr
    assert_same_outcome(outcome(tmp_path), undisturbed("none"))


@pytest.mark.slow
def test_a_clock_that_is_set_back_changes_no_result(two_checkpoints, undisturbed, tmp_path):
    """The names of event files begin with the time: here those before are an hour ahead."""
    for path in folder(tmp_path).glob("events.out.tfevents.*"):
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


def test_a_second_process_is_refused_and_a_batch_systems_signal_ends_the_first(tmp_path):
    folder(tmp_path).mkdir()
    (folder(tmp_path) / owner.LOCK).write_text("4711 somewhere")  # another program's: no process
    first = begin(tmp_path, "--num_epochs=1000", OFTEN)
    assert await_checkpoint_after(0, tmp_path, first)
    second = run(tmp_path, "--max_steps=1")
    assert_one_sentence(second, "another process", "--run_name")
    assert second.returncode == InUse.exit_code == 4
    assert first.poll() is None
    first.send_signal(signal.SIGUSR1)
    _, errors = first.communicate()
    assert first.returncode == 128 + signal.SIGUSR1
    assert f"Stopped after step {steps_saved(tmp_path)[-1]}" in errors


@pytest.mark.parametrize("number, words", [
    (errno.ENOLCK, "no file locks .*Choose a --logdir"),
    (errno.EACCES, r"cannot be locked \(Permission denied\): another process .* choose a --logdir"),
])  # fmt: skip
def test_a_file_system_without_locks_is_named_as_such(number, words, monkeypatch, tmp_path):
    """The lowest call, fcntl.flock, fails as it does on such a file system."""

    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(owner.fcntl, "flock", flock)
    refused = pytest.raises(Failed, match=words)
    with refused, owner.claimed(tmp_path / "run"):
        pass


def test_other_flags_are_refused_with_both_values_and_overwrite_starts_afresh(
    two_checkpoints, tmp_path
):
    before = tensors(folder(tmp_path))
    refused = run(tmp_path, UNITS["none"], "--max_steps=40", "--seed=2", "--lr=0.01")
    before_flags, now = "--learning_rate=0.001 --seed=0", "not --learning_rate=0.01 --seed=2"
    assert_one_sentence(refused, before_flags, now)
    shorter = run(tmp_path, UNITS["none"], "--max_steps=15")
    assert_one_sentence(shorter, "20 steps", "--overwrite")
    assert tensors(folder(tmp_path)) == before
    notes = [folder(tmp_path) / name for name in ("notes.txt", "results.csv")]
    for note in notes:
        note.write_text("the user's own")
    afresh = run(tmp_path, "--max_steps=1", "--seed=2", "--overwrite")
    assert afresh.returncode == 0 and "Resuming" not in afresh.stdout, afresh.stderr
    assert all(note.exists() for note in notes) and steps_saved(tmp_path) == [1]
    assert len(list(folder(tmp_path).glob("events.out.tfevents.*"))) == 1
    assert evaluation_log.curves(folder(tmp_path))["loss_total"][0] == [1]


@pytest.mark.slow
def test_the_same_data_in_another_folder_is_no_difference(fashion_mnist, tmp_path):
    def trained(*arguments):
        return run_train(f"--logdir={tmp_path}", "--run_name=run", "--batch_size=8",
                         "--holdout=1000", *arguments)  # fmt: skip

    there = os.environ.get(data.FOLDER_VARIABLE) or download.cache_folder()
    here = tmp_path / "here"
    shutil.copytree(there, here)
    assert trained("--max_steps=1", "--dataset=fashion_mnist").returncode == 0
    again = trained("--max_steps=2", "--dataset=fashion_mnist", f"--data_dir={here}")
    assert again.returncode == 0 and "Resuming after step 1." in again.stdout, again.stderr
    labels = here / "train-labels-idx1-ubyte.gz"
    content = bytearray(gzip.decompress(labels.read_bytes()))
    content[8] = (content[8] + 1) % 10
    labels.write_bytes(gzip.compress(bytes(content)))
    other = trained("--max_steps=3", "--dataset=fashion_mnist", f"--data_dir={here}")
    assert_one_sentence(other, str(here), "not the official Fashion-MNIST")
    other = trained("--max_steps=3", f"--data_dir={here}")
    assert other.returncode == 1 and "Traceback" not in other.stderr
    official, other_data = (
        f"--tasks={tasks} dataset {name} .*data [0-9a-f]{{16}}"
        for tasks, name in (("article,group", "fashion_mnist"), ("label", "here-custom"))
    )
    assert re.search(f"started with {official}, not {other_data}", other.stderr), other.stderr


def test_tensorboard_shows_the_flags_of_the_command_that_resumed_a_run(two_checkpoints, tmp_path):
    """On the HParams page, which compares runs by them, and as text."""
    assert run(tmp_path, UNITS["none"], "--max_steps=21").returncode == 0
    events = plugin_event_accumulator.EventAccumulator(str(folder(tmp_path))).Reload()
    shown = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    flags = plugin_data_pb2.HParamsPluginData.FromString(shown).session_start_info.hparams
    assert flags["max_steps"].number_value == 21
    assert events.Tensors("_hparams_/session_start_info")
    texts = [event.tensor_proto.string_val[0] for event in events.Tensors("run/text_summary")]
    assert b"**max_steps** 21" in texts[-1]


# --- Faults ---


def limited(number_of_bytes):
    """Python ignores SIGXFSZ, so that writing more than this fails, as on a full disk."""
    return f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({number_of_bytes},) * 2)"


# TensorFlow's thread writes by itself, every two minutes: here after each event. The next one
# then raises its error.
WRITES_AT_ONCE = """
import time
import tensorflow.compat.v1 as tf
make = tf.summary.FileWriter
def at_once(folder):
    writer = make(folder, flush_secs=0)
    add = writer.add_summary
    writer.add_summary = lambda *args: (add(*args), time.sleep(0.2))
    return writer
tf.summary.FileWriter = at_once
"""


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["checkpoint", "events", "events between evaluations"])
def test_a_full_disk_ends_the_run_and_harms_no_checkpoint(fault, two_checkpoints, tmp_path):
    before = tensors(folder(tmp_path))
    # A checkpoint has 78 MB, the graph in an event file a few hundred thousand bytes.
    limit = limited(20_000_000 if fault == "checkpoint" else 10_000)
    if fault == "events between evaluations":
        limit += f"\n{WRITES_AT_ONCE}"
    failed = run(tmp_path, UNITS["none"], LENGTH, "--save_checkpoint_secs=1", prelude=limit)
    what = "the checkpoint" if fault == "checkpoint" else "the event file"
    sentence = f"{folder(tmp_path)}: {what} cannot be written"
    assert_one_sentence(failed, sentence, "File too large", "same command")
    assert tensors(folder(tmp_path)) == before and steps_saved(tmp_path) == [10, 20]


@pytest.mark.slow
def test_a_log_folder_that_vanishes_ends_the_run(tmp_path):
    process = begin(tmp_path, "--num_epochs=1000", OFTEN)
    assert await_checkpoint_after(0, tmp_path, process)
    shutil.rmtree(folder(tmp_path), ignore_errors=True)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert "Traceback" not in errors
    assert str(folder(tmp_path)) in errors.splitlines()[-1]


def test_a_log_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    for logdir in ("/proc/logs", tmp_path / "file" / "logs"):  # where even root makes nothing
        assert_one_sentence(run(logdir), str(logdir).removesuffix("/logs"))


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


def graph_of(unit):
    tasks = [(task.name, len(task.classes)) for task in data.TASKS[:2]]
    return model.build(tasks, config_of(unit)).graph


@pytest.fixture(scope="module")
def graph_without_units():
    return graph_of(None)


@pytest.mark.slow
@pytest.mark.parametrize("fault", SPOILT)
def test_a_damaged_checkpoint_is_found_out(fault, two_checkpoints, graph_without_units, tmp_path):
    SPOILT[fault](folder(tmp_path) / "model.ckpt-20")
    with graph_without_units.as_default(), pytest.warns(UserWarning, match="ckpt-20: damaged"):
        newest, _ = checkpoint_files.newest_whole(folder(tmp_path))
    assert newest == str(folder(tmp_path) / "model.ckpt-10")


@pytest.mark.slow
def test_a_checkpoint_of_another_network_is_refused(saved_twice):
    refused = pytest.raises(Failed, match="model.ckpt-20: not a checkpoint of this network")
    with graph_of("channel").as_default(), refused:
        checkpoint_files.newest_whole(folder(saved_twice))


@pytest.mark.slow
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(
    two_checkpoints, undisturbed, tmp_path
):
    # Somebody's copy of an event file is not TensorBoard's, and not the program's.
    (folder(tmp_path) / "events.out.tfevents.bak").touch()
    SPOILT["truncated"](folder(tmp_path) / "model.ckpt-20")
    finished = run(tmp_path, UNITS["none"], LENGTH, "--keep_checkpoints=2")
    assert finished.returncode == 0, finished.stderr
    assert "WARNING" in finished.stderr and "model.ckpt-20" in finished.stderr
    assert steps_saved(tmp_path) == [10, STEPS]  # the damaged one is deleted first
    assert "Resuming after step 10." in finished.stdout
    assert_same_outcome(outcome(tmp_path), undisturbed("none"))


def test_a_run_with_more_epochs_is_not_finished_until_it_ends(two_checkpoints, tmp_path):
    process = begin(tmp_path, UNITS["none"], "--num_epochs=1000", OFTEN)
    assert await_checkpoint_after(20, tmp_path, process)
    process.kill()
    process.communicate()
    given = (UNITS["none"], "--max_steps=20")
    assert_one_sentence(run(tmp_path, *given, "--eval_only"), "not a finished run")
    served = tmp_path / "served"
    # The killed process's lock is none.
    exported = run(tmp_path, *given, f"--export_dir={served}")
    assert_one_sentence(exported, "more than the 20 of this command")
    assert not served.exists()
    towers = run(tmp_path, "--seed=1", f"--init_from={folder(tmp_path)}",
                 "--run_name=synthetic-other")  # fmt: skip
    assert_one_sentence(towers, "not the folder of a finished run")


def test_other_classes_of_a_task_are_refused(two_checkpoints, tmp_path):
    other = "data.TASKS = (data.TASKS[0], data.TASKS[1]._replace(from_article=(0, 1, 2, 0, 1) * 2))"
    refused = run(tmp_path, UNITS["none"], "--max_steps=30", prelude=other)
    assert_one_sentence(refused, "was started with classes ", "--overwrite")
    settings = folder(tmp_path) / "settings.json"
    known = json.loads(settings.read_text())
    del known["classes"]  # as an earlier version wrote it
    settings.write_text(json.dumps(known))
    finished = run(tmp_path, UNITS["none"], "--max_steps=20", prelude=other)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize("numerics", [NUMERICS - 1, None])  # the first settings did not name them
def test_a_run_of_other_numerics_is_not_trained_on_but_evaluated(
    numerics, two_checkpoints, tmp_path
):
    settings, before = folder(tmp_path) / "settings.json", tensors(folder(tmp_path))
    known = json.loads(settings.read_text())
    assert known.pop("numerics") == NUMERICS
    settings.write_text(json.dumps(known | ({"numerics": numerics} if numerics else {})))
    refused = run(tmp_path, UNITS["none"], "--max_steps=30")
    assert_one_sentence(refused, f"numerics {numerics or 1}, and", f"numerics {NUMERICS}.")
    assert tensors(folder(tmp_path)) == before
    assert run(tmp_path, UNITS["none"], "--max_steps=20", "--eval_only").returncode == 0


def test_the_bar_of_a_resumed_run_shows_its_loss_and_the_rate_of_this_process():
    progress = Progress("some", 907, 1000)
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


def test_a_run_notes_its_step_where_others_can_read_it_until_it_ends(tmp_path):
    note = tmp_path / "progress.json"
    with owner.claimed(tmp_path) as claim:
        progress = Progress("some", 7, 100, claim)
        progress.add_step(32, 1.5, 0.01)
        assert files.read_json(note) == {"first_step": 7, "step": 8, "last_step": 100}
        progress.close()
    assert not note.exists()


def test_speed_leaves_out_the_first_step_and_counts_from_the_last_evaluation():
    progress = Progress("some", 0, 100)
    assert progress.add_evaluation({}) is None  # which a signal stopped in an earlier process
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
    before = tensors(folder(tmp_path))
    assert_one_sentence(run(tmp_path, "--max_steps=9"), "synthetic-run", "--run_name")
    assert tensors(folder(tmp_path)) == before


def test_a_loss_that_is_no_number_ends_the_run_at_its_step(tmp_path):
    diverged = run(tmp_path, "--learning_rate=1e9", LENGTH, "--save_checkpoint_secs=1e-9")
    assert_one_sentence(diverged, "NaN or infinite at step", "--learning_rate=1000000000.0 (0.001)")
    assert diverged.returncode == Diverged.exit_code == 3
    assert steps_saved(tmp_path)
    for step in steps_saved(tmp_path):
        reader = tf.train.load_checkpoint(str(folder(tmp_path) / f"model.ckpt-{step}"))
        for name in reader.get_variable_to_shape_map():
            assert np.all(np.isfinite(reader.get_tensor(name))), name


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 2])  # with 2, step 1 is to be saved, but not evaluated
def test_weights_poisoned_by_a_step_are_not_saved(steps, tmp_path):
    # Beyond float32: the first loss is still finite, and nothing after its step is.
    unchecked = "from harness import flag_checks; flag_checks.LARGEST = 1e40"
    given = ("--learning_rate=1e39", f"--max_steps={steps}", "--save_checkpoint_secs=1e-9")
    poisoned = run(tmp_path, *given, prelude=unchecked)
    assert_one_sentence(poisoned, "weights", "step 1", "--learning_rate=1e+39 (0.001)")
    assert poisoned.returncode == 3
    assert steps_saved(tmp_path) == []


# --- File systems ---


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_fsync_a_file_is_written_and_with_a_full_disk_it_is_not(
    number, monkeypatch, tmp_path
):
    def fails_with(number):
        def fsync(_):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", fsync)

    fails_with(number)
    files.write(tmp_path / "settings.json", "new")
    assert (tmp_path / "settings.json").read_text() == "new"
    with evaluation_log.EvaluationLog(tmp_path, 0, 10) as log:
        log.append(10, {"loss_total": 1.5})
        log.sync()
        assert evaluation_log.curves(tmp_path) == {"loss_total": ([10], [1.5])}
        fails_with(errno.ENOSPC)
        with pytest.raises(CannotWrite, match="No space left"):
            log.sync()
    with pytest.raises(OSError, match="No space left"):
        files.write(tmp_path / "settings.json", "newer")
    assert (tmp_path / "settings.json").read_text() == "new"


def test_a_run_whose_file_system_has_no_fsync_trains(tmp_path):
    without = (
        "import errno, os\ndef fsync(_): raise OSError(errno.EINVAL, 'Invalid argument')\n"
        "os.fsync = fsync"
    )
    finished = run(tmp_path, "--max_steps=1", prelude=without)
    assert finished.returncode == 0, finished.stderr
    assert results_in(folder(tmp_path))["global_step"] == 1


@pytest.mark.parametrize("name", [owner.LOCK, evaluation_log.NAME, predictions.NAME])
def test_a_file_system_that_cannot_append_is_named_before_any_training(name, tmp_path):
    """As the mount of an object store."""
    cannot = (
        "import builtins, errno, os; opened = open\n"
        "def open_whole(path, mode='r', *a, **k):\n"
        f"    if 'a' in mode and str(path).endswith({name!r}):\n"
        "        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), str(path))\n"
        "    return opened(path, mode, *a, **k)\n"
        "builtins.open = open_whole"
    )
    refused = run(tmp_path, "--max_steps=1", prelude=cannot)
    assert_one_sentence(refused, f"{folder(tmp_path) / name}: ", "cannot add to files", "--logdir")
    assert not steps_saved(tmp_path) and "|ETA " not in refused.stderr  # the bar of a training


# --- What stands beside a run ---

CANNOT_DRAW = "import matplotlib.figure; matplotlib.figure.Figure.savefig = None"


@pytest.mark.slow
def test_a_run_whose_every_picture_fails_ends_in_the_same_bits(undisturbed, tmp_path):
    finished = run(tmp_path, UNITS["channel"], LENGTH, prelude=CANNOT_DRAW)
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr.count("TensorBoard will show no pictures") == 1
    assert_same_outcome(outcome(tmp_path), undisturbed("channel"))


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "\0" * 100, None])
def test_a_damaged_or_missing_record_is_an_empty_one(content, tmp_path):
    """As a power cut may leave it."""
    if content is not None:
        (tmp_path / "settings.json").write_text(content)
    assert files.read_json(tmp_path / "settings.json") == {}


def test_a_copy_without_settings_and_an_index_goes_on_from_the_checkpoint_before(
    two_checkpoints, tmp_path
):
    for name in ("settings.json", "model.ckpt-20.index"):
        (folder(tmp_path) / name).unlink()
    finished = run(tmp_path, UNITS["none"], "--max_steps=21")
    assert finished.returncode == 0 and "Resuming after step 10." in finished.stdout
    warned = " ".join(finished.stderr.split())
    for name in ("settings.json", "model.ckpt-20"):
        assert f"WARNING: {folder(tmp_path) / name}: " in warned
    # The settings are there again.
    refused = run(tmp_path, UNITS["none"], "--max_steps=21", "--learning_rate=0.5")
    assert_one_sentence(refused, "--learning_rate")


def test_whoever_reads_a_copy_of_a_run_gets_the_copys_checkpoint(two_checkpoints, tmp_path):
    """The original was in another folder, which is no longer there."""
    newest = tf.train.latest_checkpoint(str(folder(tmp_path)))
    assert newest == str(folder(tmp_path) / "model.ckpt-20")


# Earlier versions wrote absolute paths.
ELSEWHERE = b"""model_checkpoint_path: "/gone/model.ckpt-20"
all_model_checkpoint_paths: "/gone/model.ckpt-20"
"""


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", ELSEWHERE])
def test_a_damaged_list_of_checkpoints_hides_none(content, two_checkpoints, tmp_path):
    """TensorFlow's file `checkpoint`, of which a power cut may leave an empty one."""
    (folder(tmp_path) / "checkpoint").write_bytes(content)
    assert checkpoint_files.steps_saved(folder(tmp_path)) == {10, 20}
    assert run_folder.results_of_finished(folder(tmp_path))["global_step"] == 20


def test_a_kill_while_a_checkpoint_is_deleted_leaves_none_that_seems_another_runs(
    monkeypatch, tmp_path
):
    """Its note says whose it is, and is of use as long as the index is there."""
    endings = ["index", "data-00000-of-00001", "json"]
    for ending in endings:
        (tmp_path / f"model.ckpt-10.{ending}").touch()
    deleted, unlink = [], type(tmp_path).unlink
    monkeypatch.setattr(type(tmp_path), "unlink", lambda p: (deleted.append(p.suffix), unlink(p)))
    checkpoint_files.delete(tmp_path / "model.ckpt-10")
    assert deleted[1:] == [".index", ".json"] and not list(tmp_path.iterdir())


def test_a_run_that_trains_on_loses_the_predictions_of_the_network_before(
    two_checkpoints, tmp_path
):
    table = folder(tmp_path) / predictions.TABLE
    table.touch()
    refused = run(tmp_path, UNITS["none"], "--max_steps=10")
    assert_one_sentence(refused, "has 20 steps, more than the 10")
    assert table.exists()
    assert run(tmp_path, UNITS["none"], "--max_steps=21").returncode == 0
    assert not table.exists()


def test_images_of_ones_own_may_be_in_a_folder_of_another_name(tmp_path):
    settings = {"dataset": "one-custom", "data": "1", "shape": "8x8x1", "classes": "2"}
    files.write_json(tmp_path / "settings.json", settings)
    (tmp_path / "model.ckpt-1.index").touch()
    defaults = {"tasks": "a,b", "hard_sharing": False, "share_until": None}
    run_folder.check_settings(tmp_path, settings | {"dataset": "two-custom"}, defaults)
    for name, value in {"data": "3", "shape": "4x16x1"}.items():
        with pytest.raises(Failed, match=f"started with {name} .*, not {name} {value}"):
            run_folder.check_settings(tmp_path, settings | {name: value}, defaults)
    del settings["shape"]  # which earlier versions did not record
    files.write_json(tmp_path / "settings.json", settings)
    run_folder.check_settings(tmp_path, settings | {"shape": "8x8x1"}, defaults)


def test_towers_that_were_trained_on_other_images_are_warned_of(recwarn, tmp_path):
    """Or of these, some may be held out now."""
    source = tmp_path / "alone"
    chosen = {"seed": 0, "train_examples": 0, "starve": 1, "label_only": None}
    settings = {"tasks": "a,b", "share_until": None, "hard_sharing": False, "holdout": 0,
                "dataset": "mine-custom", "classes": "2", "data": "1", **chosen}  # fmt: skip
    files.write_json(source / "settings.json", settings | {"cross_stitch": False})
    files.write_json(source / "results.json", {"global_step": 1})
    (source / "model.ckpt-1.index").touch()
    now = settings | {"init_from": str(source), "cross_stitch": True}
    for other, is_warned_of in (
        ({}, False),
        ({"dataset": "moved-custom"}, False),
        ({"data": "2", "seed": 1}, False),
        ({"data": "2"}, True),
    ):
        recwarn.clear()
        assert run_folder.init_folder(tmp_path / "run", now | other, dict(chosen)) == source
        assert ["other images" in str(one.message) for one in recwarn] == [True] * is_warned_of


def test_a_finished_run_whose_results_are_damaged_is_evaluated_again(two_checkpoints, tmp_path):
    path = folder(tmp_path) / "results.json"
    before = json.loads(path.read_text())
    path.write_text("{")
    finished = run(tmp_path, UNITS["none"], "--max_steps=20")
    assert finished.returncode == 0, finished.stderr
    after = json.loads(path.read_text())
    for name in ("accuracy_test", "accuracy_test_last", "confusion", "global_step", "loss_total"):
        assert after[name] == before[name], name


def test_results_need_no_event_files_and_come_even_without_evaluations(two_checkpoints, tmp_path):
    path = folder(tmp_path) / "results.json"
    before = json.loads(path.read_text())
    for lost in ("events.*", evaluation_log.NAME):
        path.unlink()
        for file in folder(tmp_path).glob(lost):
            file.unlink()
        finished = run(tmp_path, UNITS["none"], "--max_steps=20")
        assert finished.returncode == 0, finished.stderr
        after = json.loads(path.read_text())
        assert after["accuracy_test"] == pytest.approx(before["accuracy_test"])
        assert after["confusion"] == before["confusion"]
        if lost == "events.*":
            assert after["accuracy_test_last"] == before["accuracy_test_last"]
            assert "WARNING" not in without_compiler(finished.stderr)
        else:
            # As of a run that an earlier version made.
            assert f"{evaluation_log.NAME}: lacks 2 evaluations" in " ".join(
                finished.stderr.split()
            )


@pytest.mark.parametrize("lost, words", [
    ("*.index", "no checkpoint of this run can be read"), ("model.ckpt-*", "its checkpoints are gone"),
    ("*c*kp*", "its checkpoints are gone"),  # and the list of them
])  # fmt: skip
def test_a_copy_without_its_checkpoints_is_not_trained_anew(lost, words, two_checkpoints, tmp_path):
    for path in folder(tmp_path).glob(lost):
        path.unlink()
    left = set(folder(tmp_path).iterdir())
    refused = run(tmp_path, UNITS["none"], "--max_steps=30")
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert words in refused.stderr.splitlines()[-1]
    assert left <= set(folder(tmp_path).iterdir())


@pytest.mark.slow
def test_an_export_of_an_older_checkpoint_names_its_step(two_checkpoints, tmp_path):
    SPOILT["truncated"](folder(tmp_path) / "model.ckpt-20")
    served = tmp_path / "served"
    exported = run(tmp_path, UNITS["none"], "--max_steps=20", f"--export_dir={served}")
    assert exported.returncode == 0 and "model.ckpt-20:" in exported.stderr
    assert json.loads((served / "run.json").read_text())["global_step"] == 10
    assert "step 20 is damaged, so this is the network of step 10" in " ".join(
        exported.stderr.split()
    )
    # As the message says, the last steps can be made again.
    before = folder(tmp_path) / "results.json"
    accuracies = json.loads(before.read_text())["accuracy_test_last"]
    before.unlink()
    assert run(tmp_path, UNITS["none"], "--max_steps=20").returncode == 0
    assert json.loads(before.read_text())["accuracy_test_last"] == accuracies
    evaluated = run(tmp_path, UNITS["none"], "--max_steps=20", "--eval_only")
    assert evaluated.returncode == 0 and "damaged" not in evaluated.stderr
