"""The tables of the study in Markdown, from groups of records.

Which tables a study has, its entry in `runs.STUDIES` says, by their names in TABLES.
"""

import numpy as np

from study import groups, per_image, runs
from study.groups import baseline_of, find, records_of
from study.machines import made_with

# Of the tables that README.md of this folder shows, and of the one in the project's.
NAMES_IN_PROJECT = ("results",)
MORE_NAMES = [name for study in runs.STUDIES.values() for name in study.more_tables]
NAMES = (*runs.STUDIES, *(n for n in MORE_NAMES if n not in NAMES_IN_PROJECT), "comparisons")
TITLES_OF_CONTROLS = ("over own only", "p (Holm)")


def all_tables(studies):
    """Makes every table for which there are runs.

    Args:
      studies: study -> list of groups, as `records.read_all` returns them.

    Returns:
      name -> text in Markdown; the name is that of the study, or another of `NAMES`.
    """
    tables = {}
    for name in studies:
        study, definition = groups.shown(name, studies), runs.STUDIES[name]
        if records_of(study):
            for table, kind in {name: definition.table, **definition.more_tables}.items():
                tables[table] = TABLES[kind](study, definition)
    tables["comparisons"] = comparisons_text(studies)
    return {name: text for name, text in tables.items() if text}


def as_text(tables):
    """All tables as one text, each under its name."""
    return "\n\n".join(f"## {name}\n\n{text}" for name, text in tables.items())


# --- Cells ---


def number(value, sign=""):
    """Two decimals, and never -0.00."""
    return f"{round(value, 2) + 0.0:{sign}.2f}"


def interval(shares, sign=""):
    """Mean and interval in percent, of shares of 1.

    Of values [S], for example +0.31 ± 0.20. Of [S, N], +0.31 ± 0.44 (0.20): for new images, and
    in brackets for these.
    """
    if not len(shares):
        return "–"
    mean, half = number(100 * np.mean(shares), sign), 100 * groups.half_width(shares)
    if np.isnan(half):
        return mean
    if np.ndim(shares) == 2:
        return f"{mean} ± {100 * groups.half_width_for_new_images(shares):.2f} ({half:.2f})"
    return f"{mean} ± {half:.2f}"


def p_text(p):
    """A p-value with three decimals, and never 0."""
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def p_equals(p):
    """As `p_text`, for a sentence: p = 0.012, or p < 0.001."""
    return f"p {p_text(p)}" if p < 0.001 else f"p = {p_text(p)}"


def gain_cell(group, baseline, task="mean"):
    """A gain with its interval; empty for the baseline itself."""
    if group.setting == baseline.setting:
        return ""
    gained = groups.gains_of(group, baseline, task)
    fewer = f" ({len(gained)} seeds)" if 0 < len(gained) < len(group.records) else ""
    return interval(gained, "+") + fewer


def markdown(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in lines)


def details(summary, text):
    """A block that the reader opens."""
    return f"<details><summary>{summary}</summary>\n\n{text}\n\n</details>"


# --- A study's table ---


def gains_table(study, definition):
    """What each setting gains, and what units gain over their controls, if there are any.

    Args:
      study: list of groups, as `groups.shown` returns it.
      definition: its `runs.Study`.

    Returns:
      Text in Markdown.
    """
    made = made_with(records_of(study))
    if definition.question:
        setting, task = definition.question
        group = find(study, setting)
        made = f"{answer(groups.gains_of(group, baseline_of(study, group), task))}{made}"
    table = accuracy_table(study, definition.baselines)
    controls = controls_table(study, definition.controls)
    return "\n\n".join(filter(None, [table, made, controls]))


def answer(gains):
    """The p-value of the question that was fixed beforehand; empty if there are too few seeds."""
    if not is_enough(gains):
        return ""
    return f"*The question fixed beforehand: {p_equals(groups.p_value(gains))}.* "


