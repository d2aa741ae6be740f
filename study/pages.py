"""Writes the study's tables, and the figures in its sentences, into the pages.

A table stands between `<!-- table NAME -->` and `<!-- end of table -->`. A figure stands directly
before a mark that says where it comes from:

    0.10 ± 0.04<!-- full; channel; mean -->                     a cell: table; row; column
    0.015<!-- p of replicated; 0.9 dense; article -->           of the gains behind a cell
    0.004<!-- p of full; channel; mean; seeds 204 to 207 -->    of the gains of some seeds
    p = 0.014<!-- full; channel; p (Holm) -->                   or p < 0.001, as the cell says

A row is named by its first two cells, or by one of them. QUANTITIES lists what else than cells
there is. A figure that needs more records than there are is "–". Marks that begin with `speed;`
are tests/benchmark.py's.
"""

import functools
import re
import typing

import numpy as np

from harness import files
from harness.errors import Failed
from harness.files import ROOT
from study import groups, markdown, per_image, replication, runs, tables

# What a reader of the study's page may skip.
OF_MORE_TABLES = (
    "full",
    "full_30_epochs",
    "where",
    "few_images",
    "best_lever",
    "few_labels_control",
    "few_labels_weights",
    "precision",
    "starved",
    "replication_programs",
)
OF_STUDY = [n for n in (*tables.NAMES, *replication.NAMES) if n not in OF_MORE_TABLES]
PAGES = {
    ROOT / "study" / "README.md": OF_STUDY,
    ROOT / "study" / "TABLES.md": OF_MORE_TABLES,
    ROOT / "README.md": tables.NAMES_IN_PROJECT,
}
NAMES = {name for names in PAGES.values() for name in names}
TOO_FEW_SEEDS = f"*No setting has a record for {groups.SEEDS_OF_A_PAGE} seeds yet.*"
NO_RECORDS = "–"

NUMBER = r"[+-]?\d[\d,]*(?:\.\d+)?"
# 0.10, 0.10 ± 0.04, 0.10 ± 0.15 (0.04), -1.08 to +2.17, 8 of 8, 0.60 (0.56, 0.65), or one of
# these with (5 seeds) behind it.
BRACKETS = rf"(?: \((?:{NUMBER}|{NUMBER}, {NUMBER})\))?(?: \(\d+ seeds\))?"
MORE = rf"(?: (?:±|to|of) {NUMBER})?{BRACKETS}"
FIGURE = rf"(?:{NUMBER}{MORE}|{NO_RECORDS})"
MARK = r"<!-- (?!table |end of table -->|speed; )(.*?) -->"


class Found(typing.NamedTuple):
    """What the records say."""

    studies: dict  # study -> list of groups, as `records.read_all` returns them
    replicated: list  # groups, as `replication.read` returns them
    tables: dict  # name -> text in Markdown


class Source(typing.NamedTuple):
    """Where a figure comes from, as its mark says."""

    mark: str
    quantity: str | None  # None for a cell
    table: str
    row: str
    column: str
    seeds: range | None  # None for all


def write(found):
    """Writes all pages, or none. Returns: their paths. Raises: Failed, as `text_of` does."""
    texts = {page: text_of(page, found) for page in PAGES}
    for page, text in texts.items():
        files.write(page, text)
    return list(texts)


def text_of(page, found):
    """A page with the tables and figures of these records.

    Args:
      page: a path out of PAGES.
      found: `Found`.

    Returns:
      The page's text.

    Raises:
      Failed: a table's mark is missing, or a figure's mark cannot be understood.
    """
    text = page.read_text(encoding="utf-8")
    try:
        made = {name: found.tables.get(name, TOO_FEW_SEEDS) for name in PAGES[page]}
        return with_figures(with_tables(text, made), found)
    except Failed as error:
        raise Failed(f"{page}: {error}") from None


def with_tables(text, made):
    """A text with these tables, name -> table, in their places. Raises: Failed, there is none."""
    for name, table in made.items():
        first, last = f"<!-- table {name} -->", "<!-- end of table -->"
        within = "(?:(?!<!-- table ).)*?"  # without another table's mark
        place = re.search(f"{first}\n{within}{last}", text, re.S)
        if not place:
            raise Failed(f"has no place for a table; add {first} and {last}.")
        if text.count(first) > 1:
            raise Failed(f"has {first} more than once; leave one of them.")
        text = text.replace(place[0], f"{first}\n{table}\n{last}")
    return text


# --- Figures ---


def with_figures(text, found):
    """A text whose figures are those of the records. Raises: Failed, a mark is not understood."""

    def written(match):
        relation, figure, mark = match.groups()
        source = source_of(mark)
        if not figure:
            raise Failed(f"<!-- {mark} --> has no figure directly before it; write a number there.")
        figure = figure_of(source, found)
        if relation and figure.startswith("<"):
            return f"p {figure}<!-- {mark} -->"
        if not re.fullmatch(FIGURE, figure):
            raise Failed(f"<!-- {mark} --> names {figure!r}, which is not a figure.")
        return f"{'p = ' if relation else ''}{figure}<!-- {mark} -->"

    return re.sub(rf"(\bp [=<] )?({FIGURE})?{MARK}", written, text)


