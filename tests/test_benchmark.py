"""The benchmark runs, and tests/README.md shows what its records say."""

import pytest
from conftest import ROOT, run_script


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        ("--units=channel", "--towers=1,2", "--rounds=1"),
        ("--units=none", "--against=.", "--sittings=1", "--rounds=2"),
    ],
    ids=["peers", "against"],
)
def test_the_benchmark_runs_for_one_step(kind, fashion_mnist, tmp_path):
    record = tmp_path / "record.json"
    finished = run_script("tests/benchmark.py", *kind, f"--record={record}", STEPS="1")
    assert finished.returncode == 0, finished.stderr
    shown = run_script("tests/benchmark.py", "--show", record)
    assert shown.stdout.strip() in finished.stdout and len(shown.stdout.splitlines()) > 2


def test_the_tests_readme_shows_the_figures_of_the_speed_records():
    page = (ROOT / "tests" / "README.md").read_text()
    records = sorted((ROOT / "tests").glob("*.json"))
    assert len(records) == 3
    for record in records:
        finished = run_script("tests/benchmark.py", "--show", record)
        assert finished.returncode == 0, finished.stderr
        assert finished.stdout.strip() in page, record.name
