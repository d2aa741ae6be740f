"""train.py and study/plot.py from the command line, as a user meets them."""

import fcntl
import io
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from unittest import mock

import matplotlib.image
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import (
    CHANNEL,
    GIVEN,
    NONE,
    OFFLINE,
    ROOT,
    SECONDS,
    SMALL,
    STEPS,
    command_of,
    run_script,
    run_train,
    with_variables,
)
from tensorboard.backend.event_processing import event_accumulator

import data
import model
import train
from harness import (
    checkpoint_files,
    download,
    files,
    flag_checks,
    flag_rules,
    machine,
    matrices,
    names,
    predictions,
    process,
)
from harness.errors import Failed
from harness.events import Events
from harness.export import Export
from harness.folder import check_path, differing

README = ROOT / "README.md"
TASK_NAMES = ["article", "group"]
THIRD_TASK = (
    "import data; data.TASKS += (data.Task('season', ('summer', 'winter', 'any'),"
    " (0, 2, 1, 0, 1, 0, 2, 2, 2, 1)),)"
)


def run(logdir, *arguments, prelude="", **options):
    """A run on few drawn images."""
    given = (f"--logdir={logdir}", "--dataset=synthetic", *arguments)
    return run_train(*given, prelude=f"{SMALL}\n{prelude}", **options)


def run_afresh(logdir, *arguments, prelude="", **environment):
    """As `run`, in a process of its own, as a user starts it."""
    given = (f"--logdir={logdir}", "--dataset=synthetic", *arguments)
    return run_script("train.py", *given, prelude=f"{SMALL}\n{prelude}", **environment)


def results_in(run_dir):
    return json.loads((run_dir / "results.json").read_text())


def only_run(finished, logdir):
    """The one run below a log folder, which must have ended well. Returns: folder, results."""
    assert finished.returncode == 0, finished.stderr
    (run_dir,) = logdir.iterdir()
    return run_dir, results_in(run_dir)


def read_scalars(run_dir):
    """Tag -> list of (step, value)."""
    events = event_accumulator.EventAccumulator(str(run_dir), {event_accumulator.SCALARS: 0})
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()[event_accumulator.SCALARS]
    }


def tensors(run_dir):
    """Name -> bytes of every value in a folder's last checkpoint."""
    # By its name, as the file `checkpoint` of a copy may name the original's.
    newest = max(run_dir.glob("model.ckpt-*.index"), key=checkpoint_files.step_of)
    reader = tf.train.load_checkpoint(str(newest.with_suffix("")))
    return {name: reader.get_tensor(name).tobytes() for name in reader.get_variable_to_shape_map()}


def assert_one_sentence(finished, *words):
    assert finished.returncode != 0
    for word in words:
        assert word in finished.stderr
    assert "Traceback" not in finished.stderr
    lines = without_compiler(finished.stderr).strip().splitlines()
    # Without the bar, which is drawn the more often the slower the machine is.
    assert len([line for line in lines if "|ETA " not in line]) <= 3, finished.stderr


def without_compiler(text):
    """The text without two lines that TensorFlow 2.15 writes whatever the log level says."""
    text = re.sub("WARNING: All log messages before absl.*\n", "", text)
    return re.sub(r"I0000 .*Compiled cluster using XLA!.*\n", "", text)


def run_dirs(logdir):
    return sorted(path.name for path in logdir.iterdir())


# --- Device ---

# A machine with a GPU, for all that train.py asks; TensorFlow then computes on the CPU.
WITH_GPU = """
import tensorflow as tf
devices = tf.config.list_physical_devices
tf.config.list_physical_devices = lambda kind=None: ["GPU"] if kind == "GPU" else devices(kind)
tf.config.experimental.get_device_details = lambda gpu: {"device_name": "Test GPU"}
hidden = []
def set_visible_devices(visible, kind):
    assert kind == "GPU"
    hidden.append(not visible)
tf.config.set_visible_devices = set_visible_devices
"""
# What every session is told: how many GPUs it may use, and whether some were hidden before.
SESSIONS = """
from tensorflow.compat.v1 import Session
begin = Session.__init__
def noted(self, *args, **kwargs):
    config = kwargs["config"]
    count = dict(config.device_count).get("GPU")
    with open("sessions", "a") as file:
        file.write(f"{count} {hidden} {config.gpu_options.allow_growth}\\n")
    begin(self, *args, **kwargs)
Session.__init__ = noted
"""


def on_gpu_machine(logdir, *arguments):
    given = ("--run_name=synthetic-run", "--eval_every=2", *arguments)
    prelude = f"{WITH_GPU}\nimport os; os.chdir({str(logdir.parent)!r})\n{SESSIONS}"
    return run(logdir, *given, prelude=prelude)


@pytest.mark.slow
def test_without_the_flag_no_session_sees_a_gpu_and_a_run_stays_on_its_device(tmp_path):
    logdir = tmp_path / "logs"
    finished = on_gpu_machine(logdir, "--max_steps=1", f"--export_dir={tmp_path / 'served'}")
    assert finished.returncode == 0, finished.stderr
    assert results_in(logdir / "synthetic-run")["device"] == "cpu"
    of_training_start_weights_and_export = ["0 [True] False"] * 3
    shown = (tmp_path / "sessions").read_text().splitlines()
    assert shown == of_training_start_weights_and_export
    refused = on_gpu_machine(logdir, "--max_steps=4", "--device=gpu")
    assert_one_sentence(refused, "--device=cpu, not --device=gpu")
    # A finished one is evaluated on any.
    evaluated = on_gpu_machine(logdir, "--eval_only", "--device=gpu")
    assert evaluated.returncode == 0 and "Evaluated:" in evaluated.stdout, evaluated.stderr


@pytest.mark.slow
def test_a_run_on_a_gpu_trains_the_plain_graph_and_resumes_with_the_same_bits(tmp_path):
    values = []
    for name, lengths in (("once", [2]), ("resumed", [1, 2])):
        (tmp_path / name).mkdir()
        for steps in lengths:
            finished = on_gpu_machine(
                tmp_path / name / "logs", "--device=gpu", f"--max_steps={steps}"
            )
            assert finished.returncode == 0, finished.stderr
        run_dir = tmp_path / name / "logs" / "synthetic-run"
        values.append(tensors(run_dir))
        sessions = (tmp_path / name / "sessions").read_text().splitlines()
        assert set(sessions) == {"None [] True"}  # all GPUs are there, with memory as needed
    assert values[0] == values[1]
    assert results_in(run_dir)["device"] == "Test GPU"
    graph = event_accumulator.EventAccumulator(str(run_dir)).Reload().Graph()
    types = {node.op for node in graph.node}
    assert "MaxPool" in types and not types & {"PartitionedCall", "StatefulPartitionedCall"}


def test_without_a_gpu_the_flag_says_what_to_do(tmp_path):
    refused = run(tmp_path, "--device=gpu", CUDA_VISIBLE_DEVICES="-1")
    assert_one_sentence(refused, "--device=gpu: TensorFlow finds no GPU", "leave out the flag")
    assert not list(tmp_path.iterdir())


# --- What another program has set, and where this one stands ---


C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
# Names of classes that look like formulas, or that a terminal cannot show; and tensorflow-cpu,
# which has the module tensorflow, but no metadata of that name.
ODD_NAMES = """
names = ('$', '$$', '$$$', 'a_$x$', '\\u88d9\\u5b50', 'Kn\\u00f6pfe', *'ghij')
data.TASKS = (data.TASKS[0]._replace(classes=names), *data.TASKS[1:])
import importlib.metadata as metadata; version = metadata.version
def of_distribution(name):
    if name == 'tensorflow': raise metadata.PackageNotFoundError(name)
    return version(name)
metadata.version = of_distribution
"""


