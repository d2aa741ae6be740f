"""The programs of study/ on any machine: whatever its environment, its locale and its disk are."""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import types
import warnings

import numpy as np
import PIL.Image
import pytest
from conftest import ROOT, SECONDS, run_script, with_variables
from matplotlib.backends import backend_agg
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from harness import evaluation_log, matrices
from study import plot

INLINE = "module://matplotlib_inline.backend_inline"  # what a notebook sets
# Where matplotlib may keep its fonts.
NEW_HOME = ("HOME", "MPLCONFIGDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")
ASCII = {"PYTHONIOENCODING": "ascii"}
C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": None}


SETTINGS = {"cross_stitch": True, "cross_stitch_unit": "channel", "tasks": "article,group"}


def made_run(folder, **settings):
    """The files of a run that study/plot.py reads."""
    folder.mkdir(parents=True)
    (folder / "settings.json").write_text(json.dumps({**SETTINGS, **settings}))
    with evaluation_log.EvaluationLog(folder, done=0, every=1) as log:
        for step in range(1, 4):
            log.append(step, {"accuracy_test": 0.8 + step / 100, "loss_total": 0.5 + step / 100})
    return folder


def python(*arguments, cwd=ROOT, **environment):
    """Runs Python in a folder. Returns: the process, with its output as bytes."""
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=cwd, capture_output=True,
                          timeout=SECONDS, env=with_variables(environment))  # fmt: skip


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """A copy of the project whose pages and pictures a test may write."""
    folder = tmp_path_factory.mktemp("program")
    for path in [*ROOT.glob("*.py"), ROOT / "README.md"]:
        shutil.copy(path, folder)
    for name in ("harness", "img", "study"):
        shutil.copytree(ROOT / name, folder / name)
    return folder


def drawn(name, classes, shares=None):
    """The picture of one matrix. Returns: its pixels."""
    shares = np.eye(len(classes)) if shares is None else shares
    png = matrices.draw({name: (shares, shares)}, classes, ("label", "prediction"), 1, False)
    return np.array(PIL.Image.open(io.BytesIO(png)).convert("L"))


# --- The environment chooses nothing ---

MATRICES = """
import os
import re
import numpy as np
before = dict(os.environ)
from harness import matrices
from study import plot
matrices.draw({"t": (np.eye(2), np.eye(2))}, ["a", "b"], ("label", "prediction"), 1, False)
assert dict(os.environ) == before
"""


def test_matrices_need_no_backend_and_leave_the_environment_as_it_is():
    finished = python("-c", MATRICES, MPLBACKEND="nonsense")
    assert finished.returncode == 0 and not finished.stderr, finished.stderr


def test_a_notebook_still_gets_its_backend():
    code = (
        "from harness import matrices; from matplotlib import pyplot; print(pyplot.get_backend())"
    )
    assert python("-c", code, MPLBACKEND="svg").stdout.strip() == b"svg"


@pytest.mark.parametrize("settings, label", [
    ({}, "with"),
    ({"cross_stitch": False}, "without"),
    ({"cross_stitch": False, "hard_sharing": True}, "without"),
    ({"tasks": "article"}, "without"),  # a single task, whatever --cross_stitch says
])  # fmt: skip
def test_a_run_is_drawn_by_what_it_shares(settings, label, monkeypatch, tmp_path):
    run = plot.read_run(made_run(tmp_path / "run", **settings))
    labels = []
    monkeypatch.setattr(plot, "save", lambda picture, axes, path: labels.append(
        axes.get_legend_handles_labels()[1]))  # fmt: skip
    plot.draw({"run": run}, "loss_total", "", (0, 0), "", 0)
    assert labels == [[f"{label}: run"]]


