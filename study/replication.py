"""Tables and a picture of the replication, from the records that replicate.py makes."""

import numpy as np
import scipy.stats

from harness import matrices
from harness.errors import Failed
from harness.matrices import figure
from harness.names import LAST_EVALUATIONS
from study import groups, machines, markdown, pictures, plot, records, tables
from study.groups import SIGNIFICANCE, Group, find, records_of
from study.runs import EPOCHS_OF_THE_REPLICATION, SEEDS_OF_THE_REPLICATION

NAMES = ("replicated", "replication_questions", "replication_programs")  # on the pages here
NOT_REPEATED = "Made by an earlier program of the same network"  # begins such a record's note
# The runs of train.py that these are compared with.
TRAIN_PY_STUDY, TRAIN_PY_DECAY = "all_images_30_epochs", "0.9"

# Fixed before seeds 10 to 19 were run: what is compared. The second is asked if the first is
# significant, and their difference if both are. The others are corrected after Holm.
PRIMARY = ("dense", "0.999")
SECOND = ("dense", "0.9")
DIFFERENCE = "the first less the second"
NOT_ASKED, NOT_YET = "not asked", "not yet"
OTHERS = [(setting, "0.9") for setting in ("channel", "layer", "nddr", "hard sharing")]


def read(folder, fewest_seeds):
    """Reads the records in a folder.

    Args:
      folder: its path.
      fewest_seeds: settings with fewer are left out.

    Returns:
      A list of `groups.Group`, whose condition is the decay; those of the earlier program
      until all runs of the first question are made. And a line on how they were made.

    Raises:
      Failed: a record is damaged, or of another seed or length than was fixed beforehand.
    """
    entries = ("setting", "seed", "repetition", "epochs", "accuracy_test")
    entries += ("device", "precision", "versions")
    earlier, later = [], []
    for path in sorted(folder.glob("*.json")):
        record = records.read_record(path, *entries)
        if record.get("note", "").startswith(NOT_REPEATED):
            earlier.append(record)
        elif record["seed"] not in SEEDS_OF_THE_REPLICATION:
            raise Failed(
                f"{path}: the replication has no seed {record['seed']}; its seeds,"
                f" {machines.ranges_of(SEEDS_OF_THE_REPLICATION)}, were fixed beforehand. Move this"
                " file to another folder."
            )
        elif record["epochs"] != EPOCHS_OF_THE_REPLICATION:
            raise Failed(
                f"{path}: of a run of {record['epochs']} epochs; the replication's have"
                f" {EPOCHS_OF_THE_REPLICATION}. Move this file to another folder."
            )
        elif not record["repetition"]:
            later.append(record)
    study = groups_of(later, fewest_seeds)
    if earlier and not is_complete(study, *PRIMARY):
        study = groups_of(earlier, fewest_seeds)
    return study, made_with(records_of(study))


def is_complete(study, setting, decay):
    """Whether all runs are made that a question compares, also if some diverged."""
    compared = (find(study, name, float(decay)) for name in (setting, "none"))
    planned = len(SEEDS_OF_THE_REPLICATION)
    return all(len(group.records) + group.diverged == planned for group in compared)


def groups_of(found, fewest_seeds):
    """Records as groups, one for each decay and setting that has enough seeds."""
    found = sorted(found, key=lambda record: record["seed"])
    by_setting = {name: [r for r in found if r["setting"] == name] for name in groups.KINDS}
    study = [
        Group(
            float(decay),
            setting,
            {
                record["seed"]: as_in_tables(record, record["accuracy_test"][decay])
                for record in of_setting
                if decay in record["accuracy_test"] and not record.get("diverged")
            },
            sum(bool(record.get("diverged")) for record in of_setting),
        )
        for decay in ("0.9", "0.999")
        for setting, of_setting in by_setting.items()
    ]
    return [g for g in study if g.records and len(g.records) + g.diverged >= fewest_seeds]


def as_in_tables(record, curves):
    """A record with the entries that the study's tables read, for the decay of these curves."""
    values = {task: np.array(shares) for task, shares in curves.items()}
    values["mean"] = np.mean(list(values.values()), axis=0)
    last = {t: float(shares[-LAST_EVALUATIONS:].mean()) for t, shares in values.items()}
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


def paired_gains(study, setting, decay):
    """The gain of each seed over the run without units. Returns: seed -> share of 1."""
    group = find(study, setting, float(decay))
    return group.gains(groups.baseline_of(study, group))


def summary_table(study, made):
    """Each setting with each decay, and its gain."""
    return f"{tables.accuracy_table(study, first='decay')}\n\n{made}"


def questions_table(study, made):
    """What was asked beforehand, with its interval and p-value."""
    first, second = (paired_gains(study, *which) for which in (PRIMARY, SECOND))
    is_first, is_second = (is_complete(study, *which) for which in (PRIMARY, SECOND))
    both = {seed: first[seed] - second[seed] for seed in first if seed in second}
    in_order = {
        "dense over none at 0.999 (primary)": (first, is_first),
        "dense over none at 0.9": (second, is_second),
        DIFFERENCE: (both, is_first and is_second),
    }
    others = {
        f"{setting} over none at {decay}": (
            paired_gains(study, setting, decay),
            is_complete(study, setting, decay),
        )
        for setting, decay in OTHERS
    }
    p_texts = p_in_order(in_order) | p_after_holm(others)
    rows = []
    for title, (gained, _) in {**in_order, **others}.items():
        values = list(gained.values())
        if groups.is_enough(values):
            low, high = (100 * limit for limit in groups.prediction_limits(values))
            pair = f"{markdown.number(low, '+')} to {markdown.number(high, '+')}"
            rows.append([title, len(values), markdown.interval(values, "+"), p_texts[title], pair])
    header = ["question", "seeds", "gain (mean)", "p", "one pair of runs"]
    return f"{markdown.as_table(header, rows)}\n\n{made}"


