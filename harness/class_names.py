"""Names of a task's classes: from a text file, and whether they can be shown."""

import os
import unicodedata

from harness import disk, idx
from harness.errors import DataError


def read(folder, task, count, what_to_do):
    """Reads the names in TASK-classes.txt, one a line; without this file, they are numbers.

    Args:
      folder, task: the folder of the label files, and the task's name.
      count: number of classes.
      what_to_do: ends the message if the file cannot be read.

    Returns: a tuple of names. Raises: DataError.
    """
    path = idx.paths_in(folder.absolute(), f"{task}-classes.txt")[0]
    if not os.path.lexists(path):
        return tuple(map(str, range(count)))
    with disk.opened(path, what_to_do) as file:
        content = file.read()
    # Windows puts U+FEFF, the byte order mark, before UTF-8. UTF-16 without it is full of NUL.
    text = content.decode("utf-8", "replace").replace("\ufeff", "")
    if "\ufffd" in text or "\0" in text:
        raise DataError(f"{path}: not text in UTF-8. Save it again, with the encoding UTF-8.")
    names = tuple(name.strip() for name in text.splitlines() if name.strip())
    if len(names) != count:
        problem = f"has {len(names)} names, but the labels have {count} classes"
        hint = " (in IDX files, 255 is an unknown label)" if len(names) == 256 else ""
        raise DataError(f"{path}: {problem}{hint}: write one name a line")
    check(names, path)
    return names


def check(names, place):
    """Raises: DataError, these names of classes, which are from this place, cannot be used."""
    if not names or not all(isinstance(name, str) for name in names):
        raise DataError(f"{place}: its classes must be names, at least one")
    if len(set(names)) < len(names):
        raise DataError(f"{place}: two of its classes have the same name")
    for name in names:
        kinds = {unicodedata.category(character) for character in name}
        if "Cc" in kinds or not any(kind[0] in "LNPS" for kind in kinds):
            problem = f"its class {ascii(name)} cannot be shown"
            raise DataError(f"{place}: {problem}: give it a name of visible characters")
