"""model.py's graph, rearranged for speed, computes what the plain graph does."""

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
    [None, "channel", *(pytest.param(u, marks=pytest.mark.slow) for u in ("layer", "dense"))],
)


@pytest.mark.parametrize("num_tasks", [2, pytest.param(3, marks=pytest.mark.slow)])
@units
def test_logits_losses_and_gradients_are_the_plain_graphs(unit, num_tasks, monkeypatch):
    assert_the_graphs_agree(unit, num_tasks, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("unit, num_tasks, places, share_until", [
    ("channel", 2, ("pool_1",), None), ("layer", 2, ("pool_2", "fc_3"), None),
    ("channel", 3, ("fc_3",), "pool_1"), ("layer", 2, ("fc_3",), "pool_2"),
    (None, 3, (), "pool_2"), (None, 2, (), "fc_3"),
])  # fmt: skip
def test_units_at_some_places_and_shared_layers_are_the_plain_graphs(
    unit, num_tasks, places, share_until, monkeypatch
):
    assert_the_graphs_agree(unit, num_tasks, monkeypatch, places, share_until)


def assert_the_graphs_agree(unit, num_tasks, monkeypatch, places=model.PLACES, share_until=None):
    # Dense weights grow with the fourth power of the image's size, to gigabytes.
    image_size = 28 if unit != "dense" and num_tasks == 2 else 8
    monkeypatch.setattr(model, "IMAGE_SIZE", image_size)
    # Without dropout, whose masks differ, and with an L2 loss that weighs something.
    options = {"keep_prob": 1.0, "l2_scale": 1e-4}
    config = config_of(unit, cross_stitch_at=",".join(places), share_until=share_until, **options)
    fast = model.build(TASKS[:num_tasks], config)
    options |= {"places": places, "share_until": share_until}
    slow = plain_slim.build(TASKS[:num_tasks], unit, image_size=image_size, **options)
    of_fast = {**fast.logits, "loss": fast.loss, **gradients_of(fast.graph, fast.loss)}
    with session_of(fast.graph) as fast_session, session_of(slow.graph) as slow_session:
        for training in (True, False):
            loss = slow.losses[training]
            of_slow = {**slow.logits[training], "loss": loss, **gradients_of(slow.graph, loss)}
            agreed = []
            for seed in range(3):
                images, labels = batch(seed, num_tasks, image_size)
                of_fast_batch, of_slow_batch = [
                    {net.x: images, **{net.labels[name]: labels[name] for name in labels}}
                    for net in (fast, slow)
                ]
                worst = differences(
                    fast_session.run(of_fast, {**of_fast_batch, fast.is_training: training}),
                    slow_session.run(of_slow, of_slow_batch),
                )
                agreed.append(max(worst.values()) < TOLERANCE)
                for name in (*fast.logits, "loss"):
                    assert worst[name] < TOLERANCE, (name, worst[name])
            # Of two values of a window that lie within a rounding of each other,
            # either graph may take either one, and hands all of its gradient to it.
            assert sum(agreed) >= 2, worst

        moving = [
            {v.op.name: v for v in net.graph.get_collection("variables") if "moving" in v.op.name}
            for net in (fast, slow)
        ]
        worst = differences(fast_session.run(moving[0]), slow_session.run(moving[1]))
        assert max(worst.values()) < TOLERANCE


@pytest.mark.parametrize("shape", [[64, 64], [1024, 1040]])  # either side of ONE_PASS_MINIMUM
def test_adam_with_l2_losses_is_tensorflows_adam_on_their_gradients(shape):
    random = np.random.RandomState(0)
    start, slope = random.normal(size=[2, *shape]).astype(np.float32)
    results = []
    for ours in (True, False):
        with tf.Graph().as_default() as graph, tf.Session(graph=graph) as session:
            decayed = tf.get_variable("decayed", initializer=start)
            free = tf.get_variable("free", initializer=start)
            loss = tf.reduce_sum(slope * decayed**2) + tf.reduce_sum(slope * free)
            if ours:
                step = model.Adam(0.01, {"decayed": 0.5}, {}).minimize(loss)
            else:
                step = tf.train.AdamOptimizer(0.01).minimize(loss + 0.5 * tf.nn.l2_loss(decayed))
            session.run(tf.global_variables_initializer())
            for _ in range(3):
                session.run(step)
            results.append(session.run([decayed, free]))
    for of_ours, of_tensorflow in zip(*results):
        np.testing.assert_allclose(of_ours, of_tensorflow, rtol=1e-5, atol=1e-6)
        assert np.abs(of_ours - start).mean() > 0.01


@units
def test_a_training_step_follows_the_gradient_of_the_whole_loss(unit, monkeypatch):
    image_size = 8 if unit == "dense" else 28
    monkeypatch.setattr(model, "IMAGE_SIZE", image_size)
    images, labels = batch(0, 2, image_size)
    net = model.build(TASKS[:2], config_of(unit, l2_scale=0.01))
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
