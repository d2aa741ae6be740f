"""The tables of the study in Markdown, from groups of records.

A study of `runs.STUDIES` gets the table of `study_table`, unless `all_tables` names another.
"""

import groups
import numpy as np
import runs
from groups import LAST_EVALUATIONS, WEIGHT_BINS, baseline_of, find, records_of

# Of the tables that README.md of this folder shows, and of the one in the project's.
NAMES = (*runs.STUDIES, "weights", "weights_of_channels", "distances", "recalls")
NAMES_IN_PROJECT = ("results",)


def all_tables(studies):
    """Makes every table for which there are runs.

    Args:
      studies: study -> list of groups, as `records.read_all` returns them.

    Returns:
      name -> text in Markdown; the name is that of the study, or another of `NAMES`.
    """
    studies = {name: study for name, study in studies.items() if records_of(study)}
    of_their_own = {"starved": starved_table, "starved_epochs": starved_epochs_table}
    tables = {
        name: of_their_own[name](study) if name in of_their_own else study_table(name, studies)
        for name, study in studies.items()
    }
    full, thirty = studies.get("full"), studies.get("full_30_epochs")
    if full:
        tables["results"] = results_table(full)
        units = units_of(studies)
        tables["weights"] = units_table(units, "cross_stitch")
        tables["distances"] = units_table(units, "distances")
        if find(full, "channel").records:
            tables["weights_of_channels"] = weights_of_channels_table(find(full, "channel"))
    if thirty:
        tables["recalls"] = recalls_table(thirty)
    return {name: text for name, text in tables.items() if text}


def as_text(tables):
    """All tables as one text, each under its name."""
    return "\n\n".join(f"## {name}\n\n{text}" for name, text in tables.items())


# --- Cells ---


def number(value, sign=""):
    """Two decimals, and never -0.00."""
    return f"{round(value, 2) + 0.0:{sign}.2f}"


def interval(shares, sign=""):
    """Mean and interval in percent, of shares of 1."""
    shares = list(shares)
    if not shares:
        return "–"
    half = 100 * groups.half_width(shares)
    return number(100 * np.mean(shares), sign) + ("" if np.isnan(half) else f" ± {half:.2f}")


def gain_cell(group, baseline, task="mean", end=None):
    """A gain with its interval; empty for the baseline itself."""
    if group.setting == baseline.setting:
        return ""
    gained = group.gains(baseline, task, end).values()
    fewer = f" ({len(gained)} seeds)" if 0 < len(gained) < len(group.records) else ""
    return interval(gained, "+") + fewer


def markdown(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in lines)


def details(summary, text):
    """A block that the reader opens."""
    return f"<details><summary>{summary}</summary>\n\n{text}\n\n</details>"


def made_with(records):
    """The line under a table: with what its runs were made, and on what they were evaluated."""
    records = list(records)
    versions = sorted({record["versions"]["tensorflow"] for record in records})
    # The first records do not name the numerics.
    numerics = sorted({str(record.get("numerics", 1)) for record in records})
    made = f"Made with TensorFlow {' and '.join(versions)}, numerics {' and '.join(numerics)}."
    held_out = {record.get("flags", {}).get("holdout", 0) for record in records} - {0}
    if held_out:
        made = f"Accuracy on {min(held_out):,} held-out training images. {made}"
    return f"*{made}*"


# --- A study's table ---


def study_table(name, studies):
    """A study's table, with what its text cites in blocks that the reader opens."""
    definition, own = runs.STUDIES[name], studies[name]
    images, seeds = {group.condition for group in own}, groups.seeds_of(own)
    borrowed = [
        group.of_seeds(seeds)
        for other, settings in definition.borrowed.items()
        for group in studies.get(other, [])
        if group.setting in settings and group.condition in images
    ]
    study = [*borrowed, *(group for group in own if group.setting not in definition.hidden)]
    parts = [accuracy_table(study, definition.baselines), made_with(records_of(study))]
    parts.append(details("Gains of each task", gains_table(study, definition.baselines)))
    if name in ("full", "full_30_epochs"):
        parts.append(details("Gain of each seed", seeds_table(study)))
        parts.append(details("Gain over training", gains_over_training_table(study)))
    return "\n\n".join(parts)


