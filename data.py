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
import os
import pathlib
import re
import socket
import tempfile
import textwrap
import threading
import typing
import unicodedata
import urllib.parse
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
    # The label of each of the ten ARTICLES, in their order. None means that every image is
    # turned at random, and its label is the number of quarter turns. Empty means that the
    # labels are in files in the data folder.
    from_article: tuple | None


ARTICLES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

TASKS = (
    Task("article", ARTICLES, tuple(range(10))),
    Task("group", ("Shoes", "For Women", "Other"), (2, 2, 2, 1, 2, 0, 1, 0, 1, 0)),
    Task("rotation", ("0°", "90°", "180°", "270°"), None),
)

# --- The data set and its batches ---

IMAGE_SIZE = 28


class Split(typing.NamedTuple):
    """Images and their article labels, as stored in the files."""

    images: np.ndarray  # [N, 28, 28] uint8
    articles: np.ndarray  # [N] uint8, 0 to 9
    labels: dict = {}  # task -> [N] uint8, from label files

    def take(self, indices):
        """Returns a `Split` of these images."""
        labels = {name: values[indices] for name, values in self.labels.items()}
        return Split(self.images[indices], self.articles[indices], labels)


class Dataset(typing.NamedTuple):
    """A training and a test split, with the statistics of the training images.

    If a task turns the images, the statistics are taken over every image in all four turns.
    """

    name: str
    train: Split
    test: Split  # the images for evaluation: the test set or held-out training images
    mean: np.ndarray  # [28, 28] float32, the mean of each pixel
    scale: np.ndarray  # [28, 28] float32, 1 / (standard deviation + 1e-9); 0 for a constant pixel
    tasks: tuple = TASKS[:2]  # each batch has one label per task and image, in this order

    def train_batch(self, step, batch_size, seed):
        """Makes the batch of any training step; no earlier step is needed.

        Args:
          step: the step; the first is 0.
          batch_size: images in a batch. The last batch of an epoch may be smaller.
          seed: determines the order of the images and how they are turned.

        Returns:
          As `batch`.
        """
        epoch, index = divmod(step, steps_per_epoch(len(self.train.images), batch_size))
        order = epoch_order(len(self.train.images), seed, epoch)
        indices = order[index * batch_size : (index + 1) * batch_size]
        return self.batch(self.train, indices, seed, epoch)

    def test_batches(self, batch_size):
        """Yields the test split in order, as `batch` does; the last batch may be smaller."""
        for start in range(0, len(self.test.images), batch_size):
            yield self.batch(self.test, slice(start, start + batch_size))

    def batch(self, split, indices, *turn_seed):
        """Makes a batch of images with their labels.

        Args:
          split: the `Split` to take the images from.
          indices: which images to take: [B] int, or a slice.
          *turn_seed: ints that determine the turns; used by tasks that turn the images.

        Returns:
          [B, 28, 28, 1] float32 standardised images; dict of task name -> [B] int32 labels.
        """
        images, articles, labels = split.images[indices], split.articles[indices], {}
        for task in self.tasks:
            if task.from_article:
                labels[task.name] = np.array(task.from_article, np.int32)[articles]
            elif task.name in split.labels:
                labels[task.name] = split.labels[task.name][indices].astype(np.int32)
            else:
                labels[task.name] = quarter_turns(len(split.images), *turn_seed)[indices]
                images = turned(images, labels[task.name])
        return self.standardise(images), labels

    def standardise(self, images):
        """Computes the z-score of each pixel. A pixel that is constant in training becomes 0.

        Args:
          images: [B, 28, 28] uint8.

        Returns:
          [B, 28, 28, 1] float32.
        """
        return ((images - self.mean) * self.scale)[..., np.newaxis]

    def implied(self, articles):
        """Derives the labels of the other tasks from article labels.

        Args:
          articles: [B] int, labels of the task article.

        Returns:
          Dict of task name -> [B] int32, of the tasks whose labels follow from the article.
        """
        return {
            task.name: np.array(task.from_article, np.int32)[articles]
            for task in self.tasks
            if task.from_article and task.name != "article"
        }

    def images_by_class(self):
        """Counts the training images. Returns: task -> class -> number of images.

        Tasks that turn the images have none: a class gets other images in each epoch.
        """
        counts = {}
        for task in self.tasks:
            if task.from_article:
                labels = np.array(task.from_article)[self.train.articles]
            elif task.name in self.train.labels:
                labels = self.train.labels[task.name]
            else:
                continue
            numbers = np.bincount(labels, minlength=len(task.classes)).tolist()
            counts[task.name] = dict(zip(task.classes, numbers))
        return counts

    def fingerprint(self):
        """Returns a checksum of all images and labels: 16 hexadecimal digits."""
        digest = hashlib.sha256()
        for split in (self.train, self.test):
            for array in (split.images, split.articles, *split.labels.values()):
                digest.update(np.ascontiguousarray(array))
        for task in self.tasks:
            if task.name in self.train.labels:
                digest.update("\n".join((task.name, *task.classes)).encode())
        return digest.hexdigest()[:16]

    def fingerprint_of_classes(self):
        """Returns a checksum of the tasks' classes and their articles: 16 hexadecimal digits."""
        return sha256(repr([tuple(task) for task in self.tasks]).encode())[:16]


