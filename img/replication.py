"""Tables and a picture of the replication, from the records that replicate.py makes."""

import matrices
import numpy as np
import report
import scipy.stats
from matrices import figure

TABLES = ("replication", "replication_questions", "replication_programs")  # in img/README.md
SUMMARY_TABLES = ("replicated",)  # in README.md
NOT_REPEATED = "Made by an earlier program of the same network"  # begins such a record's note
TRAIN_PY_DECAY = "0.9"  # of the runs of train.py that these are compared with

# Fixed before seeds 10 to 19 were run: what is compared, in this order. The others are
# corrected after Holm.
PRIMARY = ("dense", "0.999")
SECOND = ("dense", "0.9")
OTHERS = [(setting, "0.9") for setting in ("channel", "layer", "nddr", "hard sharing")]


def read(folder):
    """Reads the records in a folder.

    Returns:
      (decay, setting) -> seed -> record, as report.py's tables take them; a record of the
      earlier program counts only if there are no others. And a line on how they were made.

    Raises:
      report.Unusable: a record is damaged.
    """
    records = []
    for path in sorted(folder.glob("*.json")):
        try:
            record = report.read_json(path)
            for name in ("setting", "seed", "accuracy_test", "device", "precision", "versions"):
                record[name]
        except (ValueError, KeyError, TypeError):
            raise report.Unusable(f"{path}: damaged. Delete it to run it again.") from None
        if not record["repetition"]:
            records.append(record)
    earlier = [r for r in records if r.get("note", "").startswith(NOT_REPEATED)]
    records = [r for r in records if r not in earlier] or earlier
    groups = {}
    for record in records:
        for decay, curves in record["accuracy_test"].items():
            by_seed = groups.setdefault((float(decay), record["setting"]), {})
            by_seed[record["seed"]] = as_in_tables(record, curves)
    groups = {key: dict(sorted(groups[key].items())) for key in sorted(groups, reverse=True)}
    return groups, made_with(records)


def as_in_tables(record, curves):
    """A record with the entries that report.py's tables read, for the decay of these curves."""
    values = {task: np.array(shares) for task, shares in curves.items()}
    values["mean"] = np.mean(list(values.values()), axis=0)
    last = {t: float(shares[-report.LAST_EVALUATIONS :].mean()) for t, shares in values.items()}
    epochs = list(range(1, len(values["mean"]) + 1))
    tags = {t: "accuracy_test" if t == "mean" else f"accuracy_test_{t}" for t in values}
    points = {tags[task]: [epochs, shares.tolist()] for task, shares in values.items()}
    return {**record, "accuracy_test_last": last, "curves": points}


def made_with(records):
    """The line under a table: with what its runs were made."""

    def all_of(values):
        return " and ".join(sorted(set(values)))

    versions = all_of(record["versions"]["torch"] for record in records)
    devices = all_of(f"{record['device']} in {record['precision']}" for record in records)
    notes = all_of(record["note"] for record in records if "note" in record)
    return f"*Made with PyTorch {versions} on {devices}. {notes}".strip() + "*"


def paired_gains(groups, setting, decay, task="mean", end=None):
    """The gain of each seed over the run without units. Returns: seed -> share of 1."""
    none = groups.get((float(decay), "none"), {})
    return report.gains(groups.get((float(decay), setting), {}), none, task, end)


def summary_table(groups, made):
    """Each setting with each decay, and its gain."""
    return f"{report.accuracy_table(groups, ['none'], 'decay')}\n\n{made}"


def replication_table(groups, made):
    """Each setting with each decay, with its gains by task and over training."""
    parts = [summary_table(groups, made)]
    gains = report.gains_table(groups, ["none"], "decay")
    parts.append(report.details("Gains of each task in the replication", gains))
    others = [key for key in report.sorted_keys(groups) if key[1] != "none"]
    for start in range(0, len(others), 6):  # as many columns as fit a page
        shown = others[start : start + 6]
        part = {key: g for key, g in groups.items() if key in shown or key[1] == "none"}
        by_seed = report.seeds_table(part, title_of)
        by_epoch = report.gains_over_training_table(part, title_of, "epochs")
        parts.append(report.details("Gain of each seed in the replication", by_seed))
        parts.append(report.details("Gain over training in the replication", by_epoch))
    return "\n\n".join(parts)


def title_of(key):
    decay, setting = key
    return f"{setting}, {decay:g}"


