"""train.py and img/plot.py from the command line, as a user meets them."""

import io
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request

import matplotlib.image
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import OFFLINE, ROOT, run_script, run_train
from tensorboard.backend.event_processing import event_accumulator

import data
import model
import train
from img import matrices

README = ROOT / "README.md"
TASK_NAMES = ["article", "group"]
SMALL = "import data; data.SYNTHETIC_SIZES = (1200, 200)"
MEDIUM = "import data; data.SYNTHETIC_SIZES = (1200, 500)"
THIRD_TASK = (
    "import data; data.TASKS += (data.Task('season', ('summer', 'winter', 'any'),"
    " (0, 2, 1, 0, 1, 0, 2, 2, 2, 1)),)"
)


def run(logdir, *arguments, **options):
    return run_train(f"--logdir={logdir}", *arguments, **options)


def only_run(finished, logdir):
    """The one run below a log folder, which must have ended well. Returns: folder, results."""
    assert finished.returncode == 0, finished.stderr
    (run_dir,) = logdir.iterdir()
    return run_dir, json.loads((run_dir / "results.json").read_text())


def read_scalars(run_dir):
    """Tag -> list of (step, value)."""
    events = event_accumulator.EventAccumulator(str(run_dir), {event_accumulator.SCALARS: 0})
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()[event_accumulator.SCALARS]
    }


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Two short runs, with units and without. Returns: log folder, name -> process."""
    logdir = tmp_path_factory.mktemp("logs")
    given = (f"--logdir={logdir}", "--dataset=synthetic", "--max_steps=25", "--eval_every=10",
             "--batch_norm_decay=0.8")  # fmt: skip
    processes = {
        stitch: run_script("train.py", *given, f"--cross_stitch={stitch}", prelude=MEDIUM)
        for stitch in (True, False)
    }
    return logdir, processes


CHANNEL = "synthetic-channel-seed0-batch_norm_decay=0.8-max_steps=25-eval_every=10"


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


def on_gpu_machine(logdir, *arguments, **options):
    given = ("--dataset=synthetic", "--run_name=synthetic-run", "--eval_every=2", *arguments)
    prelude = f"{SMALL}\n{WITH_GPU}\nimport os; os.chdir({str(logdir.parent)!r})\n{SESSIONS}"
    return run_script("train.py", f"--logdir={logdir}", *given, prelude=prelude, **options)


@pytest.mark.slow
def test_without_the_flag_no_session_sees_a_gpu(tmp_path):
    logdir = tmp_path / "logs"
    finished = on_gpu_machine(logdir, "--max_steps=2", f"--export_dir={tmp_path / 'served'}")
    assert finished.returncode == 0, finished.stderr
    assert on_gpu_machine(logdir, "--max_steps=2", "--eval_only").returncode == 0
    sessions = (tmp_path / "sessions").read_text().splitlines()
    assert sessions == ["0 [True] False"] * 3  # training, export, evaluation
    assert json.loads((logdir / "synthetic-run" / "results.json").read_text())["device"] == "cpu"


@pytest.mark.slow
def test_a_run_on_a_gpu_trains_the_plain_graph_and_resumes_with_the_same_bits(tmp_path):
    values = []
    for name, lengths in (("once", [4]), ("resumed", [2, 4])):
        (tmp_path / name).mkdir()
        for steps in lengths:
            finished = on_gpu_machine(
                tmp_path / name / "logs", "--device=gpu", f"--max_steps={steps}"
            )
            assert finished.returncode == 0, finished.stderr
        run_dir = tmp_path / name / "logs" / "synthetic-run"
        reader = tf.train.load_checkpoint(str(run_dir))
        values.append({n: reader.get_tensor(n) for n in reader.get_variable_to_shape_map()})
        sessions = (tmp_path / name / "sessions").read_text().splitlines()
        assert set(sessions) == {"None [] True"}  # all GPUs are there, with memory as needed
    for name, value in values[0].items():
        np.testing.assert_array_equal(value, values[1][name])
    assert json.loads((run_dir / "results.json").read_text())["device"] == "Test GPU"
    graph = event_accumulator.EventAccumulator(str(run_dir)).Reload().Graph()
    types = {node.op for node in graph.node}
    assert "MaxPool" in types and not types & {"PartitionedCall", "StatefulPartitionedCall"}


@pytest.mark.slow
def test_a_run_stays_on_its_kind_of_device_until_it_is_finished(tmp_path):
    logdir = tmp_path / "logs"
    assert on_gpu_machine(logdir, "--max_steps=2").returncode == 0
    refused = on_gpu_machine(logdir, "--max_steps=4", "--device=gpu")
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert "--device=cpu, not --device=gpu" in refused.stderr
    evaluated = on_gpu_machine(logdir, "--eval_only", "--device=gpu")
    assert evaluated.returncode == 0 and "Evaluated:" in evaluated.stdout, evaluated.stderr


def test_without_a_gpu_the_flag_says_what_to_do(tmp_path):
    refused = run(tmp_path, "--dataset=synthetic", "--device=gpu", CUDA_VISIBLE_DEVICES="-1")
    assert_one_sentence(refused, "--device=gpu: TensorFlow finds no GPU", "leave out the flag")
    assert not list(tmp_path.iterdir())


# --- What another program has set, and where this one stands ---


def short_run(logdir, *arguments, prelude="", **environment):
    """In a process of its own, as a user starts it."""
    given = (f"--logdir={logdir}", "--dataset=synthetic", "--max_steps=1", *arguments)
    return run_script("train.py", *given, prelude=f"{SMALL}\n{prelude}", **environment)


def pictures_of(run_dir):
    events = event_accumulator.EventAccumulator(str(run_dir)).Reload()
    return set(events.Tags()["images"])


@pytest.mark.slow
def test_a_notebooks_backend_and_another_package_called_img_change_no_picture(tmp_path):
    other = tmp_path / "img"
    other.mkdir()
    (other / "__init__.py").write_text("")
    for backend in ("module://matplotlib_inline.backend_inline", "no such backend"):
        logdir = tmp_path / backend[:2]
        finished = short_run(logdir, MPLBACKEND=backend, PYTHONPATH=str(tmp_path))
        run_dir, _ = only_run(finished, logdir)
        assert "WARNING" not in finished.stderr, finished.stderr
        assert len(pictures_of(run_dir)) == 3  # of the units, and a matrix for each task


@pytest.mark.slow
def test_a_flag_for_another_programs_compiler_ends_no_run(tmp_path):
    finished = short_run(tmp_path, XLA_FLAGS="--no_such_flag=1")
    only_run(finished, tmp_path)
    assert "XLA_FLAGS is ignored" in finished.stderr


@pytest.mark.slow
def test_class_names_are_drawn_as_they_are(tmp_path):
    names = "('$', '$$', '$$$', 'a_$x$', '\\u88d9\\u5b50', 'Kn\\u00f6pfe', *'ghij')"
    prelude = (f"import data; data.TASKS = (data.TASKS[0]._replace(classes={names}),"
               " *data.TASKS[1:])")  # fmt: skip
    finished = short_run(tmp_path, prelude=prelude)
    run_dir, _ = only_run(finished, tmp_path)
    assert "WARNING" not in finished.stderr, finished.stderr
    assert len(pictures_of(run_dir)) == 3


C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.slow
@pytest.mark.parametrize("environment, name", [
    ({"PYTHONIOENCODING": "ascii"}, "caf\u00e9"), (C_LOCALE, "cafe"),
], ids=["terminal", "locale"])  # fmt: skip
def test_a_terminal_that_knows_no_accents_ends_no_run(environment, name, tmp_path):
    given = (f"--run_name=synthetic-{name}", "--tasks=article,rotation")
    finished = short_run(tmp_path, *given, **environment)
    _, results = only_run(finished, tmp_path)
    assert "90\u00b0" in results["recall"]["rotation"]
    evaluated = short_run(tmp_path, *given, "--eval_only", **environment)
    assert evaluated.returncode == 0 and "rotation" in evaluated.stdout, evaluated.stderr


def test_a_name_that_the_locale_cannot_read_is_refused(tmp_path):
    refused = short_run(tmp_path, "--run_name=synthetic-caf\u00e9", **C_LOCALE)
    assert_one_sentence(refused, "PYTHONUTF8=1")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone")
def test_another_repositorys_variables_change_no_commit(tmp_path, monkeypatch):
    """As git sets them for its hooks."""
    expected = train.commit()
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "index"))
    assert train.commit() == expected != "unknown"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_a_clone_of_another_user_has_a_commit_and_a_copy_says_that_it_has_none(tmp_path):
    clone, copy = tmp_path / "clone", tmp_path / "copy"
    subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
    for name in ("train.py", "model.py", "data.py"):
        shutil.copy(ROOT / name, clone)
    subprocess.run(["chown", "-R", "12345", clone], check=True)
    shutil.copytree(clone, copy, ignore=shutil.ignore_patterns(".git"))
    told = [
        subprocess.run([sys.executable, "-c", "import train; print(train.commit())"],
                       cwd=folder, capture_output=True, text=True).stdout.strip()
        for folder in (clone, copy)
    ]  # fmt: skip
    head = subprocess.check_output(["git", "-C", ROOT, "rev-parse", "HEAD"], text=True).strip()
    assert [version.removesuffix("-dirty") for version in told] == [head, "unknown"]


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["2>&-", "1>&-", "0<&- 1>&- 2>&-"])
def test_a_run_with_closed_streams_trains(closed, tmp_path):
    command = (f"{sys.executable} train.py --logdir={tmp_path} --dataset=synthetic --max_steps=1"
               f" --holdout=100 {closed}")  # fmt: skip
    assert subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True).returncode == 0
    (run_dir,) = tmp_path.iterdir()
    assert (run_dir / "results.json").exists()


@pytest.mark.slow
def test_a_system_without_tail_or_git_trains(tmp_path):
    finished = short_run(tmp_path, PATH="/nowhere")
    assert only_run(finished, tmp_path)[1]["commit"] == "unknown"


@pytest.mark.parametrize("folder", [".", "./", "served/", "/", "~", "sub/../served"])
def test_an_export_folder_by_any_name_is_used_or_refused_in_a_sentence(folder, tmp_path):
    prelude = f"{SMALL}; import os; os.chdir({str(tmp_path)!r})"
    finished = run_train("--logdir=logs", "--dataset=synthetic", "--max_steps=1", "--eval_every=9",
                         f"--export_dir={folder}", prelude=prelude)  # fmt: skip
    if "served" in folder:
        assert finished.returncode == 0, finished.stderr
        assert (tmp_path / "served" / "saved_model.pb").exists()
    else:
        assert_one_sentence(finished, "--export_dir")


@pytest.mark.slow
def test_too_little_memory_is_said_in_a_sentence(tmp_path):
    prelude = """
