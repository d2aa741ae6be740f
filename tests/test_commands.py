"""Every command that a page shows is run by a test, or stands here with the reason why not."""

import ast
import json
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from conftest import ROOT, SECONDS, run_script, run_train

from study import runs

PAGES = ("README.md", "study/README.md", "study/MAKING.md", "tests/README.md")


def commands_of(text):
    """The commands in a page's blocks and between its backticks, without comments."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.S)
    lines = [line.partition(" #")[0].strip() for block in blocks for line in block.splitlines()]
    words = re.sub(r"```.*?```", "", text, flags=re.S)
    lines += re.findall(r"`((?:python|pip|dask|tensorboard|git|source) [^`]+)`", words)
    return {line for line in lines if line and not line.startswith("#")}


COMMANDS = set().union(*(commands_of((ROOT / page).read_text()) for page in PAGES))
# Run below, with a few steps added.
TRAINING = sorted(
    command
    for command in COMMANDS
    if re.search(r"python train\.py", command) and "FOLDER" not in command
)
# Taken below, with --show added: each would run for hours.
STUDY = sorted(
    command
    for command in COMMANDS
    if re.match("python -m study.reproduce", command)
    and not re.search("--(scheduler|draw|verify|quick|seeds|jobs)|NAME", command)
)
VENV = "python3 -m venv .venv && .venv/bin/pip install -q -r requirements.txt"
RUN_ELSEWHERE = {
    "python train.py --data_dir=FOLDER --tasks=label,kind": (
        "test_readmes_way_from_arrays_to_an_exported_network"
    ),
    "python -m study.compare --data_dir=FOLDER --tasks=label,kind": "test_a_users_day",
    "python -m study.digits digits": "test_the_digits_are_a_folder_with_two_tasks",
    "python -m study.compare --data_dir=digits --tasks=digit,parity": "test_a_users_day",
    "tensorboard --logdir=logs": "test_tensorboard_and_curves_show_these_runs",
    "python -m study.plot logs": "test_tensorboard_and_curves_show_these_runs",
    "python -m study.reproduce --draw": (
        "test_the_study_needs_no_backend_and_its_pages_are_utf8_in_any_locale"
    ),
    "python -m study.reproduce --verify": "test_a_record_of_the_study_is_made_again",
    "python -m study.reproduce --quick": "test_a_study_that_is_killed_resumes",
    "python -m study.reproduce --only=few_article_labels --seeds=6": "test_a_study_that_is_killed_resumes",
    "python -m study.reproduce --only=few_article_labels --jobs=1": "test_a_study_that_is_killed_resumes",
    "python -m study.reproduce --only=NAME": "test_a_study_that_is_killed_resumes",
    "python -m study.reproduce --only=NAME --quick": "test_a_study_that_is_killed_resumes",
    "python -m study.replicate": "test_a_short_study_leaves_a_record_for_each_run_and_makes_none_twice",
    "python -m study.screenshots WITHOUT WITH MATRICES": "test_the_studys_screenshots_show_the_pages",
    "dask scheduler": "test_a_study_survives_its_workers_and_its_coordinator",
    "dask worker tcp://HOST:8786 --nthreads=2": (
        "test_a_study_survives_its_workers_and_its_coordinator"
    ),
    "python -m study.reproduce --only=few_article_labels --scheduler=tcp://HOST:8786": (
        "test_a_study_survives_its_workers_and_its_coordinator"
    ),
    "python -m study.reproduce --scheduler=tls://HOST:8786": "test_a_cluster_with_tls_makes_the_runs",
    "python tests/benchmark.py --rounds=6 --steps=50 --units=none,channel,layer,nddr"
    " --record=tests/speed_amd.json": ("test_the_benchmark_runs_for_one_step"),
    "python tests/benchmark.py --against=FOLDER --steps=50 --record=tests/same_commit.json": (
        "test_the_benchmark_runs_for_one_step"
    ),
    "python tests/benchmark.py --bfloat16 --steps=50 --units=none,channel,dense"
    " --record=tests/bfloat16.json": "test_the_benchmark_runs_for_one_step",
    "python tests/benchmark.py --draw": "test_draw_mends_falsified_figures",
}
NOT_RUN = {
    f"{VENV} -r tests/requirements.txt && .venv/bin/python -m pytest -n 2 --dist loadfile": (
        "runs these tests; .ci/run runs it word for word"
    ),
    "python -m pytest -n 2 --dist loadfile": "runs these tests",
    "python -m pytest -m slow -n 2 --dist loadfile": "runs these tests; .ci/run runs it",
    "python -m pytest -m soak": "takes an hour",
    "pip install -r requirements.txt -r study/requirements.txt": "needs a network",
    "pip install -r tests/benchmark-requirements.txt": "downloads gigabytes",
    "pip install torch": "downloads gigabytes",
    "source .venv/bin/activate": "is Python's own",
    "dask ssh": "needs other machines",
}


def definitions(path):
    """Name -> syntax tree of the functions, fixtures, methods and constants in a file of tests."""
    found = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign):
            names = [n.id for target in node.targets for n in ast.walk(target) if hasattr(n, "id")]
            found |= dict.fromkeys(names, node.value)
        for inner in node.body if isinstance(node, ast.ClassDef) else [node]:
            if isinstance(inner, ast.FunctionDef):  # whoever calls a class calls __init__
                found[node.name if inner.name == "__init__" else inner.name] = inner
    return found


TESTS = {path.name: definitions(path) for path in sorted((ROOT / "tests").glob("*.py"))}


def strings_of(test):
    """The strings in a test and in all that it uses of its file and of conftest.py."""
    own = [found for file, found in TESTS.items() if file.startswith("test_") and test in found]
    assert len(own) == 1, f"{len(own)} tests are called {test}"
    known, seen, todo, strings = TESTS["conftest.py"] | own[0], set(), [test], []
    while todo:
        name = todo.pop()
        if name in seen or name not in known:
            continue
        seen.add(name)
        nodes = list(ast.walk(known[name]))
        docstrings = [node.value for node in nodes if isinstance(node, ast.Expr)]
        for node in nodes:
            todo += [getattr(node, kind) for kind in ("id", "arg", "attr") if hasattr(node, kind)]
            if isinstance(getattr(node, "value", None), str) and node not in docstrings:
                strings.append(node.value)
    return strings


def program_and_flags(command):
    """The parts of a command that its test must have, too. Values may be others."""
    parts = re.findall(r"(?<!\S)(?:--\w+|[a-z][\w./]*)(?=[\s=]|$)", command)
    return [part for part in parts if part not in ("python", "logs")]


def test_each_command_of_the_pages_is_run_or_has_a_reason_why_not():
    listed = {*TRAINING, *STUDY, *RUN_ELSEWHERE, *NOT_RUN}
    assert COMMANDS == listed, COMMANDS ^ listed


@pytest.mark.parametrize("command", RUN_ELSEWHERE)
def test_a_command_that_another_test_runs_is_in_that_test(command):
    test, parts = RUN_ELSEWHERE[command], program_and_flags(command)
    assert test.startswith("test_") and parts
    strings = strings_of(test)
    for part in parts:
        word = re.compile(rf"(?<![^\s(]){re.escape(part)}(?![\w-])")
        assert any(map(word.search, strings)), f"{test} does not run {part}"


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """The folder of runs that the pages' commands for training made, a few steps long."""
    folder = tmp_path_factory.mktemp("commands")
    short = ("--dataset=synthetic", "--train_examples=256", "--max_steps=2", "--eval_every=2")
    for number, command in enumerate(TRAINING):
        given = shlex.split(command.partition("train.py")[2])
        finished = run_train(*given, *short, f"--logdir={folder / str(number)}")
        assert finished.returncode == 0, (command, finished.stderr)
    return folder


