"""Draws accuracy and loss over training from the evaluations of your own runs.

    python -m study.plot LOGDIR            # writes LOGDIR/acc_test.png and LOGDIR/total_loss.png
    python -m study.plot LOGDIR --out=DIR

As on TensorBoard's scalar page: the smoothed curve over the faint raw one,
orange without cross-stitch units, blue with them.
"""

import hashlib
import io
import os
import pathlib
import warnings

import numpy as np
from absl import flags

from harness import evaluation_log, files, matrices, names, process
from harness.errors import Failed
from harness.matrices import figure, matplotlib

# File, name of the scalar, label of the axis, corner of the legend, and the percentage of points that
# may lie below and above the axis: the first evaluations are far off, and would flatten
# the rest of the curve.
PICTURES = (
    ("acc_test.png", "accuracy_test", "test accuracy, mean of the tasks", "lower right", (4, 0)),
    ("total_loss.png", "loss_total", "total loss of a training batch", "upper right", (0, 4)),
)
PANEL = {"figsize": (8, 4.5), "dpi": 120, "layout": "constrained"}
COLOUR_MAPS = {False: "Oranges", True: "Blues"}  # without units, with units
MOST = 12  # runs in a picture: nobody can tell more curves apart
STYLES = ("-", "--", "-.", ":")  # of curves with neighbouring shades
LONGEST = 105  # characters of a name that fit into a picture


def folders_of_runs(logdir, onerror=None):
    """Finds folders with a run's files as TensorBoard does, through links, but into no loop.
    Args: onerror, a function of the OSError of a folder that cannot be read."""
    for folder, below, found in os.walk(logdir, onerror=onerror, followlinks=True):
        folder = pathlib.Path(folder)
        if evaluation_log.NAME in found or any("tfevents" in name for name in found):
            yield folder
        above = {path.resolve() for path in (folder, *folder.parents)}
        below[:] = [name for name in below if (folder / name).resolve() not in above]


def read_run(folder):
    """Reads a run's files.

    Args:
      folder: the run's folder.

    Returns:
      Whether the run has units, and its curves, as `evaluation_log.curves` returns them.

    Raises:
      Failed: a file is missing.
    """
    if not (folder / evaluation_log.NAME).exists():
        raise Failed(
            f"{folder}: cannot be drawn, because it has no {evaluation_log.NAME}. Earlier versions of"
            " train.py did not write one."
        )
    settings = files.read_json(folder / names.SETTINGS)
    if not settings:
        raise Failed(f"{folder}: cannot be drawn, because {names.SETTINGS} is missing or damaged.")
    has_units = names.sharing_of(settings) not in ("none", "hard_sharing")
    return has_units, evaluation_log.curves(folder)


def unreadable(error):
    """The sentence for what cannot be read. Args: an OSError."""
    return f"{error.filename}: cannot be drawn, because it cannot be read ({error.strerror})."


def smooth(values, weight):
    """TensorBoard's exponential moving average, corrected for its start at 0."""
    average, smoothed = 0.0, []
    for count, value in enumerate(values, 1):
        average = weight * average + (1 - weight) * value
        smoothed.append(average / (1 - weight**count))
    return np.array(smoothed)


def axis_limits(values, outside):
    """Limits that leave the given percentages of the values below and above the axis."""
    low, high = np.percentile(values, outside[0]), np.percentile(values, 100 - outside[1])
    margin = 0.05 * (high - low) or 0.01
    return low - margin, high + margin


CHECKSUM = "Checksum of the values"  # its name in a picture's metadata


def checksum(axes):
    """SHA-256 of all values that are drawn, to four digits, so that rounding is no difference."""
    digest = hashlib.sha256()
    for panel in np.ravel(axes):
        values = [line.get_xydata() for line in panel.lines]
        values += [path.vertices for group in panel.collections for path in group.get_paths()]
        values += [patch.get_path().vertices for patch in panel.patches]
        values += [image.get_array() for image in panel.images]
        for points in values:
            digest.update(" ".join(f"{value:.4g}" for value in np.ravel(points)).encode())
    return digest.hexdigest()