import model, resource, tensorflow
build = model.build
def build_in_little_memory(*args):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    net = build(*args)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**28,) * 2)
    import numpy
    numpy.ones(2**30)
model.build = build_in_little_memory
"""
    failed = short_run(tmp_path, prelude=prelude)
    assert failed.returncode == 1 and "Traceback" not in failed.stderr, failed.stderr
    assert "not enough memory" in failed.stderr.splitlines()[-1]


# --- Runs ---


@pytest.mark.slow
def test_a_short_run_learns_the_real_data(fashion_mnist, tmp_path):
    # Held-out images are the faster ones to evaluate: there are only a thousand.
    finished = run(tmp_path, "--max_steps=120", "--eval_every=60", "--holdout=1000")
    run_dir, results = only_run(finished, tmp_path)
    assert run_dir.name.startswith("fashion_mnist-channel-seed0-")
    assert results["dataset"] == "fashion_mnist"
    assert results["accuracy_test"]["article"] > 0.6  # chance: 0.1
    assert results["accuracy_test"]["group"] > 0.7  # the largest group: 0.4
    losses = read_scalars(run_dir)["summary/loss_total"]
    assert [step for step, _ in losses] == [60, 120]
    assert max(loss for _, loss in losses) < 0.7 * (np.log(10) + np.log(3))  # chance: 3.4


def test_runs_end_well_and_each_has_a_folder_that_says_what_it_is(runs):
    logdir, processes = runs
    for process in processes.values():
        assert process.returncode == 0, process.stderr
    assert run_dirs(logdir) == [CHANNEL, CHANNEL.replace("channel", "none")]


def test_event_files_hold_the_references_tags_at_each_evaluation(runs):
    for run_dir in runs[0].iterdir():
        scalars = read_scalars(run_dir)
        for tag in ("accuracy_test", "accuracy_train", "loss_total", "accuracy_test_article",
                    "accuracy_test_group", "images_per_second"):  # fmt: skip
            steps = [step for step, _ in scalars[f"summary/{tag}"]]
            assert steps == [10, 20, 25], tag
        means = np.mean([[v for _, v in scalars[f"summary/accuracy_test_{task}"]]
                         for task in ("article", "group")], axis=0)  # fmt: skip
        np.testing.assert_allclose([v for _, v in scalars["summary/accuracy_test"]], means, 1e-6)
        # Every test image counted once: a share of 500.
        shares = np.array([v for _, v in scalars["summary/accuracy_test_article"]]) * 500
        np.testing.assert_allclose(shares, np.round(shares), atol=1e-3)


def test_the_graph_page_opens_to_the_scopes_and_no_more(runs):
    # As TensorBoard reads it: with the session's own ops, without functions.
    events = event_accumulator.EventAccumulator(str(runs[0] / CHANNEL)).Reload()
    graph = events.Graph()
    assert {node.name.split("/")[0] for node in graph.node} == {
        "placeholder", "network", "loss", "evaluation", "train", "summary"}  # fmt: skip
    inside = {n.name.split("/")[1] for n in graph.node if n.name.startswith("network/")}
    layers = ("conv1", "pool_1", "conv2", "pool_2", "flatten", "fc_3", "dropout", "output")
    towers = {f"{layer}_{t}" for layer in layers for t, _ in enumerate(TASK_NAMES, 1)}
    assert inside == towers | {f"cross_stitch_{i}" for i in (1, 2, 3)}
    assert not graph.HasField("library")


def test_results_say_what_happened(runs):
    train.FLAGS(["train.py"])
    threads = train.cores()
    train.FLAGS.unparse_flags()
    for stitch, run_dir in zip((True, False), sorted(runs[0].iterdir())):
        results = json.loads((run_dir / "results.json").read_text())
        scalars = read_scalars(run_dir)
        assert results["dataset"] == "synthetic" and results["seed"] == 0
        assert results["global_step"] == 25
        assert results["flags"]["cross_stitch"] is stitch
        assert results["flags"]["batch_norm_decay"] == 0.8
        assert results["numerics"] == train.NUMERICS
        assert set(results["versions"]) == {"python", "tensorflow", "tf-slim", "numpy"}
        assert results["machine"]["threads"] == threads and results["machine"]["processor"]
        if (ROOT / ".git").exists():
            head = subprocess.check_output(["git", "-C", ROOT, "rev-parse", "HEAD"], text=True)
            assert results["commit"].removesuffix("-dirty") == head.strip()
        assert list(results["accuracy_test"]) == [*TASK_NAMES, "mean"]
        assert results["images_per_second"] > 0
        # The seconds of 24 steps of training cannot be more than all there were.
        assert 24 * 100 / results["images_per_second"] < results["wall_seconds"]
        for key, tag in (("article", "accuracy_test_article"), ("mean", "accuracy_test")):
            values = [value for _, value in scalars[f"summary/{tag}"]]
            assert results["accuracy_test"][key] == pytest.approx(values[-1], abs=1e-6)
            assert results["accuracy_test_last"][key] == pytest.approx(np.mean(values), abs=1e-6)
        assert results["loss_total"] == pytest.approx(scalars["summary/loss_total"][-1][1])
        expected = ["cross_stitch_1", "cross_stitch_2", "cross_stitch_3"] if stitch else []
        assert list(results["cross_stitch"]) == expected


def test_the_checkpoint_is_the_network_that_the_results_describe(runs, monkeypatch):
    monkeypatch.setattr(data, "SYNTHETIC_SIZES", (1200, 500))
    test = data.load("synthetic", seed=0)
    net = model.build([(task.name, len(task.classes)) for task in test.tasks])
    with tf.Session(graph=net.graph) as session:
        with net.graph.as_default():
            tf.train.Saver().restore(session, tf.train.latest_checkpoint(runs[0] / CHANNEL))
        assert session.run(net.global_step) == 25
        images, labels = test.batch(test.test, slice(None))
        right = session.run(net.predictions, {net.x: images, net.is_training: False})
        stitches = session.run(net.stitches)
    results = json.loads((runs[0] / CHANNEL / "results.json").read_text())
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
    results = json.loads((logdir / CHANNEL / "results.json").read_text())
    table = processes[True].stdout
    for share in results["accuracy_test"].values():
        assert f"{share:.4f}" in table
    row = rf"(?:{'|'.join(TASK_NAMES)})((?: +-?\d\.\d{{3}}){{{len(TASK_NAMES)}}})$"
    shown = [[float(cell) for cell in cells.split()] for cells in re.findall(row, table, re.M)]
    weights = np.concatenate(list(results["cross_stitch"].values()))
    np.testing.assert_allclose(shown, weights, atol=5.1e-4)
    assert "cross_stitch" not in processes[False].stdout


def test_the_terminal_shows_progress_and_no_noise(runs):
    for process in runs[1].values():
        shown = process.stderr.split("\r")[-1]
        for part in ("synthetic", "100%", "img/s", "loss", "article 0.", "group 0."):
            assert part in shown
        for noise in ("I0000", "E0000", "W0000", "Warning", "deprecated", "oneDNN", "INFO"):
            assert noise not in without_compiler(process.stderr) + process.stdout


def test_the_same_command_again_shows_the_table_and_trains_nothing(runs):
    logdir, processes = runs
    before = sorted((logdir / CHANNEL).iterdir())
    again = run(logdir, "--dataset=synthetic", "--max_steps=25", "--eval_every=10",
                  "--batch_norm_decay=0.8", prelude=MEDIUM)  # fmt: skip
    assert again.returncode == 0 and "finished" in again.stdout
    assert processes[True].stdout.split("\n\n", 1)[1] in again.stdout
    assert sorted((logdir / CHANNEL).iterdir()) == before


@pytest.mark.slow
def test_a_larger_max_steps_goes_on_where_the_run_ended(tmp_path):
    given = ("--dataset=synthetic", "--run_name=synthetic-long", "--eval_every=2")
    for steps in (3, 6):
        finished = run(tmp_path, *given, f"--max_steps={steps}", prelude=SMALL)
        assert finished.returncode == 0, finished.stderr
    results = json.loads((tmp_path / "synthetic-long" / "results.json").read_text())
    assert results["global_step"] == 6
    steps = [step for step, _ in read_scalars(tmp_path / "synthetic-long")["summary/loss_total"]]
    assert steps == [2, 3, 4, 6]


def test_a_setting_that_an_older_run_did_not_record_means_the_default(tmp_path):
    given = ("--dataset=synthetic", "--max_steps=1")
    run_dir, _ = only_run(run(tmp_path, *given, prelude=SMALL), tmp_path)
    settings = json.loads((run_dir / "settings.json").read_text())
    del settings["batch_norm_decay"], settings["share_until"]
    (run_dir / "settings.json").write_text(json.dumps(settings))
    resumed = run(tmp_path, *given, prelude=SMALL)
    assert resumed.returncode == 0 and "this run is finished" in resumed.stdout, resumed.stderr
    refused = run(tmp_path, *given, "--batch_norm_decay=0.999", f"--run_name={run_dir.name}",
                  prelude=SMALL)  # fmt: skip
    assert_one_sentence(refused, "started with --batch_norm_decay=0.9, not", "Resume it with")


def test_another_task_is_one_more_entry_in_the_table(tmp_path):
    finished = run(tmp_path, "--dataset=synthetic", "--max_steps=2", "--tasks=article,group,season",
                     prelude=f"{SMALL}; {THIRD_TASK}")  # fmt: skip
    _, results = only_run(finished, tmp_path)
    assert list(results["accuracy_test"]) == [*TASK_NAMES, "season", "mean"]
    assert len(results["cross_stitch"]["cross_stitch_1"]) == len(TASK_NAMES) + 1
    assert "season" in finished.stdout and "season" in finished.stderr


def test_a_single_task_trains_too(tmp_path):
    finished = run(tmp_path, "--dataset=synthetic", "--max_steps=2", "--tasks=group",
                     prelude=SMALL)  # fmt: skip
    _, results = only_run(finished, tmp_path)
    assert list(results["accuracy_test"]) == ["group", "mean"]
    assert results["accuracy_test"]["group"] == results["accuracy_test"]["mean"]


@pytest.mark.slow
def test_hard_sharing_and_share_until_fc_3_are_one_run(tmp_path):
    given = ("--dataset=synthetic", "--max_steps=2")
    once, results = only_run(run(tmp_path, *given, "--share_until=fc_3", prelude=SMALL), tmp_path)
    assert once.name.startswith("synthetic-hard_sharing-seed0") and results["cross_stitch"] == {}
    again = run(tmp_path, *given, "--hard_sharing", "--cross_stitch=False", prelude=SMALL)
    assert again.returncode == 0 and "this run is finished" in again.stdout
    assert run_dirs(tmp_path) == [once.name]


@pytest.mark.slow
def test_units_at_one_place_behind_shared_layers_name_the_run_and_are_exported(tmp_path):
    logdir, served = tmp_path / "logs", tmp_path / "served"
    given = ("--dataset=synthetic", "--max_steps=2", "--share_until=pool_1",
             "--cross_stitch_at=fc_3")  # fmt: skip
    run_dir, results = only_run(
        run(logdir, *given, f"--export_dir={served}", prelude=SMALL), logdir
    )
    assert run_dir.name.endswith("cross_stitch_at=fc_3-share_until=pool_1-max_steps=2")
    assert list(results["cross_stitch"]) == ["cross_stitch_3"]
    resumed = run(logdir, *given, "--run_name=" + run_dir.name, "--max_steps=3", prelude=SMALL)
    assert resumed.returncode == 0 and "Resuming after step 2" in resumed.stdout
    variables = [name for name, _ in tf.train.list_variables(str(served / "variables/variables"))]
    assert "network/conv1_1/weights" in variables and "network/conv1_2/weights" not in variables


@pytest.mark.slow
def test_label_files_written_as_readme_shows_are_a_task(fashion_mnist, tmp_path):
    """README's code, word for word, with labels that say whether an article has sleeves."""
    folder = pathlib.Path(os.environ.get(data.FOLDER_VARIABLE) or data.cache_folder()).resolve()
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in data.FILES:
        (mine / name).symlink_to(folder / name)
    sleeves = np.isin(np.arange(10), (0, 2, 3, 4, 6)).astype(int)
    train_labels, test_labels = (
        sleeves[split.articles] for split in (fashion_mnist.train, fashion_mnist.test)
    )
    (code,) = re.findall(r"```python\n(import numpy.*?)```", README.read_text(), re.S)
    here = os.getcwd()
    os.chdir(mine)
    try:
        exec(code, {"train_labels": train_labels, "test_labels": test_labels})
    finally:
        os.chdir(here)
    (mine / "sleeves-classes.txt").write_text("without\nwith\n")
    logdir = tmp_path / "logs"
    finished = run(logdir, f"--data_dir={mine}", "--tasks=article,sleeves", "--max_steps=15",
                   "--train_examples=2000")  # fmt: skip
    _, results = only_run(finished, logdir)
    assert set(results["recall"]["sleeves"]) == {"without", "with"}
    assert np.sum(results["confusion"]["sleeves"], axis=1).tolist() == [5000, 5000]
    assert results["accuracy_test"]["sleeves"] > 0.7


