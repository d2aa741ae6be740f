"""Tables and pictures of the study, from the records that reproduce.py makes."""

import json
import pathlib
import re

import command_line
import matrices
import numpy as np
import plot
import scipy.stats
from matrices import figure, matplotlib

ALL_IMAGES = 60000
STARVED_IMAGES = 14891  # of --starve=100
LAST_EVALUATIONS = 5  # a run's accuracy is their mean, as in train.py
WEIGHT_BINS = np.linspace(-1, 2, 61)  # edges, for histograms of stitch weights
SEEDS_OF_AN_INTERVAL = 3  # with fewer, a table has differences and no interval
SIGNIFICANCE = 0.05  # of the gains in recall, over all that are compared together
SMOOTHED_ABOVE = 30  # curves with more points than this are smoothed

# Study: the settings that the others are compared with, seed by seed.
BASELINES = {
    "full": ["none"],
    "full_30_epochs": ["none"],
    "where": ["none"],
    "few_images": ["none"],
    "levers": ["none", "channel"],
    "best_lever": ["none"],
    "units_without_sharing": ["none", "channel"],
}
# What img/README.md has a place for, and README.md.
STUDY_TABLES = (*BASELINES, "weights", "weights_of_channels", "distances", "recalls")
STUDY_TABLES += ("starved", "starved_epochs")
SUMMARY_TABLES = ("results",)

COLOURS = {"none": "tab:orange", "channel": "tab:blue", "layer": "tab:green"}
COLOURS |= {"nddr": "tab:olive", "hard sharing": "tab:red", "dense": "tab:purple"}
# Also the order in tables.
COLOUR_OF_OTHERS = "tab:brown"  # channel units with another start weight
LABELS = {"none": "no units", "channel": "channel units", "layer": "layer units"}
LABELS |= {"nddr": "nddr units", "dense": "dense units"}
# Of the ten ranks of a starved run, 0 being the article with the most images. Whether the
# rarest gain more recall from channel units than the commonest was fixed as the question
# before any of these runs was made; whatever else is compared is corrected after Holm.
RANKS = {"commonest": slice(0, 3), "between": slice(3, 7), "rarest": slice(7, 10)}
PRIMARY = "recall, rarest - commonest", "channel"
LAYERS = {"cross_stitch_1": "pool_1", "cross_stitch_2": "pool_2", "cross_stitch_3": "fc_3"}


class Unusable(Exception):
    """A file is not what it should be; the message is one sentence for the user."""


# --- Reading ---


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def read_curves(folder):
    """Reads all scalars of a run. Returns: tag without its prefix -> [steps, values]."""
    _, curves = plot.read_run(folder)
    return {
        # 0.9213, not the 0.9212999939918518 that this float32 is as a float.
        tag.removeprefix("summary/"): [
            steps.tolist(),
            [float(str(np.float32(value))) for value in values],
        ]
        for tag, (steps, values) in curves.items()
        if "per_second" not in tag and not tag.startswith("class/")
    }


def key_of(setting):
    """The number of training images, and the setting without it, of reproduce.py's setting."""
    images, name = re.fullmatch(r"(?:(\d+) )?(.*)", setting).groups()
    return int(images or ALL_IMAGES), name


def read_records(folder):
    """Reads the records of all studies.

    Args:
      folder: path of the records, which has a folder for each study.

    Returns:
      study -> (images, setting) -> seed -> record, sorted by seed. `images` is the
      number of training images. Settings are named as in reproduce.py, without it.

    Raises:
      Unusable: a record is damaged.
    """
    records = {}
    for path in sorted(folder.glob("*/*.json")):
        if path.parent.name == "replication":
            continue  # made by replicate.py; replication.py reads them
        try:
            record = read_json(path)
            key = key_of(record["setting"])
            seed, _ = record["seed"], record["command"]
        except (ValueError, KeyError, TypeError):
            raise Unusable(f"{path}: damaged. Delete it to run it again.") from None
        records.setdefault(path.parent.name, {}).setdefault(key, {})[seed] = record
    for groups in records.values():
        for key, by_seed in groups.items():
            groups[key] = dict(sorted(by_seed.items()))
    return records


def without_diverged(groups):
    """Groups without the runs that diverged."""
    return {
        key: {seed: r for seed, r in by_seed.items() if "diverged" not in r}
        for key, by_seed in groups.items()
    }


# --- Figures ---


def half_width(values):
    """Half of the 95 % confidence interval of the mean, by Student's t; nan for few values."""
    if len(values) < SEEDS_OF_AN_INTERVAL:
        return float("nan")
    quantile = scipy.stats.t.ppf(0.975, len(values) - 1)
    return quantile * np.std(values, ddof=1) / np.sqrt(len(values))


