"""What records say of single test images, for intervals that cover new images.

A record keeps in how many of its last evaluations each image was predicted correctly.
"""

import itertools

import numpy as np

from harness.names import LAST_EVALUATIONS
from harness.predictions import NO_LABEL

MEAN = "mean"  # of the tasks


def shares(record, task):
    """In which share of the last evaluations each image with a label was predicted correctly.

    Returns: [N]; for MEAN, the mean of the tasks.
    """
    correct = record["correct_last"]
    if task == MEAN:
        return np.mean([of_all_images(record, name) for name in correct], axis=0)
    _, values = record["curves"]["accuracy_test"]
    digits = np.array(list(correct[task]))
    return digits[digits != NO_LABEL].astype(int) / len(values[-LAST_EVALUATIONS:])


def of_all_images(record, task):
    """Values of all images, [N], whose mean is that of `shares`, and as uncertain.

    An image without this label has the mean. The others are as much further from it as they are
    fewer: a ratio estimator.
    """
    has_label = np.array(list(record["correct_last"][task])) != NO_LABEL
    known = shares(record, task)
    values = np.full(len(has_label), np.mean(known))
    values[has_label] += (known - np.mean(known)) / np.mean(has_label)
    return values


def values(group, task):
    """Of all seeds, [S, N]."""
    return np.array([shares(record, task) for record in group.records.values()])


def is_changed(means):
    """Whether the share of right answers has risen by at least half. Args: [N], differences."""
    # Shares of evaluations are no binary fractions: half of them may be a little less than 0.5.
    return means > 0.5 - 1e-9


def of_exchanges(values):
    """What differences look like if with and without are exchanged in some of the seeds.

    Args:
      values: differences, [S, N].

    Returns:
      [2 ** S], for every way to exchange them, the first of which exchanges none and the last
      all: how many images have changed in the mean over the seeds, by at least half.
    """
    signs = np.array(list(itertools.product([1, -1], repeat=len(values))))
    means = (of_seeds @ values / len(values) for of_seeds in signs)
    return np.array([np.sum(is_changed(np.abs(of_images))) for of_images in means])


def differences(group, baseline, task):
    """Of the seeds that both have, [S, N]."""
    seeds = [seed for seed in group.records if seed in baseline.records]
    return np.array([
        shares(group.records[seed], task) - shares(baseline.records[seed], task) for seed in seeds
    ])  # fmt: skip
