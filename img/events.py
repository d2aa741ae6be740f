"""Reads a run's event files; train.py, plot.py and records.py all do it here."""

import re

import numpy as np
from tensorboard.backend.event_processing import event_accumulator


def read_scalars(folder):
    """Reads all scalars of a run.

    Args:
      folder: the run's folder.

    Returns:
      tag -> (steps, values), two lists. If a resumed run wrote a step twice,
      the last value counts. A value is 0.9213, not the 0.9212999939918518 that this float32
      is as a float.
    """
    events = event_accumulator.EventAccumulator(str(folder), {event_accumulator.SCALARS: 0})
    curves = {}
    for tag in events.Reload().Tags()[event_accumulator.SCALARS]:
        points = {event.step: float(str(np.float32(event.value))) for event in events.Scalars(tag)}
        curves[tag] = list(points), list(points.values())
    return curves


def read_flags(folder):
    """The flags of a run, name -> text; None if train.py did not write the event files."""
    tag, tensors = "run/text_summary", event_accumulator.TENSORS
    events = event_accumulator.EventAccumulator(str(folder), {tensors: 0}).Reload()
    if tag not in events.Tags()[tensors]:
        return None
    text = events.Tensors(tag)[0].tensor_proto.string_val[0].decode()
    return dict(re.findall(r"\*\*(\w+)\*\* (.*)", text))
