"""One measurement of the benchmark: a process that trains one network, and prints how fast.

    python tests/contenders.py ours channel
    python tests/contenders.py torch none "compiled, channels_last"

benchmark.py starts this program for each figure, so that nothing else runs beside it. All
contenders train the same two towers on the same batches of 128.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
BATCH_SIZE = 128
TASKS = [("article", 10), ("group", 3)]
# What a library can be told about threads, memory layout and compilation.
ON_ALL_CORES, ON_OWN_CORES = "each op on all cores", "each tower on its own cores"
MODES = {
    "slim": (ON_ALL_CORES, ON_OWN_CORES),
    "torch": tuple(
        f"{how}, {layout}"
        for how in ("eager", "compiled")
        for layout in ("channels_last", "channels_first")
    ),
    "keras": ("step by step", "many steps", "XLA", f"many steps, {ON_OWN_CORES}"),
}


def batches(steps):
    """Noise for so many steps: [B, 28, 28, 1] float32 and a label for each task."""
    import numpy as np

    noise = np.random.RandomState(0)
    for _ in range(steps):
        images = noise.normal(size=[BATCH_SIZE, 28, 28, 1]).astype(np.float32)
        yield images, [noise.randint(0, n, BATCH_SIZE).astype(np.int32) for _, n in TASKS]


def images_per_second(train, steps, images_per_step=BATCH_SIZE):
    """Calls `train` with a number of steps: first to warm up, then to measure."""
    train(warm_up(steps))
    start = time.perf_counter()
    seconds = train(steps) or time.perf_counter() - start  # or by a clock of its own
    return steps * images_per_step / seconds


def warm_up(steps):
    """How many steps to train before so many are measured."""
    return max(1, steps // 5)


def runs(session, op, feeds):
    """A session's runs of an op, a feed each, as a function of their number."""

    def train(count):
        for feed in feeds[:count]:
            session.run(op, feed)

    return train


# --- This program ---


def config_of(unit, **options):
    import model

    if unit == "none":
        return model.Config(cross_stitch=False, **options)
    return model.Config(cross_stitch_unit=unit, **options)


def session_of(unit, tasks, cores, rewritten=False, **options):
    """A session of model.py's network with start weights.

    Args:
      unit, tasks, cores: what to train, on how many cores.
      rewritten: take the plain graph, and TensorFlow's rewriter to bfloat16.
      options: of `model.Config`.

    Returns:
      `model.Model`, session.
    """
    import tensorflow.compat.v1 as tf
    from tensorflow.core.protobuf import rewriter_config_pb2

    import model
    from harness import machine

    session_config = machine.thread_settings(cores, len(tasks), unit)
    if rewritten:
        rewrites = session_config.graph_options.rewrite_options
        on = rewriter_config_pb2.RewriterConfig.ON
        rewrites.auto_mixed_precision_onednn_bfloat16 = on
    net = model.build(tasks, config_of(unit, **options), fast=not rewritten)
    session = tf.Session(graph=net.graph, config=session_config)
    session.run(net.initializer)
    return net, session


def ours(cores, steps, unit, num_towers=2, **options):
    tasks = [(f"{TASKS[t % 2][0]}_{t}", TASKS[t % 2][1]) for t in range(int(num_towers))]
    net, session = session_of(unit, tasks, cores, **options)
    feeds = [
        {net.x: x, net.is_training: True}
        | {y: labels[t % 2] for t, y in enumerate(net.labels.values())}
        for x, labels in batches(steps)
    ]
    return images_per_second(runs(session, net.train_op, feeds), steps)


def bfloat16(cores, steps, unit):
    return ours(cores, steps, unit, precision="bfloat16")


def rewritten(cores, steps, unit):
    return ours(cores, steps, unit, rewritten=True)


