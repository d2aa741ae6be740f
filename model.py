"""Cross-stitch networks as a TensorFlow 1.x graph, layers by TF-Slim.

One convolutional tower per task looks at the same image. With a cross-stitch
unit after each pooling and fully connected layer, every tower goes on with a
learned linear combination of what all towers computed (Misra et al.,
"Cross-stitch Networks for Multi-task Learning", arXiv 1604.03539, section 3).

    import model
    net = model.build([("article", 10), ("group", 3)], unit="channel")
    with tf.compat.v1.Session(graph=net.graph) as session:
        session.run(net.initializer)
        session.run(net.train_op, feed_dict={net.x: ..., net.is_training: True, ...})

This file makes graphs and nothing else: no files, no flags, no printing.
"""

import typing
import zlib

import numpy as np
import tensorflow as tf_v2
import tensorflow.compat.v1 as tf
from tensorflow.python.framework import ops
from tensorflow.python.ops import control_flow_ops

# tf-slim 1.1.0, the newest on the package index, asks TensorFlow's internals
# for two names that moved in 2.15. Put back before its first use; where they
# still stand, or where a later tf-slim no longer asks, this changes nothing.
if not hasattr(ops, "Tensor"):
    ops.Tensor = tf.Tensor
if not hasattr(control_flow_ops, "cond"):
    control_flow_ops.cond = tf.cond

import tf_slim as slim  # noqa: E402

IMAGE_SIZE = 28
UNITS = ("channel", "layer", "dense")
HISTOGRAM_VALUES = 2**20  # of a unit's entries; dense units have a hundred times as many
ONE_PASS_MINIMUM = 2**20  # values of a variable; below, compiling costs more than it saves


class Model(typing.NamedTuple):
    """Handles to one graph. Dictionaries are keyed by task name, in task order."""

    graph: tf.Graph
    x: tf.Tensor  # [B, 28, 28, 1] float32, standardised images
    labels: dict  # task -> [B] int32
    is_training: tf.Tensor  # [] bool: batch statistics and dropout, or neither
    logits: dict  # task -> [B, classes] float32
    predictions: dict  # task -> [B] int32
    losses: dict  # task -> [] cross-entropy, nats, mean over the batch
    l2_loss: tf.Tensor  # [] sum over conv and fc weights, scaled
    loss: tf.Tensor  # [] all of the above added up
    accuracies: dict  # task -> [] share of the batch that is right
    accuracy: tf.Tensor  # [] mean of the tasks' accuracies
    stitches: dict  # unit scope -> [T, T] mean weights, row = to, column = from
    train_op: tf.Operation  # one Adam step; also advances global_step
    finite: tf.Tensor  # [] bool: no variable holds a NaN or an infinity
    global_step: tf.Variable
    summary_op: tf.Tensor  # serialised scalars of the batch that was fed
    unit_summary_op: tf.Tensor  # serialised weights of the units; None without units
    initializer: tf.Operation  # start values for all variables


class Server(typing.NamedTuple):
    """Handles to a graph that only predicts."""

    graph: tf.Graph
    images: tf.Tensor  # [N, 28, 28] uint8, raw
    outputs: dict  # <task>_id [N] int32, <task>_name [N] text, <task>_probabilities [N, classes]


def one_pass(function):
    """Compiles elementwise ops into one loop over memory (XLA).

    TensorFlow takes op by op, and each reads and writes all of its activations
    anew; that cost as much time as every convolution and matrix product.
    """
    return tf_v2.function(function, autograph=False, jit_compile=True)


def op_seed(seed, name):
    """A seed for one op, from the run's seed and the op's name alone.

    TensorFlow 1 would count the ops made so far, so that one unit more in the
    graph gave every later layer other weights and runs could not be paired.
    """
    return zlib.crc32(f"{seed}/{name}".encode()) & 0x7FFFFFFF


