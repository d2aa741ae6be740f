"""Fashion-MNIST with several labels an image: found or fetched, read, relabelled, batched.

    import data
    dataset = data.load()                          # Fashion-MNIST, downloaded once
    images, labels = dataset.train_batch(step=0, batch_size=128, seed=0)
    labels["article"], labels["group"]             # [128] int32 each

Nothing here knows of TensorFlow graphs; arrays are numpy's.
"""

import contextlib
import errno
import functools
import gzip
import hashlib
import io
import itertools
import os
import pathlib
import socket
import tempfile
import threading
import typing
import urllib.parse
import urllib.request
import warnings
import zlib

import numpy as np

# --- Tasks ---


class Task(typing.NamedTuple):
    """One label of an image: `from_article[a]` is the class of article label a.

    Without it, the label is by how many right angles the image was turned.
    """

    name: str
    classes: tuple
    from_article: tuple | None


ARTICLES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

# What --tasks chooses from, a tower each. Another one is another entry here.
TASKS = (
    Task("article", ARTICLES, tuple(range(10))),
    Task("group", ("Shoes", "For Women", "Other"), (2, 2, 2, 1, 2, 0, 1, 0, 1, 0)),
    Task("rotation", ("0°", "90°", "180°", "270°"), None),
)

# --- Where the files come from ---

IMAGE_SIZE = 28
DATASETS = ("auto", "fashion_mnist", "synthetic")
FOLDER_VARIABLE = "FASHION_MNIST_DIR"
FILES = {  # name: SHA-256 of the official release
    "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
}
MIRRORS = (  # the official address first
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
)
TIMEOUT_SECONDS = 5  # without an answer, of a connection or in the middle of a file
DOWNLOAD_SECONDS = 600  # for one file, from a mirror that never quite falls silent
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG, errno.EIO}

OFFER = (
    f"Name a folder that holds the four .gz files with --data_dir or {FOLDER_VARIABLE},"
    " or practise on drawn images with --dataset=synthetic."
)


class DataError(Exception):
    """The data cannot be used; the message is one sentence for the user."""


class Unreachable(DataError):
    """Fashion-MNIST is not on this machine and no mirror answers."""


def cache_folder():
    """Where downloaded files are kept, one copy a user."""
    parent = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(os.path.expanduser(parent)) / "fashion-mnist"


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def read_file(path):
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). {OFFER}") from error


def read_folder(folder):
    """The four files of a folder that the user named, which may be his own making.

    Returns: file name -> (path, content).
    Raises: DataError, naming the file that is missing, misnamed or cannot be read.
    """
    contents = {name: (folder / name, read_file(folder / name)) for name in FILES}
    checksums = {name: sha256(content) for name, (_, content) in contents.items()}
    for name, other in itertools.permutations(FILES, 2):
        if checksums[name] == FILES[other]:
            raise DataError(f"{folder / name}: is the official {other} under a wrong name")
    foreign = [name for name in FILES if checksums[name] != FILES[name]]
    if foreign:
        warnings.warn(
            f"{folder}: not the official Fashion-MNIST, by the checksum of {', '.join(foreign)};"
            " using it all the same"
        )
    return contents


def read_cache():
    """The four official files from the user's cache, downloaded where they are missing.

    Returns and raises: as `read_folder`; Unreachable where a file is missing
    and no mirror answers.
    """
    contents = {}
    for name in FILES:
        path = cache_folder() / name
        # os.path's: where the folder may not be searched, `download` names it.
        content = read_file(path) if os.path.exists(path) else None
        if content is None or sha256(content) != FILES[name]:
            try:
                download(name, path)
            except Unreachable as error:
                if content is None:
                    raise
                raise DataError(
                    f"{path}: damaged, and no mirror answers for a fresh copy. {OFFER}"
                ) from error
            content = read_file(path)
        contents[name] = (path, content)
    return contents


