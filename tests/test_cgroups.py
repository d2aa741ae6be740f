"""Limits of the groups that a process is in. Where none can be made, files take their place."""

import contextlib
import os
import subprocess
import sys

import pytest
from conftest import ROOT, run_script
from test_train import assert_one_sentence

from harness import cgroups, machine, memory
from harness.errors import Failed
from study import running


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A function that makes a system: our groups, and files of groups, path -> content."""
    monkeypatch.setattr(cgroups, "OWN", tmp_path / "own")
    monkeypatch.setattr(cgroups, "ROOT", tmp_path / "cgroup")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)

    def make(own, contents):
        (tmp_path / "own").write_text(own)
        for name, content in contents.items():
            (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "cgroup" / name).write_text(f"{content}\n")

    return make


UNLIMITED = 9223372036854771712  # as the first version writes it
BOTH = "4:memory:/batch/job 7\n1:cpu,cpuacct:/batch/job 7\n0::/batch/job 7\n"


@pytest.mark.parametrize("own, contents", [
    ("0::/\n", {"memory.max": 2**20}),
    ("0::/batch/job 7\n", {"batch/job 7/memory.max": "max", "batch/memory.max": 2**20}),
    ("0::/batch/job 7\n", {"batch/job 7/memory.max": 2**20, "batch/memory.max": 2**21}),
    (BOTH, {"memory/batch/job 7/memory.limit_in_bytes": 2**20}),
    (BOTH, {"memory/batch/memory.limit_in_bytes": 2**20,
            "memory/batch/job 7/memory.limit_in_bytes": UNLIMITED}),
    (BOTH, {"unified/batch/memory.max": 2**20}),
    # In a container that is told the names outside it.
    ("4:memory:/docker/1f2e\n", {"memory/memory.limit_in_bytes": 2**20}),
    ("0::/../other\n", {"memory.max": 2**20}),
])  # fmt: skip
def test_memory_is_limited_by_each_group_up_to_the_outermost(own, contents, system):
    system(own, contents)
    assert memory.allowed() == 2**20


@pytest.mark.parametrize("own, contents, cores", [
    ("0::/\n", {"cpu.max": "max 100000"}, 64),
    ("0::/\n", {"cpu.max": "150000 100000"}, 2),  # quotas count in whole cores
    ("0::/batch/job 7\n", {"batch/cpu.max": "50000 100000", "batch/job 7/cpu.max": "max 100000"}, 1),
    (BOTH, {"cpu/batch/cpu.cfs_quota_us": 300000, "cpu/batch/cpu.cfs_period_us": 100000}, 3),
    (BOTH, {"cpu/batch/job 7/cpu.cfs_quota_us": -1, "cpu/batch/job 7/cpu.cfs_period_us": 100000}, 64),
])  # fmt: skip
def test_cores_are_limited_by_each_group_up_to_the_outermost(own, contents, cores, system):
    system(own, contents)
    assert machine.cores() == cores and machine.cores(5) == 5


def test_without_groups_all_is_allowed(system, tmp_path):
    system("", {})
    assert machine.cores() == 64
    (tmp_path / "own").unlink()  # another system than Linux
    assert cgroups.memory() == cgroups.cores() == []


def make_group(controller, limits):
    """Makes a group with limits, and one within it. Returns: the latter's folder, or None."""
    for outer in cgroups.folders(controller):
        made = outer / f"test-{os.getpid()}"
        if not (outer / "cgroup.procs").exists():  # with both versions, a folder that is no group
            continue
        try:
            (made / "inner").mkdir(parents=True)
            for file, limit in limits.items():
                (made / file).write_text(str(limit))
            return made / "inner"
        except OSError:
            delete_group(made / "inner")
    return None


def delete_group(inner):
    for folder in (inner, inner.parent):
        with contextlib.suppress(OSError):
            folder.rmdir()


@pytest.mark.parametrize("controller, limits", [
    ("memory", {"memory.limit_in_bytes": 2**30}), ("", {"memory.max": 2**30}),
    ("cpu", {"cpu.cfs_quota_us": 50000}), ("", {"cpu.max": "50000 100000"}),
])  # fmt: skip
def test_a_process_in_a_real_group_sees_its_limit(controller, limits):
    program = (
        "import os, pathlib, sys; sys.path.insert(0, sys.argv[1])\n"
        "pathlib.Path(sys.argv[2], 'cgroup.procs').write_text(str(os.getpid()))\n"
        "from harness import cgroups\n"
        "print(min(cgroups.memory(), default=None), min(cgroups.cores(), default=None))"
    )
    folder = make_group(controller, limits)
    if folder is None:
        pytest.skip("no such group can be made here")
    try:
        told = subprocess.run(
            [sys.executable, "-c", program, ROOT, folder], capture_output=True, text=True
        )
    finally:
        delete_group(folder)
    assert told.returncode == 0, told.stderr
    bytes_of_memory, cores = told.stdout.split()
    assert bytes_of_memory == str(2**30) if "memory" in str(limits) else cores == "0.5"


@pytest.mark.parametrize("controller", ["pids", ""])
def test_too_few_threads_are_said_in_a_sentence(controller, tmp_path):
    folder = make_group(controller, {"pids.max": 12})
    if folder is None:
        pytest.skip("no such group can be made here")
    enter = f"import os, pathlib; pathlib.Path({str(folder / 'cgroup.procs')!r}).write_text('0')"
    try:
        ended = run_script("train.py", "--dataset=synthetic", f"--logdir={tmp_path}", prelude=enter)
    finally:
        delete_group(folder)
    assert_one_sentence(ended, "threads, and the system lets it start ", "raise the limit")
    assert ended.returncode == 1 and not list(tmp_path.iterdir())


def test_a_container_makes_as_many_runs_at_a_time_as_it_allows_cores(monkeypatch):
    monkeypatch.setattr(running, "cores", lambda: list(range(64)))
    monkeypatch.setattr(cgroups, "cores", lambda: [1.5, 8])
    assert running.number_at_a_time() == 2
    with pytest.raises(Failed, match="--jobs=3: there are 2 cores"):
        running.number_at_a_time(3)
    monkeypatch.setattr(cgroups, "cores", list)
    assert running.number_at_a_time() == 64