def test_curves_are_the_same_whatever_backend_matplotlibrc_and_home_there_are(tmp_path):
    made_run(tmp_path / "run")
    rc, home, no_home = (tmp_path / name for name in ("matplotlibrc", "home", "file"))
    rc.write_text("backend: nonsense\nfigure.facecolor: red\ntext.usetex: True\nno.such: 1\n")
    home.mkdir()
    no_home.touch()
    pictures = []
    for environment in (
        {},
        {"MATPLOTLIBRC": rc, "MPLBACKEND": INLINE, **dict.fromkeys(NEW_HOME, str(home))},
        {"MPLBACKEND": "nonsense", **dict.fromkeys(NEW_HOME, str(no_home))},  # unwritable
    ):
        finished = run_script("study.plot", tmp_path, **environment)
        assert finished.returncode == 0 and not finished.stderr, finished.stderr
        pictures.append((tmp_path / "acc_test.png").read_bytes())
        (tmp_path / "acc_test.png").unlink()
    assert pictures[0] == pictures[1] == pictures[2]


# --- Names are drawn as they are ---


@pytest.mark.parametrize("name", ["$", "$$", "$$$", "x_$y$", r"$\frac{$", "a^b_c", "\\"])
def test_a_name_that_looks_like_a_formula_is_drawn(name):
    assert ink(name, name) > ink(name, " ") > ink(" ", " ")


def test_a_name_between_dollars_is_no_formula():
    # Of a formula, the dollars would be left out. One dollar begins none.
    assert ink("t", "$yy$") > ink("t", "$yy") > ink("t", "yy")


def ink(title, name):
    """How many pixels of a matrix's picture are dark, with this title and name of a class."""
    return (drawn(title, [name], np.zeros((1, 1))) < 128).sum()


def test_characters_that_the_font_lacks_cost_no_warning():
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        drawn("衣服", ["裤子", "👟"])
    assert not warned, warned[0].message


# --- Other modules of the same name ---


@pytest.mark.parametrize("script", ["plot", "reproduce", "replicate", "screenshots"])
def test_python_m_finds_the_programs_beside_other_packages_of_these_names(script, tmp_path):
    for name in ("harness", "study"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    if script == "replicate":
        pytest.importorskip("torch", reason="PyTorch is not installed")
    if script == "screenshots":
        pytest.importorskip("selenium", reason="selenium is not installed")
    finished = python("-m", f"study.{script}", "--help", PYTHONPATH=tmp_path)
    assert b"flags:" in finished.stdout and not finished.stderr, finished.stderr


# --- Characters that cannot be shown ---


def test_the_studys_tables_are_shown_by_any_terminal():
    finished = run_script("study.reproduce", "--show", **ASCII)
    assert finished.returncode == 0 and not finished.stderr, finished.stderr
    assert "86.50 ? 0.31" in finished.stdout


def test_the_study_needs_no_backend_and_its_pages_are_utf8_in_any_locale(program):
    names, picture = ("README.md", "study/README.md", "study/TABLES.md"), program / "img/where.png"
    texts = {page: (ROOT / page).read_bytes().decode() for page in names}
    table = re.compile(r"(<!-- table \w+ -->\n).*?(?=<!-- end of table -->)", re.S)
    for page, text in texts.items():
        assert table.search(text)
        (program / page).write_bytes(table.sub(r"\1old\n", text).encode())
    picture.unlink()
    records = program / "study" / "records"  # which may be a link to a larger disk
    records.symlink_to(records.rename(program / "elsewhere"))
    finished = python("-m", "study.reproduce", "--draw", cwd=program, MPLBACKEND=INLINE, **C_LOCALE)
    assert finished.returncode == 0 and not finished.stderr, finished.stderr
    for page, text in texts.items():
        assert (program / page).read_bytes().decode() == text, page
    assert picture.exists()


def test_runs_of_any_name_are_drawn_alike_in_any_locale(tmp_path):
    logdir = tmp_path / "café"
    for name in ("crème", "衣服", r"$\frac{$"):
        made_run(logdir / name)
    with contextlib.suppress(OSError):  # a file system that takes no such name
        os.rename(made_run(logdir / "run"), os.fsencode(logdir) + b"/\xff")
    pictures = []
    for variables in ({}, C_LOCALE):
        finished = run_script("study.plot", logdir, **variables)
        assert finished.returncode == 0 and not finished.stderr, finished.stderr
        pictures.append((logdir / "acc_test.png").read_bytes())
        (logdir / "acc_test.png").unlink()
    assert pictures[0] == pictures[1]


def test_the_tables_of_a_quick_study_are_utf8(tmp_path):
    logdir = tmp_path / "café"
    shutil.copytree(
        ROOT / "study" / "records" / "all_images", logdir / "quick" / "records" / "all_images"
    )
    finished = run_script("study.reproduce", "--quick", "--draw", "--only=levers",
                          f"--logdir={logdir}", **C_LOCALE)  # fmt: skip
    assert finished.returncode == 0 and not finished.stderr, finished.stderr
    assert "±" in (logdir / "quick" / "tables.md").read_text(encoding="utf-8")


# --- Files that cannot be written ---

# As on a full disk: no file may be longer than 8 kB.
SMALL_FILES = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))"


