"""Cross-stitch networks as a TensorFlow 1.x graph, with layers from TF-Slim.

One convolutional tower per task looks at the same image. After each pooling and
fully connected layer, a cross-stitch unit replaces the activations of every tower
by a learned linear combination of the activations of all towers (Misra et al.,
"Cross-stitch Networks for Multi-task Learning", arXiv 1604.03539, section 3).

    import tensorflow as tf
    import model
    net = model.build([("article", 10), ("group", 3)], model.Config(cross_stitch_unit="layer"))
    with tf.compat.v1.Session(graph=net.graph) as session:
        session.run(net.initializer)
        session.run(net.train_op, feed_dict={net.x: ..., net.is_training: True, ...})

This file only builds graphs: no files, no flags, no printing. It reads from top to
bottom: cross-stitch units, hyper-parameters, network, loss, training step, summaries,
the whole graph, serving. `build(..., fast=False)` is the plain program. By default,
conv1 and conv2, with batch norm, ReLU and pooling, are the faster form of harness/fast.py.
"""

import contextlib
import dataclasses
import hashlib
import re
import typing
import zlib

import numpy as np
import tensorflow as tf_v2
import tensorflow.compat.v1 as tf

from harness import bfloat16
from harness.fast import fused_conv_pool
from harness.names import PLACES, unit_scope
from harness.slim import slim

IMAGE_SHAPE = (28, 28, 1)  # height, width and channels of Fashion-MNIST


# --- Cross-stitch units ---
#
# A unit is one function, named in `UNITS`. It replaces the activations of T towers by
# combinations of them (equation 1 of the paper).
#
# Args:
#   towers: T tensors of one shape, [B, H, W, C] or [B, C].
#   start: [T, T] numpy float32, made by `start_weights`: the first weight of tower j's
#     values in those of tower i.
#   config: a `Config`.
#
# Returns:
#   T tensors of the shape that came in, and the unit's mean weights, [T, T]: row i, column
#   j is the sum of all weights of tower j in a value of tower i, averaged over i's values.
#
# A unit makes its variables with tf.get_variable and an initializer, and passes those that
# mix towers through `trained_part`. What an initializer draws at random needs a seed, such as
# that of `he_initializer`, or runs would not repeat. Layers from slim would bring ReLU, and
# the batch norm and L2 loss of `layer_defaults`. A loss of the unit's own goes into the collection
# REGULARIZATION_LOSSES, as the `regularizer` of tf.get_variable does.


def channel_unit(towers, start, config):
    """The paper's unit: out_i[..., c] = sum_j alpha[i, j, c] * x_j[..., c]."""
    channels = towers[0].shape.as_list()[-1]
    alpha = tf.get_variable(  # [T, T, C]
        "alpha", initializer=np.repeat(start[:, :, None], channels, axis=2)
    )
    outputs = linear_combinations(trained_part(alpha, len(towers), config), towers)
    return outputs, tf.reduce_mean(alpha, axis=2)


def layer_unit(towers, start, config):
    """One weight for a whole layer (the paper's figure 3): out_i = sum_j alpha[i, j] * x_j."""
    alpha = tf.get_variable("alpha", initializer=start)  # [T, T]
    outputs = linear_combinations(trained_part(alpha, len(towers), config), towers)
    return outputs, tf.identity(alpha)


