"""How far the weights of a cross-stitch unit moved, and how they are spread at the end of a run.

Both functions take one variable of a unit as a numpy array, with T towers. It is

    [T, T, ...]   a number, or several, for each pair of towers: layer and channel units
    [T*N, T*N]    T x T blocks of N x N: nddr and dense units
    any other     a unit of your own
"""

import numpy as np

WEIGHT_BINS = np.linspace(-1, 2, 61)  # edges of the histograms
AT_ONCE = 2**20  # values: the largest units have 157 million, of which no copy is made


def histogram(values):
    """Counts the weights in each of WEIGHT_BINS. The outermost bins count all beyond them.

    Returns:
      A list of counts; for [T, T, C], [T][T] such lists.
    """
    if values.ndim >= 3 and values.shape[0] == values.shape[1]:
        return [[histogram(of_pair.ravel()) for of_pair in row] for row in values]
    flat, counts = values.reshape(-1), 0
    for first in range(0, flat.size, AT_ONCE):
        clipped = np.clip(flat[first : first + AT_ONCE], WEIGHT_BINS[0], WEIGHT_BINS[-1])
        counts = counts + np.histogram(clipped, WEIGHT_BINS)[0]
    return counts.tolist()


def distance(values, start, num_towers):
    """The root of the mean square distance from the start.

    Args:
      values: the variable's values.
      start: its values at the start of the run, of the same shape.
      num_towers: T.

    Returns:
      [T][T] lists for [T, T, ...] and for [T*N, T*N], of whose blocks the squares are summed and
      divided by N, as a block that is the identity has N weights of 1. One number for any other.
    """
    shape = (num_towers, num_towers)
    size, rest = divmod(values.shape[0], num_towers) if values.ndim else (0, 0)
    if values.shape[:2] == shape:
        squares = np.mean(np.square(values - start).reshape(*shape, -1), axis=2)
    elif values.ndim == 2 and values.shape[0] == values.shape[1] and size and not rest:
        rows = np.concatenate(list(squares_of_rows(values, start, num_towers)))  # [T*N, T]
        # One after the other, as einsum would add up the rows of a whole block.
        squares = np.add.accumulate(rows.reshape(num_towers, size, num_towers), axis=1)[:, -1]
        squares = squares / size
    else:
        squares = np.mean(np.square(values - start))
    return np.sqrt(squares).round(6).tolist()


def squares_of_rows(values, start, num_towers):
    """Yields: for some rows of a [T*N, T*N] variable, each block's sum of squares, [rows, T]."""
    length = len(values)
    step = max(1, AT_ONCE // length)
    for first in range(0, length, step):
        moved = values[first : first + step] - start[first : first + step]
        moved = moved.reshape(len(moved), num_towers, length // num_towers)
        yield np.einsum("ajb,ajb->aj", moved, moved)