def p_in_order(asked):
    """P-values of questions in their order: each is asked if all before it are significant, and
    when all its runs are made.

    Args: title -> gain by seed, and whether all runs are made. Returns: title -> text.
    """
    texts, ended = {}, None
    for title, (gained, is_made) in asked.items():
        ended = ended or (None if is_made and groups.is_enough(gained) else NOT_YET)
        p = None if ended else groups.p_value(list(gained.values()))
        texts[title] = ended or markdown.p_text(p)
        if p is not None and p >= SIGNIFICANCE:
            ended = NOT_ASKED
    return texts


def p_after_holm(asked):
    """P-values of questions that are corrected together. Args, returns: as `p_in_order`."""
    ready = {
        title: gained
        for title, (gained, is_made) in asked.items()
        if is_made and groups.is_enough(gained)
    }
    p_values = [groups.p_value(list(gained.values())) for gained in ready.values()]
    # A question whose runs are not all made yet is corrected for all the same.
    corrected = groups.holm(p_values + [1.0] * (len(asked) - len(ready)))
    shown = {title: f"{markdown.p_text(p)} (Holm)" for title, p in zip(ready, corrected)}
    return dict.fromkeys(asked, NOT_YET) | shown


def programs_table(study, of_train_py):
    """Both programs' accuracy after 30 epochs, and their difference with Welch's interval.

    Args:
      study: list of groups.
      of_train_py: the groups of train.py's study.

    Returns:
      A table in Markdown, or None if they have no setting in common.
    """
    rows = []
    for group in of_train_py:
        other = find(study, group.setting, float(TRAIN_PY_DECAY))
        ours, theirs = group.accuracies(), other.accuracies()
        if min(len(ours), len(theirs)) < groups.SEEDS_OF_AN_INTERVAL:
            continue
        low, high = scipy.stats.ttest_ind(theirs, ours, equal_var=False).confidence_interval()
        difference = markdown.number(50 * (low + high), "+")
        seeds = f"{len(ours)} and {len(theirs)}"
        cells = markdown.interval(ours), markdown.interval(theirs)
        rows.append([group.setting, seeds, *cells, f"{difference} ± {50 * (high - low):.2f}"])
    header = ["setting", "seeds", "train.py", "PyTorch", "difference"]
    return markdown.as_table(header, rows) if rows else None


def all_tables(study, made, studies):
    """Makes every table for which there are runs.

    Args:
      study, made: as `read` returns them.
      studies: as `records.read_all` returns them.

    Returns:
      name -> text in Markdown, names out of NAMES.
    """
    if not find(study, "none").records:
        return {}
    made_tables = {
        "replicated": summary_table(study, made),
        "replication_questions": questions_table(study, made),
        "replication_programs": programs_table(study, studies.get(TRAIN_PY_STUDY, [])),
    }
    return {name: text for name, text in made_tables.items() if text}


@matrices.plain_style()
def draw(study, out):
    """Draws what dense and channel units gain over training, with both decays.

    Args:
      study: as `read` returns it.
      out: path of the folder for the picture.

    Returns:
      The paths of the pictures: one, or none if there are no runs to compare.
    """
    shown = [
        group
        for group in study
        if group.setting in ("dense", "channel")
        and groups.is_enough(group.gains(groups.baseline_of(study, group)))
    ]
    if not shown:
        return []
    picture = figure.Figure(**plot.PANEL)
    axes = picture.subplots()
    low = 0.0
    for group in shown:
        none = groups.baseline_of(study, group)
        length = len(records_of([group])[0]["curves"]["accuracy_test"][0])
        ends = np.arange(LAST_EVALUATIONS, length + 1)
        gained = np.array([list(group.gains(none, end=end).values()) for end in ends])
        middle = 100 * gained.mean(axis=1)
        half = 100 * np.array([groups.half_width(values) for values in gained])
        style = "--" if group.condition > 0.9 else "-"
        colour = pictures.COLOURS[group.setting]
        label = f"{pictures.label_of(group.setting)}, decay {group.condition:g}"
        label += f" ({len(gained[0])} seeds)"
        axes.plot(ends, middle, style, color=colour, label=label)
        axes.fill_between(ends, middle - half, middle + half, color=colour, alpha=0.15, lw=0)
        low = min(low, middle[ends >= min(10, ends[-1])].min())
    axes.axhline(0, color=pictures.COLOURS["none"], linewidth=1)
    axes.set(
        xlabel="epoch (mean of five evaluations)",
        ylabel="gain over no units, points",
        ylim=(low - 1, 2),
    )
    axes.legend(loc="lower right", fontsize=9)
    return [plot.save(picture, axes, out / "replication.png")]
