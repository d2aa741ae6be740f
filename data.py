"""Fashion-MNIST with several labels for each image: loading, batches, labels of the tasks.

    import data
    dataset = data.load()                          # downloads Fashion-MNIST the first time
    images, labels = dataset.train_batch(step=0, batch_size=128, seed=0)
    labels["article"], labels["group"]             # [128] int32 each

All arrays are numpy arrays; this file does not use TensorFlow.
"""

import contextlib
import functools
import gzip
import hashlib
import io
import math
import os
import pathlib
import re
import socket
import tempfile
import typing
import unicodedata
import warnings
import zlib

import numpy as np
import pooch
import requests
import tqdm

# --- Tasks ---


class Task(typing.NamedTuple):
    """One label that the network predicts for an image. Each task has its own output.

    To add a task, add an entry to `TASKS`. This one says when an article is worn:

        Task("season", ("summer", "winter", "any"), (0, 2, 1, 0, 1, 0, 2, 2, 2, 1)),

    The program then trains it with --tasks=article,season; nothing else has to change.
    """

    name: str
    classes: tuple  # the names of the classes: label 0, label 1, ...
    from_article: tuple  # the label of each of the ten ARTICLES; empty: labels are in files

    def labels(self, split):
        """Returns the labels of a split's images, [N] int32."""
        if self.from_article:
            return np.array(self.from_article, np.int32)[split.labels["article"]]
        return split.labels[self.name].astype(np.int32)


ARTICLES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

TASKS = (
    Task("article", ARTICLES, tuple(range(10))),
    Task("group", ("Shoes", "For Women", "Other"), (2, 2, 2, 1, 2, 0, 1, 0, 1, 0)),
)

# --- The data set and its batches ---


class Split(typing.NamedTuple):
    """Images with their labels, as stored in the files."""

    images: np.ndarray  # [N, H, W] uint8, or [N, H, W, C]
    # name -> [N] uint8: "article", or "label" of a user's own images, and the label files.
    labels: dict

    def take(self, indices):
        """Returns a `Split` of these images."""
        labels = {name: values[indices] for name, values in self.labels.items()}
        return Split(self.images[indices], labels)

    def main_labels(self):
        """Returns the labels that came with the images, [N] uint8."""
        return next(iter(self.labels.values()))


class Dataset(typing.NamedTuple):
    """A training and a test split, with the statistics of the training images."""

    name: str
    train: Split
    test: Split  # the images for evaluation: the test set or held-out training images
    mean: np.ndarray  # as one image, float32: the mean of each pixel and channel
    scale: np.ndarray  # the same, 1 / (standard deviation + 1e-9); 0 for a constant pixel
    tasks: tuple = TASKS  # each batch has one label per task and image, in this order

    def image_shape(self):
        """Returns height, width and channels of an image."""
        return (*self.mean.shape, 1)[:3]

    def train_batch(self, step, batch_size, seed):
        """Makes the batch of any training step, from 0; no earlier step is needed.

        The seed determines the order of the images. Returns: as `batch`.
        """
        epoch, index = divmod(step, steps_per_epoch(len(self.train.images), batch_size))
        order = epoch_order(len(self.train.images), seed, epoch)
        return self.batch(self.train, order[index * batch_size : (index + 1) * batch_size])

    def test_batches(self, batch_size):
        """Yields the test split in order, as `batch` does; the last batch may be smaller."""
        for start in range(0, len(self.test.images), batch_size):
            yield self.batch(self.test, slice(start, start + batch_size))

    def batch(self, split, indices):
        """Makes a batch of those images of a split; the indices are [B] int or a slice.

        Returns: [B, H, W, C] float32 standardised images; task name -> [B] int32 labels.
        """
        chosen = split.take(indices)
        labels = {task.name: task.labels(chosen) for task in self.tasks}
        return self.standardise(chosen.images), labels

    def standardise(self, images):
        """Computes the z-score of each pixel and channel: uint8 images -> [B, H, W, C] float32."""
        return ((images - self.mean) * self.scale).reshape(-1, *self.image_shape())

    def implied(self, articles):
        """Returns the labels that follow from articles, [B] int: task name -> [B] int32."""
        return {
            task.name: np.array(task.from_article, np.int32)[articles]
            for task in self.tasks
            if task.from_article and task.name != "article"
        }

    def images_by_class(self):
        """Counts the training images. Returns: task -> class -> number of images."""
        counts = {}
        for task in self.tasks:
            numbers = np.bincount(task.labels(self.train), minlength=len(task.classes)).tolist()
            counts[task.name] = dict(zip(task.classes, numbers))
        return counts

    def fingerprint(self):
        """Returns a checksum of all images and labels: 16 hexadecimal digits."""
        digest = hashlib.sha256()
        for split in (self.train, self.test):
            for array in (split.images, *split.labels.values()):
                digest.update(np.ascontiguousarray(array))
        for task in self.tasks:
            if not task.from_article:
                digest.update("\n".join((task.name, *task.classes)).encode())
        return digest.hexdigest()[:16]

    def fingerprint_of_classes(self):
        """Returns a checksum of the tasks' classes and their articles: 16 hexadecimal digits."""
        return sha256(repr([tuple(task) for task in self.tasks]).encode())[:16]


