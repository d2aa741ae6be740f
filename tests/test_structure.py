"""Imports run one way: the three files in front use harness/, which knows none of them; the
study uses harness/ and data.py, and train.py only as a program."""

import ast
import graphlib
import os
import subprocess
import sys

import pytest
from conftest import ROOT

FRONT = ("train", "model", "data")
# Folder or file -> what of this project it may import.
MAY_IMPORT = {
    "harness": {"harness"},
    "data": {"harness"},
    "model": {"harness"},
    "train": {"harness", "data", "model"},
    "study": {"study", "harness", "data"},
}


def imports_of(source, names):
    """Which of these modules a source text imports, wherever in it, as a set."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inner & names) or {node.module}
    return found


def sources():
    """Name of each module of the program and its study -> its text."""
    paths = [*(ROOT / f"{name}.py" for name in FRONT)]
    paths += [path for folder in ("harness", "study") for path in (ROOT / folder).glob("*.py")]
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path.read_text(encoding="utf-8")
        for path in paths
    }


def arrows():
    """Module -> the modules of this project that it imports."""
    texts = sources()
    names = set(texts)
    own = {*FRONT, "harness", "study"}
    return {
        name: {i for i in imports_of(text, names) if i.split(".")[0] in own}
        for name, text in texts.items()
    }


def test_train_py_finds_its_modules_from_any_folder_though_python_leaves_out_its_own(tmp_path):
    variables = {**os.environ, "PYTHONSAFEPATH": "1"}
    command = [sys.executable, ROOT / "train.py", "--num_epochs=0"]
    ended = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=tmp_path)
    assert ended.returncode == 1 and ended.stderr.startswith("train.py: flag --num_epochs=0: ")


def test_imports_run_one_way():
    found = arrows()
    assert len(found) > 25 and "harness.names" in found["model"]  # they were read
    for name, imported in found.items():
        allowed = MAY_IMPORT[name.split(".")[0]]
        wrong = {other for other in imported if other.split(".")[0] not in allowed}
        assert not wrong, f"{name} imports {wrong}"


def test_no_imports_run_in_a_circle():
    try:
        graphlib.TopologicalSorter(arrows()).prepare()
    except graphlib.CycleError as circle:
        pytest.fail(" > ".join(circle.args[1]))


def test_an_import_is_seen_wherever_it_stands():
    text = (
        "def f():\n    from harness import files\n    import train\n    from study.runs import Run"
    )
    assert imports_of(text, {"harness.files"}) == {"harness.files", "train", "study.runs"}


@pytest.mark.parametrize("word, places", [
    # Mended before their first use: everybody takes them from there.
    ("import tf_slim", {"harness.slim"}),
    ("import tqdm", {"harness.bars"}),
    # Flags are defined where a program begins.
    ("flags.DEFINE_", {"train", *(f"study.{n}" for n in ("compare", "plot", "replicate", "reproduce", "screenshots"))}),
    ("sys.path", {"train", "harness.host"}),  # the latter sets back what the former changes
    ("importlib.util", set()),
    # One place writes events, and nothing reads them.
    ("FileWriter", {"harness.events"}),
    ("event_accumulator", set()),
])  # fmt: skip
def test_it_stands_in_one_place(word, places):
    assert {name for name, text in sources().items() if word in text} == places


def reached_from(names):
    """These modules, and all that they import, with their texts."""
    reached, todo, found = set(), list(names), arrows()
    while todo:
        name = todo.pop()
        reached.add(name)
        todo += found[name] - reached
    texts = sources()
    return {name: texts[name] for name in reached}


def test_data_needs_no_tensorflow():
    assert not [n for n, text in reached_from(["data"]).items() if "import tensorflow" in text]


def test_the_system_is_asked_for_threads_before_numpy_starts_some():
    """Or else numpy would end the process with a page of its own."""
    before, found, _ = sources()["train"].partition("with process.quiet_import")
    imported = imports_of(before, set(sources())) & set(sources())
    assert found and "harness.process" in imported
    assert not [name for name, text in reached_from(imported).items() if "import numpy" in text]
