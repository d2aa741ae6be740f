"""Makes the records of runs on this machine, several at a time, each on its share of the cores."""

import concurrent.futures
import math
import os
import random
import threading

from harness import cgroups
from harness.errors import Failed
from study import making, runs


def on_shares_of_the_cores(missing, folders, jobs=None, keeps_checkpoints=False):
    """Makes the runs: so many at a time, or else one on each core.

    Args:
      missing: the runs, those to begin with first.
      folders: `records.Folders`.
      jobs: how many at a time.
      keeps_checkpoints: whether those of runs that have a record stay.

    Yields:
      Each run when it has a record, those of a task together. If one fails, the others are
      stopped.

    Raises:
      Failed: a run failed, or there are fewer cores than jobs.
    """
    jobs = number_at_a_time(jobs)
    # At random: other containers on this machine must not all use the same ones.
    stop, used = threading.Event(), random.sample(cores(), min(number_of_cores(), len(cores())))
    free_shares = [used[first::jobs] for first in range(jobs)]

    def take_a_share():
        share = free_shares.pop()
        if share:
            os.sched_setaffinity(0, share)  # on Linux, of this thread and its children

    def make(task):
        for run in task:
            making.make(run, folders, stop)
        if not keeps_checkpoints:
            making.prune([*(run.source for run in task if run.source), *task], folders)
        return task

    with concurrent.futures.ThreadPoolExecutor(jobs, initializer=take_a_share) as pool:
        futures = [pool.submit(make, task) for task in runs.in_tasks(missing)]
        try:
            for future in concurrent.futures.as_completed(futures):
                yield from future.result()
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def cores():
    """The numbers of the cores that this process may use, a list; empty if the system has none."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def number_at_a_time(jobs=None):
    """How many runs are made at a time. Raises: Failed, there are fewer cores than jobs."""
    count = number_of_cores()
    if jobs and cores() and jobs > count:
        raise Failed(f"--jobs={jobs}: there are {count} cores, so use at most as many")
    return jobs or count


def number_of_cores():
    """How many cores are shared out: a container may allow fewer than it shows; 1, for one run
    after the other on all, where the system shows none."""
    return min([len(cores()) or 1, *(math.ceil(limit) for limit in cgroups.cores())])
