"""The same network as model.py's, written straight from the paper and the reference,
with one slim or TensorFlow op for each thing that the table of layers names.

It is slow and easy to read. The tests hold model.py's graph against it; the
benchmark measures how much faster that one is.
"""

import typing

import numpy as np
import tensorflow.compat.v1 as tf

from harness.slim import slim  # mended for this TensorFlow; no layer of model.py is used

BATCH_NORM = {"decay": 0.9, "scale": True, "updates_collections": None}


class Plain(typing.NamedTuple):
    graph: tf.Graph
    x: tf.Tensor
    labels: dict
    logits: dict  # is training -> task -> [B, classes]
    losses: dict  # is training -> the two cross-entropies and L2, added up
    train_op: tf.Operation


def stitch(towers, unit, scope):
    ids = range(len(towers))
    shape = towers[0].shape.as_list()[1:]
    size, channels = int(np.prod(shape)), shape[-1]
    with tf.variable_scope(scope):
        if unit == "dense":
            flat = tf.concat([slim.flatten(x) for x in towers], axis=1)
            alpha = tf.get_variable("alpha", [size * len(towers)] * 2)
            mixed = tf.split(tf.matmul(flat, alpha, transpose_b=True), len(towers), axis=1)
            return [tf.reshape(x, [-1, *shape]) for x in mixed]
        if unit == "nddr":
            alpha = tf.get_variable("alpha", [channels * len(towers)] * 2)
            mixed = tf.tensordot(tf.concat(towers, axis=-1), alpha, [[-1], [1]])
            return tf.split(mixed, len(towers), axis=-1)
        by_channel = [channels] if unit == "channel" else []
        alpha = tf.get_variable("alpha", [len(towers)] * 2 + by_channel)
        return [tf.add_n([alpha[i, j] * towers[j] for j in ids]) for i in ids]


def towers(x, classes, unit, training, keep_prob, l2_scale, places, share_until):
    """Logits of every tower. `training` is a Python bool: one graph for each."""

    def after(place, h):
        if place in places and len(h) > 1:
            h = stitch(h, unit, "cross_stitch_" + place[-1])
        return h * len(classes) if place == share_until else h

    with (
        tf.variable_scope("network", reuse=not training),
        slim.arg_scope(
            [slim.conv2d, slim.fully_connected],
            normalizer_fn=slim.batch_norm,
            normalizer_params={**BATCH_NORM, "is_training": training},
            weights_initializer=slim.variance_scaling_initializer(),
            weights_regularizer=slim.l2_regularizer(l2_scale),
        ),
    ):
        h = [x] * (1 if share_until else len(classes))
        h = [slim.conv2d(y, 32, 3, scope=f"conv1_{t}") for t, y in enumerate(h, 1)]
        h = after("pool_1", [slim.max_pool2d(y, 2) for y in h])
        h = [slim.conv2d(y, 64, 3, scope=f"conv2_{t}") for t, y in enumerate(h, 1)]
        h = after("pool_2", [slim.max_pool2d(y, 2) for y in h])
        h = [slim.flatten(y) for y in h]
        h = [slim.fully_connected(y, 1024, scope=f"fc_3_{t}") for t, y in enumerate(h, 1)]
        h = after("fc_3", h)
        h = [slim.dropout(y, keep_prob, is_training=training) for y in h]
        return [
            slim.fully_connected(y, n, activation_fn=None, scope=f"output_{t}")
            for t, (y, n) in enumerate(zip(h, classes), 1)
        ]


def build(
    tasks,
    unit=None,
    keep_prob=0.8,
    l2_scale=1e-5,
    learning_rate=0.001,
    image_shape=(28, 28, 1),
    places=("pool_1", "pool_2", "fc_3"),
    share_until=None,
):
    """The whole graph. The units start at no particular weights.

    Args:
      unit: kind of unit, or None for no units.
      places: layers that a unit follows.
      share_until: last layer that the tasks share, or None.
      The others as in `model.Config` and `model.build`.

    Returns:
      A `Plain`.
    """
    with tf.Graph().as_default() as graph:
        x = tf.placeholder(tf.float32, [None, *image_shape])
        labels = {name: tf.placeholder(tf.int32, [None]) for name, _ in tasks}
        logits, losses = {}, {}
        for training in (True, False):
            outputs = towers(
                x,
                [n for _, n in tasks],
                unit,
                training,
                keep_prob,
                l2_scale,
                places if unit else (),
                share_until,
            )
            logits[training] = dict(zip(labels, outputs))
            losses[training] = tf.losses.get_regularization_loss() + tf.add_n(
                [
                    tf.reduce_mean(
                        tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels[n], logits=y)
                    )
                    for n, y in logits[training].items()
                ]
            )
        train_op = tf.train.AdamOptimizer(learning_rate).minimize(losses[True])
    return Plain(graph, x, labels, logits, losses, train_op)