def assert_one_sentence(finished, script, *words):
    """It ended with exit code 1 and one sentence with these words; a bar may stand before it."""
    assert finished.returncode == 1, finished.stderr
    *before, message = finished.stderr.splitlines()
    assert message.startswith(f"{script}: ") and all(str(word) in message for word in words), (
        message
    )
    assert not [line for line in before if "|" not in line], finished.stderr


def test_curves_that_cannot_be_written_get_a_sentence_and_leave_the_old_ones(tmp_path):
    made_run(tmp_path / "run")
    picture = tmp_path / "acc_test.png"
    assert run_script("study.plot", tmp_path).returncode == 0
    before = picture.read_bytes()
    refused = run_script("study.plot", tmp_path, prelude=SMALL_FILES)
    assert_one_sentence(refused, "plot.py", picture, "File too large")
    assert picture.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"run", "acc_test.png", "total_loss.png"}
    refused = run_script("study.plot", tmp_path, f"--out={picture}/folder")
    assert_one_sentence(refused, "plot.py", picture, "Not a directory")


def test_the_studys_pictures_that_cannot_be_written_get_a_sentence(tmp_path):
    shutil.copytree(
        ROOT / "study" / "records" / "all_images", tmp_path / "quick" / "records" / "all_images"
    )
    refused = run_script("study.reproduce", "--quick", "--draw", "--only=levers",
                         f"--logdir={tmp_path}", prelude=SMALL_FILES)  # fmt: skip
    assert_one_sentence(refused, "reproduce.py", tmp_path / "quick" / "acc_test.png", "too large")


def test_folders_that_cannot_be_made_get_a_sentence_before_a_run_begins(tmp_path, fashion_mnist):
    file = tmp_path / "file"
    file.touch()
    study = ("study.reproduce", "--only=best_lever", "--seeds=1")
    for given in ((f"--logdir={file}/logs",), (f"--records={file}", f"--logdir={tmp_path}/logs")):
        assert_one_sentence(run_script(*study, *given), "reproduce.py", file)
    assert not list(tmp_path.glob("logs/*/*"))


@pytest.mark.parametrize("script", ["plot", "reproduce"])
def test_a_full_disk_behind_stdout_gets_a_sentence(script, tmp_path):
    arguments = ["--show"] if script == "reproduce" else [made_run(tmp_path / "run").parent]
    with open("/dev/full", "w") as full:
        process = subprocess.run(
            [sys.executable, "-m", f"study.{script}", *arguments], stdout=full, text=True,
            cwd=ROOT, stderr=subprocess.PIPE, env=with_variables({"PYTHONUNBUFFERED": None}),
        )  # fmt: skip
    assert process.returncode == 1
    assert process.stderr == f"{script}.py: No space left on device\n"