def number(value, sign=""):
    """Two decimals, and never -0.00."""
    return f"{round(value, 2) + 0.0:{sign}.2f}"


def interval(shares, sign=""):
    """Mean and interval in percent, of shares of 1."""
    if not len(shares):
        return "–"
    half = 100 * half_width(shares)
    return number(100 * np.mean(shares), sign) + ("" if np.isnan(half) else f" ± {half:.2f}")


def mean_and_range(values):
    return f"{number(np.mean(values))} ({number(min(values))}, {number(max(values))})"


def accuracy(record, task, end=None):
    """A run's accuracy_test_last, also of what the article's tower implies for a task.

    With `end`, the mean of the LAST_EVALUATIONS evaluations up to that one.
    """
    if end is None and task in record["accuracy_test_last"]:
        return record["accuracy_test_last"][task]
    tag = "accuracy_test" if task == "mean" else f"accuracy_test_{task}"
    return float(np.mean(record["curves"][tag][1][:end][-LAST_EVALUATIONS:]))


def gains(by_seed, baseline, task="mean", end=None):
    """Differences between runs of one seed. Returns: seed -> gain, for seeds that both have."""
    return {
        seed: accuracy(by_seed[seed], task, end) - accuracy(baseline[seed], task, end)
        for seed in by_seed
        if seed in baseline
    }


def numerics(record):
    """The number of the program's numerics; the first records do not name it."""
    return record.get("numerics", 1)


# --- Tables ---


def markdown(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in lines)


def details(summary, text):
    """A block that the reader opens."""
    return f"<details><summary>{summary}</summary>\n\n{text}\n\n</details>"


def made_with(records):
    """The line under a table: with what its runs were made, and on what they were evaluated."""
    records = [record for record in records if "diverged" not in record]
    versions = sorted({record["versions"]["tensorflow"] for record in records})
    numbers = sorted({str(numerics(record)) for record in records})
    made = f"Made with TensorFlow {' and '.join(versions)}, numerics {' and '.join(numbers)}."
    held_out = {record.get("flags", {}).get("holdout", 0) for record in records} - {0}
    if held_out:
        made = f"Accuracy on {min(held_out):,} held-out training images. {made}"
    return f"*{made}*"


def every_record(groups):
    return [record for by_seed in groups.values() for record in by_seed.values()]


def sorted_keys(groups):
    """(images, setting), fewest images first, settings as in COLOURS and then by name."""
    order = list(COLOURS)

    def position(key):
        images, setting = key
        in_order_of_layers = setting.replace("fc_3", "pool_3")
        return images, order.index(setting) if setting in order else 99, in_order_of_layers

    return sorted(groups, key=position)


def tasks_of(groups):
    """The tasks' names and "mean"."""
    return list(every_record(without_diverged(groups))[0]["accuracy_test_last"])


def accuracy_table(groups, baselines, number="images"):
    """Accuracies in percent, and the gain over the first baseline: mean ± 95 % interval.

    Args:
      groups: (images, setting) -> seed -> record.
      baselines: settings that the others are compared with.
      number: what stands in the keys in place of the number of images, if something else.

    Returns:
      A table in Markdown.
    """
    ended, tasks = without_diverged(groups), tasks_of(groups)
    header = [number, "setting", "seeds", *tasks, *(["gain (mean)"] if baselines else [])]
    rows = []
    for images, setting in sorted_keys(groups):
        by_seed = ended[images, setting]
        diverged = len(groups[images, setting]) - len(by_seed)
        row = [f"{images:,}", setting, str(len(by_seed))]
        row[-1] += f", {diverged} diverged" if diverged else ""
        row += [interval([accuracy(r, task) for r in by_seed.values()]) for task in tasks]
        if baselines:
            row.append(gain_cell(ended, images, setting, baselines[0], "mean"))
        rows.append(row)
    return markdown(header, rows)


def gain_cell(ended, images, setting, baseline, task, end=None):
    """A gain with its interval; empty for the baseline itself."""
    if setting == baseline:
        return ""
    by_seed = ended[images, setting]
    paired = list(gains(by_seed, ended.get((images, baseline), {}), task, end).values())
    fewer = f" ({len(paired)} seeds)" if 0 < len(paired) < len(by_seed) else ""
    return interval(paired, "+") + fewer


