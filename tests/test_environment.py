"""Variables of the environment that other programs' users have set."""

import json
import os
import subprocess
import sys
import warnings

import pytest
from conftest import ROOT

from harness import environment, machine


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """Each test finds the variables as they were, and nothing to say."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setattr(environment, "_ignored", [])


def said():
    """The warnings of what was taken away."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        environment.warn_of_ignored()
    return [str(warning.message) for warning in caught]


def in_python(program, **variables):
    """Runs a program in a new process. Returns: what it prints, a JSON value."""
    finished = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True,
                              text=True, env={**os.environ, **variables})  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


@pytest.mark.parametrize("name, value", [
    ("TF_XLA_FLAGS", "--tf_xla_auto_jit=2"), ("XLA_FLAGS", "--no_such_flag=1"), ("COLUMNS", "x"),
    ("LINES", "1.5"), ("TF_CPP_MIN_LOG_LEVEL", "x"), ("TF_CPP_MAX_VLOG_LEVEL", "x"),
    ("TF_ENABLE_ONEDNN_OPTS", "x"),
])  # fmt: skip
def test_what_would_harm_a_run_is_taken_away_and_said_once(name, value):
    os.environ[name] = value
    environment.prepare()
    assert os.environ.get(name) != value
    (sentence,) = said()
    assert sentence.startswith(f"{name} is ignored, because")
    environment.prepare()
    assert said() == []


@pytest.mark.parametrize("name, value", [
    ("COLUMNS", "100"), ("TF_CPP_MIN_LOG_LEVEL", "0"), ("TF_ENABLE_ONEDNN_OPTS", "0"),
    ("TF_ENABLE_ONEDNN_OPTS", "false"), ("ONEDNN_MAX_CPU_ISA", "AVX2"), ("COLUMNS", ""),
])  # fmt: skip
def test_what_the_user_set_on_purpose_stays(name, value):
    os.environ[name] = value
    environment.prepare()
    assert os.environ[name] == value and said() == []


def test_variables_on_which_bits_may_depend_are_recorded():
    of_none = machine.description(1)
    assert of_none["variables"] == {} and of_none["onednn"] in ("1", None)
    set_ = {"ONEDNN_MAX_CPU_ISA": "AVX2", "TF_USE_DEEP_CONV2D": "1", "NVIDIA_TF32_OVERRIDE": "0"}
    # Messages; threads, which --threads decides; and Terraform's.
    os.environ |= set_ | {"ONEDNN_VERBOSE": "1", "TF_CPP_MIN_LOG_LEVEL": "1", "TF_VAR_x": "1"}
    os.environ |= {"TF_NUM_INTEROP_THREADS": "abc", "TF_ENABLE_ONEDNN_OPTS": "False"}
    found = machine.description(1)
    assert found["variables"] == set_ and found["onednn"] == "0"


def test_no_variable_of_tqdm_ends_a_program_or_spoils_its_bar():
    wrong = {"TQDM_MININTERVAL": "x", "TQDM_FILE": "x", "TQDM_NCOLS": "x", "TQDM_TOTAL": "x"}
    program = (
        "import io, json, os, data; from harness.bars import ProgressBar; text = io.StringIO()\n"
        "with ProgressBar(total=3, file=text, mininterval=0) as bar: bar.update(3)\n"
        "print(json.dumps(['3/3' in text.getvalue(), os.environ['TQDM_MININTERVAL']]))"
    )
    assert in_python(program, **wrong) == [True, "x"]


def test_a_run_whose_bar_is_hidden_notes_its_step(tmp_path):
    program = (
        "import json, pathlib, sys; from harness import owner; from harness.progress import Progress\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "with owner.claimed(folder) as claim:\n"
        "    progress = Progress('some', 7, 100, claim); progress.add_step(32, 1.5, 0.01)\n"
        "    note = json.loads((folder / 'progress.json').read_text())\n"
        "print(json.dumps([note, progress.bar.disable]))"
    )
    found = in_python(program, TQDM_DISABLE="1")
    assert found == [{"first_step": 7, "step": 8, "last_step": 100}, True]
