"""Fashion-MNIST with several labels for each image: tasks, batches, and how it is loaded.

    import data
    dataset = data.load()                          # downloads Fashion-MNIST the first time
    images, labels = dataset.train_batch(step=0, batch_size=128, seed=0)
    labels["article"], labels["group"]             # [128] int32 each

All arrays are numpy arrays; this file does not use TensorFlow. It reads from top to bottom:
tasks, the data set and its batches, choosing training images, `load`, finding tasks by name.
harness/ has what stands behind `load`: file formats, the download, the drawn images.
"""

import functools
import hashlib
import os
import pathlib
import re
import typing
import warnings

import numpy as np

from harness import arrays, choices, class_names, disk, download, drawn_images, pools
from harness.errors import DataError, Unreachable

UNKNOWN = -1  # in place of a label

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
        """Returns the labels of a split's images, [N] int32; UNKNOWN for some, perhaps."""
        if self.from_article:
            # UNKNOWN is -1, which chooses the last.
            labels = np.array((*self.from_article, UNKNOWN), np.int32)[split.labels["article"]]
        else:
            labels = split.labels[self.name].astype(np.int32)
        hidden = split.hidden.get(self.name)
        return labels if hidden is None else np.where(hidden, np.int32(UNKNOWN), labels)


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

    images: np.ndarray  # [N, H, W] uint8, or [N, H, W, C]; large ones are `disk.Rows`
    # name -> [N] uint8, or int32 if any is above 254 or UNKNOWN. IDX images come with labels,
    # "article" or "label" of a user's own images; those of label files follow as tasks need them.
    labels: dict
    hidden: dict = {}  # task -> [N] bool: whose labels `hide_labels` hides

    def take(self, indices):
        """Returns a `Split` of these images."""
        labels, hidden = (
            {name: values[indices] for name, values in of.items()}
            for of in (self.labels, self.hidden)
        )
        return Split(self.images[indices], labels, hidden)

    def main_labels(self):
        """Returns the labels that came with the images, or else the first task's, [N]."""
        return next(iter(self.labels.values()))

    def shows_articles(self):
        """Returns whether images show the ten `ARTICLES`: False for a user's own images."""
        return "article" in self.labels


