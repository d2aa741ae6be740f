"""Tables and pictures of the study, from the records that reproduce.py makes."""

import json
import pathlib
import re

import matplotlib
import numpy as np
import plot
import scipy.stats

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

BINS = np.linspace(-1, 2, 61)  # of stitch weights
MANY = 30  # points of a curve, above which it is smoothed
LAST = 5  # evaluations whose mean is a run's accuracy, as in train.py
COLOURS = {"none": "tab:orange", "channel": "tab:blue", "layer": "tab:green"}
COLOURS |= {"hard sharing": "tab:red", "dense": "tab:purple"}
STARTS = "tab:brown"  # units that study "best" starts otherwise
# Study: settings that the others are compared with, seed by seed.
BASELINES = {"A": ["none"], "B": ["none"], "C": ["none", "channel"]}
BASELINES |= {
    "best": ["none"],
    "steady": ["none"],
    "D": ["none", "channel"],
    "E": ["none"],
    "epochs": [],
}


def read_curves(folder):
    """All scalars of a run. Returns: tag without its prefix -> [steps, values]."""
    _, curves = plot.read_run(folder)
    return {
        # 0.9213, not the 0.9212999939918518 that this float32 is as a float.
        tag.removeprefix("summary/"): [
            steps.tolist(),
            [float(str(np.float32(value))) for value in values],
        ]
        for tag, (steps, values) in curves.items()
        if "per_second" not in tag
    }


class Unusable(Exception):
    """A file is not what it should be; the message is one sentence for the user."""


def read_records(folder):
    """Returns: study -> (images, setting) -> seed -> record, in the order of the seeds.

    `images` is the number of training images; settings are named as in reproduce.py,
    without that number. Raises: Unusable.
    """
    records = {}
    for path in sorted(folder.glob("*/*.json")):
        try:
            record = json.loads(path.read_text())
            images, setting = re.fullmatch(r"(?:(\d+) )?(.*)", record["setting"]).groups()
            seed, _ = record["seed"], record["command"]
        except (ValueError, KeyError, TypeError):
            raise Unusable(f"{path}: damaged. Delete it, to make it again.") from None
        key = int(images or 60000), setting
        records.setdefault(path.parent.name, {}).setdefault(key, {})[seed] = record
    for groups in records.values():
        for key, by_seed in groups.items():
            groups[key] = dict(sorted(by_seed.items()))
    return records


# --- Tables ---


def half_width(values):
    """Half of the 95 % confidence interval of the mean, by Student's t; nan for one value."""
    if len(values) < 2:
        return float("nan")
    quantile = scipy.stats.t.ppf(0.975, len(values) - 1)
    return quantile * np.std(values, ddof=1) / np.sqrt(len(values))


def interval(values, sign=""):
    """Mean and interval of shares of 1, in percent."""
    if not len(values):
        return "–"
    mean, half = round(100 * np.mean(values), 2) + 0.0, 100 * half_width(values)  # no -0.00
    return f"{mean:{sign}.2f}" + ("" if np.isnan(half) else f" ± {half:.2f}")


def accuracy(record, task):
    """A run's accuracy_test_last; of what the article's tower says of a task, too."""
    if task in record["accuracy_test_last"]:
        return record["accuracy_test_last"][task]
    return float(np.mean(record["curves"][f"accuracy_test_{task}"][1][-LAST:]))


def paired(by_seed, others, task="mean"):
    """Differences between runs of one seed, for the seeds that both have."""
    return [
        accuracy(by_seed[seed], task) - accuracy(others[seed], task)
        for seed in by_seed
        if seed in others
    ]


def those_that_ended(groups):
    """Groups without the runs that diverged."""
    return {
        key: {seed: r for seed, r in by_seed.items() if "diverged" not in r}
        for key, by_seed in groups.items()
    }