@pytest.mark.slow
def test_whatever_surrounds_a_run_ends_it_not_and_changes_no_picture(tmp_path):
    """A notebook's backend, another package called harness, another program's compiler flags, no
    `git` and no `tail`, odd names, another distribution of TensorFlow, and no UTF-8."""
    other = tmp_path / "harness"
    other.mkdir()
    (other / "__init__.py").write_text("")
    logdir = tmp_path / "logs"
    environment = {
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "PYTHONPATH": str(tmp_path),
        "XLA_FLAGS": "--no_such_flag=1",
        "TF_XLA_FLAGS": "--no_such_flag=1",
        "COLUMNS": "x",
        "TQDM_MININTERVAL": "x",
        "TQDM_FILE": "x",
        "TF_NUM_INTEROP_THREADS": "abc",
        "OMP_NUM_THREADS": "abc",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "PYTHONSAFEPATH": "1",
        "PYTHONWARNINGS": "error::UserWarning",
        "PATH": "/nowhere",
    }
    finished = run_afresh(logdir, "--max_steps=1", prelude=ODD_NAMES, **environment, **C_LOCALE)
    run_dir, results = only_run(finished, logdir)
    warned = re.findall(r"^WARNING: (.*?),", without_compiler(finished.stderr), re.M)
    ignored = ("XLA_FLAGS", "TF_XLA_FLAGS", "COLUMNS")
    assert warned == [f"{name} is ignored" for name in ignored], finished.stderr
    assert results["machine"]["variables"] == {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    events = event_accumulator.EventAccumulator(str(run_dir)).Reload()
    # Of the units, and for each task a matrix and the worst mistakes.
    assert len(events.Tags()["images"]) == 5
    assert results["commit"] == "unknown" and results["versions"]["tensorflow"] == tf.__version__
    assert "Kn\u00f6pfe" in results["recall"]["article"]
    # A terminal that knows neither the run's name nor those of its classes.
    (tmp_path / "caf\u00e9").symlink_to(logdir)
    evaluated = run_afresh(tmp_path / "caf\u00e9", "--max_steps=1", "--eval_only",
                           prelude=ODD_NAMES, PYTHONIOENCODING="ascii")  # fmt: skip
    assert evaluated.returncode == 0 and "Kn?pfe" in evaluated.stdout, evaluated.stderr


def test_a_name_that_the_locale_cannot_read_is_refused(tmp_path):
    refused = run_afresh(tmp_path, "--run_name=synthetic-caf\u00e9", **C_LOCALE)
    assert_one_sentence(refused, "PYTHONUTF8=1")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone")
def test_any_users_clone_has_a_commit_whatever_git_is_told_and_a_copy_has_none(
    tmp_path, monkeypatch
):
    clone, copy = tmp_path / "clone", tmp_path / "copy"
    subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
    if os.geteuid() == 0:  # only root can give a folder to another user
        subprocess.run(["chown", "-R", "12345", clone], check=True)
    shutil.copytree(clone, copy, ignore=shutil.ignore_patterns(".git"))
    head = subprocess.check_output(["git", "-C", ROOT, "rev-parse", "HEAD"], text=True).strip()
    other = tmp_path / "other"
    subprocess.run(["git", "init", "-q", other], check=True)
    for name, value in (("DIR", ".git"), ("WORK_TREE", "."), ("INDEX_FILE", "index")):
        monkeypatch.setenv(f"GIT_{name}", str(other / value))  # as git does for its hooks
    for folder, version in ((clone, head), (copy, "unknown")):
        monkeypatch.setattr(files, "ROOT", folder)
        assert files.commit() == version
    # What bears on a result, and what does not.
    for file, version in (("README.md", head), ("harness/names.py", f"{head}-dirty")):
        (clone / file).write_text("changed")
        monkeypatch.setattr(files, "ROOT", clone)
        assert files.commit() == version


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone")
def test_what_a_checkout_changes_beside_content_is_no_change(tmp_path):
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
    head = subprocess.check_output(["git", "-C", clone, "rev-parse", "HEAD"], text=True).strip()
    (clone / "model.py").chmod(0o755)
    os.utime(clone / "data.py", (1, 1))
    train_py = clone / "train.py"
    train_py.write_bytes(train_py.read_bytes().replace(b"\n", b"\r\n"))  # as for Windows
    assert files.commit(clone) == head and not files.changed("*.py", folder=clone)
    for path, content in (
        (train_py, train_py.read_bytes() + b"# more\r\n"),
        (clone / "harness" / "new.py", b""),
    ):
        before = path.read_bytes() if path.exists() else None
        path.write_bytes(content)
        assert files.commit(clone) == f"{head}-dirty", path
        assert files.changed("*.py", folder=clone, counts_new=False) == bool(before)
        path.write_bytes(before) if before else path.unlink()
    assert files.commit(clone) == head


@pytest.mark.slow
def test_a_run_with_closed_streams_trains(tmp_path):
    given = (f"--logdir={tmp_path}", "--dataset=synthetic", "--max_steps=1")
    command = shlex.join(command_of("train.py", *given, prelude=SMALL))
    closed = subprocess.run(["sh", "-c", f"{command} 0<&- 1>&- 2>&-"], capture_output=True)
    assert closed.returncode == 0
    (run_dir,) = tmp_path.iterdir()
    assert (run_dir / "results.json").exists()


@pytest.mark.slow
def test_a_run_ends_well_when_whoever_read_its_messages_is_gone(tmp_path):
    """As with `2>&1 | less`, after its end."""
    given = (f"--logdir={tmp_path}", "--dataset=synthetic", "--max_steps=3")
    command = command_of("train.py", *given, prelude=SMALL)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        process.stderr.read(1)  # the bar is there
        process.stderr.close()
        assert process.wait(SECONDS) == 0
    (run_dir,) = tmp_path.iterdir()
    assert results_in(run_dir)["global_step"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("output, reason", [
    ("a closed pipe", "Broken pipe"), ("/dev/full", "No space left on device"),
])  # fmt: skip
def test_a_run_trains_even_if_its_messages_cannot_be_written(output, reason, tmp_path):
    """What it would have printed is in its folder. A finished run has only that to do."""

    def started():
        if output == "/dev/full":
            if not os.path.exists(output):
                pytest.skip("needs Linux")
            stdout = os.open(output, os.O_WRONLY)
        else:
            end, stdout = os.pipe()
            os.close(end)
        given = (f"--logdir={tmp_path}", "--dataset=synthetic", "--max_steps=2")
        command = command_of("train.py", *given, prelude=SMALL)
        try:
            return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True)
        finally:
            os.close(stdout)

    trained = started()
    assert trained.returncode == 0, trained.stderr
    (run_dir,) = tmp_path.iterdir()
    assert results_in(run_dir)["global_step"] == 2
    shown = started()
    assert shown.returncode == 1
    assert shown.stderr.splitlines()[-1] == f"train.py: {reason}"
    assert "Traceback" not in shown.stderr and "Exception ignored" not in shown.stderr


@pytest.mark.slow
def test_too_little_memory_is_said_in_a_sentence(tmp_path):
    prelude = """
import model, resource, tensorflow
build = model.build
def build_in_little_memory(*args, **kwargs):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    net = build(*args, **kwargs)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**28,) * 2)
    import numpy
    numpy.ones(2**30)
model.build = build_in_little_memory
"""
    failed = run(tmp_path, prelude=prelude)
    assert failed.returncode == 1 and "Traceback" not in failed.stderr, failed.stderr
    assert "not enough memory" in failed.stderr.splitlines()[-1]


# --- Runs ---


@pytest.mark.slow
def test_a_short_run_learns_the_real_data(fashion_mnist, tmp_path):
    # Held-out images are the faster ones to evaluate: there are only a thousand.
    finished = run_train(
        f"--logdir={tmp_path}", "--max_steps=80", "--eval_every=40", "--holdout=1000"
    )
    run_dir, results = only_run(finished, tmp_path)
    assert run_dir.name.startswith("fashion_mnist-channel-seed0-")
    assert results["dataset"] == "fashion_mnist"
    assert results["accuracy_test"]["article"] > 0.6  # chance: 0.1
    assert results["accuracy_test"]["group"] > 0.7  # the largest group: 0.4
    losses = read_scalars(run_dir)["summary/loss_total"]
    assert [step for step, _ in losses] == [40, 80]
    assert max(loss for _, loss in losses) < 0.7 * (np.log(10) + np.log(3))  # chance: 3.4


def test_the_command_that_a_run_prints_can_be_pasted(tmp_path):
    logdir = tmp_path / "my logs"
    finished = run(logdir, "--max_steps=1")
    (printed,) = re.findall("^Watch it: (.*)$", finished.stdout, re.M)
    assert shlex.split(printed) == ["tensorboard", f"--logdir={logdir}"]


def test_runs_end_well_and_each_has_a_folder_that_says_what_it_is(runs):
    logdir, processes = runs
    for finished in processes.values():
        assert finished.returncode == 0, finished.stderr
    assert run_dirs(logdir) == [CHANNEL, NONE]


def test_event_files_hold_the_references_tags_at_each_evaluation(runs):
    for name in (CHANNEL, NONE):
        scalars = read_scalars(runs[0] / name)
        for tag in ("accuracy_test", "accuracy_train", "loss_total", "accuracy_test_article",
                    "accuracy_test_group", "images_per_second"):  # fmt: skip
            assert [step for step, _ in scalars[f"summary/{tag}"]] == STEPS, tag
        means = np.mean([[v for _, v in scalars[f"summary/accuracy_test_{task}"]]
                         for task in ("article", "group")], axis=0)  # fmt: skip
        np.testing.assert_allclose([v for _, v in scalars["summary/accuracy_test"]], means, 1e-6)
        # Every test image counted once: a share of 200.
        shares = np.array([v for _, v in scalars["summary/accuracy_test_article"]]) * 200
        np.testing.assert_allclose(shares, np.round(shares), atol=1e-3)


def test_evaluations_are_lines_with_what_tensorboard_shows(runs):
    for run_dir in (runs[0] / CHANNEL, runs[0] / NONE):
        lines = [json.loads(line) for line in (run_dir / "evaluations.jsonl").open()]
        at_start = [0] if run_dir.name == CHANNEL else []  # the units' weights
        assert [line["step"] for line in lines] == at_start + STEPS
        in_file = {
            (name, line["step"]): value
            for line in lines
            for name, value in line.items()
            if name != "step"
        }
        shown = {
            (tag.removeprefix("summary/"), step): value
            for tag, points in read_scalars(run_dir).items()
            for step, value in points
        }
        assert in_file.keys() == shown.keys()
        for key, value in in_file.items():
            assert np.float32(value) == np.float32(shown[key]), key
            assert str(value) == str(float(str(np.float32(value)))), key  # as people write it


@pytest.mark.parametrize("name, units", [(CHANNEL, 3), (NONE, 0)], ids=["channel", "none"])
def test_the_graph_page_opens_to_the_scopes_and_no_more(name, units, runs):
    # As TensorBoard reads it: with the session's own ops, without functions.
    graph = event_accumulator.EventAccumulator(str(runs[0] / name)).Reload().Graph()
    names = [node.name.split("/") for node in graph.node]
    assert {name[0] for name in names} == {
        "placeholder", "network", "loss", "evaluation", "train", "summary"}  # fmt: skip
    layers = ("conv1", "pool_1", "conv2", "pool_2", "flatten", "fc_3", "dropout", "output")
    towers = {f"{layer}_{t}" for layer in layers for t, _ in enumerate(TASK_NAMES, 1)}
    stitches = {f"cross_stitch_{i}" for i in range(1, units + 1)}
    assert {name[1] for name in names if name[0] == "network"} == towers | stitches
    assert {"X", "is_training"} < {name[1] for name in names if name[0] == "placeholder"}
    assert not graph.HasField("library")


def test_results_say_what_happened(runs):
    threads = machine.cores()
    for stitch, name in ((True, CHANNEL), (False, NONE)):
        results, scalars = results_in(runs[0] / name), read_scalars(runs[0] / name)
        assert results["dataset"] == "synthetic" and results["seed"] == 0
        assert results["global_step"] == 5
        assert results["flags"]["cross_stitch"] is stitch
        assert results["flags"]["batch_norm_decay"] == 0.8
        assert results["numerics"] == names.NUMERICS
        assert set(results["versions"]) == {"python", "tensorflow", "tf-slim", "numpy"}
        assert results["machine"]["threads"] == threads and results["machine"]["processor"]
        if (ROOT / ".git").exists():
            head = subprocess.check_output(["git", "-C", ROOT, "rev-parse", "HEAD"], text=True)
            assert results["commit"].removesuffix("-dirty") == head.strip()
        assert list(results["accuracy_test"]) == [*TASK_NAMES, "mean"]
        assert results["images_per_second"] > 0
        # The seconds of 4 steps of training cannot be more than all there were.
        assert 4 * 128 / results["images_per_second"] < results["wall_seconds"]
        for key, tag in (("article", "accuracy_test_article"), ("mean", "accuracy_test")):
            values = [value for _, value in scalars[f"summary/{tag}"]]
            assert results["accuracy_test"][key] == pytest.approx(values[-1], abs=1e-6)
            assert results["accuracy_test_last"][key] == pytest.approx(np.mean(values), abs=1e-6)
        assert results["loss_total"] == pytest.approx(scalars["summary/loss_total"][-1][1])
        expected = ["cross_stitch_1", "cross_stitch_2", "cross_stitch_3"] if stitch else []
        assert list(results["cross_stitch"]) == expected


def test_the_checkpoint_is_the_network_that_the_results_describe(runs, monkeypatch):
    monkeypatch.setattr(data, "SYNTHETIC_SIZES", (1200, 200))
    test = data.load("synthetic", seed=0)
    net = model.build([(task.name, len(task.classes)) for task in test.tasks])
    with tf.Session(graph=net.graph) as session:
        with net.graph.as_default():
            tf.train.Saver().restore(session, tf.train.latest_checkpoint(runs[0] / CHANNEL))
        assert session.run(net.global_step) == 5
        images, labels = test.batch(test.test, slice(None))
        right = session.run(net.predictions, {net.x: images, net.is_training: False})
        stitches = session.run(net.mean_weights)
    results = results_in(runs[0] / CHANNEL)
    for name in right:
        assert np.mean(right[name] == labels[name]) == pytest.approx(results["accuracy_test"][name])
        for index, recall in enumerate(results["recall"][name].values()):
            of_class = labels[name] == index
            assert np.mean(right[name][of_class] == index) == pytest.approx(recall, abs=1e-6)
            for other, count in enumerate(results["confusion"][name][index]):
                assert np.sum(right[name][of_class] == other) == count
    for scope, weights in stitches.items():
        np.testing.assert_allclose(weights, results["cross_stitch"][scope], atol=1e-6)


def test_the_table_shows_the_results(runs):
    logdir, processes = runs
    results = results_in(logdir / CHANNEL)
    table = processes[True].stdout
    for share in results["accuracy_test"].values():
        assert f"{share:.4f}" in table
    row = rf"(?:{'|'.join(TASK_NAMES)})((?: +-?\d\.\d{{3}}){{{len(TASK_NAMES)}}})$"
    shown = [[float(cell) for cell in cells.split()] for cells in re.findall(row, table, re.M)]
    weights = np.concatenate(list(results["cross_stitch"].values()))
    np.testing.assert_allclose(shown, weights, atol=5.1e-4)
    assert "cross_stitch" not in processes[False].stdout


def test_the_terminal_shows_progress_and_no_noise(runs):
    for finished in runs[1].values():
        shown = finished.stderr.split("\r")[-1]
        for part in ("synthetic", "100%", "img/s", "loss", "article 0.", "group 0."):
            assert part in shown
        for noise in ("I0000", "E0000", "W0000", "Warning", "deprecated", "oneDNN", "INFO"):
            assert noise not in without_compiler(finished.stderr) + finished.stdout


def test_the_same_command_again_shows_the_table_and_trains_nothing(runs):
    logdir, processes = runs
    before = sorted((logdir / CHANNEL).iterdir())
    again = run(logdir, *GIVEN)
    assert again.returncode == 0 and "finished" in again.stdout
    assert processes[True].stdout.split("\n\n", 1)[1] in again.stdout
    assert sorted((logdir / CHANNEL).iterdir()) == before


def test_a_setting_that_an_older_run_did_not_record_means_the_default(runs, tmp_path):
    run_dir = shutil.copytree(runs[0] / CHANNEL, tmp_path / CHANNEL)
    settings = json.loads((run_dir / "settings.json").read_text())
    del settings["learning_rate"], settings["share_until"]
    (run_dir / "settings.json").write_text(json.dumps(settings))
    again = run(tmp_path, *GIVEN)
    assert again.returncode == 0 and "this run is finished" in again.stdout, again.stderr
    refused = run(tmp_path, *GIVEN, "--learning_rate=0.1", f"--run_name={CHANNEL}")
    assert_one_sentence(refused, "started with --learning_rate=0.001, not", "Resume it with")


@pytest.mark.parametrize("flag", [
    "--tasks=article, group", "--cross_stitch_at=fc_3,pool_1,pool_2", "--cross_stitch_at=pool_1, pool_2, fc_3",
])  # fmt: skip
def test_however_a_list_is_written_it_is_the_same_run(flag, runs):
    before = run_dirs(runs[0])
    again = run(runs[0], *GIVEN, flag)
    assert again.returncode == 0 and "this run is finished" in again.stdout, again.stderr
    assert run_dirs(runs[0]) == before


@pytest.mark.parametrize("before, now", [
    ({"cross_stitch_at": "fc_3,pool_1"}, {"cross_stitch_at": "pool_1,fc_3"}),
    ({"tasks": "a, b"}, {"tasks": "a,b"}),
    ({"init_from": "A/"}, {"init_from": "A"}),
    ({"init_from": "A"}, {"init_from": "./B/../A"}),
    ({"share_until": "pool_1"}, {"share_until": "pool_1", "cross_stitch_at": "fc_3,pool_2"}),
    ({"tasks": "a", "cross_stitch": True}, {"tasks": "a", "cross_stitch": False}),
    ({"share_until": "fc_3"}, {"hard_sharing": True, "cross_stitch": False}),
], ids=str)  # fmt: skip
def test_settings_that_an_earlier_version_wrote_in_another_way_are_the_same(before, now):
    defaults = train.defaults()
    before, now = defaults | before, defaults | now
    assert differing(before, now, defaults) == []
    assert differing(before, now | {"learning_rate": 0.5}, defaults) == ["learning_rate"]


def test_other_places_of_units_are_not_the_same():
    defaults = train.defaults()
    for at, shared in (("pool_1", None), ("pool_2", "pool_1")):
        now = defaults | {"cross_stitch_at": at, "share_until": shared}
        before = defaults | {"share_until": shared}
        assert differing(before, now, defaults) == ["cross_stitch_at"]


def test_another_task_is_one_more_entry_in_the_table(tmp_path):
    finished = run(tmp_path, "--max_steps=1", "--tasks=article,group,season", prelude=THIRD_TASK)
    _, results = only_run(finished, tmp_path)
    assert list(results["accuracy_test"]) == [*TASK_NAMES, "season", "mean"]
    assert len(results["cross_stitch"]["cross_stitch_1"]) == len(TASK_NAMES) + 1
    assert "season" in finished.stdout and "season" in finished.stderr


def test_a_single_task_has_no_units_and_may_be_started_from(tmp_path):
    given = ("--max_steps=1", "--tasks=group", "--run_name=synthetic-one")
    source, results = only_run(run(tmp_path, *given), tmp_path)
    assert list(results["accuracy_test"]) == ["group", "mean"]
    assert results["accuracy_test"]["group"] == results["accuracy_test"]["mean"]
    assert results["cross_stitch"] == {}
    same = run(tmp_path, *given, "--cross_stitch_unit=layer")  # ignored, so no difference
    assert same.returncode == 0 and "ignored" in same.stderr, same.stderr
    started = run(tmp_path, *given[:2], "--seed=1", f"--init_from={source}")
    assert started.returncode == 0, started.stderr
    without = run(tmp_path, *given, "--cross_stitch=False")  # what one task has anyway
    assert without.returncode == 0 and "this run is finished" in without.stdout, without.stderr
    assert "ignored" not in without.stderr
    asked = run(tmp_path, *given, "--cross_stitch=True")
    warning = " ".join(asked.stderr.split())
    assert asked.returncode == 0 and "no cross-stitch units: --cross_stitch *" in warning


def test_hard_sharing_has_two_names_and_no_units_whose_flags_are_named(runs, tmp_path):
    given = ("--max_steps=1", "--tasks=group,article")
    told = run(tmp_path, *given, "--hard_sharing", "--cross_stitch_at=pool_1",
               "--cross_stitch_init=0.9")  # fmt: skip
    run_dir, results = only_run(told, tmp_path)
    assert run_dir.name == "synthetic-hard_sharing-seed0-tasks=group,article-max_steps=1"
    assert list(results["accuracy_test"]) == ["group", "article", "mean"]
    assert "hard sharing" in told.stdout and results["cross_stitch"] == {}
    warning = " ".join(told.stderr.split())
    assert "no cross-stitch units: --cross_stitch_at, --cross_stitch_init" in warning
    assert "ignored" not in runs[1][False].stderr  # no units, and no flag of theirs
    again = run(tmp_path, *given, "--share_until=fc_3", "--cross_stitch=False")
    assert again.returncode == 0 and "this run is finished" in again.stdout, again.stderr
    assert run_dirs(tmp_path) == [run_dir.name]


@pytest.mark.slow
def test_units_at_one_place_behind_shared_layers_name_the_run_and_are_exported(tmp_path):
    logdir, served = tmp_path / "logs", tmp_path / "served"
    given = ("--max_steps=1", "--share_until=pool_1", "--cross_stitch_at=fc_3")
    run_dir, results = only_run(run(logdir, *given, f"--export_dir={served}"), logdir)
    assert run_dir.name.endswith("cross_stitch_at=fc_3-share_until=pool_1-max_steps=1")
    assert list(results["cross_stitch"]) == ["cross_stitch_3"]
    variables = [name for name, _ in tf.train.list_variables(str(served / "variables/variables"))]
    assert "network/conv1_1/weights" in variables and "network/conv1_2/weights" not in variables


@pytest.mark.slow
def test_labels_beside_fashion_mnists_images_are_a_task(fashion_mnist, tmp_path):
    """They say whether an article has sleeves."""
    folder = pathlib.Path(os.environ.get(data.FOLDER_VARIABLE) or download.cache_folder()).resolve()
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in download.FILES:
        (mine / name).symlink_to(folder / name)
    sleeves = np.isin(np.arange(10), (0, 2, 3, 4, 6)).astype(int)
    for half, split in (("train", fashion_mnist.train), ("test", fashion_mnist.test)):
        np.save(mine / f"{half}-sleeves.npy", sleeves[split.labels["article"]])
    (mine / "sleeves-classes.txt").write_text("without\nwith\n")
    logdir = tmp_path / "logs"
    finished = run_train(f"--logdir={logdir}", f"--data_dir={mine}", "--tasks=article,sleeves",
                         "--max_steps=15", "--train_examples=2000")  # fmt: skip
    _, results = only_run(finished, logdir)
    assert set(results["recall"]["sleeves"]) == {"without", "with"}
    assert np.sum(results["confusion"]["sleeves"], axis=1).tolist() == [5000, 5000]
    assert results["accuracy_test"]["sleeves"] > 0.7


@pytest.mark.slow
def test_readmes_unit_is_trained_resumed_exported_and_shown(tmp_path):
    """README's code, word for word, at the end of model.py in a copy of the program."""
    (code,) = re.findall(r"```python\n(def \w+_unit.*?)```", README.read_text(), re.S)
    assert len(code.partition("\n\n\n")[0].splitlines()) <= 10
    copy = copy_of_program(tmp_path)
    with open(copy / "model.py", "a") as file:
        file.write(f"\n\n{code}")
    given = (f"--logdir={tmp_path / 'logs'}", f"--export_dir={tmp_path / 'served'}",
             "--cross_stitch_unit=factored")  # fmt: skip
    for more in (("--max_steps=1",), ("--max_steps=2", "--run_name=synthetic-run")):
        finished = run_copy(copy, *given, *more)
        run_dir, results = only_run(finished, tmp_path / "logs")
        if more == ("--max_steps=1",):
            assert run_dir.name == "synthetic-factored-seed0-max_steps=1"
            run_dir.rename(tmp_path / "logs" / "synthetic-run")
            shutil.rmtree(tmp_path / "served")
    assert "Resuming after step 1." in finished.stdout and results["global_step"] == 2
    tags = event_accumulator.EventAccumulator(str(run_dir)).Reload().Tags()
    assert set(tags["histograms"]) == {f"summary/cross_stitch_{i}/weights" for i in (1, 2, 3)}
    assert "summary/cross_stitch_1/article_from_group" in tags["scalars"]
    shapes = dict(tf.train.list_variables(str(run_dir)))
    assert shapes["network/cross_stitch_2/scales"] == [2, 64]
    saved = dict(tf.train.list_variables(str(tmp_path / "served" / "variables" / "variables")))
    assert "network/cross_stitch_3/pairs" in saved
    # What each of its variables learned: with Adam's rate of 0.001, two steps move a weight by
    # 0.002 at most.
    names = [f"cross_stitch_{i}/{name}" for i in (1, 2, 3) for name in ("pairs", "scales")]
    assert sorted(results["weights"]) == sorted(results["distances"]) == names
    assert sum(results["weights"]["cross_stitch_2/scales"]) == 2 * 64
    assert 0 < results["distances"]["cross_stitch_2/scales"] <= 0.0021
    assert 0 < np.max(results["distances"]["cross_stitch_2/pairs"]) <= 0.0021


def copy_of_program(tmp_path):
    """A copy that a test may change. Returns: its folder."""
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "harness", copy / "harness")
    for name in ("train.py", "model.py", "data.py"):
        shutil.copy(ROOT / name, copy)
    return copy