def gains_table(groups, baselines, number="images"):
    """Each task's gain over the first baseline, the mean's over the second, and what the
    group gains if it is read off the article's prediction.

    Args:
      groups: (images, setting) -> seed -> record.
      baselines: settings that the others are compared with.
      number: as in `accuracy_table`.

    Returns:
      A table in Markdown.
    """
    ended, tasks = without_diverged(groups), tasks_of(groups)[:-1]
    curves = every_record(ended)[0]["curves"]
    implied = [task for task in tasks if f"accuracy_test_{task}_by_article" in curves]
    header = [number, "setting", *(f"gain ({task})" for task in tasks)]
    header += [f"over {baseline} (mean)" for baseline in baselines[1:]]
    header += [f"{task} by article" for task in implied]
    rows = []
    for images, setting in sorted_keys(groups):
        row = [f"{images:,}", setting]
        row += [gain_cell(ended, images, setting, baselines[0], task) for task in tasks]
        row += [gain_cell(ended, images, setting, other, "mean") for other in baselines[1:]]
        for task in implied:
            by_article = [
                accuracy(record, f"{task}_by_article") - accuracy(record, task)
                for record in ended[images, setting].values()
            ]
            row.append(interval(by_article, "+"))
        rows.append(row)
    return markdown(header, rows)


def seeds_table(groups, title_of=lambda key: key[1]):
    """The gain in mean accuracy over none, in points, for each seed.

    Args:
      groups: (images, setting) -> seed -> record.
      title_of: function of a key that returns its column's title.

    Returns:
      A table in Markdown.
    """
    ended = without_diverged(groups)
    keys = [key for key in sorted_keys(groups) if key[1] != "none"]
    by_key = {key: gains(ended[key], ended.get((key[0], "none"), {})) for key in keys}
    seeds = sorted({seed for by_seed in by_key.values() for seed in by_seed})
    rows = [
        [seed, *(number(100 * by_key[k][seed], "+") if seed in by_key[k] else "–" for k in keys)]
        for seed in seeds
    ]
    return markdown(["seed", *map(title_of, keys)], rows)


def gains_over_training_table(groups, title_of=lambda key: key[1], unit="evaluations"):
    """The gain in mean accuracy over none, in each LAST_EVALUATIONS evaluations of the runs.

    Args:
      groups, title_of: as in `seeds_table`.
      unit: what the first column counts.

    Returns:
      A table in Markdown.
    """
    ended = without_diverged(groups)
    keys = [key for key in sorted_keys(groups) if key[1] != "none"]
    (length,) = {len(run["curves"]["accuracy_test"][0]) for run in every_record(ended)}
    rows = [
        [f"{end - LAST_EVALUATIONS + 1} to {end}",
         *(gain_cell(ended, *key, "none", "mean", end) for key in keys)]
        for end in range(LAST_EVALUATIONS, length + 1, LAST_EVALUATIONS)
    ]  # fmt: skip
    return markdown([unit, *map(title_of, keys)], rows)


def study_table(study, groups):
    """A study's table, with what its text cites in blocks that the reader opens."""
    baselines = BASELINES[study]
    parts = [accuracy_table(groups, baselines), made_with(every_record(groups))]
    parts.append(details("Gains of each task", gains_table(groups, baselines)))
    if study in ("full", "full_30_epochs"):
        parts.append(details("Gain of each seed", seeds_table(groups)))
        parts.append(details("Gain over training", gains_over_training_table(groups)))
    return "\n\n".join(parts)


def results_table(groups):
    """Each kind of sharing on all images, for README.md.

    Without dense units: after five epochs they are far from where they end.
    """
    shown = {key: g for key, g in groups.items() if key[1] in COLOURS and key[1] != "dense"}
    return f"{accuracy_table(shown, ['none'])}\n\n{made_with(every_record(shown))}"


def settings_with(entry, groups):
    """(images, setting) -> the runs whose record has a non-empty entry, if there are any."""
    ended = without_diverged(groups)
    having = {k: [r for r in ended[k].values() if r.get(entry)] for k in sorted_keys(ended)}
    return {key: runs for key, runs in having.items() if runs}


def units_table(groups, entry):
    """A T x T figure of each unit: mean over seeds, lowest and highest seed.

    Args:
      groups: (images, setting) -> seed -> record.
      entry: of the records: "cross_stitch" (mean weights) or "distances" (from the start).

    Returns:
      A table in Markdown, or None if no record has the entry.
    """
    tasks, rows, used = tasks_of(groups)[:-1], [], []
    for (num_images, setting), runs in settings_with(entry, groups).items():
        used += runs
        for scope in runs[0][entry]:
            figures = np.array([run[entry][scope] for run in runs])  # (runs, to, from)
            cells = [mean_and_range(column) for column in figures.reshape(len(runs), -1).T]
            name = setting if num_images == ALL_IMAGES else f"{setting}, {num_images:,}"
            rows.append([name, scope[-1], *cells])
    header = [f"{to} from {source}" for to in tasks for source in tasks]
    if used:
        return f"{markdown(['setting', 'unit', *header], rows)}\n\n{made_with(used)}"


