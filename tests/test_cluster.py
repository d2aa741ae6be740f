"""The study on a Dask cluster: a scheduler and workers in processes of their own, on this host."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from conftest import ROOT, SECONDS, run_script, with_variables

import data

pytest.importorskip("distributed", reason="distributed is not installed: tests/requirements.txt")
import psutil  # noqa: E402 (distributed needs it, too)

pytestmark = pytest.mark.slow

STUDY = ("--only=best_lever", "--seeds=1")  # two short runs with --quick
NOWHERE = "tcp://127.0.0.1:9"  # nothing listens there


def git(folder, *command):
    given = ["-c", "user.name=test", "-c", "user.email=test@example.org", *command]
    return subprocess.check_output(["git", "-C", folder, *given], text=True).strip()


@pytest.fixture(scope="module")
def clone(fashion_mnist, tmp_path_factory):
    """A repository at a commit of its own, with this program as it is now."""
    folder = tmp_path_factory.mktemp("clone")
    for path in [*ROOT.glob("*.py"), *ROOT.glob("harness/*.py"), *ROOT.glob("study/*.py"),
                 ROOT / "README.md", ROOT / "study" / "README.md", ROOT / ".gitignore"]:  # fmt: skip
        (folder / path.relative_to(ROOT)).parent.mkdir(exist_ok=True)
        shutil.copy(path, folder / path.relative_to(ROOT))
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "the program")
    return folder


def quick_runs(clone):
    """Where a worker in this clone keeps the runs of --quick: each commit has a folder."""
    return clone / "logs" / "cluster" / git(clone, "rev-parse", "HEAD")[:12] / "quick" / "runs"


def environment(**more):
    variables = with_variables(more)
    if data.FOLDER_VARIABLE in variables:  # it may be relative to this folder
        variables[data.FOLDER_VARIABLE] = os.path.abspath(variables[data.FOLDER_VARIABLE])
    return variables


class Cluster:
    """A scheduler on loopback, and what a test starts beside it."""

    def __init__(self, folder, processes, security=()):
        self._folder, self._processes, self._security = folder, processes, security
        file = folder / "scheduler.json"
        self.scheduler = self.start(
            ["-m", "dask", "scheduler", "--host=127.0.0.1", "--port=0", "--no-dashboard",
             f"--scheduler-file={file}", *security],
            folder, DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="0",
        )  # fmt: skip
        wait_until(file.exists, self.scheduler)
        self.address = json.loads(file.read_text())["address"]

    def start(self, command, cwd, **variables):
        """Starts Python with a command. Its output goes to the files process.out and .err."""
        name = self._folder / str(len(self._processes))
        out, err = (pathlib.Path(f"{name}.{stream}") for stream in ("out", "err"))
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen([sys.executable, *command], cwd=cwd, stdout=stdout,
                                       stderr=stderr, env=environment(**variables),
                                       start_new_session=True)  # fmt: skip
        process.out, process.err = out, err
        self._processes.append(process)
        return process

    def worker(self, clone):
        return self.start(
            ["-m", "dask", "worker", self.address, "--no-nanny", "--nthreads=1", "--no-dashboard",
             f"--local-directory={self._folder}", *self._security], clone,
        )  # fmt: skip

    def reproduce(self, clone, logdir, *more_flags, **variables):
        return self.start(
            ["-m", "study.reproduce", "--quick", *STUDY, f"--logdir={logdir}",
             f"--scheduler={self.address}", *more_flags], clone, **variables,
        )  # fmt: skip


def wait_until(condition, process):
    """Waits, while the process runs, until condition() is true."""
    end = time.monotonic() + SECONDS
    while not condition():
        assert process.poll() is None, process.err.read_text()
        assert time.monotonic() < end
        time.sleep(0.1)


def refusal(process):
    """What a process wrote to stderr when it ended with exit code 1, and without a traceback."""
    assert process.wait(SECONDS) == 1
    message = process.err.read_text()
    assert "Traceback" not in message
    return message


@pytest.fixture
def processes():
    """A list; at the end, its processes are killed."""
    processes = []
    try:
        yield processes
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with the runs that it started
            process.wait()


@pytest.fixture
def cluster(tmp_path, processes):
    return Cluster(tmp_path, processes)


def records_in(logdir):
    """name -> record, without what may differ between machines: folders, threads and times."""
    records = {}
    for path in (logdir / "quick" / "records" / "best_lever").glob("*.json"):
        record = json.loads(path.read_text())
        for name in ("command", "images_per_second", "wall_seconds", "resumed_after"):
            del record[name]
        for name in ("logdir", "threads"):
            del record["flags"][name]
        records[path.stem] = record
    return records


def test_a_study_survives_its_workers_and_its_coordinator(clone, cluster, tmp_path):
    shutil.rmtree(clone / "logs", ignore_errors=True)  # runs that other tests have finished
    workers = [cluster.worker(clone) for _ in range(2)]
    logdir = tmp_path / "study"
    coordinator = cluster.reproduce(clone, logdir)
    runs = quick_runs(clone) / "best_lever"
    wait_until(lambda: len(list(runs.glob("*/settings.json"))) == 2, coordinator)  # both train
    # The scheduler gives a task up when one worker has died with it, and the run goes on
    # without the worker, as nobody stops it.
    workers[0].kill()
    wait_until(lambda: "tried again" in coordinator.err.read_text(), coordinator)
    wait_until(lambda: records_in(logdir), coordinator)
    coordinator.kill()
    coordinator.wait()

    again = cluster.reproduce(clone, logdir)
    assert again.wait(SECONDS) == 0, again.err.read_text()
    assert re.search("[12] of 2 runs have a record", again.out.read_text())
    plain = tmp_path / "plain"
    here = cluster.start(["-m", "study.reproduce", "--quick", *STUDY, f"--logdir={plain}"],
                         clone)  # fmt: skip
    assert here.wait(SECONDS) == 0, here.err.read_text()
    records = records_in(logdir)
    assert len(records) == 2 and records == records_in(plain)
    assert all(record["machine"]["threads"] == 1 for record in records.values())


def test_a_run_that_loses_five_workers_is_finished_by_the_sixth(clone, cluster, tmp_path):
    shutil.rmtree(clone / "logs", ignore_errors=True)  # runs that other tests have finished
    logdir = tmp_path / "study"
    coordinator = cluster.reproduce(clone, logdir)

    def command(process):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended since it was listed
            return process.cmdline()
        return []

    def trains(worker):
        started = psutil.Process(worker.pid).children(recursive=True)
        return any("train.py" in command(process) for process in started)

    def tried_again():
        return coordinator.err.read_text().count("tried again")

    for _ in range(5):
        before, worker = tried_again(), cluster.worker(clone)
        wait_until(lambda: trains(worker), coordinator)
        os.killpg(worker.pid, signal.SIGKILL)  # with its run
        worker.wait()
        wait_until(lambda: tried_again() > before, coordinator)
    cluster.worker(clone)
    assert coordinator.wait(SECONDS) == 0, coordinator.err.read_text()
    assert len(records_in(logdir)) == 2


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
def test_a_cluster_with_tls_makes_the_runs(clone, processes, tmp_path):
    shutil.rmtree(clone / "logs", ignore_errors=True)  # runs that other tests have finished
    names = ("ca", "cert", "key")
    ca, cert, key = paths = [tmp_path / f"{name}.pem" for name in names]
    subprocess.check_call(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj",
                           "/CN=localhost", "-keyout", key, "-out", cert], stderr=subprocess.DEVNULL)  # fmt: skip
    shutil.copy(cert, ca)
    tls = [f"--tls-{name}={path}" for name, path in zip(("ca-file", "cert", "key"), paths)]
    cluster = Cluster(tmp_path, processes, ["--protocol=tls", *tls])
    assert cluster.address.startswith("tls://")
    cluster.worker(clone)
    variables = {"CA_FILE": ca, "CLIENT__CERT": cert, "CLIENT__KEY": key}
    variables = {f"DASK_DISTRIBUTED__COMM__TLS__{n}": str(path) for n, path in variables.items()}
    coordinator = cluster.reproduce(clone, tmp_path / "study", **variables)
    assert coordinator.wait(SECONDS) == 0, coordinator.err.read_text()
    assert len(records_in(tmp_path / "study")) == 2


def test_a_run_and_the_run_it_starts_with_are_one_task(clone, cluster, tmp_path):
    code = """if True:
        import json
        from study import cluster, runs
        (run,) = [r for r in runs.quick(runs.runs_of("levers")) if r.source and r.seed == 0]
        print(json.dumps({"program": cluster.program(), "quick": True, "runs": [run]}))
    """
    task = subprocess.check_output([sys.executable, "-c", code], cwd=clone, env=environment())
    (tmp_path / "task").write_bytes(task)
    folder = quick_runs(clone) / "levers"

    def start():
        given = "import sys, runpy; sys.stdin = open(sys.argv[1]);"
        given += "runpy.run_module('study.cluster', run_name='__main__', alter_sys=True)"
        return cluster.start(["-c", given, tmp_path / "task"], clone)

    def answer():
        process = start()
        assert process.wait(SECONDS) == 0, process.err.read_text()
        return json.loads(process.out.read_text())

    # It dies, and the run that it has begun goes on.
    killed = start()
    wait_until((folder / "1000_alone_half-seed0" / "settings.json").exists, killed)
    killed.kill()

    (record,) = answer()["records"]
    assert record["setting"] == "1000 alone first" and record["flags"]["init_from"]
    assert not list(folder.rglob("model.ckpt-*"))  # 78 MB each
    # If nobody fetched the record, the next task gets it, and nothing trains again.
    assert answer()["records"] == [record]


def test_a_damaged_record_of_a_worker_is_deleted_so_that_its_run_is_made_again(tmp_path):
    from study import cluster, records, runs

    folders = records.Folders(tmp_path, tmp_path)
    run = runs.Run("best_lever", "none", 0, {}, None)
    path = folders.record(run)
    path.parent.mkdir()
    path.write_text('{"setting": "none", "se')
    assert not cluster.has_record(run, folders, "abc")
    assert not path.exists()


def test_a_worker_that_differs_is_refused(clone):
    code = """if True:
        from study import cluster
        common = cluster.program()
        cluster.check(common)
        for name in common:
            try:
                cluster.check({**common, name: "another"})
            except cluster.Failed as error:
                print(error)
    """
    checked = subprocess.check_output([sys.executable, "-c", code], cwd=clone, env=environment())
    lines = checked.decode().splitlines()
    assert len(lines) == 4
    for line, name in zip(lines, ("commit", "Python", "TensorFlow", "Fashion-MNIST")):
        assert line.startswith(f"has {name}") and "with another. Make them the same." in line


def test_a_worker_at_another_commit_is_refused(clone, cluster, tmp_path):
    other = shutil.copytree(clone, tmp_path / "other")
    git(other, "commit", "-qm", "another", "--allow-empty")
    cluster.worker(other)
    message = refusal(cluster.reproduce(clone, tmp_path / "study"))
    assert git(other, "rev-parse", "HEAD") in message and git(clone, "rev-parse", "HEAD") in message


def test_a_worker_outside_a_clone_is_refused(clone, cluster, tmp_path):
    cluster.worker(tmp_path)
    message = refusal(cluster.reproduce(clone, tmp_path / "study"))
    assert f"worker in {tmp_path}" in message and "not started in a clone" in message


def test_changes_that_are_not_committed_are_refused(clone, cluster, tmp_path):
    changed = shutil.copytree(clone, tmp_path / "changed")
    with (changed / "model.py").open("a") as file:
        file.write("# changed\n")
    assert "not committed" in refusal(cluster.reproduce(changed, tmp_path / "study"))


def test_the_study_ends_when_the_scheduler_does(clone, cluster, tmp_path):
    coordinator = cluster.reproduce(clone, tmp_path / "study")
    wait_until(lambda: "no workers yet" in coordinator.out.read_text(), coordinator)
    cluster.scheduler.kill()
    assert f"{cluster.address}: the scheduler is gone" in refusal(coordinator)


@pytest.mark.parametrize(
    "address, message",
    [
        (NOWHERE, f"--scheduler={NOWHERE}: no Dask scheduler there"),
        ("tls://127.0.0.1:9", "needs a certificate. study/MAKING.md shows"),
    ],
)
def test_an_address_that_cannot_be_used_gets_a_sentence(address, message, tmp_path):
    refused = run_script("study.reproduce", "--quick", *STUDY, f"--logdir={tmp_path}",
                         f"--scheduler={address}")  # fmt: skip
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert message in refused.stderr


def say_nothing(connection):
    connection.recv(1)  # and leave it open


def answer_as_a_web_server(connection):
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    connection.recv(1)


def greet_as_a_mail_server(connection):
    connection.sendall(b"220 mail.example.org ESMTP\r\n" * 50)
    connection.recv(1)


def hang_up(connection):
    connection.close()


@pytest.mark.parametrize(
    "program", [say_nothing, answer_as_a_web_server, greet_as_a_mail_server, hang_up]
)
def test_another_programs_port_gets_a_sentence(program, tmp_path):
    kept = []

    def serve():
        with contextlib.suppress(OSError):  # the test has ended
            while True:
                kept.append(listener.accept()[0])
                program(kept[-1])

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        address = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        refused = run_script("study.reproduce", "--quick", *STUDY,
                             f"--logdir={tmp_path}", f"--scheduler={address}")  # fmt: skip
    assert refused.returncode == 1
    sentence = f"reproduce.py: --scheduler={address}: no Dask scheduler there"
    assert sentence in refused.stderr.splitlines()[-1] and "Traceback" not in refused.stderr


def test_the_address_of_a_worker_is_refused(clone, cluster, tmp_path):
    worker = cluster.worker(clone)
    wait_until(lambda: "Start worker at" in worker.err.read_text(), worker)
    (address,) = re.findall(r"Start worker at: *(\S+)", worker.err.read_text())
    refused = run_script("study.reproduce", "--quick", *STUDY, f"--logdir={tmp_path}",
                         f"--scheduler={address}")  # fmt: skip
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert f"{address}: no Dask scheduler there" in refused.stderr


def test_without_dask_the_study_says_what_to_install(tmp_path):
    refused = run_script("study.reproduce", "--quick", *STUDY, f"--logdir={tmp_path}",
                         f"--scheduler={NOWHERE}",
                         prelude="sys.modules['distributed'] = None")  # fmt: skip
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert "pip install -r study/requirements.txt" in refused.stderr
