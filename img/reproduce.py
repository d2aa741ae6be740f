"""Makes every number and picture of the README's results again.

    python img/reproduce.py                # all of it: days on two cores
    python img/reproduce.py --only=A,B     # some of its studies
    python img/reproduce.py --seeds=3      # fewer seeds of each setting
    python img/reproduce.py --quick        # the same in minutes, on few images
    python img/reproduce.py --draw         # tables and pictures alone, from the records
    python img/reproduce.py --verify       # repeats three records, compares the bits

Each run is one of train.py, on a core of its own. Its record is a small text
file in img/records/; a run that has one is not made again, and one that was
stopped goes on where it was. So this may be killed at any time.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import logging
import os
import pathlib
import random
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import typing

import filelock
import numpy as np
import report
import tqdm
from absl import app, flags

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
STUDIES = {
    "epochs": "how many epochs few images take, on held-out images",
    "A": "all images: what sharing brings",
    "B": "few images: what sharing brings",
    "C": "the paper's levers, on held-out images",
    "best": "the best lever on fresh seeds, on the test images",
    "steady": "all images: what sharing brings, batch norm's statistics of few steps as in B",
    "D": "what units bring that share nothing",
    "E": "two tasks that have nothing to do with each other",
}

FLAGS = flags.FLAGS
flags.DEFINE_list("only", list(STUDIES), f"Studies to make, of {', '.join(STUDIES)}.")
flags.DEFINE_integer("seeds", None, "Make at most so many seeds of each setting.", 1)
flags.DEFINE_boolean("quick", False, "The same on few images: minutes, and no result.")
flags.DEFINE_boolean("draw", False, "Make no runs: draw and write from the records.")
flags.DEFINE_boolean("show", False, "Make nothing: print the tables.")
flags.DEFINE_boolean("verify", False, "Repeat some records, which the commit's hash chooses.")
flags.DEFINE_integer("records_to_verify", 3, "How many.", 1)
flags.DEFINE_integer(
    "verify_images", 0, "Of runs of at most so many images in all they do; 0 for any.", 0
)
flags.DEFINE_integer("jobs", None, "Runs at a time, a core each; by default as many as cores.", 1)
flags.DEFINE_string("logdir", "logs/reproduce", "Folder for the runs; with --quick, for all.")
flags.DEFINE_string("records", str(HERE / "records"), "Folder for their records.")
flags.register_validator(
    "only", lambda names: set(names) <= set(STUDIES), f"must be some of {', '.join(STUDIES)}"
)

# --- What is run ---


class Run(typing.NamedTuple):
    """One run of train.py."""

    study: str
    setting: str
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
    def whole(self):
        """Has ended, and still has its weights."""
        return (self.folder / "results.json").exists() and any(self.folder.glob("model.ckpt-*"))

    @property
    def images(self):
        """How many images it trains on, and about what its evaluations cost in such."""
        examples = self.flags.get("train_examples") or 60000
        steps = self.flags.get("num_epochs", 30) * -(-examples // 128)
        evaluations = steps / self.flags.get("eval_every", 100)
        return int(steps * 128 + evaluations * 10000 / 3)

    def command(self):
        """Arguments of train.py."""
        given = {**self.flags, "seed": self.seed, "dataset": "fashion_mnist"}
        if self.source:
            given["init_from"] = self.source.folder
        given |= {"logdir": self.folder.parent, "run_name": self.folder.name}
        return [f"--{name}={value}" for name, value in given.items()]


NONE = {"cross_stitch": False}
SHARING = {
    "none": NONE,
    "channel": {"cross_stitch_unit": "channel"},
    "layer": {"cross_stitch_unit": "layer"},
    "hard sharing": {**NONE, "hard_sharing": True},
}
FEW_SEEDS, FULL_SEEDS, FRESH = range(10), range(5), 100
STEADY_SEEDS = range(8)  # of units as they start by default: they bring little, but every time
HOLDOUT = {"holdout": 10000}
# Training images: epochs, steps between evaluations. Decided on held-out images
# (study "epochs"), but for 10,000, which is a guess until its runs are made.
FEW = {300: (60, 20), 1000: (50, 40), 3000: (30, 80), 10000: (20, 160)}
LONG = {300: (200, 30), 1000: (120, 60), 3000: (80, 120), 10000: (50, 240)}
LEVERS_AT = 1000  # images of study C, and of D with channel units
LEVERS = {
    "none": NONE,
    "channel": {},
    **{f"start {w}": {"cross_stitch_init": w} for w in (0.9, 0.7, 0.5)},
    **{f"rate x{s}": {"cross_stitch_learning_rate_scale": s} for s in (10, 100, 1000)},
}
BEST = "start 0.7"  # first of study C by its seeds 0 to 2, little before "rate x1000"
# All images in a third of the time. Evaluated twice an epoch: the last five
# evaluations then are less alike, and their mean is a steadier figure.
TEN_EPOCHS = {"num_epochs": 10, "eval_every": 235}


def few(examples, epochs=None, every=None):
    """Flags of a run on so many images."""
    most, steps = FEW[examples]
    return {
        "train_examples": examples,
        "batch_norm_decay": 0.9,  # at 0.999 the statistics of so few steps are those of the start
        "num_epochs": epochs or most,
        "eval_every": every or steps,
    }


def all_runs():
    """Every run of every study, the ones that matter most first."""
    runs = [
        Run("epochs", f"{examples} {setting}", FRESH, {**SHARING[setting], **few(examples, *long), **HOLDOUT})
        for examples, long in LONG.items()
        for setting in ("none", "channel")
    ]  # fmt: skip
    runs += [
        Run("A", setting, seed, given) for seed in FULL_SEEDS for setting, given in SHARING.items()
    ]
    runs += [
        Run("B", f"{examples} {setting}", seed, {**given, **few(examples)})
        for examples in (1000, 300, 3000, 10000)
        for seed in FEW_SEEDS
        for setting, given in SHARING.items()
    ]
    at = {**few(LEVERS_AT), **HOLDOUT}
    half = {**at, "num_epochs": at["num_epochs"] // 2}
    for seed in FEW_SEEDS:
        alone = Run("C", f"{LEVERS_AT} alone half", seed, {**NONE, **half})
        runs.append(alone)
        runs += [
            Run("C", f"{LEVERS_AT} {setting}", seed, {**given, **at})
            for setting, given in LEVERS.items()
        ]
        runs.append(Run("C", f"{LEVERS_AT} alone first", seed, half, alone))
    chosen = {"none": NONE, BEST: LEVERS[BEST]}
    runs += [
        Run("best", f"{examples} {setting}", 2 * FRESH + seed, {**given, **few(examples)})
        for examples in (LEVERS_AT, 300, 3000)
        for seed in FEW_SEEDS
        for setting, given in chosen.items()
    ]
    runs += [
        Run("best", setting, 2 * FRESH + seed, {**given, **TEN_EPOCHS})
        for seed in FULL_SEEDS
        for setting, given in chosen.items()
    ]
    runs += [
        Run("best", "channel", 2 * FRESH + seed, {**LEVERS["channel"], **TEN_EPOCHS})
        for seed in FULL_SEEDS
    ]
    # At the default decay, test accuracy swings by a point and more: the statistics
    # lag behind weights that still move fast.
    five_epochs = {**TEN_EPOCHS, "num_epochs": 5, "batch_norm_decay": 0.9}
    runs += [
        Run("steady", setting, 2 * FRESH + seed, {**given, **five_epochs})
        for seed in STEADY_SEEDS
        for setting, given in (SHARING | chosen).items()
        if seed in FULL_SEEDS or setting in ("none", "channel", "layer")
    ]
    own = {"cross_stitch_own_only": True}
    runs += [
        Run("D", f"{LEVERS_AT} channel own only", seed, {**own, **few(LEVERS_AT)}) for seed in FEW_SEEDS
    ]  # fmt: skip
    tasks = {"tasks": "article,rotation"}
    runs += [
        Run("E", f"3000 {setting}", seed, {**tasks, **SHARING[setting], **few(3000)})
        for seed in FEW_SEEDS
        for setting in ("none", "channel")
    ]
    runs += [
        Run("E", f"60000 {setting}", seed, {**tasks, **SHARING[setting], **five_epochs})
        for seed in FULL_SEEDS
        for setting in ("none", "channel")
    ]
    dense = {"cross_stitch_unit": "dense"}
    runs += [
        Run("D", "300 dense own only", seed, {**own, **dense, **few(300)}) for seed in range(3)
    ]  # fmt: skip
    runs.append(Run("A", "dense", 0, dense))
    return runs


QUICK_SAYS = (
    "These runs took a few steps on 256 images, whatever the tables call them: they show that"
    " everything works, and nothing else.\n\n"
)


def quick(runs):
    """Two seeds of each setting, a few steps long. They say nothing but that all works."""
    small = {"train_examples": 256, "batch_norm_decay": 0.5, "num_epochs": 3, "eval_every": 2}
    small["holdout"] = 1000  # the whole test set would take longer than all the rest

    def shortened(run):
        source = run.source and shortened(run.source)
        return run._replace(flags={**run.flags, **small}, source=source)

    few_enough = [run for run in runs if run.seed % FRESH < 2 and "dense" not in run.setting]
    return [shortened(run) for run in few_enough if not run.setting.startswith(("3000", "10000"))]


# --- Running ---


class Failed(Exception):
    """A run could not be made; the message is for the user."""


def import_tensorflow_quietly():
    """Once, before there are threads: it greets the terminal, whatever its log level."""
    terminal, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        import tensorflow  # noqa: F401
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        os.close(nowhere)


def checksum(folder):
    """SHA-256 over every value of a run's last checkpoint, Adam's moments included."""
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(folder))
    digest = hashlib.sha256()
    for name in sorted(reader.get_variable_to_shape_map()):
        digest.update(name.encode() + np.ascontiguousarray(reader.get_tensor(name)).tobytes())
    return digest.hexdigest()


def spread_of_weights(folder):
    """How channel units' weights are spread at the end.

    Returns: unit -> [T][T] lists of how many lie in each bin of `report.BINS`, those
    beyond counted in the outermost; empty for units of other kinds.
    """
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(folder))
    spread = {}
    for name, shape in reader.get_variable_to_shape_map().items():
        if name.endswith("/alpha") and name.startswith("network/") and len(shape) == 3:
            inside = np.clip(reader.get_tensor(name), report.BINS[0], report.BINS[-1])
            spread[name.split("/")[1]] = [
                [np.histogram(weights, report.BINS)[0].tolist() for weights in row]
                for row in inside
            ]
    return dict(sorted(spread.items()))


def make_record(run):
    """What is kept of a finished run. Returns: a dictionary, for JSON."""
    results = json.loads((run.folder / "results.json").read_text())
    return {
        "command": shlex.join(["python", "train.py", *run.command()]),
        "setting": run.setting,
        **results,
        "sha256": checksum(run.folder),
        "curves": report.read_curves(run.folder),
        "weights": spread_of_weights(run.folder),
    }


def write_record(path, record):
    """A line for each entry, so that differences can be read."""
    lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in record.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part")
    draft.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    draft.replace(path)


def train(run, stop):
    """Runs train.py to the end. Returns: None, or the sentence with which it diverged.

    Raises: Failed.
    """
    if run.source and not run.source.whole:
        diverged = train(run.source, stop)
        if diverged:
            return diverged
    if (run.folder / "results.json").exists() and not run.whole:
        shutil.rmtree(run.folder)  # its record is lost, and cannot be had from what is left
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    log = run.folder.parent / f"{run.name}.log"
    command = [sys.executable, "train.py", *run.command()]
    while not stop.is_set():
        with (
            log.open("wb") as output,
            subprocess.Popen(command, stdout=output, stderr=output) as process,
        ):
            try:
                while process.poll() is None and not stop.wait(0.2):
                    pass
            finally:
                process.terminate()  # where it has not ended
        if process.returncode == 0:
            return None
        said = log.read_text(errors="replace").splitlines()
        lines = [*said, "train.py: ended without a word"]
        said = next(line for line in lines if line.startswith("train.py: "))
        if "NaN or infinite" in said:
            return said
        # One that was started before this was killed, and still runs.
        if "another process" not in said and not stop.is_set():
            raise Failed(f"{run.study}/{run.name}: {said} ({log}) Or delete {run.folder}.")
        time.sleep(1)
    raise Failed("stopped")


def make(run, stop):
    """Makes a run's record. Returns: it."""
    diverged = train(run, stop)
    if diverged:
        record = {
            "command": shlex.join(["python", "train.py", *run.command()]),
            "setting": run.setting,
            "seed": run.seed,
            "diverged": diverged,
        }
    else:
        record = make_record(run)
    write_record(run.record, record)
    return record


