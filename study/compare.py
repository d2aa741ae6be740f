"""Does sharing help on your labels? Trains every setting with every seed, and answers.

    python -m study.compare --data_dir=FOLDER --tasks=label,kind    # README: how to write the files
    python -m study.compare --data_dir=FOLDER --tasks=label,kind --seeds=10 --settings=none,channel
    python -m study.compare --setting="fast units: --cross_stitch_learning_rate_scale=1000"

Without --data_dir, it compares on Fashion-MNIST. All flags of train.py that are not listed below
go to all runs, such as --num_epochs=10, --train_examples=1000 or --holdout=500. You can kill this
program at any time: the same command resumes. A larger --seeds, or more settings, runs only what
is missing. The answer is README.md in the comparison's folder, and is printed.
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
from harness import files, flag_rules, pools, process
from harness.errors import Failed, NotFinished
from harness.names import NUMERICS
from study import answer, command_line, groups, making, records, running, watching
from study.runs import Run
from study.runs import name_of as name_of_run

FLAGS = flags.FLAGS

PARAMETERS = "comparison.json"  # what a folder compares

# That change no result, so a comparison goes on with others.
CHANGEABLE = {"data_dir", "dataset", "threads", "save_checkpoint_secs", "keep_checkpoints"}
# With which a run's seed chooses images or labels.
CHOOSING = {"train_examples", "starve", "label_only"}
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
    if FLAGS.seeds < 2:
        raise Failed(
            f"--seeds={FLAGS.seeds}: with one seed, nobody can tell a gain from chance. Choose"
            f" {groups.SEEDS_OF_A_PAGE} or more."
        )
    if FLAGS.name is not None and not re.fullmatch(r"\w[\w.,=+-]*", FLAGS.name):
        raise Failed(f"--name={FLAGS.name}: must be a name of letters, digits and _ . , = + -")
    jobs = running.number_at_a_time(FLAGS.jobs)
    meant = command_line.go_to_root()
    given = paths_as_meant(given, meant)
    settings = {name: paths_as_meant(own, meant) for name, own in settings.items()}
    warned = set()
    with noting_warnings(warned):
        dataset = load(given)
    folder = pathlib.Path(meant("logs/compare")) / (FLAGS.name or name_of(dataset, given))
    chosen = runs_of(settings, given, dataset)
    folders = records.Folders(folder, folder)
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / "lock").acquire(timeout=0):
        now = parameters(dataset, settings, given)
        check_folder(folder, now)
        missing = [run for run in chosen if not folders.has_record(run)]
        say_what_comes(folder, settings, chosen, missing, jobs)
        # The first of each setting, as the first of a list that is read backwards stays.
        firsts = {run.setting: run for run in reversed(missing)}.values()
        check_flags(firsts, folders, jobs, warned)
        check_seeds(missing)
        write_parameters(folder, now)
        if missing:
            make_all(missing, dataset, folders, jobs)
            with warnings.catch_warnings(record=True):  # they were said before
                after = parameters(load(given), settings, given)
            check_data(missing, folders, now, after)
        study, diverged = groups_of(settings, chosen, folders)
        about = answer.About(
            shlex.join(["python", "-m", "study.compare", *sys.argv[1:]]),
            dataset.name,
            is_held_out(given),
            diverged,
            settings,
            *others_with_runs(folder, settings),
            answered_before(folder),
        )
        text = answer.write(study, about, folder)
        note_answer(folder)
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


@contextlib.contextmanager
def noting_warnings(texts):
    """Repeats the warnings given within, and adds their texts to a set."""
    caught = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            yield
    finally:
        for warning in caught:
            warnings.warn(warning.message)
            texts.add(str(warning.message))


def paths_as_meant(given, meant):
    """Flags with the paths that the user meant in their folder. Args: name -> value; as
    `command_line.go_to_root` returns it."""
    paths = {name: meant(given[name]) for name in ("data_dir", "init_from") if given.get(name)}
    return given | paths


# --- What is compared ---


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
    holdout = given.get("holdout", "0")
    return data.load(
        given.get("dataset", "auto"),
        given.get("data_dir"),
        tasks=given["tasks"].split(",") if given.get("tasks") else None,
        holdout=int(holdout) if holdout.isdecimal() else 0,  # train.py refuses others
        **chosen,
    )


def is_held_out(given):
    return command_line.number_in(given.get("holdout", "0")) != 0


def name_of(dataset, given):
    """The name of a comparison's folder, for example mine-custom-tasks=label,kind."""
    others = {name: value for name, value in given.items() if name not in CHANGEABLE}
    if "init_from" in others:
        others["init_from"] = pathlib.Path(others["init_from"]).name
    for name, value in others.items():  # 1e-3 and 0.001 are one comparison
        number = command_line.number_in(value)
        others[name] = f"{number:.15g}" if isinstance(number, float) else value
    words = [dataset.name, *(f"{name}={others[name]}" for name in sorted(others))]
    return re.sub(r"[^\w.,=+-]", "_", "-".join(words))


def parameters(dataset, settings, given):
    """What a folder's records have in common; the content of comparison.json."""
    return {
        "dataset": dataset.name,
        "data": f"{dataset.fingerprint()} {dataset.fingerprint_of_classes()}",
        "flags": {name: value for name, value in given.items() if name not in CHANGEABLE},
        "numerics": NUMERICS,
        "settings": settings,
    }


