"""The limits that Linux sets for this process and the groups (cgroups) that it is in.

Containers, batch systems and systemd limit what is used by all processes of a group. Groups lie
within each other, and each has limits of its own. There are two versions, which have other files.
"""

import contextlib
import pathlib

OWN = "/proc/self/cgroup"  # a line for each hierarchy: its number, its controllers, our group
ROOT = "/sys/fs/cgroup"


def memory():
    """Returns the bytes that each group may use, a list, as far as they are limited."""
    found = [*read("", "memory.max"), *read("memory", "memory.limit_in_bytes")]
    return [int(text) for text in found if text.isdecimal()]  # not "max"


def cores():
    """Returns how many cores each group may use, a list of numbers, as far as they are limited."""
    found = [text.split() for text in read("", "cpu.max")]  # "max 100000" or "150000 100000"
    quotas, periods = (read("cpu", f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    found += zip(quotas, periods)  # -1 for no limit
    limited = [pair for pair in found if all(text.isdecimal() for text in pair)]
    return [int(quota) / int(period) for quota, period in limited]


def read(controller, name):
    """Reads a file of each group that this process is in, from its own to the outermost.

    Args:
      controller: its hierarchy's, of version 1; or "" for version 2.
      name: the file's name.

    Returns:
      The texts of the files that are there.
    """
    texts = []
    for folder in folders(controller):
        with contextlib.suppress(OSError):
            texts.append((folder / name).read_text().strip())
    return texts


def folders(controller):
    """Yields the folders of the groups, of which not all need to be there: in a container, the
    system may name those outside it."""
    try:
        lines = pathlib.Path(OWN).read_text().splitlines()
    except OSError:  # another system than Linux
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controller not in controllers.split(","):
            continue
        # With both versions, the second one has a folder of its own.
        for root in [controller] if controller else ["", "unified"]:
            outermost = pathlib.Path(ROOT, root)
            folder = outermost / group.strip("/")
            yield folder
            while folder != outermost:
                folder = folder.parent
                yield folder