def run_copy(copy, *arguments):
    """A run of such a copy on few drawn images. Returns: the finished process."""
    program = (f"{SMALL}\nimport runpy, sys; sys.argv[0] = 'train.py'\n"
               "runpy.run_path('train.py', run_name='__main__')")  # fmt: skip
    command = [sys.executable, "-c", program, "--dataset=synthetic", *arguments]
    return subprocess.run(command, cwd=copy, capture_output=True, text=True)


@pytest.mark.slow
def test_another_layer_with_a_unit_is_two_lines(tmp_path):
    """One in `network`, which its docstring shows, and one in `PLACES`."""
    copy = copy_of_program(tmp_path)

    def insert(file, before, line):
        text = (copy / file).read_text()
        assert text.count(before) == 1
        (copy / file).write_text(text.replace(before, before + line))

    places = 'PLACES = ("pool_1", "pool_2", "fc_3")\n'
    insert("harness/names.py", places, 'PLACES += ("fc_4",)\n')
    (shown,) = re.findall(r'towers = after\("fc_4".*', (copy / "model.py").read_text())
    # A keyword that is no scope reaches the layer as it is.
    shown = shown.replace("scope=", "activation_fn=None, scope=")
    insert("model.py", 'scope="fc_3"))  # [B, 1024]\n', f"        {shown}\n")
    for number, (name, flag) in enumerate(
        {"units": "--cross_stitch=True", "one_tower": "--hard_sharing"}.items()
    ):
        logdir = tmp_path / name
        finished = run_copy(copy, flag, "--max_steps=2", f"--logdir={logdir}")
        run_dir, results = only_run(finished, logdir)
        units = [] if number else [f"cross_stitch_{i}" for i in (1, 2, 3, 4)]
        assert list(results["cross_stitch"]) == units
        shapes = dict(tf.train.list_variables(str(run_dir)))
        assert shapes["network/fc_4_1/weights"] == [1024, 512]
        assert ("network/fc_4_2/weights" in shapes) == (not number)  # shared up to the last place
        graph = event_accumulator.EventAccumulator(str(run_dir)).Reload().Graph()
        inputs = {node.name: node.input for node in graph.node}
        # Dropout follows the last place, and the output layer dropout.
        assert any("dropout_1" in name for name in inputs["network/output_1/MatMul"])
        assert not any("dropout" in name for name in inputs["network/fc_4_1/MatMul"])
    two_lines_apart = copy / "harness" / "names.py"
    two_lines_apart.write_text(two_lines_apart.read_text().replace("fc_4", "fc_5"))
    failed = run_copy(copy, "--max_steps=2", f"--logdir={tmp_path / 'odd'}")
    assert failed.returncode and "harness/names.py" in failed.stderr