def holm(probabilities):
    """Holm's correction. Returns: for each p-value, the one over all comparisons together."""
    order = np.argsort(probabilities)
    factors = np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(1, np.maximum.accumulate(factors * probabilities[order]))
    return corrected


def recalls_table(groups):
    """Classes whose recall differs from none's by more than chance (t-tests over the seeds).

    Args:
      groups: (images, setting) -> seed -> record.

    Returns:
      A table in Markdown, or None if there are too few records with recalls.
    """
    recalls = {
        setting: {run["seed"]: run["recall"] for run in runs}
        for (_, setting), runs in settings_with("recall", groups).items()
    }
    compared, probabilities = [], []
    for setting in recalls:
        seeds = sorted(recalls[setting].keys() & recalls.get("none", {}).keys())
        if setting == "none" or len(seeds) < SEEDS_OF_AN_INTERVAL:
            continue
        for task, classes in recalls["none"][seeds[0]].items():
            for name in classes:
                with_units, none = (
                    np.array([recalls[s][seed][task][name] for seed in seeds])
                    for s in (setting, "none")
                )
                gain = with_units - none
                compared.append((task, name, setting, none, gain))
                probabilities.append(p_value(gain))
    if not compared:
        return None
    rows = [
        [task, name, setting, number(100 * none.mean()), interval(gain, "+"), f"{p:.3f}"]
        for (task, name, setting, none, gain), p in zip(compared, holm(np.array(probabilities)))
        if p < SIGNIFICANCE
    ]
    header = ["task", "class", "setting", "recall of none", "gain (recall)", "p"]
    table = markdown(header, rows) if rows else "No class's gain or loss can be told from chance."
    found = f"*{len(rows)} of {len(compared)} comparisons have p < {SIGNIFICANCE} after Holm.*"
    return f"{table}\n\n{found} {made_with(every_record(without_diverged(groups)))}"


def by_rank(record, measure):
    """A measure of each article in a starved run, the article with the most images first."""
    articles = sorted(record["ranks"], key=record["ranks"].get)
    return np.array([record[measure]["article"][article] for article in articles])


def gains_by_rank(by_seed, none, measure):
    """What each rank gains over the run without units of the same seed: [seeds, ranks]."""
    seeds = sorted(by_seed.keys() & none.keys())
    gained = [by_rank(by_seed[s], measure) - by_rank(none[s], measure) for s in seeds]
    return np.reshape(gained, (len(seeds), 10))


def starved_comparisons(by_setting):
    """What starved runs gain over those without units.

    Args:
      by_setting: setting -> seed -> record.

    Returns:
      (measure, setting) -> the gain of each seed, in shares of 1.
    """
    none = by_setting.get("none", {})
    compared = {}
    for setting, by_seed in by_setting.items():
        if setting == "none":
            continue
        for measure in ("recall", "F1"):
            gained = gains_by_rank(by_seed, none, f"{measure.lower()}_last")
            of = {name: gained[:, ranks].mean(axis=1) for name, ranks in RANKS.items()}
            of["rarest - commonest"] = of["rarest"] - of["commonest"]
            compared |= {(f"{measure}, {name}", setting): values for name, values in of.items()}
        for task in ("article", "group"):
            values = list(gains(by_seed, none, task).values())
            compared[f"accuracy, {task}", setting] = np.array(values)
    return compared


def p_value(gained):
    """Of a t-test that the mean of these gains is not 0; 1 if they are all the same."""
    return 1.0 if np.ptp(gained) == 0 else float(scipy.stats.ttest_1samp(gained, 0).pvalue)


def starved_table(groups):
    """What the articles with the most and the fewest images gain, and what can be told from 0.

    Args:
      groups: (images, setting) -> seed -> record.

    Returns:
      Tables in Markdown.
    """
    ended = without_diverged(groups)
    by_setting = {key[1]: ended[key] for key in sorted_keys(ended)}
    compared = starved_comparisons(by_setting)
    columns = [*RANKS, "rarest - commonest"]
    parts = []
    for measure in ("recall", "F1"):
        rows = []
        for setting, by_seed in by_setting.items():
            row = [setting, len(by_seed)]
            if setting == "none":
                levels = np.array([by_rank(r, f"{measure.lower()}_last") for r in by_seed.values()])
                row += [interval(levels[:, ranks].mean(axis=1)) for ranks in RANKS.values()] + [""]
            else:
                row += [interval(compared[f"{measure}, {name}", setting], "+") for name in columns]
            rows.append(row)
        titles = [f"{measure}, {name}" for name in columns]
        parts.append(markdown(["setting", "seeds", *titles], rows))
    recall, f1 = parts
    return "\n\n".join([
        recall,
        made_with(every_record(groups)),
        details("The same for F1", f1),
        details("Accuracy", accuracy_table(groups, ["none"])),
        details("Gains of each task", gains_table(groups, ["none"])),
        details("What can be told from 0", told_from_0(compared)),
    ])  # fmt: skip


