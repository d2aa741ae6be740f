"""Trains a cross-stitch network on Fashion-MNIST: two labels of one image, two towers.

    python train.py                                  # channel units, 30 epochs
    python train.py --cross_stitch=False             # the same towers, sharing nothing
    python train.py --num_epochs=2                   # a first look, a few minutes
    tensorboard --logdir=logs

Each run has a folder of its own below --logdir, with event files, checkpoints,
evaluations.jsonl and results.json. Run the same command again to resume a run that
stopped: it ends with the same bits. `python train.py --help` lists the flags.

The file reads from top to bottom: flags, the training loop, what a run writes and says, what a
command does, what the flags say. What makes a run fast and safe is in harness/.
"""

import contextlib
import dataclasses
import os
import pathlib
import shlex
import sys
import time
import typing
import warnings

from absl import flags

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # PYTHONSAFEPATH=1 leaves it out

from harness import files, flag_checks, flag_rules, process, processor, signals
from harness.errors import CannotWrite, Diverged, Failed, NotFinished, brief
from harness.names import ALIASES, NUMERICS, PLACES, RESULTS, sharing_of

with process.quiet_import(__name__ == "__main__"):
    import numpy as np
    import tensorflow.compat.v1 as tf

    import data
    import model
    from harness import checkpoints, evaluation_log, folder, machine, owner, predictions, results
    from harness.evaluation_log import EvaluationLog
    from harness.events import Events, without_tasks
    from harness.export import Export
    from harness.predictions import PredictionLog
    from harness.progress import Progress
    from harness.read_ahead import one_ahead

FLAGS = flags.FLAGS
process.forget_flags(__name__)  # of an earlier run in the same process, as in a notebook

# --- Flags ---

ONE_TOWER = PLACES[-1]  # tasks that share the layers up to here have no towers of their own


def define_hyper_parameters(*names):
    """Defines flags for fields of model.Config, with the defaults and help given there."""
    define = {bool: flags.DEFINE_boolean, float: flags.DEFINE_float, str: flags.DEFINE_string}
    for field in dataclasses.fields(model.Config):
        if field.name in names:
            is_choice = "enum_values" in field.metadata
            define_flag = flags.DEFINE_enum if is_choice else define[field.type]
            define_flag(field.name, field.default, **field.metadata)


# The network
flags.DEFINE_string(
    "tasks", "article,group", "Tasks, one tower each: from TASKS in data.py, or label files."
)
define_hyper_parameters("cross_stitch", "cross_stitch_unit", "cross_stitch_init")
define_hyper_parameters("cross_stitch_learning_rate_scale", "cross_stitch_own_only")
flags.DEFINE_string(
    "init_from", None, "Start with the towers of this finished run, trained without units."
)
define_hyper_parameters("cross_stitch_at", "share_until")
flags.DEFINE_boolean(
    "hard_sharing", False, f"The same as --share_until={ONE_TOWER}: one tower, no units."
)
define_hyper_parameters("keep_prob", "batch_norm_decay")

# Training
define_hyper_parameters("learning_rate", "l2_scale", "precision")
flags.DEFINE_integer("num_epochs", 30, "Passes over the training images.", lower_bound=1)
flags.DEFINE_integer("batch_size", 128, "Images per step.", lower_bound=2)
flags.DEFINE_integer("max_steps", 0, "Stop after this many steps; 0 for no limit.", lower_bound=0)
flags.DEFINE_integer(
    "train_examples", 0, "Train on this many images, balanced by label; 0 for all.", lower_bound=0
)
flags.DEFINE_string(
    "label_only", None, "Train on this many labels of a task, such as article:1000,group:500."
)
flags.DEFINE_float(
    "balance", 0.0, "0: all images equally often; 1: rare labels in as many steps as others."
)
flags.DEFINE_integer(
    "starve", 1, "R: the rarest article keeps 1/R of its images. 1 for all.", lower_bound=1
)
flags.DEFINE_integer(
    "holdout", 0, "Evaluate on this many training images, not on the test set.", lower_bound=0
)
flags.DEFINE_integer("threads", 0, "Cores to use; 0 for all. Results differ in rounding.", 0, 4096)
flags.DEFINE_enum("device", "cpu", ("cpu", "gpu"), "Where to train; a GPU trains the plain graph.")
flags.DEFINE_integer("eval_every", 100, "Steps between evaluations.", lower_bound=1)
flags.DEFINE_integer(
    "seed", 0, "Initial weights, choice and order of images, dropout.", 0, 2**32 - 1
)