def steps_per_epoch(num_examples, batch_size):
    """Counts the batches of an epoch: every image once, and the last batch may be smaller."""
    return -(-num_examples // batch_size)


@functools.lru_cache(maxsize=2)
def epoch_order(num_examples, seed, epoch):
    """Returns the order of the images in one epoch, [N] int; the arguments alone determine it."""
    # RandomState, because its numbers are the same in every numpy release.
    return np.random.RandomState([seed, epoch]).permutation(num_examples)


def with_statistics(name, train, test, tasks=TASKS):
    """Makes a `Dataset` of two splits and computes the statistics of its training images."""
    images, count = train.images, len(train.images)
    # Sums of integers are exact, so the order of the images does not matter.
    total = images.sum(axis=0, dtype=np.int64)
    squares = np.einsum("n...,n...->...", images, images, dtype=np.int64)
    # N^2 times the variance, still an integer: it is 0 only for a pixel that never varies.
    spread = count * squares - total**2
    mean, scale = total / count, np.where(spread > 0, 1 / (np.sqrt(spread) / count + 1e-9), 0)
    return Dataset(name, train, test, mean.astype(np.float32), scale.astype(np.float32), tasks)


def balanced_subset(split, size, seed):
    """Chooses images at random, the same number of each article or label as far as possible.

    With the same seed, a smaller subset is part of every larger one.
    Returns: a `Split` of `size` images, in their original order.
    """
    # The 2 makes these numbers differ from those of the order.
    order = np.random.RandomState([seed, 0, 2]).permutation(len(split.images))
    labels = split.main_labels()[order]
    rank = np.empty(len(order), int)  # how many images of the same label come before it
    for label in np.unique(labels):
        rank[labels == label] = np.arange(np.sum(labels == label))
    return split.take(np.sort(order[np.argsort(rank, kind="stable")[:size]]))


def starved_subset(split, ratio, seed):
    """Chooses images at random, fewer of each article than of the one before it in rank.

    The share that is kept falls geometrically: all images of the commonest article, 1/ratio
    of the rarest. With the same seed, the images of a larger ratio are part of those of a
    smaller one. Returns: a `Split`, the images in their original order.
    """
    # The 3 makes these numbers differ from those of the order and of `balanced_subset`.
    order = np.random.RandomState([seed, 0, 3]).permutation(len(split.images))
    chosen = []
    for article, rank in enumerate(ranks_of_articles(seed)):
        of_article = order[split.main_labels()[order] == article]
        share = ratio ** (-rank / (len(ARTICLES) - 1))
        chosen.append(of_article[: max(1, round(len(of_article) * share))])
    return split.take(np.sort(np.concatenate(chosen)))


def ranks_of_articles(seed):
    """The rank of each article in `starved_subset`: 0 for the commonest to 9, the rarest."""
    # Ten seeds give each article each rank once.
    return [(rank + seed) % 10 for rank in (7, 2, 9, 4, 0, 6, 3, 8, 5, 1)]


# --- Loading ---

DATASETS = ("auto", "fashion_mnist", "synthetic")
FOLDER_VARIABLE = "FASHION_MNIST_DIR"
CUSTOM = "-custom"  # end of the name of a data set that is not Fashion-MNIST


class DataError(Exception):
    """The data cannot be used. The message is for the user: the file, the problem, what to do."""


class Unreachable(DataError):
    """Fashion-MNIST is not on this machine, and no mirror can be reached or has it."""


def load(dataset="auto", data_dir=None, seed=0, tasks=None, train_examples=0, holdout=0, starve=1):
    """Finds, reads and checks a data set.

    Args:
      dataset: "fashion_mnist"; "synthetic"; or "auto", which is Fashion-MNIST, or the synthetic
        set if no folder is named, the cache lacks a file and no mirror can be reached.
      data_dir: folder with the four files; by default the one that FASHION_MNIST_DIR names, or
        else the user's cache, into which missing files are downloaded.
      seed: determines the synthetic images, and which training images are chosen.
      tasks: names of entries of `TASKS`, or of label files in the folder; by default article
        and group, or label if the files in the folder are not Fashion-MNIST.
      train_examples: number of training images, chosen by `balanced_subset`; 0 for all.
      holdout: evaluate on this many of the last training images, held out; 0: the test set.
      starve: ratio of `starved_subset`, which chooses the training images; 1 for all.

    Returns: a `Dataset`. Raises: DataError.
    """
    folder = data_dir or os.environ.get(FOLDER_VARIABLE)
    folder = folder and pathlib.Path(os.path.expanduser(folder))
    name, train, test = read(dataset, folder, seed)
    is_custom = name.endswith(CUSTOM)
    tasks = tasks or (["label"] if is_custom else ["article", "group"])
    chosen = [find_task(task, name, folder, train, test) for task in tasks]
    for task in chosen:
        check(task)
    count = len(train.images) - holdout
    if count <= 0:
        raise DataError(f"holdout={holdout}: there are {len(train.images):,} training images")
    if holdout:
        train, test = train.take(slice(count)), train.take(slice(count, None))
    if train_examples > count:
        raise DataError(f"train_examples={train_examples}: there are {count:,} training images")
    if starve > 1 and is_custom:
        raise DataError(f"starve={starve}: these files are not Fashion-MNIST and show no articles")
    if starve > 1:
        train = starved_subset(train, starve, seed)
    if train_examples:
        train = balanced_subset(train, train_examples, seed)
    return with_statistics(name, train, test, tuple(chosen))


def read(dataset, folder, seed):
    """Finds and reads a data set for `load`. Returns: its name, training split and test split."""
    if dataset == "synthetic":
        return synthetic(seed)
    try:
        contents = read_folder(folder) if folder else read_cache()
    except Unreachable as error:
        if dataset != "auto":
            raise
        warnings.warn(
            "THIS IS NOT FASHION-MNIST. The files are not on this machine and cannot be"
            " downloaded, so this run uses drawn images, the synthetic set. Its results say"
            f" nothing about Fashion-MNIST. ({error})"
        )
        return synthetic(seed)
    name, other = "fashion_mnist", []
    official = {checksum: file for file, checksum in VALUES.items()}
    for file, (path, array) in contents.items():
        found = official.get(sha256(array))
        if found not in (None, file):
            raise DataError(f"{path}: this is the official {found} under a wrong name")
        if found is None:
            other.append(path.name)
    if other:
        problem = f"{folder}: not the official Fashion-MNIST (other content: {', '.join(other)})"
        if dataset == "fashion_mnist":
            raise DataError(f"{problem}. To use these files, leave out --dataset=fashion_mnist.")
        name = re.sub(r"[^\w.-]+", "_", folder.resolve().name or "root") + CUSTOM
        warnings.warn(f"{problem}; this data set is called {name}")
    labels = "label" if other else "article"
    train, test = (split_of(contents, prefix, labels) for prefix in ("train", "t10k"))
    if train.images.shape[1:] != test.images.shape[1:]:
        paths = " and ".join(str(path) for path, array in contents.values() if array.ndim > 1)
        raise DataError(f"{paths}: their images differ in height, width or channels")
    return name, train, test


def check(task):
    """Checks an entry of `TASKS`, or a task from label files. Raises: DataError."""
    place = f"task {task.name!r} {'in TASKS of data.py' if task in TASKS else 'from label files'}"
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", task.name, re.ASCII):
        raise DataError(f"{place}: its name must consist of letters, digits and _ . -")
    if task.name in ("mean", "total", "l2"):
        raise DataError(f"{place}: the results use this name already: choose another one")
    if [other.name for other in TASKS].count(task.name) > 1:
        raise DataError(f"{place}: there are two tasks of this name")
    check_classes(task.classes, place)
    labels, count = task.from_article, len(task.classes)
    if task in TASKS and len(labels) != len(ARTICLES):
        raise DataError(f"{place}: it has {len(labels)} labels for the {len(ARTICLES)} articles")
    for label in labels:
        if label not in range(count):
            problem = f"its label {label!r} is none of its {count} classes, 0 to {count - 1}"
            raise DataError(f"{place}: {problem}")


def check_classes(names, place):
    """Checks names of classes, which are from this place. Raises: DataError."""
    if not names or not all(isinstance(name, str) for name in names):
        raise DataError(f"{place}: its classes must be names, at least one")
    if len(set(names)) < len(names):
        raise DataError(f"{place}: two of its classes have the same name")
    for name in names:
        kinds = {unicodedata.category(character) for character in name}
        if "Cc" in kinds or not any(kind[0] in "LNPS" for kind in kinds):
            problem = f"its class {ascii(name)} cannot be shown"
            raise DataError(f"{place}: {problem}: give it a name of visible characters")


def find_task(name, dataset_name, folder, train, test):
    """Finds the `Task` of this name: in `TASKS`, or with labels from files.

    A task with labels from files has as many classes as the largest label of both splits says.
    """
    known = {task.name: task for task in TASKS}
    if name in known and not dataset_name.endswith(CUSTOM):
        return known[name]
    if name in known:
        problem = f"{name!r} is a label of Fashion-MNIST, which these files are not"
        raise DataError(f"tasks: {problem}. Their own labels are the task 'label'.")
    folder = folder or cache_folder()
    if name not in train.labels:
        read_labels(name, dataset_name, folder, train, test)
    count = 1 + max(int(split.labels[name].max()) for split in (train, test))
    if count == 1:
        problem = f"every label of task {name!r} is 0"
        raise DataError(f"{folder}: {problem}. A task needs at least two classes.")
    gaps = set(range(count)) - set(train.labels[name].tolist())
    if gaps:
        warnings.warn(f"task {name!r}: no training image has label {min(gaps)}")
    path = paths_in(folder, f"{name}-classes.txt")[0]
    return Task(name, read_classes(path, count), ())


def read_labels(task, dataset_name, folder, train, test):
    """Reads the label files of a task that is not in `TASKS`, into both splits.

    They are train-TASK-labels-idx1-ubyte.gz and t10k-TASK-labels-idx1-ubyte.gz, or unpacked.
    """
    unknown = f"tasks: {task!r} is not in TASKS of data.py, and"
    if dataset_name == "synthetic":
        raise DataError(f"{unknown} drawn images have no labels")
    for prefix, split in (("train", train), ("t10k", test)):
        file, count = f"{prefix}-{task}-labels-idx1-ubyte.gz", len(split.images)
        path = paths_in(folder, file)[0]
        if not os.path.exists(path):
            raise DataError(f"{unknown} {path} is missing")
        path, labels = read_idx(folder, file)
        if labels.shape != (count,):
            problem = f"has shape {labels.shape}; it must have a label for each of the"
            raise DataError(f"{path}: {problem} {count:,} images")
        split.labels[task] = checked(labels, path)


def checked(labels, path):
    """Returns these labels, [N] uint8. Raises: DataError, one of them is no class."""
    if labels.max() == 255:
        raise DataError(f"{path}: has a label 255. Every image must have a label, at most 254.")
    return labels


def read_classes(path, count):
    """Reads the names of a task's classes, one a line; without the file, they are numbers."""
    if not os.path.lexists(path):
        return tuple(map(str, range(count)))
    # Windows puts U+FEFF, the byte order mark, before UTF-8. UTF-16 without it is full of NUL.
    text = read_file(path).decode("utf-8", "replace").replace("\ufeff", "")
    if "\ufffd" in text or "\0" in text:
        raise DataError(f"{path}: not text in UTF-8. Save it again, with the encoding UTF-8.")
    names = tuple(name.strip() for name in text.splitlines() if name.strip())
    if len(names) != count:
        problem = f"has {len(names)} names, but the labels have {count} classes"
        raise DataError(f"{path}: {problem}: write one name a line")
    check_classes(names, path)
    return names


# --- Finding and reading the files ---

FILES = {  # name: SHA-256 of the official release
    "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
}
VALUES = {  # name: SHA-256 of the values in it, however they are packed
    "train-images-idx3-ubyte.gz": "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
    "train-labels-idx1-ubyte.gz": "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
    "t10k-images-idx3-ubyte.gz": "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
    "t10k-labels-idx1-ubyte.gz": "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
}
WHAT_TO_DO = (
    f"Name a folder that holds the four files with --data_dir or {FOLDER_VARIABLE},"
    " or try the program on drawn images with --dataset=synthetic."
)


def cache_folder():
    """Returns the path of the folder for downloaded files."""
    # pooch.os_cache ignores a relative XDG_CACHE_HOME, and names another folder on a Mac.
    parent = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    if parent.startswith("~"):  # a user without a home, as in some containers
        parent = tempfile.gettempdir()
    return pathlib.Path(parent) / "fashion-mnist"


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def read_file(path):
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). {WHAT_TO_DO}") from error


