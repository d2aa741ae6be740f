"""Computes results.json from a run's evaluations, and the tables for the terminal."""

import importlib.metadata
import platform

import numpy as np
import tensorflow as tf_v2

from harness import unit_weights
from harness.names import LAST_EVALUATIONS, curve_of_class, sharing_of

# --- Measures of a confusion matrix, [classes, classes]: row = label, column = prediction ---


def accuracy(confusion):
    """Share of the images that is predicted correctly."""
    return np.trace(confusion) / confusion.sum()


def recalls(confusion):
    """Share of each class's images that is predicted correctly; None for a class without images."""
    return [
        round(row[index] / row.sum(), 6) if row.sum() else None
        for index, row in enumerate(confusion)
    ]


def f1_scores(confusion):
    """2 TP / (2 TP + FP + FN) of each class; None for one neither in the labels nor predicted."""
    found, counts = np.diag(confusion), confusion.sum(axis=0) + confusion.sum(axis=1)
    return [round(2 * f / n, 6) if n else None for f, n in zip(found, counts)]


MEASURES = {"recall": recalls, "f1": f1_scores}


def of_evaluation(tasks, accuracies, confusions):
    """What TensorBoard and evaluations.jsonl show of an evaluation.

    Args:
      tasks: the tasks, each with a name and classes.
      accuracies: name -> accuracy, of the tasks and of others.
      confusions: task -> confusion matrix.

    Returns:
      Name of a curve -> number.
    """
    values = {f"accuracy_test_{name}": accuracy for name, accuracy in accuracies.items()}
    values["accuracy_test"] = np.mean([accuracies[task.name] for task in tasks])
    for task in tasks:
        for measure, of in MEASURES.items():
            for index, value in enumerate(of(confusions[task.name])):
                if value is not None:
                    values[curve_of_class(task.name, index, task.classes[index], measure)] = value
    return values


# --- results.json ---


def of_run(curves, tasks, confusions):
    """What all evaluations of a run come to.

    Args:
      curves: name -> (steps, values), as `evaluation_log.curves` returns them.
      tasks: the tasks, each with a name and classes.
      confusions: task -> confusion matrix of the last evaluation.

    Returns:
      Entries of results.json.
    """
    accuracies = {name: accuracy(counts) for name, counts in confusions.items()}
    accuracies["mean"] = np.mean([*accuracies.values()])
    values = {name: of_curve for name, (_, of_curve) in curves.items()}
    tests = {  # without the file, what is known is the last evaluation
        name: values.get("accuracy_test" + (f"_{name}" if name != "mean" else ""), [float(of_task)])
        for name, of_task in accuracies.items()
    }

    def last_of_classes(measure):
        return {
            task.name: {
                name: last_mean(values.get(curve_of_class(task.name, index, name, measure)))
                for index, name in enumerate(task.classes)
            }
            for task in tasks
        }

    return {
        "loss_total": last_loss(curves),
        "accuracy_test": {name: of_task[-1] for name, of_task in tests.items()},
        "accuracy_test_last": {name: last_mean(of_task) for name, of_task in tests.items()},
        "recall": {t.name: dict(zip(t.classes, recalls(confusions[t.name]))) for t in tasks},
        **{f"{measure}_last": last_of_classes(measure) for measure in MEASURES},
        "confusion": {name: matrix.tolist() for name, matrix in confusions.items()},
    }


def last_loss(curves):
    """The total loss at the last evaluation; None if it is not known any more."""
    (steps, losses), (evaluated, _) = (
        curves.get(name, ([], [])) for name in ("loss_total", "accuracy_test")
    )
    return losses[-1] if steps and steps[-1:] == evaluated[-1:] else None


def last_mean(values):
    """The mean of a curve's last values; None without any: a class's recall needs test images
    of it, its F1 those or predictions."""
    return values and round(float(np.mean(values[-LAST_EVALUATIONS:])), 6)