# --- Which runs are drawn ---


def test_runs_are_found_through_links(tmp_path):
    """As TensorBoard finds them, which would follow a link to a folder above it, too."""
    one, two = made_run(tmp_path / "runs" / "one"), made_run(tmp_path / "runs" / "two")
    logdir = tmp_path / "logdir"
    (logdir / "below").mkdir(parents=True)
    (logdir / "linked").symlink_to(one)
    (logdir / "below" / "linked").symlink_to(two)
    (logdir / "all").symlink_to(tmp_path / "runs")
    (logdir / "below" / "loop").symlink_to(logdir)
    (tmp_path / "runs" / "loop").symlink_to(logdir)
    (logdir / "dangling").symlink_to(tmp_path / "nothing")
    shown = {os.path.relpath(folder, logdir) for folder in plot.folders_of_runs(logdir)}
    assert shown == {"linked", "below/linked", "all/one", "all/two"}
    assert [*plot.folders_of_runs(logdir / "linked")] == [logdir / "linked"]
    finished = run_script("study.plot", logdir)
    assert finished.returncode == 0 and not finished.stderr, finished.stderr
    assert (logdir / "acc_test.png").exists()


def test_a_run_without_evaluations_is_named_whether_or_not_there_is_another_to_draw(tmp_path):
    for name in ("events", "damaged"):
        (tmp_path / name).mkdir()
    (tmp_path / "events" / "events.out.tfevents.1").touch()
    (tmp_path / "damaged" / "evaluations.jsonl").write_text('{"step": 1, "loss_total": 0.5}\n')
    refused = run_script("study.plot", tmp_path)
    assert refused.returncode == 1 and len(refused.stderr.splitlines()) == 1, refused.stderr
    made_run(tmp_path / "run")
    drawn = run_script("study.plot", tmp_path)
    assert drawn.returncode == 0 and (tmp_path / "acc_test.png").exists(), drawn.stderr
    for said in (refused.stderr, " ".join(drawn.stderr.split())):
        lacking = tmp_path / "events"
        assert f"{lacking}: cannot be drawn, because it has no evaluations.jsonl" in said
        assert f"{tmp_path / 'damaged'}: cannot be drawn, because settings.json is" in said


@pytest.mark.parametrize("call", ["os.scandir", "pathlib.Path.read_bytes"])
def test_a_run_that_may_not_be_read_is_named(call, tmp_path):
    """Root may read everything, so the call refuses to."""
    secret = made_run(tmp_path / "secret")
    prelude = (
        "import os, pathlib\n"
        f"called = {call}\n"
        "def refuse(path, *args):\n"
        f"    if str(path).startswith({str(secret)!r}):\n"
        "        raise PermissionError(13, 'Permission denied', str(path))\n"
        "    return called(path, *args)\n"
        f"{call} = refuse"
    )
    refused = run_script("study.plot", tmp_path, prelude=prelude)
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert f"plot.py: {secret}" in refused.stderr and "Permission denied" in refused.stderr
    made_run(tmp_path / "run")
    drawn = run_script("study.plot", tmp_path, prelude=prelude)
    assert drawn.returncode == 0 and (tmp_path / "acc_test.png").exists(), drawn.stderr
    said = " ".join(drawn.stderr.split())
    assert f"WARNING: {secret}" in said and "cannot be read (Permission denied)" in said


def pictures_of_runs(monkeypatch, logdir):
    """Draws a folder. Returns: the figures, before they are saved."""
    figures = []
    monkeypatch.setattr(plot, "save", lambda picture, axes, path: figures.append(picture))
    monkeypatch.setattr(plot.flags, "FLAGS", types.SimpleNamespace(out=None, smoothing=0.6))
    plot.main(["plot.py", str(logdir)])
    return figures