def with_a_core_each(function, runs):
    """Calls function(run, stop) for each, as many at a time as there are cores.

    Yields: each run as its call ends. Where one fails, all others are stopped.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [None]
    stop, free = threading.Event(), cores[: FLAGS.jobs]

    def settle():
        core = free.pop()
        # Linux keeps this by thread, and children inherit it.
        core is None or os.sched_setaffinity(0, {core})

    with concurrent.futures.ThreadPoolExecutor(len(free), initializer=settle) as pool:
        futures = {pool.submit(function, run, stop): run for run in runs}
        try:
            for future in concurrent.futures.as_completed(futures):
                future.result()
                yield futures[future]
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def check(runs):
    """Raises: Failed, a record was made by another command than its run's."""

    def bearing(command):
        places = ("--logdir=", "--run_name=", "--init_from=")
        return {a.partition("=")[0] if a.startswith(places) else a for a in command}

    for run in runs:
        if run.record.exists():
            command = json.loads(run.record.read_text())["command"]
            if bearing(shlex.split(command)[2:]) != bearing(run.command()):
                raise Failed(f"{run.record}: made by other flags. Delete it, to make it again.")


def prune(runs, kept):
    """Deletes the checkpoints of runs that have their record, 78 MB each, but for some folders."""
    for run in runs:
        if run.record.exists() and run.folder not in kept:
            for path in run.folder.glob("model.ckpt-*"):
                path.unlink()


