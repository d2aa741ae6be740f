"""model.py's graphs, fast and plain, compute what the independent one of plain_slim.py does."""

import contextlib

import numpy as np
import plain_slim
import pytest
import tensorflow.compat.v1 as tf
from conftest import config_of

import model

TASKS = (("article", 10), ("group", 3), ("third", 5))
BATCH = 12
TOLERANCE = 1e-4  # of a tensor's largest value


def batch(seed, num_tasks, image_shape=model.IMAGE_SHAPE):
    random = np.random.RandomState(seed)
    # Not centred, so that sums of squares lose digits.
    images = random.normal(0.5, 1, [BATCH, *image_shape]).astype(np.float32)
    images[:3, :, : image_shape[1] // 3] = 0  # where the windows of conv1 tie
    return images, {name: random.randint(0, n, BATCH) for name, n in TASKS[:num_tasks]}


def start_value(variable):
    """Values of both signs, by the variable's name alone: the same in either graph."""
    values = tf.random.stateless_normal(variable.shape, [model.op_seed(0, variable.op.name), 0])
    if variable.op.name.endswith("moving_variance"):
        return 0.5 + tf.abs(values)
    return values * 0.3


def start_of(graph):
    """The op that gives every variable its start value, and the training machinery its own."""
    with graph.as_default():
        network = tf.global_variables("network/")
        others = [v for v in tf.global_variables() if v not in set(network)]
        return tf.group(
            *(v.assign(start_value(v)).op for v in network), tf.variables_initializer(others)
        )


def gradients_in_adam(graph):
    """Name of a trained variable -> Adam's first moment, a tenth of the first step's gradient."""
    with graph.as_default():
        names = [v.op.name for v in tf.trainable_variables()]
        return {v.op.name[len("train/") : -len("/Adam")]: v for v in tf.global_variables("train/")
                if v.op.name in {f"train/{name}/Adam" for name in names}}  # fmt: skip


def differences(fast, slow):
    """Name -> largest difference of a tensor, over its largest value."""
    assert fast.keys() == slow.keys()
    for name in fast:  # max() of several would pass over a NaN
        assert np.all(np.isfinite(fast[name])) and np.all(np.isfinite(slow[name])), name
    return {
        name: np.abs(value - slow[name]).max() / np.abs(slow[name]).max()
        for name, value in fast.items()
    }


@pytest.mark.parametrize(
    "unit",
    ["channel", *(pytest.param(u, marks=pytest.mark.slow) for u in ("layer", "nddr", "dense"))],
)
def test_logits_losses_and_a_steps_gradients_are_the_plain_graphs(unit):
    assert_the_graphs_agree(unit, 2, forms=(True, False))


@pytest.mark.parametrize(
    "unit",
    [
        "channel",
        *(pytest.param(u, marks=pytest.mark.slow) for u in (None, "layer", "nddr", "dense")),
    ],
)
def test_images_with_colours_are_the_plain_graphs(unit):
    assert_the_graphs_agree(unit, 2, image_shape=(8, 12, 3), forms=(True, False))


@pytest.mark.slow
@pytest.mark.parametrize("unit, num_tasks, places, share_until", [
    ("channel", 3, model.PLACES, None), ("layer", 2, ("pool_2", "fc_3"), None),
    ("layer", 2, ("fc_3",), "pool_2"), ("nddr", 3, ("pool_2", "fc_3"), "pool_1"),
    (None, 3, (), "pool_2"), (None, 2, (), "fc_3"), (None, 2, (), None),
])  # fmt: skip
def test_units_at_some_places_and_shared_layers_are_the_plain_graphs(
    unit, num_tasks, places, share_until
):
    assert_the_graphs_agree(unit, num_tasks, places, share_until)


def assert_the_graphs_agree(
    unit, num_tasks, places=model.PLACES, share_until=None, forms=(True,), image_shape=None
):
    """Holds the fast graph (of forms, True) or the plain one (False) to that of plain_slim.py."""
    # Dense weights grow with the fourth power of the image's size, to gigabytes.
    small = unit == "dense" or num_tasks > 2
    image_shape = image_shape or ((8, 8, 1) if small else model.IMAGE_SHAPE)
    # Without dropout, whose masks differ, and with an L2 loss that weighs something.
    options = {"keep_prob": 1.0, "l2_scale": 1e-4}
    slow = plain_slim.build(TASKS[:num_tasks], unit, image_shape=image_shape,
                            places=places, share_until=share_until, **options)  # fmt: skip
    with slow.graph.as_default():
        trained = tf.trainable_variables()
        gradients = dict(
            zip([v.op.name for v in trained], tf.gradients(slow.losses[True], trained))
        )
    expected = {
        training: [{**slow.logits[training], "loss": slow.losses[training]}, more]
        for training, more in ((True, gradients), (False, {}))
    }
    with tf.Session(graph=slow.graph) as slow_session:
        start = start_of(slow.graph)

        def of_slow(seed, training):
            """Logits and loss, gradients, and the moving statistics afterwards."""
            images, labels = batch(seed, num_tasks, image_shape)
            given = {slow.x: images, **{slow.labels[name]: labels[name] for name in labels}}
            slow_session.run(start)
            values = slow_session.run(expected[training], given)
            return (*values, slow_session.run(moving_statistics(slow.graph)))

        batches = [(seed, True) for seed in range(3)] + [(3, False)]
        answers = {given: of_slow(*given) for given in batches}
    config = config_of(unit, cross_stitch_at=",".join(places), share_until=share_until, **options)
    for fast in forms:
        net = model.build(TASKS[:num_tasks], config, fast=fast, image_shape=image_shape)
        assert_it_agrees(net, answers, num_tasks, image_shape)


def assert_it_agrees(net, answers, num_tasks, image_shape):
    fetches = {**net.logits, "loss": net.loss}
    moments, worst = gradients_in_adam(net.graph), []
    with tf.Session(graph=net.graph) as session:
        start = start_of(net.graph)
        for (seed, training), (logits_and_loss, gradients, statistics) in answers.items():
            images, labels = batch(seed, num_tasks, image_shape)
            given = {net.labels[name]: labels[name] for name in labels}
            given |= {net.x: images, net.is_training: training}
            session.run(start)
            values, _ = session.run([fetches, net.train_op if training else ()], given)
            for expected, found in (
                (logits_and_loss, values),
                (statistics, session.run(moving_statistics(net.graph))),
            ):
                assert max(differences(found, expected).values()) < TOLERANCE
            if training:
                found = {name: 10 * m for name, m in session.run(moments).items()}
                worst.append(max(differences(found, gradients).values()))
    # If two values of a window differ by rounding only, the graphs may pool different ones, and
    # each passes the whole gradient to its own.
    assert sum(difference < TOLERANCE for difference in worst) >= 2, worst


def moving_statistics(graph):
    return {v.op.name: v for v in graph.get_collection("variables") if "moving" in v.op.name}


@pytest.fixture(scope="module")
def both_forms():
    """The same network, dropout included: the fast graph and the plain one."""
    return [model.build(TASKS[:2], config_of("channel", l2_scale=0.01), fast=f) for f in (1, 0)]


def test_the_plain_graph_has_nothing_compiled_and_no_gradient_of_its_own(both_forms):
    types = []
    for net, fast in zip(both_forms, (True, False)):
        graph_def = net.graph.as_graph_def()
        functions = graph_def.library.function
        compiled = [f for f in functions if f.attr["_XlaMustCompile"].b]
        assert bool(compiled) == fast
        nodes = [*graph_def.node, *(node for f in functions for node in f.node_def)]
        types.append({node.op for node in nodes})
    # What tf.custom_gradient makes, and the layers that it replaces.
    assert "IdentityN" in types[0] and "IdentityN" not in types[1]
    assert "MaxPool" not in types[0] and "MaxPool" in types[1]


def test_fast_and_plain_graph_restore_each_others_checkpoints_and_train_alike(both_forms, tmp_path):
    """Five steps, dropout included; after two of them, each goes on from the other's values."""
    losses = [[], []]
    with contextlib.ExitStack() as stack:
        sessions = [stack.enter_context(tf.Session(graph=net.graph)) for net in both_forms]
        savers = []
        for net, session in zip(both_forms, sessions):
            with net.graph.as_default():
                savers.append(tf.train.Saver())
            session.run(net.initializer)
        for steps in (range(2), range(2, 5)):
            for which, (net, session) in enumerate(zip(both_forms, sessions)):
                if steps[0]:
                    savers[which].restore(session, str(tmp_path / f"{1 - which}"))
                for step in steps:
                    images, labels = batch(step, 2)
                    given = {net.labels[name]: labels[name] for name in labels}
                    given |= {net.x: images, net.is_training: True}
                    losses[which].append(session.run([net.loss, net.train_op], given)[0])
            if not steps[0]:
                for which, session in enumerate(sessions):
                    savers[which].save(session, str(tmp_path / f"{which}"))
    np.testing.assert_allclose(*losses, rtol=1e-3)
    assert np.ptp(losses[0]) > 0.1