def told_from_0(compared):
    """The primary comparison, and those of the others that Holm's correction leaves."""
    enough = {k: v for k, v in compared.items() if len(v) >= SEEDS_OF_AN_INTERVAL}
    others = [key for key in enough if key != PRIMARY]
    corrected = holm(np.array([p_value(enough[key]) for key in others]))
    told = [(*key, enough[key], p) for key, p in zip(others, corrected) if p < SIGNIFICANCE]
    rows = [[measure, setting, interval(v, "+"), f"{p:.3f}"] for measure, setting, v, p in told]
    if PRIMARY in enough:
        primary = enough[PRIMARY]
        rows.insert(0, [*PRIMARY, interval(primary, "+"), f"{p_value(primary):.3f} (primary)"])
    table = markdown(["measure", "setting", "gain", "p"], rows)
    found = f"{len(told)} of {len(others)} other comparisons have p < {SIGNIFICANCE} after Holm."
    return f"{table}\n\n*{found}*"


def starved_epochs_table(groups):
    """Mean accuracy over five epochs of long starved runs: the best, and those up to some."""
    rows, ends = [], range(10, 61, 10)
    for key in sorted_keys(groups):
        for record in groups[key].values():
            values = np.array(record["curves"]["accuracy_test"][1])
            window = np.ones(LAST_EVALUATIONS) / LAST_EVALUATIONS
            means = np.convolve(values, window, "valid")  # the first is that of epochs 1 to 5
            shown = [means.max(), *(means[end - LAST_EVALUATIONS] for end in ends)]
            rows.append([key[1], *(number(100 * mean) for mean in shown)])
    titles = [f"{end - LAST_EVALUATIONS + 1} to {end}" for end in ends]
    return f"{markdown(['setting', 'best', *titles], rows)}\n\n{made_with(every_record(groups))}"


def weights_of_channels_table(by_seed):
    """How the weights from the other tower are spread over the channels, all seeds together."""
    tasks, counts = spread_of_weights(by_seed)
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
    return f"{table}\n\n{made_with(by_seed.values())}"


def all_tables(records):
    """Makes every table for which there are runs.

    Args:
      records: as `read_records` returns them.

    Returns:
      name -> text in Markdown, names out of STUDY_TABLES and SUMMARY_TABLES.
    """
    groups = {study: dict(keys) for study, keys in records.items()}
    groups = {study: keys for study, keys in groups.items() if every_record(without_diverged(keys))}
    if "levers" in groups:
        # Half as many epochs: these runs only lend their towers to "alone first".
        groups["levers"] = {k: g for k, g in groups["levers"].items() if k[1] != "alone half"}
    for study, other, settings in (
        ("units_without_sharing", "few_images", ("none", "channel")),
        ("where", "full", ("none", "channel", "layer", "hard sharing")),
    ):
        if study in groups:
            groups[study] |= baselines_of(groups[study], groups.get(other, {}), settings)
    tables = {s: study_table(s, groups[s]) for s in BASELINES if s in groups}
    if "full" in groups:
        tables["results"] = results_table(groups["full"])
        units = groups["full"] | dense_on_few_images(groups)
        for (images, setting), by_seed in groups.get("full_30_epochs", {}).items():
            units[images, f"{setting} (30)"] = by_seed
        tables["weights"] = units_table(units, "cross_stitch")
        tables["distances"] = units_table(units, "distances")
    if "full_30_epochs" in groups:
        tables["recalls"] = recalls_table(groups["full_30_epochs"])
    channel = without_diverged(records.get("full", {})).get((ALL_IMAGES, "channel"))
    if channel:
        tables["weights_of_channels"] = weights_of_channels_table(channel)
    if "starved" in groups:
        tables["starved"] = starved_table(of_starved_images(groups["starved"]))
    if "starved_epochs" in groups:
        tables["starved_epochs"] = starved_epochs_table(groups["starved_epochs"])
    return {name: text for name, text in tables.items() if text}


def of_starved_images(groups):
    """The groups of starved runs under the number of images that they really have."""
    return {(STARVED_IMAGES, setting): by_seed for (_, setting), by_seed in groups.items()}


def dense_on_few_images(groups):
    """The groups of dense units in "few_images", (images, setting) -> seed -> record."""
    return {k: g for k, g in groups.get("few_images", {}).items() if k[1] == "dense"}