# Files
flags.DEFINE_enum(
    "dataset",
    "auto",
    data.DATASETS,
    "auto: your folder's files; without one, Fashion-MNIST, or synthetic images offline.",
)
flags.DEFINE_string("data_dir", None, f"Data folder; by default {data.FOLDER_VARIABLE} or a cache.")
flags.DEFINE_string("logdir", "logs", "Folder below which each run has its own.")
flags.DEFINE_string("run_name", None, "The run's folder; by default it follows from the flags.")
flags.DEFINE_string("export_dir", None, "Folder for the trained network as a SavedModel.")
flags.DEFINE_boolean("eval_only", False, "Evaluate a finished run; train nothing.")
flags.DEFINE_boolean("overwrite", False, "Delete what an earlier run left in the folder.")
flags.DEFINE_float("save_checkpoint_secs", 300, "Seconds between checkpoints.")
flags.DEFINE_integer(
    "keep_checkpoints", 3, "How many to keep; 2 at least, in case one is damaged.", 2, 10**6
)

# The original's names
for alias, name in ALIASES.items():
    flags.DEFINE_alias(alias, name)

# --- The training loop ---


class Run(typing.NamedTuple):
    """What the flags ask for."""

    dataset: data.Dataset
    folder: pathlib.Path  # which may not be there yet
    settings: dict  # flags and data that determine the result, but for its length: name -> value
    last_step: int  # global step to train to
    session_config: tf.ConfigProto  # for every session


class Trained(typing.NamedTuple):
    """What `train` did."""

    resumed_after: int  # step of the checkpoint that it started from, or 0
    step: int  # global step reached
    stopped_by: int | None  # number of the signal that stopped it before its end
    images_per_second: float | None  # training speed, unknown after a single step
    confusions: dict | None  # of the last evaluation, as `evaluate` returns them
    correct: dict | None  # as `PredictionLog.finish` returns it
    units: dict | None  # as `results.of_units` returns it, of a run that reached its last step


