"""Makes the study of study/README.md again: the runs of train.py, all tables and curves.

    python -m study.reproduce                            # all studies: days on two cores
    python -m study.reproduce --only=few_article_labels  # one of them
    python -m study.reproduce --seeds=6                  # at most six seeds of each setting
    python -m study.reproduce --quick                    # the same on few images, in minutes
    python -m study.reproduce --draw                     # tables and pictures, from the records
    python -m study.reproduce --verify                   # repeats three records and compares
    python -m study.reproduce --scheduler=tcp://HOST:PORT  # on the workers of a Dask cluster

Each run is one of train.py. On Linux it has a core of its own, unless --jobs asks for fewer
runs at a time. Its record is a small text file in study/records/. A run that has a record is
skipped, and a run that was stopped resumes, so you can kill this program at any time.
"""

import collections
import contextlib
import os
import pathlib
import random
import re
import shutil
import signal
import sys
import threading

import filelock
from absl import flags

from harness import files, process, processor
from harness.bars import ProgressBar
from harness.errors import Failed
from harness.files import ROOT
from study import (
    cluster,
    command_line,
    groups,
    making,
    pages,
    pictures,
    records,
    repetition,
    replication,
    running,
    runs,
    tables,
)

HERE = pathlib.Path(__file__).resolve().parent
PICTURES = ROOT / "img"
FLAGS = flags.FLAGS


def define_flags():
    """Defines this program's flags."""
    names = ", ".join(runs.STUDIES)
    flags.DEFINE_list(
        "only",
        list(runs.STUDIES),
        f"Studies to run, out of {names}; with the runs that they borrow.",
    )
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
    flags.DEFINE_string(
        "records",
        str(HERE / "records"),
        "Folder for the records; another one gets tables and pictures, too, and no page is written.",
    )
    flags.register_validator(
        "only", lambda studies: set(studies) <= set(runs.STUDIES), f"must be some of {names}"
    )
    flags.register_validator(
        "scheduler",
        lambda address: address is None or re.fullmatch(r"(tcp|tls)://.+:\d+", address),
        "must be an address such as tcp://HOST:8786, or tls://HOST:8786",
    )
    actions = ["draw", "show", "verify"]
    flags.mark_bool_flags_as_mutual_exclusive(actions)
    refused = {n: f"--{n} runs nothing on a cluster: leave out one of the two" for n in actions}
    refused["jobs"] = "on a cluster, `dask worker --nthreads` says how many: leave out --jobs"
    for name, message in refused.items():
        flags.register_multi_flags_validator(
            ["scheduler", name], lambda given: not all(given.values()), message
        )


# --- The program ---

QUICK_NOTICE = (
    "These runs took a few steps on few images, whatever the tables call them. They show that"
    " everything works, and nothing else.\n\n"
)


def main(argv):
    """Runs the program. Raises: Failed, or OSError, for `process.run` to say."""
    if len(argv) > 1:
        raise Failed(f"{argv[1]}: not a flag; see --help")
    check_flags()
    folders = records.Folders(folder_of("logdir"), folder_of("records"))
    command_line.go_to_root()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    known = runs.all_runs()
    chosen, left_out = for_this_processor(runs.runs_for(FLAGS.only))
    if not (FLAGS.draw or FLAGS.show):
        for sentence in left_out:
            print(sentence, flush=True)
    # Records elsewhere are not all: what they say goes beside them, and not into the pages.
    of_pages = not FLAGS.quick and folders.records.resolve() == (HERE / "records").resolve()
    out = PICTURES if of_pages else folders.records
    if FLAGS.quick:
        out = folders.runs / "quick"
        known = chosen = runs.quick(chosen)
        folders = records.Folders(out / "runs", out / "records")
    if FLAGS.seeds:
        chosen = [run for run in chosen if run.seed_index < FLAGS.seeds]
    records.check(known, folders)  # those of other studies as well: all are shown
    try:
        act(chosen, folders, out, of_pages)
    except filelock.Timeout:
        raise Failed(
            f"{folders.runs}: another process is using this folder. Wait for it, or choose another"
            " --logdir."
        ) from None
    except KeyboardInterrupt:
        again = "" if FLAGS.verify else " Run the same command to resume."
        sys.exit(f"\nStopped.{again}")


