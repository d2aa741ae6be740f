"""The benchmark runs, its arithmetic is right, and the pages show what its records say."""

import os
import re
import subprocess
import sys

import benchmark
import numpy as np
import pytest
from conftest import ROOT, run_script
from contenders import MODES


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        ("--units=channel",),
        ("--units=none", f"--against={ROOT}"),
        ("--units=none,nddr", "--bfloat16"),
    ],
    ids=["peers", "against", "bfloat16"],
)
def test_the_benchmark_runs_for_one_step(kind, fashion_mnist, tmp_path):
    record = tmp_path / "record.json"
    short = ("--rounds=2", "--steps=1", f"--record={record}")
    finished = run_script("tests/benchmark.py", *kind, *short)
    assert finished.returncode == 0, finished.stderr
    shown = run_script("tests/benchmark.py", "--show", record)
    assert shown.stdout.strip() in finished.stdout and len(shown.stdout.splitlines()) > 5
    assert "None" not in shown.stdout and "nan" not in shown.stdout


# --- The arithmetic ---


def test_a_ratio_is_the_geometric_mean_over_pairs():
    # Twice and eight times as fast. Student's t for one degree of freedom is 12.706; the
    # standard error of the logarithms is log(2).
    middle, low, high = benchmark.ratio([20, 800], [10, 100])
    np.testing.assert_allclose([middle, low, high], [4, 4 / 2**12.7062, 4 * 2**12.7062], rtol=1e-4)
    # Half, once and twice: log(2) is the standard deviation, and t = 4.303 for three pairs.
    half = 2 ** (4.30265 / np.sqrt(3))
    np.testing.assert_allclose(
        benchmark.ratio([1, 3, 8], [2, 3, 4]), [1, 1 / half, half], rtol=1e-4
    )


def test_a_ratio_leaves_out_what_a_pair_has_in_common():
    machine = np.array([1.0, 0.5, 0.8, 1.3])  # its speed in each round
    np.testing.assert_allclose(benchmark.ratio(1500 * machine, 1000 * machine), [1.5] * 3)
    _, low, high = benchmark.ratio(1500 * machine, 1000 * machine[::-1])
    assert low < 1 < high


def test_a_spread_is_the_median_with_the_lowest_and_the_highest():
    assert benchmark.spread([3000, 1000, 1010.4]) == "1,010 (1,000 – 3,000)"


# --- What is measured ---


class Watched(benchmark.Machine):
    """Notes what it is asked, and runs nothing."""

    def ask(self, *contender, program=ROOT, steps=None):
        self.asked = [*getattr(self, "asked", []), (contender, program)]
        if contender == ("machine",):
            return {"processor": "a processor", "vectors": None, "threads": 2}
        if contender[0] == "program":
            return [5.0, 1.0]
        return self.speeds.get(contender, 1000.0)