def table(groups, baselines):
    """A study's table in Markdown: percent, mean over seeds ± 95 % interval.

    Args: groups, (images, setting) -> seed -> record; baselines, settings.
    """
    ended = those_that_ended(groups)
    first = next(iter(record for by_seed in ended.values() for record in by_seed.values()))
    tasks = list(first["accuracy_test_last"])
    by_article = [t for t in tasks if f"accuracy_test_{t}_by_article" in first["curves"]]
    held_out = " (held-out)" if first.get("flags", {}).get("holdout") else ""
    header = ["training images", "setting", "seeds", *(task + held_out for task in tasks)]
    # Of the first baseline, every task's gain.
    compared = [(name, task) for name in baselines[:1] for task in tasks]
    compared += [(name, "mean") for name in baselines[1:]]
    header += [f"{task}, against {name}" for name, task in compared]
    header += [f"{t} read off article, against {t}" for t in by_article]
    lines = [header, ["---"] * len(header)]
    order = list(COLOURS)
    for key in sorted(groups, key=lambda k: (k[0], order.index(k[1]) if k[1] in order else 99, k)):
        images, setting = key
        by_seed, lost = ended[key], len(groups[key]) - len(ended[key])
        row = [f"{images:,}", setting, f"{len(by_seed)}" + (f", {lost} diverged" if lost else "")]
        row += [interval([accuracy(r, task) for r in by_seed.values()]) for task in tasks]
        for name, task in compared:
            gains = paired(by_seed, ended.get((images, name), {}), task)
            fewer = f" ({len(gains)} seeds)" if 0 < len(gains) < len(by_seed) else ""
            row.append("" if name == setting else interval(gains, "+") + fewer)
        for task in by_article:
            gains = [
                accuracy(r, f"{task}_by_article") - accuracy(r, task) for r in by_seed.values()
            ]
            row.append(interval(gains, "+"))
        lines.append(row)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def study_tables(records):
    """Returns: study -> its table, for studies that have a run."""
    groups = {study: dict(keys) for study, keys in records.items()}
    # Five evaluations in all, so that their mean is not that of an end: it lends its towers.
    groups["C"] = {key: g for key, g in groups.get("C", {}).items() if key[1] != "alone half"}
    if "D" in groups:  # its units are compared with those of B
        images = {n for n, _ in groups["D"]}
        groups["D"] |= {
            key: by_seed for key, by_seed in groups.get("B", {}).items()
            if key[0] in images and key[1] in ("none", "channel")
        }  # fmt: skip
    return {
        study: table(groups[study], baselines)
        for study, baselines in BASELINES.items()
        if study in groups
        and any("curves" in r for g in groups[study].values() for r in g.values())
    }


def tables(records):
    """All tables as one text."""
    return "\n\n".join(f"{study}\n\n{text}" for study, text in study_tables(records).items())


def places(page, studies):
    """Where a page has two marks around each study's table. Raises: Unusable, it has not.

    Returns: study -> the match, whose groups are mark, table and mark.
    """
    text, found = page.read_text(), {}
    for study in studies:
        marks = f"<!-- table {study} -->", "<!-- end of table -->"
        found[study] = re.search(f"({marks[0]}\n)(.*?)({marks[1]})", text, re.S)
        if not found[study]:
            raise Unusable(f"{page}: no place for a table; put {' and '.join(marks)} in it.")
    return found


def write_tables(records, page):
    """Puts each study's table in its place in a page. Raises: Unusable, it has none."""
    tables, text = study_tables(records), page.read_text()
    for study, place in places(page, tables).items():
        text = text.replace(place[0], f"{place[1]}{tables[study]}\n{place[3]}")
    draft = page.with_suffix(".part")
    draft.write_text(text)
    draft.replace(page)


# --- Pictures ---


def curve(record, tag):
    steps, values = record["curves"][tag]
    return np.array(steps), np.array(values)


def band(axes, by_seed, tag, colour, label, smoothing=0.6):
    """Single runs faint and raw; their smoothed mean, and one deviation to both sides."""
    runs = [curve(record, tag) for record in by_seed.values()]
    for steps, values in runs:
        axes.plot(steps, values, color=colour, alpha=0.12, linewidth=0.7)
    steps = runs[0][0]
    smoothing *= len(steps) > MANY  # over few points, it would lag behind all the runs
    smoothed = np.array([plot.smooth(values, smoothing) for _, values in runs])
    mean = smoothed.mean(axis=0)
    axes.plot(steps, mean, color=colour, linewidth=1.8, label=f"{label} ({len(runs)} seeds)")
    if len(runs) > 1:
        deviation = smoothed.std(axis=0, ddof=1)
        axes.fill_between(steps, mean - deviation, mean + deviation, color=colour, alpha=0.2, lw=0)
    return np.concatenate([values for _, values in runs])


def finished(figure, axes, path):
    for one in np.ravel(axes):
        one.grid(alpha=0.3)
        one.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
    return path


def draw_curves(groups, path, tag, label, corner, beyond):
    """With and without units over training."""
    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=120)
    seen = [
        band(axes, by_seed, tag, *(
            (COLOURS["none"], "without") if setting == "none"
            else (COLOURS["channel"], f"with units: {setting}")
        ))
        for setting, by_seed in groups.items()
    ]  # fmt: skip
    # The first evaluations lie far off and would flatten all the rest.
    low, high = (np.percentile(np.concatenate(seen), q) for q in (beyond[0], 100 - beyond[1]))
    margin = 0.05 * (high - low) or 0.01
    axes.set(xlabel="step", ylabel=label, ylim=(low - margin, high + margin))
    axes.legend(loc=corner, fontsize=9)
    return finished(figure, axes, path)


