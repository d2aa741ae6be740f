"""Which images, or whose labels, are chosen at random. numpy's RandomState gives the same numbers
in every release; the last numbers of the seeds, 2, 3 and 6, keep the choices apart from each
other and from the order of the images.
"""

import zlib

import numpy as np


def balanced(labels, size, seed):
    """Chooses images, the same number of each label as far as possible.

    With the same seed, a smaller choice is part of every larger one. Images whose label is
    unknown keep their share.

    Args:
      labels: [N] int, negative if unknown.
      size: number of images.

    Returns: [size] int, ascending.
    """
    order = np.random.RandomState([seed, 0, 2]).permutation(len(labels))
    labels, unknown = labels[order], labels[order] < 0
    rank = np.empty(len(order))  # how many images of the same label come before it
    for label in np.unique(labels):
        rank[labels == label] = np.arange(np.sum(labels == label))
    if unknown.any():  # as if they were spread over the classes
        rank[unknown] *= np.mean(~unknown) / np.mean(unknown) / max(1, len(np.unique(labels)) - 1)
    return np.sort(order[np.argsort(rank, kind="stable")[:size]])


def starved(labels, ratio, ranks, seed):
    """Chooses images, fewer of each label than of the one before it in rank.

    The share that is kept falls geometrically: all images of the commonest label, 1/ratio of
    the rarest. With the same seed, the images of a larger ratio are part of those of a smaller
    one.

    Args:
      labels: [N] int.
      ratio: 1 or more.
      ranks: of each label, from 0 for the commonest.

    Returns: [n] int, ascending.
    """
    order = np.random.RandomState([seed, 0, 3]).permutation(len(labels))
    chosen = []
    for label, rank in enumerate(ranks):
        of_label = order[labels[order] == label]
        share = ratio ** (-rank / (len(ranks) - 1))
        chosen.append(of_label[: max(1, round(len(of_label) * share))])
    return np.sort(np.concatenate(chosen))


def in_proportion(labels, size, seed, name):
    """Chooses images whose label is known, in the proportions of the labels.

    With the same seed and name, a smaller choice is part of every larger one.

    Args:
      labels: [N] int, negative if unknown.
      size: number of images, at most as many as have a label.
      name: of the task, so that those of other tasks are chosen independently.

    Returns: [size] int.
    """
    random = np.random.RandomState([seed, 0, 6, zlib.crc32(name.encode())])
    order = random.permutation(np.flatnonzero(labels >= 0))
    place = np.empty(len(order))  # spreads the images of each label evenly over 0 to 1
    for label in np.unique(labels[order]):
        is_of_label = labels[order] == label
        place[is_of_label] = (np.arange(np.sum(is_of_label)) + 0.5) / np.sum(is_of_label)
    return order[np.argsort(place, kind="stable")[:size]]