def read_cache():
    """Reads the official files from the user's cache, or that of Keras; downloads the others."""
    keras = os.environ.get("KERAS_HOME") or os.path.expanduser("~/.keras")
    contents = {}  # file name -> path, array
    for name in FILES:
        path = cache_folder() / name
        for candidate in (path, pathlib.Path(keras, "datasets", "fashion-mnist", name)):
            with contextlib.suppress(DataError):  # it is missing or damaged
                contents[name] = candidate, parse_idx(read_file(candidate), candidate)
                if sha256(contents[name][1]) == VALUES[name]:
                    break
        else:
            download(name, path)
            contents[name] = path, parse_idx(read_file(path), path)
    return contents


def read_folder(folder):
    """Reads the four files of a folder that the user named; images may have channels."""
    contents = {}
    for name in FILES:
        with_channels = name.replace("idx3", "idx4")
        found = [
            path
            for kind in dict.fromkeys((name, with_channels))
            for path in paths_in(folder, kind)[:1]
            if os.path.lexists(path)
        ]
        if len(found) > 1:
            raise DataError(
                f"{found[0]} and {found[1]}: delete one, as they are of the same images"
            )
        is_other = found and "idx4" in found[0].name
        contents[name] = read_idx(folder, with_channels if is_other else name)
    return contents


