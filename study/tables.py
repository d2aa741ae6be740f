"""The tables of the study in Markdown, from groups of records.

Which tables a study has, its entry in `runs.STUDIES` says, by their names in TABLES.
"""

import numpy as np

from study import groups, image_tables, markdown, per_image, runs, starved_table
from study.groups import baseline_of, find, records_of
from study.machines import made_with
from study.markdown import answer, as_table, interval, number, p_equals, p_text

# Of the tables that the pages of this folder show, and of the one in the project's README.md.
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
    tested = {
        key: gains for key, gains in gained.items() if groups.is_enough(gains) and key != asked
    }
    p_values = {key: p_text(p) for key, p in groups.corrected(tested).items()}
    if groups.is_enough(gained.get(asked, [])):
        p_values[asked] = f"{p_text(groups.p_value(gained[asked]))} (asked)"
    rows = []
    for group in study:
        count = markdown.seeds(len(group.records), group.diverged)
        row = [f"{group.condition:,}", group.setting, count]
        for task in tasks:
            key = group.condition, group.setting, task
            if group.setting == "none":
                row += [interval(groups.levels_of(group, task)), ""]
            else:
                row += [gain_text(gained[key], group), p_values.get(key, "")]
        row += [by_article(group, task) for task in implied]
        rows.append(row)
    header = [definition.condition, "setting", "seeds"]
    for task in tasks:
        header += [task, f"p ({task})"]
    header += [f"{task} by article" for task in implied]
    table, made = as_table(header, rows), made_with(records_of(study))
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
    table = as_table([*header, *(f"other answers ({task})" for task in tasks[:-1])], rows)
    return f"{table}\n\n{made_with(records_of(study))}"


def kinds_table(study, definition):
    """Only the kinds of sharing. As `gains_table`; None if there are none."""
    kinds = [group for group in study if group.setting in groups.KINDS]
    if not kinds:
        return None
    return f"{accuracy_table(kinds, shows_by_article=False)}\n\n{made_with(records_of(kinds))}"


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
    gained = {which: gains for which, gains in gained.items() if groups.is_enough(gains)}
    rows = [
        [units, task, condition, len(gained[condition, units, task]),
         interval(gained[condition, units, task], "+"), p_text(p)]
        for (condition, units, task), p in groups.corrected(gained).items()
    ]  # fmt: skip
    return as_table(["units", "task", first, "seeds", *TITLES_OF_CONTROLS], rows) if rows else None


def accuracy_table(study, baselines=("none",), first="images", shows_by_article=True):
    """The accuracies of the first baseline in percent, and what the others gain over it in
    points: mean ± 95 % interval. And the mean's gain over the other baselines.

    Args:
      study: list of groups.
      baselines: settings that the others are compared with.
      first: the title of the first column, which shows each group's condition, if there are
        several.
      shows_by_article: whether a last column shows the accuracy of the group derived from the
        article, less that of the group's tower.

    Returns:
      A table in Markdown.
    """
    tasks, implied = groups.tasks_of(study), implied_tasks(study) if shows_by_article else []
    has_several = len({group.condition for group in study}) > 1
    if groups.has_predictions(study, per_image.MEAN):
        baselines = baselines[:1]  # with two intervals in a cell, there is no room for the others
    header = [*([first] if has_several else []), "setting", "seeds", *tasks]
    header += [f"over {baseline} (mean)" for baseline in baselines[1:]]
    header += [f"{task} by article" for task in implied]
    rows = []
    for group in study:
        row = [f"{group.condition:,}"] if has_several else []
        row += [group.setting, markdown.seeds(len(group.records), group.diverged)]
        first_baseline, *others = (baseline_of(study, group, name) for name in baselines)
        if group.setting == first_baseline.setting:
            row += [interval(groups.levels_of(group, task)) for task in tasks]
            row += [""] * len(others)
        else:
            row += [gain_cell(group, first_baseline, task) for task in tasks]
            row += [gain_cell(group, other) for other in others]
        row += [by_article(group, task) for task in implied]
        rows.append(row)
    return as_table(header, rows)


def gain_cell(group, baseline, task="mean"):
    """A gain with its interval; empty for the baseline itself."""
    if group.setting == baseline.setting:
        return ""
    return gain_text(groups.gains_of(group, baseline, task), group)


def gain_text(gained, group):
    """A gain with its interval, and how many seeds it is of if these are not all of the group."""
    fewer = f" ({len(gained)} seeds)" if 0 < len(gained) < len(group.records) else ""
    return interval(gained, "+") + fewer


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
    correction leaves; or None. Without controls, what another study repeats, studies with a
    question that was fixed beforehand, and tables of tasks, which have p-values of their own."""
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
        others = {"none", baseline} | repeated(definition.repeated_by, studies, baseline)
        others |= set(definition.controls.values()) if baseline != "none" else set()
        for group in studies[name]:
            gained = groups.gains_of(group, baseline_of(shown, group, baseline))
            is_compared = group in shown and group.setting not in others
            if is_compared and groups.is_enough(gained):
                compared[name, group.condition, group.setting] = gained
    return compared


def repeated(study, studies, baseline):
    """The settings that a repetition compares itself. Args: its name, or None; as `all_tables`."""
    again = studies.get(study, [])
    return {
        group.setting
        for group in again
        if groups.is_enough(groups.gains_of(group, baseline_of(again, group, baseline)))
    }


def title_of(study, images, setting):
    """How the list of comparisons calls one."""
    schedule = runs.STUDIES[study].schedules[images]
    held_out = ", held out" if "holdout" in schedule else ""
    return f"{setting}, {images:,} images for {schedule['num_epochs']} epochs{held_out}"


# --- What the units learned ---


def units_table(study, definition):
    """The mean weights of each unit: mean over seeds, lowest and highest seed. And how far all
    its weights are from their start: root mean square of all channels, mean over seeds.

    As `gains_table`, of the first condition; None if no run has units.
    """
    study = [group for group in study if group.condition == definition.first_condition]

    def cell(values):
        return f"{number(np.mean(values))} ({number(min(values))}, {number(max(values))})"

    having = [group for group in study if any(r["cross_stitch"] for r in group.records.values())]
    if not having:
        return None
    tasks, rows = groups.tasks_of(having)[:-1], []
    for group in having:
        records = list(group.records.values())
        own_only = records[0].get("flags", {}).get("cross_stitch_own_only")
        for scope in records[0]["cross_stitch"]:
            means = np.array([record["cross_stitch"][scope] for record in records])
            # The first records do not say how far.
            far = [r["distances"][scope] for r in records if scope in r.get("distances", {})]
            moved = number(np.mean([np.sqrt(np.mean(np.square(d))) for d in far])) if far else "–"
            weights = [
                "0" if own_only and i != j else cell(means[:, i, j])
                for i in range(len(tasks))
                for j in range(len(tasks))
            ]
            rows.append([group.setting, scope[-1], *weights, moved])
    header = [f"{to} from {source}" for to in tasks for source in tasks]
    table = as_table(["setting", "unit", *header, "moved"], rows)
    return f"{table}\n\n{made_with(records_of(having))}"


# What a table can show: name in `runs.STUDIES` -> function of groups and the study's definition.
TABLES = {
    "gains": gains_table,
    "tasks": tasks_table,
    "against controls": against_controls_table,
    "kinds": kinds_table,
    "weights": units_table,
    "ranks": starved_table.ranks_table,
    "images needed": image_tables.needed_table,
    "images changed": image_tables.changed_table,
}
