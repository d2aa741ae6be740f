"""Makes the runs of the study on a Dask cluster: study.reproduce --scheduler=tcp://HOST:PORT.

The first part runs on the coordinator, which is the machine of reproduce.py. It gives
each worker a task: a run, together with the run whose towers it starts with. The second
part runs on the workers. There, Dask starts this file in the worker's clone, in a new
process for each task. It reads the task from stdin and writes the records to stdout.
"""

import asyncio
import contextlib
import json
import logging
import os
import pathlib
import platform
import subprocess
import sys
import threading
import uuid

import filelock

import data
from harness import files, process
from harness.bars import ProgressBar
from harness.errors import Failed
from harness.files import ROOT
from study import making, records
from study.runs import Run, in_tasks


def program():
    """What workers must have in common with the coordinator: name -> value. Raises: Failed."""
    with process.quiet_import():
        import tensorflow as tf

    dataset = data.load("fashion_mnist")
    return {
        "commit": commit(),
        "Python": ".".join(platform.python_version_tuple()[:2]),
        "TensorFlow": tf.__version__,
        "Fashion-MNIST with checksum": dataset.fingerprint(),
    }


def commit():
    """The commit that the clone is at. Raises: Failed, it has none, or changes since."""
    head = files.git("rev-parse", "HEAD")
    if head is None:
        raise Failed(f"{ROOT}: not a clone of the repository, so its commit is unknown")
    if files.changed("*.py", counts_new=False):
        raise Failed(f"{ROOT}: has changes that are not committed. Commit them, or undo them.")
    return head


# --- On the coordinator ---

# What a worker evaluates: where it is, and the finished process, or None outside of a clone. It is
# text, because a pickled function needs the same Python on both sides, and a worker with another
# one is to say so.
EVALUATED = (
    "(f'worker in {os.getcwd()} on {platform.node()}',"
    " subprocess.run([sys.executable, '-m', 'study.cluster'], input=task, capture_output=True,"
    " text=True, errors='replace') if os.path.exists('study/cluster.py') else None)"
)
MODULES = {"os": os, "platform": platform, "subprocess": subprocess, "sys": sys}


SECONDS_TO_ANSWER = 10  # in which a scheduler must say what it is


async def type_of_server(address):
    """Asks a Dask server what it is. Returns: such as "Scheduler"."""
    import distributed

    arguments = distributed.Security().get_connection_args("client")
    async with distributed.rpc(address, connection_args=arguments) as server:
        return (await server.identity())["type"]


@contextlib.contextmanager
def connected(address):
    """Yields: a Dask client of the scheduler at this address. Raises: Failed, there is none."""
    try:
        import distributed
    except ImportError:
        raise Failed(
            "--scheduler needs Dask. Install it with: pip install -r study/requirements.txt"
        ) from None
    for name in ("distributed", "distributed.client"):  # they print tracebacks
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        # A client would wait forever for another program's answer.
        found = asyncio.run(asyncio.wait_for(type_of_server(address), SECONDS_TO_ANSWER))
        if found != "Scheduler":
            raise ValueError(f"it is a Dask {found.lower()}")
        client = distributed.Client(address, timeout=SECONDS_TO_ANSWER)
    except Exception as error:  # any, as the answer of another program can be any bytes
        if address.startswith("tls:") and isinstance(error, TypeError):
            raise Failed(
                f"--scheduler={address}: tls:// needs a certificate. study/MAKING.md shows the"
                " variables that name it."
            ) from None
        raise Failed(
            f"--scheduler={address}: no Dask scheduler there ({str(error) or 'no answer'}). Start one"
            " with `dask scheduler`, and use the address that it prints."
        ) from error
    with client:
        yield client