def steps_per_epoch(num_examples, batch_size):
    """Counts the batches of an epoch: every image once, and the last batch may be smaller."""
    return -(-num_examples // batch_size)


# The functions below use RandomState because its numbers are the same in every numpy release.


@functools.lru_cache(maxsize=2)
def epoch_order(num_examples, seed, epoch):
    """Returns the order of the images in one epoch, [N] int; the arguments alone determine it."""
    return np.random.RandomState([seed, epoch]).permutation(num_examples)


@functools.lru_cache(maxsize=2)
def quarter_turns(num_examples, *turn_seed):
    """Chooses how many quarter turns each image gets. Returns them, [N] int32, 0 to 3.

    `turn_seed` is the seed and the epoch for training images. For test images it is empty,
    so they are turned the same way every time.
    """
    # The extra 1 makes these numbers differ from those of the epoch's order.
    return np.random.RandomState([*turn_seed, 1]).randint(0, 4, num_examples).astype(np.int32)


def turned(images, turns):
    """Turns images, [B, 28, 28], counter-clockwise by so many quarter turns, [B] int."""
    images = images.copy()
    for quarter in (1, 2, 3):
        images[turns == quarter] = np.rot90(images[turns == quarter], quarter, axes=(1, 2))
    return images


def balanced_subset(split, size, seed):
    """Chooses images at random, the same number of each article as far as possible.

    With the same seed, a smaller subset is part of every larger one.

    Args:
      split: the `Split` to choose from.
      size: how many images to choose.
      seed: determines the choice.

    Returns:
      A `Split` of `size` images, in their original order.
    """
    # The 2 makes these numbers differ from those of the order and the turns.
    order = np.random.RandomState([seed, 0, 2]).permutation(len(split.articles))
    articles = split.articles[order]
    rank = np.empty(len(order), int)  # how many images of the same article come before it
    for article in np.unique(articles):
        rank[articles == article] = np.arange(np.sum(articles == article))
    chosen = np.sort(order[np.argsort(rank, kind="stable")[:size]])
    return split.take(chosen)


# Ten seeds give each article each rank once.
RANK_OF_ARTICLE = (7, 2, 9, 4, 0, 6, 3, 8, 5, 1)


def ranks_of_articles(seed):
    """The rank of each article in `starved_subset`, 0 for the commonest to 9. Returns: 10 ints."""
    return [(rank + seed) % len(ARTICLES) for rank in RANK_OF_ARTICLE]


def starved_subset(split, ratio, seed):
    """Chooses images at random, fewer of each article than of the one before it in rank.

    The share that is kept falls geometrically: all images of the commonest article, 1/ratio
    of the rarest. With the same seed, the images of a larger ratio are part of those of a
    smaller one.

    Args:
      split: the `Split` to choose from.
      ratio: how many times more of the commonest article are kept than of the rarest.
      seed: determines the choice and, by `ranks_of_articles`, which articles are rare.

    Returns:
      A `Split`, the images in their original order.
    """
    # The 3 makes these numbers differ from those of the order, the turns and the subsets.
    order = np.random.RandomState([seed, 0, 3]).permutation(len(split.articles))
    chosen = []
    for article, rank in enumerate(ranks_of_articles(seed)):
        of_article = order[split.articles[order] == article]
        share = ratio ** (-rank / (len(ARTICLES) - 1))
        chosen.append(of_article[: max(1, round(len(of_article) * share))])
    return split.take(np.sort(np.concatenate(chosen)))


def with_statistics(name, train, test, tasks=TASKS[:2]):
    """Makes a `Dataset` and computes the statistics of its training images.

    Args:
      name: the data set's name.
      train, test: a `Split` each.
      tasks: the tasks that its batches have labels for.

    Returns:
      A `Dataset`.
    """
    # Sums of integers are exact, so the order of the images does not matter.
    total = train.images.sum(axis=0, dtype=np.int64)
    chunks = np.array_split(train.images, 100)  # 64-bit copies of all images need much memory
    squares = sum((chunk.astype(np.int64) ** 2).sum(axis=0) for chunk in chunks)
    count = len(train.images)
    if any(task.from_article is None for task in tasks):
        # The margins of upright images hardly vary. With the statistics of upright images,
        # a turned image there would be up to a thousand standard deviations from the mean.
        total, squares = (sum(np.rot90(s, turns) for turns in range(4)) for s in (total, squares))
        count *= 4
    # N^2 times the variance, still an integer: it is 0 only for a pixel that never varies.
    spread = count * squares - total**2
    scale = np.where(spread > 0, 1 / (np.sqrt(spread) / count + 1e-9), 0)
    mean = total / count
    return Dataset(name, train, test, mean.astype(np.float32), scale.astype(np.float32), tasks)


# --- Loading ---

DATASETS = ("auto", "fashion_mnist", "synthetic")


class DataError(Exception):
    """The data cannot be used. The message is for the user: the file, the problem, what to do."""


class Unreachable(DataError):
    """Fashion-MNIST is not on this machine, and no mirror can be reached or has it."""


def load(dataset="auto", data_dir=None, seed=0, tasks=None, train_examples=0, holdout=0, starve=1):
    """Finds, reads and checks a data set.

    Args:
      dataset: "fashion_mnist", "synthetic" or "auto". "auto" is Fashion-MNIST. If no
        folder is named, the cache lacks a file and no mirror can be reached, "auto"
        falls back to the synthetic set, with a warning.
      data_dir: folder with the four files. By default FASHION_MNIST_DIR, or else the
        user's cache, into which missing files are downloaded.
      seed: determines the synthetic images, and which training images are chosen.
      tasks: names of entries of `TASKS`, or of label files in the folder; by default article
        and group, or article alone if the files in the folder are not Fashion-MNIST.
      train_examples: number of training images, chosen by `balanced_subset`; 0 for all.
      holdout: evaluate on this many of the last training images instead of the test
        set; they are not used for training.
      starve: ratio of `starved_subset`, which chooses the training images; 1 for all.

    Returns:
      A `Dataset`.

    Raises:
      DataError: the data cannot be used; the message names the file and says what to do.
    """
    data_dir = data_dir or os.environ.get(FOLDER_VARIABLE)
    data_dir = data_dir and pathlib.Path(os.path.expanduser(data_dir))
    name, train, test = read(dataset, data_dir, seed)
    tasks = tasks or (["article"] if name.endswith(CUSTOM) else ["article", "group"])
    known = {task.name: task for task in TASKS}
    own = {t: read_labels(t, name, data_dir, train, test) for t in tasks if t not in known}
    if holdout:
        left = len(train.images) - holdout
        if left <= 0:
            raise DataError(f"holdout={holdout}: there are {len(train.images):,} training images")
        train, test = train.take(slice(left)), train.take(slice(left, None))
    if train_examples > len(train.images):
        raise DataError(
            f"train_examples={train_examples}: there are {len(train.images):,} training images"
        )
    if starve > 1 and name.endswith(CUSTOM):
        raise DataError(f"starve={starve}: these files are not Fashion-MNIST and show no articles")
    if starve > 1:
        train = starved_subset(train, starve, seed)
    if train_examples:
        train = balanced_subset(train, train_examples, seed)
    chosen = checked([own.get(task) or known[task] for task in tasks])
    if name.endswith(CUSTOM):  # these files do not show articles
        numbers = tuple(map(str, range(len(ARTICLES))))
        chosen = [t._replace(classes=numbers) if t.name == "article" else t for t in chosen]
    return with_statistics(name, train, test, tuple(chosen))


def checked(tasks):
    """Returns these `Task`s. Raises: DataError, one of them is wrong."""
    for task in tasks:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", task.name, re.ASCII):
            problem = "its name must consist of letters, digits and _ . -"
        elif task.name in ("mean", "total", "l2"):
            problem = "the results use this name already: choose another one"
        elif sum(other.name == task.name for other in TASKS) > 1:
            problem = "there are two tasks of this name"
        elif problem_of(task.classes):
            problem = problem_of(task.classes)
        elif (
            task in TASKS
            and task.from_article is not None
            and len(task.from_article) != len(ARTICLES)
        ):
            problem = f"it has {len(task.from_article)} labels for the {len(ARTICLES)} articles"
        else:
            labels = range(len(task.classes))
            wrong = [label for label in task.from_article or () if label not in labels]
            if not wrong:
                continue
            problem = f"its label {wrong[0]!r} is none of its {len(labels)} classes, 0 to {len(labels) - 1}"
        place = "in TASKS of data.py" if task in TASKS else "from label files"
        raise DataError(f"task {task.name!r} {place}: {problem}")
    return tasks


def problem_of(classes):
    """Says what is wrong with the names of a task's classes. Returns: str, or None."""
    if not classes or not all(isinstance(name, str) for name in classes):
        return "its classes must be names, at least one"
    if len(set(classes)) < len(classes):
        return "two of its classes have the same name"
    for name in classes:
        kinds = {unicodedata.category(character) for character in name}
        if "Cc" in kinds or not any(kind[0] in "LNPS" for kind in kinds):
            return f"its class {ascii(name)} cannot be shown: give it a name of visible characters"


def read(dataset, folder, seed):
    """Finds and reads a data set for `load`. Returns its name, training split and test split."""
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
    name = "fashion_mnist"
    different = unofficial(contents) if folder else []  # the cache holds official files only
    if different:
        problem = (
            f"{folder}: not the official Fashion-MNIST (other content: {', '.join(different)})"
        )
        if dataset == "fashion_mnist":
            raise DataError(f"{problem}. To use these files, leave out --dataset=fashion_mnist.")
        name = re.sub(r"[^\w.-]+", "_", folder.resolve().name or "root") + CUSTOM
        warnings.warn(f"{problem}; this data set is called {name}")
    return name, split_of(contents, "train"), split_of(contents, "t10k")


# --- Finding and reading the files ---

FOLDER_VARIABLE = "FASHION_MNIST_DIR"
FOLDERS = (".", "raw", "FashionMNIST/raw")  # below the one that the user named; torchvision's
CUSTOM = "-custom"  # end of the name of a data set that is not Fashion-MNIST
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


def keras_folder():
    """Returns the path of the folder into which Keras downloads the same files."""
    home = os.environ.get("KERAS_HOME") or os.path.expanduser("~/.keras")
    return pathlib.Path(home) / "datasets" / "fashion-mnist"


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def values_checksum(array):
    return sha256(np.ascontiguousarray(array))


def read_file(path):
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). {WHAT_TO_DO}") from error


