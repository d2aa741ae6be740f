"""Compares a record with a repetition of its run."""

import math

import numpy as np
import scipy.stats

from harness.errors import Failed
from study import groups, runs

# Entries of a record that may differ although the result is the same.
NOT_COMPARED = {"command", "flags", "commit", "versions", "numerics", "machine"}
NOT_COMPARED |= {"images_per_second", "wall_seconds", "resumed_after"}
OF_UNITS = {"weights", "distances"}  # scope or variable -> values; older records have fewer


def compare(record, again, tolerance):
    """Compares a record with a repetition of its run.

    Bits are compared if the record says that it was made on the same kind of machine with the
    same TensorFlow and numerics, otherwise accuracy.

    Args:
      record: the record.
      again: the record of the repetition.
      tolerance: as `tolerance_of` returns it.

    Returns:
      What was found, as a sentence.

    Raises:
      Failed: they do not agree, or this cannot be told.
    """
    names = record.keys() - NOT_COMPARED  # older records have fewer entries
    different = sorted(name for name in names if record[name] != comparable(name, record, again))
    if not different:
        return "the same bits"
    before, here = origin(record), origin(again)
    if before == here or "diverged" in {*record, *again}:
        raise Failed(f"{', '.join(different)} not as recorded")
    reasons = ", ".join(
        f"{name} {before.get(name, 'not recorded')} (here {value})"
        for name, value in here.items()
        if before.get(name, "not recorded") != value
    )
    recorded, now = (r["accuracy_test_last"]["mean"] for r in (record, again))
    if tolerance is None:
        raise Failed(
            f"bits cannot be compared: {reasons}. Nor can accuracy, with fewer than three other"
            f" seeds: it was {recorded:.4f}, is {now:.4f}"
        )
    if abs(recorded - now) > tolerance:
        raise Failed(
            f"accuracy {now:.4f} is further from the recorded {recorded:.4f} than two seeds are in"
            f" 99 of 100 cases, {tolerance:.4f}; bits cannot be compared: {reasons}"
        )
    return (
        f"accuracy was {recorded:.4f}, is {now:.4f}: no further than two seeds are in 99 of 100"
        f" cases, {tolerance:.4f}; bits cannot be compared: {reasons}"
    )


def comparable(name, record, again):
    """The entry of the repetition, of whose units' values only those that the record has."""
    value = again.get(name)
    if name in OF_UNITS and value:
        value = {key: of_unit for key, of_unit in value.items() if key in record[name]}
    return value


def origin(record):
    """What decides in which order sums are added up, name -> value; older records lack some."""
    tensorflow = record.get("versions", {}).get("tensorflow")
    known = {"variables": {}, **record.get("machine", {}), **record, "TensorFlow": tensorflow}
    names = ("processor", "vectors", "bfloat16", "onednn", "threads", "variables", "TensorFlow",
             "numerics")  # fmt: skip
    return {name: known[name] for name in names if name in known}


def tolerance_of(run, studies):
    """How far a repetition's accuracy may be from the record's if the two round differently.

    After 30 epochs, two such runs of one seed differ as much as runs of two seeds. By chance, the
    deviation of a few seeds can be far too small, which Student's t allows for.

    Args:
      run: a `runs.Run`.
      studies: as `records.read_all` returns them.

    Returns:
      How much two other seeds of the run's setting differ at most in 99 of 100 cases. If fewer
      than three of them have a record, the largest such difference of any setting on as many
      images, or None if there is none.
    """

    def tolerances(of):
        enough = [g.accuracies() for g in of if len(g.records) >= groups.SEEDS_OF_AN_INTERVAL]
        return [
            scipy.stats.t.ppf(0.995, len(values) - 1) * math.sqrt(2) * np.std(values, ddof=1)
            for values in enough
        ]

    images, name = runs.settings_of(run.study)[run.setting]
    group = groups.find(studies[run.study], name, images)
    others = group.of_seeds(group.records.keys() - {run.seed})
    counted = runs.STUDIES[run.study].condition
    similar = [
        group
        for study, of in studies.items()
        for group in of
        if runs.STUDIES[study].condition == counted and group.condition == images
    ]
    return max(tolerances([others]) or tolerances(similar), default=None)
