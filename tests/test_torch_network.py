"""study/torch_network.py computes what model.py does: two frameworks agree up to rounding."""

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import config_of, run_script
from test_equivalence import TASKS, TOLERANCE, batch, differences, gradients_in_adam, start_of

import model

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from study import torch_network  # noqa: E402

torch.set_num_threads(1)  # the other core is for the other half of the tests

TASKS = TASKS[:2]
L2 = 0.01  # a thousand times the default, so that it weighs something


class Pair:
    """The same network in both frameworks, with the same values in every variable."""

    def __init__(self, monkeypatch, unit, **options):
        self.size = 8 if unit == "dense" else 28  # dense units at full size need 6 GB
        monkeypatch.setattr(torch_network, "kept", lambda *_: next(self.masks))
        # The plain graph, which takes less time to build: it is held to the fast one elsewhere.
        config, shape = config_of(unit, l2_scale=L2, **options), (self.size, self.size, 1)
        self.net = model.build(TASKS, config, fast=False, image_shape=shape)
        self.session = tf.Session(graph=self.net.graph)
        self.start = start_of(self.net.graph)
        others = {"places": options["cross_stitch_at"]} if "cross_stitch_at" in options else {}
        others |= {name: options[name] for name in ("share_until", "keep_prob") if name in options}
        classes = [n for _, n in TASKS]
        self.network = torch_network.Network(classes, unit, image_size=self.size, **others)
        self.copy()

    def variables(self):
        return {v.op.name: v for v in self.net.graph.get_collection("variables")
                if v.op.name.startswith("network/")}  # fmt: skip

    def parameters(self):
        """The PyTorch network's tensors, under the names of model.py's variables."""
        found = {}
        for scope, layer in self.network.layers.items():
            found[f"network/{scope}/weights"] = layer.weights
            norm = f"network/{scope}/BatchNorm"
            found |= {f"{norm}/gamma": layer.gamma, f"{norm}/beta": layer.beta}
        return found | {f"network/{scope}/alpha": a for scope, a in self.network.units.items()}

    def moving(self, which=0):
        found = {}
        for scope, layer in self.network.layers.items():
            for name, values in zip(("mean", "variance"), layer.moving[which]):
                found[f"network/{scope}/BatchNorm/moving_{name}"] = values
        return found

    def copy(self):
        """Gives all variables of both their start values."""
        self.session.run(self.start)
        values = self.session.run(self.variables())
        copies = {**self.parameters(), **self.moving(0)}
        assert copies.keys() == values.keys()
        with torch.no_grad():
            for name, tensor in copies.items():
                assert tuple(tensor.shape) == values[name].shape, name
                tensor.copy_(torch.from_numpy(values[name]))
            for layer in self.network.layers.values():
                layer.moving[1].copy_(layer.moving[0])

    def run(self, fetches, seed, training):
        """Runs model.py's graph on a batch, whose dropout masks the PyTorch network uses next.

        Returns: the fetched values, and images and labels for the other network.
        """
        images, labels = batch(seed, 2, (self.size, self.size, 1))
        given = {self.net.labels[name]: labels[name] for name in labels}
        given |= {self.net.x: images, self.net.is_training: training}
        masks = [op.outputs[0] for op in self.net.graph.get_operations()
                 if op.type == "Cast" and op.name.startswith("network/dropout")
                 and op.outputs[0].shape.rank == 2]  # fmt: skip
        values, masks = self.session.run([fetches, masks], given)
        self.masks = iter(map(torch.from_numpy, masks))
        return values, torch.from_numpy(images), [torch.from_numpy(labels[n]) for n, _ in TASKS]


def as_arrays(tensors):
    return {name: tensor.detach().numpy() for name, tensor in tensors.items()}


def by_task(logits):
    return as_arrays({name: z for (name, _), z in zip(TASKS, logits)})


def assert_close(ours, theirs, tolerance=TOLERANCE):
    worst = differences(ours, theirs)
    assert max(worst.values()) < tolerance, max(worst.items(), key=lambda item: item[1])


