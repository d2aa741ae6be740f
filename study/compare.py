"""Does sharing help on your labels? Trains every setting with every seed, and answers.

    python -m study.compare --data_dir=FOLDER --tasks=label,kind    # README: how to write the files
    python -m study.compare --data_dir=FOLDER --tasks=label,kind --seeds=10 --settings=none,channel
    python -m study.compare --setting="fast units: --cross_stitch_learning_rate_scale=1000"

Without --data_dir, it compares on Fashion-MNIST. Other flags of train.py, such as --num_epochs=10,
--train_examples=1000 or --holdout=500, go to all runs; those in which runs or settings differ are
refused. You can kill this program at any time: the same command resumes. A larger --seeds, or more
settings, runs only what is missing. The answer is README.md in the comparison's folder, and is
printed.
"""

import concurrent.futures
import contextlib
import math
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import warnings

import filelock
from absl import flags

import data
from harness import flag_rules, pools, process
from harness.errors import Failed, NotFinished
from study import answer, command_line, comparison, groups, making, records, running, watching
from study.runs import Run

FLAGS = flags.FLAGS

EPOCHS, BATCH_SIZE = 30, 128  # train.py's defaults
EVALUATIONS = 20  # of a run, about, unless --eval_every says otherwise


def define_flags():
    """Defines this program's flags."""
    flags.DEFINE_list(
        "settings",
        list(command_line.DEFAULT),
        f"What to compare, out of {', '.join(command_line.KINDS)}.",
    )
    flags.DEFINE_multi_string(
        "setting", [], f"One of your own, with flags of train.py: {command_line.EXAMPLE}"
    )
    flags.DEFINE_integer("seeds", groups.SEEDS_OF_A_PAGE, "Runs of each setting: seeds 0, 1, ...")
    flags.DEFINE_integer("jobs", None, "Runs at a time, which share the cores.", 1)
    flags.DEFINE_string("name", None, "Folder below logs/compare; by default it follows from data and flags.")  # fmt: skip
    flags.DEFINE_boolean("keep_runs", False, "Keep the runs' checkpoints.")


# --- The program ---


def main(argv):
    """Runs the program. Raises: Failed, or OSError, for `process.run` to say."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        compare(argv)
    except filelock.Timeout as error:
        raise Failed(
            f"{pathlib.Path(error.lock_file).parent}: another process is using this comparison."
            " Wait for it, or choose another --name."
        ) from None
    except KeyboardInterrupt:
        sys.exit("\nStopped. Run the same command to resume.")


def compare(argv):
    """Does what the command line asks. Raises: Failed, filelock.Timeout, OSError."""
    given = command_line.of_all_runs(argv[1:])
    settings = command_line.settings_of(FLAGS.settings, FLAGS.setting)
    check_own_flags()
    jobs = running.number_at_a_time(FLAGS.jobs)
    meant = command_line.go_to_root()
    given = paths_as_meant(given, meant)
    settings = {name: paths_as_meant(own, meant) for name, own in settings.items()}
    warned = set()
    with noting_warnings(warned):
        dataset = load(given)
    name = FLAGS.name or comparison.name_of(dataset, given)
    folder = pathlib.Path(meant("logs/compare")) / name
    chosen = runs_of(settings, given, dataset)
    folders = records.Folders(folder, folder)
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / "lock").acquire(timeout=0):
        now = comparison.parameters(dataset, settings, given)
        comparison.check(folder, now)
        missing = [run for run in chosen if not folders.has_record(run)]
        say_what_comes(folder, settings, chosen, missing, jobs)
        check_flags(missing, folders, jobs, warned)
        check_seeds(missing)
        comparison.write_parameters(folder, now)
        if missing:
            make_all(missing, dataset, folders, jobs)
            with warnings.catch_warnings(record=True):  # they were said before
                after = comparison.parameters(load(given), settings, given)
            comparison.check_data(missing, folders, now, after)
        study, diverged = groups_of(settings, chosen, folders)
        about = answer.About(
            shlex.join(["python", "-m", "study.compare", *sys.argv[1:]]),
            dataset.name,
            number_of(given, "holdout", 0) > 0,  # whether images are held out
            diverged,
            settings,
            *comparison.others_with_runs(folder, settings, FLAGS.seeds),
            comparison.answered_before(folder, FLAGS.seeds),
        )
        text = answer.write(study, about, folder)
        comparison.note_answer(folder, FLAGS.seeds)
    print(f"\n{text}\n\nThe page with its pictures: {folder / answer.PAGE}")


def say_what_comes(folder, settings, chosen, missing, jobs):
    """Says how many runs there are and will be, before the first begins."""
    seeds = f"seeds 0 to {FLAGS.seeds - 1}"
    process.say(f"{len(chosen)} runs: {', '.join(settings)}; {seeds}. Writing to {folder}")
    made = len(chosen) - len(missing)
    if missing:
        left = f"{made} are made, {len(missing)} are left. " if made else ""
        on_each = ", one on each core" if jobs > 1 and not FLAGS.jobs else ""
        process.say(f"{left}{jobs} at a time{on_each}.")


# --- Training ---


def make_all(missing, dataset, folders, jobs):
    """Makes the records that are missing, with one bar. Raises: Failed."""
    with process.quiet_import():
        import tensorflow  # noqa: F401 (before threads start; `making.checksum` uses it)
    made = running.on_shares_of_the_cores(missing, folders, jobs, FLAGS.keep_runs)
    costs = {folders.run(run): cost_of(run, dataset) for run in missing}
    with watching.Bar(costs, jobs) as bar, contextlib.closing(made):
        for run in made:
            bar.has_made(folders.run(run))


def cost_of(run, dataset):
    """Returns: a run's `watching.Cost`."""
    steps, batch_size = steps_of(run.flags, dataset)
    return watching.cost_of(run.flags, steps, batch_size, len(dataset.test.images))