def accuracy_table(study, baselines=("none",), first="images"):
    """Accuracies in percent, and the gain over the first baseline: mean ± 95 % interval.

    Args:
      study: list of groups.
      baselines: settings that the others are compared with.
      first: the title of the first column, which shows each group's condition.

    Returns:
      A table in Markdown.
    """
    tasks = groups.tasks_of(study)
    rows = []
    for group in study:
        diverged = f", {group.diverged} diverged" if group.diverged else ""
        row = [f"{group.condition:,}", group.setting, f"{len(group.records)}{diverged}"]
        row += [interval(group.accuracies(task)) for task in tasks]
        rows.append([*row, gain_cell(group, baseline_of(study, group, baselines[0]))])
    return markdown([first, "setting", "seeds", *tasks, "gain (mean)"], rows)


def gains_table(study, baselines=("none",), first="images"):
    """Each task's gain over the first baseline; the mean's gain over the other baselines; and the
    accuracy of the group derived from the article, minus that of the group's tower.

    Arguments and result as `accuracy_table`.
    """
    tasks = groups.tasks_of(study)[:-1]
    curves = records_of(study)[0]["curves"]
    implied = [task for task in tasks if f"accuracy_test_{task}_by_article" in curves]
    header = [first, "setting", *(f"gain ({task})" for task in tasks)]
    header += [f"over {baseline} (mean)" for baseline in baselines[1:]]
    header += [f"{task} by article" for task in implied]
    rows = []
    for group in study:
        none = baseline_of(study, group, baselines[0])
        row = [f"{group.condition:,}", group.setting]
        row += [gain_cell(group, none, task) for task in tasks]
        row += [gain_cell(group, baseline_of(study, group, other)) for other in baselines[1:]]
        for task in implied:
            pairs = zip(group.accuracies(f"{task}_by_article"), group.accuracies(task))
            row.append(interval([by_article - own for by_article, own in pairs], "+"))
        rows.append(row)
    return markdown(header, rows)


def seeds_table(study, title_of=lambda group: group.setting):
    """The gain in mean accuracy over none, in points, for each seed.

    Args:
      study: list of groups.
      title_of: function of a group that returns its column's title.

    Returns:
      A table in Markdown.
    """
    shown = [group for group in study if group.setting != "none"]
    gains = [group.gains(baseline_of(study, group)) for group in shown]
    rows = [
        [seed, *(number(100 * gained[seed], "+") if seed in gained else "–" for gained in gains)]
        for seed in sorted({seed for gained in gains for seed in gained})
    ]
    return markdown(["seed", *map(title_of, shown)], rows)


def gains_over_training_table(study, title_of=lambda group: group.setting, unit="evaluations"):
    """The gain in mean accuracy over none, in each LAST_EVALUATIONS evaluations of the runs.

    Args:
      study, title_of: as in `seeds_table`.
      unit: what the first column counts.

    Returns:
      A table in Markdown.
    """
    shown = [group for group in study if group.setting != "none"]
    (length,) = {len(run["curves"]["accuracy_test"][0]) for run in records_of(study)}
    rows = [
        [f"{end - LAST_EVALUATIONS + 1} to {end}",
         *(gain_cell(group, baseline_of(study, group), end=end) for group in shown)]
        for end in range(LAST_EVALUATIONS, length + 1, LAST_EVALUATIONS)
    ]  # fmt: skip
    return markdown([unit, *map(title_of, shown)], rows)


def results_table(full):
    """Each kind of sharing on all images, for the project's README.md.

    Without dense units: after five epochs they are far from where they end.
    """
    shown = [g for g in full if g.setting in groups.KINDS and g.setting != "dense"]
    return f"{accuracy_table(shown)}\n\n{made_with(records_of(shown))}"