def baselines_of(groups, others, settings):
    """The runs of another study that a study is compared with: of its images and seeds."""
    images = {n for n, _ in groups}
    seeds = {seed for by_seed in groups.values() for seed in by_seed}
    return {
        key: {seed: record for seed, record in by_seed.items() if seed in seeds}
        for key, by_seed in others.items()
        if key[0] in images and key[1] in settings
    }


def as_text(tables):
    """All tables as one text, each under its name."""
    return "\n\n".join(f"## {name}\n\n{text}" for name, text in tables.items())


def find_places(page, names):
    """Finds the two marks around each table's place in a page.

    Args:
      page: path of the page.
      names: names of tables.

    Returns:
      name -> the match, whose groups are the mark, the old table and the other mark.

    Raises:
      Unusable: a mark is missing.
    """
    text, found = page.read_text(encoding="utf-8"), {}
    for name in names:
        marks = f"<!-- table {name} -->", "<!-- end of table -->"
        found[name] = re.search(f"({marks[0]}\n)(.*?)({marks[1]})", text, re.S)
        if not found[name]:
            raise Unusable(f"{page}: has no place for a table; add {' and '.join(marks)}.")
    return found


def write_tables(tables, page):
    """Writes each table into its place in a page. Raises: Unusable, a mark is missing."""
    text = page.read_text(encoding="utf-8")
    for name, place in find_places(page, tables).items():
        text = text.replace(place[0], f"{place[1]}{tables[name]}\n{place[3]}")
    command_line.write(page, text)


# --- Pictures ---

PANELS = plot.PANEL | {"figsize": (11, 4.6)}  # side by side
TWO_ROWS = plot.PANEL | {"figsize": (8, 8)}
LEGEND_BELOW = {"loc": "outside lower center", "ncols": 4, "fontsize": 9, "frameon": False}


def label_of(setting):
    """What a picture's legend calls a setting."""
    if setting in COLOURS:
        return LABELS.get(setting, setting)
    return f"channel units, {setting}"


def number_of_seeds(by_seed):
    return f"{len(by_seed)} seeds" if len(by_seed) > 1 else "1 seed"


def draw_band(axes, by_seed, tag, colour, label, smoothing=0.6):
    """Draws the runs faintly, and the mean and one standard deviation of the smoothed runs."""
    curves = [record["curves"][tag] for record in by_seed.values()]
    steps = curves[0][0]
    for _, values in curves:
        axes.plot(steps, values, color=colour, alpha=0.12, linewidth=0.7)
    if len(steps) <= SMOOTHED_ABOVE:
        smoothing = 0  # over few points, the smoothed curve would lag behind
    smoothed = np.array([plot.smooth(values, smoothing) for _, values in curves])
    mean = smoothed.mean(axis=0)
    axes.plot(steps, mean, color=colour, linewidth=1.8, label=label)
    if len(curves) > 1:
        deviation = smoothed.std(axis=0, ddof=1)
        axes.fill_between(steps, mean - deviation, mean + deviation, color=colour, alpha=0.2, lw=0)


def draw_curves(groups, path, tag, label, corner):
    """Draws one scalar over training, for each setting.

    Args:
      groups: setting -> seed -> record.
      path: the file to write.
      tag, label, corner: as in plot.PICTURES.

    Returns:
      The path.
    """
    picture = figure.Figure(**plot.PANEL)
    axes = picture.subplots()
    for setting, by_seed in groups.items():
        name = f"{label_of(setting)} ({number_of_seeds(by_seed)})"
        draw_band(axes, by_seed, tag.removeprefix("summary/"), COLOURS[setting], name)
    axes.set(xlabel="step", ylabel=label)
    axes.legend(loc=corner, fontsize=9)
    return plot.save(picture, axes, path)