def make_all(runs):
    """Makes the records that are missing. Raises: Failed."""
    missing = [run for run in runs if not run.record.exists()]
    needed = {run.source.folder for run in missing if run.source}
    prune(runs, needed)
    print(f"{len(runs) - len(missing)} of {len(runs)} runs have their record.", flush=True)
    bar = tqdm.tqdm(
        total=sum(run.images for run in missing),
        bar_format="{percentage:.0f}%|{bar}|{elapsed}, ETA {remaining} {postfix}",
        dynamic_ncols=True,
    )
    with bar:
        for run in with_a_core_each(make, missing):
            prune([run], needed)
            bar.set_postfix_str(f"{run.study}/{run.name}")
            bar.update(run.images)


# --- Verifying ---


ASIDE = {"command", "flags", "commit", "versions", "machine", "images_per_second", "wall_seconds"}


def differences(record, again):
    """Names of what differs between two records of the same run, times and place aside."""
    names = (record.keys() | again.keys()) - ASIDE
    return sorted(name for name in names if record.get(name) != again.get(name))


def place_of(record):
    """What decides how sums are added up; as far as a record tells."""
    return record.get("machine"), record.get("versions", {}).get("tensorflow")


def verify(runs):
    """Repeats some records. Raises: Failed, one does not come out as recorded."""
    small = [
        run for run in runs
        if run.record.exists() and run.images <= (FLAGS.verify_images or run.images)
    ]  # fmt: skip
    if not small:
        raise Failed("there is no record to verify: make some first")
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    chosen = random.Random(head.stdout.strip()).sample(
        small, min(len(small), FLAGS.records_to_verify)
    )
    failed = []
    for run in chosen:
        record = json.loads(run.record.read_text())
        again = repeated(run)
        place = f"{run.study}/{run.name}"
        different = differences(record, again)
        same_place = place_of(record) == place_of(again)
        if not different:
            print(f"{place}: the same bits", flush=True)
        elif same_place or "diverged" in {*record, *again}:
            failed.append(f"{place}: {', '.join(different)} came out otherwise")
        else:
            # Elsewhere, sums are added up in another order.
            was, now = (r["accuracy_test_last"]["mean"] for r in (record, again))
            print(
                f"{place}: made on {record['machine']['processor']} with TensorFlow"
                f" {record['versions']['tensorflow']}, so that bits cannot be compared here;"
                f" accuracy was {was:.4f}, is {now:.4f}",
                flush=True,
            )
            if abs(was - now) > 0.03:
                failed.append(f"{place}: accuracy {now:.4f} is far from {was:.4f}")
    if failed:
        raise Failed("; ".join(failed))


