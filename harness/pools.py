"""Which training images make a batch when some labels are unknown.

The images that have labels of the same tasks are a pool. A batch comes from one pool and trains
the pool's tasks. If it held other images, too, batch norm's statistics in a task's tower would
be mostly those of images that the task's loss does not see.

Pools are a dict everywhere here: names of tasks, a tuple -> numbers of the images, [n] int.
"""

import collections
import functools

import numpy as np

from harness.errors import DataError


def of_labels(labels):
    """Sorts images into pools; those without any label are in none.

    Args:
      labels: task -> [N] int, negative where the label is unknown.

    Returns:
      The pools, in an order that depends on the labels only.
    """
    codes = sum((values >= 0).astype(np.int64) << bit for bit, values in enumerate(labels.values()))
    return {
        tuple(task for bit, task in enumerate(labels) if code >> bit & 1): np.flatnonzero(
            codes == code
        )
        for code in np.unique(codes).tolist()
        if code
    }


def for_batches(pools, batch_size):
    """Moves the images of pools smaller than a batch to the largest pool that trains nothing else.
    If there is no such pool, they are left out.

    Returns:
      The pools, and task -> the number of labels that are not used because of this.

    Raises:
      DataError: a task would lose all its labels.
    """
    merged = moved(pools, batch_size)
    if merged is None:
        # A task keeps labels if its largest pool fills a batch: the smallest of these decides.
        largest = [
            max((pool for pool in pools if task in pool), key=lambda pool: len(pools[pool]))
            for task in sorted(set().union(*pools))
        ]
        tasks = min(largest, key=lambda pool: len(pools[pool]))
        raise DataError(
            f"batch_size={batch_size}: only {len(pools[tasks]):,} training images have labels of"
            f" {' and '.join(tasks)} and of no other task. A batch has images with labels of the"
            f" same tasks: use --batch_size={len(pools[tasks])} or less."
        )
    return merged


def moved(pools, batch_size):
    """As `for_batches`, but None in place of an error."""
    large = {tasks: rows for tasks, rows in pools.items() if len(rows) >= batch_size}
    merged, unused = dict(large), collections.Counter()
    for tasks in pools.keys() - large.keys():
        fitting = [others for others in large if set(others) < set(tasks)]
        target = max(fitting, key=lambda others: len(large[others]), default=())
        if target:
            merged[target] = np.sort(np.concatenate([merged[target], pools[tasks]]))
        unused.update({task: len(pools[tasks]) for task in set(tasks) - set(target)})
    of_all, trained = (set().union(*of) for of in (pools, merged))
    return (merged, unused) if trained == of_all else None


def steps_per_epoch(pools, batch_size, balance):
    """Steps of each pool in an epoch: max^balance * n^(1 - balance), rounded, where n is the
    number of its batches, and max that of the largest pool. Returns: a tuple."""
    batches = [-(-len(rows) // batch_size) for rows in pools.values()]
    return tuple(round(max(batches) ** balance * n ** (1 - balance)) for n in batches)


def batch_of_step(pools, step, batch_size, seed, balance):
    """The batch of any step, from 0; no earlier step is needed.

    A pool's batches are cut from its shuffled passes, one after another, so all are full.

    Returns:
      The tasks that it trains, a tuple, and numbers of its images, [batch_size] int.

    Raises:
      DataError: as `for_batches`.
    """
    pools, _ = for_batches(pools, batch_size)
    steps = steps_per_epoch(pools, batch_size, balance)
    epoch, index = divmod(step, sum(steps))
    pool, number = (of_steps[index] for of_steps in order_of_pools(steps, seed, epoch))
    tasks, rows = list(pools.items())[pool]
    first = (epoch * steps[pool] + number) * batch_size
    passes, places = np.divmod(np.arange(first, first + batch_size), len(rows))
    chosen = [
        pass_order(len(rows), seed, int(pool), number)[places[passes == number]]
        for number in np.unique(passes).tolist()
    ]
    return tasks, rows[np.concatenate(chosen)]


@functools.lru_cache(maxsize=2)
def order_of_pools(steps, seed, epoch):
    """Mixes the pools evenly over an epoch, at random.

    Args:
      steps: of each pool, a tuple.

    Returns:
      For each step of the epoch: the number of its pool, and how many steps of this pool come
      before it in the epoch. [S] int each.
    """
    # The 4 makes these numbers differ from other random choices; see harness/choices.py.
    random = np.random.RandomState([seed, epoch, 4])
    pools = np.repeat(np.arange(len(steps)), steps)
    numbers = np.concatenate([np.arange(count) for count in steps])
    # The n-th batch of a pool is somewhere in the n-th of as many equal parts as it has batches.
    places = (numbers + random.uniform(size=len(numbers))) / np.array(steps)[pools]
    order = np.argsort(places, kind="stable")
    return pools[order], numbers[order]


@functools.lru_cache(maxsize=16)  # all batches of a pass have it in common
def pass_order(count, seed, pool, number):
    """The order of a pool's images in one pass over them, [n] int."""
    return np.random.RandomState([seed, number, 5, pool]).permutation(count)