def read_idx(folder, name):
    """Reads one IDX file of a folder that the user named. Returns: its path, and an array."""
    paths = paths_in(folder, name)
    arrays = [parse_idx(read_file(path), path) for path in paths]
    for path, array in zip(paths, arrays):
        if not np.array_equal(array, arrays[0]):
            raise DataError(f"{paths[0]} and {path} differ. Delete the wrong one.")
    return paths[0], arrays[0]


def paths_in(folder, name):
    """Finds a file in a folder: packed or unpacked, with a dot or a hyphen before "idx".

    torchvision keeps the files in FashionMNIST/raw, of which any part may be named. Kaggle's
    zip file has each file in a folder of the file's name.
    Returns: the paths that there are, or the one where the file is missing.
    """
    hyphens = name, name.removesuffix(".gz")
    names = [*hyphens, *(n.replace("-idx", ".idx") for n in hyphens)]
    for below in (".", "raw", "FashionMNIST/raw"):
        paths = [folder / below / n for n in names]
        paths += [path / n for path in paths for n in names]
        paths = [path for path in paths if os.path.lexists(path) and not os.path.isdir(path)]
        if paths:
            return paths
    return [folder / name]


def split_of(contents, prefix, name):
    """Makes a `Split` of two files, whose prefix is "train" or "t10k". Raises: DataError."""
    images_path, images = contents[f"{prefix}-images-idx3-ubyte.gz"]
    path, labels = contents[f"{prefix}-labels-idx1-ubyte.gz"]
    for file, array, dimensions in ((images_path, images, (3, 4)), (path, labels, (1,))):
        if array.ndim not in dimensions:
            expected = " or ".join(map(str, dimensions))
            raise DataError(f"{file}: not an IDX file of bytes with {expected} dimension(s)")
    check_shape(images.shape, images_path)
    if len(labels) != len(images):
        problem = f"has {len(labels):,} labels, but {images_path} has {len(images):,} images"
        raise DataError(f"{path}: {problem}")
    if images.max() <= 1:
        warnings.warn(f"{images_path}: no value is above 1. Multiply images of 0 to 1 by 255.")
    grey = images.ndim == 4 and images.shape[3] == 1
    return Split(images[..., 0] if grey else images, {name: checked(labels, path)})


