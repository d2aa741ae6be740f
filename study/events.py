"""Reads a run's event files; train.py, plot.py and records.py all do it here."""

import re

import numpy as np
from tensorboard.backend.event_processing import event_accumulator

SCALARS, TENSORS = event_accumulator.SCALARS, event_accumulator.TENSORS


def read_scalars(folder):
    """Reads all scalars of a run.

    Args:
      folder: the run's folder.

    Returns:
      tag -> (steps, values), two lists. If a resumed run wrote a step twice,
      the last value counts. A value is 0.9213, not the 0.9212999939918518 that this float32
      is as a float.
    """
    return scalars_of(loaded(folder, SCALARS))


def read_run(folder):
    """Reads a run's flags, name -> text, or None if train.py did not write it; and its scalars."""
    events, tag = loaded(folder, SCALARS, TENSORS), "run/text_summary"
    if tag not in events.Tags()[TENSORS]:
        return None, {}
    text = events.Tensors(tag)[0].tensor_proto.string_val[0].decode()
    return dict(re.findall(r"\*\*(\w+)\*\* (.*)", text)), scalars_of(events)


def loaded(folder, *kinds):
    """TensorBoard's reader with all events of these kinds."""
    return event_accumulator.EventAccumulator(str(folder), dict.fromkeys(kinds, 0)).Reload()


def scalars_of(events):
    """As `read_scalars`, of what `loaded` returned."""
    curves = {}
    for tag in events.Tags()[SCALARS]:
        points = {event.step: float(str(np.float32(event.value))) for event in events.Scalars(tag)}
        curves[tag] = list(points), list(points.values())
    return curves