def tasks_table(study, definition):
    """What each setting gains on each task, with p. The question that was fixed beforehand has a
    p-value of its own; all others are corrected together. As `gains_table`.

    If the task with few labels follows from the article, a last column shows its accuracy as
    derived from the predicted article, less that of its own tower.
    """
    tasks = [task for task in groups.tasks_of(study) if task != per_image.MEAN]
    implied = [t for t in implied_tasks(study) if definition.condition == f"{t} labels"]
    asked = (definition.first_condition, *(definition.question or ()))
    gained = {
        (group.condition, group.setting, task): groups.gains_of(
            group, baseline_of(study, group), task
        )
        for group in study
        if group.setting != "none"
        for task in tasks
    }
    tested = {key: gains for key, gains in gained.items() if is_enough(gains) and key != asked}
    p_values = {key: p_text(p) for key, p in groups.corrected(tested).items()}
    if is_enough(gained.get(asked, [])):
        p_values[asked] = f"{p_text(groups.p_value(gained[asked]))} (asked)"
    rows = []
    for group in study:
        row = [f"{group.condition:,}", group.setting, len(group.records)]
        for task in tasks:
            key = group.condition, group.setting, task
            level = group.setting == "none"
            row.append(
                interval(groups.levels_of(group, task)) if level else interval(gained[key], "+")
            )
            row.append(p_values.get(key, ""))
        row += [by_article(group, task) for task in implied]
        rows.append(row)
    header = [definition.condition, "setting", "seeds"]
    for task in tasks:
        header += [task, f"p ({task})"]
    header += [f"{task} by article" for task in implied]
    table, made = markdown(header, rows), made_with(records_of(study))
    controls = controls_table(study, definition.controls, tasks, definition.condition)
    return "\n\n".join(filter(None, [table, made, controls]))


def against_controls_table(study, definition):
    """Each setting that has a control, less that, on each task and in the mean; and how many of
    its answers differ in float32, in the seeds with the fewest and the most. As
    `gains_table`; None if there is none."""
    tasks, rows = groups.tasks_of(study), []
    for group in study:
        control = definition.controls.get(group.setting)
        if control and baseline_of(study, group, control).records:
            gained = [
                groups.gains_of(group, baseline_of(study, group, control), task) for task in tasks
            ]
            other = [
                [r["differ_in_float32"][t] for r in group.records.values()] for t in tasks[:-1]
            ]
            rows.append([
                group.setting, len(gained[0]), *(interval(g, "+") for g in gained),
                *(f"{min(n)} to {max(n)}" for n in other),
            ])  # fmt: skip
    if not rows:
        return None
    header = ["setting", "seeds", *tasks]
    table = markdown([*header, *(f"other answers ({task})" for task in tasks[:-1])], rows)
    return f"{table}\n\n{made_with(records_of(study))}"


def kinds_table(study, definition):
    """Only the kinds of sharing. As `gains_table`; None if there are none."""
    kinds = [group for group in study if group.setting in groups.KINDS]
    if not kinds:
        return None
    return f"{accuracy_table(kinds, shows_by_article=False)}\n\n{made_with(records_of(kinds))}"


def is_enough(gains):
    return len(gains) >= groups.SEEDS_OF_AN_INTERVAL


def controls_table(study, controls, tasks=(per_image.MEAN,), first="images"):
    """What units gain over the same units that share nothing; or None.

    Args:
      study: list of groups.
      controls: setting -> its control.
      tasks: in which tasks, "mean" for their mean.
      first: the title of the column that shows each group's condition.

    Returns:
      A table in Markdown, whose p-values are corrected together, after Holm.
    """
    gained = {
        (f"{group.condition:,}", group.setting, task): groups.gains_of(
            group, baseline_of(study, group, controls[group.setting]), task
        )
        for group in study
        if group.setting in controls
        for task in tasks
    }
    gained = {which: gains for which, gains in gained.items() if is_enough(gains)}
    rows = [
        [units, task, condition, len(gained[condition, units, task]),
         interval(gained[condition, units, task], "+"), p_text(p)]
        for (condition, units, task), p in groups.corrected(gained).items()
    ]  # fmt: skip
    return markdown(["units", "task", first, "seeds", *TITLES_OF_CONTROLS], rows) if rows else None