def check_shape(shape, path):
    """Raises: DataError, images of this shape, [N, H, W] or [N, H, W, C], cannot be used."""
    height, width, channels = (*shape[1:], 1)[:3]
    if channels > 4 and height <= 4:
        raise DataError(f"{path}: channels come first. Write images.transpose(0, 2, 3, 1) to it.")
    if channels > 4:
        raise DataError(f"{path}: the images have {channels} channels; they may have 1 to 4")
    if height % 4 or width % 4:
        smaller, larger = (
            f"{step(height / 4) * 4}x{step(width / 4) * 4}" for step in (math.floor, math.ceil)
        )
        fitting = f"pad them to {larger}"
        if min(height, width) >= 4:
            fitting = f"crop them to {smaller}, or {fitting}"
        problem = f"the images are {height}x{width} pixels, not multiples of 4"
        raise DataError(f"{path}: {problem}: {fitting}")


def parse_idx(content, path):
    """Reads the content of an IDX file, gzipped or not; error messages name its path.

    Returns: a read-only uint8 array of one, three or four dimensions that is not empty.
    Raises: DataError, the file is damaged, empty, not IDX, or a zip bomb.
    """
    stream = io.BytesIO(content)
    if content.startswith(b"\x1f\x8b"):
        stream = gzip.GzipFile(fileobj=stream)
    try:
        with stream:
            dimensions = {b"\0\0\x08" + bytes([n]): n for n in (1, 3, 4)}.get(stream.read(4), 0)
            shape = [int(n) for n in np.frombuffer(stream.read(4 * dimensions), ">u4")]
            if not dimensions or len(shape) != dimensions:
                raise DataError(f"{path}: not an IDX file of images or labels, packed or unpacked")
            size = int(np.prod(shape, dtype=object))
            # Fashion-MNIST is compressed about 2 to 1, a zip bomb 1000 to 1. Size 0 must be
            # refused here: numpy cannot make an array of shape 0 x 2^32 x 2^32.
            if not 0 < size <= max(2**24, 128 * len(content)):
                problem = f"which does not fit a file of {len(content):,} bytes"
                raise DataError(f"{path}: its header announces {size:,} values, {problem}")
            # Ask for one value more: gzip checks its CRC only when it reaches the end.
            values = stream.read(size + 1)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path}: damaged ({error})") from error
    if len(values) != size:
        raise DataError(f"{path}: its header announces {size:,} values, but it holds more or fewer")
    return np.frombuffer(values, np.uint8).reshape(shape)