def read_folder(folder):
    """Reads the four files of the folder that the user named; they may be unofficial ones.

    Returns a dict of file name -> (path, array), as `read_cache` does.
    """
    return {name: read_from(folder, name) for name in FILES}


def read_from(folder, name):
    """Reads one IDX file of a folder. Returns its path and array.

    Raises: DataError, it cannot be used, or is there twice with other values.
    """
    paths = paths_in(folder, name)
    arrays = [parse_idx(read_file(path), path) for path in paths]
    for path, array in zip(paths, arrays):
        if not np.array_equal(array, arrays[0]):
            raise DataError(f"{paths[0]} and {path} differ. Delete the wrong one.")
    return paths[0], arrays[0]


def unofficial(contents):
    """Returns the names of the files with other content than the official ones.

    Raises: DataError, one is an official file under another's name.
    """
    official = {checksum: name for name, checksum in VALUES.items()}
    found = {name: official.get(values_checksum(array)) for name, (_, array) in contents.items()}
    for name, other in found.items():
        if other not in (None, name):
            raise DataError(f"{contents[name][0]}: this is the official {other} under a wrong name")
    return [name for name, other in found.items() if other is None]


def paths_in(folder, name):
    """Finds a file in a folder: packed or unpacked, with a dot or a hyphen before "idx".

    torchvision keeps the files in a folder FashionMNIST/raw, of which any part may be named.
    Kaggle's zip file has each file in a folder of the file's name.

    Returns the paths that there are, or the one where the file is missing.
    """
    hyphen = name.removesuffix(".gz")
    dot = hyphen.replace("-idx", ".idx")
    names = dict.fromkeys((name, hyphen, f"{dot}.gz", dot))
    for below in FOLDERS:
        paths = [folder / below / n for n in names]
        paths += [path / n for path in paths for n in names]
        paths = [path for path in paths if os.path.lexists(path) and not os.path.isdir(path)]
        if paths:
            return paths
    return [folder / name]


