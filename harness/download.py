"""The official files of Fashion-MNIST: names, checksums, caches, and the download.

Functions that open a file take `what_to_do`, a sentence for the user. It ends the message if the
file cannot be read, downloaded or saved.
"""

import contextlib
import hashlib
import os
import pathlib
import re
import socket
import tempfile

import requests

from harness import idx
from harness.bars import ProgressBar
from harness.errors import DataError, Unreachable

FILES = {  # name: SHA-256 of the official release
    "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
}
VALUES = {  # name: number of values in it, and their SHA-256, however they are packed
    "train-images-idx3-ubyte.gz": (
        47_040_000,
        "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
    ),
    "train-labels-idx1-ubyte.gz": (
        60_000,
        "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
    ),
    "t10k-images-idx3-ubyte.gz": (
        7_840_000,
        "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
    ),
    "t10k-labels-idx1-ubyte.gz": (
        10_000,
        "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
    ),
}
MIRRORS = (  # the official address first
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
)
MAX_SILENT_SECONDS = 10  # how long to wait for a mirror's answer, and then for its next bytes
# Variables that other programs set, and that can be why no mirror is reached.
SUSPECTS = re.compile("(all|https?)_proxy|(requests|curl)_ca_bundle|sslkeylogfile", re.IGNORECASE)


def unofficial(files):
    """Compares files with the official ones.

    Args:
      files: name -> `disk.File`, the four files that a folder has under these names.

    Returns: the files' own names of those with other content. Raises: DataError, an official
      file has another one's name.
    """
    others = []
    for name, file in files.items():
        found = official_name(file.values)
        if found not in (None, name):
            raise DataError(f"{file.path}: this is the official {found} under a wrong name")
        if found is None:
            others.append(file.path.name)
    return others


def official_name(values):
    """Returns the name of the official file that holds these values, or None."""
    for name, (size, checksum) in VALUES.items():
        if values.size == size and sha256(values) == checksum:
            return name
    return None


def sha256(content):
    return hashlib.sha256(content).hexdigest()


# --- The cache ---


def cache_folder():
    """Returns the path of the folder for downloaded files."""
    # pooch.os_cache ignores a relative XDG_CACHE_HOME, and names another folder on a Mac.
    parent = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    if parent.startswith("~"):  # a user without a home, as in some containers
        parent = tempfile.gettempdir()
    return pathlib.Path(parent) / "fashion-mnist"


def read_cache(what_to_do):
    """Reads the official files from the user's cache or that of Keras. Downloads missing ones.

    Returns: name -> `disk.File`. Raises: as `download`.
    """
    keras = os.environ.get("KERAS_HOME") or os.path.expanduser("~/.keras")
    files = {}
    for name in FILES:
        path = cache_folder() / name
        for candidate in (path, pathlib.Path(keras, "datasets", "fashion-mnist", name)):
            with contextlib.suppress(DataError):  # it is missing or damaged
                files[name] = idx.read(candidate, what_to_do)
                if official_name(files[name].values) == name:
                    break
        else:
            download(name, path, what_to_do)
            files[name] = idx.read(path, what_to_do)
    return files


# --- Downloading ---


def download(name, path, what_to_do):
    """Downloads one of `FILES` to a path, from the first mirror that sends it intact.

    Raises: Unreachable, there is no such file, and no mirror can be reached or has it;
      DataError, it cannot be saved, a damaged one stays, or a mirror sent something else.
    """
    import pooch  # here: a machine that has the files needs none

    pooch.get_logger().setLevel("WARNING")  # the progress bar says enough
    state = "damaged" if os.path.exists(path) else "missing"
    reasons, kind = [], Unreachable if state == "missing" else DataError
    for mirror in MIRRORS:
        try:
            # Writes a temporary file, and renames it once its checksum is right.
            pooch.retrieve(mirror + name, FILES[name], name, path.parent, downloader=fetch)
            return
        except Unreachable as error:
            reason = error
        except ValueError:  # pooch found another checksum
            reason, kind = "what it sent is not the official file", DataError
        except OSError as error:
            cause = error.__cause__ or error  # pooch wraps a PermissionError
            problem = f"the download cannot be saved there ({cause.strerror or cause})"
            raise DataError(f"{path.parent}: {problem}. {what_to_do}") from error
        reasons.append(f"{mirror.split('/')[2]}: {reason}")
    suspects = sorted(name for name in os.environ if os.environ[name] and SUSPECTS.fullmatch(name))
    if suspects:
        reasons.append(f"these variables change how it is reached: {', '.join(suspects)}")
    problem = f"{state}, and no mirror could be used ({'; '.join(reasons)})"
    raise kind(f"{path}: {problem}. {what_to_do}")


def fetch(url, path, _):
    """Downloads one file for `pooch.retrieve`. Raises: Unreachable; or OSError, from the disk."""
    title, content = f"Downloading {os.path.basename(url)}", bytearray()
    headers = {"Accept-Encoding": "identity"}  # the files are compressed already
    try:
        with requests.get(url, headers=headers, stream=True, timeout=MAX_SILENT_SECONDS) as answer:
            answer.raise_for_status()
            size = answer.raw.length_remaining
            with ProgressBar(desc=title, total=size, unit="B", unit_scale=True) as bar:
                # Not iter_content, which unpacks a .gz file if the mirror calls it an encoding.
                for chunk in answer.raw.stream(2**14, decode_content=False):
                    content += chunk
                    bar.update(len(chunk))
    except Exception as error:  # of requests or what it uses, often an OSError or a ValueError
        raise Unreachable(reason_of(error)) from error
    pathlib.Path(path).write_bytes(content)


def reason_of(error):
    """Says in a few words why a mirror could not be used."""
    if isinstance(error, requests.HTTPError):
        return f"HTTP {error.response.status_code}"
    while error.__context__:  # requests and urllib3 wrap the error that the system reported
        error = error.__context__
    if isinstance(error, socket.gaierror):
        return "cannot resolve the name"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    without_password = re.sub("//[^/]*@", "//", text)  # of a proxy
    return " ".join(without_password.split())[:100]
