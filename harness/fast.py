"""A faster form of the conv layers, for CPUs. It computes what the plain form computes.

TensorFlow runs op by op, and each op reads and writes all activations. This form takes fewer
passes over memory. tests/test_equivalence.py holds it against the plain graph. tests/README.md
has the speed-up.

To delete it: delete this file; in model.py its import, in `conv_pool` the branch that asks for
`fast`, and in `layer_defaults` the arg scope that sets it; then the argument `fast` wherever it is
passed on.
"""

import functools

import tensorflow as tf_v2
import tensorflow.compat.v1 as tf

from harness.slim import slim

BATCH_NORM_EPSILON = 0.001  # slim's default


def one_pass(function):
    """Compiles elementwise ops into one loop over memory (XLA)."""
    return tf_v2.function(function, autograph=False, jit_compile=True)


def channel_sums(x, y):
    """tf.reduce_sum(x * y, axis=[0, 1, 2]), computed without storing x * y.

    It is the filter gradient of a 1x1 depthwise convolution, the only op of
    TensorFlow's that multiplies and adds up in one pass.

    Args:
      x, y: [B, H, W, C] or [B, C].

    Returns:
      [C].
    """
    channels = x.shape.as_list()[-1]
    x, y = (tf.reshape(z, [tf.shape(z)[0], 1, -1, channels]) for z in (x, y))
    sums = tf.nn.depthwise_conv2d_backprop_filter(
        x, [1, 1, channels, 1], y, strides=[1] * 4, padding="VALID"
    )
    return tf.reshape(sums, [channels])


def fused_conv_pool(x, filters, scope, pool_scope):
    """`conv_pool` of model.py. Args and returns as there."""
    with tf.name_scope(pool_scope) as pool_scope:
        pass  # only makes its full name, for the ops that slim.conv2d builds in its own scope
    norm = functools.partial(batch_norm_relu_pool, pool_scope=pool_scope)
    return slim.conv2d(x, filters, 3, normalizer_fn=norm, activation_fn=None, scope=scope)