@pytest.fixture
def machines(monkeypatch):
    """The machines that the benchmark makes, which are `Watched`."""
    made = []

    class Listed(Watched):
        speeds = {}

        def __init__(self, *args):
            made.append(self)
            super().__init__(*args)

    monkeypatch.setattr(benchmark, "Machine", Listed)
    monkeypatch.setattr(benchmark.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(benchmark.importlib.metadata, "version", lambda name: "1.0")
    return made


def test_each_library_takes_part_in_the_mode_that_was_fastest_in_the_first_round(machines):
    modes = {"slim": MODES["slim"][1], "torch": MODES["torch"][3], "keras": MODES["keras"][2]}
    benchmark.Machine.speeds = {(name, "channel", mode): 1100.0 for name, mode in modes.items()}
    record = benchmark.measure_peers(["channel"], rounds=5, steps=10)
    asked = [contender for contender, _ in machines[0].asked]
    assert len(asked) == 1 + machines[0].bar.total == 1 + machines[0].bar.n
    for name, best in modes.items():
        for mode in MODES[name]:
            assert asked.count((name, "channel", mode)) == (6 if mode == best else 1)
    # After the first round, each takes part once in each of five, in several orders.
    trials = 1 + sum(len(MODES[name]) for name in modes)
    rounds = [asked[start : start + 4] for start in range(trials, trials + 20, 4)]
    assert all({c[0] for c in one} == {"ours", *modes} for one in rounds)
    assert len({tuple(one) for one in rounds}) > 1
    assert "| PyTorch | eager" in benchmark.report(record)


def test_a_pair_is_two_new_processes_one_of_each_checkout(machines, tmp_path):
    record = benchmark.measure_against(tmp_path, ["none"], rounds=20, steps=10)
    programs = [program for contender, program in machines[0].asked if contender != ("machine",)]
    pairs = list(zip(programs[::2], programs[1::2]))
    assert len(pairs) == 20 and set(pairs) == {(ROOT, tmp_path), (tmp_path, ROOT)}
    assert record["against"] == "unknown" and "commit unknown" in benchmark.report(record)


# --- The pages ---


def test_draw_mends_falsified_figures(monkeypatch, tmp_path):
    pages, copies = benchmark.PAGES, []
    assert {"speed_amd", "same_commit"} <= set(benchmark.read_records())
    for number, page in enumerate(pages):
        text = page.read_text(encoding="utf-8")
        false = re.sub(r"[\d.]+(?=<!-- speed; )", "9.99", text)
        tables = r"<!-- table (?:speed|same_commit|bfloat16) -->.*?<!-- end of table -->"
        figure = re.compile(r"(?<=\| )\d[\d.,]* (?=\()")
        false = re.sub(tables, lambda m: figure.sub("9.99 ", m[0]), false, flags=re.S)
        assert false.count("9.99<!-- ") >= 1
        assert ("| 9.99 (" in false) == (page.parent.name == "tests")  # the page with tables
        copies.append(tmp_path / f"{number}.md")
        copies[-1].write_text(false, encoding="utf-8")
    monkeypatch.setattr(benchmark, "PAGES", copies)
    monkeypatch.setattr(sys, "argv", [str(ROOT / "tests/benchmark.py"), "--draw"])
    benchmark.main()
    for page, copy in zip(pages, copies):
        assert copy.read_text(encoding="utf-8") == page.read_text(encoding="utf-8")


def test_a_ratio_in_words_is_that_of_the_record_that_its_mark_names():
    record = {"measured": {"ours none": [30.0, 31.0], "torch none": [20.0, 62 / 3]}}
    text = "It is 7.7<!-- speed; speed_x; none against PyTorch --> times as fast."
    drawn = benchmark.drawn(text, {"speed_x": record})
    assert drawn == "It is 1.50<!-- speed; speed_x; none against PyTorch --> times as fast."


@pytest.mark.parametrize(
    "mark", ["speed_y; none against PyTorch", "speed_x; none against JAX", "speed_x; all against PyTorch"]
)  # fmt: skip
def test_a_mark_that_names_no_ratio_of_a_record_is_refused(mark):
    record = {"measured": {"ours none": [30.0, 31.0], "torch none": [20.0, 21.0]}}
    with pytest.raises(SystemExit, match=f"{mark} .*no record in tests/ has this ratio"):
        benchmark.drawn(f"1.0<!-- speed; {mark} -->", {"speed_x": record})


def test_the_benchmark_finds_its_modules_where_python_adds_no_folder():
    given = [sys.executable, ROOT / "tests" / "benchmark.py", "--units=all"]
    variables = {**os.environ, "PYTHONSAFEPATH": "1"}
    refused = subprocess.run(given, capture_output=True, text=True, env=variables)
    assert refused.returncode == 2 and "--units=all: choose out of" in refused.stderr


@pytest.mark.parametrize("flags, message", [
    (["--against=nowhere"], "--against=nowhere: not a checkout at"),
    (["--units=none,all"], "--units=none,all: choose out of none,channel"),
    (["--rounds=1"], "--rounds=2"),
    (["--record=nowhere/record.json"], "its folder does not exist"),
    (["--show=nowhere.json"], "--show=nowhere.json: no such file"),
    ([f"--show={ROOT / 'README.md'}"], "README.md: no such file, or no record"),
    (["--against="], "--against=: not a checkout at"),
    (["--bfloat16", f"--against={ROOT}"], "--bfloat16 --against: leave out one of the two"),
])  # fmt: skip
def test_bad_flags_are_refused_before_anything_is_measured(flags, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *flags])
    monkeypatch.setattr(benchmark, "Machine", None)  # so that nothing can be measured
    with pytest.raises(SystemExit, match="2"):
        benchmark.main()
    assert message in capsys.readouterr().err