def he_initializer(seed):
    """He et al. (arXiv 1502.01852) as slim scales it, seeded by the variable's scope."""

    def initializer(shape, dtype=tf.float32, partition_info=None):
        name = tf.get_variable_scope().name
        return slim.variance_scaling_initializer(seed=op_seed(seed, name))(shape, dtype)

    return initializer


def mixing_matrix(num_tasks, own_weight):
    """Start weights between towers: `own_weight` for a task's own activations,
    the rest shared by the other tasks (paper, section 5.1: 0.9 and 0.1).

    Returns: [T, T] float32; row i sums to 1 where there is more than one task.
    """
    others = (1.0 - own_weight) / max(num_tasks - 1, 1)
    matrix = np.full([num_tasks, num_tasks], others, np.float32)
    np.fill_diagonal(matrix, own_weight)
    return matrix


@one_pass
def weighted_sum(tensors, weights):
    """sum_j weights[j] * tensors[j], where weights[j] holds one value a channel."""
    return tf.add_n([weights[j] * x for j, x in enumerate(tensors)])


def channel_sums(x, y):
    """Sums of x * y over everything but the channels. Returns: [C].

    That is the filter gradient of a 1x1 depthwise convolution, TensorFlow's one
    op that multiplies and adds up in the same pass.
    """
    channels = x.shape.as_list()[-1]
    x, y = (tf.reshape(z, [tf.shape(z)[0], 1, -1, channels]) for z in (x, y))
    sums = tf.nn.depthwise_conv2d_backprop_filter(
        x, [1, 1, channels, 1], y, strides=[1] * 4, padding="VALID"
    )
    return tf.reshape(sums, [channels])


@tf.custom_gradient
def linear_combinations(alpha, *towers):
    """out_i[..., c] = sum_j alpha[i, j, c] x_j[..., c], equation 1 of the paper.

    Args:
      alpha: [T, T, C].
      *towers: T tensors of one shape, [B, H, W, C] or [B, C].

    Returns:
      T tensors of that shape.
    """
    ids = range(len(towers))

    def gradient(*d_outputs):
        # To the towers it is the same sum again, with the weights transposed.
        d_towers = [weighted_sum(d_outputs, alpha[:, j]) for j in ids]
        d_alpha = tf.stack([tf.stack([channel_sums(d, x) for x in towers]) for d in d_outputs])
        return (d_alpha, *d_towers)

    return [weighted_sum(towers, alpha[i]) for i in ids], gradient


@tf.custom_gradient
def dense_combination(flat, alpha):
    """flat @ alpha^T, in whose stead einsum computes it, a fifth faster at this size.

    Args: flat, [B, T*D]; alpha, [T*D, T*D]. Returns: [B, T*D].
    """

    def gradient(d_output):
        return tf.matmul(d_output, alpha), tf.matmul(d_output, flat, transpose_a=True)

    return tf.einsum("bi,oi->bo", flat, alpha), gradient


def own_only(alpha, num_tasks):
    """alpha, of which training changes the weights of a task's own activations alone.

    Args: [T, T, ...], or [T*D, T*D]. Returns: a tensor of that shape.
    """
    shape = alpha.shape.as_list()
    size = shape[0] // num_tasks
    blocks = tf.reshape(alpha, [num_tasks, size, num_tasks, -1])
    own = tf.eye(num_tasks, dtype=tf.bool)[:, None, :, None]
    return tf.reshape(tf_v2.where(own, blocks, tf.stop_gradient(blocks)), shape)