def source_of(mark):
    """Reads a mark. Returns: `Source`. Raises: Failed."""
    form = r"(?:([\w ]+) of )?(\w+); ([^;]+); ([^;]+)(?:; seeds (\d+) to (\d+))?"
    match = re.fullmatch(form, mark)
    if match:
        quantity, table, row, column, *ends = match.groups()
        seeds = range(int(ends[0]), int(ends[1]) + 1) if ends[0] else None
        has_gains = table in runs.STUDIES or table == "replicated"
        if (has_gains and quantity in QUANTITIES) if quantity else (table in NAMES and not seeds):
            return Source(mark, quantity, table, row, column, seeds)
    raise Failed(
        f"<!-- {mark} --> names no figure. Write TABLE; ROW; COLUMN, or one of"
        f" {', '.join(QUANTITIES)} before it, such as p of full; channel; mean."
    )


def figure_of(source, found):
    """The figure of a mark, as text. Raises: Failed, it names what no record has."""
    if source.quantity:
        figure = QUANTITIES[source.quantity](source, found)
    else:
        figure = cell_of(source, found.tables.get(source.table, ""))
        figure = re.sub(r", \d+ diverged$", "", figure)  # of the number of seeds
    return figure.removeprefix("+")


def cell_of(source, table):
    """The cell of a table. Raises: Failed, it has no such cell, or several."""
    titles, cells = set(tables.TITLES_OF_CONTROLS), []
    for block in re.findall(r"(?:^\|.*(?:\n|$))+", table, re.M):
        header, _, *rows = (
            [c.strip() for c in line.split("|")[1:-1]] for line in block.splitlines()
        )
        titles |= set(header)
        if source.column in header and not cells:  # of a second block only what the first lacks
            place = header.index(source.column)
            cells += [row[place] for row in rows if source.row in (*row[:2], " ".join(row[:2]))]
    if len(cells) > 1:
        raise Failed(f"<!-- {source.mark} --> names {len(cells)} cells; name the row by two cells.")
    if table and (source.column not in titles or not (cells or may_be_missing(source.row))):
        raise Failed(f"<!-- {source.mark} --> names no cell of table {source.table}.")
    return cells[0] if cells else NO_RECORDS


def may_be_missing(row):
    """Whether this may be the row of a setting that has too few records yet: it begins with
    the setting's name, or with a number before it."""
    known = {*groups.KINDS, replication.DIFFERENCE}
    known |= {name for study in runs.STUDIES.values() for name in study.settings}
    names = "|".join(map(re.escape, known))
    return re.fullmatch(rf"([\d.,]+ )?({names})( .*)?", row)


# --- What else than cells there is ---


def group_of(source, found):
    """The group of a row, and all of its table. Raises: Failed, there is no such row or column."""
    if source.table == "replicated":
        study = found.replicated
    else:
        study = groups.shown(source.table, found.studies)
    rows = [g for g in study if source.row in (g.setting, f"{g.condition:,} {g.setting}")]
    tasks = groups.tasks_of(study) if groups.records_of(study) else [source.column]
    if len(rows) > 1 or source.column not in tasks or not (rows or may_be_missing(source.row)):
        raise Failed(f"<!-- {source.mark} --> names no row and task of table {source.table}.")
    return rows[0] if rows else groups.Group(None, source.row, {}), study


def gains_of(source, found):
    """As `groups.gains_of`, over "none", of a row's seeds, or of those that the mark names."""
    group, study = group_of(source, found)
    chosen = group.of_seeds(source.seeds) if source.seeds else group
    return groups.gains_of(chosen, groups.baseline_of(study, group), source.column)


def gain(source, found):
    """The mean gain of some seeds, with its interval from three seeds on."""
    return markdown.interval(gains_of(source, found), "+")


def gain_at_the_end(source, found):
    """The mean gain in the last evaluation alone, with its interval for these images."""
    group, study = group_of(source, found)
    group = group.of_seeds(source.seeds) if source.seeds else group
    gained = group.gains(groups.baseline_of(study, group), source.column, count=1)
    return markdown.interval(list(gained.values()), "+")


def p_uncorrected(source, found):
    """The p-value of a t-test by itself."""
    gained = gains_of(source, found)
    return markdown.p_text(groups.p_value(gained)) if groups.is_enough(gained) else NO_RECORDS


def p_after_holm(source, found, baseline="none"):
    """The p-value among all differences from the baseline that are corrected together.

    Raises: Failed, the mark names a task or seeds: these are not corrected.
    """
    if source.column != per_image.MEAN or source.seeds:
        raise Failed(f"<!-- {source.mark} --> must name the mean, and no seeds.")
    group, _ = group_of(source, found)
    corrected = groups.corrected(tables.comparisons_with(found.studies, baseline))
    value = corrected.get((source.table, group.condition, group.setting))
    return NO_RECORDS if value is None else markdown.p_text(value)


def seeds_with_a_gain(source, found):
    """How many of a row's seeds gain. Equal accuracies may differ by rounding."""
    gained = [np.mean(gain) for gain in gains_of(source, found)]
    return f"{sum(gain > 1e-9 for gain in gained)} of {len(gained)}" if gained else NO_RECORDS


QUANTITIES = {
    "gain": gain,
    "gain at the end": gain_at_the_end,
    "p": p_uncorrected,
    "p after Holm": p_after_holm,
    "p after Holm from channel": functools.partial(p_after_holm, baseline="channel"),
    "seeds with a gain": seeds_with_a_gain,
}