@pytest.mark.slow
def test_readmes_unit_is_trained_killed_resumed_exported_and_shown(tmp_path):
    """README's code, word for word, after `UNITS` in a copy of the program."""
    (code,) = re.findall(r"```python\n(def \w+_unit.*?)```", README.read_text(), re.S)
    assert len(code.partition("\n\n\n")[0].splitlines()) <= 10
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "img", copy / "img", ignore=shutil.ignore_patterns("records", "*.png"))
    for name in ("train.py", "model.py", "data.py"):
        shutil.copy(ROOT / name, copy)
    above, units, below = re.split(r"^(UNITS = \{.*?\}\n)", (copy / "model.py").read_text(),
                                   maxsplit=1, flags=re.S | re.M)  # fmt: skip
    (copy / "model.py").write_text(f"{above}{units}\n\n{code}{below}")
    given = ("--dataset=synthetic", "--cross_stitch_unit=factored", "--max_steps=40",
             "--batch_size=32", "--eval_every=10", "--save_checkpoint_secs=0.2")  # fmt: skip
    weights = []
    for name in ("whole", "killed"):
        command = [sys.executable, "-c", f"{SMALL}\nimport runpy, sys; sys.argv[0] = 'train.py'\n"
                   "runpy.run_path('train.py', run_name='__main__')", *given,
                   f"--logdir={tmp_path / name}"]  # fmt: skip
        run_dir = (
            tmp_path / name / "synthetic-factored-seed0-batch_size=32-max_steps=40-eval_every=10"
        )
        if name == "killed":
            with subprocess.Popen(command, cwd=copy, stderr=subprocess.PIPE) as process:
                while not list(run_dir.glob("*.index")) and process.poll() is None:
                    time.sleep(0.01)
                process.kill()
        finished = subprocess.run([*command, f"--export_dir={tmp_path / name}-served"], cwd=copy,
                                  capture_output=True, text=True)  # fmt: skip
        assert finished.returncode == 0, finished.stderr
        reader = tf.train.load_checkpoint(str(run_dir))
        shapes = reader.get_variable_to_shape_map()
        weights.append({name: reader.get_tensor(name).tobytes() for name in shapes})
        events = event_accumulator.EventAccumulator(str(run_dir)).Reload()
        units = {f"summary/cross_stitch_{i}/weights" for i in (1, 2, 3)}
        assert set(events.Tags()["histograms"]) == units
        assert "summary/cross_stitch_1/article_from_group" in events.Tags()["scalars"]
    assert "Resuming after step" in finished.stdout
    assert weights[0] == weights[1]
    assert shapes["network/cross_stitch_2/scales"] == [2, 64]
    saved = [v for v, _ in tf.train.list_variables(f"{tmp_path}/killed-served/variables/variables")]
    assert "network/cross_stitch_3/pairs" in saved