def cross_stitch(towers, unit, own_weight, scope, fixed_others=False):
    """One cross-stitch unit: every output is a linear combination of all inputs.

    Row index of the weights is the tower that receives, column index the tower
    that gives, as in equation 1 of the paper.

        channel  [T, T, C]     out_i[..., c] = sum_j alpha[i, j, c] x_j[..., c]
        layer    [T, T]        out_i = sum_j alpha[i, j] x_j
        dense    [T*D, T*D]    every value of every tower mixes with every other,
                               D = H*W*C

    Args:
      towers: T tensors of one shape, [B, H, W, C] or [B, C].
      unit: one of `UNITS`.
      own_weight: start weight of a task's own activations; 1 is the identity.
      scope: variable scope, for example "cross_stitch_1".
      fixed_others: whether the weights of other tasks' activations stay as they start.

    Returns:
      T tensors of the shape that came in, and the unit's [T, T] mean weights:
      the weight that tower j's values carry in a value of tower i, in the mean
      over those values. The identity unit has the identity matrix.
    """
    num_tasks = len(towers)
    mixing = mixing_matrix(num_tasks, own_weight)
    shape = towers[0].shape.as_list()[1:]

    with tf.variable_scope(scope):
        if unit == "dense":
            size = int(np.prod(shape))

            def initializer(_, dtype, partition_info=None):
                # A Kronecker product, made by the graph: as a constant it
                # would not fit into a graph definition.
                blocks = mixing[:, None, :, None] * tf.eye(size, dtype=dtype)[:, None, :]
                return tf.reshape(blocks, [num_tasks * size] * 2)

            alpha = tf.get_variable("alpha", [num_tasks * size] * 2, initializer=initializer)
            weights = own_only(alpha, num_tasks) if fixed_others else alpha.read_value()
            flat = tf.concat([tf.reshape(x, [-1, size]) for x in towers], axis=1)  # [B, T*D]
            mixed = dense_combination(flat, weights)
            outputs = [tf.reshape(x, [-1] + shape) for x in tf.split(mixed, num_tasks, axis=1)]
            blocks = tf.reshape(alpha, [num_tasks, size, num_tasks, size])
            return outputs, tf.reduce_sum(blocks, [1, 3]) / size

        by_channel = np.repeat(mixing[:, :, None], shape[-1], axis=2)
        if unit == "channel":
            alpha = tf.get_variable("alpha", initializer=by_channel)
            weights = own_only(alpha, num_tasks) if fixed_others else alpha
            return linear_combinations(weights, *towers), tf.reduce_mean(alpha, [2])

        alpha = tf.get_variable("alpha", initializer=mixing)
        weights = own_only(alpha, num_tasks) if fixed_others else alpha
        shared = tf.broadcast_to(weights[:, :, None], by_channel.shape)
        return linear_combinations(shared, *towers), tf.identity(alpha)


def either(choice, when_true, when_false):
    """tf.cond, or for a Python bool the one branch alone: a server has no training in it."""
    if isinstance(choice, bool):
        return when_true() if choice else when_false()
    return tf.cond(choice, when_true, when_false)


def dropout(x, keep_prob, is_training, seed, scope):
    """Dropout whose mask depends on the seed, the scope and the step alone.

    slim.dropout draws from a stream of its own, which a restored run would
    start anew; here the same step has the same mask whatever came before.
    """
    with tf.name_scope(scope):

        def dropped():
            step = tf.train.get_global_step()
            step_seed = tf.stack([tf.cast(op_seed(seed, scope), tf.int64), step])
            uniform = tf_v2.random.stateless_uniform(tf.shape(x), step_seed)
            return x * (tf.cast(uniform < keep_prob, tf.float32) / keep_prob)

        return either(is_training, dropped, lambda: x)


