"""Whether the system lets this process start as many threads as TensorFlow and numpy will.

They end the process with a page of their own when it does not.
"""

import os
import threading

from harness.errors import Failed

OF_ANY_RUN = 24  # threads, whatever the number of cores


def cores():
    """How many cores the system lets this process use."""
    affinity = getattr(os, "sched_getaffinity", None)  # only Linux has it
    return len(affinity(0)) if affinity else os.cpu_count()


def check(num_cores):
    """Starts as many threads as a run with so many cores, and ends them.

    Raises: Failed, the system does not let it.
    """
    needed, started, end = OF_ANY_RUN + 3 * num_cores, [], threading.Event()
    try:
        for _ in range(needed):
            thread = threading.Thread(target=end.wait, daemon=True)
            thread.start()
            started.append(thread)
    except (RuntimeError, MemoryError) as error:
        raise Failed(
            f"this run needs {needed} threads, and the system lets it start {len(started)}. End"
            " other programs, raise the limit (ulimit -u, or that of the container), or let it use"
            " fewer cores, as with taskset -c 0-1."
        ) from error
    finally:
        end.set()
        for thread in started:
            thread.join()
