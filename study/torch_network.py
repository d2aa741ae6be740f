"""The network of model.py in PyTorch: to check it against another framework, and for a GPU.

    network = torch_network.Network([10, 3], unit="channel").train()
    optimizer = torch_network.Adam(network)
    logits = network(images)  # [B, 28, 28, 1] standardised float32; a list, [B, classes] each
    torch_network.loss(logits, labels).backward()
    optimizer.step()

Activations and weights have the shapes and names that they have in model.py, so values can
be copied. tests/test_torch_network.py copies them and compares. Plain on purpose: what is fast
on a GPU stands in replicate.py.
"""

import math
import zlib

import torch
from torch import nn
from torch.nn import functional

from harness.names import PLACES, unit_scope

LAYERS = ("conv1", "conv2", "fc_3")  # each ends at one of PLACES
EPSILON = 0.001  # of batch norm


class Layer(nn.Module):
    """The weights of a conv or fc layer without bias, and its batch norm."""

    def __init__(self, shape, decays, generator):
        super().__init__()
        # He et al. (arXiv 1502.01852), truncated, as slim scales it.
        deviation = math.sqrt(1.3 * 2 / math.prod(shape[:-1]))
        weights = torch.empty(shape)
        nn.init.trunc_normal_(
            weights, std=deviation, a=-2 * deviation, b=2 * deviation, generator=generator
        )
        self.weights = nn.Parameter(weights)  # [3, 3, in, out] or [in, out]
        self.gamma = nn.Parameter(torch.ones(shape[-1]))
        self.beta = nn.Parameter(torch.zeros(shape[-1]))
        # Mean and variance of the last batch, and a moving average of both for each decay.
        statistics = torch.stack([torch.zeros(shape[-1]), torch.ones(shape[-1])])
        self.register_buffer("of_batch", statistics)
        self.register_buffer("moving", statistics.repeat(len(decays), 1, 1))
        self.register_buffer("weight_of_batch", 1 - torch.tensor(decays)[:, None, None])

    def batch_norm(self, h, which):
        """Args: [B, C, ...], and which moving average to evaluate with. Returns: as it came."""
        mean, variance = self.of_batch if self.training else self.moving[which]
        # A momentum of 1 stores the batch's own mean and unbiased variance.
        h = functional.batch_norm(
            h, mean, variance, self.gamma, self.beta, self.training, momentum=1.0, eps=EPSILON
        )
        if self.training:
            self.moving.lerp_(self.of_batch.expand_as(self.moving), self.weight_of_batch)
        return h

    def conv_pool(self, h, which):
        """Convolution, batch norm, ReLU, 2x2 pooling: [B, H, W, C] to [B, H/2, W/2, F]."""
        h = functional.conv2d(h.permute(0, 3, 1, 2), self.weights.permute(3, 2, 0, 1), padding=1)
        h = functional.max_pool2d(functional.relu(self.batch_norm(h, which)), 2)
        return h.permute(0, 2, 3, 1)

    def fully_connected(self, h, which):
        """Matrix product and batch norm: [B, ...] to [B, F]."""
        return self.batch_norm(h.flatten(1) @ self.weights, which)


