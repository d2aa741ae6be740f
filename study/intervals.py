"""Intervals of a mean over seeds and test images, for new seeds and new images.

All seeds are evaluated on the same images. An image that is hard for one seed is hard for the
others, so however many seeds there are, their mean depends on which images there are. The value
of seed s at image i is taken to be mean + seed[s] + image[i] + rest[s, i], each drawn at random.
The mean squares of a two-way analysis of variance tell how much each of them varies.
"""

import typing

import numpy as np
import scipy.stats


class Estimate(typing.NamedTuple):
    """A mean, and how far the truth may be from it."""

    mean: float
    half_width: float  # of the 95 % confidence interval
    p: float  # of a test that the truth is 0


def estimate(values):
    """The mean for new seeds and new images.

    Args:
      values: [..., S, N] float, of S seeds at N images, at least two of each.

    Returns:
      An `Estimate`, of [...] each.
    """
    mean, of_seeds, of_images, of_rest = mean_squares(values)
    seeds, images = np.shape(values)[-2:]
    both = variance_of_mean(of_seeds, of_images, of_rest, seeds, images)
    # New images only add to the doubt about new seeds. By chance, a few seeds may agree so well
    # that the degrees of freedom are those of the images, which makes the interval too short.
    alone = of_seeds / (seeds * images), seeds - 1
    half_widths, p_values = zip(*(students(mean, *of) for of in (both, alone)))
    return Estimate(mean, np.maximum(*half_widths), np.maximum(*p_values))


class Variances(typing.NamedTuple):
    """How much the parts of one value vary."""

    of_seed: float
    of_image: float
    of_rest: float


def variances(values):
    """The variances of the parts, from the mean squares. Args: [S, N]. Returns: `Variances`."""
    seeds, images = np.shape(values)
    _, of_seeds, of_images, of_rest = mean_squares(values)
    return Variances(
        max(0.0, float(of_seeds - of_rest) / images),
        max(0.0, float(of_images - of_rest) / seeds),
        float(of_rest),
    )


def most_of_seed(values):
    """The upper 95 % limit of the variance of a seed, by its F. Args: [S, N]. Returns: a number."""
    seeds, images = np.shape(values)
    _, of_seeds, _, of_rest = mean_squares(values)
    smallest = scipy.stats.f.ppf(0.025, seeds - 1, (seeds - 1) * (images - 1))
    return max(0.0, float(of_seeds / smallest - of_rest) / images)


def images_needed(of_one, gain, seeds, power=0.8):
    """How many images show a gain: 0 is outside of its interval for new seeds and new images.

    Args:
      of_one: `Variances` of a gain.
      gain: the true gain.
      seeds: S.
      power: with which probability.

    Returns:
      Their number; None if no number of images would, with so few seeds.
    """
    # About: the power of a t-test has no closed form, and `estimate` may have more freedom.
    errors = sum(scipy.stats.t.ppf((0.975, power), seeds - 1))
    left = np.square(gain / errors) - of_one.of_seed / seeds
    return int(np.ceil((of_one.of_image + of_one.of_rest / seeds) / left)) if left > 0 else None


def students(mean, variance, freedom):
    """The half width of the 95 % interval by Student's t, and p. Args: [...] each, or a number."""
    # Values that are all the same differ by rounding, as they are differences of shares.
    error = np.where(variance < 1e-18, 0, np.sqrt(variance))
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(np.abs(mean) < 1e-9, 0, np.abs(mean) / error)
    return scipy.stats.t.ppf(0.975, freedom) * error, 2 * scipy.stats.t.sf(t, freedom)


def mean_squares(values):
    """The mean and the mean squares of a two-way table without repetitions.

    Args:
      values: [..., S, N].

    Returns:
      [...] each: the mean, and the mean squares of the seeds, the images and the rest.
    """
    seeds, images = np.shape(values)[-2:]
    of_seeds, of_images = np.mean(values, axis=-1), np.mean(values, axis=-2)
    mean = of_seeds.mean(axis=-1)
    rest = values - of_seeds[..., None] - of_images[..., None, :] + mean[..., None, None]
    free = seeds - 1, images - 1
    return (
        mean,
        images * np.square(of_seeds - mean[..., None]).sum(axis=-1) / free[0],
        seeds * np.square(of_images - mean[..., None]).sum(axis=-1) / free[1],
        np.square(rest).sum(axis=(-1, -2)) / (free[0] * free[1]),
    )


def variance_of_mean(of_seeds, of_images, of_rest, seeds, images):
    """The variance of the mean and its degrees of freedom, after Satterthwaite.

    Args:
      of_seeds, of_images, of_rest: mean squares.
      seeds, images: S and N.
    """
    # Each of the first two holds the rest, too. By chance, their sum may be below it.
    square = np.maximum(of_seeds + of_images - of_rest, of_rest)
    parts = np.square(of_seeds) / (seeds - 1) + np.square(of_images) / (images - 1)
    parts = parts + np.square(of_rest) / ((seeds - 1) * (images - 1))
    freedom = np.divide(np.square(square), parts, out=np.ones_like(parts), where=parts > 0)
    return square / (seeds * images), freedom
