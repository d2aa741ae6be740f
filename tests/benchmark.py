"""How fast is this program? Measured in one sitting against PyTorch, Keras and plain slim.

    pip install -r tests/benchmark-requirements.txt
    python tests/benchmark.py                        # a quarter of an hour, 9 GB of memory
    python tests/benchmark.py --record=speed.json    # and keeps every figure
    python tests/benchmark.py --against=FOLDER       # this program against another checkout

Every contender is a process of its own, which waits while another is measured.
They take turns, A B C A B C …, so that all of them see the same machine. Run it
on a quiet one. All train the same two towers on the same batches of 128. A peer that
is not installed is left out.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, os.environ.get("PROGRAM", str(ROOT)))  # the checkout that is measured
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as train.py does, for Keras, too

BATCH_SIZE = 128
STEPS = int(os.environ.get("STEPS", 25))  # in one turn
TRAINING_FLOP = 83.8e6  # an image, two towers: three products a layer, two for conv1
EVALUATION_FLOP = 28.2e6
TASKS = [("article", 10), ("group", 3)]
RATIOS = [  # title, contender, peers of which the best counts
    ("none, against PyTorch", "ours none", "torch none"),
    ("none, against Keras 3", "ours none", "keras none"),
    ("none, against plain slim", "ours none", "slim none"),
    ("channel, against PyTorch", "ours channel", "torch channel"),
    ("channel, against Keras 3", "ours channel", "keras channel"),
    ("channel, against plain slim", "ours channel", "slim channel"),
    ("channel, against none", "ours channel", "ours none"),
    ("layer, against none", "ours layer", "ours none"),
    ("nddr, against layer", "ours nddr", "ours layer"),
    ("dense, against plain slim", "ours dense", "slim dense"),
]


# --- Contenders: each returns a function that trains STEPS batches, and may clock itself ---


def batches():
    """STEPS batches of noise: [B, 28, 28, 1] float32 and a label for each task."""
    import numpy as np

    noise = np.random.RandomState(0)
    for _ in range(STEPS):
        images = noise.normal(size=[BATCH_SIZE, 28, 28, 1]).astype(np.float32)
        yield images, [noise.randint(0, n, BATCH_SIZE).astype(np.int32) for _, n in TASKS]


def config_of(unit):
    import model

    return model.Config(
        cross_stitch=unit != "none", cross_stitch_unit=unit.replace("none", "layer")
    )


def ours(unit, num_tasks=2):
    import tensorflow.compat.v1 as tf

    import model
    from harness import machine

    tasks = [(f"{TASKS[t % 2][0]}_{t}", TASKS[t % 2][1]) for t in range(num_tasks)]
    session_config = machine.thread_settings(machine.cores(), num_tasks, unit)
    net = model.build(tasks, config_of(unit))
    session = tf.Session(graph=net.graph, config=session_config)
    session.run(net.initializer)
    feeds = [
        {net.x: x, net.is_training: True}
        | {y: labels[t % 2] for t, y in enumerate(net.labels.values())}
        for x, labels in batches()
    ]

    def turn():
        for feed in feeds:
            session.run(net.train_op, feed)

    return turn


def evaluation(unit):
    """The evaluation pass as train.py makes it, over as many images as STEPS batches hold."""
    import tensorflow.compat.v1 as tf

    import data
    import model
    import train
    from harness import machine

    dataset = data.load("synthetic", None, 0)
    session_config = machine.thread_settings(machine.cores(), len(TASKS), unit)
    net = model.build(TASKS, config_of(unit))
    session = tf.Session(graph=net.graph, config=session_config)
    session.run(net.initializer)
    passes = max(1, round(STEPS * BATCH_SIZE / len(dataset.test.images)))

    def turn():
        for _ in range(passes):
            train.evaluate(session, net, dataset)

    turn.images = passes * len(dataset.test.images)
    return turn


def slim(unit):
    import plain_slim
    import tensorflow.compat.v1 as tf

    net = plain_slim.build(TASKS, None if unit == "none" else unit)
    session = tf.Session(graph=net.graph)
    with net.graph.as_default():
        session.run(tf.global_variables_initializer())
    feeds = [{net.x: x, **dict(zip(net.labels.values(), y))} for x, y in batches()]

    def turn():
        for feed in feeds:
            session.run(net.train_op, feed)

    return turn


def matmul(_):
    import tensorflow.compat.v1 as tf

    with tf.Graph().as_default():
        a, b = [tf.get_variable(name, [4096, 4096]) for name in "ab"]
        product = tf.matmul(a, b).op
        session = tf.Session()
        session.run(tf.global_variables_initializer())

    def turn():
        for _ in range(10):
            session.run(product)

    return turn


def torch(unit, mode):
    import torch

    from study import torch_network

    classes = [n for _, n in TASKS]
    network = torch_network.Network(classes, None if unit == "none" else unit, decays=(0.9,))
    optimizer = torch_network.Adam(network.train())
    step = torch.compile(network) if mode == "compiled" else network
    data = [
        (torch.from_numpy(x), [torch.from_numpy(y).long() for y in labels])
        for x, labels in batches()
    ]

    def turn():
        for x, labels in data:
            optimizer.zero_grad()
            torch_network.loss(step(x), labels).backward()
            optimizer.step()

    return turn


def keras(unit, mode):
    import keras
    import numpy as np
    from keras import layers, ops

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
        return layers.BatchNormalization(momentum=0.999, epsilon=0.001)(h)

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
        steps_per_execution=STEPS if mode == "many steps" else 1,
    )
    images, labels = zip(*batches())
    x, y = np.concatenate(images), [np.concatenate(task) for task in zip(*labels)]

    class Clock(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.start = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            self.seconds = time.perf_counter() - self.start

    clock = Clock()

    def turn():
        # The epoch alone: fit takes up to two seconds to return, once a run.
        network.fit(x, y, batch_size=BATCH_SIZE, epochs=1, verbose=0, callbacks=[clock])
        return clock.seconds

    return turn


# --- Taking turns ---


def work(maker, arguments):
    """A contender's process: a turn for each line that comes in, its seconds going out."""
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed
    turn = maker(*arguments)
    turn()
    turn()
    print(getattr(turn, "images", STEPS * BATCH_SIZE), file=output, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        seconds = turn() or time.perf_counter() - start
        print(seconds, file=output, flush=True)


MAKERS = {
    "ours": ours,
    "evaluation": evaluation,
    "slim": slim,
    "matmul": matmul,
    "torch": torch,
    "keras": keras,
}


class Contender:
    def __init__(self, *arguments, program=ROOT, environment={}):
        command = [sys.executable, __file__, "--work", json.dumps(arguments)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PROGRAM": str(pathlib.Path(program).resolve()), **environment},
        )
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(map(str, arguments))} failed: {' '.join(command)}")
        self.images = int(line)

    def seconds(self):
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self):
        self._process.stdin.close()
        self._process.wait()