def nddr_unit(towers, start, config):
    """One weight per pair of channels: out = alpha x, x all towers' channels at one position.

    The linear map of an NDDR layer (Gao et al., CVPR 2019, arXiv 1801.08297), without the
    batch norm and ReLU that follow it there, and without weight decay on alpha.
    """
    num_towers, shape = len(towers), towers[0].shape.as_list()[1:]
    channels = shape[-1]

    def initializer(_, dtype, partition_info=None):
        # A Kronecker product, computed in the graph: for dense units, a constant of this
        # size would not fit into a graph definition.
        blocks = start[:, None, :, None] * tf.eye(channels, dtype=dtype)[:, None, :]
        return tf.reshape(blocks, [num_towers * channels] * 2)

    size = num_towers * channels
    alpha = tf.get_variable("alpha", [size, size], initializer=initializer)  # [T*C, T*C]
    x = tf.reshape(tf.concat(towers, axis=-1), [-1, size])  # [B*H*W, T*C]
    x, weights = (
        tf.cast(y, config.precision) for y in (x, trained_part(alpha, num_towers, config))
    )
    mixed = tf.cast(tf.einsum("bi,oi->bo", x, weights), tf.float32)
    outputs = [tf.reshape(y, [-1, *shape]) for y in tf.split(mixed, num_towers, axis=1)]
    blocks = tf.reshape(alpha, [num_towers, channels, num_towers, channels])
    return outputs, tf.reduce_sum(blocks, [1, 3]) / channels


def dense_unit(towers, start, config):
    """The original repository's unit: out = alpha x, where x holds all values of all towers."""
    shape = towers[0].shape.as_list()[1:]
    flat = [tf.reshape(x, [-1, int(np.prod(shape))]) for x in towers]  # [B, D], D = H*W*C
    outputs, mean_weights = nddr_unit(flat, start, config)  # alpha [T*D, T*D]
    return [tf.reshape(y, [-1, *shape]) for y in outputs], mean_weights


UNITS = {"channel": channel_unit, "layer": layer_unit, "nddr": nddr_unit, "dense": dense_unit}


def add_unit(towers, scope, config):
    """Adds the unit that the config names, in a variable scope such as "cross_stitch_1".

    Args: those of a unit, above, with its scope in place of its start weights, which follow
      from the config. Returns: as a unit does.
    """
    start = start_weights(len(towers), config.cross_stitch_init)
    with tf.variable_scope(scope):
        return UNITS[config.cross_stitch_unit](towers, start, config)


def unit_of(variable_name):
    """Returns the scope of the unit that a variable belongs to, or None for other variables.

    A unit's variables are those below its scope, whatever their names. The units' learning
    rate, their histograms, --init_from and the study's distances go by it.
    """
    below_unit = re.match(r"network/(cross_stitch_\d+)/", variable_name)
    return below_unit and below_unit[1]


def start_weights(num_towers, own_weight):
    """Start weights of a unit (paper, section 5.1, which favours 0.9 and 0.1).

    Args:
      num_towers: T.
      own_weight: weight of a task's own activations; the other tasks share the rest.

    Returns:
      [T, T] float32. Row i sums to 1 if there is more than one tower.
    """
    others = (1.0 - own_weight) / max(num_towers - 1, 1)
    weights = np.full([num_towers, num_towers], others, np.float32)
    np.fill_diagonal(weights, own_weight)
    return weights