def train(net, run, claim):
    """Trains up to the run's last step, from the newest checkpoint in its folder if there is one.

    Args:
      net: a `model.Model`.
      run, claim: a `Run`, and an `owner.Claim` to its folder.

    Returns:
      A `Trained`.

    Raises:
      Failed: the run cannot be resumed, has diverged, or cannot be saved.
    """
    dataset, last_step = run.dataset, run.last_step
    with net.graph.as_default(), signals.noted() as noted:
        start = checkpoints.find_start(
            claim,
            last_step=last_step,
            every=FLAGS.eval_every,
            keep=FLAGS.keep_checkpoints,
            initializer=net.initializer,
            tower_variables=net.tower_variables(),
            init_folder=(lambda: init_folder(run)) if FLAGS.init_from else None,
        )
        if start.step:
            process.say(f"Resuming after step {start.step:,}.")
        net.graph.finalize()
        # Step and seed decide which images come, and in `model.dropout` which mask: a resumed
        # run continues with the same ones.
        batches = one_ahead(
            lambda step: dataset.train_batch(step, FLAGS.batch_size, FLAGS.seed, FLAGS.balance),
            range(start.step, last_step),  # batch k trains step k + 1
        )
        with (
            EvaluationLog(run.folder, start.done, FLAGS.eval_every) as log,
            PredictionLog(run.folder, start.done, dataset) as predicted,
            Events(run.folder, net.graph, start.done, claim.check) as tensorboard,
            contextlib.closing(Progress(dataset.name, start.step, last_step, claim)) as progress,
            tf.Session(config=run.session_config) as session,
            contextlib.closing(batches),  # ends its thread
        ):
            start.set_variables(session)
            write_start(tensorboard, log, session, net, run, start.done)
            step, summary, confusions = start.step, start.summary, None
            saved_at = time.perf_counter()
            evaluated = True  # then what `evaluate` returns: None if a signal stopped it

            for step in range(max(start.done, 0) + 1, last_step + 1):
                evaluates = step % FLAGS.eval_every == 0 or step == last_step
                if step > start.step:  # or else only its evaluation is missing
                    started = time.perf_counter()
                    batch = next(batches)
                    loss, summary = train_step(session, net, step, batch, evaluates)
                    seconds = time.perf_counter() - started
                    progress.add_step(len(batch[0]), loss, seconds)
                if evaluates:
                    check_finite(session.run(net.finite), "weights", step)
                    evaluated = evaluate(session, net, dataset, noted)
                if evaluates and evaluated:
                    accuracies, confusions, classes = evaluated
                    measured = results.of_evaluation(dataset.tasks, accuracies, confusions)
                    speed = progress.add_evaluation({t: accuracies[t] for t in net.labels})
                    measured |= {"images_per_second": speed} if speed else {}
                    write_evaluation(tensorboard, log, session, net, step, summary, measured)
                    predicted.append(step, classes)
                    summary = None
                stopping = bool(noted)  # read once: a later signal waits for the next step
                is_old = time.perf_counter() - saved_at >= FLAGS.save_checkpoint_secs
                if step == last_step or stopping or is_old:
                    dataset.check_files()  # before weights of other images are saved
                    if not evaluates:
                        check_finite(session.run(net.finite), "weights", step)
                    # First: a resumed run does not write again what is before its checkpoint.
                    tensorboard.flush()
                    log.sync()
                    predicted.sync()
                    start.saver.save(session, step, summary)
                    saved_at = time.perf_counter()
                if stopping:
                    break

            correct = units = None
            if step == last_step and evaluated:
                if confusions is None:  # killed after the last checkpoint, before the results
                    _, confusions, _ = evaluate(session, net, dataset)
                mistakes = predictions.worst(predicted_by_image(session, net, dataset), net.labels)
                images = dataset.test.images
                tensorboard.add_results(dataset.tasks, images, confusions, mistakes, step)
                units = describe_units(session, net, run.session_config)
                labels = {task.name: task.labels(dataset.test) for task in dataset.tasks}
                claim.check()  # the file is replaced by its path
                correct = predicted.finish(evaluation_log.last_steps(run.folder), labels)
    stopped_by = noted[0] if noted and not units else None
    return Trained(start.step, step, stopped_by, progress.speed(), confusions, correct, units)


def train_step(session, net, step, batch, with_summary):
    """Trains on one batch; returns the loss of the weights before the step.

    Args:
      session: a session of the net's graph.
      net: a `model.Model`.
      step: the global step after this one.
      batch: images, and labels of the tasks to train, as `data.Dataset.train_batch` returns them.
      with_summary: whether to compute the batch's summary, too.

    Returns:
      The loss, and the serialised summary or None.

    Raises:
      Diverged: the loss is NaN or infinite.
    """
    # In a single run: a second one would update batch norm again, with other weights and
    # another dropout mask.
    fetches = {"train_op": net.train_op, "loss": net.loss}
    if with_summary:
        fetches["summary"] = net.summary_op
    values = session.run(fetches, feed(net, batch, training=True))
    check_finite(np.isfinite(values["loss"]), "loss", step)
    untrained, summary = net.labels.keys() - batch[1].keys(), values.get("summary")
    if summary and untrained:
        summary = without_tasks(summary, untrained)
    return values["loss"], summary


def feed(net, batch, training):
    """A batch, images and labels by task, as a feed_dict."""
    images, labels = batch
    unknown = np.full(len(images), data.UNKNOWN)  # of tasks that the batch does not train
    by_task = {net.labels[name]: labels.get(name, unknown) for name in net.labels}
    return {net.x: images, net.is_training: training, **by_task}