def sitting(contenders, rounds, note):
    """Measures in turns. Args: name -> arguments. Returns: name -> images a second, a round each."""
    with contextlib.ExitStack() as stack:
        running = {}
        for name, arguments in contenders.items():
            note(f"starting {name}")
            running[name] = Contender(*arguments)
            stack.callback(running[name].close)
        rates = {name: [] for name in running}
        for turn in range(rounds):
            for name, contender in running.items():
                note(f"round {turn + 1} of {rounds}: {name}")
                rates[name].append(contender.images / contender.seconds())
    return rates


def paired(contenders, sittings, rounds, note, places={}):
    """Measures in turns, in an order that chance decides anew for each round, with new
    processes for each sitting: neither place nor a process's luck with memory is a bias.

    Args: name -> arguments; places, name -> its other keyword arguments of `Contender`.
    Returns: name -> images a second, a round each.
    """
    rates = {name: [] for name in contenders}
    for sitting in range(sittings):
        with contextlib.ExitStack() as stack:
            running = {}
            for name in random.sample(list(contenders), len(contenders)):
                note(f"sitting {sitting + 1} of {sittings}: starting {name}")
                running[name] = Contender(*contenders[name], **places.get(name, {}))
                stack.callback(running[name].close)
            for turn in range(rounds):
                note(f"sitting {sitting + 1} of {sittings}: round {turn + 1} of {rounds}")
                for name in random.sample(list(running), len(running)):
                    rates[name].append(running[name].images / running[name].seconds())
    return rates


def ratio(values, others):
    """Their geometric mean ratio, pair by pair, with Student's 95 % interval."""
    import numpy as np
    import scipy.stats

    logs = np.log(np.array(values) / np.array(others))
    half = scipy.stats.t.ppf(0.975, len(logs) - 1) * np.std(logs, ddof=1) / np.sqrt(len(logs))
    return [float(np.exp(logs.mean() + d)) for d in (0, -half, half)]