# --- What the units learned ---


def units_of(studies):
    """The groups whose units are shown: dense ones on few images, all, those of 30 epochs."""
    dense = [group for group in studies.get("few_images", []) if group.setting == "dense"]
    full, thirty = studies["full"], studies.get("full_30_epochs", [])
    kinds = [group for group in full if group.setting in groups.KINDS]
    others = [group for group in full if group not in kinds]
    longer = [group._replace(setting=f"{group.setting} (30)") for group in thirty]
    return [*dense, *kinds, *longer, *others]


def units_table(study, entry):
    """A T x T figure of each unit: mean over seeds, lowest and highest seed.

    Args:
      study: list of groups.
      entry: of the records: "cross_stitch" (mean weights) or "distances" (from the start).

    Returns:
      A table in Markdown, or None if no record has the entry.
    """

    def cell(values):
        return f"{number(np.mean(values))} ({number(min(values))}, {number(max(values))})"

    tasks, rows, used = groups.tasks_of(study)[:-1], [], []
    for group in study:
        records = [record for record in group.records.values() if record.get(entry)]
        used += records
        few = group.condition != runs.ALL_IMAGES
        name = f"{group.setting}, {group.condition:,}" if few else group.setting
        for scope in records[0][entry] if records else ():
            figures = np.array([record[entry][scope] for record in records])  # (runs, to, from)
            rows.append([name, scope[-1], *map(cell, figures.reshape(len(records), -1).T)])
    header = [f"{to} from {source}" for to in tasks for source in tasks]
    if used:
        return f"{markdown(['setting', 'unit', *header], rows)}\n\n{made_with(used)}"


def spread_of_weights(group):
    """Adds up the seeds' histograms of channel weights. Returns: tasks, scope -> [T, T, bins]."""
    records = list(group.records.values())
    scopes = records[0]["weights"]
    counts = {s: sum(np.array(record["weights"][s]) for record in records) for s in scopes}
    return groups.tasks_of([group])[:-1], counts


def weights_of_channels_table(group):
    """How the weights from the other tower are spread over the channels, all seeds together."""
    tasks, counts = spread_of_weights(group)
    rows = []
    for scope, of_unit in counts.items():
        for i, to in enumerate(tasks):
            for j, source in enumerate(tasks):
                if i != j:
                    bins, used = of_unit[i, j], np.flatnonzero(of_unit[i, j])
                    negative = bins[WEIGHT_BINS[1:] < 1e-9].sum() / bins.sum()
                    low, high = WEIGHT_BINS[used[0]], WEIGHT_BINS[used[-1] + 1]
                    rows.append([scope[-1], f"{to} from {source}", f"{100 * negative:.0f} %",
                                 f"{number(low)} to {number(high)}"])  # fmt: skip
    table = markdown(["unit", "weight", "negative", "all lie in"], rows)
    return f"{table}\n\n{made_with(group.records.values())}"


# --- Single classes ---


def recalls_table(study):
    """Classes whose recall differs from none's by more than chance (t-tests over the seeds).

    Returns: a table in Markdown, or None if there are too few records with recalls.
    """
    having = [
        group._replace(records={s: r for s, r in group.records.items() if r.get("recall")})
        for group in study
    ]
    none = find(having, "none")
    compared = []
    for group in having:
        seeds = [seed for seed in none.records if seed in group.records]
        if group.setting == "none" or len(seeds) < groups.SEEDS_OF_AN_INTERVAL:
            continue
        for task, classes in none.records[seeds[0]]["recall"].items():
            for name in classes:
                recalls, with_units = (
                    np.array([of.records[seed]["recall"][task][name] for seed in seeds])
                    for of in (none, group)
                )
                compared.append((task, name, group.setting, recalls, with_units - recalls))
    if not compared:
        return None
    corrected = groups.holm([groups.p_value(gain) for *_, gain in compared])
    rows = [
        [task, name, setting, number(100 * recalls.mean()), interval(gain, "+"), f"{p:.3f}"]
        for (task, name, setting, recalls, gain), p in zip(compared, corrected)
        if p < groups.SIGNIFICANCE
    ]
    header = ["task", "class", "setting", "recall of none", "gain (recall)", "p"]
    table = markdown(header, rows) if rows else "No class's gain or loss can be told from chance."
    found = f"{len(rows)} of {len(compared)} comparisons have p < {groups.SIGNIFICANCE} after Holm."
    return f"{table}\n\n*{found}* {made_with(records_of(study))}"


