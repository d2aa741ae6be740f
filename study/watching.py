"""One bar for many runs of train.py, and how long they will take, from their progress.json."""

import contextlib
import sys
import threading
import time
import typing

from harness import files
from harness.bars import ProgressBar
from harness.names import PROGRESS, sharing_of

STEPS_OF_AN_ESTIMATE = 50
INTERVAL = 0.5  # seconds between looks at the runs
# How long a step takes, as a multiple of towers that share nothing.
COST_OF_SHARING = {"hard_sharing": 0.6, "nddr": 1.4, "dense": 15}
SHORTER = "fewer --seeds, --settings, --num_epochs or --train_examples"


class Cost(typing.NamedTuple):
    """What a run costs, in training images of towers that share nothing."""

    training: float
    evaluating: float

    @property
    def total(self):
        return self.training + self.evaluating


def cost_of(flags, steps, batch_size, test_images):
    """Args: train.py's flags, name -> value; the run's steps; images a step and an evaluation.

    Returns: a `Cost`, with a third for an image that is only evaluated.
    """
    usual = {"cross_stitch": True, "cross_stitch_unit": "channel", "tasks": "one,other"}
    factor = COST_OF_SHARING.get(sharing_of(usual | flags), 1)
    evaluations = steps / int(flags["eval_every"])
    return Cost(steps * batch_size * factor, evaluations * test_images / 3 * factor)


class Bar:
    """One bar for all runs. A context manager, within which a thread looks at them.

    Args:
      costs: the path of each run's folder -> its `Cost`.
      jobs: how many are made at a time.
    """

    def __init__(self, costs, jobs):
        self._costs, self._jobs = costs, jobs
        self._shares = dict.fromkeys(costs, 0.0)  # of each run that is done
        self._first_seen = {}  # folder -> when a step of it was first seen, and which
        self._begun = {folder for folder in costs if folder.exists()}
        self._resumed = {}  # folder -> the share that was made before
        self._started, self._has_said = time.monotonic(), False
        for folder in costs:  # what a killed run left says nothing of now
            (folder / PROGRESS).unlink(missing_ok=True)
        self._made, self._stop = set(), threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._bar = ProgressBar(
            total=sum(cost.total for cost in costs.values()),
            bar_format="{percentage:.0f}%|{bar}|{elapsed}, ETA {remaining}{postfix}",
            dynamic_ncols=True,
            smoothing=0,
            mininterval=0.5 if sys.stderr.isatty() else 30,
        )

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            self._bar.close()

    def has_made(self, folder):
        """Notes that a run has its record."""
        self._made.add(folder)

    def _look(self):
        is_last = False
        while not is_last:
            is_last = self._stop.wait(INTERVAL)
            with contextlib.suppress(OSError):  # whoever read stdout or stderr may be gone
                self._update()

    def _update(self):
        for folder in self._costs:
            share = 1.0 if folder in self._made else self._share_of(folder)
            self._shares[folder] = max(share, self._shares[folder])
        is_measured = any(of in self._made and of not in self._begun for of in self._costs)
        if is_measured and not self._has_said:  # in fewer steps than an estimate needs
            self._say_how_long(lambda _: time.monotonic() - self._started)
        done = sum(self._shares[folder] * cost.total for folder, cost in self._costs.items())
        self._bar.set_postfix_str(f"{len(self._made)} of {len(self._costs)} runs", refresh=False)
        self._bar.update(done - self._bar.n)

    def _share_of(self, folder):
        """Which share of its steps a run has made, as far as it tells."""
        found = files.read_json(folder / PROGRESS)
        if not found:
            return 0.0
        now, step, last_step = time.monotonic(), found["step"], found["last_step"]
        first_step = found.get("first_step", 0)  # of this process
        if folder not in self._first_seen:
            self._resumed[folder] = first_step / last_step
            made_before = (share * self._costs[of].total for of, share in self._resumed.items())
            self._bar.initial = sum(made_before)  # which says nothing of the speed
        since, first = self._first_seen.setdefault(folder, (now, step))
        is_enough = step > first and step - first_step >= STEPS_OF_AN_ESTIMATE
        if is_enough and not self._has_said:
            seconds = (now - since) / (step - first) * last_step / self._costs[folder].training
            before = since - self._started  # until the first step
            self._say_how_long(lambda cost: before + seconds * cost.total)
        return step / last_step

    def _say_how_long(self, seconds_of):
        """Says it. Args: the function of a run's `Cost` that tells its seconds."""
        self._has_said = True
        left = (
            Cost(*(part * (1 - self._resumed.get(folder, 0)) for part in cost))
            for folder, cost in self._costs.items()
        )
        seconds = sum(map(seconds_of, left)) / min(self._jobs, len(self._costs))
        text = f"About {duration(seconds)} for {len(self._costs)} runs. Shorter: {SHORTER}."
        ProgressBar.write(text)
        sys.stdout.flush()


def duration(seconds):
    """A length of time in words, such as "2 h 5 min"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    if minutes > 9:
        return f"{minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