def test_a_starved_run_says_which_articles_were_rare_and_how_well_each_class_did(tmp_path):
    given = ("--starve=20", "--seed=2", "--max_steps=6", "--eval_every=1", "--batch_size=32")
    run_dir, results = only_run(run(tmp_path, *given), tmp_path)
    assert "starve=20" in run_dir.name
    assert results["ranks"] == dict(zip(data.ARTICLES, data.ranks_of_articles(2)))
    images = results["train_images"]["article"]
    by_rank = sorted(images, key=results["ranks"].get)
    assert images[by_rank[0]] > 15 * images[by_rank[-1]]
    assert sum(results["train_images"]["group"].values()) == sum(images.values())
    scalars = read_scalars(run_dir)
    for task in TASK_NAMES:
        for measure in ("recall", "f1"):
            last = results[f"{measure}_last"][task]
            for index, name in enumerate(results["recall"][task]):
                tag = f"tasks/{task}/{index}_{name.replace('/', '-')}/{measure}"
                assert [step for step, _ in scalars[tag]] == [1, 2, 3, 4, 5, 6]
                mean = np.mean([value for _, value in scalars[tag]][-5:])
                assert last[name] == pytest.approx(mean, abs=1e-6)
    # The last evaluation's, from the confusion matrix.
    confusion = np.array(results["confusion"]["article"])
    right = np.diag(confusion)
    for index, name in enumerate(data.ARTICLES):
        tag = f"tasks/article/{index}_{name.replace('/', '-')}"
        assert scalars[f"{tag}/recall"][-1][1] == pytest.approx(
            right[index] / confusion[index].sum()
        )
        both = confusion[index].sum() + confusion[:, index].sum()
        assert scalars[f"{tag}/f1"][-1][1] == pytest.approx(2 * right[index] / both, abs=1e-6)


