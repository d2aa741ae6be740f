"""Trains the study's networks for 30 epochs on a GPU, with torch_network.py: minutes a run.

    python -m study.replicate                             # six settings, seeds 10 to 19
    python -m study.replicate --settings=none,dense --minutes=9
    python -m study.replicate --device=cpu                # without a GPU: hours a run
    python -m study.replicate --quick                     # the same in a few steps, no result

It makes the runs of a few seeds at a time, all settings of these seeds before the next.
Each finished run leaves a small file in study/records/replication/; a run that has one is
skipped, so you can stop this program at any time. `python -m study.reproduce --draw` then
writes tables and pictures.

Decays of batch norm's moving averages are read only when a network is evaluated. So each
run keeps the averages of both decays, and is evaluated with both after each epoch. Runs of
one seed start with the same towers and see the images in train.py's order, but batches run
over the end of an epoch, as the original's do. A GPU does not repeat bits.
"""

import contextlib
import pathlib
import re
import sys
import time
import warnings

import numpy as np
from absl import flags

try:
    import torch
except ModuleNotFoundError:
    sys.exit("replicate.py: PyTorch is not installed: pip install torch")

import data
from harness import files, process
from harness.bars import ProgressBar
from harness.errors import Failed
from study import records, torch_network
from study.runs import EPOCHS_OF_THE_REPLICATION, SEEDS_OF_THE_REPLICATION

RECORDS = pathlib.Path(__file__).resolve().parent / "records" / "replication"
FLAGS = flags.FLAGS
SETTINGS = {
    "none": {},
    "channel": {"unit": "channel"},
    "layer": {"unit": "layer"},
    "nddr": {"unit": "nddr"},
    "hard sharing": {"share_until": "fc_3"},
    "dense": {"unit": "dense"},
}
DECAYS = (0.9, 0.999)
# What can change a run's result.
PROGRAM = ("data.py", "harness", "study/replicate.py", "study/torch_network.py")
STEPS_PER_EPOCH = 469
BATCH_SIZE = 128
EVALUATED_AT_ONCE = 2500


def define_flags():
    """Defines this program's flags."""
    flags.DEFINE_list("settings", list(SETTINGS), f"Settings to run, out of {', '.join(SETTINGS)}.")
    seeds = [str(seed) for seed in SEEDS_OF_THE_REPLICATION]
    flags.DEFINE_list("seeds", seeds, "Seeds of each setting; other seeds need --records=FOLDER.")
    flags.DEFINE_integer("at_once", 5, "Seeds that train at a time; dense networks train alone.", 1)
    flags.DEFINE_float("minutes", None, "Stop after this time; unfinished runs leave nothing.", 0)
    flags.DEFINE_enum("device", "gpu", ["gpu", "cpu"], "Where to train.")
    flags.DEFINE_integer("repetition", 0, "Run again with the same seeds, under another name.", 0)
    flags.DEFINE_boolean("quick", False, "Two epochs of three steps: minutes, and no result.")
    flags.DEFINE_string("data_dir", None, "Folder of Fashion-MNIST, as for train.py.")
    flags.DEFINE_string("records", str(RECORDS), "Folder for the records.")
    flags.register_validator(
        "settings",
        lambda names: names and set(names) <= set(SETTINGS) and len(names) == len(set(names)),
        f"must be some of {', '.join(SETTINGS)}, each once",
    )
    flags.register_validator(
        "seeds",
        lambda seeds: (
            all(s.isdecimal() and int(s) < 2**32 for s in seeds)
            and len(seeds) == len({*map(int, seeds)}) > 0
        ),
        "must be numbers below 2**32, each once, such as 10,11",
    )


# --- A run ---


class Images:
    """Fashion-MNIST on the device."""

    def __init__(self, dataset, device):
        def on_device(split):
            images = torch.from_numpy(dataset.standardise(split.images)).to(device)
            labels = [torch.from_numpy(task.labels(split)).long() for task in dataset.tasks]
            return images, [values.to(device) for values in labels]

        self.tasks = dataset.tasks
        self.train, self.train_labels = on_device(dataset.train)
        self.test, self.test_labels = on_device(dataset.test)


