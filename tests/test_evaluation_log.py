"""evaluations.jsonl: a run's evaluations, each once, whatever happened to the run."""

import json
import warnings

import pytest
from conftest import files_of_at_most

from harness import evaluation_log
from harness.errors import CannotWrite
from harness.evaluation_log import EvaluationLog


def write(folder, steps, done=-1, every=10):
    """Writes lines as a run does that resumes after the step `done`. The loss is a hundredth of
    the step."""
    with EvaluationLog(folder, done, every) as lines:
        for at in steps:
            lines.append(at, {"loss": at / 100})
        lines.sync()


def steps_in(folder):
    return [json.loads(line)["step"] for line in (folder / evaluation_log.NAME).open()]


def test_a_run_that_resumes_cuts_off_what_it_makes_again(tmp_path):
    write(tmp_path, [0, 10, 20, 30])
    write(tmp_path, [30, 40], done=25)
    assert steps_in(tmp_path) == [0, 10, 20, 30, 40]
    assert evaluation_log.curves(tmp_path)["loss"] == (
        [0, 10, 20, 30, 40],
        [0.0, 0.1, 0.2, 0.3, 0.4],  # a float32 as people write it
    )


def test_a_run_that_never_saved_begins_anew(tmp_path):
    write(tmp_path, [0, 10])
    write(tmp_path, [0, 10])
    assert steps_in(tmp_path) == [0, 10]


@pytest.mark.parametrize(
    "torn", ['{"step": 30, "lo', '{"step": 30}', '{"loss": 1}\n', "\0\0\0\n", "3\n"]
)
def test_a_torn_or_damaged_line_is_dropped(torn, tmp_path):
    write(tmp_path, [10, 20])
    with open(tmp_path / evaluation_log.NAME, "a") as file:
        file.write(torn)
    assert evaluation_log.curves(tmp_path)["loss"][0] == [10, 20]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing before step 20 is missing
        write(tmp_path, [30], done=20)
    assert steps_in(tmp_path) == [10, 20, 30]


@pytest.mark.parametrize("kept", [[], [10], [10, 30]])
def test_missing_lines_are_warned_of(kept, tmp_path):
    """Those of a run that an earlier version started, or of a disk that lost some."""
    if kept:
        write(tmp_path, kept)
    first_missing = 20 if kept else 10
    with pytest.warns(UserWarning, match=f"lacks .* such as that of step {first_missing}"):
        write(tmp_path, [40], done=39)
    assert steps_in(tmp_path) == [*kept, 40]


def test_without_the_file_there_are_no_curves(tmp_path):
    assert evaluation_log.curves(tmp_path) == {}


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path):
    with files_of_at_most(60):
        with pytest.raises(
            CannotWrite, match=f"{evaluation_log.NAME}: cannot be written .*too large"
        ):
            write(tmp_path, [10, 20, 30])
    write(tmp_path, [20, 30], done=10)
    assert steps_in(tmp_path) == [10, 20, 30]