@pytest.mark.slow
def test_towers_start_from_a_finished_run_and_go_their_own_way(runs, tmp_path):
    source = shutil.copytree(runs[0] / NONE, tmp_path / "synthetic-alone")
    # At a rate of next to nothing, with units that are the identity, it is that run.
    given = (f"--init_from={source}", "--lr=1e-18", "--batch_norm_decay=0.99999")
    still = run(tmp_path, *given, "--max_steps=1")
    assert still.returncode == 0, still.stderr
    (run_dir,) = tmp_path.glob("*init_from=synthetic-alone*")
    assert results_in(run_dir)["accuracy_test"] == results_in(source)["accuracy_test"]
    # A run that goes on needs its source no more. Another path to it is the same.
    shutil.rmtree(source)
    given = (f"--init_from={source.parent / 'other' / '..' / source.name}/", *given[1:])
    longer = run(tmp_path, *given, "--max_steps=2", f"--run_name={run_dir.name}")
    assert longer.returncode == 0 and "Resuming after step 1." in longer.stdout, longer.stderr


def test_only_a_finished_unstitched_run_of_the_same_tasks_lends_its_towers(runs, tmp_path):
    alone = runs[0] / NONE
    there = shutil.copytree(runs[0] / CHANNEL, tmp_path / "synthetic-there")
    pruned = shutil.copytree(alone, tmp_path / "pruned", ignore=shutil.ignore_patterns("*ckpt*"))
    spoilt = shutil.copytree(alone, tmp_path / "spoilt")
    for path in spoilt.glob("*.data-*"):
        path.write_bytes(path.read_bytes()[:100])
    for source, words, given in (
        (tmp_path, ["not the folder of a finished run"], []),
        (runs[0] / CHANNEL, ["--cross_stitch=False"], []),
        (alone, ["--tasks=group,article"], ["--tasks=group,article"]),
        (pruned, ["checkpoints are gone"], []),
    ):
        refused = run(tmp_path, f"--init_from={source}", *given, "--overwrite",
                      f"--run_name={there.name}")  # fmt: skip
        assert_one_sentence(refused, "--init_from", str(source), *words)
    refused = run(tmp_path, f"--init_from={spoilt}", "--overwrite", f"--run_name={there.name}")
    assert refused.returncode == 1 and "damaged" in refused.stderr
    assert f"--init_from={spoilt}: none of its checkpoints can be used" in refused.stderr
    # What was to be overwritten is still all there.
    assert {p.name for p in there.iterdir()} == {p.name for p in (runs[0] / CHANNEL).iterdir()}


# --- The model taken away ---


def read_only(folder):
    """A prelude: a disk that cannot be written. Root may write anywhere, so calls refuse to."""
    return (
        "import builtins, errno, os, pathlib; reading, made = open, pathlib.Path.mkdir\n"
        "def check(path, writes):\n"
        f"    if writes and str(path).startswith({str(folder)!r}):\n"
        "        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))\n"
        "def opened(path, mode='r', *a, **k):\n"
        "    check(path, set(mode) & set('wax+')); return reading(path, mode, *a, **k)\n"
        "def make(path, *a, **k):\n"
        "    check(path, True); return made(path, *a, **k)\n"
        "builtins.open, pathlib.Path.mkdir = opened, make"
    )


def test_the_group_by_article_is_what_the_predicted_article_implies(runs, monkeypatch):
    monkeypatch.setattr(data, "SYNTHETIC_SIZES", (1200, 200))
    dataset, run_dir = data.load("synthetic"), runs[0] / CHANNEL
    predicted = np.fromfile(run_dir / predictions.NAME, predictions.layout(dataset))["classes"]
    groups = np.array([2, 2, 2, 1, 2, 0, 1, 0, 1, 0])  # shoes 0, for women 1, other 2
    right = groups[predicted["article"]] == groups[dataset.test.labels["article"]]
    curve = read_scalars(run_dir)["summary/accuracy_test_group_by_article"]
    assert [value for _, value in curve] == pytest.approx(right.mean(axis=1), abs=1e-6)


def test_a_finished_run_of_another_length_says_so_where_a_length_was_asked_for(runs, tmp_path):
    steps = STEPS[-1]
    shutil.copytree(runs[0] / CHANNEL, tmp_path / CHANNEL)  # an evaluation writes predictions.csv
    asked = run(tmp_path, *GIVEN, "--eval_only", "--max_steps=9", f"--run_name={CHANNEL}")
    assert f"is finished. It has {steps} steps, not 9." in asked.stdout, asked.stderr
    asked = run(tmp_path, *GIVEN, "--eval_only", f"--run_name={CHANNEL}")
    assert "is finished.\n" in asked.stdout, asked.stderr


def test_a_finished_run_on_a_read_only_disk_is_evaluated_and_exported(runs, tmp_path):
    served = tmp_path / "served"
    wishes = ("--eval_only", f"--export_dir={tmp_path}/sub/../served/")  # any name of the folder
    finished = run(runs[0], *GIVEN, *wishes, prelude=read_only(runs[0]))
    assert finished.returncode == 0, finished.stderr
    assert "predictions.csv: cannot be written" in " ".join(finished.stderr.split())
    assert not (runs[0] / CHANNEL / "predictions.csv").exists()
    results = results_in(runs[0] / CHANNEL)
    shares = [f"{name} {results['accuracy_test'][name]:.4f}" for name in TASK_NAMES]
    assert f"Evaluated: {', '.join(shares)}" in finished.stdout
    for task in TASK_NAMES:
        for name, recall in results["recall"][task].items():
            counts = results["confusion"][task][list(results["recall"][task]).index(name)]
            cells = r"\s+".join([f"{recall:.3f}", *map(str, counts)])
            assert re.search(rf"{re.escape(name)}\s+{cells}$", finished.stdout, re.M)
    before = {path: path.stat().st_mtime_ns for path in served.rglob("*")}
    assert served / "saved_model.pb" in before
    # The same command again leaves it as it is, and no other one takes its place.
    again = run(runs[0], *GIVEN, f"--export_dir={served}")
    assert again.returncode == 0 and f"{served}: holds this run's network" in again.stdout
    for other in ("--cross_stitch=False", "--overwrite"):
        refused = run(runs[0], *GIVEN, other, f"--export_dir={served}")
        assert_one_sentence(refused, f"{served}: holds something else")
        assert "--overwrite" not in refused.stderr  # which would delete the run
    assert {path: path.stat().st_mtime_ns for path in served.rglob("*")} == before
    assert results_in(runs[0] / CHANNEL) == results  # nothing was overwritten
    refused = run(runs[0], *GIVEN, "--seed=9", prelude=read_only(runs[0]))
    assert_one_sentence(refused, "Read-only file system")  # the test itself refuses writing


@pytest.mark.slow
def test_an_export_is_that_of_its_run_however_and_wherever_it_is_asked_for_again(runs, tmp_path):
    source = shutil.copytree(runs[0] / NONE, tmp_path / "synthetic-alone")
    served = tmp_path / "served"
    given = ("--max_steps=1", f"--export_dir={served}")
    assert run(tmp_path, f"--init_from={source}/", *given).returncode == 0
    written = (served / "saved_model.pb").stat().st_mtime_ns
    for more in ((f"--init_from={source}",), (f"--init_from={source}", "--device=gpu")):
        (run_dir,) = tmp_path.glob("*init_from=*")
        again = run(tmp_path, *given, f"--run_name={run_dir.name}", *more, prelude=WITH_GPU)
        assert again.returncode == 0, again.stderr
        assert f"{served}: holds this run's network" in again.stdout
    assert (served / "saved_model.pb").stat().st_mtime_ns == written


def when_saved(statements):
    """A prelude: what happens to an export when TensorFlow has written its files."""
    lines = "\n".join(f"    {line}" for line in statements.splitlines())
    return (
        "import errno, os, pathlib, shutil, tensorflow.compat.v1 as tf\n"
        f"save = tf.saved_model.Builder.save\ndef saved(self):\n    save(self)\n{lines}\n"
        "tf.saved_model.Builder.save = saved"
    )


# A file system that cannot rename folders.
NO_RENAME = """
import errno, os
replace = os.replace
def of_files(source, target):
    if os.path.isdir(source):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
    replace(source, target)
os.replace = of_files
"""


@pytest.mark.parametrize("happens, words", [
    ("another = pathlib.Path({served!r})\nanother.mkdir()\n(another / 'run.json').write_text('theirs')",
     "holds something else"),
    ("raise AssertionError(f'Export directory {{self._export_dir}} already exists')", "already exists"),
    ("raise tf.errors.UnknownError(None, None, f'{{self._export_dir}}; No space left')", "No space left"),
    ("open(f'{{self._export_dir}}/more', 'w').close(); tf.gfile.GFile('/dev/full', 'w').write('x' * 2**20)",
     "No space left on device"),
], ids=["another job was faster", "an assertion", "an error of TensorFlow's", "a full disk"])  # fmt: skip
def test_whatever_becomes_of_an_export_the_results_are_printed(happens, words, runs, tmp_path):
    served = tmp_path / "served"
    prelude = when_saved(happens.format(served=str(served)))
    failed = run(runs[0], *GIVEN, f"--export_dir={served}", prelude=prelude)
    assert_one_sentence(failed, f"{served}: ", words, "another --export_dir")
    assert failed.returncode == 1 and "unfinished" not in failed.stderr
    accuracy = results_in(runs[0] / CHANNEL)["accuracy_test"]["mean"]
    assert f"{accuracy:.4f}" in failed.stdout
    left = {path.name: [inner.name for inner in path.iterdir()] for path in tmp_path.iterdir()}
    assert left == ({"served": ["run.json"]} if "another" in happens else {})


