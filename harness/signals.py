"""What a signal does: it ends the program at once, or stops a run after its step."""

import contextlib
import os
import signal

from harness import host

# SIGHUP means a lost terminal; batch systems send SIGUSR1, SIGUSR2 or SIGXCPU before they stop a
# job.
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
NUMBERS = [signal.Signals[name] for name in NAMES]


def end_at_once(number):
    """Lets a signal end this process at once. The system ignores it in the first process of a
    container, unless there is a handler."""
    is_first = os.getpid() == 1
    signal.signal(number, (lambda *_: os._exit(128 + number)) if is_first else signal.SIG_DFL)


@contextlib.contextmanager
def interrupts_end_it():
    """Ctrl-C ends the program without a traceback, while there is nothing to save. In another
    program's process, an interrupt stays what it is there."""
    before = {}
    for number in NUMBERS if not host.is_there() else ():
        handler = signal.getsignal(number)
        # Not one that is ignored, as in a script's `train.py &`.
        if handler == signal.SIG_DFL or number == signal.SIGINT and handler != signal.SIG_IGN:
            before[number] = handler
            end_at_once(number)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def noted():
    """Lets a step end before a signal stops the run. A second one of its kind acts at once.

    A signal that was ignored from the start, as `nohup` arranges, stays ignored. The system
    repeats SIGXCPU each second of processor time until the process ends, so that its repetitions
    mean nothing.

    Yields: a list that is empty until a signal arrives, and then holds its number.
    """
    numbers, previous = [], {}

    def note(number, _):
        if number in numbers:
            return
        numbers.append(number)
        text = "Stopping after this step."
        if number != signal.SIGXCPU:
            text += " A second signal stops at once, without saving."
            if host.is_there():
                signal.signal(number, previous[number])
            else:
                end_at_once(number)
        with contextlib.suppress(OSError):  # the terminal may be lost
            os.write(2, f"\n{text}\n".encode())

    for number in NUMBERS:
        if signal.getsignal(number) != signal.SIG_IGN:
            previous[number] = signal.getsignal(number)
            signal.signal(number, note)
    try:
        yield numbers
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
