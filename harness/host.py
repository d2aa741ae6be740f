"""A process that is not the program's own: a notebook's or an interactive Python's, as with %run.

What a run changes there is set back when it ends, and its modules are loaded anew for the next
run, as the user may have changed them in between.
"""

import os
import pathlib
import sys

from harness import files

FOLDERS = files.ROOT, files.ROOT / "harness", files.ROOT / "study"
_found = None  # environment variables, modules and paths of imports before the run


def is_there():
    """Whether this process is another program's."""
    return hasattr(sys, "ps1")


def is_ours(module):
    """Whether a module is one of this program's."""
    path = getattr(module, "__file__", None)
    return bool(path) and pathlib.Path(path).resolve().parent in FOLDERS


def enter():
    """Notes what is to be set back. Modules of others make room for those of the same name."""
    global _found
    if _found:
        return
    names = {path.stem for path in files.ROOT.glob("*.py")}
    others = {name: sys.modules.pop(name) for name in names & sys.modules.keys()}
    _found = dict(os.environ), others, list(sys.path)


def leave():
    """Sets it back."""
    global _found
    if _found is None:
        return
    environment, others, paths = _found
    _found = None
    os.environ.clear()
    os.environ.update(environment)
    for name, module in list(sys.modules.items()):
        if name != "__main__" and is_ours(module):
            del sys.modules[name]
    sys.modules.update((n, module) for n, module in others.items() if not is_ours(module))
    if str(files.ROOT) in paths:  # train.py put it there
        paths.remove(str(files.ROOT))
    sys.path[:] = paths