# Flag -> with which actions it has no effect; None is to make what is missing.
NO_EFFECT = {
    "jobs": ("draw", "show", "verify"),
    "seeds": ("draw", "show"),
    "only": ("draw",),
    "logdir": ("draw", "show"),
    "records_to_verify": ("draw", "show", None),
    "verify_images": ("draw", "show", None),
}


def check_flags():
    """Raises: Failed, a flag would have no effect."""
    action = next((name for name in ("draw", "show", "verify") if FLAGS[name].value), None)
    for name in NO_EFFECT:
        is_given = not FLAGS[name].using_default_value
        if name in ("only", "logdir") and FLAGS.quick:  # they say which records there may be
            continue
        if is_given and action in NO_EFFECT[name]:
            there = f"with --{action}" if action else "without --verify"
            raise Failed(f"--{name} has no effect {there}: leave it out.")
    if FLAGS.quick and not FLAGS["records"].using_default_value:
        raise Failed("--records has no effect with --quick: leave it out.")


def for_this_processor(chosen):
    """Leaves out the runs whose products this processor would multiply slowly.

    Returns: the others, and a sentence for each reason.
    """
    here, reasons = [], collections.Counter()
    for run in chosen:
        try:
            processor.check_precision(run.flags.get("precision", "float32"))
            here.append(run)
        except Failed as error:
            reasons[str(error)] += 1
    return here, [
        f"{count} runs are left out: {reason.partition('. ')[0]}."  # without its advice
        for reason, count in reasons.items()
    ]


def folder_of(flag):
    """The folder that a flag names. The default is below the project, so that the commands in
    records name no folder of this machine; the user's is below the folder that they are in."""
    given = FLAGS[flag].value
    if FLAGS[flag].using_default_value:
        return pathlib.Path(given)
    return pathlib.Path(os.path.abspath(os.path.expanduser(given)))


def act(chosen, folders, out, of_pages):
    """Does what the flags ask.

    Args:
      chosen: the runs that the flags choose.
      folders: `records.Folders`.
      out: the folder for pictures.
      of_pages: whether these are the records that the pages show.

    Raises:
      Failed, filelock.Timeout, OSError: it cannot.
    """
    check_what_is_shown()
    if FLAGS.draw and not folders.records.is_dir():
        raise Failed(f"{folders.records}: no such folder")
    found = read_all(folders.records, fewest_seeds=1)
    if FLAGS.show:
        texts = found.tables
        if not FLAGS["only"].using_default_value:
            asked = {
                name for study in FLAGS.only for name in (study, *runs.STUDIES[study].more_tables)
            }
            texts = {name: text for name, text in texts.items() if name in asked}
        return print(tables.as_text(texts) or f"{folders.records}: no records yet")
    if of_pages and not FLAGS.verify:
        for page in pages.PAGES:
            pages.text_of(page, found)  # before days of running, not after
    if not FLAGS.draw:
        for path in folders:  # before days of running, not after
            path.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folders.runs / "lock").acquire(timeout=0):
            if not FLAGS.scheduler:
                with process.quiet_import():
                    import tensorflow  # noqa: F401 (before threads start)
            if FLAGS.verify:
                return verify(chosen, folders, found.studies)
            make_all(chosen, folders)
    fewest_seeds = 1 if FLAGS.quick else groups.SEEDS_OF_A_PAGE
    found = read_all(folders.records, fewest_seeds)
    for path in draw_all(found, out):
        print(path)
    if of_pages:
        written = pages.write(found)
    else:
        notice, written = QUICK_NOTICE if FLAGS.quick else "", [out / "tables.md"]
        files.write(written[0], notice + tables.as_text(found.tables) + "\n")
    for page in written:
        print(page)
    for study, everything in records.read_all(folders.records).items():
        few = [group for group in everything if len(group.records) < fewest_seeds]
        names = ", ".join(runs.setting_of(study, g.condition, g.setting) for g in few)
        if few:
            print(f"{study}: not shown, as they have fewer than {fewest_seeds} seeds: {names}")