def starved_table(study):
    """What the articles with the most and the fewest images gain, and what can be told from 0."""
    compared = groups.starved_comparisons(study)
    columns = [*groups.RANKS, "rarest - commonest"]
    parts = []
    for measure in ("recall", "F1"):
        rows = []
        for group in study:
            row = [group.setting, len(group.records)]
            if group.setting == "none":
                levels = np.array([
                    groups.by_rank(record, f"{measure.lower()}_last")
                    for record in group.records.values()
                ])  # fmt: skip
                of_ranks = [levels[:, ranks].mean(axis=1) for ranks in groups.RANKS.values()]
                row += [*map(interval, of_ranks), ""]
            else:
                of_setting = [compared[f"{measure}, {name}", group.setting] for name in columns]
                row += [interval(values, "+") for values in of_setting]
            rows.append(row)
        titles = [f"{measure}, {name}" for name in columns]
        parts.append(markdown(["setting", "seeds", *titles], rows))
    recall, f1 = parts
    return "\n\n".join([
        recall,
        made_with(records_of(study)),
        details("The same for F1", f1),
        details("Accuracy", accuracy_table(study)),
        details("Gains of each task", gains_table(study)),
        details("What can be told from 0", told_from_0(compared)),
    ])  # fmt: skip


def told_from_0(compared):
    """The primary comparison, and those of the others that Holm's correction leaves."""
    enough = {k: v for k, v in compared.items() if len(v) >= groups.SEEDS_OF_AN_INTERVAL}
    others = [key for key in enough if key != groups.PRIMARY]
    corrected = groups.holm([groups.p_value(enough[key]) for key in others])
    told = [
        [*key, interval(enough[key], "+"), f"{p:.3f}"]
        for key, p in zip(others, corrected)
        if p < groups.SIGNIFICANCE
    ]
    rows = list(told)
    if groups.PRIMARY in enough:
        gained = enough[groups.PRIMARY]
        p = f"{groups.p_value(gained):.3f} (primary)"
        rows.insert(0, [*groups.PRIMARY, interval(gained, "+"), p])
    table = markdown(["measure", "setting", "gain", "p"], rows)
    left = f"have p < {groups.SIGNIFICANCE} after Holm."
    return f"{table}\n\n*{len(told)} of {len(others)} other comparisons {left}*"


def starved_epochs_table(study):
    """Mean accuracy over five epochs of long starved runs: the best, and those up to some."""
    length = min(len(record["curves"]["accuracy_test"][1]) for record in records_of(study))
    rows, ends = [], range(10, length + 1, 10)  # a quick run has fewer epochs
    for group in study:
        for record in group.records.values():
            values = np.array(record["curves"]["accuracy_test"][1])
            window = np.ones(LAST_EVALUATIONS) / LAST_EVALUATIONS
            # The first is that of epochs 1 to 5.
            means = np.convolve(values, window, "valid" if length >= LAST_EVALUATIONS else "same")
            shown = [means.max(), *(means[end - LAST_EVALUATIONS] for end in ends)]
            rows.append([group.setting, *(number(100 * mean) for mean in shown)])
    titles = [f"{end - LAST_EVALUATIONS + 1} to {end}" for end in ends]
    return f"{markdown(['setting', 'best', *titles], rows)}\n\n{made_with(records_of(study))}"
