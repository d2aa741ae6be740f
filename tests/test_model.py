"""The graph: its layers, its units against plain arithmetic, what moves and what does not."""

import functools
import itertools
import subprocess
import sys

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import ROOT, config_of

import model
from harness.fast import batch_norm_relu_pool
from harness.slim import slim

TASKS = (("article", 10), ("group", 3), ("third", 5))
BATCH = 6


@pytest.fixture
def batch():
    """Images and the labels of three tasks."""
    random = np.random.RandomState(0)
    images = random.normal(size=[BATCH, 28, 28, 1]).astype(np.float32)
    return images, {name: random.randint(0, n, BATCH) for name, n in TASKS}


@functools.cache
def build(tasks, unit="channel", **options):
    """`model.build` with this unit, or with none, and other fields of its Config.

    Building takes longer than most of what is asked of a graph, so tests share it.
    """
    return model.build(tasks, config_of(unit, **options))


def feed(net, batch, training):
    images, labels = batch
    by_task = {net.labels[name]: labels[name] for name in net.labels}
    return {net.x: images, net.is_training: training, **by_task}


def initialised(net):
    session = tf.Session(graph=net.graph)
    session.run(net.initializer)
    return session


def network_variables(net):
    """Name -> variable: all but the training machinery's."""
    return {
        v.op.name: v
        for v in net.graph.get_collection(tf.GraphKeys.GLOBAL_VARIABLES)
        if v.op.name.startswith("network/")
    }


def tower_variables(net):
    return {name: v for name, v in network_variables(net).items() if "cross_stitch" not in name}


def randomise(net, session, seed=1):
    """Gives every variable of the network values that no symmetry hides anything in."""
    random = np.random.RandomState(seed)
    for variable in network_variables(net).values():
        variable.load(random.uniform(0.1, 0.5, variable.shape).astype(np.float32), session)


# --- Architecture ---


def scope_outputs(net, scope):
    """What the ops of `network/<scope>` hand to the rest of the network or to the losses."""
    inside = f"network/{scope}/"
    return [
        tensor
        for op in net.graph.get_operations()
        if op.name.startswith(inside)
        for tensor in op.outputs
        if tensor.shape.rank is not None and tensor.shape.rank >= 2 and any(
            consumer.name.startswith(("network/", "loss/"))
            and not consumer.name.startswith(inside)
            for consumer in tensor.consumers()
        )
    ]  # fmt: skip


networks = pytest.mark.parametrize("unit, num_tasks", [(None, 1), ("channel", 2), ("layer", 3)])


@networks
def test_output_shape_of_every_layer(unit, num_tasks, batch):
    net = build(TASKS[:num_tasks], unit=unit)
    shapes = {
        "conv1": [28, 28, 32],
        "pool_1": [14, 14, 32],
        "conv2": [14, 14, 64],
        "pool_2": [7, 7, 64],
        "flatten": [3136],
        "fc_3": [1024],
        "dropout": [1024],
    }
    units = {"cross_stitch_1": "pool_1", "cross_stitch_2": "pool_2", "cross_stitch_3": "fc_3"}
    expected = {
        f"{layer}_{t}": [[BATCH, *shape]]
        for layer, shape in shapes.items()
        for t in range(1, num_tasks + 1)
    }
    for t, (_, classes) in enumerate(TASKS[:num_tasks], 1):
        expected[f"output_{t}"] = [[BATCH, classes]]
    # A unit hands each tower the shape that it took from it.
    for scope, before in units.items() if unit else ():
        expected[scope] = [[BATCH, *shapes[before]]] * num_tasks
    outputs = {scope: scope_outputs(net, scope) for scope in expected}
    with initialised(net) as session:
        values = session.run(outputs, feed(net, batch, training=False))
    assert {scope: [list(v.shape) for v in vs] for scope, vs in values.items()} == expected