def test_a_starved_run_says_which_articles_were_rare_and_how_well_each_class_did(tmp_path):
    given = ("--dataset=synthetic", "--starve=20", "--seed=2", "--max_steps=6", "--eval_every=1",
             "--batch_size=32")  # fmt: skip
    run_dir, results = only_run(run(tmp_path, *given, prelude=SMALL), tmp_path)
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
                tag = f"class/{task}/{index}_{name.replace('/', '-')}/{measure}"
                assert [step for step, _ in scalars[tag]] == [1, 2, 3, 4, 5, 6]
                mean = np.mean([value for _, value in scalars[tag]][-5:])
                assert last[name] == pytest.approx(mean, abs=1e-6)
    # The last evaluation's, from the confusion matrix.
    confusion = np.array(results["confusion"]["article"])
    right = np.diag(confusion)
    for index, name in enumerate(data.ARTICLES):
        tag = f"class/article/{index}_{name.replace('/', '-')}"
        assert scalars[f"{tag}/recall"][-1][1] == pytest.approx(
            right[index] / confusion[index].sum()
        )
        both = confusion[index].sum() + confusion[:, index].sum()
        assert scalars[f"{tag}/f1"][-1][1] == pytest.approx(2 * right[index] / both, abs=1e-6)
    alone = run(tmp_path, *given, "--train_examples=100", prelude=SMALL)
    assert_one_sentence(alone, "--starve=20 --train_examples=100", "leave out one")