def check_what_is_shown():
    """Raises: Failed, an entry in `runs.STUDIES` shows what is not in TABLES or PICTURES."""
    for name, study in runs.STUDIES.items():
        of_tables, of_pictures = (study.table, *study.more_tables.values()), study.pictures.values()
        unknown = [kind for kind in of_tables if kind not in tables.TABLES]
        unknown += [kind for kind, *_ in of_pictures if kind not in pictures.PICTURES]
        if unknown:
            known = ", ".join([*tables.TABLES, *pictures.PICTURES])
            raise Failed(f"runs.py: {name} shows {unknown[0]!r}; choose one of {known}.")


def read_all(folder, fewest_seeds):
    """Reads the records of train.py's runs and of the replication's.

    Args:
      folder: path of the records.
      fewest_seeds: settings with fewer are left out.

    Returns:
      `pages.Found`.

    Raises:
      Failed: a record is damaged.
    """
    studies = groups.with_seeds(records.read_all(folder), fewest_seeds)
    replicated, made = replication.read(folder / "replication", fewest_seeds)
    texts = tables.all_tables(studies) | replication.all_tables(replicated, made, studies)
    return pages.Found(studies, replicated, texts)


def draw_all(found, out):
    """Draws every picture for which there are records. Returns: the paths."""
    return pictures.draw(found.studies, out) + replication.draw(found.replicated, out)


# --- Running ---


def make_all(chosen, folders):
    """Makes the records that are missing. Raises: Failed."""
    missing = [run for run in chosen if not folders.has_record(run)]
    records.check_numerics(missing, folders.records)
    needed = [run.source for run in missing if run.source]
    making.prune([run for run in chosen if run not in needed], folders)
    print(f"{len(chosen) - len(missing)} of {len(chosen)} runs have a record.", flush=True)
    bar = ProgressBar(
        total=sum(run.cost for run in missing),
        bar_format="{percentage:.0f}%|{bar}|{elapsed}, ETA {remaining} {postfix}",
        dynamic_ncols=True,
    )
    if FLAGS.scheduler:
        made = cluster.make(missing, folders, FLAGS.scheduler, FLAGS.quick)
    else:
        made = running.on_shares_of_the_cores(missing, folders, FLAGS.jobs)
    # Closed at once when something interrupts this loop: it then stops the other runs.
    with bar, contextlib.closing(made):
        for run in made:
            bar.set_postfix_str(f"{run.study}/{run.name}")
            bar.update(run.cost)


# --- Verifying ---


def verify(chosen, folders, studies):
    """Repeats some records.

    Args:
      chosen: runs to choose from; those without a record are left out.
      folders: `records.Folders`.
      studies: as `records.read_all` returns them.

    Raises:
      Failed: one does not come out as recorded.
    """
    recorded = [run for run in chosen if folders.has_record(run)]
    if FLAGS.verify_images:
        recorded = [run for run in recorded if run.cost <= FLAGS.verify_images]
    if not recorded:
        raise Failed("there is no record to verify: run reproduce.py without --verify first")
    head = files.git("rev-parse", "HEAD") or ""
    count = min(len(recorded), FLAGS.records_to_verify)
    failures = []
    for run in random.Random(head).sample(recorded, count):
        record = files.read_json(folders.record(run))
        tolerance = repetition.tolerance_of(run, studies)
        try:
            found = repetition.compare(
                record, repeat(run, record, folders.runs / "verify"), tolerance
            )
            print(f"{run.study}/{run.name}: {found}", flush=True)
        except Failed as error:
            failures.append(f"{run.study}/{run.name}: {error}")
    if failures:
        raise Failed("; ".join(failures))


def repeat(run, record, folder):
    """Makes a run again in this folder, on as many cores as recorded. Returns: the new record."""
    folders = records.Folders(folder, folder)

    shutil.rmtree(folder, ignore_errors=True)  # what an earlier version left, too
    with restricted_to(record.get("machine", {}).get("threads", 1)):
        again = making.make(run, folders, threading.Event())
    shutil.rmtree(folder)
    return again


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


if __name__ == "__main__":
    define_flags()
    process.run(main)