def read_cache():
    """Reads the official files from the user's cache, or that of Keras; downloads the others."""
    contents = {}
    for name in FILES:
        path = cache_folder() / name
        for candidate in (path, keras_folder() / name):
            # os.path.exists, not path.exists: it never raises. `download` reports a bad folder.
            if os.path.exists(candidate):
                with contextlib.suppress(DataError):
                    array = parse_idx(read_file(candidate), candidate)
                    if values_checksum(array) == VALUES[name]:
                        contents[name] = candidate, array
                        break
        else:
            download(name, path)
            contents[name] = path, parse_idx(read_file(path), path)
    return contents


def read_labels(task, dataset_name, data_dir, train, test):
    """Reads the label files of a task that is not in `TASKS`, into both splits.

    They are train-TASK-labels-idx1-ubyte.gz and t10k-TASK-labels-idx1-ubyte.gz, or unpacked.
    TASK-classes.txt, if it is there, has the names of the classes, one a line.

    Returns:
      The `Task`. It has as many classes as the largest label of either file says.

    Raises:
      DataError: a file is missing or wrong, or the images are drawn.
    """
    if dataset_name == "synthetic":
        raise DataError(
            f"tasks: {task!r} is not in TASKS of data.py, and drawn images have no labels"
        )
    folder = data_dir or cache_folder()
    for prefix, split in (("train", train), ("t10k", test)):
        file = f"{prefix}-{task}-labels-idx1-ubyte.gz"
        path = paths_in(folder, file)[0]
        if not os.path.exists(path):
            raise DataError(f"tasks: {task!r} is not in TASKS of data.py, and {path} is missing")
        path, labels = read_from(folder, file)
        if labels.shape != (len(split.images),):
            raise DataError(
                f"{path}: has shape {labels.shape}; it must have a label for each of the"
                f" {len(split.images):,} images"
            )
        if labels.max() == 255:
            raise DataError(f"{path}: has a label 255. Every image must have a label, at most 254.")
        split.labels[task] = labels
    count = 1 + max(int(split.labels[task].max()) for split in (train, test))
    gaps = set(range(count)) - set(train.labels[task].tolist())
    if gaps:
        warnings.warn(f"task {task!r}: no training image has label {min(gaps)}")
    path = paths_in(folder, f"{task}-classes.txt")[0]
    if not os.path.lexists(path):
        return Task(task, tuple(map(str, range(count))), ())
    # Windows puts U+FEFF, the byte order mark, before UTF-8. UTF-16 without it is full of NUL.
    text = read_file(path).decode("utf-8", "replace").replace("\ufeff", "")
    if "\ufffd" in text or "\0" in text:
        raise DataError(f"{path}: not text in UTF-8. Save it again, with the encoding UTF-8.")
    names = tuple(name.strip() for name in text.splitlines() if name.strip())
    problem = problem_of(names)
    if len(names) != count:
        problem = (
            f"has {len(names)} names, but the labels have {count} classes: write one name a line"
        )
    if problem:
        raise DataError(f"{path}: {problem}")
    return Task(task, names, ())