def test_forty_runs_are_drawn_legibly(monkeypatch, tmp_path):
    """The newest of them: no two curves look alike, and the legend hides none of them."""
    for number in range(40):
        units = bool(number % 3)
        name = f"fashion_mnist-{'channel' if units else 'none'}-seed{number}-learning_rate=0.0001-num_epochs=5"
        run = made_run(tmp_path / name, cross_stitch=units)
        os.utime(run / "evaluations.jsonl", (number, number))
    with pytest.warns(UserWarning, match=f"has 40 runs, and the pictures show the {plot.MOST} "):
        figures = pictures_of_runs(monkeypatch, tmp_path)
    for picture in figures:
        backend_agg.FigureCanvasAgg(picture).draw()
        (axes,), (legend,) = picture.axes, picture.legends
        labels = [text.get_text() for text in legend.get_texts()]
        shown = {int(re.search(r"-seed(\d+)-", label)[1]) for label in labels}
        assert len(labels) == plot.MOST and shown == set(range(40 - plot.MOST, 40))
        curves = [line for line in axes.lines if line.get_alpha() is None]
        looks = {(line.get_color(), line.get_linestyle()) for line in curves}
        assert len(looks) == len(curves) == plot.MOST
        box = legend.get_window_extent()
        assert not box.overlaps(axes.get_window_extent())
        assert picture.bbox.x0 <= box.x0 and box.x1 <= picture.bbox.x1
        assert picture.bbox.y0 <= box.y0 and box.y1 <= picture.bbox.y1
        assert axes.get_window_extent().height > 300  # pixels


def test_a_name_that_is_wider_than_the_picture_keeps_its_ends(monkeypatch, tmp_path):
    made_run(tmp_path / ("first" + "-flag=value" * 20 + "-last"))
    for picture in pictures_of_runs(monkeypatch, tmp_path):
        backend_agg.FigureCanvasAgg(picture).draw()
        (legend,) = picture.legends
        label = legend.get_texts()[0].get_text()
        assert label.startswith("with: first-") and label.endswith("-last")
        assert legend.get_window_extent().x1 <= picture.bbox.x1


def test_a_run_that_has_just_begun_is_not_drawn(tmp_path):
    begun = made_run(tmp_path / "begun") / "evaluations.jsonl"
    begun.write_text('{"step": 0, "cross_stitch_1/article_from_group": 0.0}\n{"step": 100, "lo')
    (made_run(tmp_path / "just now") / "evaluations.jsonl").unlink()
    refused = run_script("study.plot", tmp_path)
    assert_one_sentence(refused, "plot.py", tmp_path, "no run of train.py with an evaluation")
    made_run(tmp_path / "run")
    drawn = run_script("study.plot", tmp_path)
    assert drawn.returncode == 0 and not drawn.stderr, drawn.stderr


def test_screenshots_are_of_three_runs_as_the_page_says(tmp_path):
    """Without units, with units, and the one whose matrices are shown."""
    pytest.importorskip("selenium", reason="selenium is not installed")
    runs = [made_run(tmp_path / name) for name in ("without", "with", "matrices")]
    for run in runs:
        writer = EventFileWriter(str(run))
        loss = summary_pb2.Summary.Value(tag="summary/loss_total", simple_value=0.5)
        writer.add_event(event_pb2.Event(step=1, summary=summary_pb2.Summary(value=[loss])))
        writer.close()
    page = (ROOT / "study" / "MAKING.md").read_text(encoding="utf-8")
    assert "study.screenshots WITHOUT WITH MATRICES" in page
    nowhere = ("--browser=/nowhere", "--driver=/nowhere", f"--out={tmp_path / 'new' / 'folder'}")
    for count, words in ((2, "name three folders of runs"), (3, "driver")):
        refused = run_script("study.screenshots", *runs[:count], *nowhere)
        assert refused.returncode == 1 and words in refused.stderr, refused.stderr
        assert "Traceback" not in refused.stderr
    assert (tmp_path / "new" / "folder").is_dir()
