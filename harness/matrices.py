"""Pictures of matrices with their values in the cells, for TensorBoard.

The first part is for all pictures of this program and its study: they look the same whatever the
user's environment asks of Matplotlib.
"""

import contextlib
import io
import logging
import os
import warnings

import numpy as np

from harness.environment import hidden


@contextlib.contextmanager
def without_warnings():
    """Hides what Matplotlib says of its caches, a matplotlibrc, and characters without a font."""
    log = logging.getLogger("matplotlib")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


# Importing Matplotlib fails if MPLBACKEND names a backend that is not installed, and a notebook
# sets it for all its programs. Pictures are drawn without one.
with hidden("MPLBACKEND"), without_warnings():
    import matplotlib
    from matplotlib import figure, style
if os.environ.get("MPLBACKEND"):
    with contextlib.suppress(ValueError):  # of a notebook that also imports this
        matplotlib.rcParams["backend"] = os.environ["MPLBACKEND"]


@contextlib.contextmanager
def plain_style():
    """Draws with Matplotlib's defaults, and names as they are: a $ begins no formula."""
    plain = ["default", {"text.parse_math": False}]
    with without_warnings(), style.context(plain):
        yield


READABLE = 30  # rows of a matrix whose cells have room for a value
LONGEST = 40  # characters of a name that are shown


@plain_style()
def draw(panels, names, axes, limit, signed):
    """Draws square matrices side by side, with their values in the cells.

    Above READABLE rows, the picture grows no more and has no values.

    Args:
      panels: title -> what the colours show and what the cells say, [N, N] each.
      names: of rows and columns, N.
      axes: what rows and columns are.
      limit: the value with the darkest colour; 0 is white.
      signed: whether values below 0 have a colour of their own.

    Returns:
      The bytes of a PNG file.
    """
    readable = len(names) <= READABLE
    side, gap = max(0.5 * min(len(names), READABLE), 1.4), 0.3  # inches
    margin = 0.5 + 0.08 * min(max(map(len, names)), LONGEST)  # for the names
    width, height = (margin + side + gap) * len(panels), margin + side + gap
    picture = figure.Figure(figsize=(width, height))
    for index, (title, (shades, cells)) in enumerate(panels.items()):
        left = index * (margin + side + gap) + margin
        panel = picture.add_axes([left / width, margin / height, side / width, side / height])
        low, colours = (-limit, "RdBu") if signed else (0, "Blues")
        panel.imshow(shades, cmap=colours, vmin=low, vmax=limit)
        panel.set(title=title, ylabel=axes[0], xlabel=axes[1])
        shown = range(0, len(names), -(-len(names) // 60))  # as many names as do not overlap
        labels = [names[index][:LONGEST] for index in shown]
        panel.set_yticks(shown, labels)
        panel.set_xticks(shown, labels, rotation=90)
        for (row, column), cell in np.ndenumerate(cells if readable else []):
            colour = "white" if abs(shades[row, column]) > 0.6 * limit else "black"
            panel.text(column, row, f"{cell}", color=colour, ha="center", va="center", size=8)
    content = io.BytesIO()
    picture.savefig(content, format="png")
    return content.getvalue()