class Dataset(typing.NamedTuple):
    """A training and a test split, with the statistics of the training images."""

    name: str
    train: Split
    test: Split  # the images for evaluation: the test set or held-out training images
    mean: np.ndarray  # as one image, float32: the mean of each pixel and channel
    scale: np.ndarray  # the same, 1 / (standard deviation + 1e-9); 0 for a constant pixel
    digest: typing.Any  # SHA-256 of all images and labels, an object of hashlib
    tasks: tuple  # in the order of the towers
    pools: dict = {}  # of images with labels of the same tasks, as harness/pools.py makes them
    rows: np.ndarray = None  # [N] int: where each image of the test split is in its file

    def image_shape(self):
        """Returns height, width and channels of an image."""
        return (*self.mean.shape, 1)[:3]

    def has_unknown_labels(self):
        """Returns whether training images lack labels, so that a batch may not train all tasks."""
        return len(self.pools) > 1

    def unused_labels(self, batch_size):
        """Counts labels that no batch uses. Returns: task -> number. Raises: as `train_batch`."""
        return pools.for_batches(self.pools, batch_size)[1] if self.has_unknown_labels() else {}

    def steps_per_epoch(self, batch_size, balance=0.0):
        """Counts the steps of an epoch. Args and raises: as `train_batch`."""
        if self.has_unknown_labels():
            for_batches, _ = pools.for_batches(self.pools, batch_size)
            return sum(pools.steps_per_epoch(for_batches, batch_size, balance))
        return steps_per_epoch(len(self.train.images), batch_size)

    def train_batch(self, step, batch_size, seed, balance=0.0):
        """Makes the batch of any training step, from 0; no earlier step is needed.

        Args:
          step, batch_size: which batch, and how many images a batch has.
          seed: determines the order of the images.
          balance: how often images with few labels come: 0, as often as the others, to 1, as
            many batches of them as of the others. Without effect if all labels are known.

        Returns: as `batch`, with the labels of the tasks that the step trains. Raises: DataError,
          too few images have labels of the same tasks.
        """
        if self.has_unknown_labels():
            tasks, rows = pools.batch_of_step(self.pools, step, batch_size, seed, balance)
            images, labels = self.batch(self.train, rows)
            return images, {task: labels[task] for task in tasks}
        epoch, index = divmod(step, steps_per_epoch(len(self.train.images), batch_size))
        order = epoch_order(len(self.train.images), seed, epoch)
        return self.batch(self.train, order[index * batch_size : (index + 1) * batch_size])

    def test_batches(self, batch_size=None):
        """Yields the test split in order, as `batch` does; the last batch may be smaller.

        Without a size, a batch has 250 images; fewer if they are larger than Fashion-MNIST's, so
        that it has no more pixels than 250 of those. Raises: DataError, as `check_files`.
        """
        height, width, _ = self.image_shape()
        batch_size = batch_size or min(250, max(1, 250 * 28 * 28 // (height * width)))
        self.check_files()
        for start in range(0, len(self.test.images), batch_size):
            yield self.batch(self.test, slice(start, start + batch_size))

    def check_files(self):
        """Raises: DataError, images on the disk differ from those that the data set began with."""
        changed = disk.changed([self.train.images, self.test.images])
        if not changed:
            return
        now = with_statistics(self.name, self.train, self.test, self.tasks, self.rows)
        if now.fingerprint() != self.fingerprint():
            problem = "its images differ from those that this run began with. Restore them"
            raise DataError(f"{changed[0]}: {problem}, or start over with --overwrite.")

    def batch(self, split, indices):
        """Makes a batch of those images of a split; the indices are [B] int or a slice.

        Returns: [B, H, W, C] float32 standardised images; task name -> [B] int32 labels.
        """
        chosen = split.take(indices)
        labels = {task.name: task.labels(chosen) for task in self.tasks}
        return self.standardise(chosen.images), labels

    def standardise(self, images):
        """Computes the z-score of each pixel and channel: uint8 images -> [B, H, W, C] float32."""
        return ((np.asarray(images) - self.mean) * self.scale).reshape(-1, *self.image_shape())

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
            labels = task.labels(self.train)
            numbers = np.bincount(labels[labels >= 0], minlength=len(task.classes)).tolist()
            counts[task.name] = dict(zip(task.classes, numbers))
        return counts

    def splits(self):
        """Returns both splits by the words for them."""
        return {"training": self.train, "test": self.test}

    def number_of_labels(self, split):
        """Counts the images of a split whose label is known. Returns: task -> number."""
        return {task.name: int(np.sum(task.labels(split) >= 0)) for task in self.tasks}

    def identity(self):
        """Returns what a run records of its data, and must find again to resume: name -> text."""
        shape = "x".join(map(str, self.image_shape()))  # which the fingerprint does not tell
        return {
            "dataset": self.name,
            "data": self.fingerprint(),
            "shape": shape,
            "classes": self.fingerprint_of_classes(),
        }

    def fingerprint(self):
        """Returns a checksum of all images and labels, and of the names of tasks from label files
        and of their classes: 16 hexadecimal digits."""
        digest = self.digest.copy()
        for task in self.tasks:
            if not task.from_article:
                digest.update("\n".join((task.name, *task.classes)).encode())
        return digest.hexdigest()[:16]

    def fingerprint_of_classes(self):
        """Returns a checksum of the tasks' classes and their articles: 16 hexadecimal digits."""
        content = repr([tuple(task) for task in self.tasks])
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def steps_per_epoch(num_examples, batch_size):
    """Counts the batches of an epoch: every image once, and the last batch may be smaller."""
    return -(-num_examples // batch_size)


@functools.lru_cache(maxsize=2)  # all batches of an epoch have it in common
def epoch_order(num_examples, seed, epoch):
    """Returns the order of the images in one epoch, [N] int; the arguments alone determine it."""
    # RandomState, because its numbers are the same in every numpy release.
    return np.random.RandomState([seed, epoch]).permutation(num_examples)


def with_statistics(name, train, test, tasks=TASKS, rows=None):
    """Makes a `Dataset` of two splits: its statistics and checksum. Reads each image once.

    Without `rows`, the test split is a whole file.
    """
    count, total, squares, digest = len(train.images), 0, 0, hashlib.sha256()
    for split, is_train in ((train, True), (test, False)):
        for images in disk.pieces(split.images):
            digest.update(np.ascontiguousarray(images))
            if is_train:  # sums of integers are exact, so the order does not matter
                total = total + images.sum(axis=0, dtype=np.int64)
                squares = squares + np.einsum("n...,n...->...", images, images, dtype=np.int64)
        for labels in (*split.labels.values(), *split.hidden.values()):
            digest.update(np.ascontiguousarray(labels))
    # N^2 times the variance: 0 only for a pixel that never varies. Python's integers are exact
    # for any N; int64 would overflow at 12 million images.
    spread = (count * squares.astype(object) - total.astype(object) ** 2).astype(float)
    mean, scale = total / count, np.where(spread > 0, 1 / (np.sqrt(spread) / count + 1e-9), 0)
    statistics = mean.astype(np.float32), scale.astype(np.float32)
    of_tasks = pools.of_labels({task.name: task.labels(train) for task in tasks})
    rows = np.arange(len(test.images)) if rows is None else rows
    return Dataset(name, train, test, *statistics, digest, tasks, of_tasks, rows)


# --- Choosing training images ---


def hold_out(train, test, holdout):
    """Makes this many training images the test split; with 0, changes nothing.

    Of Fashion-MNIST, the last ones. A user's own files may be sorted, so theirs are drawn at
    random, balanced by label; they are the same for every seed.

    Returns: training split, test split, and where each image of the latter is in its file, [N]
      int. Raises: DataError, no training image would be left.
    """
    count = len(train.images)
    if holdout >= count:
        raise DataError(
            f"holdout={holdout}: there are {count:,} training images, and some must be left to train on"
        )
    if not holdout:
        return train, test, np.arange(len(test.images))
    is_held_out = np.arange(count) >= count - holdout
    if not train.shows_articles():
        is_held_out = np.isin(np.arange(count), choices.balanced(train.main_labels(), holdout, 0))
    rows = np.flatnonzero(is_held_out)
    return train.take(np.flatnonzero(~is_held_out)), train.take(rows), rows


def choose_images(train, train_examples, starve, seed):
    """Chooses training images at random, as `load` describes.

    Returns: a `Split`. Raises: DataError, there are too few images, or `starve` is impossible.
    """
    count = len(train.images)
    if train_examples > count:
        raise DataError(f"train_examples={train_examples}: there are {count:,} training images")
    if starve > 1 and not train.shows_articles():
        raise DataError(f"starve={starve}: these files are not Fashion-MNIST and show no articles")
    if starve > 1:
        ranks = ranks_of_articles(seed)
        train = train.take(choices.starved(train.main_labels(), starve, ranks, seed))
    if train_examples:
        train = train.take(choices.balanced(train.main_labels(), train_examples, seed))
    return train


def hide_labels(train, tasks, label_only, seed):
    """Keeps so many labels of each named task, and leaves out images without any label.

    Those that stay are drawn as `choices.in_proportion` does.

    Args:
      label_only: task -> number of labels that stay.

    Returns: a `Split`. Raises: DataError, there are fewer labels, or no such task.
    """
    by_name = {task.name: task for task in tasks}
    for name, count in label_only.items():
        if name not in by_name:
            names = ", ".join(by_name)
            raise DataError(f"label_only={name}:{count}: {name!r} is none of the tasks {names}")
        labels = by_name[name].labels(train)
        known = np.sum(labels >= 0)
        if count > known:
            problem = f"only {known:,} training images have this label"
            raise DataError(f"label_only={name}:{count}: {problem}")
        hidden = np.ones(len(labels), bool)
        hidden[choices.in_proportion(labels, count, seed, name)] = False
        train = train._replace(hidden=train.hidden | {name: hidden})
    has_label = np.any([task.labels(train) >= 0 for task in tasks], axis=0)
    if has_label.all():
        return train
    count = np.sum(~has_label)
    warnings.warn(f"training leaves out {count:,} images, which have no label of a chosen task")
    return train.take(np.flatnonzero(has_label))


def check_labels(tasks, train, test):
    """Warns of classes without images. Raises: DataError, a task has no label at all."""
    for task in tasks:
        of_splits = {"training": task.labels(train), "test": task.labels(test)}
        for which, labels in of_splits.items():
            numbers = np.bincount(labels[labels >= 0], minlength=len(task.classes))
            if not numbers.any():
                raise DataError(f"task {task.name!r}: no {which} image has a label")
            missing = [name for name, number in zip(task.classes, numbers) if not number]
            others = f" (and {len(missing) - 1} more)" if missing[1:] else ""
            if missing:
                problem = f"no {which} image has label {missing[0]}{others}"
                warnings.warn(f"task {task.name!r}: {problem}")


def ranks_of_articles(seed):
    """The rank of each article in `choices.starved`: 0 for the commonest to 9, the rarest."""
    # Ten seeds give each article each rank once.
    return [(rank + seed) % 10 for rank in (7, 2, 9, 4, 0, 6, 3, 8, 5, 1)]


# --- Loading ---

DATASETS = ("auto", "fashion_mnist", "synthetic")
SYNTHETIC_SIZES = 12000, 2000  # training images, test images
PREFIXES = ("train", "t10k")  # of files' names: the training and the test split
FOLDER_VARIABLE = "FASHION_MNIST_DIR"
WHAT_TO_DO = (  # if a file cannot be read or downloaded
    f"Name a folder that holds the files with --data_dir or {FOLDER_VARIABLE},"
    " or try the program on drawn images with --dataset=synthetic."
)


def load(
    dataset="auto", data_dir=None, seed=0, tasks=None, train_examples=0, holdout=0, starve=1,
    label_only={},
):  # fmt: skip
    """Finds, reads and checks a data set.

    Args:
      dataset: "auto": the files in the named folder, whatever they show; without a folder,
        Fashion-MNIST, or synthetic images, with a warning, if it is in no cache and no mirror
        can be reached. "fashion_mnist": other files are an error. "synthetic": drawn images.
      data_dir: folder with the files; by default the one that FASHION_MNIST_DIR names. With
        neither, the files are in the user's cache or Keras's; missing ones are downloaded.
      seed: determines the synthetic images, and which training images and labels are chosen.
      tasks: names of entries of `TASKS`, or of label files in the folder; by default article
        and group, or label if the files in the folder are not Fashion-MNIST.
      train_examples: number of training images, chosen by `choices.balanced`; 0 for all.
      holdout: evaluate on this many training images, chosen by `hold_out`; 0: the test set.
      starve: ratio of `choices.starved`, which chooses the training images; 1 for all.
      label_only: task -> number of training labels that are used, as in `hide_labels`.

    Returns: a `Dataset`. Raises: DataError.
    """
    name, folder, train, test = read(dataset, data_dir, seed)
    tasks = find_tasks(tasks, folder, train, test)
    train, test, rows = hold_out(train, test, holdout)
    train = choose_images(train, train_examples, starve, seed)
    train = hide_labels(train, tasks, label_only, seed)
    check_labels(tasks, train, test)
    return with_statistics(name, train, test, tasks, rows)


def read(dataset, data_dir, seed):
    """Finds, reads and checks the images and their labels, for `load`.

    Returns: the data set's name, the folder of its files (None for drawn images), training
      split, test split. Raises: DataError.
    """
    if dataset == "synthetic":
        return synthetic(seed)
    folder = data_dir or os.environ.get(FOLDER_VARIABLE)
    try:
        if folder:
            folder = pathlib.Path(os.path.expanduser(folder))
            files = arrays.read_folder(folder, download.FILES, WHAT_TO_DO)
        else:
            folder = download.cache_folder()
            files = download.read_cache(WHAT_TO_DO)
    except Unreachable as error:
        if dataset != "auto":
            raise
        warnings.warn(
            "THIS IS NOT FASHION-MNIST. The files are not on this machine and cannot be"
            " downloaded, so this run uses drawn images, the synthetic set. Its results say"
            f" nothing about Fashion-MNIST. ({error})"
        )
        return synthetic(seed)
    name = name_of(files, folder, dataset)
    labels = "article" if name == "fashion_mnist" else "label"
    train, test = (split_of(files, prefix, labels) for prefix in PREFIXES)
    if train.images.shape[1:] != test.images.shape[1:]:
        paths = " and ".join(str(file.path) for file in files.values() if file.values.ndim > 1)
        raise DataError(f"{paths}: their images differ in height, width or channels")
    return name, folder, train, test


def name_of(files, folder, dataset):
    """Names a data set: "fashion_mnist" if its files are the official ones, or else its folder.

    Raises: DataError, a file is not official, and Fashion-MNIST was asked for.
    """
    of_numpy = [file.path.name for file in files.values() if file.path.suffix == ".npy"]
    others = of_numpy or download.unofficial(files)
    if not others:
        return "fashion_mnist"
    problem = f"{folder}: not the official Fashion-MNIST (other content: {', '.join(others)})"
    if dataset == "fashion_mnist":
        raise DataError(f"{problem}. To use these files, leave out --dataset=fashion_mnist.")
    name = re.sub(r"[^\w.-]+", "_", folder.resolve().name or "root") + "-custom"
    if not of_numpy:  # which nobody takes for Fashion-MNIST
        warnings.warn(f"{problem}; this data set is called {name}")
    return name


def split_of(files, prefix, name):
    """Makes a `Split` of images and, if their file is there, their labels, which get this name.

    Raises: DataError.
    """
    images = arrays.images_of(files[f"{prefix}-images-idx3-ubyte.gz"])
    labels = files.get(f"{prefix}-labels-idx1-ubyte.gz")
    return Split(images, {name: arrays.labels_of(labels, len(images))} if labels else {})


def synthetic(seed):
    """Draws a small data set with images and labels like Fashion-MNIST's; it needs no files.

    A result on it says nothing about Fashion-MNIST. Returns: as `read`.
    """
    splits = []
    for which, size in enumerate(SYNTHETIC_SIZES):
        random = np.random.RandomState([seed, which, size])  # differs from an epoch's order
        articles = random.permutation(np.arange(size) % len(ARTICLES)).astype(np.uint8)
        splits.append(Split(drawn_images.draw(articles, random), {"article": articles}))
    return "synthetic", None, *splits


# --- Finding tasks by name ---


def find_tasks(names, folder, train, test):
    """Finds and checks the tasks that `load` is asked for.

    Args:
      names: names of tasks; if there are none, the default ones.
      folder: the folder of the label files; None if there can be none.
      train, test: both splits. Labels from label files are added to them.

    Returns: a tuple of `Task`. Raises: DataError.
    """
    names = names or (["article", "group"] if train.shows_articles() else ["label"])
    tasks = tuple(find_task(name, folder, train, test) for name in names)
    for task in tasks:
        check_task(task)
    return tasks


def find_task(name, folder, train, test):
    """Returns the entry of `TASKS` of this name, or else makes a task of label files."""
    known = {task.name: task for task in TASKS}
    if name not in known:
        return task_from_files(name, folder, train, test)
    paths = arrays.paths_of(folder, "train", name) if folder else []
    if not train.shows_articles():
        problem = f"{name!r} is a label of Fashion-MNIST, which these files are not"
        what_to_do = "Their own labels are the task 'label'"
        if paths:
            what_to_do = f"Rename {paths[0].name} and its test file, and use the new name"
        raise DataError(f"tasks: {problem}. {what_to_do}.")
    for path in paths:
        problem = "not used, because data.py has a task of this name"
        warnings.warn(f"{path}: {problem}. To train on it, rename it and its test file.")
    return known[name]


def task_from_files(name, folder, train, test):
    """Makes a `Task` of label files. Its classes are 0 to the largest label of both splits."""
    if not folder:
        raise DataError(
            f"tasks: {name!r} is not in TASKS of data.py, and drawn images have no label files"
        )
    if name not in train.labels:  # those of IDX images were read with them
        for prefix, split in zip(PREFIXES, (train, test)):
            count = len(split.images)
            split.labels[name] = arrays.read_labels(folder, prefix, name, count, WHAT_TO_DO)
    count = 1 + max(int(split.labels[name].max()) for split in (train, test))
    if count < 2:
        problem = f"every label of task {name!r} is {'0' if count else 'unknown'}"
        raise DataError(f"{folder}: {problem}. A task needs at least two classes.")
    return Task(name, class_names.read(folder, name, count, WHAT_TO_DO), ())


def check_task(task):
    """Raises: DataError, an entry of `TASKS` or a task from label files cannot be used."""
    subject = f"task {task.name!r} {'in TASKS of data.py' if task in TASKS else 'from label files'}"
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", task.name, re.ASCII):
        problem = "must consist of letters, digits and _ . - and begin with a letter or digit"
        raise DataError(f"{subject}: its name {problem}")
    if task.name.lower() in ("images", "mean", "total", "l2"):  # of files and of curves
        raise DataError(f"{subject}: this name is used already: choose another one")
    if [other.name for other in TASKS].count(task.name) > 1:
        raise DataError(f"{subject}: there are two tasks of this name")
    class_names.check(task.classes, subject)
    labels, count = task.from_article, len(task.classes)
    if task in TASKS and len(labels) != len(ARTICLES):
        raise DataError(f"{subject}: it has {len(labels)} labels for the {len(ARTICLES)} articles")
    for label in labels:
        if label not in range(count):
            problem = f"its label {label!r} is none of its {count} classes, 0 to {count - 1}"
            raise DataError(f"{subject}: {problem}")