def evaluate(session, net, dataset, noted=()):
    """Predicts the whole test set, unless a noted signal stops it: then it returns None.

    Returns:
      task -> accuracy: the share of the images with a label that is predicted correctly. If a
      task's labels follow from the article, "<task>_by_article" is the accuracy of what the
      article's prediction implies.
      task -> confusion matrix, [classes, classes]: row = label, column = prediction.
      task -> the class that is predicted for each image, [N] int32.
    """
    confusions = {
        task: np.zeros([logits.shape[-1]] * 2, int) for task, logits in net.logits.items()
    }
    by_article = {}  # how many are predicted correctly
    classes = {task: [] for task in net.logits}
    for images, labels in dataset.test_batches():
        if noted:
            return None
        batch = feed(net, (images, labels), training=False)
        predicted = session.run(net.predictions, batch)
        implied = dataset.implied(predicted["article"]) if "article" in predicted else {}
        for task in labels:
            known = labels[task] >= 0  # a negative index would be one from the end
            np.add.at(confusions[task], (labels[task][known], predicted[task][known]), 1)
            classes[task].append(predicted[task])
            if task in implied:
                correct = int(np.sum(implied[task] == labels[task]))
                by_article[task] = by_article.get(task, 0) + correct
    accuracies = {task: results.accuracy(matrix) for task, matrix in confusions.items()}
    for task, correct in by_article.items():
        accuracies[f"{task}_by_article"] = correct / confusions[task].sum()
    return accuracies, confusions, {task: np.concatenate(of) for task, of in classes.items()}


def predicted_by_image(session, net, dataset):
    """Yields for each image of the test set: task -> its `predictions.Predicted`."""
    for images, labels in dataset.test_batches():
        logits = session.run(net.logits, feed(net, (images, labels), training=False))
        of_tasks = [predictions.of_batch(logits[task], labels[task]) for task in logits]
        for of_image in zip(*of_tasks):
            yield dict(zip(logits, of_image))


def check_finite(is_finite, what, step):
    """Raises: Diverged, the loss or the weights hold a NaN or an infinity. Such weights are never
    saved."""
    if not is_finite:
        raise Diverged(
            f"the {what} became NaN or infinite at step {step:,}, so training stopped there without"
            f" saving. {flag_rules.nearer_to_defaults(flag_values(), defaults())}"
        )


def describe_units(session, net, session_config):
    """What the units learned, as `results.of_units` returns it."""
    # A new session gives the start weights again, as units seed what they draw at random.
    with tf.Session(config=session_config) as other_session:
        variables = (
            (v.op.name, session.run(v), other_session.run(v.initial_value))
            for v in net.unit_variables
        )
        return results.of_units(session.run(net.mean_weights), variables, len(net.labels))


# --- What a run writes and says ---


def write_start(tensorboard, log, session, net, run, done):
    """Writes the run's flags; of a new run also the units' weights.

    Args:
      tensorboard: an `events.Events`.
      log: an `EvaluationLog`.
      session, net: as in `train_step`.
      run: a `Run`.
      done: the last step of which all is written; -1 for a new run.
    """
    values = {"sharing": sharing_of(flag_values()), **flag_values(), "dataset": run.dataset.name}
    compared = {n: value for n, value in values.items() if n not in flag_rules.CHANGEABLE}
    tasks = dict.fromkeys([*TASK_NAMES, *net.labels])
    tensorboard.add_flags(values, compared, tasks, run.folder.name, max(done, 0))
    if net.mean_weights and done < 0:
        log.append(0, tensorboard.add(session.run(net.unit_summary_op), 0))


def write_evaluation(tensorboard, log, session, net, step, summary_of_batch, measured):
    """Writes a step's losses, accuracies and units, for TensorBoard and evaluations.jsonl.

    Args:
      tensorboard, log, session, net, step: as in `write_start` and `train_step`.
      summary_of_batch: of the training batch, serialised; None if it is not known any more.
      measured: accuracies and measures of the test set, and training speed; name -> number.
    """
    values = tensorboard.add(summary_of_batch, step) if summary_of_batch else {}
    values |= tensorboard.add_scalars(measured, step)
    if net.mean_weights:
        units, mean_weights = session.run([net.unit_summary_op, net.mean_weights])
        values |= tensorboard.add(units, step)
        tensorboard.add_unit_picture(mean_weights, list(net.labels), step)
    log.append(step, values)
    tensorboard.flush()  # so that it is shown at once


