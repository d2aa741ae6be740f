"""Draws the README's curves from the event files of one run or of many.

    python img/plot.py LOGDIR            # writes img/acc_test.png and img/total_loss.png
    python img/plot.py LOGDIR --out=DIR

As on TensorBoard's scalar page: the smoothed curve over the faint raw one,
orange without cross-stitch units, blue with.
"""

import logging
import pathlib
import re
import sys
import types

import matplotlib
import numpy as np
from absl import app, flags

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

# Tells TensorBoard to read event files without TensorFlow, in a tenth of the time.
sys.modules["tensorboard.compat.notf"] = types.ModuleType("notf")
from tensorboard.backend.event_processing import event_accumulator  # noqa: E402

# File, tag, label, corner for the legend, percent of the points beyond either end of the axis.
PICTURES = (
    ("acc_test.png", "summary/accuracy_test", "test accuracy (mean)", "lower right", (4, 0)),
    ("total_loss.png", "summary/loss_total", "total loss, training batch", "upper right", (0, 4)),
)
COLOURS = {"False": plt.cm.Oranges, "True": plt.cm.Blues}


def read_run(folder):
    """Returns: the run's flags, and tag -> ([n] steps, [n] values)."""
    events = event_accumulator.EventAccumulator(
        str(folder), {event_accumulator.SCALARS: 0, event_accumulator.TENSORS: 0}
    ).Reload()
    tags = events.Tags()
    if "run/text_summary" not in tags[event_accumulator.TENSORS]:
        return None, {}
    text = events.Tensors("run/text_summary")[0].tensor_proto.string_val[0].decode()
    curves = {}
    for tag in tags[event_accumulator.SCALARS]:
        # A resumed run may have made some steps again: their last value counts.
        points = {event.step: event.value for event in events.Scalars(tag)}
        curves[tag] = np.array(list(points)), np.array(list(points.values()))
    return dict(re.findall(r"\*\*(\w+)\*\* (.*)", text)), curves


def smooth(values, weight):
    """TensorBoard's exponential moving average, free of its start at 0."""
    average, smoothed = 0.0, []
    for count, value in enumerate(values, 1):
        average = weight * average + (1 - weight) * value
        smoothed.append(average / (1 - weight**count))
    return np.array(smoothed)


def draw(runs, tag, label, corner, beyond, path, smoothing):
    """One picture: `tag` of every run against the step."""
    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=120)
    seen, everything = {}, []
    for name, (settings, curves) in runs.items():
        steps, values = curves[tag]
        stitched = settings["cross_stitch"]
        seen[stitched] = seen.get(stitched, 0) + 1
        colour = COLOURS[stitched](0.7 if seen[stitched] == 1 else 0.4 + 0.5 / seen[stitched])
        smoothed = smooth(values, smoothing)
        axes.plot(steps, values, color=colour, alpha=0.25, linewidth=1)
        axes.plot(
            steps,
            smoothed,
            color=colour,
            linewidth=1.8,
            label=f"{'with' if stitched == 'True' else 'without'}: {name}",
        )
        everything.append(values)
    # The first evaluations lie far off and would flatten all the rest.
    low, high = (np.percentile(np.concatenate(everything), q) for q in (beyond[0], 100 - beyond[1]))
    margin = 0.05 * (high - low) or 0.01
    axes.set_ylim(low - margin, high + margin)
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc=corner, fontsize=9)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def main(argv):
    if len(argv) != 2:
        sys.exit("plot.py: say one folder with runs, for example: python img/plot.py logs")
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    logdir, out = pathlib.Path(argv[1]), pathlib.Path(flags.FLAGS.out)
    runs = {}
    for folder in sorted({path.parent for path in logdir.rglob("events.out.tfevents.*")}):
        settings, curves = read_run(folder)
        if settings and all(tag in curves for _, tag, *_ in PICTURES):
            name = folder.resolve().name if folder == logdir else str(folder.relative_to(logdir))
            runs[name] = settings, curves
    if not runs:
        sys.exit(f"plot.py: {logdir}: no run of train.py with an evaluation below this folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        for file, tag, label, corner, beyond in PICTURES:
            draw(runs, tag, label, corner, beyond, out / file, flags.FLAGS.smoothing)
            print(out / file)
    except OSError as error:
        sys.exit(f"plot.py: {error.filename or out}: {error.strerror}")


if __name__ == "__main__":  # report.py imports this, whose flags are others
    flags.DEFINE_string("out", str(pathlib.Path(__file__).parent), "Folder for the pictures.")
    flags.DEFINE_float("smoothing", 0.6, "TensorBoard's smoothing weight.", 0, 0.999)
    app.run(main)