def repeated(run):
    """Makes a run anew, in a folder of its own, on as many cores as for its record."""
    threads = json.loads(run.record.read_text()).get("machine", {}).get("threads", 1)
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
    """So many cores for this process and its children, where the system can do that."""
    if not hasattr(os, "sched_getaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(cores)[:threads])
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def main(argv):
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
    most = FLAGS.seeds or len(runs)
    runs = [run for run in runs if run.study in FLAGS.only and run.seed % FRESH < most]
    try:
        act(runs, out)
    except (Failed, report.Unusable) as error:
        sys.exit(f"reproduce.py: {error}")
    except filelock.Timeout:
        sys.exit(f"reproduce.py: {FLAGS.logdir}: another process is at it. Wait, or end that one.")
    except OSError as error:
        sys.exit(f"reproduce.py: {error.filename or FLAGS.records}: {error.strerror}")
    except KeyboardInterrupt:
        sys.exit("\nStopped. The same command goes on from here.")


def act(runs, out):
    """Does what the flags ask. Raises: Failed; report.Unusable; filelock.Timeout; OSError."""
    records = report.read_records(pathlib.Path(FLAGS.records))
    check(runs)
    if FLAGS.show:
        return print(report.tables(records))
    page = out / "tables.md" if FLAGS.quick else ROOT / "README.md"
    if not (FLAGS.quick or FLAGS.verify):
        report.places(page, {*records, *FLAGS.only})  # rather than after days
    if not FLAGS.draw:
        pathlib.Path(FLAGS.logdir).mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{FLAGS.logdir}/lock").acquire(timeout=0):
            import_tensorflow_quietly()
            if FLAGS.verify:
                return verify(runs)
            make_all(runs)
        records = report.read_records(pathlib.Path(FLAGS.records))
    for path in report.draw(records, out):
        print(path)
    if FLAGS.quick:
        page.write_text(QUICK_SAYS + report.tables(records) + "\n")
    else:
        report.write_tables(records, page)
    print(page)


if __name__ == "__main__":
    app.run(main)