@pytest.mark.parametrize("unit, options", [
    (None, {}), ("channel", {}), ("nddr", {}), ("dense", {}),
    ("layer", {"cross_stitch_at": "pool_1,fc_3", "keep_prob": 0.5}),
    ("channel", {"share_until": "pool_1"}), (None, {"share_until": "fc_3"}),
])  # fmt: skip
def test_predictions_gradients_moving_averages_and_steps_of_adam_are_model_pys(
    unit, options, monkeypatch
):
    pair = Pair(monkeypatch, unit, **options)
    net, network = pair.net, pair.network
    ours, images, _ = pair.run(net.logits, 0, training=False)
    for which in (0, 1):
        assert_close(ours, by_task(network.eval()(images, which)))

    moments, statistics = gradients_in_adam(net.graph), pair.moving().keys()
    statistics = {name: v for name, v in pair.variables().items() if name in statistics}
    agreed = 0
    for seed in range(3):  # first steps from the same values
        pair.copy()
        optimizer = torch_network.Adam(network.train(), l2_scale=L2)
        step_of_both(pair, optimizer, seed)
        theirs = {name: optimizer.state[p]["exp_avg"] for name, p in pair.parameters().items()}
        worst = differences(pair.session.run(moments), as_arrays(theirs))
        agreed += max(worst.values()) < TOLERANCE
        assert_close(pair.session.run(statistics), as_arrays(pair.moving()))
    # Of two values of a pooling window that lie within a rounding of each other, either
    # program may take either one.
    assert agreed >= 2

    start = pair.session.run(pair.variables())
    for seed in range(3, 7):
        step_of_both(pair, optimizer, seed, TOLERANCE * 100)
    ours = pair.session.run(pair.variables())
    theirs = as_arrays({**pair.parameters(), **pair.moving()})
    # Not by the largest difference: where ReLU clips nothing of a channel of conv2, the batch
    # norm of fc_3 cancels its beta, whose gradient is mere rounding. Adam's step is as long.
    norm = np.linalg.norm
    worst = max((norm(theirs[name] - ours[name]) / norm(ours[name]), name) for name in ours)
    assert worst[0] < 2e-3, worst
    assert all(np.any(ours[name] != start[name]) for name in ours)


def step_of_both(pair, optimizer, seed, tolerance=TOLERANCE):
    """A step of training in both frameworks, with the same logits and loss before it."""
    fetches = {**pair.net.logits, "loss": pair.net.loss}
    (ours, _), images, labels = pair.run([fetches, pair.net.train_op], seed, training=True)
    optimizer.zero_grad()
    logits = pair.network(images)
    cross_entropies, l2_loss = torch_network.loss(logits, labels), pair.network.l2_loss(L2)
    assert_close(
        ours, {**by_task(logits), "loss": (cross_entropies + l2_loss).detach().numpy()}, tolerance
    )
    cross_entropies.backward()
    optimizer.step()


def test_the_other_moving_average_is_that_of_a_run_with_its_decay(monkeypatch):
    pair = Pair(monkeypatch, "channel", batch_norm_decay=0.999)
    for seed in range(3):
        _, images, _ = pair.run(pair.net.logits, seed, training=True)
        with torch.no_grad():
            pair.network.train()(images)
    ours, images, _ = pair.run(pair.net.logits, 3, training=False)
    assert_close(ours, by_task(pair.network.eval()(images, which=1)))


def test_start_weights_have_the_spread_of_model_pys_and_pair_the_settings():
    net = model.build(TASKS, config_of("channel"))
    with tf.Session(graph=net.graph) as session:
        session.run(net.initializer)
        ours = {v.op.name: v for v in net.graph.get_collection("trainable_variables")}
        ours = session.run(ours)
    networks = {
        kind: torch_network.Network([10, 3], kind or None, seed=3)
        for kind in ("", "channel", "nddr")
    }
    for scope, layer in networks["channel"].layers.items():
        weights, expected = layer.weights.detach().numpy(), ours[f"network/{scope}/weights"]
        assert weights.shape == expected.shape
        bound = np.abs(expected).max()  # two deviations, before truncation
        assert np.abs(weights).max() <= bound * 1.05
        if weights.size > 10000:
            np.testing.assert_allclose(weights.std(), expected.std(), rtol=0.02)
        for other in networks.values():
            assert torch.equal(other.layers[scope].weights, layer.weights)
    assert not torch.equal(
        networks[""].layers["fc_3_1"].weights, networks[""].layers["fc_3_2"].weights
    )
    other_seed = torch_network.Network([10, 3], seed=4)
    assert not torch.equal(
        other_seed.layers["fc_3_1"].weights, networks[""].layers["fc_3_1"].weights
    )
    for scope, alpha in networks["channel"].units.items():
        np.testing.assert_array_equal(alpha.detach().numpy(), ours[f"network/{scope}/alpha"])


@pytest.mark.parametrize("unit", model.UNITS)
def test_units_start_as_model_pys(unit):
    with tf.Graph().as_default(), tf.Session() as session:
        towers = [tf.placeholder(tf.float32, [None, 2, 2, 32])] * 2
        model.add_unit(towers, "cross_stitch_1", config_of(unit, cross_stitch_init=0.7))
        session.run(tf.global_variables_initializer())
        (ours,) = session.run(tf.global_variables())
    width = 2 * 2 * 32 if unit == "dense" else 32
    theirs = torch_network.start_weights(unit, 2, width, own_weight=0.7)
    np.testing.assert_allclose(theirs, ours, rtol=1e-6)


@pytest.mark.parametrize("mode", ["compiled, channels_last", "eager, channels_first"])
def test_the_benchmark_trains_this_network(mode):
    done = run_script("tests/contenders.py", "torch", "channel", mode, "--cores=1", "--steps=1")
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0