def test_hard_sharing_of_tasks_in_another_order(tmp_path):
    finished = run(tmp_path, "--dataset=synthetic", "--max_steps=2", "--tasks=group,article",
                     "--hard_sharing", "--cross_stitch=False", prelude=SMALL)  # fmt: skip
    run_dir, results = only_run(finished, tmp_path)
    assert run_dir.name.startswith("synthetic-hard_sharing-seed0-tasks=group,article")
    assert list(results["accuracy_test"]) == ["group", "article", "mean"]
    assert "hard sharing" in finished.stdout and results["cross_stitch"] == {}


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["channel", "nddr"])
def test_towers_start_from_a_finished_run_and_go_their_own_way(unit, tmp_path):
    given = ("--dataset=synthetic", "--max_steps=3", "--eval_every=1", "--seed=7")
    alone = run(tmp_path, *given, "--cross_stitch=False", "--run_name=synthetic-alone",
                prelude=SMALL)  # fmt: skip
    assert alone.returncode == 0, alone.stderr
    source = tmp_path / "synthetic-alone"
    # At a rate of next to nothing, with units that are the identity, it is that run.
    rates = (f"--init_from={source}", f"--cross_stitch_unit={unit}", "--lr=1e-30",
             "--batch_norm_decay=0.99999")  # fmt: skip
    still = run(tmp_path, *given, *rates, prelude=SMALL)
    assert still.returncode == 0, still.stderr
    (run_dir,) = tmp_path.glob("*init_from=synthetic-alone*")
    accuracies = [
        json.loads((path / "results.json").read_text())["accuracy_test"]
        for path in (source, run_dir)
    ]
    assert accuracies[0] == accuracies[1]
    # A run that goes on needs its source no more.
    shutil.rmtree(source)
    longer = run(tmp_path, *given[:1], "--max_steps=4", *given[2:], *rates,
                 f"--run_name={run_dir.name}", prelude=SMALL)  # fmt: skip
    assert longer.returncode == 0 and "Resuming after step 3." in longer.stdout, longer.stderr


def test_a_tower_alone_has_no_units_and_may_be_started_from(tmp_path):
    given = ("--dataset=synthetic", "--max_steps=1", "--tasks=article")
    assert run(tmp_path, *given, "--run_name=synthetic-one", prelude=SMALL).returncode == 0
    source = tmp_path / "synthetic-one"
    started = run(tmp_path, *given, "--seed=1", f"--init_from={source}", prelude=SMALL)
    assert started.returncode == 0, started.stderr
    refused = run(tmp_path, *given, "--run_name=synthetic-one", "--cross_stitch=False",
                  prelude=SMALL)  # fmt: skip
    assert_one_sentence(refused, "--cross_stitch=True, not --cross_stitch=False.")


def test_only_a_finished_unstitched_run_of_the_same_tasks_lends_its_towers(runs, tmp_path):
    (alone,) = runs[0].glob("synthetic-none*")
    there = shutil.copytree(runs[0] / CHANNEL, tmp_path / "synthetic-there")
    pruned = shutil.copytree(alone, tmp_path / "pruned", ignore=shutil.ignore_patterns("*ckpt*"))
    for source, words, given in (
        (tmp_path, ["not the folder of a finished run"], []),
        (runs[0] / CHANNEL, ["--cross_stitch=False"], []),
        (alone, ["--tasks=group,article"], ["--tasks=group,article"]),
        (pruned, ["checkpoints are gone"], []),
    ):
        refused = run(tmp_path, "--dataset=synthetic", f"--init_from={source}", *given,
                      "--overwrite", f"--run_name={there.name}", prelude=MEDIUM)  # fmt: skip
        assert_one_sentence(refused, "--init_from", str(source), *words)
    # What was to be overwritten is still all there.
    assert {p.name for p in there.iterdir()} == {p.name for p in (runs[0] / CHANNEL).iterdir()}


# --- The model taken away ---