def questions_table(groups, made):
    """What was asked beforehand, with its interval and p-value."""
    first, second = (paired_gains(groups, *which) for which in (PRIMARY, SECOND))
    both = {seed: first[seed] - second[seed] for seed in first if seed in second}
    asked = [
        ("dense over none at 0.999 (primary)", first, ""),
        ("dense over none at 0.9", second, ""),
        ("the first less the second", both, ""),
    ]
    others = [(f"{s} over none at {d}", paired_gains(groups, s, d)) for s, d in OTHERS]
    others = [(title, gained) for title, gained in others if len(gained) > 1]
    p_values = [report.p_value(np.array(list(gained.values()))) for _, gained in others]
    corrected = report.holm(np.array(p_values)) if others else []
    asked += [(title, gained, f"{p:.3f}") for (title, gained), p in zip(others, corrected)]
    rows = []
    for title, gained, p in asked:
        values = np.array(list(gained.values()))
        if len(values) > 1:
            shown = p or f"{report.p_value(values):.3f}"
            rows.append([title, len(values), report.interval(values, "+"), shown])
    table = report.markdown(["question", "seeds", "gain (mean)", "p"], rows)
    return f"{table}\n\n{made}"


def programs_table(groups, of_train_py):
    """Both programs' accuracy after 30 epochs, and their difference with Welch's interval.

    Args:
      groups: (decay, setting) -> seed -> record.
      of_train_py: (images, setting) -> seed -> record, of study "full_30_epochs".

    Returns:
      A table in Markdown, or None if they have no setting in common.
    """
    rows = []
    for key in report.sorted_keys(of_train_py):
        _, setting = key
        by_seed = report.without_diverged(of_train_py)[key]
        others = groups.get((float(TRAIN_PY_DECAY), setting), {})
        ours = [report.accuracy(record, "mean") for record in by_seed.values()]
        theirs = [report.accuracy(record, "mean") for record in others.values()]
        if min(len(ours), len(theirs)) < report.SEEDS_OF_AN_INTERVAL:
            continue
        low, high = scipy.stats.ttest_ind(theirs, ours, equal_var=False).confidence_interval()
        difference = report.number(50 * (low + high), "+")
        seeds = f"{len(ours)} and {len(theirs)}"
        cells = report.interval(ours), report.interval(theirs)
        rows.append([setting, seeds, *cells, f"{difference} ± {50 * (high - low):.2f}"])
    header = ["setting", "seeds", "train.py", "PyTorch", "difference"]
    return report.markdown(header, rows) if rows else None


def all_tables(groups, made, of_train_py):
    """Makes every table for which there are runs.

    Args:
      groups, made: as `read` returns them.
      of_train_py: as `programs_table` takes it.

    Returns:
      name -> text in Markdown, names out of TABLES and SUMMARY_TABLES.
    """
    if not any(setting == "none" for _, setting in groups):
        return {}
    tables = {
        "replicated": summary_table(groups, made),
        "replication": replication_table(groups, made),
        "replication_questions": questions_table(groups, made),
        "replication_programs": programs_table(groups, of_train_py),
    }
    return {name: text for name, text in tables.items() if text}


@matrices.plain_style()
def draw(groups, out):
    """Draws what dense and channel units gain over training, with both decays.

    Args:
      groups: as `read` returns them.
      out: the folder for the picture.

    Returns:
      The paths of the pictures: one, or none if there are no runs to compare.
    """
    if not any(
        paired_gains(groups, setting, decay) for decay, setting in groups if setting != "none"
    ):
        return []
    picture = figure.Figure(**report.plot.PANEL)
    axes = picture.subplots()
    window, low = report.LAST_EVALUATIONS, 0.0
    for decay, setting in report.sorted_keys(groups):
        if setting not in ("dense", "channel"):
            continue
        length = len(next(iter(groups[decay, setting].values()))["curves"]["accuracy_test"][0])
        ends = np.arange(window, length + 1)
        gained = np.array([
            list(paired_gains(groups, setting, decay, end=end).values()) for end in ends
        ])  # fmt: skip
        middle = 100 * gained.mean(axis=1)
        half = 100 * np.array([report.half_width(values) for values in gained])
        style = "--" if decay > 0.9 else "-"
        colour = report.COLOURS[setting]
        label = f"{report.label_of(setting)}, decay {decay:g} ({len(gained[0])} seeds)"
        axes.plot(ends, middle, style, color=colour, label=label)
        axes.fill_between(ends, middle - half, middle + half, color=colour, alpha=0.15, lw=0)
        low = min(low, middle[ends >= 10].min())
    axes.axhline(0, color=report.COLOURS["none"], linewidth=1)
    axes.set(
        xlabel="epoch (mean of five evaluations)",
        ylabel="gain over no units, points",
        ylim=(low - 1, 2),
    )
    axes.legend(loc="lower right", fontsize=9)
    return [report.plot.save(picture, axes, out / "replication.png")]