# --- Downloading ---

MIRRORS = (  # the official address first
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
)
MAX_SILENT_SECONDS = 10  # how long to wait for a mirror's answer, and then for its next bytes
# Variables that other programs set, and that can be why no mirror is reached.
SUSPECTS = re.compile("(all|https?)_proxy|(requests|curl)_ca_bundle|sslkeylogfile", re.IGNORECASE)


def download(name, path):
    """Downloads one of `FILES` to a path, from the first mirror that sends it intact.

    Raises: Unreachable, there is no such file, and no mirror can be reached or has it;
      DataError, it cannot be saved, a damaged one stays, or a mirror sent something else.
    """
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
            raise DataError(f"{path.parent}: {problem}. {WHAT_TO_DO}") from error
        reasons.append(f"{mirror.split('/')[2]}: {reason}")
    suspects = sorted(name for name in os.environ if os.environ[name] and SUSPECTS.fullmatch(name))
    if suspects:
        reasons.append(f"these variables change how it is reached: {', '.join(suspects)}")
    raise kind(f"{path}: {state}, and no mirror could be used ({'; '.join(reasons)}). {WHAT_TO_DO}")


def fetch(url, path, _):
    """Downloads one file for `pooch.retrieve`. Raises: Unreachable; or OSError, from the disk."""
    title, content = f"Downloading {os.path.basename(url)}", bytearray()
    headers = {"Accept-Encoding": "identity"}  # the files are compressed already
    try:
        with requests.get(url, headers=headers, stream=True, timeout=MAX_SILENT_SECONDS) as answer:
            answer.raise_for_status()
            size = answer.raw.length_remaining
            with tqdm.tqdm(desc=title, total=size, unit="B", unit_scale=True) as bar:
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