def split_of(contents, prefix):
    """Checks one `Split`: its prefix is "train" or "t10k"."""
    images_path, images = contents[f"{prefix}-images-idx3-ubyte.gz"]
    labels_path, labels = contents[f"{prefix}-labels-idx1-ubyte.gz"]
    for path, array, dimensions in ((images_path, images, 3), (labels_path, labels, 1)):
        if array.ndim != dimensions:
            raise DataError(f"{path}: not an IDX file of bytes with {dimensions} dimension(s)")
    _, height, width = images.shape
    if (height, width) != (IMAGE_SIZE, IMAGE_SIZE):
        raise DataError(f"{images_path}: the images are {height}x{width} pixels, not 28x28")
    if len(labels) != len(images):
        raise DataError(
            f"{labels_path}: has {len(labels):,} labels, but {images_path} has {len(images):,} images"
        )
    if labels.max() >= len(ARTICLES):
        raise DataError(f"{labels_path}: has a label {labels.max()}; labels must be 0 to 9")
    return Split(images, labels, {})


# --- IDX files, and protection against damaged ones ---


def parse_idx(content, path):
    """Reads one IDX file of bytes, gzipped or not.

    Args:
      content: the file's bytes.
      path: the file's name in error messages.

    Returns:
      A read-only uint8 array of one or three dimensions that is not empty.

    Raises:
      DataError: the file is damaged, is not IDX, is empty, or would unpack to far more
        memory than its size explains.
    """
    stream = io.BytesIO(content)
    if content.startswith(b"\x1f\x8b"):
        stream = gzip.GzipFile(fileobj=stream)
    try:
        with stream:
            dimensions = {b"\0\0\x08\x01": 1, b"\0\0\x08\x03": 3}.get(stream.read(4), 0)
            shape = [int(n) for n in np.frombuffer(stream.read(4 * dimensions), ">u4")]
            if not dimensions or len(shape) != dimensions:
                raise DataError(f"{path}: not an IDX file of images or labels, packed or unpacked")
            size = int(np.prod(shape, dtype=object))
            # Fashion-MNIST is compressed about 2 to 1, a zip bomb 1000 to 1. Size 0 must be
            # refused here: numpy cannot make an array of shape 0 x 2^32 x 2^32.
            if not 0 < size <= max(2**24, 64 * len(content)):
                raise DataError(
                    f"{path}: its header announces {size:,} values,"
                    f" which does not fit a file of {len(content):,} bytes"
                )
            # Ask for one value more: gzip checks its CRC only when it reaches the end.
            values = stream.read(size + 1)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path}: damaged ({error})") from error
    if len(values) != size:
        raise DataError(
            f"{path}: its header announces {size:,} values, but the file holds more or fewer"
        )
    return np.frombuffer(values, np.uint8).reshape(shape)