def how_to_resume():
    """What to do, in the middle of a sentence."""
    without = " without --overwrite" if FLAGS.overwrite else ""  # which would start over
    return f"run the same command{without} to resume"


# --- What a command does ---


def main(argv):
    """Trains or resumes a run, evaluates it, exports it, as the flags ask."""
    program_started = time.perf_counter()
    if len(argv) > 1:
        raise Failed(
            f"{argv[1]}: not a flag. Write every flag as --name=value, for example"
            " --cross_stitch=False."
        )
    try:
        with signals.interrupts_end_it():
            run_command(program_started)
    except CannotWrite as error:
        raise Failed(f"{error} Once it can, {how_to_resume()} from the last checkpoint.") from error
    except (MemoryError, tf.errors.ResourceExhaustedError) as error:
        raise Failed(
            "there is not enough memory. Close other programs, or try a smaller --batch_size."
            f" What was saved before is unharmed: {how_to_resume()}."
        ) from error
    except tf.errors.OpError as error:
        raise Failed(
            f"{brief(error.message)}. What was saved before is unharmed: {how_to_resume()}."
        ) from error


def run_command(program_started):
    """Does what the flags ask. Args: when the program started, in seconds."""
    run = run_from_flags()
    outcome = None if FLAGS.overwrite else folder.results_of_finished(run.folder)
    if outcome and (FLAGS.eval_only or outcome["global_step"] == run.last_step):
        use_finished(run, outcome)
        return
    processor.check_precision(FLAGS.precision)
    flag_checks.warn_of_single_image(flag_values(), run.dataset)
    if FLAGS.eval_only:
        if FLAGS.init_from:
            init_folder(run)  # reports a mistyped folder before the run is trained
        raise NotFinished(f"{run.folder}: not a finished run. Train it first, without --eval_only.")
    with owner.claimed(run.folder) as claim:
        export = prepared_export(run)
        net = build(run.dataset, config_from_flags())
        check_folder(run, net)
        folder.begin(claim, run.settings, FLAGS.overwrite)
        process.say(f"Writing to {run.folder}")
        process.say(f"Watch it: tensorboard --logdir={shlex.quote(FLAGS.logdir)}")
        outcome = train_and_report(net, run, claim, program_started)
        # The results are in the folder, so a failed print is ignored.
        export_and_show(run, export, outcome, process.say)


def use_finished(run, outcome):
    """Exports, shows and evaluates a finished run, as the flags ask.

    Args: a `Run`, whose folder may be on a disk that cannot be written; its results.
    """
    step = outcome["global_step"]
    export = prepared_export(run, step)
    check_folder(run, None)
    advice = "" if FLAGS.eval_only else " Choose another --run_name for a new one."
    if step != run.last_step and given_flags() & flag_rules.LENGTH_OF_RUN:
        advice = f" It has {step:,} steps, not {run.last_step:,}."
    print(f"{run.folder}: this run is finished.{advice}")
    export_and_show(run, export, outcome, print)


def prepared_export(run, finished_step=None):
    """The `Export` that is to be written; None without --export_dir, or if that folder holds the
    network of the finished run already.

    Args: a `Run`, and the step of one that is finished. Raises: as `Export.prepare`.
    """
    if not FLAGS.export_dir:
        return None
    export = Export(FLAGS.export_dir, run.settings, defaults(), run.folder)
    if finished_step is not None and export.holds(finished_step):
        return None
    export.prepare()
    return export


