"""Makes every number and picture of the study in img/README.md again.

    python img/reproduce.py                      # everything: days on two cores
    python img/reproduce.py --only=full,levers   # some of its studies
    python img/reproduce.py --seeds=3            # at most three seeds of each setting
    python img/reproduce.py --quick              # the same on few images, in minutes
    python img/reproduce.py --draw               # only tables and pictures, from the records
    python img/reproduce.py --verify             # repeats three records and compares
    python img/reproduce.py --scheduler=tcp://HOST:PORT    # on the workers of a Dask cluster

Each run is one of train.py, on a core of its own unless --jobs asks for fewer runs at a
time. Its record is a small text file in img/records/. A run that has a record is skipped,
and a run that was stopped resumes, so you can kill this program at any time.
"""

import concurrent.futures
import contextlib
import hashlib
import logging
import os
import pathlib
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import typing

import cluster
import command_line
import filelock
import numpy as np
import replication
import report
import tqdm
from absl import flags

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
PAGES = {
    HERE / "README.md": (*report.STUDY_TABLES, *replication.TABLES),
    ROOT / "README.md": (*report.SUMMARY_TABLES, *replication.SUMMARY_TABLES),
}
FLAGS = flags.FLAGS

STUDIES = {
    "full": "all images, five epochs: what sharing brings",
    "full_30_epochs": "all images, 30 epochs: what sharing brings",
    "where": "where units, or shared layers, bring most",
    "few_images": "300 to 3,000 images: what sharing brings",
    "levers": "the paper's levers, on held-out images",
    "best_lever": "the best of them on fresh seeds, on the test images",
    "units_without_sharing": "what units bring that share nothing",
    "starved": "ten articles with fewer and fewer images: what sharing brings the rarest",
    "starved_epochs": "how many epochs these images need, on held-out images",
}


def define_flags():
    """Defines this program's flags."""
    names = ", ".join(STUDIES)
    flags.DEFINE_list("only", list(STUDIES), f"Studies to run, out of {names}.")
    flags.DEFINE_integer("seeds", None, "Run at most this many seeds of each setting.", 1)
    flags.DEFINE_boolean("quick", False, "Run the same on few images: minutes, and no result.")
    flags.DEFINE_boolean("draw", False, "Run nothing: write tables and pictures.")
    flags.DEFINE_boolean("show", False, "Run nothing: print the tables.")
    flags.DEFINE_boolean(
        "verify",
        False,
        "Repeat some records, chosen by the commit's hash: compare bits, or else accuracy.",
    )
    flags.DEFINE_integer("records_to_verify", 3, "How many records to repeat.", 1)
    flags.DEFINE_integer(
        "verify_images",
        0,
        "Repeat only runs that cost at most this many training images; 0 for any.",
        0,
    )
    flags.DEFINE_integer("jobs", None, "Runs at a time, which share the cores.", 1)
    flags.DEFINE_string("scheduler", None, "Address of a Dask cluster that makes the runs.")
    flags.DEFINE_string("logdir", "logs/reproduce", "Folder for the runs; with --quick, for all.")
    flags.DEFINE_string("records", str(HERE / "records"), "Folder for the records.")
    flags.register_validator(
        "only", lambda studies: set(studies) <= set(STUDIES), f"must be some of {names}"
    )
    flags.register_validator(
        "scheduler",
        lambda address: address is None or re.fullmatch(r"(tcp|tls)://.+:\d+", address),
        "must be an address such as tcp://HOST:8786, or tls://HOST:8786",
    )
    for name in ("draw", "show", "verify"):
        refuse_with_scheduler(name, f"--{name} runs nothing on a cluster: leave out one of the two")
    refuse_with_scheduler(
        "jobs",
        "`dask worker --nthreads` says how many runs a worker makes at a time: leave out --jobs",
    )


def refuse_with_scheduler(name, message):
    """Refuses a flag together with --scheduler."""
    flags.register_multi_flags_validator(
        ["scheduler", name], lambda given: not (given["scheduler"] and given[name]), message
    )


# --- The runs of the study ---


