"""img/torch_network.py computes what model.py does: two frameworks agree up to rounding."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import ROOT, config_of, with_variables
from test_equivalence import TASKS, TOLERANCE, batch, differences, gradients_of, session_of

import model

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
sys.path.insert(0, str(ROOT / "img"))
import torch_network  # noqa: E402

TASKS = TASKS[:2]
UNITS = (None, *model.UNITS)
L2 = 0.01  # a thousand times the default, so that it weighs something


class Pair:
    """The same network in both frameworks, with the same values in every variable."""

    def __init__(self, monkeypatch, unit, fast=True, **options):
        self.size = 8 if unit == "dense" else 28  # dense units at full size need 6 GB
        monkeypatch.setattr(model, "IMAGE_SIZE", self.size)
        monkeypatch.setattr(torch_network, "kept", lambda *_: next(self.masks))
        self.net = model.build(TASKS, config_of(unit, l2_scale=L2, **options), fast=fast)
        self.session = session_of(self.net.graph)
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
        """Puts all values of model.py's variables into the PyTorch network."""
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
        images, labels = batch(seed, 2, self.size)
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


kinds = pytest.mark.parametrize("unit, options", [
    *((unit, {}) for unit in UNITS),
    (None, {"share_until": "fc_3"}),
    ("channel", {"share_until": "pool_1"}),
    ("layer", {"cross_stitch_at": "pool_1,fc_3"}),
    (None, {"keep_prob": 0.5}),
])  # fmt: skip


@kinds
def test_logits_losses_gradients_and_moving_averages_are_model_pys(unit, options, monkeypatch):
    pair = Pair(monkeypatch, unit, **options)
    net, network = pair.net, pair.network
    for which in (0, 1):
        ours, images, _ = pair.run(net.logits, which, training=False)
        assert_close(ours, by_task(network.eval()(images, which)))
    gradients, agreed = gradients_of(net.graph, net.loss), 0
    for seed in range(3):
        (ours, of_ours), images, labels = pair.run(
            [{**net.logits, "loss": net.loss}, gradients], seed, training=True
        )
        network.train().zero_grad()
        logits = network(images)
        loss = torch_network.loss(logits, labels) + network.l2_loss(L2)
        loss.backward()
        assert_close(ours, {**by_task(logits), "loss": loss.detach().numpy()})
        theirs = as_arrays({name: p.grad for name, p in pair.parameters().items()})
        agreed += max(differences(of_ours, theirs).values()) < TOLERANCE
    # Of two values of a pooling window that lie within a rounding of each other, either
    # program may take either one.
    assert agreed >= 2
    of_ours = {n: v for n, v in pair.variables().items() if "moving" in n}
    assert_close(pair.session.run(of_ours), as_arrays(pair.moving()))


@kinds
def test_five_steps_of_adam_are_model_pys(unit, options, monkeypatch):
    pair = Pair(monkeypatch, unit, **options)
    optimizer = torch_network.Adam(pair.network.train(), l2_scale=L2)
    pair.session.run([v.initializer for v in tf_variables(pair.net, "train/")])
    start = pair.session.run(pair.variables())
    for seed in range(5):
        _, images, labels = pair.run(pair.net.train_op, seed, training=True)
        optimizer.zero_grad()
        torch_network.loss(pair.network(images), labels).backward()
        optimizer.step()
    ours = pair.session.run(pair.variables())
    theirs = as_arrays({**pair.parameters(), **pair.moving()})
    # Not by the largest difference: where ReLU clips nothing of a channel of conv2, the batch
    # norm of fc_3 cancels its beta, whose gradient is mere rounding. Adam's step is as long.
    norm = np.linalg.norm
    worst = max((norm(theirs[name] - ours[name]) / norm(ours[name]), name) for name in ours)
    assert worst[0] < 2e-3, worst
    assert all(np.any(ours[name] != start[name]) for name in ours)


def tf_variables(net, scope):
    with net.graph.as_default():
        return tf.global_variables(scope)


def test_a_moving_average_of_either_decay_is_that_of_a_run_with_it(monkeypatch):
    for which, decay in enumerate((0.9, 0.999)):
        pair = Pair(monkeypatch, "channel", batch_norm_decay=decay)
        for seed in range(3):
            _, images, _ = pair.run(pair.net.logits, seed, training=True)
            with torch.no_grad():
                pair.network.train()(images)
        ours, images, _ = pair.run(pair.net.logits, 3, training=False)
        assert_close(ours, by_task(pair.network.eval()(images, which)))


def test_start_weights_have_the_spread_of_model_pys_and_pair_the_settings():
    net = model.build(TASKS, config_of("channel"))
    with tf.Session(graph=net.graph) as session:
        session.run(net.initializer)
        ours = session.run({v.op.name: v for v in tf_variables(net, "network/")})
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
@pytest.mark.parametrize("own_weight", [1.0, 0.7])
def test_units_start_as_model_pys(unit, own_weight, monkeypatch):
    monkeypatch.setattr(model, "IMAGE_SIZE", 8)
    net = model.build(TASKS, config_of(unit, cross_stitch_init=own_weight))
    network = torch_network.Network([10, 3], unit, own_weight=own_weight, image_size=8)
    with tf.Session(graph=net.graph) as session:
        session.run(net.initializer)
        for scope, alpha in network.units.items():
            (ours,) = [v for v in tf_variables(net, f"network/{scope}/")]
            np.testing.assert_allclose(alpha.detach().numpy(), session.run(ours), rtol=1e-6)


@pytest.mark.parametrize("unit, mode", [("none", "eager"), ("channel", "compiled")])
def test_the_benchmark_trains_this_network(unit, mode):
    work = [sys.executable, "tests/benchmark.py", "--work", json.dumps(["torch", unit, mode])]
    done = subprocess.run(
        work,
        input="\n",
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=with_variables({"STEPS": "1"}),
    )
    assert done.returncode == 0, done.stderr
    images, seconds = done.stdout.split()
    assert int(images) == 128 and float(seconds) > 0