def accuracy_table(study, baselines=("none",), first="images", shows_by_article=True):
    """The accuracies of the first baseline in percent, and what the others gain over it in
    points: mean ± 95 % interval. And the mean's gain over the other baselines.

    Args:
      study: list of groups.
      baselines: settings that the others are compared with.
      first: the title of the first column, which shows each group's condition.
      shows_by_article: whether a last column shows the accuracy of the group derived from the
        article, less that of the group's tower.

    Returns:
      A table in Markdown.
    """
    tasks, implied = groups.tasks_of(study), implied_tasks(study) if shows_by_article else []
    header = [first, "setting", "seeds", *tasks]
    header += [f"over {baseline} (mean)" for baseline in baselines[1:]]
    header += [f"{task} by article" for task in implied]
    rows = []
    for group in study:
        diverged = f", {group.diverged} diverged" if group.diverged else ""
        row = [f"{group.condition:,}", group.setting, f"{len(group.records)}{diverged}"]
        first_baseline, *others = (baseline_of(study, group, name) for name in baselines)
        if group.setting == first_baseline.setting:
            row += [interval(groups.levels_of(group, task)) for task in tasks]
            row += [""] * len(others)
        else:
            row += [gain_cell(group, first_baseline, task) for task in tasks]
            row += [gain_cell(group, other) for other in others]
        row += [by_article(group, task) for task in implied]
        rows.append(row)
    return markdown(header, rows)


def implied_tasks(study):
    """The tasks whose labels follow from the article."""
    curves = records_of(study)[0]["curves"]
    return [t for t in groups.tasks_of(study) if f"accuracy_test_{t}_by_article" in curves]


def by_article(group, task):
    """How much more accurate a task is if it is derived from the predicted article."""
    pairs = zip(group.accuracies(f"{task}_by_article"), group.accuracies(task))
    return interval([derived - own for derived, own in pairs], "+")


def comparisons_text(studies):
    """How many differences from each baseline there are in the mean, and which of them Holm's
    correction leaves; or None. Without controls, studies with a question that was fixed
    beforehand, and tables of tasks, which have p-values of their own."""
    baselines = dict.fromkeys(name for study in studies for name in runs.STUDIES[study].baselines)
    lines = [comparisons_line(studies, baseline) for baseline in baselines]
    return "\n\n".join(filter(None, lines)) or None


def comparisons_line(studies, baseline):
    """As `comparisons_text`, over one baseline. It names the next difference, too."""
    compared = comparisons_with(studies, baseline)
    if not compared:
        return None
    found = sorted(groups.corrected(compared).items(), key=lambda pair: pair[1])
    texts = [
        f"{title_of(*key)} ({number(100 * np.mean(compared[key]), '+')}, {p_equals(p)})"
        for key, p in found
    ]
    count = sum(p < groups.SIGNIFICANCE for _, p in found)
    told, following = "; ".join(texts[:count]), texts[count : count + 1]
    line = f"Of {len(compared)} differences from {baseline}, {count} have p < {groups.SIGNIFICANCE}"
    line = f"{line} after Holm{': ' if told else ''}{told}."
    return " ".join([line, *(f"Next: {text}." for text in following)])


def comparisons_with(studies, baseline):
    """What is corrected together. Returns: (study, images, setting) -> gains of the seeds."""
    compared = {}
    for name in studies:
        definition = runs.STUDIES[name]
        has_its_own = definition.question or definition.table == "tasks"
        if has_its_own or baseline not in definition.baselines:
            continue
        shown = groups.shown(name, studies)
        controls = definition.controls.values() if baseline != "none" else ()
        for group in studies[name]:
            gained = groups.gains_of(group, baseline_of(shown, group, baseline))
            is_compared = group in shown and group.setting not in ("none", baseline, *controls)
            if is_compared and is_enough(gained):
                compared[name, group.condition, group.setting] = gained
    return compared


def title_of(study, images, setting):
    """How the list of comparisons calls one."""
    schedule = runs.STUDIES[study].schedules[images]
    held_out = ", held out" if "holdout" in schedule else ""
    return f"{setting}, {images:,} images for {schedule['num_epochs']} epochs{held_out}"


# --- What the units learned ---


