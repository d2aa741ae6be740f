"""Pictures of matrices with their values in the cells, for TensorBoard."""

import io

import numpy as np
from matplotlib import figure


def draw(panels, names, axes, limit, signed):
    """Draws square matrices side by side, with their values in the cells.

    Args:
      panels: title -> what the colours show and what the cells say, [N, N] each.
      names: of rows and columns, N.
      axes: what rows and columns are.
      limit: the value with the darkest colour; 0 is white.
      signed: whether values below 0 have a colour of their own.

    Returns:
      The bytes of a PNG file.
    """
    side, gap = max(0.5 * len(names), 1.4), 0.3  # inches
    margin = 0.5 + 0.08 * max(map(len, names))  # for the names
    width, height = (margin + side + gap) * len(panels), margin + side + gap
    picture = figure.Figure(figsize=(width, height))
    for index, (title, (shades, cells)) in enumerate(panels.items()):
        left = index * (margin + side + gap) + margin
        panel = picture.add_axes([left / width, margin / height, side / width, side / height])
        low, colours = (-limit, "RdBu") if signed else (0, "Blues")
        panel.imshow(shades, cmap=colours, vmin=low, vmax=limit)
        panel.set(title=title, ylabel=axes[0], xlabel=axes[1])
        panel.set_yticks(range(len(names)), names)
        panel.set_xticks(range(len(names)), names, rotation=90)
        for (row, column), cell in np.ndenumerate(cells):
            colour = "white" if abs(shades[row, column]) > 0.6 * limit else "black"
            panel.text(column, row, f"{cell}", color=colour, ha="center", va="center", size=8)
    content = io.BytesIO()
    picture.savefig(content, format="png")
    return content.getvalue()