def export_and_show(run, export, outcome, say):
    """Exports a run's network and prints its results; evaluates it with --eval_only.

    Args: a `Run`; as `prepared_export` returns it; the run's results; the function that prints.
    """
    try:
        if export:  # before they are printed, as nobody may be there to read them
            tasks = [(task.name, task.classes) for task in run.dataset.tasks]
            config = config_from_flags(precision="float32")  # for any machine
            server = model.build_server(tasks, config, run.dataset.image_shape())
            export.write(server, run.session_config)
    finally:
        say("\n" + results.table(outcome))
    if FLAGS.eval_only:
        say("\n" + evaluation_text(run))
    if FLAGS.export_dir:
        say(f"\n{FLAGS.export_dir}: holds this run's network.")


def train_and_report(net, run, claim, program_started):
    """Trains a run to its end, or exits if a signal stops it. Returns: its results."""
    commit = files.commit()  # now: the user may commit while the run trains
    trained = train(net, run, claim)
    if trained.stopped_by:
        stopped = f"Stopped after step {trained.step:,} of {run.last_step:,} and saved."
        exit_code = 128 + trained.stopped_by  # as shells report a process that a signal ended
        process.end(sys.argv, f"{stopped} {how_to_resume().capitalize()}.", exit_code)
    ranks = dict(zip(data.ARTICLES, data.ranks_of_articles(FLAGS.seed)))
    speed = trained.images_per_second
    content = {
        "dataset": run.dataset.name,
        "seed": FLAGS.seed,
        "flags": flag_values(),
        "versions": results.versions(),
        "numerics": NUMERICS,
        "network": net.checksum(),
        "machine": machine.description(FLAGS.threads, FLAGS.precision),
        "device": machine.device_name(FLAGS.device),
        "global_step": trained.step,
        # From the file, which has the evaluations before a resume, too.
        **results.of_run(evaluation_log.curves(run.folder), run.dataset.tasks, trained.confusions),
        "correct_last": trained.correct,
        **trained.units,
        "train_images": run.dataset.images_by_class(),
        "images": {which: len(split.images) for which, split in run.dataset.splits().items()},
        "labels": {
            which: run.dataset.number_of_labels(split)
            for which, split in run.dataset.splits().items()
        },
        "ranks": ranks if FLAGS.starve > 1 else None,  # of articles, 0 for the commonest
        # Of the last process, which resumed after this step.
        "resumed_after": trained.resumed_after,
        "commit": commit,
        "images_per_second": speed and round(speed, 1),
        "wall_seconds": round(time.perf_counter() - program_started, 1),
    }
    claim.write_json(RESULTS, content)
    return content


def evaluation_text(run):
    """Evaluates a finished run's network, and writes what it predicts for each image into the
    run's folder. Returns: accuracies and confusion matrices as text."""
    net = build(run.dataset, config_from_flags(precision="float32"))  # on any machine
    with checkpoints.restored(net.graph, run.folder, run.session_config) as (session, _):
        accuracies, confusions, _ = evaluate(session, net, run.dataset)
        table = predictions.table(
            predicted_by_image(session, net, run.dataset), run.dataset.tasks, run.dataset.rows
        )
    shown = ", ".join(f"{name} {accuracy:.4f}" for name, accuracy in accuracies.items())
    count = len(run.dataset.test.images)
    tables = [results.confusion_table(t, confusions[t.name], count) for t in run.dataset.tasks]
    said = [f"Evaluated: {shown}", *tables]
    path = run.folder / predictions.TABLE
    try:
        files.write(path, table)
        said.append(f"{path}: holds label and prediction of each image.")
    except OSError as error:  # a finished run may be on a disk that cannot be written
        warnings.warn(f"{path}: cannot be written ({error.strerror or error}).")
    return "\n\n".join(said)