def draw_few_images(records, path):
    """Draws accuracy, and the gain over none, against the number of training images."""
    # Runs on all images have other seeds than those on few.
    full = records.get("full", {})
    groups = {key: runs for key, runs in (full | records.get("few_images", {})).items() if runs}
    # Those of the best lever on few images have other seeds, too: only their gains compare.
    others = dict(records.get("best_lever", {}))
    names_of_others = sorted({name for _, name in others} - {*COLOURS})
    others |= full
    picture = figure.Figure(**TWO_ROWS)
    above, below = picture.subplots(2, 1, sharex=True, height_ratios=[2, 3])

    def draw_points(axes, values_of, position, **style):
        """Points with intervals, at each number of images; `position` keeps them apart."""
        images = np.array(list(values_of))
        axes.errorbar(
            images * 1.04 ** (position - 2),
            [100 * np.mean(values) if values else np.nan for values in values_of.values()],
            [100 * half_width(values) for values in values_of.values()],
            fmt="o", capsize=3, **style,
        )  # fmt: skip

    def gains_of(groups, setting):
        return {
            n: list(gains(runs, groups.get((n, "none"), {})).values())
            for (n, name), runs in sorted(groups.items())
            if name == setting
        }

    settings = [s for s in COLOURS if s != "dense" and any(key[1] == s for key in groups)]
    for position, setting in enumerate(settings):
        accuracies = {
            n: [accuracy(record, "mean") for record in runs.values()]
            for (n, name), runs in sorted(groups.items())
            if name == setting
        }
        style = {"color": COLOURS[setting]}
        draw_points(above, accuracies, position, label=label_of(setting), **style)
        if setting != "none":
            draw_points(below, gains_of(groups, setting), position, **style)
    for setting in names_of_others:
        style = {"color": COLOUR_OF_OTHERS, "label": label_of(setting)}
        draw_points(below, gains_of(others, setting), len(settings), **style)
    below.axhline(0, color=COLOURS["none"], linewidth=1)
    ticks = sorted({n for n, _ in {**groups, **others}})
    above.set(xscale="log", ylabel="test accuracy, mean of the tasks, %")
    below.set_xticks(ticks, [f"{n:,}" for n in ticks])
    below.minorticks_off()
    below.set(xlabel="training images", ylabel="gain over no units, points")
    handles = above.get_legend_handles_labels()[0] + below.get_legend_handles_labels()[0]
    picture.legend(handles=handles, **LEGEND_BELOW | {"ncols": len(handles)})
    return plot.save(picture, (above, below), path)


def draw_weights(by_seed, path, setting, num_images):
    """Draws the units' mean weights over training, a panel for each unit."""
    tags = [tag for tag in next(iter(by_seed.values()))["curves"] if "_from_" in tag]
    scopes = sorted({tag.split("/")[0] for tag in tags})
    pairs = sorted({tag.split("/")[1] for tag in tags})
    picture = figure.Figure(**PANELS)
    axes = picture.subplots(1, len(scopes), sharey=True)
    for panel, scope in zip(axes, scopes):
        for pair, colour in zip(pairs, matplotlib.colormaps["tab10"].colors):
            draw_band(panel, by_seed, f"{scope}/{pair}", colour, pair.replace("_", " "), 0)
        panel.set(title=f"{scope}, after {LAYERS[scope]}", xlabel="step")
    axes[0].set_ylabel("mean weight")
    title = f"{label_of(setting).capitalize()}, {num_images:,} images, {number_of_seeds(by_seed)}"
    picture.suptitle(title)
    picture.legend(*axes[0].get_legend_handles_labels(), **LEGEND_BELOW)
    return plot.save(picture, axes, path)


def draw_where(where, full, path):
    """Draws the gain over none of units at one place, and of shared layers, by place."""
    picture = figure.Figure(**plot.PANEL)
    axes = picture.subplots()
    runs = {setting: by_seed for (_, setting), by_seed in (full | where).items()}
    ticks = [*LAYERS.values(), "all places"]
    rows = [
        (LABELS[kind], COLOURS[kind], [*(f"{kind} at {p}" for p in LAYERS.values()), kind])
        for kind in ("channel", "layer")
    ]
    shared = [f"shared until {place}" for place in list(LAYERS.values())[:-1]]
    rows.append(("layers shared until here", COLOURS["hard sharing"], [*shared, "hard sharing"]))
    seeds = {seed for by_seed in where.values() for seed in by_seed}
    for offset, (label, colour, settings) in enumerate(rows):
        values = [
            [v for s, v in gains(runs.get(name, {}), runs["none"]).items() if s in seeds]
            for name in settings
        ]
        axes.errorbar(
            np.arange(len(settings)) + 0.12 * (offset - 1),
            [100 * np.mean(v) if v else np.nan for v in values],
            [100 * half_width(v) for v in values],
            fmt="o", capsize=3, color=colour, label=label,
        )  # fmt: skip
    axes.axhline(0, color=COLOURS["none"], linewidth=1)
    axes.set_xticks(range(len(ticks)), ticks)
    axes.set(
        xlim=(-0.4, len(ticks) - 0.6),
        xlabel="place of the unit, or depth of sharing",
        ylabel="gain over no units, points",
    )
    picture.legend(**LEGEND_BELOW)
    return plot.save(picture, axes, path)


