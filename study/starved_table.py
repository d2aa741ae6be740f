"""The table of starved runs, whose articles have many images or few. As those of tables.py."""

from study import groups
from study.groups import records_of
from study.machines import made_with
from study.markdown import answer, as_table, details, interval, p_equals, seeds


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
    rows = [[g.setting, seeds(len(g.records), g.diverged), *row_of(g, recalls)] for g in study]
    titles = [name.removeprefix("accuracy, ") for name in more]
    more_rows = [[g.setting, *row_of(g, more)] for g in study]
    return "\n\n".join([
        as_table(["setting", "seeds", *recalls], rows),
        f"{told_from_0(compared, definition.question)} {made_with(records_of(study))}",
        details("F1, and accuracy in both tasks", as_table(["setting", *titles], more_rows)),
    ])  # fmt: skip


def told_from_0(gained, question):
    """The p-value of the question, if there is one, and what else Holm's correction leaves."""
    others = {which: gains for which, gains in gained.items() if groups.is_enough(gains)}
    setting, measure = question or (None, None)
    asked = others.pop((measure, setting), [])
    told = [
        f"{measure} of {setting} {interval(others[measure, setting], '+')} ({p_equals(p)})"
        for (measure, setting), p in groups.corrected(others).items()
        if p < groups.SIGNIFICANCE
    ]
    compared = "other comparisons" if asked else "comparisons"
    found = f"{len(told)} of {len(others)} {compared} have p < {groups.SIGNIFICANCE}"
    return f"{answer(asked)}*{found} after Holm{': ' if told else ''}{'; '.join(told)}.*"