# --- Downloading ---

MIRRORS = (  # the official address first
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
)
MAX_SILENT_SECONDS = 10  # how long to wait for a mirror's answer, and then for its next bytes
MAX_DOWNLOAD_SECONDS = 600  # how long one mirror may take to send one file
# Variables that other programs set, and that can be why no mirror is reached.
SUSPECTS = re.compile("(all|https?)_proxy|(requests|curl)_ca_bundle|sslkeylogfile", re.IGNORECASE)


def download(name, path):
    """Downloads one official file from the first mirror that sends it intact.

    Args:
      name: one of `FILES`.
      path: where to save the file, below that name.

    Raises:
      Unreachable: the file is missing, and no mirror can be reached or has it.
      DataError: the file cannot be saved, a mirror sent something else and no other mirror
        has it, or the file at `path` is damaged and cannot be replaced.
    """
    pooch.get_logger().setLevel("WARNING")  # the progress bar says enough
    state = "damaged" if os.path.exists(path) else "missing"
    reasons, wrong_content = [], False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tqdm.tqdm(desc=f"Downloading {name}", unit="B", unit_scale=True) as bar:
            fetch = functools.partial(download_in_time, progress_bar=bar)
            for mirror in MIRRORS:
                try:
                    # Writes a temporary file, and renames it once its checksum is right.
                    pooch.retrieve(mirror + name, FILES[name], name, path.parent, downloader=fetch)
                    return
                except (Unreachable, ValueError) as error:
                    wrong = not isinstance(error, Unreachable)  # pooch found another checksum
                    reason = "what it sent is not the official file" if wrong else error
                    reasons.append(f"{urllib.parse.urlsplit(mirror).netloc}: {reason}")
                    wrong_content |= wrong
    except OSError as error:
        cause = error.__cause__ or error  # pooch wraps a PermissionError
        raise DataError(
            f"{path.parent}: the download cannot be saved there ({cause.strerror or cause}). {WHAT_TO_DO}"
        ) from error
    suspects = [name for name, value in os.environ.items() if value and SUSPECTS.fullmatch(name)]
    if suspects:
        reasons.append(f"these variables change how it is reached: {', '.join(sorted(suspects))}")
    message = f"{path}: {state}, and no mirror could be used ({'; '.join(reasons)}). {WHAT_TO_DO}"
    raise (DataError if state == "damaged" or wrong_content else Unreachable)(message)