class Network(nn.Module):
    """A tower for each task, and cross-stitch units between them.

    Args:
      classes: number of classes of each task.
      unit: "channel", "layer", "nddr" or "dense"; None for towers that share nothing.
      places: the layers that a unit follows.
      share_until: the tasks share the layers up to this one; "fc_3" is hard sharing.
      keep_prob: share of the fc_3 activations that dropout keeps.
      decays: of the moving averages. They are not read in training, so one run can be
        evaluated with several: network(images, which=1) uses the second.
      own_weight: start weight of a tower's own activations.
      seed: determines the start weights.
      image_size: height and width.
    """

    def __init__(self, classes, unit=None, places=PLACES, share_until=None,
                 keep_prob=0.8, decays=(0.9, 0.999), own_weight=1.0, seed=0, image_size=28):  # fmt: skip
        super().__init__()
        self.classes, self.unit, self.keep_prob = classes, unit, keep_prob
        self.share_until = share_until
        self.layers, self.units = nn.ModuleDict(), nn.ParameterDict()

        def add_layer(name, shape):
            # Seeded by its name: a tower starts alike whatever else the network has.
            generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
            self.layers[name] = Layer(shape, decays, generator)

        pooled = (image_size // 4) ** 2  # positions after both pooling layers
        shapes = {"conv1": [3, 3, 1, 32], "conv2": [3, 3, 32, 64], "fc_3": [64 * pooled, 1024]}
        positions = {"conv1": 4 * pooled, "conv2": pooled, "fc_3": 1}
        num_towers = 1 if share_until else len(classes)
        for name, place in zip(LAYERS, PLACES):
            for t in range(1, num_towers + 1):
                add_layer(f"{name}_{t}", shapes[name])
            if unit and place in places and num_towers > 1:
                width = shapes[name][-1] * (positions[name] if unit == "dense" else 1)
                start = start_weights(unit, num_towers, width, own_weight)
                self.units[unit_scope(place)] = nn.Parameter(start)
            if place == share_until:
                num_towers = len(classes)
        for t, count in enumerate(classes, 1):
            add_layer(f"output_{t}", [1024, count])

    def forward(self, images, which=0, generator=None):
        """Logits of each task.

        Args:
          images: [B, 28, 28, 1] float32, standardised.
          which: the decay, out of `decays`, to evaluate with.
          generator: of the dropout masks.

        Returns:
          A list of [B, classes].
        """
        towers = [images] * (1 if self.share_until else len(self.classes))
        for name, place in zip(LAYERS, PLACES):
            layers = [self.layers[f"{name}_{t}"] for t in range(1, len(towers) + 1)]
            if name == "fc_3":
                towers = [f.fully_connected(h, which).relu() for f, h in zip(layers, towers)]
            else:
                towers = [f.conv_pool(h, which) for f, h in zip(layers, towers)]
            alpha = self.units.get(unit_scope(place))
            if alpha is not None:
                towers = combinations(self.unit, alpha, towers)
            if name == "fc_3" and self.training:
                towers = [h * kept(h, self.keep_prob, generator) / self.keep_prob for h in towers]
            if place == self.share_until:
                towers = towers * len(self.classes)
        layers = [self.layers[f"output_{t}"] for t in range(1, len(towers) + 1)]
        return [f.fully_connected(h, which) for f, h in zip(layers, towers)]

    def l2_loss(self, scale=1e-5):
        """sum(w^2)/2 over the weights of conv and fc layers, scaled."""
        return scale / 2 * sum(layer.weights.square().sum() for layer in self.layers.values())


def start_weights(unit, num_towers, width, own_weight):
    """A unit's start weights: [T, T, C], [T, T] or [T*C, T*C] (dense: D for C)."""
    others = (1 - own_weight) / max(num_towers - 1, 1)
    alpha = torch.full([num_towers, num_towers], others).fill_diagonal_(own_weight)
    if unit == "layer":
        return alpha
    if unit == "channel":
        return alpha[..., None].repeat(1, 1, width)
    return torch.kron(alpha, torch.eye(width))


def combinations(unit, alpha, towers):
    """The unit's linear combinations of the towers' activations, [B, H, W, C] or [B, C]."""
    if unit in ("channel", "layer"):
        return [sum(weight * h for weight, h in zip(row, towers)) for row in alpha]
    shape = towers[0].shape
    if unit == "dense":
        towers = [h.flatten(1) for h in towers]
    mixed = functional.linear(torch.cat(towers, dim=-1), alpha)
    return [h.reshape(shape) for h in mixed.chunk(len(towers), dim=-1)]


def kept(h, keep_prob, generator):
    """A mask of zeros and ones, of the shape of h."""
    return torch.empty_like(h).bernoulli_(keep_prob, generator=generator)


def loss(logits, labels):
    """The mean cross-entropies of the tasks added up, without the L2 loss that `Adam` adds."""
    return sum(functional.cross_entropy(z, y) for z, y in zip(logits, labels))


class Adam(torch.optim.Adam):
    """Adam as TensorFlow has it, on the loss and an L2 loss over conv and fc weights.

    TensorFlow adds epsilon to sqrt(v), PyTorch to the corrected sqrt(v / (1 - beta2^t)).
    With a step count so large that PyTorch's corrections are 1, they can go into the rate.

    Args:
      network: a `Network`.
      learning_rate: a number.
      l2_scale: factor of sum(w^2)/2.
    """

    def __init__(self, network, learning_rate=0.001, l2_scale=1e-5):
        weights = [layer.weights for layer in network.layers.values()]
        ids = {id(w) for w in weights}
        others = [p for p in network.parameters() if id(p) not in ids]
        device = weights[0].device
        rate = torch.tensor(0.0, device=device)
        super().__init__(
            [{"params": weights, "weight_decay": l2_scale}, {"params": others}],
            lr=rate, eps=1e-8, fused=True, capturable=device.type == "cuda",
        )  # fmt: skip
        for group in self.param_groups:
            for p in group["params"]:
                far = torch.tensor(1e8, device=device)
                moments = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
                self.state[p] = {"step": far, **moments}
        self.learning_rate, self.rate = learning_rate, rate
        # On the device, so that a captured CUDA graph counts on.
        self.steps = torch.zeros([], dtype=torch.float64, device=device)

    def step(self):
        self.steps += 1
        corrections = torch.sqrt(1 - 0.999**self.steps) / (1 - 0.9**self.steps)
        self.rate.copy_(self.learning_rate * corrections)
        super().step()