def test_where_folders_cannot_be_renamed_an_export_is_copied(runs, tmp_path):
    served = tmp_path / "served"
    served.mkdir()
    full = when_saved(
        "def copy(source, target):\n"
        "    if str(target).endswith('run.json'):\n"  # the last file
        "        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))\n"
        "    return copied(source, target)\n"
        "copied, shutil.copyfile = shutil.copyfile, copy"
    )
    failed = run(runs[0], *GIVEN, f"--export_dir={served}", prelude=f"{NO_RENAME}\n{full}")
    assert_one_sentence(failed, f"{served}: ", "No space left on device")
    assert not list(served.iterdir())  # all or nothing
    copied = run(runs[0], *GIVEN, f"--export_dir={served}", prelude=NO_RENAME)
    assert copied.returncode == 0, copied.stderr
    assert {path.name for path in served.iterdir()} == {"run.json", "saved_model.pb", "variables"}
    assert tf.train.list_variables(str(served / "variables" / "variables"))
    assert [path.name for path in tmp_path.iterdir()] == ["served"]


def test_an_export_deletes_what_killed_ones_left_and_nobody_elses_draft(tmp_path):
    left, earlier, busy = (
        tmp_path / f".served{part}.unfinished-export" for part in (".01ab", "", ".23cd")
    )
    for draft in (left, earlier, busy):
        draft.mkdir()
        (draft / "saved_model.pb").touch()
    descriptor = os.open(busy, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # of a process that is still writing
        Export(str(tmp_path / "served"), {}, {}, tmp_path).prepare()
        assert list(tmp_path.iterdir()) == [busy] and list(busy.iterdir())
    finally:
        os.close(descriptor)
    Export(str(tmp_path / "served"), {}, {}, tmp_path).prepare()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_export_that_was_killed_is_made_again_whole(runs, tmp_path):
    """The run is killed where TensorFlow writes the graph, after the variables."""
    served = tmp_path / "served"
    kill = (
        "import os, signal, tensorflow.compat.v1 as tf\n"
        "tf.saved_model.Builder.save = lambda _: os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = run(runs[0], *GIVEN, f"--export_dir={served}", prelude=kill)
    assert killed.returncode == -signal.SIGKILL and not served.exists()
    assert run(runs[0], *GIVEN, f"--export_dir={served}").returncode == 0
    assert {path.name for path in served.iterdir()} == {"run.json", "saved_model.pb", "variables"}
    assert [path.name for path in tmp_path.iterdir()] == ["served"]


@pytest.mark.parametrize("folder", ["mine", ".", "~"])
def test_an_export_folder_in_use_is_refused_before_any_training(folder, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    there = f"import os; os.chdir({str(tmp_path)!r}); os.environ['HOME'] = {str(tmp_path)!r}"
    refused = run("logs", "--max_steps=1", f"--export_dir={folder}", prelude=there)
    assert_one_sentence(refused, "--export_dir", "holds something else")
    assert not list(tmp_path.rglob("events*")) and (tmp_path / "mine" / "thesis.txt").exists()


def test_an_export_of_a_run_that_was_started_over_is_not_the_new_runs(tmp_path):
    export = Export(str(tmp_path / "served"), {}, {}, tmp_path / "run")
    files.write_json(
        tmp_path / "served" / "run.json", {"settings": {}, "global_step": 3, "run": "a"}
    )
    for number, holds in (("a", True), ("b", False)):
        files.write_json(tmp_path / "run" / "settings.json", {"run": number})
        assert export.holds(3) == holds
    with pytest.raises(Failed, match="holds something else .an export of another run"):
        export.prepare()


def test_only_a_finished_run_is_evaluated(tmp_path):
    refused = run(tmp_path, "--eval_only")
    assert_one_sentence(refused, "not a finished run")
    assert refused.returncode == 5
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_checkpoints_is_neither_evaluated_nor_exported(runs, tmp_path):
    shutil.copytree(runs[0] / CHANNEL, tmp_path / CHANNEL, ignore=shutil.ignore_patterns("*ckpt*"))
    for wish in ("--eval_only", f"--export_dir={tmp_path / 'served'}"):
        refused = run(tmp_path, *GIVEN, wish)
        assert_one_sentence(refused, CHANNEL, "checkpoints are gone", "--overwrite")
    assert [path.name for path in tmp_path.iterdir()] == [CHANNEL]


# --- TensorBoard ---


@pytest.fixture(scope="module")
def tensorboard(runs):
    """A real TensorBoard on the two runs: tensorboard(path, **query) asks its server."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", runs[0], "--port=0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        lines = iter(server.stderr.readline, "")
        address = next(m[0] for m in map(re.compile(r"http://\S+").search, lines) if m)

        def ask(path, posted=None, **query):
            url = f"{address.rstrip('/')}/data/plugin/{path}"
            url += f"?{urllib.parse.urlencode(query)}" if query else ""
            request = urllib.request.Request(url, posted and json.dumps(posted).encode())
            if posted:
                request.add_header("Content-Type", "application/json")
            with urllib.request.urlopen(request, timeout=60) as answer:
                content = answer.read()
                return json.loads(content) if "json" in answer.headers["Content-Type"] else content

        # It reads in the background.
        for _ in range(600):
            if len(ask("scalars/tags")) == 2 and ask("histograms/tags").get(CHANNEL):
                break
            time.sleep(0.1)
        yield ask
        server.terminate()


def test_tensorboard_shows_the_scalars_and_the_graph(tensorboard):
    points = tensorboard("scalars/scalars", tag="summary/accuracy_test", run=CHANNEL)
    assert [step for _, step, _ in points] == STEPS
    start, *later = tensorboard(
        "scalars/scalars", tag="summary/cross_stitch_1/article_from_group", run=CHANNEL
    )
    assert start[1:] == [0, 0] and [step for _, step, _ in later] == STEPS
    assert b"network/cross_stitch_1" in tensorboard("graphs/graph", run=CHANNEL, conceptual="false")


def test_tensorboard_shows_what_the_units_learn(tensorboard, runs):
    units = [f"summary/cross_stitch_{i}" for i in (1, 2, 3)]
    assert set(tensorboard("histograms/tags")[CHANNEL]) == {f"{unit}/weights" for unit in units}
    histograms = tensorboard("histograms/histograms", tag=f"{units[0]}/weights", run=CHANNEL)
    counts = {step: sum(count for *_, count in bins) for _, step, bins in histograms}
    assert counts == dict.fromkeys((0, *STEPS), 2 * 2 * 32)  # the entries of a unit
    tags = {"mean_weights", "confusion_article", "confusion_group"}
    tags |= {"mistakes_article", "mistakes_group"}
    shown = tensorboard("images/tags")[CHANNEL]
    assert set(shown) == {f"summary/{tag}" for tag in tags}
    at_the_end = ("confusion_article", "mistakes_group")
    for tag, steps in (("mean_weights", STEPS), *((tag, STEPS[-1:]) for tag in at_the_end)):
        images = tensorboard("images/images", tag=f"summary/{tag}", run=CHANNEL, sample=0, index=0)
        assert [image["step"] for image in images] == steps
        png = tensorboard("images/individualImage?" + images[-1]["query"])
        assert matplotlib.image.imread(io.BytesIO(png)).shape[0] > 150


def test_a_drawn_matrix_is_darkest_where_its_values_are_largest():
    shares = np.array([[0.9, 0.1], [0.0, 1.0]])
    pixels = matplotlib.image.imread(
        io.BytesIO(matrices.draw({"t": (shares, shares)}, ("a", "b"), ("label", "guess"), 1, False))
    )
    dark = pixels[:, :, :3].mean(axis=2)
    # Blue fields: the two on the diagonal, which lie from top left to bottom right.
    blue = (pixels[:, :, 2] > pixels[:, :, 0] + 0.25) & (dark < 0.5)
    rows, columns = np.nonzero(blue)
    assert np.corrcoef(rows, columns)[0, 1] > 0.5


def test_the_units_picture_writes_three_decimals_of_a_weight(tmp_path):
    """As a float32, 1.002 is 1.00199997…, which would not fit into a cell."""

    def picture(weights, folder):
        with tf.Graph().as_default() as graph, Events(folder, graph, -1) as board:
            board.add_unit_picture({"cross_stitch_1": weights}, TASK_NAMES, 1)
        (path,) = folder.iterdir()
        images = [v.image for e in tf.train.summary_iterator(str(path)) for v in e.summary.value]
        return images[0].encoded_image_string

    weights = [[1.002, -0.1], [0.0, 1.0]]
    singles = picture(np.float32(weights), tmp_path / "singles")
    assert singles == picture(np.float64(weights), tmp_path / "doubles")


def test_tensorboards_hparams_page_compares_the_runs_by_flag_and_accuracy(tensorboard, runs):
    experiment = tensorboard("hparams/experiment", posted={"experimentName": ""})
    columns = [column["name"] for column in experiment["hparamInfos"]]
    # What people compare comes first.
    assert set(columns[:4]) == {"sharing", "cross_stitch_init", "seed", "num_epochs"}
    metrics = [{"metric": info["name"]} for info in experiment["metricInfos"]]
    # Those of all tasks: a run with other tasks may be shown beside these.
    assert {f"summary/accuracy_test_{task.name}" for task in data.TASKS} <= {
        metric["metric"]["tag"] for metric in metrics
    }
    asked = {"experimentName": "", "colParams": metrics, "startIndex": 0, "sliceSize": 9}
    asked["allowedStatuses"] = ["STATUS_SUCCESS"]
    groups = tensorboard("hparams/session_groups", posted=asked)["sessionGroups"]
    assert {group["hparams"]["sharing"] for group in groups} == {"none", "channel"}
    assert {group["name"] for group in groups} == set(run_dirs(runs[0]))
    for group in groups:
        tags = {value["name"]["tag"] for value in group["metricValues"]}
        assert {"summary/accuracy_test", "summary/loss_total"} <= tags


# --- The command line, the system, Python ---


def refusal_of(*given):
    """The sentence with which train.py refuses a command line before it reads any data."""
    # What is not refused fails at once, in place of training here.
    nothing = mock.patch.object(train, "run_command", lambda _: None)
    try:
        with nothing, pytest.raises(Failed) as refused:
            train.main(process.parse(["train.py", *given], train.check_flags))
    finally:
        train.FLAGS.unparse_flags()
        for name in train.FLAGS:
            train.FLAGS[name].unparse()
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("argument, word", [
    ("False", "--cross_stitch=False"), ("num_epochs=1", "--name=value"), ("-", "not a flag"),
    ("--log_dir=X", "--logdir"), ("--verbosity=1", "no effect"), ("--alsologtostderr", "no effect"),
    ("--cross_st=False", "cross_st"), ("--no_such_flag=1", "no_such_flag"),
])  # fmt: skip
def test_what_is_no_flag_is_refused(argument, word):
    assert word in refusal_of("--dataset=synthetic", "--cross_stitch", argument)


def test_a_file_of_flags_that_is_not_text_is_named(tmp_path):
    (tmp_path / "flags").write_bytes(b"--seed=1\n\xff\xfe\x00")
    refused = refusal_of(f"--flagfile={tmp_path / 'flags'}")
    assert f"--flagfile={tmp_path / 'flags'}: is not text" in refused


def test_help_whose_reader_is_gone_ends_quietly():
    """As with `--help | head -1`."""
    end, stdout = os.pipe()
    os.close(end)
    command = command_of("study.plot", "--help")
    shown = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True)
    os.close(stdout)
    assert shown.stderr == "" and shown.returncode == 1  # as whenever absl shows its help


def test_a_program_says_which_optional_package_it_lacks():
    refused = run_script("study.screenshots", prelude="import sys; sys.modules['selenium'] = None")
    assert refused.stderr.strip() == (
        "screenshots.py: Selenium is not installed: pip install -r study/requirements.txt"
    )


def in_python(program, **variables):
    """Runs a program in a new process. Returns: what it prints, a JSON value."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


def test_an_import_of_train_changes_neither_environment_nor_signals_nor_streams():
    changed = in_python(
        "import json, os, signal, sys, threading, warnings\n"
        "def state(): return [dict(os.environ), os.fstat(2).st_ino, str(threading.excepthook),\n"
        "    str([signal.getsignal(n) for n in sorted(signal.valid_signals()) if n not in (9, 19)])]\n"
        "import tensorflow\n"
        "before = state(); import train; print(json.dumps(before == state()))"
    )
    assert changed is True


@pytest.mark.slow
def test_two_runs_in_one_process_are_two_runs(tmp_path):
    """As %run does in a notebook. Afterwards an interrupt is Python's again."""
    program = (
        "import json, runpy, signal, sys\n"
        f"{SMALL}; handler = signal.getsignal(signal.SIGINT)\n"
        "for flags in (['--seed=3', '--max_steps=1'], ['--max_steps=2', '--overwrite']):\n"
        "    sys.argv = ['train.py', '--dataset=synthetic', '--run_name=synthetic-run', *flags]\n"
        f"    sys.argv.append('--logdir={tmp_path}')\n"
        "    try:\n"
        f"        runpy.run_path('{ROOT}/train.py', run_name='__main__')\n"
        "    except SystemExit as end:\n"
        "        assert not end.code\n"
        "import threading\n"
        "print(json.dumps(signal.getsignal(signal.SIGINT) is handler\n"
        "    and threading.excepthook is threading.__excepthook__))"
    )
    assert in_python(program) is True
    (run_dir,) = tmp_path.iterdir()
    assert results_in(run_dir)["seed"] == 0 and results_in(run_dir)["global_step"] == 2
    # The one that started over has an event file of its own, not the deleted one's writer.
    assert [step for step, _ in read_scalars(run_dir)["summary/accuracy_test"]] == [2]


IN_A_NOTEBOOK = """
import os, runpy, signal, sys
sys.ps1 = "In : "  # as IPython sets it
def run(*flags):
    sys.argv = ["train.py", "--dataset=synthetic", *flags]
    try:
        runpy.run_path("train.py", run_name="__main__")
    except SystemExit as end:
        return end.code
"""


@pytest.mark.slow
def test_a_notebook_runs_what_its_user_changed_in_between_and_keeps_what_it_had(tmp_path):
    copy = copy_of_program(tmp_path)
    small = (copy / "data.py").read_text().replace("12000, 2000", "1200, 200")
    (copy / "data.py").write_text(small)
    program = f"""{IN_A_NOTEBOOK}
import json, types
sys.modules["model"] = model = types.ModuleType("model")  # the user's own
def state():
    return [dict(os.environ), sys.path, sys.modules["model"] is model,
            str([signal.getsignal(number) for number in (1, 2, 10, 12, 15)])]
import tensorflow  # which sets variables of its own
before = json.dumps(state())
codes = [run("--max_steps=1", "--logdir=logs")]
with open("data.py", "a") as file:
    file.write("TASKS += (TASKS[1]._replace(name='again'),)")
codes.append(run("--max_steps=1", "--tasks=article,again", "--logdir=logs"))
codes.append(run("--max_steps=1", "--logdir=others", f"--threads={{2 * os.cpu_count() + 2}}"))
import tensorflow as tf
print(json.dumps([codes, json.dumps(state()) == before, tf.keras.layers.Dense(1).units]))
"""
    finished = subprocess.run(
        [sys.executable, "-c", program], cwd=copy, capture_output=True, text=True,
        env=with_variables({"TF_USE_LEGACY_KERAS": None}),  # which the tests set for themselves
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    codes, is_same, units = json.loads(finished.stdout.splitlines()[-1])
    assert codes == [None, None, 1], finished.stderr
    assert "TensorFlow has already started its threads" in finished.stderr  # others than asked for
    assert is_same and units == 1
    assert len(list((copy / "logs").glob("*/results.json"))) == 2


def test_an_interrupt_while_a_notebooks_run_starts_is_pythons(tmp_path):
    program = f"""{IN_A_NOTEBOOK}
class Interrupt:
    def find_spec(self, name, *_):
        if name == "tensorflow":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
try:
    run()
except KeyboardInterrupt:
    print('"the notebook goes on"')
"""
    assert in_python(f"import os; os.chdir({str(ROOT)!r})\n{program}") == "the notebook goes on"


@pytest.mark.slow
def test_threads_that_tensorflow_has_already_started_give_one_sentence(tmp_path):
    used = "import tensorflow as tf; tf.constant(1) + 1"
    finished = run(tmp_path, "--threads=3", prelude=used)
    assert finished.returncode == 1
    assert "already started its threads" in finished.stderr and "Traceback" not in finished.stderr


@pytest.mark.slow
def test_what_tensorflow_says_before_it_dies_is_seen():
    abort = (
        "import sys, types\n"
        "class Dies:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'tensorflow':\n"
        "            import os; os.write(2, b'no AVX here'); os.abort()\n"
        "sys.meta_path.insert(0, Dies())"
    )
    finished = run_script("train.py", prelude=abort)
    assert finished.returncode == -signal.SIGABRT and "no AVX here" in finished.stderr


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs Linux")
def test_a_run_of_one_core_is_repeated_bit_by_bit_with_one_thread(tmp_path):
    one_core = f"import os; os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}})"
    weights = []
    for name, prelude, extra in (("core", one_core, ()), ("thread", "", ("--threads=1",))):
        finished = run(tmp_path / name, "--max_steps=2", *extra, prelude=prelude)
        run_dir, results = only_run(finished, tmp_path / name)
        assert results["machine"]["threads"] == 1
        weights.append(tensors(run_dir))
    assert weights[0] == weights[1]


def test_a_folder_that_tensorflow_cannot_use_is_refused_at_once(tmp_path):
    assert_one_sentence(run(tmp_path / "r[1]" / "logs"), "Choose another folder")
    assert list(tmp_path.iterdir()) == []
    for folder in ("/r*/logs", "/r?/logs", "/r\\/logs", "gs://bucket/logs", "~no_such_user/logs"):
        with pytest.raises(Failed, match="Choose another folder"):
            check_path(folder)
    check_path("/a folder/{logs}")


# --- Without data ---


def offline(tmp_path, *arguments):
    return run_train(
        f"--logdir={tmp_path / 'logs'}", *arguments, prelude=f"{SMALL}; {OFFLINE}",
        FASHION_MNIST_DIR=None, XDG_CACHE_HOME=str(tmp_path / "cache"),
    )  # fmt: skip


def test_without_data_and_network_the_synthetic_set_says_its_name_everywhere(tmp_path):
    finished = offline(tmp_path, "--max_steps=1", "--run_name=mine")
    assert "THIS IS NOT FASHION-MNIST" in finished.stderr
    run_dir, results = only_run(finished, tmp_path / "logs")
    assert run_dir.name == "mine-synthetic"  # not even under a name of one's own
    assert results["dataset"] == "synthetic"
    assert re.search(r"synthetic 100%", finished.stderr)
    assert "synthetic, channel" in finished.stdout
    events = event_accumulator.EventAccumulator(str(run_dir)).Reload()
    assert b"synthetic" in events.Tensors("run/text_summary")[0].tensor_proto.string_val[0]


def test_fashion_mnist_alone_accepts_no_other_set(tmp_path):
    finished = offline(tmp_path, "--dataset=fashion_mnist")
    assert_one_sentence(finished, "no mirror could be used", "--data_dir", "--dataset=synthetic")
    assert not (tmp_path / "logs").exists()


# --- Bad input ---


@pytest.mark.parametrize("flag", [
    "--keep_prob=0", "--keep_prob=1.5", "--keep_prob=nan", "--batch_norm_decay=1", "--lr=0",
    "--learning_rate=inf", "--learning_rate=1e-50", "--lr=1e39", "--l2_scale=1e30", "--l2_scale=1e-50",
    "--keep_prob=1e-46", "--cross_stitch_learning_rate_scale=1e20", "--batch_norm_decay=0.99999999",
    "--l2_scale=nan", "--l2_scale=-1", "--num_epochs=0", "--batch_size=1", "--max_steps=-1",
    "--eval_every=0", "--seed=-1", "--seed=4294967296", "--cross_stitch_init=nan",
    "--cross_stitch_unit=dence", "--run_name=a/b", "--run_name=..", "--run_name=",
    "--tasks=", "--tasks=article,", "--tasks=group,group", "--max_steps=many", "--dataset=mnist",
    "--data_dir=", "--logdir=", "--threads=-1", "--threads=100000", "--share_until=conv1", "--keep_checkpoints=1", "--init_from=",
    "--save_checkpoint_secs=0", "--export_dir=/",
    "--cross_stitch_at=", "--cross_stitch_at=pool_3", "--cross_stitch_at=fc_3,fc_3",
])  # fmt: skip
def test_a_bad_flag_is_named(flag):
    name = flag[2:].split("=")[0]
    assert train.ALIASES.get(name, name) in refusal_of(flag)


def test_whatever_is_accepted_float32_holds_it_its_square_and_the_units_rate():
    for rate in (flag_checks.SMALLEST, flag_checks.LARGEST):
        # TensorFlow flushes smaller ones to 0.
        assert np.finfo(np.float32).tiny <= np.float32(rate) * np.float32(rate) < np.inf


def test_a_run_that_diverged_names_every_rate_and_scale_that_is_not_the_default():
    defaults = train.defaults()
    said = flag_rules.nearer_to_defaults(defaults, defaults)
    assert said == "Try a lower --learning_rate."
    chosen = {"l2_scale": 10.0, "cross_stitch_learning_rate_scale": 1e6, "keep_prob": 0.1}
    said = flag_rules.nearer_to_defaults(defaults | chosen, defaults)
    assert "--learning_rate=" not in said
    for name, value in chosen.items():
        assert f"--{name}={value} ({defaults[name]})" in said
    without_units = defaults | chosen | {"cross_stitch": False}
    assert "cross_stitch" not in flag_rules.nearer_to_defaults(without_units, defaults)


@pytest.mark.parametrize("given, words", [
    ({"hard_sharing": True, "cross_stitch": False}, "one task has nothing to share: --hard_sharing"),
    ({"share_until": "pool_1"}, "one task has nothing to share: --share_until"),
    ({"share_until": "fc_3"}, "one task has nothing to share: --share_until"),
    ({"cross_stitch": False, "cross_stitch_init": 0.9}, "no cross-stitch units: --cross_stitch_init"),
    ({"hard_sharing": False}, None),
])  # fmt: skip
def test_what_one_task_makes_no_use_of_is_named(given, words, recwarn):
    flags = train.defaults() | given | {"tasks": "label"}
    flag_rules.warn_of_ignored(flag_rules.unified(flags), given.keys() - {"cross_stitch"})
    assert [words in str(one.message) for one in recwarn] == [True] * bool(words)
    # Two tasks share what the flags say.
    recwarn.clear()
    both = flag_rules.unified(train.defaults() | given | {"tasks": "a,b"})
    flag_rules.warn_of_ignored(both, given.keys() - {"cross_stitch", "cross_stitch_init"})
    assert not recwarn.list


def test_a_place_that_this_version_does_not_know_is_another_setting():
    defaults = train.defaults()
    other = differing({"share_until": "pool_9"}, {"share_until": None}, defaults)
    assert other == ["share_until"]


@pytest.mark.parametrize("size, is_said", [(1199, True), (1200, False), (600, False), (11, True)])
def test_a_last_batch_of_one_image_is_warned_of(size, is_said, tmp_path):
    """Of 1,200 images: batch norm makes of a single one nothing but constants."""
    finished = run(tmp_path, f"--batch_size={size}", "--max_steps=1")
    said = "the last batch of each epoch has one image" in " ".join(finished.stderr.split())
    assert finished.returncode == 0 and said == is_said, finished.stderr


def test_tasks_whose_names_differ_in_case_are_refused():
    """TensorFlow would give their curves other names."""
    assert "each once" in refusal_of("--tasks=Kind,kind")


@pytest.mark.parametrize("tasks, name", [
    ("article,group,group_by_article", "group_by_article"),  # an accuracy of the group's own
    ("a,b_from_c,a_from_b,c", "a_from_b_from_c"),  # a weight of a unit
])  # fmt: skip
def test_tasks_whose_curves_would_have_one_name_are_refused(tasks, name):
    words = f"--tasks={tasks}: two curves would have the name {name}: rename a task"
    assert refusal_of(f"--tasks={tasks}") == words


@pytest.mark.parametrize("given, word", [
    (("--hard_sharing", "--cross_stitch=True"), "hard sharing has one tower"),
    (("--share_until=fc_3", "--cross_stitch=True"), "hard sharing has one tower"),
    (("--hard_sharing", "--share_until=pool_1"), "leave out one"),
    (("--share_until=pool_2", "--cross_stitch_at=pool_1,fc_3"), "must name layers after"),
    (("--dataset=synthetic", "--data_dir=here"), "leave out one"),
    (("--overwrite", "--eval_only"), "leave out one"),
    (("--device=gpu", "--threads=2"), "leave out one"),
    (("--cross_stitch_own_only", "--cross_stitch_init=0.9"), "share nothing"),
    (("--starve=20", "--train_examples=100"), "--starve=20 --train_examples=100: .*leave out one"),
    (("--starve=20", "--label_only=group:9"), "--starve=20 --label_only=group:9: .*leave out one"),
    (("--tasks=article", "--label_only=group:9"), "group is none of the tasks"),
])  # fmt: skip
def test_flags_at_odds_are_refused_in_one_sentence(given, word):
    assert re.search(word, refusal_of(*given))


def test_labels_of_a_task_that_there_is_not_are_refused_when_the_data_are_known(small):
    with pytest.raises(data.DataError, match="'season' is none of the tasks article, group"):
        data.load("synthetic", label_only={"season": 9})


@pytest.mark.parametrize("flag, word", [
    ("--keep_prob=0", "above 0"), ("--batch_size=1201", "1,200 training images"),
])  # fmt: skip
def test_bad_flags_are_refused_in_one_sentence_before_any_work(flag, word, tmp_path):
    finished = run(tmp_path / "logs", flag)
    assert_one_sentence(finished, flag[2:].split("=")[0], word)
    assert not (tmp_path / "logs").exists()


def readme_flags():
    """The README's table: (flag, default) of each row."""
    return re.findall(r"^\| `--(\w+)` \| (.*?) \|", README.read_text(), re.M)


def test_readme_gives_the_flags_and_defaults_that_hold():
    defaults = {name: str(train.FLAGS[name].default) for name in train.flag_values()}
    assert dict(readme_flags()) == {
        name: "none" if default == "None" else default for name, default in defaults.items()
    }
    (aliases,) = re.findall(r"^The original's names work, too: (.*)$", README.read_text(), re.M)
    assert set(re.findall(r"--(\w+)", aliases)) == set(train.ALIASES)


# --- The curves ---


def test_plot_draws_both_curves_from_the_evaluations(runs, tmp_path):
    finished = run_script("study.plot", runs[0], f"--out={tmp_path}")
    assert finished.returncode == 0, finished.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["acc_test.png", "total_loss.png"]
    for picture in tmp_path.iterdir():
        red, _, blue, _ = matplotlib.image.imread(picture).transpose(2, 0, 1)
        assert np.mean(red > blue + 0.5) > 1e-4  # orange, without
        assert np.mean(blue > red + 0.5) > 1e-4  # blue, with


def test_plot_says_where_there_is_nothing_to_draw(tmp_path):
    finished = run_script("study.plot", tmp_path)
    assert_one_sentence(finished, str(tmp_path))
    finished = run_script("study.plot")
    assert_one_sentence(finished, "python -m study.plot logs")