def groups_of(settings, chosen, folders):
    """Reads the records of the runs.

    Returns: a list of `groups.Group`, the baseline first; setting -> seeds of runs that diverged.
    """
    found, diverged = [], {}
    for name in settings:
        paths = {run.seed: folders.record(run) for run in chosen if run.setting == name}
        read = {seed: records.read_record(path, "seed", "command") for seed, path in paths.items()}
        diverged[name] = [seed for seed, record in read.items() if "diverged" in record]
        ended = {seed: record for seed, record in read.items() if "diverged" not in record}
        found.append(groups.Group(0, name, ended, len(diverged[name])))
    return found, diverged


# --- The data and the runs ---


@contextlib.contextmanager
def noting_warnings(texts):
    """Repeats the warnings given within, and adds their texts, as `process.warnings_in`, to a set."""
    caught = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            yield
    finally:
        for warning in caught:
            warnings.warn(warning.message)
            texts.update(process.warnings_in(process.format_warning(warning.message)))


def paths_as_meant(given, meant):
    """Flags with the paths that the user meant in their folder. Args: name -> value; as
    `command_line.go_to_root` returns it."""
    paths = {name: meant(given[name]) for name in ("data_dir", "init_from") if given.get(name)}
    return given | paths


def load(given):
    """Reads the data of all runs, but for the choice of training images. Raises: Failed."""
    if given.get("data_dir") == "":
        raise Failed("--data_dir=: must name a folder")
    dataset = read_data(given)
    if dataset.name == "synthetic":
        raise Failed(
            "synthetic images differ from seed to seed, so there is nothing to compare on. Name a"
            " folder of images with --data_dir."
        )
    names = [task.name for task in dataset.tasks]
    if len(names) < 2:
        raise Failed(
            f"--tasks={names[0]}: one task has nothing to share with. Name two, such as"
            f" --tasks={names[0]},{'label' if names[0] == 'kind' else 'kind'}."
        )
    return dataset


def read_data(given, **chosen):
    """Calls `data.load`. Args: flags of train.py, name -> value; which images are chosen."""
    return data.load(
        given.get("dataset", "auto"),
        given.get("data_dir"),
        tasks=given["tasks"].split(",") if given.get("tasks") else None,
        holdout=number_of(given, "holdout", 0),
        **chosen,
    )