def download_in_time(url, output_file, _, progress_bar):
    """Downloads one file for `pooch.retrieve`, and gives up after a fixed time.

    The time-out of requests starts again with every byte, so a mirror that sends one byte a
    second never reaches it. Therefore a thread does the download, and this function stops
    waiting for it in time. It also closes the file, so the thread fails at its next write.

    Raises:
      Unreachable: the mirror, or something on the way to it, failed or was too slow.
      OSError: the file cannot be written.
    """
    answered, errors = threading.Event(), []

    def run():
        headers = {"Accept-Encoding": "identity"}  # the files are compressed already
        try:
            answer = requests.get(url, headers=headers, stream=True, timeout=MAX_SILENT_SECONDS)
            with answer:
                answer.raise_for_status()
                answered.set()
                progress_bar.reset(answer.raw.length_remaining)
                # Not iter_content, which unpacks a .gz file if the mirror calls it an encoding.
                for chunk in answer.raw.stream(2**14, decode_content=False):
                    try:
                        file.write(chunk)
                    except OSError as error:
                        errors.append(error)
                        return
                    progress_bar.update(len(chunk))
        # All but a failed write is the mirror's, or of the way to it. The class does not tell:
        # an error of requests is an OSError as well, and often a ValueError.
        except Exception as error:
            errors.append(Unreachable(reason_of(error)))
        finally:
            answered.set()

    with open(output_file, "wb") as file:
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        if not answered.wait(MAX_SILENT_SECONDS):
            raise Unreachable(f"no answer in {MAX_SILENT_SECONDS} seconds")
        thread.join(MAX_DOWNLOAD_SECONDS)
        if thread.is_alive():
            raise Unreachable(f"not finished in {MAX_DOWNLOAD_SECONDS} seconds")
    if errors:
        raise errors[0]


def reason_of(error):
    """Says in a few words why a mirror could not be used."""
    if isinstance(error, requests.HTTPError):
        return f"HTTP {error.response.status_code}"
    while error.__context__:  # requests and urllib3 wrap the error that the system reported
        error = error.__context__
    if isinstance(error, socket.gaierror):
        return "cannot resolve the name"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return textwrap.shorten(re.sub("//[^/]*@", "//", text), 100)  # without a proxy's password


# --- The drawn images: the synthetic set ---

SYNTHETIC_SIZES = 12000, 2000  # training images, test images