def trained_part(alpha, num_towers, config):
    """alpha itself; with `cross_stitch_own_only`, no gradient reaches the other towers' weights.

    Args:
      alpha: [T, T, ...], or [T*N, T*N] made of T x T blocks.
      num_towers: T.
      config: a `Config`.

    Returns:
      A tensor of the shape of alpha.
    """
    if not config.cross_stitch_own_only:
        return alpha
    shape = alpha.shape.as_list()
    blocks = tf.reshape(alpha, [num_towers, shape[0] // num_towers, num_towers, -1])
    own = tf.eye(num_towers, dtype=tf.bool)[:, None, :, None]
    return tf.reshape(tf_v2.where(own, blocks, tf.stop_gradient(blocks)), shape)


def linear_combinations(weights, towers):
    """[sum_j weights[i, j] * towers[j] for each i].

    Args:
      weights: [T, T, C] or [T, T].
      towers: T tensors of one shape, [B, H, W, C] or [B, C].

    Returns:
      T tensors of the shape that came in.
    """
    ids = range(len(towers))
    return [tf.add_n([weights[i, j] * towers[j] for j in ids]) for i in ids]


# --- Hyper-parameters ---


def option(default, help, **choices):
    """A field of `Config`, with what train.py needs to define a flag of the same name."""
    return dataclasses.field(default=default, metadata={"help": help, **choices})


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyper-parameters of network and training. Each is also a flag of train.py."""

    cross_stitch: bool = option(True, "Connect the towers with cross-stitch units.")
    cross_stitch_unit: str = option(
        "channel",
        "One weight per channel, layer, pair of channels (nddr), or pair of values (dense).",
        enum_values=UNITS,
    )
    cross_stitch_init: float = option(
        1.0, "Initial weight of a task's own activations; the other tasks share the rest."
    )
    cross_stitch_learning_rate_scale: float = option(
        1.0, "Learning rate of the units, as a multiple of the towers'."
    )
    cross_stitch_own_only: bool = option(
        False, "Fix the weights of other tasks' activations at 0: units that share nothing."
    )
    cross_stitch_at: str = option(",".join(PLACES), "Layers that a unit follows.")
    share_until: str = option(
        None, "Share the layers up to this one; towers and units come after it.", enum_values=PLACES
    )
    keep_prob: float = option(0.8, "Share of the fc_3 activations that dropout keeps.")
    batch_norm_decay: float = option(
        0.9, "Decay of batch norm's moving mean and variance; the original used 0.999."
    )
    learning_rate: float = option(0.001, "Adam's learning rate.")
    l2_scale: float = option(1e-5, "Factor of the L2 loss, sum(w^2)/2 over conv and fc weights.")
    precision: str = option(
        "float32",
        "Of large products: bfloat16 is faster where the processor has it; no loss of accuracy was found.",
        enum_values=("float32", "bfloat16"),
    )
    seed: int = 0  # of initial weights and dropout

    def stitched_places(self):
        """The layers that a unit follows. There are towers to connect only after share_until."""
        if not self.cross_stitch:
            return []
        first = PLACES.index(self.share_until) + 1 if self.share_until else 0
        return [place for place in PLACES[first:] if place in self.cross_stitch_at.split(",")]


# --- The network ---


def network(x, classes, is_training, config, fast):
    """The towers and the cross-stitch units between them. Scopes of tower t end in _t.

    A new layer is one more line here. To allow a unit after it, and towers that begin there,
    pass it through `after`, and add its place to `PLACES` in harness/names.py. This one has
    a unit, and dropout follows it now, as it is the last of `PLACES`:

        towers = after("fc_4", each(slim.fully_connected, towers, 512, scope="fc_4"))

    Args:
      x: [B, H, W, C] float32, standardised images; H and W are multiples of 4.
      classes: number of classes of each task.
      is_training: [] bool tensor, or the Python value False for prediction only.
      config: a `Config`.
      fast: use the form of `conv_pool` in harness/fast.py, which needs a tensor `is_training`.

    Returns:
      Logits, [B, classes] for each task, and the units' mean weights, scope -> [T, T].

    Raises:
      ValueError: the network has not all of `PLACES`, or one that is not in it.
    """
    mean_weights, passed = {}, []

    def each(layer, towers, *args, **kwargs):
        """Applies the layer to every tower. Keywords that name scopes get the tower's end _t."""

        def for_tower(t):
            return {k: f"{v}_{t}" if k.endswith("scope") else v for k, v in kwargs.items()}

        return [layer(h, *args, **for_tower(t)) for t, h in enumerate(towers, 1)]

    def after(place, towers):
        """What follows a layer: its unit, if the config asks for one; dropout after the last;
        and a tower for each task, if the tasks share the layers up to here."""
        passed.append(place)
        if len(towers) > 1 and place in config.stitched_places():
            scope = unit_scope(place)
            towers, mean_weights[scope] = add_unit(towers, scope, config)
        if place == PLACES[-1]:
            # Before towers part: with hard sharing, all tasks have one mask.
            towers = each(dropout, towers, scope="dropout")
        return [towers[0]] * len(classes) if place == config.share_until else towers

    with (
        tf.variable_scope("network", custom_getter=bfloat16.rounded),
        slim.arg_scope(layer_defaults(is_training, config, fast)),
    ):
        towers = [x] if config.share_until else [x] * len(classes)  # [B, H, W, C]
        towers = after("pool_1", each(conv_pool, towers, 32, scope="conv1", pool_scope="pool_1"))
        # [B, H/2, W/2, 32]
        towers = after("pool_2", each(conv_pool, towers, 64, scope="conv2", pool_scope="pool_2"))
        # [B, H/4, W/4, 64]
        towers = each(slim.flatten, towers, scope="flatten")  # [B, 4 H W]
        towers = [tf.cast(h, config.precision) for h in towers]
        towers = after("fc_3", each(slim.fully_connected, towers, 1024, scope="fc_3"))  # [B, 1024]

        # The original's output layer has batch norm, too.
        logits = [
            slim.fully_connected(h, n, activation_fn=None, scope=f"output_{t}")
            for t, (h, n) in enumerate(zip(towers, classes), 1)
        ]
    if passed != list(PLACES):
        raise ValueError(f"the network has the places {passed}, and harness/names.py {PLACES}")
    return logits, mean_weights


def layer_defaults(is_training, config, fast):
    """Batch norm, He initialisation and L2 loss for all conv and fc layers, and the settings of
    `dropout` and `conv_pool`. An arg scope."""
    batch_norm = {
        "is_training": is_training,
        "decay": config.batch_norm_decay,
        "scale": True,
        "updates_collections": None,
    }
    with (
        slim.arg_scope(
            [slim.conv2d, slim.fully_connected],
            normalizer_fn=bfloat16.batch_norm,
            normalizer_params=batch_norm,
            weights_initializer=he_initializer(config.seed),
            weights_regularizer=bfloat16.l2_regularizer(config.l2_scale),
        ),
        slim.arg_scope(
            [dropout], keep_prob=config.keep_prob, is_training=is_training, seed=config.seed
        ),
        slim.arg_scope([conv_pool], precision=config.precision, fast=fast) as scope,
    ):
        return scope


@slim.add_arg_scope
def conv_pool(x, filters, scope, pool_scope, precision="float32", fast=False):
    """A 3x3 convolution with batch norm and ReLU, and 2x2 max pooling.

    Args:
      x: [B, H, W, C], H and W even.
      filters: number of output channels, F.
      scope, pool_scope: for example "conv1_1" and "pool_1_1".
      precision: of the convolution, as in `Config`.
      fast: use the form of harness/fast.py.

    Returns:
      [B, H/2, W/2, F] float32.

    Raises:
      ValueError: H or W is odd.
    """
    height, width = x.shape.as_list()[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"{scope}: cannot pool {height}x{width} values: both must be even")
    x = tf.cast(x, precision)
    if fast:
        return fused_conv_pool(x, filters, scope, pool_scope)
    return slim.max_pool2d(slim.conv2d(x, filters, 3, scope=scope), 2, scope=pool_scope)


@slim.add_arg_scope
def dropout(x, scope, keep_prob=1.0, is_training=False, seed=0):
    """slim.dropout with a mask that depends only on the seed, the scope and the step.

    slim draws masks from a stream that a resumed run would start again.

    Args:
      x: [B, C].
      scope: for example "dropout_1".
      keep_prob: share of the values that is kept.
      is_training: [] bool tensor, or the Python value False for prediction only.
      seed: the run's seed.

    Returns:
      [B, C].
    """
    if is_training is False:
        return slim.dropout(x, keep_prob, is_training=False, scope=scope)
    with tf.name_scope(scope):
        step = tf.train.get_global_step()
        step_seed = tf.stack([tf.cast(op_seed(seed, scope), tf.int64), step])
        keep_prob = tf.where(is_training, keep_prob, 1.0)
        kept = tf_v2.random.stateless_uniform(tf.shape(x), step_seed) < keep_prob
        return x * (tf.cast(kept, tf.float32) / keep_prob)


def he_initializer(seed):
    """He et al. (arXiv 1502.01852) as slim scales it, seeded by the variable's scope."""

    def initializer(shape, dtype=tf.float32, partition_info=None):
        name = tf.get_variable_scope().name
        return slim.variance_scaling_initializer(seed=op_seed(seed, name))(shape, dtype)

    return initializer


def op_seed(seed, name):
    """A seed for one op, computed from the run's seed and the op's name.

    TensorFlow 1 would count the ops made so far: one more unit would change the start
    weights of all later layers, and runs with and without units could not be paired.
    """
    return zlib.crc32(f"{seed}/{name}".encode()) & 0x7FFFFFFF


def statistics_variables(image_shape, mean=0.0, scale=1.0):
    """Statistics of the training images, as variables: they are saved in checkpoints.

    Args:
      image_shape: height, width and channels.
      mean, scale: as an image each, [H, W] or [H, W, C], or one number for all pixels.

    Returns:
      float32 variables, mean and scale: [H, W, C], or [H, W] for one channel.
    """
    with (
        tf.variable_scope("placeholder", auxiliary_name_scope=False),
        tf.name_scope("placeholder/"),
    ):
        return [
            tf.get_variable(
                name,
                stored_shape(image_shape),
                initializer=tf.constant_initializer(value),
                trainable=False,
            )
            for name, value in (("mean", mean), ("scale", scale))
        ]


def stored_shape(image_shape):
    """The shape of an image in files and exports: one channel has no dimension of its own."""
    return list(image_shape if image_shape[2] > 1 else image_shape[:2])


# --- Loss and evaluation ---


def cross_entropies(logits, labels, some_unknown):
    """Mean cross-entropy of each task over the batch, in nats. Returns: task -> [].

    With `some_unknown`, over the images whose label is not negative; without any, it is 0.
    """
    return {
        name: mean_of_known(
            tf.nn.sparse_softmax_cross_entropy_with_logits(
                # A negative label would make it NaN.
                labels=tf.maximum(labels[name], 0) if some_unknown else labels[name],
                logits=logits[name],
            ),
            labels[name] if some_unknown else None,
            name,
        )
        for name in logits
    }


def mean_of_known(values, labels, name):
    """The mean of values over the batch, or over the images whose label is not negative.

    Args:
      values: [B] float32.
      labels: [B] int32; None if all are known.
      name: of the result.

    Returns:
      [], 0 if no label is known.
    """
    if labels is None:
        return tf.reduce_mean(values, name=name)
    known = tf.cast(labels >= 0, tf.float32)
    return tf.math.divide_no_nan(tf.reduce_sum(known * values), tf.reduce_sum(known), name=name)


def regularisation_loss():
    """The L2 losses of conv and fc layers, and other regularisers, added up. Returns: []."""
    return total(tf.get_collection(tf.GraphKeys.REGULARIZATION_LOSSES), "l2")


def total(losses, name):
    """The sum of losses. Args: tensors of shape [], or none of them. Returns: []."""
    # tf.add_n begins with an input whose memory is free by then, so the last bit would depend
    # on timing.
    return tf.reduce_sum(tf.stack(losses or [0.0]), name=name)


def accuracies_of(predictions, labels, some_unknown):
    """Share of the batch that is predicted correctly. Returns: task -> [], and their mean.

    With `some_unknown`, of the images whose label is not negative, and the mean over the tasks
    that have any.
    """
    accuracies = {
        name: mean_of_known(
            tf.cast(tf.equal(predictions[name], labels[name]), tf.float32),
            labels[name] if some_unknown else None,
            name,
        )
        for name in predictions
    }
    of_tasks = tf.stack(list(accuracies.values()))
    if not some_unknown:
        return accuracies, tf.reduce_mean(of_tasks, name="mean")
    # Of each task, negative if no image of the batch has a label.
    largest_labels = tf.stack([tf.reduce_max(labels[name]) for name in accuracies])
    return accuracies, mean_of_known(of_tasks, largest_labels, "mean")


# --- The training step ---


def training_step(loss, global_step, config):
    """One step of Adam on the reported loss.

    Args:
      loss: [].
      global_step: variable that the step increments.
      config: a `Config`.

    Returns:
      The step's operation.
    """
    names = [v.op.name for v in tf.trainable_variables()]
    scale = config.cross_stitch_learning_rate_scale
    optimizer = Adam(config.learning_rate, {name: scale for name in names if unit_of(name)})
    gradients = optimizer.compute_gradients(loss)
    # The loss that is reported with a step is that of the weights before the step.
    with tf.control_dependencies([loss]):
        return optimizer.apply_gradients(gradients, global_step)


class Adam(tf.train.AdamOptimizer):
    """tf.train.AdamOptimizer with a learning rate of its own for some variables.

    To scale the gradients of some variables would not change their rate: Adam divides by
    the size of the gradient. A second optimizer would name its variables differently.

    Args:
      learning_rate: a number.
      rate_scales: variable name -> its learning rate, as a multiple of the others'.
    """

    def __init__(self, learning_rate, rate_scales):
        super().__init__(learning_rate)
        self._rate_scales = rate_scales

    def _resource_apply_dense(self, grad, var):
        beta1_power, beta2_power = self._get_beta_accumulators()
        return tf.raw_ops.ResourceApplyAdam(
            var=var.handle,
            m=self.get_slot(var, "m").handle,
            v=self.get_slot(var, "v").handle,
            beta1_power=beta1_power.read_value(),
            beta2_power=beta2_power.read_value(),
            lr=self._lr_t * self._rate_scales.get(var.op.name, 1.0),
            beta1=self._beta1_t,
            beta2=self._beta2_t,
            epsilon=self._epsilon_t,
            grad=grad,
        )


# --- Summaries ---

# At most so many of a variable's weights: the largest dense unit has 157 million.
HISTOGRAM_VALUES = 2**20


def batch_summary(losses, l2_loss, loss, accuracies, accuracy):
    """Losses and accuracies of the batch that was fed. Returns: a serialised summary."""
    scalars = {"loss_total": loss, "loss_l2": l2_loss}
    scalars |= {f"loss_{name}": value for name, value in losses.items()}
    scalars |= {"accuracy_train": accuracy}
    scalars |= {f"accuracy_train_{name}": value for name, value in accuracies.items()}
    return tf.summary.merge([tf.summary.scalar(tag, value) for tag, value in scalars.items()])


def unit_summary(mean_weights, tasks):
    """Mean weights of every unit as scalars, all its weights as a histogram.

    Args:
      mean_weights: unit scope -> [T, T].
      tasks: names of the tasks.

    Returns:
      A serialised summary, or None if there are no units.
    """
    summaries = []
    for scope, weights in mean_weights.items():
        summaries += [
            tf.summary.scalar(f"{scope}/{to}_from_{source}", weights[i, j])
            for i, to in enumerate(tasks)
            for j, source in enumerate(tasks)
        ]
        variables = [v for v in tf.trainable_variables() if unit_of(v.op.name) == scope]
        strides = [v.shape.num_elements() // HISTOGRAM_VALUES + 1 for v in variables]
        values = [tf.reshape(v, [-1])[::stride] for v, stride in zip(variables, strides)]
        summaries.append(tf.summary.histogram(f"{scope}/weights", tf.concat(values, 0)))
    return tf.summary.merge(summaries) if summaries else None


# --- The whole graph ---


@contextlib.contextmanager
def new_graph():
    """A graph with resource variables, which `Adam` needs, whatever TensorFlow's default is."""
    with tf.Graph().as_default() as graph:
        tf.get_variable_scope().set_use_resource(True)
        yield graph


class Model(typing.NamedTuple):
    """Tensors and operations of one graph. Dictionaries are keyed by task, in task order."""

    graph: tf.Graph
    x: tf.Tensor  # [B, H, W, C] float32, standardised images
    labels: dict  # task -> [B] int32; negative: unknown, if built for it
    is_training: tf.Tensor  # [] bool: use batch statistics and dropout
    logits: dict  # task -> [B, classes] float32
    predictions: dict  # task -> [B] int32
    losses: dict  # task -> [] cross-entropy, nats, mean over the batch
    l2_loss: tf.Tensor  # [] L2 losses of conv and fc layers, and other regularisers
    loss: tf.Tensor  # [] the sum of these: what a step minimises
    accuracies: dict  # task -> [] share of the batch that is predicted correctly
    accuracy: tf.Tensor  # [] mean of the tasks' accuracies
    mean_weights: dict  # unit scope -> [T, T], row = to, column = from
    unit_variables: list  # the variables of all units
    train_op: tf.Operation  # one Adam step; increments global_step
    finite: tf.Tensor  # [] bool: no variable holds a NaN or an infinity
    global_step: tf.Variable
    summary_op: tf.Tensor  # serialised scalars of the batch that was fed
    unit_summary_op: tf.Tensor  # serialised weights of the units; None without units
    initializer: tf.Operation  # sets all variables to their start values

    def num_weights(self):
        """Counts the trained weights."""
        return sum(variable.shape.num_elements() for variable in self.trained())

    def checksum(self):
        """SHA-256 of the trained variables' names and shapes: which network this is."""
        lines = sorted(f"{v.op.name} {v.shape.as_list()}\n" for v in self.trained())
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def trained(self):
        """The trained variables, a list."""
        return self.graph.get_collection(tf.GraphKeys.TRAINABLE_VARIABLES)

    def tower_variables(self):
        """The network's variables but for the units': what a run may take from another, a list."""
        of_network = self.graph.get_collection(tf.GraphKeys.GLOBAL_VARIABLES, scope="network/")
        return [variable for variable in of_network if not unit_of(variable.op.name)]


def build(
    tasks, config=Config(), statistics=(0.0, 1.0), fast=True, image_shape=IMAGE_SHAPE,
    some_unknown=False,
):  # fmt: skip
    """Builds the whole graph: network, loss, evaluation, training step, summaries.

    Args:
      tasks: (name, number of classes) of each task, T >= 1 of them.
      config: a `Config`.
      statistics: mean and scale with which the images are standardised, as
        `statistics_variables` takes them. `build_server` uses them.
      fast: use the conv layers of harness/fast.py, not slim's. Both compute the same up to
        rounding, and either graph restores the other's checkpoints.
      image_shape: height, width and channels of the images.
      some_unknown: labels that are fed may be negative, which means unknown. Losses and
        accuracies are then those of the images whose label is known.

    Returns:
      A `Model`.

    Raises:
      ValueError: there is no task, unit or places are unknown, units that share nothing would
        start with shares, or the height or width of the images is no multiple of 4.
    """
    if not tasks:
        raise ValueError("a network needs at least one task")
    if config.cross_stitch_unit not in UNITS:
        raise ValueError(
            f"cross_stitch_unit={config.cross_stitch_unit!r}: must be one of {', '.join(UNITS)}"
        )
    for name in ("cross_stitch_at", "share_until"):
        unknown = set((getattr(config, name) or "").split(",")) - {"", *PLACES}
        if unknown:
            raise ValueError(f"{name}={unknown.pop()!r}: must be one of {', '.join(PLACES)}")
    if config.cross_stitch_own_only and config.cross_stitch_init != 1:
        raise ValueError("units that share nothing need cross_stitch_init=1")
    names = [name for name, _ in tasks]

    with new_graph() as graph:
        with tf.variable_scope("train") as train_scope:
            global_step = tf.train.create_global_step()

        with tf.name_scope("placeholder"):
            x = tf.placeholder(tf.float32, [None, *image_shape], "X")
            labels = {name: tf.placeholder(tf.int32, [None], f"y_{name}") for name in names}
            is_training = tf.placeholder(tf.bool, [], "is_training")
        statistics_variables(image_shape, *statistics)  # saved with the weights, for `build_server`

        outputs, mean_weights = network(x, [n for _, n in tasks], is_training, config, fast)
        logits = dict(zip(names, outputs))

        with tf.name_scope("loss"):
            losses = cross_entropies(logits, labels, some_unknown)
            l2_loss = regularisation_loss()
            loss = total([*losses.values(), l2_loss], "total")  # what is minimised

        with tf.name_scope("evaluation"):
            predictions = {
                name: tf.argmax(z, axis=1, output_type=tf.int32) for name, z in logits.items()
            }
            accuracies, accuracy = accuracies_of(predictions, labels, some_unknown)

        # The variable scope puts Adam's moments under "train". The name scope is
        # entered by its full name, or TensorFlow would call it "train_1".
        with tf.variable_scope(train_scope, auxiliary_name_scope=False), tf.name_scope("train/"):
            train_op = training_step(loss, global_step, config)

        with tf.name_scope("summary"):
            summary_op = batch_summary(losses, l2_loss, loss, accuracies, accuracy)
            unit_summary_op = unit_summary(mean_weights, names)

        with tf.name_scope("train/"):
            initializer = tf.global_variables_initializer()
            floats = [v for v in tf.global_variables() if v.dtype.base_dtype.is_floating]
            finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(v)) for v in floats])

        unit_variables = [v for v in tf.trainable_variables() if unit_of(v.op.name)]

    return Model(
        graph=graph,
        x=x,
        labels=labels,
        is_training=is_training,
        logits=logits,
        predictions=predictions,
        losses=losses,
        l2_loss=l2_loss,
        loss=loss,
        accuracies=accuracies,
        accuracy=accuracy,
        mean_weights=mean_weights,
        unit_variables=unit_variables,
        train_op=train_op,
        finite=finite,
        global_step=global_step,
        summary_op=summary_op,
        unit_summary_op=unit_summary_op,
        initializer=initializer,
    )