# --- The drawn images: the synthetic set ---

SYNTHETIC_SIZES = 12000, 2000  # training images, test images


def synthetic(seed):
    """Draws a small data set with the sizes and labels of Fashion-MNIST; it needs no files.

    A result on it says nothing about Fashion-MNIST. Returns: name, training split, test split.
    """
    splits = []
    for which, size in enumerate(SYNTHETIC_SIZES):
        random = np.random.RandomState([seed, which, size])  # differs from an epoch's order
        articles = random.permutation(np.arange(size) % len(ARTICLES)).astype(np.uint8)

        def each(low, high):  # a random number for each image
            return random.uniform(low, high, [size, 1, 1]).astype(np.float32)

        # The place of each pixel on its shape, which is shifted, sheared and stretched.
        axis = np.linspace(-1, 1, 28, dtype=np.float32)
        x, y = axis - each(-0.3, 0.3), axis[:, np.newaxis] - each(-0.3, 0.3)
        x, y = x + each(-0.2, 0.2) * y, y + each(-0.2, 0.2) * x
        x, y = x * each(1.1, 1.9), y * each(1.1, 1.9)
        # A disc, a square, a diamond and two wedges: less than 1 inside them.
        w, h, article = abs(x), abs(y), articles[:, np.newaxis, np.newaxis]
        shapes = x**2 + y**2, np.maximum(w, h), w + h, w + y + 0.5, w - y + 0.5
        shape = np.choose(article % 5, shapes)
        inside = (shape < 1) & ((shape > each(0.4, 0.7)) | (article < 5))  # 5 to 9 are hollow
        stripes = each(0, 0.9) * ((x * each(-9, 9) + y * each(-9, 9)) % 2 < 1)
        noise = random.normal(0, 1, inside.shape).astype(np.float32) * each(5, 50)
        grey = each(0, 120) + each(70, 135) * inside * (1 - stripes) + noise
        splits.append(Split(np.clip(grey, 0, 255).astype(np.uint8), {"article": articles}))
    return "synthetic", *splits