def test_a_finished_run_is_exported_and_evaluated_by_the_same_command(runs, tmp_path):
    given = ("--dataset=synthetic", "--max_steps=25", "--eval_every=10", "--batch_norm_decay=0.8")
    served = tmp_path / "served"
    finished = run(
        runs[0],
        *given,
        "--cross_stitch=True",
        "--eval_only",
        f"--export_dir={served}",
        prelude=MEDIUM,
    )
    assert finished.returncode == 0, finished.stderr
    results = json.loads((runs[0] / CHANNEL / "results.json").read_text())
    shares = [f"{name} {results['accuracy_test'][name]:.4f}" for name in TASK_NAMES]
    assert f"Evaluated: {', '.join(shares)}" in finished.stdout
    for task in TASK_NAMES:
        for name, recall in results["recall"][task].items():
            counts = results["confusion"][task][list(results["recall"][task]).index(name)]
            cells = r"\s+".join([f"{recall:.3f}", *map(str, counts)])
            assert re.search(rf"{re.escape(name)}\s+{cells}$", finished.stdout, re.M)
    saved_model_cli = [sys.executable, "-m", "tensorflow.python.tools.saved_model_cli"]
    show = ["show", "--dir", served, "--tag_set=serve", "--signature_def=serving_default"]
    shown = subprocess.run([*saved_model_cli, *show], capture_output=True, text=True).stdout
    assert "inputs['images'] tensor_info" in shown and "DT_UINT8" in shown
    np.save(tmp_path / "images.npy", np.zeros([3, 28, 28], np.uint8))
    ran = subprocess.run(
        [*saved_model_cli, "run", *show[1:], f"--inputs=images={tmp_path}/images.npy"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert "Result for output key article_name" in ran.stdout, ran.stderr
    before = {path: path.stat().st_mtime_ns for path in served.rglob("*")}
    again = run(runs[0], *given, f"--export_dir={served}", prelude=MEDIUM)
    assert again.returncode == 0 and f"{served}: holds this run's network" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in served.rglob("*")} == before
    other = run(runs[0], *given, "--cross_stitch=False", f"--export_dir={served}", prelude=MEDIUM)
    assert_one_sentence(other, str(served), "holds something else")


@pytest.mark.slow
def test_an_export_that_was_killed_is_made_again_whole(runs, tmp_path):
    """The run is killed where TensorFlow writes the graph, after the variables."""
    served = tmp_path / "served"
    given = ("--dataset=synthetic", "--max_steps=25", "--eval_every=10", "--batch_norm_decay=0.8",
             f"--export_dir={served}")  # fmt: skip
    kill = (
        "import os, signal, tensorflow.compat.v1 as tf\n"
        "tf.saved_model.Builder.save = lambda _: os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = run(runs[0], *given, prelude=f"{MEDIUM}\n{kill}")
    assert killed.returncode == -signal.SIGKILL and not served.exists()
    assert run(runs[0], *given, prelude=MEDIUM).returncode == 0
    assert {path.name for path in served.iterdir()} == {"run.json", "saved_model.pb", "variables"}
    assert [path.name for path in tmp_path.iterdir()] == ["served"]


def test_an_export_folder_in_use_is_refused_before_any_training(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("mine")
    finished = run(tmp_path / "logs", "--dataset=synthetic", "--max_steps=2",
                   f"--export_dir={mine}", prelude=SMALL)  # fmt: skip
    assert_one_sentence(finished, str(mine), "holds something else")
    assert not list(tmp_path.rglob("events*")) and (mine / "thesis.txt").exists()


def test_an_export_is_not_taken_for_that_of_a_run_that_starts_over(tmp_path):
    given = ("--dataset=synthetic", "--max_steps=2", f"--export_dir={tmp_path / 'served'}")
    assert run(tmp_path / "logs", *given, prelude=SMALL).returncode == 0
    before = sorted(tmp_path.rglob("*"))
    again = run(tmp_path / "logs", *given, "--overwrite", prelude=SMALL)
    assert_one_sentence(again, "served: holds something else")
    assert sorted(tmp_path.rglob("*")) == before  # and nothing was overwritten


def test_a_finished_run_is_read_without_writing(runs, tmp_path):
    """As on a read-only disk: root may write anywhere, so `open` and `mkdir` refuse to."""
    read_only = (
        "import builtins, errno, os, pathlib; reading = open\n"
        "def refuse(path, *_, **__): raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))\n"
        "def opened(path, mode='r', *a, **k):\n"
        f"    inside = str(path).startswith({str(runs[0])!r}) and set(mode) & set('wax+')\n"
        "    return refuse(path) if inside else reading(path, mode, *a, **k)\n"
        "builtins.open = opened; pathlib.Path.mkdir = pathlib.Path.write_text = refuse"
    )
    given = ("--dataset=synthetic", "--max_steps=25", "--eval_every=10", "--batch_norm_decay=0.8")
    finished = run(runs[0], *given, "--eval_only", prelude=f"{MEDIUM}\n{read_only}")
    assert finished.returncode == 0, finished.stderr
    assert "Evaluated: article" in finished.stdout
    refused = run(runs[0], *given, "--seed=9", prelude=f"{MEDIUM}\n{read_only}")
    assert_one_sentence(refused, "Read-only file system")  # the test itself refuses writing


def test_only_a_finished_run_is_evaluated(tmp_path):
    finished = run(tmp_path, "--dataset=synthetic", "--eval_only", prelude=SMALL)
    assert_one_sentence(finished, "not a finished run")
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_checkpoints_is_neither_evaluated_nor_exported(runs, tmp_path):
    shutil.copytree(runs[0] / CHANNEL, tmp_path / CHANNEL, ignore=shutil.ignore_patterns("*ckpt*"))
    for wish in ("--eval_only", f"--export_dir={tmp_path / 'served'}"):
        finished = run(tmp_path, "--dataset=synthetic", "--max_steps=25", "--eval_every=10",
                       "--batch_norm_decay=0.8", wish, prelude=MEDIUM)  # fmt: skip
        assert_one_sentence(finished, CHANNEL, "checkpoints are gone", "--overwrite")
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
    assert [step for _, step, _ in points] == [10, 20, 25]
    start, *later = tensorboard(
        "scalars/scalars", tag="summary/cross_stitch_1/article_from_group", run=CHANNEL
    )
    assert start[1:] == [0, 0] and [step for _, step, _ in later] == [10, 20, 25]
    assert b"network/cross_stitch_1" in tensorboard("graphs/graph", run=CHANNEL, conceptual="false")


def test_tensorboard_shows_what_the_units_learn(tensorboard, runs):
    units = [f"summary/cross_stitch_{i}" for i in (1, 2, 3)]
    assert set(tensorboard("histograms/tags")[CHANNEL]) == {f"{unit}/weights" for unit in units}
    histograms = tensorboard("histograms/histograms", tag=f"{units[0]}/weights", run=CHANNEL)
    counts = {step: sum(count for *_, count in bins) for _, step, bins in histograms}
    assert counts == dict.fromkeys((0, 10, 20, 25), 2 * 2 * 32)  # the entries of a unit
    tags = {"mean_weights", "confusion_article", "confusion_group"}
    shown = tensorboard("images/tags")[CHANNEL]
    assert set(shown) == {f"summary/{tag}" for tag in tags}
    for tag, steps in (("mean_weights", [10, 20, 25]), ("confusion_article", [25])):
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
        with tf.Graph().as_default(), tf.summary.FileWriter(str(folder)) as writer:
            train.add_unit_picture(writer, {"cross_stitch_1": weights}, TASK_NAMES, 1)
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


@pytest.mark.parametrize("argument, word", [
    ("False", "--cross_stitch=False"), ("num_epochs=1", "--name=value"), ("-", "not a flag"),
    ("--log_dir=X", "--logdir"), ("--verbosity=1", "no effect"), ("--alsologtostderr", "no effect"),
    ("--cross_st=False", "cross_st"),
])  # fmt: skip
def test_what_is_no_flag_is_refused(argument, word, tmp_path):
    finished = run(tmp_path, "--dataset=synthetic", "--cross_stitch", argument)
    assert_one_sentence(finished, word)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", ["plot", "reproduce"])  # screenshots.py needs selenium
def test_the_other_scripts_refuse_it_too(script, tmp_path):
    finished = run_script(f"img/{script}.py", "--log_dir=X")
    assert finished.returncode != 0 and "log_dir" in finished.stderr
    assert "Traceback" not in finished.stderr


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
        f"import data; data.SYNTHETIC_SIZES = (1200, 200); handler = signal.getsignal(signal.SIGINT)\n"
        "for flags in (['--seed=3', '--max_steps=1'], ['--max_steps=2'], ['--max_steps=2', '--overwrite']):\n"
        f"    sys.argv = ['train.py', '--dataset=synthetic', '--logdir={tmp_path}', *flags]\n"
        "    try:\n"
        f"        runpy.run_path('{ROOT}/train.py', run_name='__main__')\n"
        "    except SystemExit as end:\n"
        "        assert not end.code\n"
        "import threading\n"
        "print(json.dumps(signal.getsignal(signal.SIGINT) is handler\n"
        "    and threading.excepthook is threading.__excepthook__))"
    )
    assert in_python(program) is True
    names = ["synthetic-channel-seed0-max_steps=2", "synthetic-channel-seed3-max_steps=1"]
    assert run_dirs(tmp_path) == names
    # The one that started over has an event file of its own, not the deleted one's writer.
    steps = [step for step, _ in read_scalars(tmp_path / names[0])["summary/accuracy_test"]]
    assert steps == [2] and (tmp_path / names[0] / "results.json").exists()


@pytest.mark.slow
def test_threads_that_tensorflow_has_already_started_give_one_sentence(tmp_path):
    used = "import tensorflow as tf; tf.constant(1) + 1"
    finished = run_script(
        "train.py", "--dataset=synthetic", "--threads=3", f"--logdir={tmp_path}", prelude=used
    )
    assert finished.returncode == 1
    assert "already started its threads" in finished.stderr and "Traceback" not in finished.stderr


@pytest.mark.slow
def test_what_tensorflow_says_before_it_dies_is_seen(tmp_path):
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
    wrong_flags = subprocess.run(
        [sys.executable, ROOT / "train.py", "--dataset=synthetic", f"--logdir={tmp_path}"],
        capture_output=True, text=True, env={**os.environ, "TF_XLA_FLAGS": "--nonsense"},
    )  # fmt: skip
    assert "--nonsense" in wrong_flags.stderr


@pytest.mark.slow
def test_a_run_of_another_distribution_of_tensorflow_has_results(tmp_path):
    """tensorflow-cpu has the module tensorflow, and no metadata of that name."""
    no_metadata = (
        "import importlib.metadata as m; version = m.version\n"
        "def of(name):\n"
        "    if name == 'tensorflow': raise m.PackageNotFoundError(name)\n"
        "    return version(name)\n"
        "m.version = of"
    )
    finished = run(
        tmp_path, "--dataset=synthetic", "--max_steps=1", prelude=f"{SMALL}\n{no_metadata}"
    )
    _, results = only_run(finished, tmp_path)
    assert results["versions"]["tensorflow"] == tf.__version__


@pytest.mark.parametrize("quota, threads", [
    ("max 100000\n", 64), ("150000 100000\n", 2), ("50000 100000\n", 1), (None, 64),
])  # fmt: skip
def test_a_containers_quota_counts_in_whole_cores(quota, threads, tmp_path, monkeypatch):
    """No quota can be set here: a file takes the place of the system's."""
    if quota:
        (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(train, "CPU_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    if not train.FLAGS.is_parsed():
        train.FLAGS(["train.py"])
    assert train.cores() == threads


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs Linux")
def test_a_run_of_one_core_is_repeated_bit_by_bit_with_one_thread(tmp_path):
    given = ("--dataset=synthetic", "--max_steps=6", "--eval_every=3")
    one_core = f"import os; os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}})"
    weights = []
    for name, prelude, extra in (
        ("core", f"{SMALL}; {one_core}", ()),
        ("thread", SMALL, ("--threads=1",)),
    ):
        logdir = tmp_path / name
        run_dir, results = only_run(run(logdir, *given, *extra, prelude=prelude), logdir)
        assert results["machine"]["threads"] == 1
        reader = tf.train.load_checkpoint(str(run_dir))
        names = sorted(reader.get_variable_to_shape_map())
        weights.append({name: reader.get_tensor(name).tobytes() for name in names})
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    "logdir", ["{}/r[1]/logs", "{}/r*/logs", "{}/r?/logs", "gs://bucket/logs", "~no_such_user/logs"]
)
def test_a_folder_that_tensorflow_cannot_use_is_refused_at_once(logdir, tmp_path):
    finished = run(logdir.format(tmp_path), "--dataset=synthetic", prelude=SMALL)
    assert_one_sentence(finished, "Choose another folder")
    assert list(tmp_path.iterdir()) == []


# --- Without data ---


def offline(tmp_path, *arguments):
    return run(
        tmp_path / "logs", *arguments, prelude=f"{SMALL}; {OFFLINE}",
        FASHION_MNIST_DIR=None, XDG_CACHE_HOME=str(tmp_path / "cache"),
    )  # fmt: skip


def test_without_data_and_network_the_synthetic_set_says_its_name_everywhere(tmp_path):
    finished = offline(tmp_path, "--max_steps=2", "--run_name=mine")
    assert finished.returncode == 0, finished.stderr
    assert "THIS IS NOT FASHION-MNIST" in finished.stderr
    (run_dir,) = (tmp_path / "logs").iterdir()
    assert run_dir.name == "mine-synthetic"  # not even under a name of one's own
    assert json.loads((run_dir / "results.json").read_text())["dataset"] == "synthetic"
    assert re.search(r"synthetic 100%", finished.stderr)
    assert "synthetic, channel" in finished.stdout
    events = event_accumulator.EventAccumulator(str(run_dir)).Reload()
    assert b"synthetic" in events.Tensors("run/text_summary")[0].tensor_proto.string_val[0]


def assert_one_sentence(finished, *words):
    assert finished.returncode != 0
    for word in words:
        assert word in finished.stderr
    assert "Traceback" not in finished.stderr
    assert len(without_compiler(finished.stderr).strip().splitlines()) <= 3, finished.stderr


def without_compiler(text):
    """The text without two lines that TensorFlow 2.15 writes whatever the log level says."""
    text = re.sub("WARNING: All log messages before absl.*\n", "", text)
    return re.sub(r"I0000 .*Compiled cluster using XLA!.*\n", "", text)


def test_fashion_mnist_alone_accepts_no_other_set(tmp_path):
    finished = offline(tmp_path, "--dataset=fashion_mnist")
    assert_one_sentence(finished, "no mirror could be used", "--data_dir", "--dataset=synthetic")
    assert not (tmp_path / "logs").exists()


# --- Bad input ---


def refusal_of(*given):
    """The sentence with which train.py refuses a command line."""
    try:
        with pytest.raises(SystemExit) as refused:
            train.parse_flags(["train.py", *given])
    finally:
        train.FLAGS.unparse_flags()
        for name in train.flag_values():
            train.FLAGS[name].unparse()
    assert isinstance(refused.value.code, str) and "\n" not in refused.value.code
    return refused.value.code


@pytest.mark.parametrize("flag", [
    "--keep_prob=0", "--keep_prob=1.5", "--keep_prob=nan", "--batch_norm_decay=1", "--lr=0",
    "--learning_rate=inf", "--l2_scale=-1", "--num_epochs=0", "--batch_size=0", "--max_steps=-1",
    "--eval_every=0", "--seed=-1", "--seed=4294967296", "--cross_stitch_init=nan",
    "--cross_stitch_unit=dence", "--run_name=a/b", "--run_name=..", "--run_name=",
    "--tasks=", "--tasks=article,", "--tasks=group,group", "--max_steps=many", "--dataset=mnist",
    "--data_dir=", "--no_such_flag=1", "--threads=-1", "--share_until=conv1",
    "--cross_stitch_at=", "--cross_stitch_at=pool_3", "--cross_stitch_at=fc_3,fc_3",
])  # fmt: skip
def test_a_bad_flag_is_named(flag):
    name = flag[2:].split("=")[0]
    assert re.search(rf"^train.py: .*{train.ALIASES.get(name, name)}", refusal_of(flag))


@pytest.mark.parametrize("given, word", [
    (("--hard_sharing", "--cross_stitch=True"), "hard sharing has one tower"),
    (("--share_until=fc_3", "--cross_stitch=True"), "hard sharing has one tower"),
    (("--hard_sharing", "--share_until=pool_1"), "leave out one"),
    (("--share_until=pool_2", "--cross_stitch_at=pool_1,fc_3"), "name later places"),
    (("--dataset=synthetic", "--data_dir=here"), "leave out one"),
])  # fmt: skip
def test_flags_at_odds_are_refused_in_one_sentence(given, word):
    assert re.search(word, refusal_of(*given))


def test_flags_of_units_that_there_are_not_are_named(tmp_path):
    given = ("--dataset=synthetic", "--max_steps=1")
    quiet = run(tmp_path / "quiet", *given, "--cross_stitch_enabled=0", prelude=SMALL)
    assert quiet.returncode == 0 and "ignored" not in quiet.stderr
    told = run(tmp_path / "told", *given, "--hard_sharing", "--cross_stitch_at=pool_1",
               "--cross_stitch_init=0.9", prelude=SMALL)  # fmt: skip
    assert told.returncode == 0
    warning = " ".join(told.stderr.split())
    assert "no cross-stitch units: --cross_stitch_at, --cross_stitch_init" in warning


@pytest.mark.parametrize("flag, word", [
    ("--keep_prob=0", "above 0"), ("--tasks=article,hat", "'hat' is not in TASKS"), ("--data_dir=here", "leave out one"),
    ("--no_such_flag=1", "no_such_flag"), ("--batch_size=1201", "1,200 training images"),
])  # fmt: skip
def test_bad_flags_are_refused_in_one_sentence_before_any_work(flag, word, tmp_path):
    finished = run(tmp_path / "logs", "--dataset=synthetic", flag, prelude=SMALL)
    assert_one_sentence(finished, flag[2:].split("=")[0], word)
    assert not (tmp_path / "logs").exists()


def test_a_log_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    finished = run(tmp_path / "file" / "logs", "--dataset=synthetic", prelude=SMALL)
    assert_one_sentence(finished, "file")


def readme_flags():
    """The README's table: (flag, default) of each row."""
    return re.findall(r"^\| `--(\w+)` \| (.*?) \|", README.read_text(), re.M)


def test_help_names_every_flag_of_the_readme():
    shown = run_script("train.py", "--help").stdout
    for flag, _ in readme_flags():
        assert re.search(rf"--(\[no\])?{flag}\b", shown), flag


def test_readme_gives_the_flags_and_defaults_that_hold():
    defaults = {name: str(train.FLAGS[name].default) for name in train.flag_values()}
    assert dict(readme_flags()) == {
        name: "none" if default == "None" else default for name, default in defaults.items()
    }
    (aliases,) = re.findall(r"^The original's names work, too: (.*)$", README.read_text(), re.M)
    assert set(re.findall(r"--(\w+)", aliases)) == set(train.ALIASES)


# --- The curves ---


def test_plot_draws_both_curves_from_the_event_files(runs, tmp_path):
    finished = run_script("img/plot.py", runs[0], f"--out={tmp_path}")
    assert finished.returncode == 0, finished.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["acc_test.png", "total_loss.png"]
    for picture in tmp_path.iterdir():
        red, _, blue, _ = matplotlib.image.imread(picture).transpose(2, 0, 1)
        assert np.mean(red > blue + 0.5) > 1e-4  # orange, without
        assert np.mean(blue > red + 0.5) > 1e-4  # blue, with


def test_plot_says_where_there_is_nothing_to_draw(tmp_path):
    finished = run_script("img/plot.py", tmp_path)
    assert_one_sentence(finished, str(tmp_path))
    finished = run_script("img/plot.py")
    assert_one_sentence(finished, "img/plot.py logs")