def test_variables_are_those_of_the_table():
    net = build(TASKS[:2], unit="channel")
    shapes = {v.op.name: v.shape.as_list() for v in
              net.graph.get_collection(tf.GraphKeys.TRAINABLE_VARIABLES)}  # fmt: skip
    expected = {}
    for t, classes in ((1, 10), (2, 3)):
        for layer, shape in (("conv1", [3, 3, 1, 32]), ("conv2", [3, 3, 32, 64]),
                             ("fc_3", [7 * 7 * 64, 1024]), ("output", [1024, classes])):  # fmt: skip
            expected[f"network/{layer}_{t}/weights"] = shape
            expected[f"network/{layer}_{t}/BatchNorm/beta"] = shape[-1:]
            expected[f"network/{layer}_{t}/BatchNorm/gamma"] = shape[-1:]
    for index, channels in enumerate((32, 64, 1024), 1):
        expected[f"network/cross_stitch_{index}/alpha"] = [2, 2, channels]
    assert shapes == expected


# --- Cross-stitch units ---


def test_start_weights_are_the_own_share_and_an_even_rest():
    np.testing.assert_array_equal(model.start_weights(3, 1.0), np.eye(3))
    np.testing.assert_allclose(model.start_weights(2, 0.9), [[0.9, 0.1], [0.1, 0.9]], rtol=1e-6)
    three = model.start_weights(3, 0.7)
    np.testing.assert_allclose(three.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(three[0], [0.7, 0.15, 0.15], rtol=1e-6)


every_unit = pytest.mark.parametrize(
    "unit",
    ["channel", *(pytest.param(u, marks=pytest.mark.slow) for u in ("layer", "nddr", "dense"))],
)


@pytest.fixture
def small(batch):
    """For graphs of images of 8x8: dense units need gigabytes for larger ones."""
    return batch[0][:, 10:18, 10:18], batch[1]


@every_unit
def test_identity_units_leave_logits_bit_identical(unit, small):
    logits = []
    for which in (None, unit):
        net = model.build(TASKS[:2], config_of(which), image_shape=(8, 8, 1))
        with initialised(net) as session:
            logits.append([session.run(net.logits, feed(net, small, t)) for t in (False, True)])
    for without, identity in zip(*logits):
        for task, _ in TASKS[:2]:
            np.testing.assert_array_equal(without[task], identity[task])
    assert np.ptp(logits[0][1]["article"]) > 0.1  # not equal for want of anything to differ


def unit_graph(unit, num_tasks, shape, own_weight=1.0):
    """One unit on its own. Returns: session, inputs, outputs, alpha, mean weights."""
    with tf.Graph().as_default() as graph:
        inputs = [tf.placeholder(tf.float32, [None, *shape]) for _ in range(num_tasks)]
        config = config_of(unit, cross_stitch_init=own_weight)
        outputs, means = model.add_unit(inputs, "cross_stitch_1", config)
        (alpha,) = tf.trainable_variables()
        session = tf.Session(graph=graph)
        session.run(tf.global_variables_initializer())
    return session, inputs, outputs, alpha, means


def combine(unit, alpha, inputs):
    """The units' definition, value by value, in numpy and float64."""
    num_tasks, shape = len(inputs), inputs[0].shape
    outputs = np.zeros([num_tasks, *shape])
    if unit == "nddr":
        x = np.concatenate(inputs, axis=-1)
        return np.split(x @ alpha.astype(float).T, num_tasks, axis=-1)
    if unit == "dense":
        flat = np.concatenate([x.reshape(len(x), -1) for x in inputs], axis=1)
        mixed = np.einsum("ok,bk->bo", alpha.astype(float), flat)
        return [part.reshape(shape) for part in np.split(mixed, num_tasks, axis=1)]
    for i, j, c in itertools.product(range(num_tasks), range(num_tasks), range(shape[-1])):
        weight = alpha[i, j, c] if unit == "channel" else alpha[i, j]
        outputs[i][..., c] += float(weight) * inputs[j][..., c]
    return list(outputs)


CONVOLUTIONAL, FULLY_CONNECTED = [2, 3, 4], [5]
unit_cases = pytest.mark.parametrize(
    "unit, num_tasks, shape",
    [(unit, num_tasks, shape)
     for unit in model.UNITS
     for num_tasks, shape in ((2, CONVOLUTIONAL), (3, FULLY_CONNECTED))],
)  # fmt: skip


@unit_cases
def test_unit_is_the_linear_combination_of_its_definition(unit, num_tasks, shape):
    session, inputs, outputs, alpha, _ = unit_graph(unit, num_tasks, shape)
    random = np.random.RandomState(0)
    values = [random.normal(size=[BATCH, *shape]) for _ in inputs]
    weights = random.normal(size=alpha.shape)
    with session:
        alpha.load(weights, session)
        results = session.run(outputs, dict(zip(inputs, values)))
    for result, expected in zip(results, combine(unit, weights, values)):
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


@unit_cases
def test_gradients_match_difference_quotients(unit, num_tasks, shape):
    session, inputs, outputs, alpha, _ = unit_graph(unit, num_tasks, shape)
    random = np.random.RandomState(0)
    values = [random.normal(size=[BATCH, *shape]) for _ in inputs]
    weights = random.normal(size=alpha.shape)
    pulls = [random.normal(size=[BATCH, *shape]) for _ in inputs]  # d loss / d output

    def loss(weights, values):
        return sum((p * y).sum() for p, y in zip(pulls, combine(unit, weights, values)))

    with session.graph.as_default():
        total = tf.add_n([tf.reduce_sum(p.astype(np.float32) * y) for p, y in zip(pulls, outputs)])
        gradients = tf.gradients(total, [alpha, *inputs])
    with session:
        alpha.load(weights, session)
        of_alpha, *of_inputs = session.run(gradients, dict(zip(inputs, values)))

    def quotient(array, at, evaluate):
        h = np.zeros_like(array)
        h[at] = 0.5  # the loss is linear in each argument: any step is exact
        return evaluate(array + h) - evaluate(array - h)

    # Enough places to find a wrong one, each index of small arrays among them.
    for at in random.permutation(list(np.ndindex(*weights.shape)))[:60]:
        slope = quotient(weights, tuple(at), lambda w: loss(w, values))
        np.testing.assert_allclose(of_alpha[tuple(at)], slope, rtol=1e-4, atol=1e-4)
    for j, gradient in enumerate(of_inputs):
        for at in random.permutation(list(np.ndindex(*values[j].shape)))[:20]:
            slope = quotient(
                values[j], tuple(at), lambda x: loss(weights, values[:j] + [x] + values[j + 1 :])
            )
            np.testing.assert_allclose(gradient[tuple(at)], slope, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("of", ["layer", "channel"])
@pytest.mark.parametrize("num_tasks, shape", [(2, [2, 3, 4]), (3, [5]), (5, [2, 2, 3])])
def test_nddr_with_diagonal_blocks_is_a_layer_or_channel_unit(of, num_tasks, shape):
    random = np.random.RandomState(0)
    values = [random.normal(size=[BATCH, *shape]) for _ in range(num_tasks)]
    results = []
    for unit in (of, "nddr"):
        session, inputs, outputs, alpha, means = unit_graph(unit, num_tasks, shape)
        if unit == of:
            weights = random.normal(size=alpha.shape)
        with session:
            by_channel = weights if of == "channel" else np.repeat(weights[..., None], shape[-1], 2)
            diagonal = np.einsum("ijc,cd->icjd", by_channel, np.eye(shape[-1]))
            alpha.load(weights if unit == of else diagonal.reshape(alpha.shape), session)
            results.append(session.run([*outputs, means], dict(zip(inputs, values))))
    for one, other in zip(*results):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("unit, num_tasks", list(itertools.product(model.UNITS, (1, 2, 3))))
@pytest.mark.parametrize("own_weight", [1.0, 0.9])
def test_mean_weights_of_a_fresh_unit_are_its_start(unit, num_tasks, own_weight):
    session, *_, means = unit_graph(unit, num_tasks, [2, 3, 4], own_weight)
    with session:
        np.testing.assert_allclose(
            session.run(means), model.start_weights(num_tasks, own_weight), rtol=1e-6, atol=1e-7
        )


@pytest.mark.parametrize("unit", model.UNITS)
def test_mean_weights_say_what_reaches_a_tower(unit):
    # Where tower 2 alone is lit, and with ones, the mean of tower i's output
    # is the mean weight from 2 to i: for units of any kind.
    session, inputs, outputs, alpha, means = unit_graph(unit, 3, [2, 3, 4])
    with session:
        alpha.load(np.random.RandomState(2).normal(size=alpha.shape), session)
        for j in range(3):
            lit = {x: np.full([1, 2, 3, 4], k == j) for k, x in enumerate(inputs)}
            received = [y.mean() for y in session.run(outputs, lit)]
            np.testing.assert_allclose(session.run(means)[:, j], received, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_towers_reach_each_other_through_units_only(batch):
    # d logits of one task / d weights of the other's tower
    for unit in (None, "channel", "layer"):
        net = build(TASKS[:2], unit=unit)
        (foreign,) = scope_outputs(net, "conv1_2")
        with net.graph.as_default():
            (gradient,) = tf.gradients(net.losses["article"], [foreign])
        if unit is None:
            assert gradient is None
            continue
        with initialised(net) as session:
            # At the identity nothing flows, off it something does.
            given = feed(net, batch, training=False)
            assert not np.any(session.run(gradient, given))
            randomise(net, session)
            assert np.any(session.run(gradient, given))


def test_three_steps_are_adams(small):
    """As section 2 of Adam's paper writes them, with both corrections in the rate."""
    config = config_of("layer", keep_prob=1.0, cross_stitch_learning_rate_scale=10.0)
    net = model.build(TASKS[:2], config, image_shape=(8, 8, 1))
    rates = {"network/output_1/weights": 1e-3, "network/cross_stitch_1/alpha": 1e-2}
    variables = {name: network_variables(net)[name] for name in rates}
    with net.graph.as_default():
        slopes = dict(zip(variables, tf.gradients(net.loss, list(variables.values()))))
    first, second = dict.fromkeys(rates, 0.0), dict.fromkeys(rates, 0.0)  # moments
    with initialised(net) as session:
        expected = session.run(variables)
        for step in (1, 2, 3):
            # Of another size in each step, or else both decays could be any.
            given = feed(net, (small[0] * 3**step, small[1]), training=True)
            gradients = session.run(slopes, given)
            session.run(net.train_op, given)
            for name, rate in rates.items():
                gradient = gradients[name]
                first[name] = 0.9 * first[name] + 0.1 * gradient
                second[name] = 0.999 * second[name] + 0.001 * gradient**2
                rate *= np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
                moved = rate * first[name] / (np.sqrt(second[name]) + 1e-8)
                expected[name] = expected[name] - moved
        found = session.run(variables)
    for name, rate in rates.items():
        np.testing.assert_allclose(found[name], expected[name], atol=0.01 * rate, err_msg=name)


def two_factors(towers, start, config):
    """A unit with two matrices: alpha = left @ right, [T, T]."""
    left = tf.get_variable("left", initializer=start)
    right = tf.get_variable("right", initializer=np.eye(len(towers), dtype=np.float32))
    alpha = left @ right
    return model.linear_combinations(alpha, towers), alpha


def test_a_unit_of_two_matrices_has_its_rate_and_its_histogram(batch, monkeypatch):
    monkeypatch.setitem(model.UNITS, "two", two_factors)
    config = config_of("two", cross_stitch_learning_rate_scale=100.0, learning_rate=1e-4)
    net = model.build(TASKS[:2], config)
    names = [f"network/cross_stitch_{i}/{m}" for i in (1, 2, 3) for m in ("left", "right")]
    variables = network_variables(net)
    assert [name for name in variables if model.unit_of(name)] == names
    with initialised(net) as session:
        start = session.run(variables)
        session.run(net.train_op, feed(net, batch, training=True))
        moved = {name: abs(v - start[name]) for name, v in session.run(variables).items()}
        summary = tf.Summary.FromString(session.run(net.unit_summary_op))
    for name in names:
        # Adam's first step is the rate, whatever the gradient.
        np.testing.assert_allclose(moved[name], 0.01, rtol=1e-2, err_msg=name)
    assert np.median(moved["network/fc_3_1/BatchNorm/beta"]) < 2e-4
    counts = {v.tag: v.histo.num for v in summary.value if v.HasField("histo")}
    assert counts == {f"summary/cross_stitch_{i}/weights": 2 * 4 for i in (1, 2, 3)}


def test_an_unknown_unit_or_no_task_is_refused():
    with pytest.raises(ValueError, match="dence"):
        build(TASKS, unit="dence")
    with pytest.raises(ValueError, match="task"):
        build(())


# --- Hard sharing ---


def test_hard_sharing_has_one_tower_and_an_output_for_each_task():
    net = build(TASKS, unit=None, share_until="fc_3")
    layers = {name.split("/")[1] for name in tower_variables(net)}
    assert layers == {"conv1_1", "conv2_1", "fc_3_1", "output_1", "output_2", "output_3"}


def test_every_tasks_loss_reaches_the_shared_tower_and_its_own_output_alone(batch):
    net = build(TASKS, unit=None, share_until="fc_3")
    variables = tower_variables(net)
    named = ["network/conv1_1/weights", *(f"network/output_{t}/weights" for t in (1, 2, 3))]
    with net.graph.as_default():
        gradients = [
            tf.gradients(net.losses[task], [variables[name] for name in named]) for task, _ in TASKS
        ]
    for t, (of_tower, *of_outputs) in enumerate(gradients):
        assert of_tower is not None
        assert [g is not None for g in of_outputs] == [other == t for other in range(3)]
    with initialised(net) as session:
        for of_tower in session.run([g[0] for g in gradients], feed(net, batch, training=True)):
            assert np.abs(of_tower).max() > 0


@pytest.mark.parametrize("places, share_until, stitched", [
    ("pool_1,pool_2,fc_3", None, ["pool_1", "pool_2", "fc_3"]),
    ("fc_3", None, ["fc_3"]), ("fc_3,pool_1", None, ["pool_1", "fc_3"]),
    ("pool_1,pool_2,fc_3", "pool_1", ["pool_2", "fc_3"]),
    ("pool_1,pool_2,fc_3", "fc_3", []), ("pool_1", "pool_1", []),
])  # fmt: skip
def test_units_stand_where_they_are_asked_for_and_behind_the_shared_layers(
    places, share_until, stitched
):
    config = config_of("layer", cross_stitch_at=places, share_until=share_until)
    assert config.stitched_places() == stitched


def test_layers_up_to_the_split_are_there_once_and_those_after_it_for_every_task():
    net = build(TASKS, unit="layer", cross_stitch_at="fc_3,pool_1", share_until="pool_1")
    layers = {name.split("/")[1] for name in network_variables(net)}
    assert layers == {"conv1_1", "cross_stitch_3"} | {
        f"{layer}_{t}" for layer in ("conv2", "fc_3", "output") for t in (1, 2, 3)
    }
    assert set(net.mean_weights) == {"cross_stitch_3"}


@pytest.mark.parametrize(
    "option, word", [({"cross_stitch_at": "conv1"}, "conv1"), ({"share_until": "pool_3"}, "pool_3")]
)
def test_an_unknown_place_is_refused(option, word):
    with pytest.raises(ValueError, match=word):
        build(TASKS, **option)


# --- Loss ---


def test_regularisation_collection_holds_the_conv_and_fc_weights_and_no_more():
    net = build(TASKS[:2], unit="channel")
    collection = net.graph.get_collection(tf.GraphKeys.REGULARIZATION_LOSSES)
    layers = ("conv1", "conv2", "fc_3", "output")
    names = {f"network/{layer}_{t}/weights" for layer in layers for t in (1, 2)}
    assert len(collection) == len(names) == 8
    with initialised(net) as session:
        randomise(net, session)
        values = session.run(network_variables(net))
        terms, total = session.run([collection, net.l2_loss])
    expected = [1e-5 * float((values[name].astype(float) ** 2).sum()) / 2 for name in names]
    np.testing.assert_allclose(sorted(terms), sorted(expected), rtol=1e-4)
    np.testing.assert_allclose(total, sum(expected), rtol=1e-4)


def test_loss_is_cross_entropies_plus_l2_and_accuracy_counts_as_the_summaries_say(batch):
    net = build(TASKS, unit="layer")
    with initialised(net) as session:
        logits, losses, l2_loss, loss, accuracies, accuracy, summary = session.run(
            [net.logits, net.losses, net.l2_loss, net.loss, net.accuracies, net.accuracy,
             net.summary_op],
            feed(net, batch, training=True),
        )  # fmt: skip
    for name, _ in TASKS:
        z = logits[name].astype(float)
        right = z[np.arange(BATCH), batch[1][name]]
        np.testing.assert_allclose(
            losses[name], np.mean(np.log(np.exp(z).sum(axis=1)) - right), rtol=1e-5)  # fmt: skip
        np.testing.assert_allclose(accuracies[name], np.mean(z.argmax(axis=1) == batch[1][name]))
    assert l2_loss > 1e-3 * loss
    np.testing.assert_allclose(loss, sum(losses.values()) + l2_loss, rtol=1e-6)
    np.testing.assert_allclose(accuracy, np.mean(list(accuracies.values())), rtol=1e-6)
    tags = {v.tag: v.simple_value for v in tf.Summary.FromString(summary).value}
    assert tags["summary/loss_total"] == pytest.approx(loss)
    assert tags["summary/accuracy_train"] == pytest.approx(accuracy)


def test_without_l2_the_term_is_zero():
    net = build(TASKS[:1], unit=None, l2_scale=0.0)
    with initialised(net) as session:
        assert session.run(net.l2_loss) == 0


def unit_with_losses(towers, start, config):
    """A layer unit whose weights have a loss of their own, and that looks at an L2 loss."""
    alpha = tf.get_variable(
        "alpha", initializer=start, regularizer=lambda w: 0.5 * tf.reduce_sum(w**4)
    )
    tf.summary.scalar("looked_at", tf.nn.l2_loss(alpha))
    return model.linear_combinations(alpha, towers), tf.identity(alpha)


@pytest.mark.parametrize("fast", [True, False])
def test_what_a_step_minimises_is_the_loss_that_is_reported(fast, small, monkeypatch):
    """With another regulariser, and a unit that has a loss of its own."""
    factor = 0.01
    monkeypatch.setattr(slim, "l2_regularizer", lambda _: slim.l1_regularizer(factor))
    monkeypatch.setitem(model.UNITS, "with_losses", unit_with_losses)
    config = config_of("with_losses", keep_prob=1.0, cross_stitch_init=0.7)
    net = model.build(TASKS[:2], config, fast=fast, image_shape=(8, 8, 1))
    variables = {v.op.name: v for v in net.trained()}
    with net.graph.as_default():
        alone = tf.gradients(sum(net.losses.values()), list(variables.values()))
        moments = [v for v in tf.global_variables("train/") if v.op.name.endswith("/Adam")]
        moments = {v.op.name[len("train/") : -len("/Adam")]: v for v in moments}
    with initialised(net) as session:
        values = session.run(variables)
        losses, reported, of_losses, l2_loss, _ = session.run(
            [net.losses, net.loss, alone, net.l2_loss, net.train_op], feed(net, small, True)
        )
        gradients = {name: 10 * m for name, m in session.run(moments).items()}  # beta1 is 0.9
    decayed = {name: w for name, w in values.items() if name.endswith("/weights")}
    own = {name: w for name, w in values.items() if name.endswith("/alpha")}
    assert len(decayed) == 8 and len(own) == 3 and gradients.keys() == values.keys()
    expected = factor * sum(np.abs(w).sum() for w in decayed.values())
    expected += sum(0.5 * (w**4).sum() for w in own.values())
    np.testing.assert_allclose(l2_loss, expected, rtol=1e-4)
    np.testing.assert_allclose(reported, sum(losses.values()) + expected, rtol=1e-4)
    for (name, found), of_cross_entropies in zip(gradients.items(), of_losses):
        slope = factor * np.sign(decayed[name]) if name in decayed else 0
        slope = 2 * own[name] ** 3 if name in own else slope
        np.testing.assert_allclose(found, of_cross_entropies + slope, rtol=1e-3, atol=1e-5)


# --- Training and evaluation ---


def test_batch_norm_statistics_move_in_training_and_not_in_evaluation(batch):
    net = build(TASKS[:2], unit="channel")
    moving = {name: v for name, v in network_variables(net).items() if "/moving_" in name}
    assert len(moving) == 2 * 8  # mean and variance of each conv and fc layer
    with initialised(net) as session:
        start = session.run(moving)
        session.run(net.logits, feed(net, batch, training=False))
        for name, value in session.run(moving).items():
            np.testing.assert_array_equal(value, start[name])
        session.run(net.logits, feed(net, batch, training=True))
        moved = session.run(moving)
        # conv1 sees the images themselves: its statistics can be told beforehand.
        kernel = session.run(tower_variables(net)["network/conv1_1/weights"])
    for name, value in moved.items():
        assert not np.array_equal(value, start[name]), name
    padded = np.pad(batch[0][..., 0], [(0, 0), (1, 1), (1, 1)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    mean = np.einsum("bhwij,ijc->bhwc", windows, kernel[:, :, 0]).mean(axis=(0, 1, 2))
    np.testing.assert_allclose(
        moved["network/conv1_1/BatchNorm/moving_mean"], 0.1 * mean, rtol=1e-3, atol=1e-6)  # fmt: skip


def test_dropout_acts_in_training_alone_and_follows_the_step(batch):
    net = build(TASKS[:2], unit=None)
    dropped, whole = (
        [scope_outputs(net, f"{layer}_{t}")[0] for t in (1, 2)] for layer in ("dropout", "fc_3")
    )
    images = np.repeat(batch[0], 30, axis=0), {n: np.repeat(v, 30) for n, v in batch[1].items()}
    with initialised(net) as session:
        before, after = session.run([whole, dropped], feed(net, images, training=False))
        np.testing.assert_array_equal(before, after)
        given = feed(net, images, training=True)
        first, fed = session.run([dropped, whole], given)
        again = session.run(dropped, given)
        net.global_step.load(1, session)
        next_step = session.run(dropped, given)
    np.testing.assert_array_equal(first, again)  # the same step, the same masks
    lit = (fed[0] > 0) & (fed[1] > 0)
    this, other_tower, other_step = ((x != 0)[lit] for x in (first[0], first[1], next_step[0]))
    assert abs(this.mean() - 0.8) < 0.01
    for independent in (other_tower, other_step):
        assert abs(np.mean(this == independent) - (0.8**2 + 0.2**2)) < 0.01
    np.testing.assert_allclose(first[0][lit][this], fed[0][lit][this] / 0.8, rtol=1e-5)


def test_the_seed_chooses_the_masks(batch):
    zeros = []
    for seed in (0, 1):
        net = build(TASKS[:2], unit=None, seed=seed)
        with initialised(net) as session:
            randomise(net, session)  # the same weights for either seed
            (dropped,) = scope_outputs(net, "dropout_1")
            zeros.append(session.run(dropped, feed(net, batch, training=True)) == 0)
    assert np.any(zeros[0] != zeros[1])


@pytest.mark.slow
def test_runs_with_and_without_units_start_from_the_same_towers():
    starts = []
    for unit, tasks in ((None, TASKS[:2]), ("channel", TASKS[:2]), ("layer", TASKS)):
        net = build(tasks, unit=unit)
        with initialised(net) as session:
            starts.append(session.run(tower_variables(net)))
    for name, value in starts[0].items():
        np.testing.assert_array_equal(value, starts[1][name])
        np.testing.assert_array_equal(value, starts[2][name])
    other = build(TASKS[:2], unit=None, seed=1)
    with initialised(other) as session:
        value = session.run(tower_variables(other)["network/conv1_1/weights"])
    assert not np.array_equal(value, starts[0]["network/conv1_1/weights"])
    # Two towers start apart, too, or they would be one tower twice.
    assert not np.array_equal(*(starts[0][f"network/conv1_{t}/weights"] for t in (1, 2)))


def test_initial_weights_are_he_scaled():
    net = build(TASKS[:2], unit=None)
    with initialised(net) as session:
        weights = session.run(tower_variables(net)["network/fc_3_1/weights"])
    # Truncation at two deviations leaves 0.7745 of the variance of 2.6 / fan_in
    # (slim's factor 1.3 stands for its inverse): He's 2 / fan_in.
    np.testing.assert_allclose(weights.var(), 2 / 3136, rtol=0.02)


@networks
def test_training_lowers_the_loss_and_moves_every_weight(unit, num_tasks, batch):
    net = build(TASKS[:num_tasks], unit=unit)
    with initialised(net) as session:
        trained = net.graph.get_collection(tf.GraphKeys.TRAINABLE_VARIABLES)
        start = session.run(trained)
        losses = [
            session.run([net.loss, net.train_op], feed(net, batch, training=True))[0]
            for _ in range(15)
        ]
        assert session.run(net.global_step) == 15
        end = session.run(trained)
    assert losses[-1] < 0.5 * losses[0]
    for variable, a, b in zip(trained, start, end):
        assert not np.array_equal(a, b), variable.op.name


@every_unit
def test_with_the_others_fixed_a_unit_scales_and_shares_nothing(unit, small):
    net = model.build(TASKS, config_of(unit, cross_stitch_own_only=True), image_shape=(8, 8, 1))
    with initialised(net) as session:
        for _ in range(3):
            session.run(net.train_op, feed(net, small, training=True))
        for scope, means in session.run(net.mean_weights).items():
            alpha = session.run(network_variables(net)[f"network/{scope}/alpha"])
            size = len(alpha) // 3
            start = np.eye(size).reshape([size, size] + [1] * (alpha.ndim - 2))
            for i, j in itertools.product(range(3), range(3)):
                block = alpha[i * size : (i + 1) * size, j * size : (j + 1) * size]
                assert (i == j) == bool(np.any(block != start * (i == j)))
            assert np.all((means != 0) == np.eye(3, dtype=bool))


def test_a_steps_loss_is_that_of_the_weights_before_it(batch):
    net = build(TASKS[:2], unit="channel")
    with initialised(net) as session:
        given = feed(net, batch, training=True)
        for _ in range(5):
            before = session.run(net.l2_loss)
            beside, _ = session.run([net.l2_loss, net.train_op], given)
            assert beside == before != session.run(net.l2_loss)


# --- tf-slim's mend ---


def test_the_mend_leaves_alone_what_stands():
    program = """
from tensorflow.python.framework import ops
from tensorflow.python.ops import control_flow_ops
ops.Tensor = control_flow_ops.cond = standing = object()
import model
assert ops.Tensor is standing and control_flow_ops.cond is standing
"""
    command = [sys.executable, "-c", program]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


# --- Layers at their limits ---


@pytest.mark.parametrize("fast", [True, False])
def test_an_odd_layer_is_refused_before_it_is_pooled(fast):
    with tf.Graph().as_default(), pytest.raises(ValueError, match="conv3_1: cannot pool 7x7"):
        x = tf.placeholder(tf.float32, [None, 7, 7, 64])
        model.conv_pool(x, 8, scope="conv3_1", pool_scope="pool_3_1", fast=fast)


def test_values_far_from_zero_that_hardly_vary_are_normalised_without_nan():
    """The mean square less the squared mean is then below zero by rounding."""
    values = 3000 + 0.01 * np.random.RandomState(0).normal(size=[8, 4, 4, 64])
    with tf.Graph().as_default(), tf.Session() as session, tf.variable_scope("layer"):
        y = tf.placeholder(tf.float32, [None, 4, 4, 64])
        outputs = batch_norm_relu_pool(
            y,
            tf.constant(True),
            decay=0.9,
            scale=True,
            updates_collections=None,
            pool_scope="pool/",
        )
        session.run(tf.global_variables_initializer())
        assert np.all(np.isfinite(session.run(outputs, {y: values})))