@pytest.mark.slow
def test_tensorboard_and_curves_show_these_runs(logs):
    drawn = run_script("study.plot", logs)
    assert drawn.returncode == 0, drawn.stderr
    assert (logs / "acc_test.png").exists()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    board = [sys.executable, "-m", "tensorboard.main", f"--logdir={logs}", f"--port={port}"]
    with subprocess.Popen(board, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            found = runs_shown(f"http://127.0.0.1:{port}/data/runs", process, len(TRAINING))
        finally:
            process.kill()
    assert found == len(TRAINING)


def runs_shown(address, process, expected):
    """Waits until TensorBoard has found so many runs. Returns: how many it shows."""
    end, found = time.monotonic() + SECONDS, 0
    while found < expected and process.poll() is None and time.monotonic() < end:
        try:
            with urllib.request.urlopen(address) as answer:
                found = len(json.load(answer))
        except OSError:
            time.sleep(0.2)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("command", STUDY)
def test_each_command_of_the_study_is_taken(command):
    shown = run_script(*shlex.split(command)[2:], "--show")
    assert shown.returncode == 0, shown.stderr
    titles = set(re.findall(r"^## (.*)", shown.stdout, re.M))
    only = re.search(r"--only=(\S+)", command)  # shows what was asked for, or everything
    asked = only[1].split(",") if only else []
    of_these = {table for study in asked for table in (study, *runs.STUDIES[study].more_tables)}
    assert titles == of_these if only else {"full", "replicated"} < titles