def draw_starved(by_setting, path):
    """Draws the recall without units, and each setting's gain in it, by the article's rank."""
    picture = figure.Figure(**TWO_ROWS)
    above, below = picture.subplots(2, 1, sharex=True, height_ratios=[2, 3])
    none = by_setting["none"]
    settings = [setting for setting in by_setting if setting != "none"]

    def draw_points(axes, values, offset, colour, label):
        axes.errorbar(
            np.arange(10) + offset, 100 * values.mean(axis=0), 100 * half_widths(values),
            fmt="o", markersize=4, capsize=2, color=colour, label=label,
        )  # fmt: skip

    def half_widths(values):
        return np.array([half_width(column) for column in values.T])

    recalls = np.array([by_rank(record, "recall_last") for record in none.values()])
    draw_points(above, recalls, 0, COLOURS["none"], LABELS["none"])
    for position, setting in enumerate(settings):
        gained = gains_by_rank(by_setting[setting], none, "recall_last")
        if len(gained):
            offset = 0.14 * (position - (len(settings) - 1) / 2)
            colour = COLOURS.get(setting, COLOUR_OF_OTHERS)
            draw_points(below, gained, offset, colour, label_of(setting))
    below.axhline(0, color=COLOURS["none"], linewidth=1)
    images = sorted(next(iter(none.values()))["train_images"]["article"].values(), reverse=True)
    below.set_xticks(range(10), [f"{count:,}" for count in images])
    above.set(ylabel="recall, %", ylim=(0, 102))  # intervals of few seeds may end outside
    below.set(xlabel="training images of the article", ylabel="gain in recall, points")
    handles = above.get_legend_handles_labels()[0] + below.get_legend_handles_labels()[0]
    picture.legend(handles=handles, **LEGEND_BELOW | {"ncols": 3})
    return plot.save(picture, (above, below), path)


def spread_of_weights(by_seed):
    """Adds up the seeds' histograms of channel weights. Returns: tasks, scope -> [T, T, bins]."""
    first = next(iter(by_seed.values()))
    tasks = [task for task in first["accuracy_test_last"] if task != "mean"]
    return tasks, {
        scope: sum(np.array(record["weights"][scope]) for record in by_seed.values())
        for scope in first["weights"]
    }


def draw_spread_of_weights(by_seed, path):
    """Draws how the weights of the channels are spread at the end, all seeds together."""
    tasks, counts = spread_of_weights(by_seed)
    picture = figure.Figure(**PANELS)
    axes = picture.subplots(1, len(counts), sharex=True)
    for panel, (scope, of_unit) in zip(axes, counts.items()):
        for i, to in enumerate(tasks):
            for j, source in enumerate(tasks):
                shares = 100 * of_unit[i, j] / of_unit[i, j].sum()
                panel.stairs(shares, WEIGHT_BINS, label=f"{to} from {source}", linewidth=1.5)
        panel.set(title=f"{scope}, after {LAYERS[scope]}", xlabel="weight at the end")
    axes[0].set_ylabel("share of the channels, %")
    picture.suptitle(f"Channel units, {number_of_seeds(by_seed)} together")
    picture.legend(*axes[0].get_legend_handles_labels(), **LEGEND_BELOW)
    return plot.save(picture, axes, path)


@matrices.plain_style()
def draw(records, out):
    """Draws every picture for which there are records.

    Args:
      records: as `read_records` returns them.
      out: the folder for the pictures.

    Returns:
      The paths of the pictures.
    """
    out = pathlib.Path(out)
    records = {study: without_diverged(groups) for study, groups in records.items()}
    full, pictures = records.get("full", {}), []
    for study, ending in (("full", ".png"), ("full_30_epochs", "_30_epochs.png")):
        runs = {setting: by_seed for (_, setting), by_seed in records.get(study, {}).items()}
        shown = {s: runs[s] for s in ("none", "channel", "dense") if runs.get(s)}
        if len(shown) > 1:
            pictures += [
                draw_curves(shown, out / file.replace(".png", ending), tag, label, corner)
                for file, tag, label, corner, _ in plot.PICTURES
            ]
    if full.get((ALL_IMAGES, "none")) and full.get((ALL_IMAGES, "channel")):
        units = full | dense_on_few_images(records)
        for setting in ("channel", "layer", "dense"):
            num_images = max((n for n, s in units if s == setting and units[n, s]), default=None)
            if num_images:
                path = out / f"weights_of_{setting}_units.png"
                runs = units[num_images, setting]
                pictures.append(draw_weights(runs, path, setting, num_images))
        channel = full[ALL_IMAGES, "channel"]
        pictures.append(draw_spread_of_weights(channel, out / "weights_at_the_end.png"))
    where = records.get("where")
    if where and any(setting == "none" for _, setting in full):
        pictures.append(draw_where(where, full, out / "where.png"))
    starved = records.get("starved", {})
    starved = {key[1]: starved[key] for key in sorted_keys(starved)}
    if starved.get("none"):
        pictures.append(draw_starved(starved, out / "starved.png"))
    if len({n for study in ("few_images", "full") for n, _ in records.get(study, {})}) > 1:
        pictures.append(draw_few_images(records, out / "few_images.png"))
    return pictures