def check_folder(folder, now):
    """Raises: Failed, the folder holds another comparison. Args: now, the `parameters`."""
    before = files.read_json(folder / PARAMETERS)
    another = "Choose another --name."
    if not before:
        # A start that was killed may leave the latter.
        of_this_program = {"lock", pathlib.Path(PARAMETERS).stem + ".part"}
        if any(path.name not in of_this_program for path in folder.iterdir()):
            raise Failed(f"{folder}: holds no comparison of this program. {another}")
        return
    if not command_line.are_alike(before["flags"], now["flags"]):
        was, asked = (
            shlex.join(command_line.words_of(of["flags"])) or "no flags" for of in (before, now)
        )
        raise Failed(f"{folder}: was started with {was}, not {asked}. {another}")
    if before["dataset"] != now["dataset"]:
        raise Failed(
            f"{folder}: was started with data called {before['dataset']}, which are called"
            f" {now['dataset']} now. {another}"
        )
    if before["data"] != now["data"]:
        raise Failed(f"{folder}: images, labels or classes have changed since it began. {another}")
    if before["numerics"] != now["numerics"]:
        raise Failed(
            f"{folder}: another version of the program made its runs (numerics"
            f" {before['numerics']}, now {now['numerics']}). {another}"
        )
    alike = {name.casefold(): name for name in before["settings"]}
    for name in now["settings"].keys() - before["settings"].keys():
        other = alike.get(name.casefold())
        if other:  # some systems take files of such names for one
            raise Failed(f"{folder}: has a setting {other!r}. Choose another name than {name!r}.")
    for name in before["settings"].keys() & now["settings"].keys():
        begun = (folder / "runs").glob(name_of_run(name, "*"))
        if all(path.suffix == ".log" for path in begun):  # train.py refused to begin
            continue
        was, asked = (of["settings"][name] for of in (before, now))
        if not command_line.are_alike(was, asked):
            was, asked = (" ".join(command_line.words_of(flags_)) for flags_ in (was, asked))
            raise Failed(
                f"{folder}: its setting {name!r} is {was}, not {asked}. Choose another name."
            )


def write_parameters(folder, now):
    """Adds what is compared now to what the folder holds."""
    before = files.read_json(folder / PARAMETERS)
    settings = before.get("settings", {}) | now["settings"]
    files.write_json(folder / PARAMETERS, before | now | {"settings": settings})


def check_data(made, folders, before, now):
    """Checks that the data are those that the runs began with; if not, deletes their records.

    Args: the runs; `records.Folders`; the `parameters` of before, and of now. Raises: Failed.
    """
    if (before["dataset"], before["data"]) == (now["dataset"], now["data"]):
        return
    for run in made:  # nobody knows which of them have seen the others
        folders.record(run).unlink()
    raise Failed(
        f"{folders.runs}: images, labels or classes have changed while the runs trained, so that"
        f" {len(made)} runs are not used. Choose another --name; or restore the data, and run the"
        " same command."
    )


def others_with_runs(folder, settings):
    """Runs in this folder that the command leaves out.

    Returns: the other settings that have any; the seeds of these settings that are not asked for.
    """
    known, seeds = files.read_json(folder / PARAMETERS)["settings"], {}
    for name in known:
        paths = folder.glob(f"runs/{name_of_run(name, '*')}.json")
        seeds[name] = {int(path.stem.rpartition("-seed")[2]) for path in paths}
    others = tuple(name for name in known if name not in settings and seeds[name])
    of_these = set().union(*(seeds[name] for name in settings))
    return others, tuple(sorted(seed for seed in of_these if seed >= FLAGS.seeds))


def answered_before(folder):
    """The smaller numbers of seeds with which this folder's comparison was answered before."""
    answered = files.read_json(folder / PARAMETERS).get("answered", ())
    return tuple(seeds for seeds in answered if seeds < FLAGS.seeds)


def note_answer(folder):
    """Notes with how many seeds the comparison is answered."""
    state = files.read_json(folder / PARAMETERS)
    answered = sorted({*state.get("answered", ()), FLAGS.seeds})
    files.write_json(folder / PARAMETERS, state | {"answered": answered})


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
        chosen = choice_of(given)
        label_only = chosen.pop("label_only")
        train = data.choose_images(dataset.train, **chosen, seed=0)
        train = data.hide_labels(train, dataset.tasks, label_only, 0)
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


# --- Running ---


def check_flags(firsts, folders, jobs, known_warnings=()):
    """Lets train.py check flags and data of a run of each setting, before hours of training, and
    repeats its warnings.

    Args:
      firsts: the runs; those that have begun were checked before.
      folders: `records.Folders`.
      jobs: how many to check at a time.
      known_warnings: texts of those that are not repeated.

    Raises:
      Failed: train.py refuses one.
    """
    warned = {}  # text -> the settings with which train.py warns of it
    firsts = [run for run in firsts if not folders.run(run).exists()]

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
        list(pool.map(check, firsts))
    for text, settings in warned.items():
        warnings.warn(f"{', '.join(sorted(settings))}: {text}")


def check_seeds(missing):
    """Checks the images and labels that each seed chooses, before hours of training.

    Args: the runs, whose flags are checked. Raises: Failed, train.py would refuse one.
    """
    checked = []
    for run in missing:
        batch_size = number_of(run.flags, "batch_size", BATCH_SIZE)
        chosen = run.seed, choice_of(run.flags), batch_size
        if chosen in checked or not CHOOSING & run.flags.keys():
            continue
        checked.append(chosen)
        try:
            with warnings.catch_warnings(record=True):  # the runs' logs have them
                dataset = read_data(run.flags, seed=run.seed, **choice_of(run.flags))
            if batch_size > len(dataset.train.images):
                count = f"{len(dataset.train.images):,}"
                raise Failed(f"batch_size={batch_size}: there are only {count} training images")
            dataset.unused_labels(batch_size)
        except Failed as error:
            raise Failed(f"{run.setting}, seed {run.seed}: {error}") from error


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


if __name__ == "__main__":
    define_flags()
    process.run(main, known_only=True)
