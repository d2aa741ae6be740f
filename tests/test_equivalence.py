"""model.py's graphs, fast and plain, compute what the independent one of plain_slim.py does."""

import numpy as np
import plain_slim
import pytest
import tensorflow.compat.v1 as tf
from conftest import config_of

import model

TASKS = (("article", 10), ("group", 3), ("third", 5))
BATCH = 12
TOLERANCE = 1e-4  # of a tensor's largest value


def batch(seed, num_tasks, image_size):
    random = np.random.RandomState(seed)
    # Not centred, so that sums of squares have something to lose.
    images = random.normal(0.5, 1, [BATCH, image_size, image_size, 1]).astype(np.float32)
    images[:3, :, : image_size // 3] = 0  # where the windows of conv1 tie
    return images, {name: random.randint(0, n, BATCH) for name, n in TASKS[:num_tasks]}


def start_value(variable):
    """Values of both signs, by the variable's name alone: the same in either graph."""
    values = tf.random.stateless_normal(variable.shape, [model.op_seed(0, variable.op.name), 0])
    if variable.op.name.endswith("moving_variance"):
        return 0.5 + tf.abs(values)
    return values * 0.3


def session_of(graph):
    session = tf.Session(graph=graph)
    with graph.as_default():
        session.run([v.assign(start_value(v)).op for v in tf.global_variables("network/")])
        session.run(tf.variables_initializer(tf.get_collection(tf.GraphKeys.GLOBAL_STEP)))
    return session


def gradients_of(graph, loss):
    """The loss's derivative by every trained variable. Returns: name -> tensor."""
    with graph.as_default():
        trained = tf.trainable_variables()
        return dict(zip([v.op.name for v in trained], tf.gradients(loss, trained)))


def differences(fast, slow):
    """Name -> largest difference of a tensor, over its largest value."""
    assert fast.keys() == slow.keys()
    return {
        name: np.abs(value - slow[name]).max() / np.abs(slow[name]).max()
        for name, value in fast.items()
    }


units = pytest.mark.parametrize(
    "unit",
    [
        None,
        "channel",
        *(pytest.param(u, marks=pytest.mark.slow) for u in ("layer", "nddr", "dense")),
    ],
)


@pytest.mark.parametrize(
    "num_tasks, fast", [(2, True), (2, False), pytest.param(3, True, marks=pytest.mark.slow)]
)
@units
def test_logits_losses_and_gradients_are_the_plain_graphs(unit, num_tasks, fast, monkeypatch):
    assert_the_graphs_agree(unit, num_tasks, monkeypatch, fast=fast)


@pytest.mark.slow
@pytest.mark.parametrize("unit, num_tasks, places, share_until", [
    ("channel", 2, ("pool_1",), None), ("layer", 2, ("pool_2", "fc_3"), None),
    ("channel", 3, ("fc_3",), "pool_1"), ("layer", 2, ("fc_3",), "pool_2"),
    ("nddr", 3, ("pool_2", "fc_3"), "pool_1"), (None, 3, (), "pool_2"), (None, 2, (), "fc_3"),
])  # fmt: skip
def test_units_at_some_places_and_shared_layers_are_the_plain_graphs(
    unit, num_tasks, places, share_until, monkeypatch
):
    assert_the_graphs_agree(unit, num_tasks, monkeypatch, places, share_until)


def assert_the_graphs_agree(
    unit, num_tasks, monkeypatch, places=model.PLACES, share_until=None, fast=True
):
    # Dense weights grow with the fourth power of the image's size, to gigabytes.
    image_size = 28 if unit != "dense" and num_tasks == 2 else 8
    monkeypatch.setattr(model, "IMAGE_SIZE", image_size)
    # Without dropout, whose masks differ, and with an L2 loss that weighs something.
    options = {"keep_prob": 1.0, "l2_scale": 1e-4}
    config = config_of(unit, cross_stitch_at=",".join(places), share_until=share_until, **options)
    ours = model.build(TASKS[:num_tasks], config, fast=fast)
    options |= {"places": places, "share_until": share_until}
    slow = plain_slim.build(TASKS[:num_tasks], unit, image_size=image_size, **options)
    of_ours = {**ours.logits, "loss": ours.loss, **gradients_of(ours.graph, ours.loss)}
    with session_of(ours.graph) as our_session, session_of(slow.graph) as slow_session:
        for training in (True, False):
            loss = slow.losses[training]
            of_slow = {**slow.logits[training], "loss": loss, **gradients_of(slow.graph, loss)}
            agreed = []
            for seed in range(3):
                images, labels = batch(seed, num_tasks, image_size)
                of_our_batch, of_slow_batch = [
                    {net.x: images, **{net.labels[name]: labels[name] for name in labels}}
                    for net in (ours, slow)
                ]
                worst = differences(
                    our_session.run(of_ours, {**of_our_batch, ours.is_training: training}),
                    slow_session.run(of_slow, of_slow_batch),
                )
                agreed.append(max(worst.values()) < TOLERANCE)
                for name in (*ours.logits, "loss"):
                    assert worst[name] < TOLERANCE, (name, worst[name])
            # Of two values of a window that lie within a rounding of each other,
            # either graph may take either one, and hands all of its gradient to it.
            assert sum(agreed) >= 2, worst

        moving = [
            {v.op.name: v for v in net.graph.get_collection("variables") if "moving" in v.op.name}
            for net in (ours, slow)
        ]
        worst = differences(our_session.run(moving[0]), slow_session.run(moving[1]))
        assert max(worst.values()) < TOLERANCE


def test_the_plain_graph_has_nothing_compiled_and_no_gradient_of_its_own():
    types = {}
    for fast in (True, False):
        graph_def = model.build(TASKS, config_of("channel"), fast=fast).graph.as_graph_def()
        functions = graph_def.library.function
        compiled = [f for f in functions if f.attr["_XlaMustCompile"].b]
        assert bool(compiled) == fast
        nodes = [*graph_def.node, *(node for f in functions for node in f.node_def)]
        types[fast] = {node.op for node in nodes}
    # What tf.custom_gradient makes, and the layers that it replaces.
    assert "IdentityN" in types[True] and "IdentityN" not in types[False]
    assert "MaxPool" not in types[True] and "MaxPool" in types[False]


@units
def test_fast_and_plain_graph_restore_each_others_checkpoints_and_train_alike(
    unit, monkeypatch, tmp_path
):
    """Five steps, dropout included; after two of them, each goes on from the other's values."""
    image_size = 8 if unit == "dense" else 28
    monkeypatch.setattr(model, "IMAGE_SIZE", image_size)
    nets = [model.build(TASKS[:2], config_of(unit, l2_scale=0.01), fast=f) for f in (True, False)]
    paths, losses = [None, None], [[], []]
    for steps in (range(2), range(2, 5)):
        for which, net in enumerate(nets):
            with net.graph.as_default(), tf.Session(graph=net.graph) as session:
                saver = tf.train.Saver()
                if steps[0]:
                    saver.restore(session, paths[1 - which])
                else:
                    session.run(net.initializer)
                for step in steps:
                    images, labels = batch(step, 2, image_size)
                    given = {net.labels[name]: labels[name] for name in labels}
                    given |= {net.x: images, net.is_training: True}
                    losses[which].append(session.run([net.loss, net.train_op], given)[0])
                if not steps[0]:
                    paths[which] = saver.save(session, str(tmp_path / f"{which}"))
    np.testing.assert_allclose(*losses, rtol=1e-3)
    assert np.ptp(losses[0]) > 0.1


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("shape", [[64, 64], [1024, 1040]])  # either side of ONE_PASS_MINIMUM
def test_adam_with_l2_losses_is_tensorflows_adam_on_their_gradients(shape, fast):
    random = np.random.RandomState(0)
    start, slope = random.normal(size=[2, *shape]).astype(np.float32)
    results = []
    for ours in (True, False):
        with tf.Graph().as_default() as graph, tf.Session(graph=graph) as session:
            decayed = tf.get_variable("decayed", initializer=start)
            free = tf.get_variable("free", initializer=start)
            loss = tf.reduce_sum(slope * decayed**2) + tf.reduce_sum(slope * free)
            if ours:
                step = model.Adam(0.01, {"decayed": 0.5}, {}, fast).minimize(loss)
            else:
                step = tf.train.AdamOptimizer(0.01).minimize(loss + 0.5 * tf.nn.l2_loss(decayed))
            session.run(tf.global_variables_initializer())
            for _ in range(3):
                session.run(step)
            results.append(session.run([decayed, free]))
    for of_ours, of_tensorflow in zip(*results):
        np.testing.assert_allclose(of_ours, of_tensorflow, rtol=1e-5, atol=1e-6)
        assert np.abs(of_ours - start).mean() > 0.01


@pytest.mark.parametrize("fast", [True, False])
@units
def test_a_training_step_follows_the_gradient_of_the_whole_loss(unit, fast, monkeypatch):
    image_size = 8 if unit == "dense" else 28
    monkeypatch.setattr(model, "IMAGE_SIZE", image_size)
    images, labels = batch(0, 2, image_size)
    net = model.build(TASKS[:2], config_of(unit, l2_scale=0.01), fast=fast)
    gradients = gradients_of(net.graph, net.loss)
    with net.graph.as_default(), session_of(net.graph) as session:
        others = [v for v in tf.global_variables() if not v.op.name.startswith("network/")]
        session.run(tf.variables_initializer(others))
        given = {net.x: images, **{net.labels[n]: labels[n] for n in labels}}
        expected = session.run(gradients, {**given, net.is_training: True})
        session.run(net.train_op, {**given, net.is_training: True})
        # Adam's first moment is a tenth of the first gradient.
        moments = {
            name: v for v in others for name in gradients if v.op.name == f"train/{name}/Adam"
        }
        moved = session.run(moments)
    worst = differences({name: 10 * value for name, value in moved.items()}, expected)
    assert max(worst.values()) < TOLERANCE