def runs_of(settings, given, dataset):
    """The runs: all settings of a seed before the next seed. Returns: a list."""
    made = []
    for name, own in settings.items():
        of_all = {"dataset": "auto", **given, **own}
        steps, _ = steps_of(of_all, dataset)
        made.append((name, {"eval_every": max(1, steps // EVALUATIONS), **of_all}))
    return [Run("runs", name, seed, of, None) for seed in range(FLAGS.seeds) for name, of in made]


def steps_of(given, dataset):
    """How many steps a run has, and how many images each, if train.py accepts its flags."""
    batch_size = number_of(given, "batch_size", BATCH_SIZE)
    of_epoch = -(-number_of(given, "train_examples", len(dataset.train.images)) // batch_size)
    with (
        contextlib.suppress(Failed, ValueError, OverflowError),  # train.py refuses these flags
        warnings.catch_warnings(record=True),  # train.py warns when it checks flags
    ):
        choice = choice_of(given)
        train = data.choose_images(dataset.train, choice["train_examples"], choice["starve"], 0)
        train = data.hide_labels(train, dataset.tasks, choice["label_only"], 0)
        of_tasks = pools.of_labels({task.name: task.labels(train) for task in dataset.tasks})
        dataset = dataset._replace(train=train, pools=of_tasks)
        of_epoch = dataset.steps_per_epoch(batch_size, float(given.get("balance", 0)))
    steps = number_of(given, "num_epochs", EPOCHS) * of_epoch
    return min(steps, number_of(given, "max_steps", steps)), batch_size


def number_of(given, name, default):
    """The value of a flag as an integer; the default where train.py refuses it or needs none."""
    value = command_line.number_in(given.get(name, ""))
    is_number = isinstance(value, float) and 1 <= value < math.inf
    return int(value) if is_number else default


def choice_of(given):
    """How a run's seed chooses images and labels. Returns: arguments of `data.load`.

    Args: flags of train.py, name -> value. Raises: Failed, --label_only is wrong.
    """
    return {
        "train_examples": number_of(given, "train_examples", 0),
        "starve": number_of(given, "starve", 1),
        "label_only": flag_rules.label_only({"label_only": given.get("label_only")}),
    }


# --- Checks, before hours of training ---


def check_own_flags():
    """Raises: Failed, one of this program's flags cannot be used."""
    if FLAGS.seeds < 2:
        raise Failed(
            f"--seeds={FLAGS.seeds}: with one seed, nobody can tell a gain from chance. Choose"
            f" {groups.SEEDS_OF_A_PAGE} or more."
        )
    if FLAGS.name is not None and not re.fullmatch(r"\w[\w.,=+-]*", FLAGS.name):
        raise Failed(f"--name={FLAGS.name}: must be a name of letters, digits and _ . , = + -")


def check_flags(missing, folders, jobs, known_warnings=()):
    """Lets train.py check flags and data of a run of each setting, and repeats its warnings.

    Args:
      missing: the runs. A setting whose first one has begun was checked before.
      folders: `records.Folders`.
      jobs: how many to check at a time.
      known_warnings: texts of those that are not repeated.

    Raises:
      Failed: train.py refuses one.
    """
    firsts = {}  # setting -> its first run
    for run in missing:
        firsts.setdefault(run.setting, run)
    not_begun = [run for run in firsts.values() if not folders.run(run).exists()]
    not_begun.sort(key=lambda run: run.setting != command_line.BASELINE)  # whose error is raised
    warned = {}  # text -> the settings with which train.py warns of it

    def check(run):
        command = [sys.executable, *folders.command(run)[1:], "--eval_only"]
        ended = subprocess.run(command, capture_output=True, text=True, errors="replace")
        # 0: a run that an earlier, killed comparison had begun has just ended.
        if ended.returncode not in (0, NotFinished.exit_code):
            flag = "settings" if run.setting in command_line.KINDS else "setting"
            # What train.py refuses of the baseline, it refuses of all settings.
            of_all = run.setting == command_line.BASELINE
            of_setting = "" if of_all else f"--{flag}={run.setting}: "
            raise Failed(of_setting + making.said(ended.stderr).removeprefix("train.py: "))
        for text in {*process.warnings_in(ended.stderr)} - {*known_warnings}:
            warned.setdefault(text, []).append(run.setting)

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        list(pool.map(check, not_begun))
    for text, settings in warned.items():
        warnings.warn(f"{', '.join(sorted(settings))}: {text}")


def check_seeds(missing):
    """Checks the images and labels that each seed chooses.

    Args: the runs, whose flags are checked. Raises: Failed, train.py would refuse one.
    """
    checked = []
    for run in missing:
        choice, batch_size = choice_of(run.flags), number_of(run.flags, "batch_size", BATCH_SIZE)
        of_seed = run.seed, choice, batch_size
        if of_seed in checked or not choice.keys() & run.flags.keys():
            continue
        checked.append(of_seed)
        try:
            with warnings.catch_warnings(record=True):  # the runs' logs have them
                dataset = read_data(run.flags, seed=run.seed, **choice)
            pools.for_batches(dataset.pools, batch_size)  # raises if a task fills none
        except Failed as error:
            raise Failed(f"{run.setting}, seed {run.seed}: {error}") from error


if __name__ == "__main__":
    define_flags()
    process.run(main, known_only=True)
