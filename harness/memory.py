"""How much memory this process may use."""

import contextlib
import os
import pathlib
import re
import resource

from harness import cgroups

INFO = "/proc/meminfo"


def allowed():
    """Returns the bytes that this process may use: all, or what the system allows it."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    sizes += [soft] if soft != resource.RLIM_INFINITY else []
    return min(sizes + cgroups.memory())


def free():
    """Returns the bytes of `allowed` that no other process holds, as far as the system says."""
    with contextlib.suppress(OSError):  # only Linux has this file
        found = re.search(r"MemAvailable:\s*(\d+) kB", pathlib.Path(INFO).read_text())
        return min(allowed(), int(found[1]) * 1024) if found else allowed()
    return allowed()