def run_from_flags():
    """Reads the data and decides what to do with it, as the flags ask.

    Returns: a `Run`. Raises: Failed, the data cannot be used, or the flags do not fit them.
    """
    # --cross_stitch=False is what a network without units has: nothing is ignored then.
    given = given_flags() if FLAGS.cross_stitch else given_flags() - {"cross_stitch"}
    for name, value in flag_rules.unified(flag_values()).items():
        FLAGS[name].value = value  # one for flags that mean the same network
    tasks = FLAGS.tasks.split(",") if "tasks" in given else None
    dataset = data.load(
        FLAGS.dataset,
        FLAGS.data_dir,
        FLAGS.seed,
        tasks,
        train_examples=FLAGS.train_examples,
        holdout=FLAGS.holdout,
        starve=FLAGS.starve,
        label_only=flag_rules.label_only(flag_values()),
    )
    FLAGS.tasks = ",".join(task.name for task in dataset.tasks)  # without the flag, of the data
    flag_rules.warn_of_ignored(flag_values(), given)
    flag_checks.check_with_data(flag_values(), given, dataset)
    steps = FLAGS.num_epochs * dataset.steps_per_epoch(FLAGS.batch_size, FLAGS.balance)
    sharing, shaping = sharing_of(flag_values()), flag_rules.shaping(flag_values())
    name = folder.run_name(FLAGS.run_name, dataset.name, sharing, shaping, defaults())
    path = folder.expanded(FLAGS.logdir) / name
    folder.check_path(path)
    settings = {n: value for n, value in shaping.items() if n not in flag_rules.LENGTH_OF_RUN}
    return Run(
        dataset,
        path,
        settings | dataset.identity(),
        min(steps, FLAGS.max_steps or steps),
        machine.session_settings(FLAGS.device, FLAGS.threads, len(dataset.tasks), sharing),
    )


def build(dataset, config):
    """Builds the graph for the data. Returns: a `model.Model`."""
    return model.build(
        [(task.name, len(task.classes)) for task in dataset.tasks],
        config,
        statistics=(dataset.mean, dataset.scale),
        # The fast forms are for CPUs: some are compiled, which a GPU needs more packages for.
        fast=FLAGS.device == "cpu",
        image_shape=dataset.image_shape(),
        some_unknown=dataset.has_unknown_labels(),
    )


def check_folder(run, net):
    """Refuses what other flags or data started, before a file of the run is deleted or written.

    Args:
      run: a `Run`.
      net: the `model.Model` to train; None if the run is only evaluated or exported.

    Raises:
      Failed: that, --init_from cannot be used, or there is not enough memory to train.
    """
    if net:
        is_dense = sharing_of(flag_values()) == "dense"
        advice = "another --cross_stitch_unit" if is_dense else "smaller images"
        machine.check_memory(net.num_weights(), advice)
        if FLAGS.init_from and (FLAGS.overwrite or not folder.files_of_run(run.folder)):
            checkpoints.newest_of_other(init_folder(run), net.tower_variables())
        if not FLAGS.overwrite:
            folder.check_numerics(run.folder)
    if not FLAGS.overwrite:
        may_differ = set() if net else {"device"}  # a finished run is evaluated on any
        folder.check_settings(run.folder, run.settings, defaults(), may_differ)


def init_folder(run):
    """The folder --init_from, checked. Raises: Failed, no run can start from it."""
    return folder.init_folder(run.folder, run.settings, defaults())


# --- What the flags say ---

TASK_NAMES = sorted(task.name for task in data.TASKS)


def flag_values():
    """This program's flags without the aliases: name -> value."""
    own = FLAGS.get_flags_for_module(sys.modules[__name__])
    return {flag.name: flag.value for flag in own if flag.name not in ALIASES}


def defaults():
    """This program's flags without the aliases: name -> default."""
    return {name: FLAGS[name].default for name in flag_values()}


def given_flags():
    """The names of the flags on the command line."""
    return {name for name in flag_values() if FLAGS[name].present}


def config_from_flags(**others):
    """Returns: the `model.Config` that the flags ask for, but for the other values given."""
    values = {f.name: FLAGS[f.name].value for f in dataclasses.fields(model.Config)}
    values |= {"share_until": ONE_TOWER} if FLAGS.hard_sharing else {}
    return model.Config(**values | others)


def check_flags():
    """Checks what absl does not. Raises: Failed."""
    flag_checks.check(flag_values(), given_flags(), TASK_NAMES)


if __name__ == "__main__":
    process.run(main, check_flags)