class Run(typing.NamedTuple):
    """One run of train.py."""

    study: str
    setting: str  # begins with the number of training images, if not all
    seed: int
    flags: dict  # of train.py, besides the seed
    source: typing.Any = None  # the Run whose towers it starts with

    @property
    def name(self):
        return f"{self.setting}-seed{self.seed}".replace(" ", "_")

    @property
    def record(self):
        return pathlib.Path(FLAGS.records) / self.study / f"{self.name}.json"

    @property
    def folder(self):
        return pathlib.Path(FLAGS.logdir) / self.study / self.name

    @property
    def number_of_seed(self):
        """0 for the first seed of its study, 1 for the next."""
        return self.seed - FIRST_SEEDS.get(self.study, 0)

    @property
    def has_weights(self):
        """Whether it has finished and its checkpoint is still there."""
        return (self.folder / "results.json").exists() and any(self.folder.glob("model.ckpt-*"))

    @property
    def cost(self):
        """What it costs, in training images without units.

        An evaluated image costs a third of one, an image with dense units as much as ten.
        """
        of_study = report.STARVED_IMAGES if "starve" in self.flags else report.ALL_IMAGES
        examples = self.flags.get("train_examples") or of_study
        steps = self.flags["num_epochs"] * -(-examples // 128)
        evaluations = steps / self.flags["eval_every"]
        factor = 10 if self.flags.get("cross_stitch_unit") == "dense" else 1
        return int(factor * (steps * 128 + evaluations * 10000 / 3))

    def command(self):
        """The arguments of train.py."""
        given = {**self.flags, "seed": self.seed, "dataset": "fashion_mnist"}
        if self.source:
            given["init_from"] = self.source.folder
        given |= {"logdir": self.folder.parent, "run_name": self.folder.name}
        return [f"--{name}={value}" for name, value in given.items()]


NO_UNITS = {"cross_stitch": False}
KINDS_OF_SHARING = {
    "none": NO_UNITS,
    "channel": {"cross_stitch_unit": "channel"},
    "layer": {"cross_stitch_unit": "layer"},
    "hard sharing": {**NO_UNITS, "hard_sharing": True},
}
DENSE = {"cross_stitch_unit": "dense"}  # a run takes as long as ten others, and 6 GB of memory
PLACES_OF_UNITS = ("pool_1", "pool_2", "fc_3")
LEVERS = {
    "none": NO_UNITS,
    "channel": {},
    **{f"start {w}": {"cross_stitch_init": w} for w in (0.9, 0.7, 0.5)},
    **{f"rate x{s}": {"cross_stitch_learning_rate_scale": s} for s in (10, 100, 1000)},
}
BEST_LEVER = "start 0.7"  # first of study "levers" by its seeds 0 to 2, just before "rate x1000"
BEST_AND_NONE = {"none": NO_UNITS, BEST_LEVER: LEVERS[BEST_LEVER]}

# Seeds are 0, 1, 2, … if this says nothing else. A choice that was made with some seeds
# is tested with others. "where" is compared with runs of "full".
FIRST_SEEDS = {"full": 200, "where": 200, "best_lever": 200, "starved_epochs": 100}
SEEDS = 10  # of each setting with few images
SEEDS_ON_ALL_IMAGES = 5
SEEDS_OF_SMALL_GAINS = 8  # with all images, of none, channel and layer
SEEDS_OF_LONG_RUNS = {"dense on few images": 5, "dense own only": 3}
SEEDS_OF_LONG_RUNS |= {"dense 30 epochs": 1}

# Training images: epochs, and steps between evaluations. Chosen on held-out images.
SCHEDULES = {300: (60, 20), 1000: (50, 40), 3000: (30, 80)}
IMAGES_OF_LEVERS = 1000
HELD_OUT = {"holdout": 10000}
# Two evaluations in an epoch: their last five differ more than five in a row of 100
# steps would, so that their mean is a steadier figure.
FIVE_EPOCHS = {"num_epochs": 5, "eval_every": 235, "batch_norm_decay": 0.9}
THIRTY_EPOCHS = {"num_epochs": 30, "eval_every": 469, "batch_norm_decay": 0.9}


# Of 6,000 images of the commonest article to 60 of the rarest. An evaluation after each
# epoch of 117 steps.
STARVED = {"starve": 100, "batch_norm_decay": 0.9, "eval_every": 117}
LONG_STARVED_EPOCHS = 60
# The rule that was fixed first, the fewest epochs from which on accuracy stays within half a
# point of the end's, gave no number: it swings by up to two points until epoch 60. Decided
# in its place on the same held-out images, before any run of "starved" was made: the fewest
# epochs, a multiple of ten, at which the mean accuracy of the last five, of none and of
# channel, is within half a point of the best of 60 epochs.
STARVED_EPOCHS = 20
UNITS_OF_STARVED = {
    **KINDS_OF_SHARING,
    "nddr": {"cross_stitch_unit": "nddr"},
    "start 0.7": LEVERS["start 0.7"],
}


def few_images(num_images):
    """The flags of a run on this many training images."""
    num_epochs, eval_every = SCHEDULES[num_images]
    return {
        "train_examples": num_images,
        "batch_norm_decay": 0.9,  # at 0.999, the statistics would still be those of the start
        "num_epochs": num_epochs,
        "eval_every": eval_every,
    }


def seeds_of(study, count=SEEDS):
    first = FIRST_SEEDS.get(study, 0)
    return range(first, first + count)


def runs_of_full():
    own_only = {"cross_stitch_own_only": True}
    settings = KINDS_OF_SHARING | BEST_AND_NONE
    settings |= {"dense": DENSE, "dense own only": DENSE | own_only}
    counts = dict.fromkeys(settings, SEEDS_ON_ALL_IMAGES)
    counts |= dict.fromkeys(("none", "channel", "layer"), SEEDS_OF_SMALL_GAINS)
    counts["dense own only"] = SEEDS_OF_LONG_RUNS["dense own only"]
    return [
        Run("full", setting, seed, {**given, **FIVE_EPOCHS})
        for seed in seeds_of("full", max(counts.values()))
        for setting, given in settings.items()
        if seed in seeds_of("full", counts[setting])
    ]


def runs_of_full_30_epochs():
    runs = [
        Run("full_30_epochs", setting, seed, {**given, **THIRTY_EPOCHS})
        for seed in seeds_of("full_30_epochs", SEEDS_ON_ALL_IMAGES)
        for setting, given in KINDS_OF_SHARING.items()
    ]
    runs += [
        Run("full_30_epochs", "dense", seed, {**DENSE, **THIRTY_EPOCHS})
        for seed in seeds_of("full_30_epochs", SEEDS_OF_LONG_RUNS["dense 30 epochs"])
    ]
    return runs


def runs_of_where():
    settings = {
        f"{kind} at {place}": {"cross_stitch_unit": kind, "cross_stitch_at": place}
        for kind in ("channel", "layer")
        for place in PLACES_OF_UNITS
    }
    # Sharing until fc_3 is hard sharing, which is in "full".
    settings |= {
        f"shared until {place}": {**NO_UNITS, "share_until": place}
        for place in PLACES_OF_UNITS[:-1]
    }
    return [
        Run("where", setting, seed, {**given, **FIVE_EPOCHS})
        for seed in seeds_of("where", SEEDS_ON_ALL_IMAGES)
        for setting, given in settings.items()
    ]


def runs_of_few_images():
    return [
        Run("few_images", f"{num_images} {setting}", seed, {**given, **few_images(num_images)})
        for num_images in (3000, 1000, 300)
        for seed in seeds_of("few_images")
        for setting, given in KINDS_OF_SHARING.items()
    ] + [
        Run("few_images", f"{num_images} dense", seed, {**DENSE, **few_images(num_images)})
        for num_images in (300, 1000)
        for seed in seeds_of("few_images", SEEDS_OF_LONG_RUNS["dense on few images"])
    ]


def runs_of_levers():
    common = {**few_images(IMAGES_OF_LEVERS), **HELD_OUT}
    half = {**common, "num_epochs": common["num_epochs"] // 2}
    runs = []
    for seed in seeds_of("levers"):
        alone = Run("levers", f"{IMAGES_OF_LEVERS} alone half", seed, {**NO_UNITS, **half})
        runs.append(alone)
        runs += [
            Run("levers", f"{IMAGES_OF_LEVERS} {setting}", seed, {**given, **common})
            for setting, given in LEVERS.items()
        ]
        runs.append(Run("levers", f"{IMAGES_OF_LEVERS} alone first", seed, half, alone))
    return runs


def runs_of_best_lever():
    return [
        Run("best_lever", f"{num_images} {setting}", seed, {**given, **few_images(num_images)})
        for num_images in (IMAGES_OF_LEVERS, 300, 3000)
        for seed in seeds_of("best_lever")
        for setting, given in BEST_AND_NONE.items()
    ]


def runs_of_units_without_sharing():
    own_only = {"cross_stitch_own_only": True, **few_images(IMAGES_OF_LEVERS)}
    return [
        Run("units_without_sharing", f"{IMAGES_OF_LEVERS} channel own only", seed, own_only)
        for seed in seeds_of("units_without_sharing")
    ]


def runs_of_starved_epochs():
    return [
        Run("starved_epochs", setting, seed,
            {**KINDS_OF_SHARING[setting], **STARVED, **HELD_OUT, "num_epochs": LONG_STARVED_EPOCHS,
             "eval_every": 97})  # an epoch without the held-out images
        for seed in seeds_of("starved_epochs", 1)
        for setting in ("none", "channel")
    ]  # fmt: skip


def runs_of_starved():
    """All settings of a seed before the next seed."""
    return [
        Run("starved", setting, seed, {**given, **STARVED, "num_epochs": STARVED_EPOCHS})
        for seed in seeds_of("starved")
        for setting, given in UNITS_OF_STARVED.items()
    ]


def all_runs():
    """Every run of every study, in the order in which they are made."""
    return [
        *runs_of_full(),
        *runs_of_full_30_epochs(),
        *runs_of_where(),
        *runs_of_few_images(),
        *runs_of_levers(),
        *runs_of_best_lever(),
        *runs_of_units_without_sharing(),
        *runs_of_starved_epochs(),
        *runs_of_starved(),
    ]


QUICK_NOTICE = (
    "These runs took a few steps on 256 images, whatever the tables call them. They show that"
    " everything works, and nothing else.\n\n"
)


def quick(runs):
    """Two seeds of each setting, a few steps long. They only show that everything works."""
    # The whole test set would take longer than all the rest.
    short = {"train_examples": 256, "num_epochs": 3, "eval_every": 2, "holdout": 1000}
    short["batch_norm_decay"] = 0.5

    def shortened(run):
        source = run.source and shortened(run.source)
        flags = {**run.flags, **short}
        if "starve" in flags:  # which chooses the training images itself
            del flags["train_examples"]
            flags["max_steps"] = 6
        return run._replace(flags=flags, source=source)

    return [
        shortened(run)
        for run in runs
        if run.number_of_seed < 2
        and "dense" not in run.setting
        and not run.setting.startswith("3000")
    ]


# --- Running ---


class Failed(Exception):
    """A run or a record is not what it should be; the message is for the user."""


def import_tensorflow_quietly():
    """Imports it once, before threads start: it writes to stderr, whatever the log level."""
    terminal, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        import tensorflow  # noqa: F401
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        os.close(nowhere)


def checksum(folder):
    """SHA-256 of every value in a run's last checkpoint, Adam's moments included."""
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(folder))
    digest = hashlib.sha256()
    for name in sorted(reader.get_variable_to_shape_map()):
        digest.update(name.encode() + np.ascontiguousarray(reader.get_tensor(name)).tobytes())
    return digest.hexdigest()


def histograms_of_weights(folder):
    """Histograms of the channel units' weights at the end of a run.

    Args:
      folder: the run's folder.

    Returns:
      scope -> [T][T] lists with the number of channels in each of report.WEIGHT_BINS.
      The outermost bins count everything beyond them. Empty for units of other kinds.
    """
    import tensorflow as tf

    import model

    reader = tf.train.load_checkpoint(str(folder))
    histograms = {}
    for name, shape in reader.get_variable_to_shape_map().items():
        scope = model.unit_of(name)
        if scope and len(shape) == 3:
            bins = report.WEIGHT_BINS
            clipped = np.clip(reader.get_tensor(name), bins[0], bins[-1])
            histograms[scope] = [
                [np.histogram(weights, bins)[0].tolist() for weights in row] for row in clipped
            ]
    return dict(sorted(histograms.items()))


def distances_from_start(folder, flags):
    """How far the units' weights are from their start at the end of a run.

    Args:
      folder: the run's folder.
      flags: the flags of train.py, name -> value.

    Returns:
      scope -> [T][T], the root of the mean square distance over channels. For dense units,
      the squares of a block's D x D weights are summed and divided by D.
    """
    import tensorflow as tf

    import model

    reader = tf.train.load_checkpoint(str(folder))
    num_towers, own = len(flags["tasks"].split(",")), flags["cross_stitch_init"]
    start = model.start_weights(num_towers, own)
    distances = {}
    for name, shape in reader.get_variable_to_shape_map().items():
        scope = model.unit_of(name)
        if scope:
            alpha = reader.get_tensor(name)
            size = shape[0] // num_towers  # D of dense units; 1 of the others
            if size > 1:
                blocks = alpha.reshape(num_towers, size, num_towers, size)
                for index in range(size):
                    blocks[:, index, :, index] -= start
                squares = np.einsum("iajb,iajb->ij", blocks, blocks) / size
            else:
                moved = alpha.reshape(num_towers, num_towers, -1) - start[:, :, None]
                squares = np.mean(np.square(moved), axis=2)
            distances[scope] = np.sqrt(squares).round(6).tolist()
    return dict(sorted(distances.items()))


def command_text(run):
    return shlex.join(["python", "train.py", *run.command()])


def make_record(run):
    """What is kept of a finished run, as a dictionary for JSON."""
    results = report.read_json(run.folder / "results.json")
    return {
        "command": command_text(run),
        "setting": run.setting,
        **results,
        "sha256": checksum(run.folder),
        "curves": report.read_curves(run.folder),
        "weights": histograms_of_weights(run.folder),
        "distances": distances_from_start(run.folder, results["flags"]),
    }


def train(run, stop, *more_flags):
    """Runs train.py to the end.

    Args:
      run: a `Run`.
      stop: a `threading.Event` that ends it early.
      *more_flags: arguments of train.py that do not belong to the study.

    Returns:
      None, or train.py's message if the run diverged.

    Raises:
      Failed: train.py failed, or was stopped.
    """
    if run.source and not run.source.has_weights:
        diverged = train(run.source, stop, *more_flags)
        if diverged:
            return diverged
    if (run.folder / "results.json").exists() and not run.has_weights:
        shutil.rmtree(run.folder)  # its record is missing, and cannot be made from what is left
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    log = run.folder.parent / f"{run.name}.log"
    command = [sys.executable, "train.py", *run.command(), *more_flags]
    # Memory in pages of 2 MB: on Linux, dense runs are faster. No bit changes.
    environment = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", **os.environ}
    while not stop.is_set():
        with (
            log.open("wb") as output,
            subprocess.Popen(command, stdout=output, stderr=output, env=environment) as process,
        ):
            try:
                while process.poll() is None and not stop.wait(0.2):
                    pass
            finally:
                process.terminate()  # does nothing to a process that has ended
        if process.returncode == 0:
            return None
        lines = [
            *log.read_text(encoding="utf-8", errors="replace").splitlines(),
            "train.py: ended without a message",
        ]
        message = next(line for line in lines if line.startswith("train.py: "))
        if "NaN or infinite" in message:
            return message
        # An earlier reproduce.py that was killed may have left this run training.
        if "another process" not in message and not stop.is_set():
            raise Failed(
                f"{run.study}/{run.name}: {message} Its log is {log}. If that does not help,"
                f" delete {run.folder}."
            )
        time.sleep(1)
    raise Failed("stopped")


def make(run, stop, *more_flags):
    """Does `train` and writes the run's record. Returns: the record. Raises: Failed."""
    diverged = train(run, stop, *more_flags)
    if diverged:
        record = {
            "command": command_text(run),
            "setting": run.setting,
            "seed": run.seed,
            "diverged": diverged,
        }
    else:
        record = make_record(run)
    command_line.write_record(run.record, record)
    return record


def on_shares_of_the_cores(function, runs):
    """Calls function(run, stop) for each run: --jobs at a time, or else one on each core.

    Yields: each run when its call ends. If one fails, the others are stopped.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    jobs = FLAGS.jobs or max(1, len(cores))
    if cores and jobs > len(cores):
        raise Failed(f"--jobs={jobs}: there are {len(cores)} cores, so use at most as many")
    stop, free_shares = threading.Event(), [cores[first::jobs] for first in range(jobs)]

    def take_a_share():
        share = free_shares.pop()
        if share:
            os.sched_setaffinity(0, share)  # on Linux, of this thread and its children

    with concurrent.futures.ThreadPoolExecutor(jobs, initializer=take_a_share) as pool:
        futures = {pool.submit(function, run, stop): run for run in runs}
        try:
            for future in concurrent.futures.as_completed(futures):
                future.result()
                yield futures[future]
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def on_a_cluster(runs):
    """Makes the runs on the cluster of --scheduler. Yields: each when it has a record."""
    for run, record in cluster.make(runs, FLAGS.scheduler, FLAGS.quick):
        command_line.write_record(run.record, record)
        yield run


PLACES = ("logdir", "run_name", "init_from")  # flags of train.py that name folders


def is_record_of(run, record):
    """Whether the record's command and flags are those of the run, apart from folders."""

    def without_values_of_places(command):
        prefixes = tuple(f"--{name}=" for name in PLACES)
        return {a.partition("=")[0] if a.startswith(prefixes) else a for a in command}

    recorded = without_values_of_places(shlex.split(record["command"])[2:])
    if recorded != without_values_of_places(run.command()):
        return False
    given = {**run.flags, "seed": run.seed, "dataset": "fashion_mnist"}
    # A run that diverged recorded no flags.
    flags_recorded = record.get("flags", given if "diverged" in record else {})
    return all(flags_recorded.get(name) == value for name, value in given.items())


def check(runs):
    """Raises: Failed, a record is of another command or other flags than its run."""
    for run in runs:
        if run.record.exists() and not is_record_of(run, report.read_json(run.record)):
            raise Failed(f"{run.record}: made with other flags. Delete it to run it again.")


def prune(runs, kept):
    """Deletes the checkpoints, 78 MB each, of runs that have a record, except folders in `kept`."""
    for run in runs:
        if run.record.exists() and run.folder not in kept:
            for path in run.folder.glob("model.ckpt-*"):
                path.unlink()


def make_all(runs):
    """Makes the records that are missing. Raises: Failed."""
    missing = [run for run in runs if not run.record.exists()]
    needed = {run.source.folder for run in missing if run.source}
    prune(runs, needed)
    print(f"{len(runs) - len(missing)} of {len(runs)} runs have a record.", flush=True)
    bar = tqdm.tqdm(
        total=sum(run.cost for run in missing),
        bar_format="{percentage:.0f}%|{bar}|{elapsed}, ETA {remaining} {postfix}",
        dynamic_ncols=True,
    )
    made = on_a_cluster(missing) if FLAGS.scheduler else on_shares_of_the_cores(make, missing)
    # Closed at once when something interrupts this loop: it then stops the other runs.
    with bar, contextlib.closing(made):
        for run in made:
            prune([run], needed)
            bar.set_postfix_str(f"{run.study}/{run.name}")
            bar.update(run.cost)


# --- Verifying ---

# Entries of a record that may differ although the result is the same.
NOT_COMPARED = {"command", "flags", "commit", "versions", "numerics", "machine"}
NOT_COMPARED |= {"images_per_second", "wall_seconds", "resumed_after"}


def origin(record):
    """What decides in which order sums are added up: name -> value.

    Older records lack some of it, and then nobody knows on what kind of machine they were made.
    """
    tensorflow = record.get("versions", {}).get("tensorflow")
    known = {**record.get("machine", {}), **record, "TensorFlow": tensorflow}
    names = ("processor", "vectors", "onednn", "threads", "TensorFlow", "numerics")
    return {name: known[name] for name in names if name in known}


def deviation_of_seeds(run, records):
    """The standard deviation of accuracy over the other seeds of a run's setting.

    Args:
      run: a `Run`.
      records: as `report.read_records` returns them.

    Returns:
      The deviation. If fewer than three other seeds have a record, the largest of any setting
      on as many images, or None if there is none.
    """

    def deviation(by_seed):
        values = [report.accuracy(record, "mean") for record in by_seed.values()]
        return np.std(values, ddof=1) if len(values) >= report.SEEDS_OF_AN_INTERVAL else None

    images, setting = report.key_of(run.setting)
    finished = {study: report.without_diverged(groups) for study, groups in records.items()}
    own = finished[run.study].get((images, setting), {})
    others = deviation({seed: record for seed, record in own.items() if seed != run.seed})
    if others is not None:
        return others
    is_starved = run.study.startswith("starved")  # whose seeds differ in which articles are rare
    similar = [
        deviation(by_seed)
        for study, groups in finished.items()
        for key, by_seed in groups.items()
        if key[0] == images and study.startswith("starved") == is_starved
    ]
    return max((value for value in similar if value is not None), default=None)


def compare(record, again, deviation):
    """Compares a record with a repetition of its run.

    Bits are compared if the record says that it was made on the same kind of machine with the
    same TensorFlow and numerics, otherwise accuracy.

    Args:
      record: the record.
      again: the record of the repetition.
      deviation: as `deviation_of_seeds` returns it.

    Returns:
      What was found, as a sentence.

    Raises:
      Failed: they do not agree, or this cannot be told.
    """
    names = record.keys() - NOT_COMPARED  # older records have fewer entries
    different = sorted(name for name in names if record.get(name) != again.get(name))
    if not different:
        return "the same bits"
    before, here = origin(record), origin(again)
    if before == here or "diverged" in {*record, *again}:
        raise Failed(f"{', '.join(different)} not as recorded")
    reasons = ", ".join(
        f"{name} {before.get(name, 'not recorded')} (here {value})"
        for name, value in here.items()
        if before.get(name, "not recorded") != value
    )
    recorded, now = (r["accuracy_test_last"]["mean"] for r in (record, again))
    if deviation is None:
        raise Failed(
            f"bits cannot be compared: {reasons}. Nor can accuracy, with fewer than three other"
            f" seeds: it was {recorded:.4f}, is {now:.4f}"
        )
    if abs(recorded - now) > 4 * deviation:
        raise Failed(
            f"accuracy {now:.4f} is further from the recorded {recorded:.4f} than four standard"
            f" deviations of seeds, {4 * deviation:.4f}; bits cannot be compared: {reasons}"
        )
    return (
        f"accuracy was {recorded:.4f}, is {now:.4f}: within four standard deviations of seeds,"
        f" {4 * deviation:.4f}; bits cannot be compared: {reasons}"
    )


def verify(runs, records):
    """Repeats some records.

    Args:
      runs: to choose from; those without a record are left out.
      records: as `report.read_records` returns them.

    Raises:
      Failed: one does not come out as recorded.
    """
    recorded = [run for run in runs if run.record.exists()]
    if FLAGS.verify_images:
        recorded = [run for run in recorded if run.cost <= FLAGS.verify_images]
    if not recorded:
        raise Failed("there is no record to verify: run reproduce.py without --verify first")
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    count = min(len(recorded), FLAGS.records_to_verify)
    failures = []
    for run in random.Random(head.stdout.strip()).sample(recorded, count):
        try:
            deviation = deviation_of_seeds(run, records)
            found = compare(report.read_json(run.record), repeat(run), deviation)
            print(f"{run.study}/{run.name}: {found}", flush=True)
        except Failed as error:
            failures.append(f"{run.study}/{run.name}: {error}")
    if failures:
        raise Failed("; ".join(failures))


def repeat(run):
    """Makes a run again in another folder, on as many cores as recorded. Returns: the record."""
    threads = report.read_json(run.record).get("machine", {}).get("threads", 1)
    logdir, records = FLAGS.logdir, FLAGS.records
    FLAGS.logdir = FLAGS.records = f"{logdir}/verify"
    try:
        for one in filter(None, (run.source, run)):
            shutil.rmtree(one.folder, ignore_errors=True)
        with restricted_to(threads):
            again = make(run, threading.Event())
        prune([run], ())
        return again
    finally:
        FLAGS.logdir, FLAGS.records = logdir, records


@contextlib.contextmanager
def restricted_to(threads):
    """Restricts this process and its children to so many cores, if the system can do that."""
    if not hasattr(os, "sched_getaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(cores)[:threads])
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


# --- The program ---


def main(argv):
    """Runs the program. Every expected error becomes one sentence and exit code 1."""
    command_line.refuse_flags_without_effect("reproduce.py")
    if len(argv) > 1:
        sys.exit(f"reproduce.py: {argv[1]}: not a flag; see --help")
    for name in ("logdir", "records"):
        if not FLAGS[name].using_default_value:
            FLAGS[name].value = os.path.abspath(os.path.expanduser(FLAGS[name].value))
    os.chdir(ROOT)  # so that commands in records name no folder of this machine
    out = HERE
    if FLAGS.quick:
        out = pathlib.Path(FLAGS.logdir) / "quick"
        FLAGS.logdir, FLAGS.records = str(out / "runs"), str(out / "records")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    runs = quick(all_runs()) if FLAGS.quick else all_runs()
    runs = [run for run in runs if run.study in FLAGS.only]
    if FLAGS.seeds:
        runs = [run for run in runs if run.number_of_seed < FLAGS.seeds]
    try:
        act(runs, out)
    except (Failed, cluster.Failed, report.Unusable) as error:
        sys.exit(f"reproduce.py: {error}")
    except filelock.Timeout:
        sys.exit(
            f"reproduce.py: {FLAGS.logdir}: another process is using this folder. Wait for it, or"
            " choose another --logdir."
        )
    except KeyboardInterrupt:
        sys.exit("\nStopped. Run the same command to resume.")


def read_all(folder):
    """Reads the records of train.py's runs and of the replication's. Raises: report.Unusable.

    Returns:
      As `report.read_records` does; the groups of `replication.read`; all tables.
    """
    records = report.read_records(folder)
    replicated, made = replication.read(folder / "replication")
    tables = report.all_tables(records)
    of_train_py = records.get("full_30_epochs", {})
    return records, replicated, tables | replication.all_tables(replicated, made, of_train_py)


def draw_all(records, replicated, out):
    """Draws every picture for which there are records. Returns: the paths."""
    return report.draw(records, out) + replication.draw(replicated, out)


def act(runs, out):
    """Does what the flags ask.

    Args:
      runs: the runs that the flags choose.
      out: the folder for pictures.

    Raises:
      Failed, report.Unusable, filelock.Timeout, OSError: it cannot.
    """
    folder = pathlib.Path(FLAGS.records)
    records, _, tables = read_all(folder)
    check(runs)
    if FLAGS.show:
        return print(report.as_text(tables))
    if not (FLAGS.quick or FLAGS.verify):
        for page, names in PAGES.items():
            report.find_places(page, names)  # before days of running, not after
    if not FLAGS.draw:
        for path in (FLAGS.logdir, FLAGS.records):  # before days of running, not after
            pathlib.Path(path).mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{FLAGS.logdir}/lock").acquire(timeout=0):
            import_tensorflow_quietly()
            if FLAGS.verify:
                return verify(runs, records)
            make_all(runs)
    records, replicated, tables = read_all(folder)
    for path in draw_all(records, replicated, out):
        print(path)
    if FLAGS.quick:
        page = out / "tables.md"
        command_line.write(page, QUICK_NOTICE + report.as_text(tables) + "\n")
        return print(page)
    for page, names in PAGES.items():
        report.write_tables({name: tables[name] for name in names if name in tables}, page)
        print(page)


if __name__ == "__main__":
    define_flags()
    command_line.run(main)