def units_table(study, definition):
    """The mean weights of each unit: mean over seeds, lowest and highest seed. And how far all
    its weights are from their start: root mean square of all channels, mean over seeds.

    As `gains_table`, of the first condition and without the controls; None if no run has units.
    """
    study = [group for group in study if group.condition == definition.first_condition]
    study = [group for group in study if group.setting not in definition.controls.values()]

    def cell(values):
        return f"{number(np.mean(values))} ({number(min(values))}, {number(max(values))})"

    having = [group for group in study if any(r["cross_stitch"] for r in group.records.values())]
    if not having:
        return None
    tasks, rows = groups.tasks_of(having)[:-1], []
    for group in having:
        records = list(group.records.values())
        for scope in records[0]["cross_stitch"]:
            means = np.array([record["cross_stitch"][scope] for record in records])
            # The first records do not say how far.
            far = [r["distances"][scope] for r in records if scope in r.get("distances", {})]
            moved = number(np.mean([np.sqrt(np.mean(np.square(d))) for d in far])) if far else "–"
            weights = map(cell, means.reshape(len(records), -1).T)
            rows.append([group.setting, scope[-1], *weights, moved])
    header = [f"{to} from {source}" for to in tasks for source in tasks]
    table = markdown(["setting", "unit", *header, "moved"], rows)
    return f"{table}\n\n{made_with(records_of(having))}"


# --- Single classes ---


def recalls_table(study, definition):
    """Classes whose recall differs from none's by more than chance (t-tests over the seeds).

    As `gains_table`; None if there are too few records with recalls.
    """
    having = [
        group._replace(records={s: r for s, r in group.records.items() if r.get("recall")})
        for group in study
    ]
    none = find(having, "none")
    recalls, compared = {}, {}
    for group in having:
        seeds = [seed for seed in none.records if seed in group.records]
        if group.setting == "none" or len(seeds) < groups.SEEDS_OF_AN_INTERVAL:
            continue
        for task, classes in none.records[seeds[0]]["recall"].items():
            for name in classes:
                without, shared = (
                    np.array([of.records[seed]["recall"][task][name] for seed in seeds])
                    for of in (none, group)
                )
                recalls[task, name, group.setting] = without
                compared[task, name, group.setting] = shared - without
    if not compared:
        return None
    rows = [
        [*key, number(100 * recalls[key].mean()), interval(compared[key], "+"), p_text(p)]
        for key, p in groups.significant(compared).items()
    ]
    header = ["task", "class", "setting", "recall of none", "gain (recall)", "p"]
    table = markdown(header, rows) if rows else "No per-class difference is significant."
    found = f"{len(rows)} of {len(compared)} comparisons have p < {groups.SIGNIFICANCE} after Holm."
    return f"{table}\n\n*{found}* {made_with(records_of(study))}"


def ranks_table(study, definition):
    """What the articles with the most and the fewest images gain, and what can be told from 0.

    As `gains_table`. Of none, as in every table, recalls and accuracies in percent.
    """
    compared = groups.starved_comparisons(study)

    def row_of(group, measures):
        if group.setting != "none":
            return [interval(compared[measure, group.setting], "+") for measure in measures]
        levels = [groups.starved_measures(record) for record in group.records.values()]
        return [interval([level[measure] for level in levels]) for measure in measures]

    names = list(groups.starved_measures(records_of(study)[0]))
    recalls = [name for name in names if "recall" in name]
    more = [name for name in names if name not in recalls]
    rows = [[g.setting, len(g.records), *row_of(g, recalls)] for g in study]
    titles = [name.removeprefix("accuracy, ") for name in more]
    more_rows = [[g.setting, *row_of(g, more)] for g in study]
    return "\n\n".join([
        markdown(["setting", "seeds", *recalls], rows),
        f"{told_from_0(compared, definition.question)} {made_with(records_of(study))}",
        details("F1, and accuracy in both tasks", markdown(["setting", *titles], more_rows)),
    ])  # fmt: skip


def told_from_0(gained, question):
    """The p-value of the question, if there is one, and what else Holm's correction leaves."""
    others = {which: gains for which, gains in gained.items() if is_enough(gains)}
    setting, measure = question or (None, None)
    asked = others.pop((measure, setting), [])
    told = [
        f"{measure} of {setting} {interval(others[measure, setting], '+')} ({p_equals(p)})"
        for (measure, setting), p in groups.significant(others).items()
    ]
    compared = "other comparisons" if asked else "comparisons"
    found = f"{len(told)} of {len(others)} {compared} have p < {groups.SIGNIFICANCE}"
    return f"{answer(asked)}*{found} after Holm{': ' if told else ''}{'; '.join(told)}.*"


# What a table can show: name in `runs.STUDIES` -> function of groups and the study's definition.
TABLES = {
    "gains": gains_table,
    "tasks": tasks_table,
    "against controls": against_controls_table,
    "kinds": kinds_table,
    "weights": units_table,
    "recalls": recalls_table,
    "ranks": ranks_table,
}
