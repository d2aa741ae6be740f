"""What a terminal shows of a run that trains, and what other programs can read of it."""

import contextlib
import json
import sys
import time

from harness.bars import ProgressBar
from harness.names import PROGRESS

SECONDS = 0.5  # between two notes of the step


class Progress:
    """A bar with the time left, training speed, the loss and test accuracies.

    Speed is that of the training steps, without the first, in which TensorFlow compiles.

    Args:
      name: what the bar is called.
      start_step: the step that the run has reached.
      last_step: the step to train to.
      claim: an `owner.Claim` to the run's folder, in which a file tells other programs the step
        while the run trains; or None.
    """

    def __init__(self, name, start_step, last_step, claim=None):
        self._claim, self._last_step, self._noted = claim, last_step, 0.0
        # A bar that TQDM_DISABLE=1 hides does not count.
        self._start_step = self._step = start_step
        self.bar = ProgressBar(
            desc=name,
            initial=start_step,
            total=last_step,
            dynamic_ncols=True,
            smoothing=0.05,
            mininterval=0.5 if sys.stderr.isatty() else 30,
            delay=1,  # it is first shown below, where an error does no harm
            # It fits a terminal of 80 columns.
            bar_format="{desc} {percentage:.0f}%|{bar}|ETA {remaining}{postfix}",
        )
        self.bar.delay = 0
        with contextlib.suppress(OSError):  # whoever read stderr may be gone
            self.bar.refresh()
        self._images, self._seconds = None, 0.0  # of all steps but the first
        self._evaluated = 0, 0.0  # images and seconds at the last evaluation
        self._loss, self._accuracies = float("nan"), {}

    def add_step(self, num_images, loss, seconds):
        if self._images is None:
            self._images = 0
        else:
            self._images, self._seconds = self._images + num_images, self._seconds + seconds
        self._loss, self._step = loss, self._step + 1
        self._show()
        with contextlib.suppress(OSError):
            self.bar.update()
        if self._claim and time.monotonic() - self._noted >= SECONDS:
            self._noted = time.monotonic()
            content = {"first_step": self._start_step, "step": self._step}
            content["last_step"] = self._last_step
            with contextlib.suppress(OSError):  # a full disk: what matters reports it
                if self._claim.holds():
                    (self._claim.folder / PROGRESS).write_text(json.dumps(content))

    def add_evaluation(self, accuracies):
        """Args: task -> accuracy. Returns: training speed since the last evaluation, or None."""
        before, self._evaluated = self._evaluated, (self._images or 0, self._seconds)
        images, seconds = self._evaluated[0] - before[0], self._evaluated[1] - before[1]
        self._accuracies = accuracies
        self._show()
        return images / seconds if images else None

    def speed(self):
        """Images a second in training; None before the second step."""
        return self._images / self._seconds if self._images else None

    def close(self):
        with contextlib.suppress(OSError):
            self.bar.close()
        with contextlib.suppress(OSError):
            if self._claim and self._claim.holds():
                (self._claim.folder / PROGRESS).unlink()

    def _show(self):
        shown = [f"{name} {accuracy:.3f}" for name, accuracy in self._accuracies.items()]
        texts = [f"{self.speed() or 0:.0f} img/s", f"loss {self._loss:.3f}", *shown]
        self.bar.set_postfix_str(" ".join(texts), refresh=False)