def make(runs, folders, address, quick):
    """Makes runs on the workers of a cluster, each with those that have the same source.

    Args:
      runs: the runs, those to begin with first.
      folders: `records.Folders`; each record is written there.
      address: of the scheduler.
      quick: whether they are those of --quick.

    Yields:
      Each run, when it has a record.

    Raises:
      Failed: a run failed, a worker differs from the coordinator, or the scheduler is gone.
    """
    with connected(address) as client:
        from distributed import CancelledError, KilledWorker, as_completed

        print(f"Dask's dashboard: {client.dashboard_link}", flush=True)
        common = program()
        futures = {}

        def submit(index, task):
            text = json.dumps({"program": common, "quick": quick, "runs": task})
            key = f"{task[0].study}-{task[0].name}-{uuid.uuid4().hex}"
            future = client.submit(
                eval, EVALUATED, {**MODULES, "task": text}, key=key, priority=-index
            )
            futures[key] = future, index, task
            return future

        tasks = enumerate(in_tasks(runs))
        finished = as_completed([submit(index, task) for index, task in tasks])
        if not client.scheduler_info()["workers"]:
            print("There are no workers yet. The runs begin when some are started.", flush=True)
        for future in finished:
            _, index, task = futures.pop(future.key)
            name = f"{task[0].study}/{task[0].name}"
            try:
                worker, ended = future.result()
            except KilledWorker as error:
                # The scheduler gives up after some workers died (`allowed-failures`).
                ProgressBar.write(
                    f"{name}: {error.allowed_failures + 1} workers died with it; it is tried again.",
                    sys.stderr,
                )
                finished.add(submit(index, task))
                continue
            except CancelledError:
                raise Failed(
                    f"{address}: the scheduler is gone. Start it and its workers, and run the same"
                    " command to resume."
                ) from None
            except Exception as error:  # whatever the worker's system raises
                raise Failed(f"{name}: its worker could not start it ({error})") from error
            for run, record in zip(task, records_of(ended, name, worker)):
                records.write_record(folders.record(run), record)
                yield run


def records_of(ended, name, worker):
    """The records that a task's process wrote. Raises: Failed, it wrote none."""
    if ended is None:
        raise Failed(f"{worker}: not started in a clone of the repository. Start it there.")
    try:
        answer = json.loads(ended.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (ended.stderr.splitlines() or [f"exit code {ended.returncode}"])[-1]
        raise Failed(f"{worker}: {name} ended without a record ({last})") from None
    if "failed" in answer:
        raise Failed(f"{worker}: {answer['failed']}")
    return answer["records"]


# --- On a worker ---


def main():
    """Does the task on stdin."""
    task = json.load(sys.stdin)
    os.chdir(ROOT)
    # The same folder for the same run: what was killed resumes, and a record that nobody
    # fetched is still there.
    # Of a commit: a record of another one may be of another network.
    folder = pathlib.Path("logs/cluster", str(task["program"]["commit"])[:12])
    folder = folder / "quick" if task["quick"] else folder
    try:
        check(task["program"])
        runs = [Run(*run[:-1], run[-1] and Run(*run[-1])) for run in task["runs"]]
        folders = records.Folders(folder / "runs", folder / "records")
        answer = {"records": make_here(runs, folders, task["program"]["commit"])}
    except Failed as error:
        answer = {"failed": str(error)}
    except OSError as error:
        answer = {"failed": f"{error.filename or folder}: {error.strerror}"}
    print(json.dumps(answer))


def check(coordinators):
    """Raises: Failed, this clone differs from the coordinator's."""
    for name, here in program().items():
        if here != coordinators[name]:
            raise Failed(
                f"has {name} {here}, but reproduce.py runs with {coordinators[name]}. Make them"
                " the same."
            )


def make_here(runs, folders, commit):
    """Makes runs that have the same source, if any. Returns: their records."""
    first = runs[0].source or runs[0]
    folder = folders.run(first)
    folder.parent.mkdir(parents=True, exist_ok=True)
    together = [first, *(run for run in runs if run != first)]
    # If a worker or the coordinator died, its task may still be under way here.
    with filelock.FileLock(f"{folder}.lock"):
        for run in together:
            if not has_record(run, folders, commit):
                making.make(run, folders, threading.Event(), "--threads=1")
        making.prune(together, folders)
        return [files.read_json(folders.record(run)) for run in runs]


def has_record(run, folders, commit):
    """Whether the run was made here, at this commit. Deletes its record if it is damaged."""
    if not folders.has_record(run):
        return False
    try:
        record = records.read_record(folders.record(run), *records.ENTRIES)
    except Failed:
        folders.record(run).unlink()
        return False
    # That of a run that diverged has no commit; the folder is of this one.
    return record.get("commit", commit) == commit and records.is_record_of(run, record, folders)


if __name__ == "__main__":
    main()