def reachable(url):
    """Whether a connection is made in time, name look-up and all addresses included.

    socket's own time-out counts for each address anew, and not for the look-up.
    A proxy, where one is set, is taken to answer.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme in urllib.request.getproxies():
        return True
    connected = threading.Event()

    def connect():
        with contextlib.suppress(OSError):
            port = parts.port or {"http": 80, "https": 443}[parts.scheme]
            socket.create_connection((parts.hostname, port), TIMEOUT_SECONDS).close()
            connected.set()

    attempt = threading.Thread(target=connect, daemon=True)
    attempt.start()
    attempt.join(TIMEOUT_SECONDS)
    return connected.is_set()


def fetch(name, url, folder):
    """Keras's get_file in a thread that is not waited for beyond DOWNLOAD_SECONDS.

    Returns: the file's path in the folder. Raises: whatever get_file does, or TimeoutError.
    """
    # Only a download needs Keras, which takes a second to import.
    from keras.utils import get_file

    folder.mkdir()  # where there is none, get_file takes one that all processes share
    outcome = []

    def get():
        try:
            options = {"file_hash": FILES[name], "hash_algorithm": "sha256"}
            outcome.append(get_file(name, url, cache_dir=folder, cache_subdir="", **options))
        except Exception as error:  # get_file raises no narrower class
            outcome.append(error)

    thread = threading.Thread(target=get, daemon=True)
    thread.start()
    thread.join(DOWNLOAD_SECONDS)
    result = outcome[0] if outcome else TimeoutError()
    if isinstance(result, Exception):
        raise result
    return result


def download(name, path):
    """Fetches one official file from the first mirror that has it whole.

    Raises: Unreachable, no mirror answered; DataError, the cache cannot be
    written or what came was not the file.
    """
    answers = []
    previous_timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_SECONDS)  # get_file has no time-out of its own
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # get_file writes in place and leaves what fails its checksum.
        with tempfile.TemporaryDirectory(dir=path.parent, ignore_cleanup_errors=True) as scratch:
            for number, mirror in enumerate(filter(reachable, MIRRORS)):
                try:
                    # A folder each: one given up may still be writing.
                    fetched = fetch(name, mirror + name, pathlib.Path(scratch, str(number)))
                except Exception as error:
                    if getattr(error, "errno", None) in DISK_ERRORS:
                        raise
                    answers.append(error)
                    continue
                os.replace(fetched, path)
                return
    except OSError as error:
        raise DataError(
            f"{path.parent}: the download cannot be kept there ({error.strerror}). {OFFER}"
        ) from error
    finally:
        socket.setdefaulttimeout(previous_timeout)
    # A checksum that fails is get_file's only ValueError.
    if any(isinstance(answer, ValueError) for answer in answers):
        raise DataError(f"{name}: what the mirrors sent is not the official file. {OFFER}")
    raise Unreachable(f"{name}: not in {path.parent}, and no mirror answers. {OFFER}")


# --- IDX files ---


def parse_idx(content, dimensions, path):
    """Unpacks one gzipped IDX file of bytes.

    Args:
      content: the file's bytes.
      dimensions: how many the array must have: 3 for images, 1 for labels.
      path: what to call the file in a message.

    Returns:
      Read-only uint8 array, not empty.

    Raises:
      DataError: not gzip, damaged, not IDX of that many dimensions, empty, or
        so well packed that its memory would be out of proportion to the file.
    """
    header_size = 4 + 4 * dimensions
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as stream:
            header = np.frombuffer(stream.read(header_size), ">u4")
            if len(header) != dimensions + 1 or header[0] != 0x0800 + dimensions:
                raise DataError(f"{path}: not an IDX file of bytes with {dimensions} dimension(s)")
            shape = [int(n) for n in header[1:]]
            size = int(np.prod(shape, dtype=object))
            # Garments pack about 2 to 1, a bomb 1000 to 1. None at all may be of
            # a shape that numpy cannot have: 0 times 2^32 times 2^32.
            if not 0 < size <= max(2**24, 64 * len(content)):
                raise DataError(
                    f"{path}: its header announces {size:,} values,"
                    f" which is no size for a file of {len(content):,} bytes"
                )
            # One more than announced: at the end of the stream gzip compares its CRC.
            values = stream.read(size + 1)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path}: damaged, or not a gzip file ({error})") from error
    if len(values) != size:
        raise DataError(f"{path}: its header announces {size:,} values, which is not what follows")
    return np.frombuffer(values, np.uint8).reshape(shape)


class Split(typing.NamedTuple):
    """Images and their article labels, as stored: bytes."""

    images: np.ndarray  # [N, 28, 28] uint8
    articles: np.ndarray  # [N] uint8, 0 to 9


def parse_split(contents, prefix):
    """One of the two halves, `train` or `t10k`, checked. Raises: DataError."""
    images_path, images = contents[f"{prefix}-images-idx3-ubyte.gz"]
    labels_path, labels = contents[f"{prefix}-labels-idx1-ubyte.gz"]
    images = parse_idx(images, 3, images_path)
    labels = parse_idx(labels, 1, labels_path)
    if images.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE):
        raise DataError(f"{images_path}: holds {images.shape}, not images of 28x28")
    if len(labels) != len(images):
        raise DataError(
            f"{labels_path}: {len(labels):,} labels for the {len(images):,} images of {images_path}"
        )
    if labels.max() >= len(ARTICLES):
        raise DataError(f"{labels_path}: holds the label {labels.max()}; 0 to 9 are known")
    return Split(images, labels)


# --- The data set ---


class Dataset(typing.NamedTuple):
    """A training and a test split, and the training images' statistics.

    Where a task turns the images, these are over each in all four turns.
    """

    name: str
    train: Split
    test: Split  # what is evaluated on: the test images, or held-out training images
    mean: np.ndarray  # [28, 28] float32, of each pixel over the training images
    scale: np.ndarray  # [28, 28] float32, 1 / (standard deviation + 1e-9); 0 where that is 0
    tasks: tuple = TASKS[:2]  # whose labels a batch has, in this order

    def standardise(self, images):
        """z-scores, pixel by pixel. A pixel that never varies in training becomes 0.

        Args: images, [B, 28, 28] uint8. Returns: [B, 28, 28, 1] float32.
        """
        return ((images - self.mean) * self.scale)[..., np.newaxis]

    def fingerprint(self):
        """A checksum over all images and labels: the same for the same data. Returns: text."""
        digest = hashlib.sha256()
        for array in (*self.train, *self.test):
            digest.update(np.ascontiguousarray(array))
        return digest.hexdigest()[:16]

    def batch(self, split, indices, *turns_from):
        """Some images of a split and their labels.

        Where a task asks for it the images are turned, before they are standardised.

        Args: indices, of the images; turns_from, what `quarter_turns` draws from.
        Returns: [B, 28, 28, 1] float32 images, task name -> [B] int32 labels.
        """
        images, articles, labels = split.images[indices], split.articles[indices], {}
        for task in self.tasks:
            if task.from_article:
                labels[task.name] = np.array(task.from_article, np.int32)[articles]
            else:
                labels[task.name] = quarter_turns(len(split.images), *turns_from)[indices]
                images = turned(images, labels[task.name])
        return self.standardise(images), labels

    def implied(self, articles):
        """What labels of other tasks follow from labels of the task article.

        Args: [B] int. Returns: task name -> [B] int32.
        """
        return {
            task.name: np.array(task.from_article, np.int32)[articles]
            for task in self.tasks
            if task.from_article and task.name != "article"
        }

    def train_batch(self, step, batch_size, seed):
        """The batch of any step, without the ones before. Returns: as `batch`."""
        per_epoch = steps_per_epoch(len(self.train.images), batch_size)
        epoch, index = divmod(step, per_epoch)
        order = epoch_order(len(self.train.images), seed, epoch)
        indices = order[index * batch_size : (index + 1) * batch_size]
        return self.batch(self.train, indices, seed, epoch)

    def images_before(self, step, batch_size):
        """How many training images the batches before that of `step` hold."""
        num_examples = len(self.train.images)
        epoch, index = divmod(step, steps_per_epoch(num_examples, batch_size))
        return epoch * num_examples + index * batch_size

    def test_batches(self, batch_size):
        """The test split in order, the last batch as large as it comes. Yields: as `batch`."""
        for start in range(0, len(self.test.images), batch_size):
            yield self.batch(self.test, slice(start, start + batch_size))


def steps_per_epoch(num_examples, batch_size):
    """Every example once; the last batch may be smaller."""
    return -(-num_examples // batch_size)


@functools.lru_cache(maxsize=2)
def epoch_order(num_examples, seed, epoch):
    """The order of one epoch: a function of its arguments alone. Returns: [N] int."""
    # RandomState, because numpy keeps its stream the same from release to release.
    return np.random.RandomState([seed, epoch]).permutation(num_examples)


@functools.lru_cache(maxsize=2)
def quarter_turns(num_examples, *turns_from):
    """By how many right angles each image is turned: seed and epoch decide it, and
    nothing does for the test images, which are turned once and for all.

    Returns: [N] int32, 0 to 3.
    """
    # A third number, so that it is not the stream of the epoch's order.
    return np.random.RandomState([*turns_from, 1]).randint(0, 4, num_examples).astype(np.int32)


def turned(images, turns):
    """Turns images counter-clockwise. Args: [B, 28, 28]; [B] int, right angles."""
    images = images.copy()
    for quarter in (1, 2, 3):
        images[turns == quarter] = np.rot90(images[turns == quarter], quarter, axes=(1, 2))
    return images


def balanced_subset(split, size, seed):
    """Of each article as many images as of any other, as far as there are any; the
    seed chooses which. A smaller subset lies within a larger one of the same seed.

    Returns: a `Split` of `size` images, in the order of the whole one.
    """
    # Three numbers, of which no other stream has these.
    order = np.random.RandomState([seed, 0, 2]).permutation(len(split.articles))
    articles = split.articles[order]
    rank = np.empty(len(order), int)  # how many of its article come before it
    for article in range(len(ARTICLES)):
        rank[articles == article] = np.arange(np.sum(articles == article))
    chosen = np.sort(order[np.argsort(rank, kind="stable")[:size]])
    return Split(split.images[chosen], split.articles[chosen])


def with_statistics(name, train, test, tasks=TASKS[:2]):
    """A `Dataset` of two splits. Sums are of integers, and so exact in any order."""
    total = train.images.sum(axis=0, dtype=np.int64)
    chunks = np.array_split(train.images, 100)  # of little memory in 64 bits
    squares = sum((chunk.astype(np.int64) ** 2).sum(axis=0) for chunk in chunks)
    count = len(train.images)
    if any(not task.from_article for task in tasks):
        # By upright images' deviation, what is turned onto their dark margins would
        # be a thousand deviations away.
        total, squares = (sum(np.rot90(s, turns) for turns in range(4)) for s in (total, squares))
        count *= 4
    # N^2 times the variance, still an integer: 0 just where a pixel never varies.
    spread = count * squares - total**2
    scale = np.where(spread > 0, 1 / (np.sqrt(spread) / count + 1e-9), 0)
    return Dataset(
        name, train, test, *(s.astype(np.float32) for s in (total / count, scale)), tasks
    )


def load(
    dataset="auto", data_dir=None, seed=0, tasks=("article", "group"), train_examples=0, holdout=0
):
    """Finds, reads and checks a data set.

    Args:
      dataset: "fashion_mnist"; "synthetic"; or "auto", which is Fashion-MNIST
        unless no folder is named, it is not cached and no mirror answers: then
        the synthetic set, with a warning.
      data_dir: folder with the four files; before FASHION_MNIST_DIR, before
        the user's cache, before a download into that cache.
      seed: determines the synthetic images, and the choice of `train_examples`.
      tasks: names from `TASKS`.
      train_examples: how many images to train on, a `balanced_subset`; 0 for all.
      holdout: how many of the last training images to evaluate on instead of the
        test images; they are not trained on.

    Returns:
      A `Dataset`.

    Raises:
      DataError: with one sentence that names the file and what to do.
    """
    name, train, test = read(dataset, data_dir, seed)
    if holdout:
        left = len(train.images) - holdout
        if left <= 0:
            raise DataError(f"holdout={holdout}: there are {len(train.images):,} images in all")
        test = Split(train.images[left:], train.articles[left:])
        train = Split(train.images[:left], train.articles[:left])
    if train_examples > len(train.images):
        raise DataError(f"train_examples={train_examples}: there are {len(train.images):,}")
    if train_examples:
        train = balanced_subset(train, train_examples, seed)
    by_name = {task.name: task for task in TASKS}
    return with_statistics(name, train, test, tuple(by_name[t] for t in tasks))


def read(dataset, data_dir, seed):
    """Does what `load` says of finding and reading. Returns: name, training and test split."""
    if dataset == "synthetic":
        return synthetic(seed)
    folder = data_dir or os.environ.get(FOLDER_VARIABLE)
    try:
        contents = read_folder(pathlib.Path(os.path.expanduser(folder))) if folder else read_cache()
    except Unreachable as error:
        if dataset != "auto":
            raise
        warnings.warn(
            "THIS IS NOT FASHION-MNIST. It is neither on this machine nor to be downloaded, so"
            " that this run trains on drawn images, the synthetic set. Its figures say nothing"
            f" about Fashion-MNIST. ({error})"
        )
        return synthetic(seed)
    return "fashion_mnist", parse_split(contents, "train"), parse_split(contents, "t10k")


# --- The synthetic set ---

SYNTHETIC_SIZES = 12000, 2000  # images for training, for testing

# Ten silhouettes, in the order of ARTICLES, half as wide and high as an image.
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
    """Returns: [10, 14, 14] float32, 1 inside."""
    rows = [line.split() for line in SILHOUETTES.strip().splitlines() if line]
    half = len(rows) // 2
    columns = [c for part in (rows[:half], rows[half:]) for c in zip(*part)]
    return np.array([[[c == "#" for c in row] for row in column] for column in columns], np.float32)


def draw(articles, random):
    """Draws one image an article label: its silhouette, shifted, turned, stretched and
    sheared, in some shade and weave, with a fold, a stain and the camera's noise.

    Args: articles, [N] uint8; random, a RandomState. Returns: [N, 28, 28] uint8.
    """
    n = len(articles)

    def each(low, high):
        return random.uniform(low, high, [n, 1, 1]).astype(np.float32)

    # Where each pixel of the image lies on the silhouette, in [-1, 1] across.
    axis = np.linspace(-1, 1, IMAGE_SIZE, dtype=np.float32)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    angle, shear = each(-0.3, 0.3), each(-0.25, 0.25)
    x, y = x - each(-0.2, 0.2), y - each(-0.2, 0.2)
    x, y = np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y
    x, y = (x + shear * y) * each(0.95, 1.6), y * each(0.95, 1.6)

    # Bilinear look-up, which leaves soft grey edges.
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
    """A small set of drawn garments with Fashion-MNIST's shapes and labels.

    It needs no file and no network, and is the same for the same seed. It
    stands in for Fashion-MNIST while one tries things out, never in a result.

    Returns: its name, training and test split.
    """
    splits = []
    for which, size in enumerate(SYNTHETIC_SIZES):
        random = np.random.RandomState([seed, which, size])  # not the stream of an epoch's order
        articles = random.permutation(np.arange(size) % len(ARTICLES)).astype(np.uint8)
        splits.append(Split(draw(articles, random), articles))
    return "synthetic", *splits