def of_units(mean_weights, variables, num_towers):
    """What the units learned.

    Args:
      mean_weights: unit scope -> [T, T].
      variables: yields name in the graph, value, and start value of each unit's variables.
      num_towers: T.

    Returns:
      Entries of results.json. In two of them, a unit's alpha is under the unit's scope, another
      variable under scope and name, such as "cross_stitch_1/scales".
    """
    rounded = {
        s: np.round(weights.astype(float), 6).tolist() for s, weights in mean_weights.items()
    }
    histograms, distances = {}, {}
    for full_name, value, start in variables:
        name = full_name.removeprefix("network/").removesuffix("/alpha")
        histograms[name] = unit_weights.histogram(value)
        distances[name] = unit_weights.distance(value, start, num_towers)
    return {"cross_stitch": rounded, "weights": histograms, "distances": distances}


def versions():
    """The versions of what a result may depend on."""
    return {
        "python": platform.python_version(),
        "tensorflow": tf_v2.__version__,  # its distribution has several names
        "tf-slim": importlib.metadata.version("tf-slim"),
        "numpy": np.__version__,
    }


# --- Tables for the terminal ---


def table(results):
    """The results as text."""
    names = list(results["accuracy_test"])  # of the tasks, then "mean"
    width = max(map(len, names)) + 3
    minutes, seconds = divmod(round(results["wall_seconds"]), 60)
    speed = results["images_per_second"]
    sharing = sharing_of(results["flags"]).replace("_", " ")
    steps = f"{results['global_step']:,} steps"
    of_last_process = results["global_step"] - results.get("resumed_after", 0)
    if 0 < of_last_process < results["global_step"]:
        steps += f", the last {of_last_process:,} of them"
    evaluated = "held-out" if results["flags"].get("holdout") else "test"

    first = max(26, 17 + max(map(len, names)))  # the width of the first column

    def row(title, cells):
        return title.ljust(first) + "".join(str(cell).rjust(width) for cell in cells)

    def accuracy_row(title, accuracies):
        return row(title, [f"{accuracies[name]:.4f}" for name in names])

    lines = [
        f"{results['dataset']}, {sharing}, seed {results['seed']}:"
        f" {steps} in {minutes} min {seconds} s" + (f", {speed:,.0f} images/s" if speed else ""),
        "",
        row("", names),
        accuracy_row(f"{evaluated} accuracy", results["accuracy_test"]),
        accuracy_row(f"  last {LAST_EVALUATIONS} evaluations", results["accuracy_test_last"]),
    ]
    known = results.get("labels", {}).get("test", {})
    if len({*known.values(), results.get("images", {}).get("test")} - {None}) > 1:
        lines.append(row(f"{evaluated} images", [f"{known[name]:,}" for name in names[:-1]]))
    if results["cross_stitch"]:
        lines += ["", row("mean weights, to \\ from", names[:-1])]
    for scope, weights in results["cross_stitch"].items():
        for name, row_weights in zip(names, weights):
            title = f"{scope if name == names[0] else '':<17}{name}"
            lines.append(row(title, [f"{round(w, 3) + 0.0:.3f}" for w in row_weights]))
    return "\n".join(lines)


def confusion_table(task, confusion, images):
    """Recall of every class of a task and its confusion matrix, as text."""
    width = max(6, len(str(confusion.max())) + 2)
    first = max(map(len, (*task.classes, task.name))) + 5
    count = confusion.sum()
    of = "" if count == images else f" ({count:,} of {images:,} images have this label)"
    lines = [f"{task.name}: a row for each class, a column for each prediction{of}"]
    numbers = "".join(f"{i:>{width}}" for i in range(len(task.classes)))
    lines.append(" " * first + "  recall" + numbers)
    for index, (name, row, recall) in enumerate(zip(task.classes, confusion, recalls(confusion))):
        share = "-" if recall is None else f"{recall:.3f}"
        cells = "".join(f"{count:>{width}}" for count in row)
        lines.append(f"{index:>3} {name:<{first - 4}}{share:>8}{cells}")
    return "\n".join(lines)