def batch_norm_relu_pool(y, is_training, decay, scale, updates_collections, pool_scope):
    """slim.max_pool2d(tf.nn.relu(slim.batch_norm(y, ...)), 2), in a third of the passes.

    Batch norm and ReLU keep the order of a channel's values (batch norm reverses it
    where gamma < 0). So pooling goes first, and the other two see a quarter of the
    values. Going back, the gradients of pooling and of the batch's statistics are
    computed in one pass.

    Args:
      y: [B, H, W, C] float32 or bfloat16, H and W even. The current variable scope is the layer's.
      is_training: [] bool tensor: use the batch's statistics, or the moving ones.
      decay: decay of the moving statistics.
      pool_scope: full name scope of the pooling, "network/pool_1_1/".
      scale, updates_collections: as `layer_defaults` gives them to slim.batch_norm; fixed here.

    Returns:
      [B, H/2, W/2, C] float32.
    """
    channels = y.shape.as_list()[-1]

    def variable(name, start, trainable=True):
        initializer = tf.constant_initializer(start)
        return slim.model_variable(name, [channels], initializer=initializer, trainable=trainable)

    with tf.variable_scope("BatchNorm"):
        gamma, beta = variable("gamma", 1.0), variable("beta", 0.0)
        moving_mean = variable("moving_mean", 0.0, trainable=False)
        moving_variance = variable("moving_variance", 1.0, trainable=False)

    @tf.custom_gradient
    def normalise(y, gamma, beta):
        count = tf.cast(tf.size(y) // channels, tf.float32)

        def of_batch():
            mean, variance = moments(y, count)
            unbiased = variance * count / (count - 1)
            update_mean = moving_mean.assign_sub((moving_mean - mean) * (1 - decay))
            update_variance = moving_variance.assign_sub((moving_variance - unbiased) * (1 - decay))
            with tf.control_dependencies([update_mean, update_variance]):
                return tf.identity(mean), tf.identity(variance)

        def moving():
            return moving_mean.read_value(), moving_variance.read_value()

        mean, variance = tf.cond(is_training, of_batch, moving)
        inverse = tf.rsqrt(variance + BATCH_NORM_EPSILON)
        scale = gamma * inverse
        extremes = pool_extremes(y, scale)
        outputs = scaled_relu(extremes, scale, beta - scale * mean)

        def gradient(d_outputs):
            d_normal = tf.raw_ops.ReluGrad(gradients=d_outputs, features=outputs)
            d_beta = tf.raw_ops.BiasAddGrad(out_backprop=d_normal)
            d_gamma = (channel_sums(extremes, d_normal) - mean * d_beta) * inverse
            # In training, y also acts through the batch's mean and variance (Ioffe and
            # Szegedy, arXiv 1502.03167, section 3); the moving ones do not depend on it.
            through = tf.cast(is_training, tf.float32) * scale / count
            slope = -through * d_gamma * inverse
            offset = -through * d_beta - slope * mean
            d_y = pool_gradient(y, extremes, d_normal, scale, slope, offset)
            return d_y, d_gamma, d_beta

        return outputs, gradient

    with tf.name_scope(pool_scope):
        return normalise(y, gamma, beta)


def moments(y, count):
    """Mean and variance of each channel. Args: [B, H, W, C], B*H*W. Returns: [C] float32 each."""
    if y.dtype == tf.bfloat16:  # sums of squares need more digits than it has
        ones = tf.ones(y.shape[-1:])
        _, mean, unbiased, *_ = tf.raw_ops.FusedBatchNormV3(
            x=y, scale=ones, offset=ones, mean=[], variance=[], is_training=True
        )
        return mean, unbiased * (count - 1) / count
    mean = tf.raw_ops.BiasAddGrad(out_backprop=y) / count  # sums over all but channels
    return mean, tf.maximum(channel_sums(y, y) / count - tf.square(mean), 0.0)


@one_pass
def pool_extremes(y, scale):
    """tf.nn.max_pool2d(y, 2, 2, "SAME") where scale >= 0; the smallest values where not.

    Args:
      y: [B, H, W, C] float32 or bfloat16, H and W even.
      scale: [C].

    Returns:
      [B, H/2, W/2, C] float32.
    """
    y = tf.cast(y, tf.float32)
    a, b, c, d = window_values(y)
    largest = tf.maximum(tf.maximum(a, b), tf.maximum(c, d))
    smallest = tf.minimum(tf.minimum(a, b), tf.minimum(c, d))
    return tf_v2.where(scale >= 0, largest, smallest)


@one_pass
def scaled_relu(x, scale, shift):
    """tf.nn.relu(scale * x + shift). Args: [B, H, W, C]; [C] each."""
    return tf.nn.relu(scale * x + shift)


@one_pass
def pool_gradient(y, extremes, d_extremes, scale, slope, offset):
    """The gradient of scale * pool_extremes(y) by y, plus slope * y + offset.

    If values of a window tie, the first one receives the gradient.

    Args:
      y: [B, H, W, C] float32 or bfloat16.
      extremes, d_extremes: [B, H/2, W/2, C].
      scale, slope, offset: [C].

    Returns:
      [B, H, W, C], as y.
    """
    precision, y = y.dtype, tf.cast(y, tf.float32)
    a, b, c, _ = [tf.equal(values, extremes) for values in window_values(y)]
    first = tf_v2.where(a, 0, tf_v2.where(b, 1, tf_v2.where(c, 2, 3)))
    _, height, width, channels = y.shape.as_list()
    position = tf.reshape(tf.range(4), [1, 1, 2, 1, 2, 1])
    is_first = tf.equal(first[:, :, None, :, None], position)
    spread = tf_v2.where(is_first, (scale * d_extremes)[:, :, None, :, None], 0.0)
    d_y = tf.reshape(spread, [-1, height, width, channels]) + (slope * y + offset)
    return tf.cast(d_y, precision)


def window_values(y):
    """The four values of every 2x2 window. Args: [B, H, W, C]. Returns: four [B, H/2, W/2, C]."""
    _, height, width, channels = y.shape.as_list()
    y = tf.reshape(y, [-1, height // 2, 2, width // 2, 2, channels])
    return [y[:, :, row, :, column] for row in range(2) for column in range(2)]