class Run:
    """One network in training, all of it on the device.

    Args:
      setting: out of SETTINGS.
      seed: determines the first weights, the order of the images and the dropout masks.
      images: an `Images`.
      epochs, steps: length of the run, and of an epoch.
    """

    def __init__(self, setting, seed, images, epochs, steps):
        self.setting, self.seed, self.images = setting, seed, images
        device = images.train.device
        classes = [len(task.classes) for task in images.tasks]
        options = {"decays": DECAYS, "seed": seed, **SETTINGS[setting]}
        self.network = torch_network.Network(classes, **options).to(device)
        self.optimizer = torch_network.Adam(self.network)
        self.start = {scope: a.detach().clone() for scope, a in self.network.units.items()}
        count, size = len(images.train), epochs * steps * BATCH_SIZE
        orders = [data.epoch_order(count, seed, epoch) for epoch in range(-(-size // count))]
        self.order = torch.from_numpy(np.concatenate(orders)).to(device)
        # What a step needs to know lies on the device, so that a captured one counts on.
        self.position = torch.zeros([], dtype=torch.int64, device=device)
        self.within_batch = torch.arange(BATCH_SIZE, device=device)
        self.loss = torch.zeros([], device=device)  # of the steps since it was read, added up
        self.generator = torch.Generator(device).manual_seed(seed)
        self.curves = {f"{decay}": {t.name: [] for t in images.tasks} for decay in DECAYS}
        self.losses = []

    def step(self):
        """One training step."""
        chosen = self.order[self.position + self.within_batch]
        self.position += BATCH_SIZE
        labels = [values[chosen] for values in self.images.train_labels]
        logits = self.network(self.images.train[chosen], generator=self.generator)
        loss = torch_network.loss(logits, labels)
        self.loss += loss.detach()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def tensors(self):
        """All that a step changes, but for the generator."""
        moments = [
            state[name]
            for state in self.optimizer.state.values()
            for name in ("exp_avg", "exp_avg_sq")
        ]
        counters = [self.optimizer.steps, self.position, self.loss]
        return [*self.network.parameters(), *self.network.buffers(), *moments, *counters]

    def prepare(self):
        """Captures a step as a CUDA graph, on a stream of this run; `step` then replays it."""
        self.stream = torch.cuda.Stream()
        before = [tensor.detach().clone() for tensor in self.tensors()]
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            for _ in range(3):  # libraries allocate and choose their algorithms here
                self.step()
        torch.cuda.synchronize()
        self.optimizer.zero_grad()
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        with torch.cuda.graph(graph, stream=self.stream):
            self.step()
        with torch.no_grad():
            for tensor, value in zip(self.tensors(), before):
                tensor.copy_(value)
        self.generator.manual_seed(self.seed)
        torch.cuda.synchronize()
        self.step = graph.replay

    def on_stream(self):
        """A context in which this run's work is queued beside that of the others."""
        stream = getattr(self, "stream", None)
        return torch.cuda.stream(stream) if stream else contextlib.nullcontext()

    @torch.no_grad()
    def predictions(self, which):
        """Predicts the test images. Returns: for each task, [N] class numbers."""
        self.network.eval()
        parts = [self.network(x, which) for x in self.images.test.split(EVALUATED_AT_ONCE)]
        self.network.train()
        return [torch.cat(of_task).argmax(1) for of_task in zip(*parts)]

    def evaluate(self, steps):
        """Adds an epoch's accuracies and its mean training loss to the curves."""
        for which, curves in enumerate(self.curves.values()):
            labels = self.images.test_labels
            for task, ids, values in zip(self.images.tasks, self.predictions(which), labels):
                curves[task.name].append(round((ids == values).double().mean().item(), 6))
        self.losses.append(round(self.loss.item() / steps, 6))
        self.loss.zero_()

    def recalls(self):
        """Recall of each class at the end. Returns: decay -> task -> class -> share."""
        found = {}
        for which, decay in enumerate(DECAYS):
            of_tasks = zip(self.images.tasks, self.predictions(which), self.images.test_labels)
            found[f"{decay}"] = {
                task.name: {
                    name: round((ids[values == c] == c).double().mean().item(), 6)
                    for c, name in enumerate(task.classes)
                }
                for task, ids, values in of_tasks
            }
        return found

    @torch.no_grad()
    def units(self):
        """Mean weights of the units, and distances from their start, as train.py has them."""
        means, distances, num_towers = {}, {}, len(self.images.tasks)
        for scope, alpha in self.network.units.items():
            size = alpha.shape[0] // num_towers
            parts = []
            for values in (alpha, (alpha - self.start[scope]).square()):
                if size > 1:  # [T*size, T*size]: of a block, the sum divided by its size
                    blocks = values.reshape(num_towers, size, num_towers, size)
                    parts.append(blocks.sum(dim=(1, 3)) / size)
                else:
                    parts.append(values.reshape(num_towers, num_towers, -1).mean(2))
            means[scope] = parts[0].cpu().numpy().astype(float).round(6).tolist()
            distances[scope] = parts[1].sqrt().cpu().numpy().astype(float).round(6).tolist()
        return means, distances


def train_together(runs, epochs, steps, in_time, progress):
    """Trains runs side by side, each on a stream of its own.

    Args:
      runs: `Run`s.
      epochs, steps: their length, and that of an epoch.
      in_time: function that says whether there is time left.
      progress: function that is called after each epoch of each run.

    Returns:
      Whether they have finished.
    """
    if runs[0].images.train.is_cuda:
        for run in runs:
            run.prepare()
    for run in runs:
        run.network.train()
    for _ in range(epochs):
        if not in_time():
            return False
        for _ in range(steps):
            for run in runs:
                with run.on_stream():
                    run.step()
        for run in runs:
            with run.on_stream():
                run.evaluate(steps)
            progress()
    return True


# --- Records ---


def path_of(setting, seed):
    """The file of a run's record."""
    again = f"-{FLAGS.repetition}" if FLAGS.repetition else ""
    return pathlib.Path(FLAGS.records) / f"{setting.replace(' ', '_')}-seed{seed}{again}.json"


def record_of(run, commit, seconds, at_once):
    """What is kept of a run, for JSON."""
    means, distances = run.units()
    on_gpu = run.images.train.is_cuda
    has_tf32 = on_gpu and torch.cuda.get_device_capability() >= (8, 0)
    return {
        "setting": run.setting,
        "seed": run.seed,
        "repetition": FLAGS.repetition,
        "epochs": len(run.losses),
        "diverged": not np.isfinite(run.losses).all(),
        "accuracy_test": run.curves,
        "loss": run.losses,
        "recall": run.recalls(),
        "cross_stitch": means,
        "distances": distances,
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
        "device": torch.cuda.get_device_name() if on_gpu else "CPU",
        "precision": "TF32" if has_tf32 else "float32",
        "commit": commit,
        "seconds": round(seconds, 1),
        "runs_at_once": at_once,
    }


# --- The program ---


def is_made(setting, seed, epochs):
    """Whether a run has a record. Raises: Failed, it is of a shorter or longer run."""
    path = path_of(setting, seed)
    found = path.exists() and records.read_record(path, "epochs")["epochs"]
    if found and found != epochs:
        raise Failed(
            f"{path}: is of a run of {found} epochs, not {epochs}. Choose other --records."
        )
    return bool(found)


def groups_of_runs(device, epochs):
    """The missing runs, in groups that train together: lists of (setting, seed)."""
    seeds = [int(seed) for seed in FLAGS.seeds]
    for first in range(0, len(seeds), FLAGS.at_once):
        for setting in FLAGS.settings:
            missing = [
                (setting, seed)
                for seed in seeds[first : first + FLAGS.at_once]
                if not is_made(setting, seed, epochs)
            ]
            size = 1 if setting == "dense" or device == "cpu" else len(missing)
            for start in range(0, len(missing), size or 1):
                yield missing[start : start + size]


def main(argv):
    """Runs the program. Raises: Failed, or OSError, for `process.run` to say."""
    if len(argv) > 1:
        raise Failed(f"{argv[1]}: not a flag; see --help")
    if FLAGS.device == "gpu" and not torch.cuda.is_available():
        raise Failed(
            "PyTorch finds no GPU on this machine. Use another machine, or give --device=cpu,"
            " with which a run takes hours."
        )
    device = "cuda" if FLAGS.device == "gpu" else "cpu"
    epochs, steps = (2, 3) if FLAGS.quick else (EPOCHS_OF_THE_REPLICATION, STEPS_PER_EPOCH)
    if FLAGS.quick and FLAGS["records"].using_default_value:
        FLAGS.records = "logs/replicate"
    # PyTorch uses TF32 by itself for convolutions only; TensorFlow uses it for both.
    torch.set_float32_matmul_precision("high")
    # Each run warms up once outside its graph, on purpose.
    warnings.filterwarnings("ignore", message=".*capturable=True.*")
    others = [seed for seed in FLAGS.seeds if int(seed) not in SEEDS_OF_THE_REPLICATION]
    if others and pathlib.Path(FLAGS.records).resolve() == RECORDS.resolve():
        raise Failed(
            f"--seeds={','.join(others)}: the study's seeds, {SEEDS_OF_THE_REPLICATION[0]} to"
            f" {SEEDS_OF_THE_REPLICATION[-1]}, were fixed beforehand. Give the records of others a"
            " folder of their own: --records=FOLDER."
        )
    pathlib.Path(FLAGS.records).mkdir(parents=True, exist_ok=True)
    try:
        dataset = data.load("fashion_mnist", FLAGS.data_dir)
        if FLAGS.quick:
            dataset = dataset._replace(test=dataset.test.take(slice(0, 500)))
        train_all(Images(dataset, device), epochs, steps)
    except RuntimeError as error:  # several classes and texts say that memory is full
        if not re.search("out of memory|ALLOC_FAILED", str(error)):
            raise
        raise Failed(
            "the GPU's memory is full. Close other programs on it, or train fewer seeds at a time:"
            " --at_once=1"
        ) from None
    except KeyboardInterrupt:
        sys.exit("\nStopped. Run the same command to make the runs that have no record.")


def train_all(images, epochs, steps):
    """Makes the missing runs, until --minutes are over."""
    device = images.train.device.type
    commit = files.commit(program=PROGRAM)  # now: the user may commit while the runs train
    deadline = time.monotonic() + 60 * FLAGS.minutes if FLAGS.minutes is not None else np.inf

    def in_time():
        return time.monotonic() < deadline

    groups = list(groups_of_runs(device, epochs))
    wanted = len(FLAGS.settings) * len(FLAGS.seeds)
    print(f"{wanted - sum(map(len, groups))} of {wanted} runs have a record.", flush=True)
    bar = ProgressBar(
        total=epochs * sum(map(len, groups)),
        bar_format="{percentage:.0f}%|{bar}|{elapsed}, ETA {remaining} {postfix}",
        dynamic_ncols=True,
    )
    with bar:
        for group in groups:
            # Another process may have made some meanwhile.
            planned, group = group, [run for run in group if not is_made(*run, epochs)]
            bar.total -= epochs * (len(planned) - len(group))
            if not group:
                continue
            names = ", ".join(f"{seed}" for _, seed in group)
            bar.set_postfix_str(f"{group[0][0]}, seed {names}")
            began = time.monotonic()
            runs = [Run(setting, seed, images, epochs, steps) for setting, seed in group]
            if not train_together(runs, epochs, steps, in_time, bar.update):
                bar.close()
                return print("Time is up. Run the same command to make the missing runs.")
            for run in runs:
                if is_made(run.setting, run.seed, epochs):  # a GPU does not repeat bits
                    continue
                record = record_of(run, commit, time.monotonic() - began, len(runs))
                records.write_record(path_of(run.setting, run.seed), record)
            del runs, run  # their memory is the next group's


if __name__ == "__main__":
    define_flags()
    process.run(main)
