"""Draws images of ten kinds that a network can tell apart, for runs without any data set."""

import numpy as np


def draw(kinds, random):
    """Draws an image of each of these kinds.

    Args:
      kinds: [N] int, 0 to 9: five shapes, first filled and then hollow.
      random: a RandomState, which determines the images.

    Returns: [N, 28, 28] uint8.
    """

    def each(low, high):  # a random number for each image
        return random.uniform(low, high, [len(kinds), 1, 1]).astype(np.float32)

    # The place of each pixel on its shape, which is shifted, sheared and stretched.
    axis = np.linspace(-1, 1, 28, dtype=np.float32)
    x, y = axis - each(-0.3, 0.3), axis[:, np.newaxis] - each(-0.3, 0.3)
    x, y = x + each(-0.2, 0.2) * y, y + each(-0.2, 0.2) * x
    x, y = x * each(1.1, 1.9), y * each(1.1, 1.9)
    # A disc, a square, a diamond and two wedges: less than 1 inside them.
    w, h, kind = abs(x), abs(y), kinds[:, np.newaxis, np.newaxis]
    shapes = x**2 + y**2, np.maximum(w, h), w + h, w + y + 0.5, w - y + 0.5
    shape = np.choose(kind % 5, shapes)
    inside = (shape < 1) & ((shape > each(0.4, 0.7)) | (kind < 5))  # 5 to 9 are hollow
    stripes = each(0, 0.9) * ((x * each(-9, 9) + y * each(-9, 9)) % 2 < 1)
    noise = random.normal(0, 1, inside.shape).astype(np.float32) * each(5, 50)
    grey = each(0, 120) + each(70, 135) * inside * (1 - stripes) + noise
    return np.clip(grey, 0, 255).astype(np.uint8)