def measure_against(folder, environment, sittings, rounds, units, note):
    """This program in an environment, and that of another folder in this one, in pairs.

    Returns: unit -> rates.
    """
    return {
        unit: paired(
            {"before": ["ours", unit], "after": ["ours", unit]},
            sittings,
            rounds,
            note,
            {"before": {"program": folder}, "after": {"environment": environment}},
        )
        for unit in units
    }


def report_against(record):
    lines = ["| setting | before, images/s | after | after / before (95 %) | pairs |"]
    lines.append("|---|---|---|---|---|")
    for unit, rates in record["against"].items():
        middle, low, high = ratio(rates["after"], rates["before"])
        before, after = (statistics.median(rates[name]) for name in ("before", "after"))
        lines.append(
            f"| {unit} | {before:,.0f} | {after:,.0f} | {middle:.3f} ({low:.3f} – {high:.3f}) |"
            f" {len(rates['before'])} |"
        )
    return "\n".join(lines)


# --- The program as a user starts it ---

FIRST_STEP = """
import sys, time
sys.path.insert(0, {root!r})
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


def program(unit, logdir):
    """A short run of train.py on the real data: eight times STEPS, and an evaluation.

    Returns: seconds from the command to its first step, peak memory in GB.
    """
    code = FIRST_STEP.format(root=str(ROOT))
    flags = ["--cross_stitch=False"] if unit == "none" else [f"--cross_stitch_unit={unit}"]
    flags += ["--dataset=fashion_mnist", f"--max_steps={8 * STEPS}", f"--logdir={logdir}"]
    start = time.time()
    with subprocess.Popen(
        [sys.executable, "-c", code, *flags], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:  # fmt: skip
        lines = [line for line in process.stdout if line.startswith("first step at")]
        _, _, usage = os.wait4(process.pid, 0)
        process.returncode = 0
    if not lines:
        raise RuntimeError("train.py made no step: is Fashion-MNIST on this machine?")
    return float(lines[0].split()[-1]) - start, usage.ru_maxrss * 1024 / 1e9


# --- What is printed ---


def spread(values, digits=0):
    low, high = min(values), max(values)
    return f"{statistics.median(values):,.{digits}f} ({low:,.{digits}f} – {high:,.{digits}f})"


def best(rates, name):
    """The fastest, by median, of those whose name begins so."""
    group = [
        values
        for key, values in rates.items()
        if key == name or key.startswith(f"{name} ") and "towers" not in key
    ]
    return max(group, key=statistics.median) if group else None


def report(record):
    """The record as Markdown."""
    rates, machine = record["images_per_second"], record["machine"]
    steps = record.get("steps", 25)  # what the first records were made with
    flops = statistics.median(rates["matmul"]) / (steps * BATCH_SIZE) * 10 * 2 * 4096**3
    lines = [
        f"{machine['processor']}, {machine['threads']} threads; "
        + ", ".join(f"{name} {version}" for name, version in record["versions"].items())
        + f". Bound: {flops / 1e9:.0f} GFLOP/s, what a 4096³ float32 matrix product reaches.",
        "",
        f"| training, {BATCH_SIZE} images a step | images a second | of the bound |",
        "|---|---|---|",
    ]

    def row(name, values, flop):
        share = f"{statistics.median(values) * flop / flops:.2f}" if flop else "–"
        lines.append(f"| {name} | {spread(values)} | {share} |")

    for name, values in rates.items():
        if name.split()[0] in ("ours", "slim", "torch", "keras") and "towers" not in name:
            row(name, values, None if "dense" in name else TRAINING_FLOP)
    for name, values in rates.items():
        if name.startswith("evaluation"):
            row(f"{name}, {len(TASKS)} towers", values, EVALUATION_FLOP)
    lines += ["", "| ratio, against the peer's best | median (by round) |", "|---|---|"]
    for title, name, peer in RATIOS:
        of_peer = best(rates, peer)
        if name in rates and of_peer:
            median = statistics.median(rates[name]) / statistics.median(of_peer)
            ratios = [a / b for a, b in zip(rates[name], of_peer)]
            lines.append(f"| {title} | {median:.2f} ({min(ratios):.2f} – {max(ratios):.2f}) |")
    units = list(record["program"])
    lines += ["", f"| towers | ms a step, {' | '.join(units)} |", "|---|" + "---|" * len(units)]
    towers = sorted({int(name.split()[-2]) for name in rates if name.endswith("towers")})
    times = {
        (unit, n): statistics.median(BATCH_SIZE * 1e3 / r for r in rates[f"ours {unit} {n} towers"])
        for unit in units
        for n in towers
    }
    for n in towers:
        cells = [f"{times[u, n]:.0f} ({times[u, n] / times[u, 2]:.2f} ×)" for u in units]
        lines.append(f"| {n} | {' | '.join(cells)} |")
    lines += ["", "| train.py | to the first step, s | peak memory, GB |", "|---|---|---|"]
    for unit, runs in record["program"].items():
        seconds, memory = zip(*runs)
        lines.append(f"| {unit} | {spread(seconds, 1)} | {spread(memory, 2)} |")
    return "\n".join(lines)


def measure_peers(rounds, units, numbers, note):
    """Every contender with these settings, and this program with these numbers of towers.

    Returns: the record, without machine and commit.
    """
    peers = [name for name in ("torch", "keras") if importlib.util.find_spec(name)]
    modes = {"torch": ("eager", "compiled"), "keras": ("step by step", "many steps", "XLA")}
    contenders = {"matmul": ["matmul", None]}
    for unit in units:
        if unit != "dense":
            contenders[f"ours {unit}"] = ["ours", unit]
    compared = [unit for unit in ("none", "channel") if unit in units]
    for unit in compared:
        contenders[f"slim {unit}"] = ["slim", unit]
        contenders[f"evaluation {unit}"] = ["evaluation", unit]
        for peer in peers:
            for mode in modes[peer]:
                contenders[f"{peer} {unit} {mode}"] = [peer, unit, mode]
    rates = sitting(contenders, rounds, note)
    if "dense" in units:
        dense = {f"{name} dense": [name, "dense"] for name in ("ours", "slim")}
        rates |= sitting(dense, min(rounds, 3), note)
    towers = {f"ours {u} {n} towers": ["ours", u, n] for u in compared for n in numbers}
    rates |= sitting(towers, min(rounds, 3), note)

    runs = {}
    for unit in compared:
        with tempfile.TemporaryDirectory() as folder:
            note(f"train.py, {unit}")
            runs[unit] = [program(unit, f"{folder}/{n}") for n in range(min(rounds, 3))]

    libraries = ("tensorflow", "tf-slim", "numpy", *peers)
    return {
        "steps": STEPS,
        "versions": {name: importlib.metadata.version(name) for name in libraries},
        "images_per_second": {n: [round(v, 1) for v in values] for n, values in rates.items()},
        "program": {unit: [[round(v, 3) for v in run] for run in r] for unit, r in runs.items()},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    parser.add_argument("--record", help="file for every figure, as JSON")
    parser.add_argument("--show", help="print the report of a record; measure nothing")
    parser.add_argument("--against", help="folder of another checkout to measure against instead")
    parser.add_argument(
        "--sittings", type=int, default=3, help="of --against: sets of new processes"
    )
    parser.add_argument("--units", default="none,channel,layer,nddr,dense", help="settings")
    parser.add_argument("--towers", default="1,2,4,8", help="numbers of towers; 2 among them")
    parser.add_argument(
        "--environment", default="", help="of --against: NAME=VALUE, set for this checkout only"
    )
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.environment and not options.against:
        parser.error("--environment needs --against: name a folder, for example --against=.")
    if options.work:
        name, *arguments = json.loads(options.work)
        return work(MAKERS[name], arguments)
    if options.show:
        record = json.loads(pathlib.Path(options.show).read_text())
        return print((report_against if "against" in record else report)(record))

    def note(text):
        print(text, file=sys.stderr, flush=True)

    from harness import files, machine

    record = {"machine": machine.description(machine.cores()), "commit": files.commit()}
    units = options.units.split(",")
    if options.against:
        record["environment"] = options.environment
        name, _, value = options.environment.partition("=")
        changed = {name: value} if name else {}
        how_often = options.sittings, options.rounds
        record["against"] = measure_against(options.against, changed, *how_often, units, note)
        text = report_against(record)
    else:
        numbers = [int(number) for number in options.towers.split(",")]
        record |= measure_peers(options.rounds, units, numbers, note)
        text = report(record)
    if options.record:
        pathlib.Path(options.record).write_text(json.dumps(record, indent=1) + "\n")
    print("\n" + text)


if __name__ == "__main__":
    sys.exit(main())