def draw_few(records, path):
    """Accuracy, and the paired gain over none, against the number of training images."""
    # All images are those with B's decay of batch norm; its seeds are others than B's.
    steady = records.get("steady", {})
    groups = {key: runs for key, runs in {**steady, **records.get("B", {})}.items() if runs}
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(8, 7), dpi=120, sharex=True, height_ratios=[3, 2]
    )

    def bars(axes, groups, name, values, place, **style):
        images = sorted(n for n, setting in groups if setting == name)
        points = [values(n) for n in images]
        axes.errorbar(
            np.array(images) * 1.04 ** (place - 2),  # side by side, that bars can be told apart
            [100 * np.mean(p) if p else np.nan for p in points],
            [100 * half_width(p) for p in points],
            capsize=3, **style,
        )  # fmt: skip

    def gains(groups, name):
        return lambda n: paired(groups[n, name], groups.get((n, "none"), {}))

    settings = [name for name in COLOURS if name != "dense" and any(k[1] == name for k in groups)]
    for place, name in enumerate(settings):

        def shares(n):
            return [accuracy(r, "mean") for r in groups[n, name].values()]

        style = {"color": COLOURS[name], "fmt": "o"}
        bars(above, groups, name, shares, place, label=name, **style)
        if name != "none":
            bars(below, groups, name, gains(groups, name), place, **style)
    # On seeds of its own, and so on other images: its accuracies stand for themselves.
    chosen = {key: runs for key, runs in records.get("best", {}).items() if key[0] < 60000}
    chosen |= steady
    for name in sorted({setting for _, setting in chosen} - {*COLOURS}):
        style = {"color": STARTS, "fmt": "o", "label": f"channel, {name}"}
        bars(below, chosen, name, gains(chosen, name), len(settings), **style)
        below.legend(loc="upper left", fontsize=9)
    above.set(xscale="log", ylabel="test accuracy (mean), %")
    below.axhline(0, color=COLOURS["none"], linewidth=1)
    ticks = sorted({n for n, _ in {**groups, **chosen}})
    below.set_xticks(ticks, [f"{n:,}" for n in ticks])
    below.minorticks_off()
    below.set(xlabel="training images", ylabel="gain over none, points")
    above.legend(loc="lower right", fontsize=9)
    return finished(figure, (above, below), path)


def draw_weights(by_seed, path):
    """The units' T x T mean weights over training."""
    tags = [tag for tag in next(iter(by_seed.values()))["curves"] if "_from_" in tag]
    units = sorted({tag.split("/")[0] for tag in tags})
    figure, axes = plt.subplots(1, len(units), figsize=(11, 4), dpi=120, sharey=True)
    colours = dict(zip(sorted({tag.split("/")[1] for tag in tags}), plt.cm.tab10.colors))
    for one, unit in zip(axes, units):
        for pair, colour in colours.items():
            band(one, by_seed, f"{unit}/{pair}", colour, pair.replace("_", " "), smoothing=0)
        one.set(title=unit, xlabel="step")
    axes[0].set_ylabel("mean weight")
    axes[0].legend(fontsize=8, loc="center right")
    return finished(figure, axes, path)


def draw_spread(by_seed, path):
    """How the weights of the channels are spread at the end, all seeds together."""
    tasks = [t for t in next(iter(by_seed.values()))["accuracy_test_last"] if t != "mean"]
    counts = {
        unit: sum(np.array(record["weights"][unit]) for record in by_seed.values())
        for unit in next(iter(by_seed.values()))["weights"]
    }  # [T, T, bins]
    figure, axes = plt.subplots(1, len(counts), figsize=(11, 4), dpi=120, sharex=True)
    for one, (unit, of_unit) in zip(axes, counts.items()):
        for i, to in enumerate(tasks):
            for j, source in enumerate(tasks):
                shares = 100 * of_unit[i, j] / of_unit[i, j].sum()
                one.stairs(shares, BINS, label=f"{to} from {source}", linewidth=1.5)
        one.set(title=unit, xlabel="weight")
    axes[0].set_ylabel("share of the channels, %")
    axes[0].set_ylim(0, 1.4 * axes[0].get_ylim()[1])  # the legend covers no peak
    axes[0].legend(fontsize=8)
    return finished(figure, axes, path)


def all_images(records):
    """Runs on all images, of the first study that has some without units and with.

    Returns: setting -> seed -> record; empty where there is no such study.
    """
    for study in ("A", "steady"):
        groups = {s: runs for (n, s), runs in records.get(study, {}).items() if n == 60000 and runs}
        if {"none", "channel"} <= groups.keys():
            return groups
    return {}


def draw(records, out):
    """Draws all pictures for which there are records. Returns: their paths."""
    records = {study: those_that_ended(groups) for study, groups in records.items()}
    full, pictures, out = all_images(records), [], pathlib.Path(out)
    if full:
        pair = {setting: full[setting] for setting in ("none", "channel")}
        pictures += [
            draw_curves(pair, out / file, tag.removeprefix("summary/"), *rest)
            for file, tag, *rest in plot.PICTURES
        ]
        pictures += [
            draw_weights(full[setting], out / f"weights_of_{setting}_units.png")
            for setting in ("channel", "layer")
            if setting in full
        ]
        pictures.append(draw_spread(full["channel"], out / "weights_at_the_end.png"))
    if len({n for study in ("B", "steady") for n, _ in records.get(study, {})}) > 1:
        pictures.append(draw_few(records, out / "few_examples.png"))
    return pictures