# --- Serving ---


class Server(typing.NamedTuple):
    """Tensors of a graph that only predicts."""

    graph: tf.Graph
    images: tf.Tensor  # [N, H, W, C] uint8, raw; [N, H, W] with one channel
    outputs: dict  # <task>_id [N] int32, <task>_name [N] text, <task>_probabilities [N, classes]


def build_server(tasks, config=Config(), image_shape=IMAGE_SHAPE):
    """Builds the network from raw images to class names, for prediction only.

    Restore its variables from a checkpoint of `build`'s graph.

    Args:
      tasks: (name, names of the classes) of each task.
      config, image_shape: those that were given to `build`; the precision may be another.

    Returns:
      A `Server`.
    """
    with new_graph() as graph:
        images = tf.placeholder(tf.uint8, [None, *stored_shape(image_shape)], "images")
        mean, scale = statistics_variables(image_shape)
        x = tf.reshape((tf.cast(images, tf.float32) - mean) * scale, [-1, *image_shape])
        sizes = [len(names) for _, names in tasks]
        logits, _ = network(x, sizes, is_training=False, config=config, fast=False)
        outputs = {}
        for (task, names), z in zip(tasks, logits):
            ids = tf.argmax(z, axis=1, output_type=tf.int32)
            outputs[f"{task}_id"] = ids
            outputs[f"{task}_name"] = tf.gather(tf.constant(names), ids)
            outputs[f"{task}_probabilities"] = tf.nn.softmax(z)
    return Server(graph, images, outputs)