def windows(y):
    """The four values of every 2x2 window of [B, H, W, C]: [B, H/2, W/2, C] each."""
    _, height, width, channels = y.shape.as_list()
    y = tf.reshape(y, [-1, height // 2, 2, width // 2, 2, channels])
    return [y[:, :, row, :, column] for row in range(2) for column in range(2)]


@one_pass
def pooled(y, scale):
    """Of every 2x2 window the y for which scale * y is largest. [B, H/2, W/2, C]."""
    a, b, c, d = windows(y)
    largest = tf.maximum(tf.maximum(a, b), tf.maximum(c, d))
    smallest = tf.minimum(tf.minimum(a, b), tf.minimum(c, d))
    return tf_v2.where(scale >= 0, largest, smallest)


@one_pass
def scaled_relu(x, scale, shift):
    return tf.nn.relu(scale * x + shift)


@one_pass
def unpooled(y, chosen, d_chosen, scale, slope, offset):
    """slope * y + offset, and scale * d_chosen on the first of its window that was chosen."""
    a, b, c, _ = [tf.equal(value, chosen) for value in windows(y)]
    first = tf_v2.where(a, 0, tf_v2.where(b, 1, tf_v2.where(c, 2, 3)))
    _, height, width, channels = y.shape.as_list()
    position = tf.reshape(tf.range(4), [1, 1, 2, 1, 2, 1])
    spread = tf_v2.where(
        tf.equal(first[:, :, None, :, None], position), (scale * d_chosen)[:, :, None, :, None], 0.0
    )
    return tf.reshape(spread, [-1, height, width, channels]) + (slope * y + offset)


def batch_norm_relu_pool(y, is_training, decay, norm_scope, scope):
    """max_pool2d(relu(batch_norm(y)), 2), as slim has them, in a third of the passes.

    All three keep the order of a channel's values (batch norm reverses it where
    gamma < 0), so pooling goes first and the rest sees a quarter of the values;
    and the gradients of pooling and of the batch's statistics meet in one pass.

    Args:
      y: [B, H, W, C], H and W even.
      is_training: [] bool tensor: the batch's statistics, or the moving ones.
      decay: decay of the moving statistics.
      norm_scope: scope of batch norm's variables, "conv1_1/BatchNorm".
      scope: scope of the pooling, "pool_1_1".

    Returns:
      [B, H/2, W/2, C].
    """
    channels = y.shape.as_list()[-1]

    def variable(name, start, trainable=True):
        initializer = tf.constant_initializer(start)
        return slim.model_variable(name, [channels], initializer=initializer, trainable=trainable)

    with tf.variable_scope(norm_scope):
        gamma, beta = variable("gamma", 1.0), variable("beta", 0.0)
        moving_mean = variable("moving_mean", 0.0, trainable=False)
        moving_variance = variable("moving_variance", 1.0, trainable=False)

    @tf.custom_gradient
    def normalised(y, gamma, beta):
        count = tf.cast(tf.size(y) // channels, tf.float32)

        def of_batch():
            mean = tf.raw_ops.BiasAddGrad(out_backprop=y) / count  # a sum over all but channels
            variance = channel_sums(y, y) / count - tf.square(mean)
            unbiased = variance * count / (count - 1)
            with tf.control_dependencies(
                [
                    moving_mean.assign_sub((moving_mean - mean) * (1 - decay)),
                    moving_variance.assign_sub((moving_variance - unbiased) * (1 - decay)),
                ]
            ):
                return tf.identity(mean), tf.identity(variance)

        mean, variance = either(
            is_training, of_batch, lambda: (moving_mean.read_value(), moving_variance.read_value())
        )
        inverse = tf.rsqrt(variance + 0.001)
        scale = gamma * inverse
        chosen = pooled(y, scale)
        outputs = scaled_relu(chosen, scale, beta - scale * mean)

        def gradient(d_outputs):
            d_normal = tf.raw_ops.ReluGrad(gradients=d_outputs, features=outputs)
            d_beta = tf.raw_ops.BiasAddGrad(out_backprop=d_normal)
            d_gamma = (channel_sums(chosen, d_normal) - mean * d_beta) * inverse
            # Through the batch's mean and variance (Ioffe and Szegedy, arXiv
            # 1502.03167, section 3), which the moving ones do not depend on.
            through = tf.cast(is_training, tf.float32) * scale / count
            slope = -through * d_gamma * inverse
            offset = -through * d_beta - slope * mean
            return unpooled(y, chosen, d_normal, scale, slope, offset), d_gamma, d_beta

        return outputs, gradient

    with tf.name_scope(scope):
        return normalised(y, gamma, beta)


@one_pass
def adam_step(variable, m, v, gradient, l2_scale, beta1_power, beta2_power, **rates):
    """TensorFlow's Adam step on gradient + l2_scale * variable. Returns: a value to run it by."""
    value = tf.raw_ops.ReadVariableOp(resource=variable, dtype=tf.float32)
    value.set_shape(gradient.shape)
    tf.raw_ops.ResourceApplyAdam(
        var=variable,
        m=m,
        v=v,
        grad=gradient + l2_scale * value,
        beta1_power=beta1_power,
        beta2_power=beta2_power,
        **rates,
    )
    return tf.constant(True)


class Adam(tf.train.AdamOptimizer):
    """TensorFlow's Adam, which adds the L2 losses' gradients in the pass it makes anyway.

    Args:
      learning_rate: a number.
      l2_scales: variable name -> factor of sum(w^2)/2, for those that have such a loss.
      rate_scales: variable name -> its rate as a multiple of the others'. Scaling
        its gradient would do nothing: Adam divides by the gradient's size.
    """

    def __init__(self, learning_rate, l2_scales, rate_scales):
        super().__init__(learning_rate)
        self._l2_scales, self._rate_scales = l2_scales, rate_scales

    def _resource_apply_dense(self, grad, var):
        l2_scale = self._l2_scales.get(var.op.name, 0.0)
        m, v = (self.get_slot(var, name).handle for name in ("m", "v"))
        beta1_power, beta2_power = (p.read_value() for p in self._get_beta_accumulators())
        rates = {
            "lr": self._lr_t * self._rate_scales.get(var.op.name, 1.0),
            "beta1": self._beta1_t,
            "beta2": self._beta2_t,
            "epsilon": self._epsilon_t,
        }
        if l2_scale and var.shape.num_elements() >= ONE_PASS_MINIMUM:
            powers = (beta1_power, beta2_power)
            return adam_step(var.handle, m, v, grad, tf.constant(l2_scale), *powers, **rates).op
        return tf.raw_ops.ResourceApplyAdam(
            var=var.handle,
            m=m,
            v=v,
            grad=grad + l2_scale * var if l2_scale else grad,
            beta1_power=beta1_power,
            beta2_power=beta2_power,
            **rates,
        )


def gradients(loss, variables):
    """Gradients of the loss: on to all activations first, then to the layers' weights.

    On its way down, every unit waits for all towers. In TensorFlow's own order
    a core computes weight gradients, for which nobody waits, while the other
    stands idle. At the end they fill both.

    Args:
      loss: [] float32.
      variables: a layer's weights stand in one convolution or matrix product.

    Returns:
      A tensor for each variable.
    """
    layers = {  # by the name of its weights
        op.inputs[1].op.inputs[0].op.name: op
        for op in loss.graph.get_operations()
        if op.type in ("Conv2D", "MatMul") and op.inputs[1].op.type == "ReadVariableOp"
    }
    outputs = {name: op.outputs[0] for name, op in layers.items()}
    others = {v.op.name: v for v in variables if v.op.name not in layers}
    sources = outputs | others
    found = dict(zip(sources, tf.gradients(loss, list(sources.values()))))
    with tf.control_dependencies([tf.group(*(found[name] for name in outputs))]):
        for name, op in layers.items():
            x, weights = op.inputs
            (found[name],) = tf.gradients(
                outputs[name], weights, found[name], stop_gradients=[x], name="weight_gradients"
            )
    return [found[v.op.name] for v in variables]


def network(
    x,
    classes,
    is_training,
    unit,
    own_weight=1.0,
    fixed_others=False,
    hard_sharing=False,
    l2_scale=0.0,
    keep_prob=1.0,
    batch_norm_decay=0.999,
    seed=0,
):
    """The towers, tower t's scopes ending in _t, and the units between them.

    Args:
      x: [B, 28, 28, 1] float32.
      classes: number of classes of each task; as many towers are built, or one
        for all if there is hard sharing.
      is_training: [] bool tensor, or a Python bool.
      unit: one of `UNITS`, or None: then the towers share nothing.
      others: see `build`.

    Returns:
      Logits, a [B, classes] tensor a task, and the units' [T, T] mean weights
      by scope name.
    """
    ids = range(1, 2 if hard_sharing else len(classes) + 1)
    stitches = {}

    def stitched(towers, index):
        if unit is None:
            return towers
        scope = f"cross_stitch_{index}"
        towers, stitches[scope] = cross_stitch(towers, unit, own_weight, scope, fixed_others)
        return towers

    def each(layer, towers, scope, *args, **kwargs):
        return [layer(h, *args, scope=f"{scope}_{t}", **kwargs) for t, h in zip(ids, towers)]

    def pool(towers, conv, scope):
        return [
            batch_norm_relu_pool(
                h, is_training, batch_norm_decay, f"{conv}_{t}/BatchNorm", f"{scope}_{t}"
            )
            for t, h in zip(ids, towers)
        ]

    batch_norm = {
        "is_training": is_training,
        "decay": batch_norm_decay,
        "scale": True,
        "updates_collections": None,
    }
    with (
        tf.variable_scope("network"),
        slim.arg_scope(
            [slim.conv2d, slim.fully_connected],
            normalizer_fn=slim.batch_norm,
            normalizer_params=batch_norm,
            weights_initializer=he_initializer(seed),
            weights_regularizer=slim.l2_regularizer(l2_scale),
        ),
        # What follows a convolution is done along with its pooling.
        slim.arg_scope(
            [slim.conv2d], normalizer_fn=None, biases_initializer=None, activation_fn=None
        ),
    ):
        towers = [x for _ in ids]  # [B, 28, 28, 1]
        towers = each(slim.conv2d, towers, "conv1", 32, 3)  # [B, 28, 28, 32]
        towers = pool(towers, "conv1", "pool_1")  # [B, 14, 14, 32]
        towers = stitched(towers, 1)
        towers = each(slim.conv2d, towers, "conv2", 64, 3)  # [B, 14, 14, 64]
        towers = pool(towers, "conv2", "pool_2")  # [B, 7, 7, 64]
        towers = stitched(towers, 2)
        towers = each(slim.flatten, towers, "flatten")  # [B, 3136]
        towers = each(slim.fully_connected, towers, "fc_3", 1024)  # [B, 1024]
        towers = stitched(towers, 3)
        towers = each(dropout, towers, "dropout", keep_prob, is_training, seed)
        towers = towers * len(classes) if hard_sharing else towers
        # The reference's logits, too, pass through batch norm.
        logits = [
            slim.fully_connected(h, n, activation_fn=None, scope=f"output_{t}")
            for t, (h, n) in enumerate(zip(towers, classes), 1)
        ]
    return logits, stitches


def standardisation(mean=0.0, scale=1.0):
    """What the images were standardised with, as variables: they travel with the checkpoint.

    Args: each [28, 28], or one number for all pixels.
    Returns: [28, 28] float32 variables, mean and scale.
    """
    shape = [IMAGE_SIZE, IMAGE_SIZE]
    with (
        tf.variable_scope("placeholder", auxiliary_name_scope=False),
        tf.name_scope("placeholder/"),
    ):
        return [
            tf.get_variable(
                name, initializer=np.broadcast_to(np.float32(value), shape).copy(), trainable=False
            )
            for name, value in (("mean", mean), ("scale", scale))
        ]


def heat_map(weights):
    """Draws [T, T] weights: white at 0, blue to 1, red to -1. Returns: [1, 64 T, 64 T, 3] uint8."""
    weights = tf.clip_by_value(weights, -1.0, 1.0)[:, :, None]
    blue, red = tf.constant([0.03, 0.19, 0.42]), tf.constant([0.40, 0.00, 0.05])
    colours = 1 - tf.abs(weights) * (1 - tf_v2.where(weights > 0, blue, red))
    pixels = tf.repeat(tf.repeat(colours, 64, axis=0), 64, axis=1)
    return tf.cast(tf.round(255 * pixels), tf.uint8)[None]


def unit_summaries(stitches, names):
    """What the units hold: mean weights as scalars and as a picture, entries as a histogram.

    Args: stitches, unit scope -> [T, T] mean weights; names, of the tasks.
    Returns: one serialised summary, or None without units.
    """
    entries = {v.op.name.split("/")[1]: v for v in tf.trainable_variables() if "alpha" in v.op.name}
    summaries = []
    for scope, weights in stitches.items():
        summaries += [
            tf.summary.scalar(f"{scope}/{to}_from_{source}", weights[i, j])
            for i, to in enumerate(names)
            for j, source in enumerate(names)
        ]
        summaries.append(tf.summary.image(f"{scope}/mean_weights", heat_map(weights)))
        stride = entries[scope].shape.num_elements() // HISTOGRAM_VALUES + 1
        values = tf.reshape(entries[scope], [-1])[::stride]
        summaries.append(tf.summary.histogram(f"{scope}/weights", values))
    return tf.summary.merge(summaries) if summaries else None


def build(
    tasks,
    unit="channel",
    own_weight=1.0,
    fixed_others=False,
    stitch_rate_scale=1.0,
    hard_sharing=False,
    learning_rate=0.001,
    l2_scale=1e-5,
    keep_prob=0.8,
    batch_norm_decay=0.999,
    seed=0,
    statistics=(0.0, 1.0),
):
    """Builds the whole graph: network, loss, evaluation, training, summaries.

    Args:
      tasks: (name, number of classes) of each task, T >= 1 of them.
      unit: "channel", "layer" or "dense"; None leaves the towers unconnected.
      own_weight: cross-stitch start weight of a task's own activations.
      fixed_others: whether the cross-stitch weights of other tasks' activations
        stay as they start: with own_weight 1, units without any sharing.
      stitch_rate_scale: the units' learning rate as a multiple of the towers'.
      hard_sharing: one tower, and an output layer for each task; then no unit.
      learning_rate: Adam's.
      l2_scale: factor of sum(w^2)/2 over conv and fc weights.
      keep_prob: share of fc_3's activations that dropout keeps, in (0, 1].
      batch_norm_decay: decay of batch norm's moving mean and variance.
      seed: determines initial weights and dropout masks.
      statistics: mean and scale that the images are standardised with, [28, 28]
        each, or numbers; kept for `build_server`.

    Returns:
      A `Model`.

    Raises:
      ValueError: there is no task, the unit is unknown, or there is one with hard sharing.
    """
    if not tasks:
        raise ValueError("a network needs at least one task")
    if unit is not None and unit not in UNITS:
        raise ValueError(f"unknown cross-stitch unit {unit!r}: one of {', '.join(UNITS)}, or None")
    if unit is not None and hard_sharing:
        raise ValueError("one tower has nothing to stitch: unit must be None with hard_sharing")
    names = [name for name, _ in tasks]

    with tf.Graph().as_default() as graph:
        with tf.variable_scope("train") as train_scope:
            global_step = tf.train.create_global_step()

        with tf.name_scope("placeholder"):
            x = tf.placeholder(tf.float32, [None, IMAGE_SIZE, IMAGE_SIZE, 1], "X")
            labels = {name: tf.placeholder(tf.int32, [None], f"y_{name}") for name in names}
            is_training = tf.placeholder(tf.bool, [], "is_training")
        standardisation(*statistics)

        outputs, stitches = network(
            x,
            [n for _, n in tasks],
            is_training,
            unit,
            own_weight=own_weight,
            fixed_others=fixed_others,
            hard_sharing=hard_sharing,
            l2_scale=l2_scale,
            keep_prob=keep_prob,
            batch_norm_decay=batch_norm_decay,
            seed=seed,
        )
        logits = dict(zip(names, outputs))

        with tf.name_scope("loss"):
            losses = {
                name: tf.reduce_mean(
                    tf.nn.sparse_softmax_cross_entropy_with_logits(
                        labels=labels[name], logits=logits[name]
                    ),
                    name=name,
                )
                for name in names
            }
            l2_losses = tf.get_collection(tf.GraphKeys.REGULARIZATION_LOSSES)
            l2_loss = tf.add_n(l2_losses or [tf.constant(0.0)], name="l2")
            loss = tf.add_n([*losses.values(), l2_loss], name="total")

        with tf.name_scope("evaluation"):
            predictions = {
                name: tf.argmax(logits[name], axis=1, output_type=tf.int32) for name in names
            }
            accuracies = {
                name: tf.reduce_mean(
                    tf.cast(tf.equal(predictions[name], labels[name]), tf.float32), name=name
                )
                for name in names
            }
            accuracy = tf.reduce_mean(tf.stack(list(accuracies.values())), name="mean")

        # A variable scope, so that Adam's moments stand under "train" as well;
        # its name scope is entered anew, or TensorFlow would name it "train_1".
        with tf.variable_scope(train_scope, auxiliary_name_scope=False), tf.name_scope("train/"):
            trained = [v.op.name for v in tf.trainable_variables()]
            optimizer = Adam(
                learning_rate,
                {name: l2_scale for name in trained if name.endswith("/weights")},
                {name: stitch_rate_scale for name in trained if name.endswith("/alpha")},
            )
            cross_entropy = tf.add_n([*losses.values()])
            if stitches:
                variables = tf.trainable_variables()
                found = zip(gradients(cross_entropy, variables), variables)
            else:  # Towers that wait for nobody are faster in TensorFlow's order.
                found = optimizer.compute_gradients(cross_entropy)
            # A step's L2 loss, wanted or not, reads the weights before Adam changes them.
            reads = [op.inputs[0].op for op in graph.get_operations() if op.type == "L2Loss"]
            with tf.control_dependencies(reads):
                train_op = optimizer.apply_gradients(found, global_step)

        with tf.name_scope("summary"):
            summary_op = tf.summary.merge(
                [tf.summary.scalar("loss_total", loss), tf.summary.scalar("loss_l2", l2_loss)]
                + [tf.summary.scalar(f"loss_{name}", losses[name]) for name in names]
                + [tf.summary.scalar("accuracy_train", accuracy)]
                + [tf.summary.scalar(f"accuracy_train_{name}", accuracies[name]) for name in names]
            )
            unit_summary_op = unit_summaries(stitches, names)

        with tf.name_scope("train/"):
            initializer = tf.global_variables_initializer()
            numbers = [v for v in tf.global_variables() if v.dtype.base_dtype.is_floating]
            finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(v)) for v in numbers])

    return Model(
        graph,
        x,
        labels,
        is_training,
        logits,
        predictions,
        losses,
        l2_loss,
        loss,
        accuracies,
        accuracy,
        stitches,
        train_op,
        finite,
        global_step,
        summary_op,
        unit_summary_op,
        initializer,
    )


def build_server(tasks, unit, hard_sharing=False):
    """Builds the trained network from raw images to named classes, and nothing else.

    Its variables are to be restored from a checkpoint of `build`'s graph.

    Args:
      tasks: (name, names of the classes) of each task.
      unit, hard_sharing: as given to `build`.

    Returns:
      A `Server`.
    """
    with tf.Graph().as_default() as graph:
        images = tf.placeholder(tf.uint8, [None, IMAGE_SIZE, IMAGE_SIZE], "images")
        mean, scale = standardisation()
        x = ((tf.cast(images, tf.float32) - mean) * scale)[..., tf.newaxis]
        classes = [len(names) for _, names in tasks]
        logits, _ = network(x, classes, False, unit, hard_sharing=hard_sharing)
        outputs = {}
        for (task, names), z in zip(tasks, logits):
            ids = tf.argmax(z, axis=1, output_type=tf.int32)
            outputs[f"{task}_id"] = ids
            outputs[f"{task}_name"] = tf.gather(tf.constant(names), ids)
            outputs[f"{task}_probabilities"] = tf.nn.softmax(z)
    return Server(graph, images, outputs)
