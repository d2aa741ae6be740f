"""Numbers, intervals and tables as text in Markdown."""

import numpy as np

from study import groups


def number(value, sign=""):
    """Two decimals, and never -0.00."""
    return f"{round(value, 2) + 0.0:{sign}.2f}"


def interval(shares, sign=""):
    """Mean and interval in percent, of shares of 1.

    Of values [S], for example +0.31 ± 0.20. Of [S, N], +0.31 ± 0.44 (0.20): for new images, and
    in brackets for these.
    """
    if not len(shares):
        return "–"
    mean, half = number(100 * np.mean(shares), sign), 100 * groups.half_width(shares)
    if np.isnan(half):
        return mean
    if np.ndim(shares) == 2:
        return f"{mean} ± {100 * groups.half_width_for_new_images(shares):.2f} ({half:.2f})"
    return f"{mean} ± {half:.2f}"


def seeds(count, diverged):
    """How many seeds there are, and how many more runs did not end."""
    return f"{count}, {diverged} diverged" if diverged else f"{count}"


def p_text(p):
    """A p-value with three decimals, and never 0."""
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def p_equals(p):
    """As `p_text`, for a sentence: p = 0.012, or p < 0.001."""
    return f"p {p_text(p)}" if p < 0.001 else f"p = {p_text(p)}"


def as_table(header, rows):
    """A table of these cells. Returns: text."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in lines)


def details(summary, text):
    """A block that the reader opens."""
    return f"<details><summary>{summary}</summary>\n\n{text}\n\n</details>"


def answer(gains):
    """The p-value of the question that was fixed beforehand; empty if there are too few seeds."""
    if not groups.is_enough(gains):
        return ""
    return f"*The question fixed beforehand: {p_equals(groups.p_value(gains))}.* "
