"""The benchmark runs, and tests/README.md shows what its records say."""

import pytest
from conftest import ROOT, run_script


@pytest.mark.slow
@pytest.mark.parametrize("kind", [
    (), ("--forms", "--sittings=1", "--units=channel"),
    ("--against=.", "--sittings=1", "--units=none,dense"),
], ids=["peers", "forms", "against"])  # fmt: skip
def test_the_benchmark_runs_all_of_it_for_one_step(kind, fashion_mnist, tmp_path):
    record = tmp_path / "record.json"
    finished = run_script(
        "tests/benchmark.py", *kind, "--rounds=2", f"--record={record}", STEPS="1"
    )
    assert finished.returncode == 0, finished.stderr
    shown = run_script("tests/benchmark.py", "--show", record)
    assert shown.stdout.strip() in finished.stdout and len(shown.stdout.splitlines()) > 3


@pytest.mark.parametrize(
    "record", ["speed_amd.json", "speed_intel.json", "fast_forms.json", "against.json"]
)
def test_the_tests_readme_shows_the_figures_of_the_speed_records(record):
    finished = run_script("tests/benchmark.py", "--show", ROOT / "tests" / record)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.strip() in (ROOT / "tests" / "README.md").read_text()