# Ten silhouettes, in the order of ARTICLES, at half the width and height of an image.
SILHOUETTES = """
....##..##....  ....######....  ....##..##....  .....#..#.....  ....##..##....
..##########..  ....######....  ...########...  .....####.....  ...####.###...
##############  ....######....  ..##########..  .....####.....  ..#####.####..
##############  ...########...  .############.  .....####.....  .######.#####.
###.######.###  ...########...  .############.  .....####.....  .######.#####.
##..######..##  ...###.####...  .##.######.##.  .....####.....  .##.###.##.##.
....######....  ...###..###...  ###.######.###  .....####.....  .##.###.##.##.
....######....  ...###..###...  ##..######..##  ....######....  .##.###.##.##.
....######....  ...###..###...  ##..######..##  ....######....  .##.###.##.##.
....######....  ...###..###...  ##..######..##  ...########...  .##.###.##.##.
....######....  ...###..###...  ##..######..##  ...########...  .##.###.##.##.
....######....  ...###..###...  ....######....  ..##########..  ....###.##....
....######....  ...##....##...  ....######....  ..##########..  ....###.##....
....######....  ...##....##...  ..............  ...########...  ....###.##....

..............  ....##.###....  ..............  .....####.....  ........######
..............  ...###.####...  ..............  ....#....#....  ........######
..............  ..####.#####..  ..............  ...#......#...  ........######
..............  .#####.######.  ..............  ...#......#...  ........######
...........##.  .#####.######.  ..............  ..############  .......#######
.........####.  .##.##.###.##.  .........####.  ..############  .......#######
.......##.##..  .##.##.###.##.  .......######.  .#############  ......########
.....##..##.#.  ##..##.###..##  .....#########  .#############  ....##########
...##...##..#.  ##..##.###..##  ..############  .#############  ..############
.##....##...#.  ....##.###....  .#############  .#############  .#############
.#...####...##  ....##.###....  ##############  .#############  ##############
##############  ....##.###....  ##############  .#############  ##############
############.#  ....##.###....  .#############  ..############  ########...###
..............  ....##.###....  ..............  ..............  ..............
"""


def silhouettes():
    """Returns the silhouettes as an array, [10, 14, 14] float32: 1 inside, 0 outside."""
    rows = [line.split() for line in SILHOUETTES.strip().splitlines() if line]
    half = len(rows) // 2
    columns = [c for part in (rows[:half], rows[half:]) for c in zip(*part)]
    return np.array([[[c == "#" for c in row] for row in column] for column in columns], np.float32)


def draw(articles, random):
    """Draws an image for each article label, [N] uint8. Returns them, [N, 28, 28] uint8.

    An image is the silhouette of its article, shifted, turned, stretched and sheared, in a
    random shade and weave, with a fold, a stain and noise.
    """
    n = len(articles)

    def each(low, high):
        return random.uniform(low, high, [n, 1, 1]).astype(np.float32)

    # The place of each pixel on the silhouette, which reaches from -1 to 1.
    axis = np.linspace(-1, 1, IMAGE_SIZE, dtype=np.float32)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    angle, shear = each(-0.3, 0.3), each(-0.25, 0.25)
    x, y = x - each(-0.2, 0.2), y - each(-0.2, 0.2)
    x, y = np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y
    x, y = (x + shear * y) * each(0.95, 1.6), y * each(0.95, 1.6)

    # Bilinear interpolation, which makes soft grey edges.
    shapes = np.pad(silhouettes(), [(0, 0), (1, 2), (1, 2)])
    across, down = (np.clip((v + 1) * 6.5 + 1, 0, 15) for v in (x, y))
    left, top = across.astype(int), down.astype(int)
    right_share, low_share = across - left, down - top
    which = articles[:, np.newaxis, np.newaxis]
    upper, lower = (
        shapes[which, row, left] * (1 - right_share) + shapes[which, row, left + 1] * right_share
        for row in (top, top + 1)
    )
    shape = upper * (1 - low_share) + lower * low_share

    weave = 1 - each(0, 0.5) * (np.sin(each(2, 16) * (x * each(-1, 1) + y) + each(0, 6)) > 0)
    fold = 1 - each(0, 0.7) * (np.abs(x * each(-1, 1) + y * each(-1, 1) - each(-0.5, 0.5)) < 0.12)
    stain = (x - each(-1, 1)) ** 2 + (y - each(-1, 1)) ** 2 > each(0, 0.25)
    noise = random.normal(0, 1, shape.shape).astype(np.float32) * each(5, 35)
    grey = 255 * each(0.3, 1) * shape * weave * fold * stain + noise
    return np.clip(grey, 0, 255).astype(np.uint8)


def synthetic(seed):
    """Draws a small data set with the shapes and labels of Fashion-MNIST.

    It needs no file and no network, and the same seed gives the same images. It is for
    trying the program out: a result on it says nothing about Fashion-MNIST.
    Returns its name, training split and test split.
    """
    splits = []
    for which, size in enumerate(SYNTHETIC_SIZES):
        random = np.random.RandomState([seed, which, size])  # differs from an epoch's order
        articles = random.permutation(np.arange(size) % len(ARTICLES)).astype(np.uint8)
        splits.append(Split(draw(articles, random), articles))
    return "synthetic", *splits