def save(picture, axes, path):
    """Gives all pictures the same look and writes one to `path`. Returns: the path."""
    for panel in np.ravel(axes):
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    content = io.BytesIO()
    picture.savefig(content, format="png", metadata={CHECKSUM: checksum(axes)})
    files.write(path, content.getvalue())
    return path


@matrices.plain_style()
def draw(runs, tag, label, outside, path, smoothing):
    """Draws one scalar of every run against the step.

    Args:
      runs: name -> as `read_run` returns it.
      tag: name of the scalar.
      label, outside: as in PICTURES.
      path: the file to write.
      smoothing: TensorBoard's smoothing weight.
    """
    width, height = PANEL["figsize"]
    # The legend is below the axes: names of runs are long.
    picture = figure.Figure(**PANEL | {"figsize": (width, height + 0.16 * len(runs))})
    axes = picture.subplots()
    for name, (has_units, curves) in runs.items():
        alike = [other for other, (units, _) in runs.items() if units == has_units]
        index = alike.index(name)
        shade = 0.7 if len(alike) == 1 else 0.95 - 0.55 * index / (len(alike) - 1)
        look = {"color": matplotlib.colormaps[COLOUR_MAPS[has_units]](shade)}
        steps, values = curves[tag]
        axes.plot(steps, values, alpha=0.25, linewidth=1, **look)
        look["linestyle"] = STYLES[index % len(STYLES)]
        shown = name if len(name) <= LONGEST else f"{name[: LONGEST // 2]}…{name[-LONGEST // 2 :]}"
        title = f"{'with' if has_units else 'without'}: {shown}"
        axes.plot(steps, smooth(values, smoothing), linewidth=1.8, label=title, **look)
    everything = np.concatenate([curves[tag][1] for _, curves in runs.values()])
    axes.set(xlabel="step", ylabel=label, ylim=axis_limits(everything, outside))
    picture.legend(loc="outside lower left", fontsize=8, handlelength=3, frameon=False)
    save(picture, axes, path)


def main(argv):
    if len(argv) != 2:
        raise Failed("name one folder with runs, for example: python -m study.plot logs")
    logdir = pathlib.Path(argv[1])
    out = pathlib.Path(flags.FLAGS.out or logdir)
    runs, changed, refused = {}, {}, []
    for folder in sorted(folders_of_runs(logdir, lambda error: refused.append(unreadable(error)))):
        try:
            has_units, curves = read_run(folder)
            evaluated = (folder / evaluation_log.NAME).stat().st_mtime
        except Failed as error:
            refused.append(f"{error}")
            continue
        except OSError as error:
            refused.append(unreadable(error))
            continue
        if all(tag in curves for _, tag, *_ in PICTURES):
            name = folder.resolve().name if folder == logdir else str(folder.relative_to(logdir))
            name = os.fsencode(name).decode(errors="replace")
            runs[name], changed[name] = (has_units, curves), evaluated
    if not runs:
        nothing = f"{logdir}: no run of train.py with an evaluation below this folder"
        raise Failed(" ".join(refused) or nothing)
    for message in refused:
        warnings.warn(message)
    if len(runs) > MOST:
        warnings.warn(
            f"{logdir}: has {len(runs)} runs, and the pictures show the {MOST} that were evaluated"
            " last. Name a folder with fewer to see others."
        )
        newest = sorted(runs, key=changed.get)[-MOST:]
        runs = {name: run for name, run in runs.items() if name in newest}
    for file, tag, label, _, outside in PICTURES:
        draw(runs, tag, label, outside, out / file, flags.FLAGS.smoothing)
        print(out / file)


if __name__ == "__main__":  # pictures.py imports this file, and has no use for its flags
    flags.DEFINE_string("out", None, "Folder for the pictures; by default LOGDIR.")
    flags.DEFINE_float("smoothing", 0.6, "TensorBoard's smoothing weight.", 0, 0.999)
    process.run(main)