def evaluation(cores, steps, unit):
    """The evaluation pass as train.py makes it, on the synthetic test set; 20 steps a pass."""
    import data
    import train

    net, session = session_of(unit, TASKS, cores)
    dataset = data.load("synthetic", None, 0)

    def evaluate(passes):
        for _ in range(passes):
            train.evaluate(session, net, dataset)

    return images_per_second(evaluate, max(1, steps // 20), len(dataset.test.images))


FIRST_STEP = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
import train
from harness import process
train_step = train.train_step
def first(*args):
    values = train_step(*args)
    print("first step at", time.time(), flush=True)
    train.train_step = train_step
    return values
train.train_step = first
sys.argv[0] = "train.py"
process.run(train.main, train.check_flags)
"""


def program(cores, steps, unit):
    """A short run of train.py on Fashion-MNIST, with an evaluation at its end.

    Returns: seconds from the command to its first step, peak memory in GB.
    """
    flags = ["--cross_stitch=False"] if unit == "none" else [f"--cross_stitch_unit={unit}"]
    flags += ["--dataset=fashion_mnist", f"--max_steps={steps}"]
    with tempfile.TemporaryDirectory() as logdir:
        command = [sys.executable, "-c", FIRST_STEP, *flags, f"--logdir={logdir}"]
        start = time.time()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            lines = [line for line in process.stdout if line.startswith("first step at")]
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit("train.py failed: is Fashion-MNIST on this machine?")
    return [float(lines[0].split()[-1]) - start, usage.ru_maxrss * 1024 / 1e9]


def machine(cores, steps, precision="float32"):
    from harness import machine

    return machine.description(cores, precision)


# --- Its peers ---


def slim(cores, steps, unit, mode):
    sys.path.insert(0, str(ROOT / "tests"))  # PYTHONSAFEPATH=1 leaves it out
    import plain_slim
    import tensorflow.compat.v1 as tf

    from harness import machine

    session_config = tf.ConfigProto(
        intra_op_parallelism_threads=cores, inter_op_parallelism_threads=cores
    )
    if mode == ON_OWN_CORES:
        session_config = machine.thread_settings(cores, len(TASKS), unit)
    net = plain_slim.build(TASKS, None if unit == "none" else unit)
    session = tf.Session(graph=net.graph, config=session_config)
    with net.graph.as_default():
        session.run(tf.global_variables_initializer())
    feeds = [{net.x: x, **dict(zip(net.labels.values(), y))} for x, y in batches(steps)]
    return images_per_second(runs(session, net.train_op, feeds), steps)


def autocast(cores, steps, unit, mode):
    return torch(cores, steps, unit, mode, in_bfloat16=True)


def torch(cores, steps, unit, mode, in_bfloat16=False):
    import torch

    from study import torch_network

    torch.set_num_threads(cores)
    how, layout = mode.split(", ")
    classes = [n for _, n in TASKS]
    network = torch_network.Network(classes, None if unit == "none" else unit, decays=(0.9,))
    optimizer = torch_network.Adam(network.train())

    def loss(x, labels):
        with torch.autocast("cpu", torch.bfloat16, enabled=in_bfloat16):
            logits = network(x)
        return torch_network.loss([z.float() for z in logits], labels)

    if how == "compiled":
        loss = torch.compile(loss)

    def images(x):
        """[B, 28, 28, 1], whose strides decide the layout of all activations."""
        x = torch.from_numpy(x)
        if layout == "channels_first":
            x = x.reshape(len(x), 1, 28, 28).permute(0, 2, 3, 1)
        return x

    data = [
        (images(x), [torch.from_numpy(y).long() for y in labels]) for x, labels in batches(steps)
    ]

    def train(count):
        for x, labels in data[:count]:
            optimizer.zero_grad()
            loss(x, labels).backward()
            optimizer.step()

    return images_per_second(train, steps)


def keras(cores, steps, unit, mode):
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras
    import numpy as np
    import tensorflow as tf
    from keras import layers, ops

    own_cores = mode.endswith(ON_OWN_CORES)
    inter = min(len(TASKS), cores) if own_cores else cores
    tf.config.threading.set_inter_op_parallelism_threads(inter)
    tf.config.threading.set_intra_op_parallelism_threads(cores // (inter if own_cores else 1))

    @keras.saving.register_keras_serializable()
    class CrossStitch(layers.Layer):
        def build(self, shapes):
            self.alpha = self.add_weight(
                shape=(2, 2, shapes[0][-1]),
                initializer=lambda shape, dtype: np.broadcast_to(np.eye(2)[..., None], shape),
            )

        def call(self, inputs):
            a, b = inputs
            alpha = self.alpha
            return [alpha[0, 0] * a + alpha[0, 1] * b, alpha[1, 0] * a + alpha[1, 1] * b]

    l2 = {"use_bias": False, "kernel_regularizer": keras.regularizers.L2(0.5e-5)}

    def norm(h):
        return layers.BatchNormalization(momentum=0.9, epsilon=0.001)(h)

    def conv(h, filters):
        h = layers.Conv2D(filters, 3, padding="same", kernel_initializer="he_normal", **l2)(h)
        return layers.MaxPooling2D(2)(ops.relu(norm(h)))

    def stitched(towers):
        return CrossStitch()(towers) if unit == "channel" else towers

    inputs = keras.Input([28, 28, 1])
    towers = stitched([conv(inputs, 32) for _ in TASKS])
    towers = stitched([conv(h, 64) for h in towers])
    towers = [layers.Dense(1024, **l2)(layers.Flatten()(h)) for h in towers]
    towers = stitched([ops.relu(norm(h)) for h in towers])
    towers = [layers.Dropout(0.2)(h) for h in towers]
    outputs = [norm(layers.Dense(n, **l2)(h)) for h, (_, n) in zip(towers, TASKS)]
    network = keras.Model(inputs, outputs)
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(
        keras.optimizers.Adam(0.001),
        [cross_entropy] * 2,
        jit_compile=mode == "XLA",
        # As many as the warm-up has, which then compiles what is measured.
        steps_per_execution=warm_up(steps) if mode.startswith("many steps") else 1,
    )
    images, labels = zip(*batches(steps))
    x, y = np.concatenate(images), [np.concatenate(task) for task in zip(*labels)]

    class Clock(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.start = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            self.seconds = time.perf_counter() - self.start

    clock = Clock()

    def train(count):
        end = count * BATCH_SIZE
        given = {"batch_size": BATCH_SIZE, "verbose": 0, "shuffle": False, "callbacks": [clock]}
        network.fit(x[:end], [task[:end] for task in y], **given)
        return clock.seconds  # the epoch alone: fit takes up to two seconds to return

    return images_per_second(train, steps)


# --- The process ---

CONTENDERS = (ours, bfloat16, rewritten, evaluation, program, machine, slim, torch, autocast, keras)
CONTENDERS = {f.__name__: f for f in CONTENDERS}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", choices=CONTENDERS)
    parser.add_argument("arguments", nargs="*", help="a unit, then towers (ours) or a mode")
    parser.add_argument("--cores", type=int, default=os.cpu_count())
    parser.add_argument("--steps", type=int, default=100, help="to measure, after a fifth of it")
    parser.add_argument("--program", default=str(ROOT), help="the checkout to measure")
    options = parser.parse_args()
    sys.path.insert(0, os.path.abspath(options.program))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as train.py does, for its peers, too
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed
    answer = CONTENDERS[options.name](options.cores, options.steps, *options.arguments)
    print(json.dumps(answer), file=output)


if __name__ == "__main__":
    main()
