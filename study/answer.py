"""What a comparison of study.compare answers: a page, its pictures and gains.csv."""

import csv
import io
import shlex
import typing

import numpy as np

from harness import files
from harness.errors import Failed
from harness.names import LAST_EVALUATIONS
from study import answer_pictures, command_line, groups, markdown, watching
from study.gains import estimated, gains_of, name_of, points, tasks_of
from study.groups import SEEDS_OF_A_PAGE, SEEDS_OF_AN_INTERVAL
from study.machines import made_with, ranges_of
from study.per_image import shares

PAGE, GAINS, PICTURE, CURVES = "README.md", "gains.csv", "gains.png", "accuracy.png"
FEW_IMAGES = 2000  # fewer test images are a limit that the page names


class About(typing.NamedTuple):
    """What was run."""

    command: str
    dataset: str  # its name
    is_held_out: bool  # evaluated on held-out training images
    diverged: dict = {}  # setting -> the seeds with which it did
    settings: dict = {}  # setting -> flags of train.py, name -> value
    left_out: tuple = ()  # settings that have runs, too, but are not asked for
    seeds_left_out: tuple = ()  # seeds that have runs, too
    answered: tuple = ()  # smaller numbers of seeds with which this was answered before


def write(study, about, folder):
    """Writes the page, its pictures and gains.csv.

    Args:
      study: list of `groups.Group`, the baseline first.
      about: an `About`.
      folder: their path.

    Returns:
      The page without its pictures.

    Raises:
      Failed: no run of the baseline ended, or a record lacks its predictions.
    """
    baseline = study[0]
    if not baseline.records:
        raise Failed(f"every run of {baseline.setting} diverged. Try a lower --learning_rate.")
    for record in groups.records_of(study):
        if not record.get("correct_last"):
            raise Failed(
                f"{folder}: the run with seed {record['seed']} of {record['setting']!r} lost its"
                " predictions. Delete its record in runs/ to make it again."
            )
    gains = gains_of(study)
    answer_pictures.draw_gains(gains, folder / PICTURE)
    answer_pictures.draw_accuracies(study, folder / CURVES)
    files.write(folder / GAINS, csv_of(gains))
    title = f"# Does sharing help? {about.dataset}"
    shown = [
        f"![Gains]({PICTURE})",
        f"*[{GAINS}]({GAINS}) has all gains, in points.*",
        f"![Accuracy]({CURVES})",
        "*Lines: mean over the seeds. Bands: one standard deviation. Faint: each seed.*",
    ]
    top = [title, f"**{sentence(study, gains)}**", table(study, gains), legend(study, gains)]
    below = [what_was_run(study, about), limits(study, gains, about)]
    page = "\n\n".join(filter(None, [*top, *shown, *below])) + "\n"
    files.write(folder / PAGE, page.encode(errors="replace"))  # a path may not be valid UTF-8
    return "\n\n".join(filter(None, [*top, *below]))


# --- The sentence and the table ---


def sentence(study, gains):
    """Which settings gain or lose on which task, by how much, and how many others do not."""
    known = [gain for gain in gains if not np.isnan(gain.mean)]
    if not any(group.records for group in study[1:]):
        return "Every run of the other settings diverged, so nothing can be compared."
    if not known:
        return 'No seed has finished both "none" and another setting, so nothing can be compared.'
    largest = max(known, key=lambda gain: abs(gain.mean))
    tested = [gain for gain in known if not np.isnan(gain.p)]
    if not tested:
        count = max(gain.seeds for gain in known)
        return (
            f"With {'two seeds' if count == 2 else 'one seed'}, nobody can tell a gain from chance:"
            f" use --seeds={SEEDS_OF_A_PAGE} or more. The largest difference: {largest.text()}."
        )
    told = [gain for gain in tested if gain.is_significant]
    if not told:
        largest = max(tested, key=lambda gain: abs(gain.mean))
        return (
            "No setting differs significantly from none. The largest difference:"
            f" {largest.text()} ({markdown.p_equals(largest.p)} after correction for {len(tested)} comparisons)."
        )
    sentences = []
    for setting in dict.fromkeys(gain.setting for gain in told):
        parts = [
            f"{'gains' if gain.mean > 0 else 'loses'} {points(abs(gain.mean), gain.half_width, '')}"
            f" points on {name_of(gain.task)} ({markdown.p_equals(gain.p)})"
            for gain in told
            if gain.setting == setting
        ]
        sentences.append(f"{setting} {' and '.join(parts)}")
    others = len(tested) - len(told)
    rest = f" The {others} other differences are not significant." if others > 1 else ""
    rest = " The other difference is not significant." if others == 1 else rest
    return f"{'; '.join(sentences)}.{rest}"


def table(study, gains):
    """Accuracy of the baseline, and what the others gain, with p. In Markdown."""
    baseline, tasks = study[0], tasks_of(study)
    header, rows = ["setting", "seeds"], []
    for task in tasks:
        header += [task, "p"]
    for group in study:
        compared = {g.seeds for g in gains if g.setting == group.setting} or {len(group.records)}
        row = [group.setting, markdown.seeds(max(compared), group.diverged)]
        for task in tasks:
            if group is baseline:
                values = np.array([shares(record, task) for record in group.records.values()])
                mean, half, of_seeds, _ = estimated(values)
                row += [cell(mean, half, of_seeds, ""), ""]
                continue
            (gain,) = [g for g in gains if (g.setting, g.task) == (group.setting, task)]
            p = "" if np.isnan(gain.p) else markdown.p_text(gain.p)
            row += [cell(gain.mean, gain.half_width, gain.half_width_of_seeds, "+"), p]
        rows.append(row)
    return markdown.as_table(header, rows)


def cell(mean, half_width, of_seeds, sign):
    """For example +0.31 ± 0.44 (0.20)."""
    alone = "" if np.isnan(of_seeds) else f" ({100 * of_seeds:.2f})"
    return points(mean, half_width, sign) + alone


def legend(study, gains):
    """What the table shows, in words."""
    tested = sum(not np.isnan(gain.p) for gain in gains)
    text = (
        f"Row {study[0].setting}: accuracy in percent, of the last {LAST_EVALUATIONS} evaluations."
        f" Other rows: gain over {study[0].setting} in points, paired by seed."
    )
    if tested:
        text += (
            " ±: 95 % interval for new seeds and new images; in brackets, for new seeds and these"
            f" images. p is corrected after Holm for all {tested} comparisons, intervals are not: an"
            " interval without 0 may be due to chance."
        )
    return f"*{text}*"


def csv_of(gains):
    """The gains as CSV, in points. Returns: bytes, UTF-8 with a mark for spreadsheets."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["setting", "task", "seeds", "images", "gain", "half_width",
                     "half_width_of_seeds", "p_holm"])  # fmt: skip
    for gain in gains:
        values = [
            *(100 * v for v in (gain.mean, gain.half_width, gain.half_width_of_seeds)),
            gain.p,
        ]
        numbers = ["" if np.isnan(value) else f"{value:.6g}" for value in values]
        writer.writerow([gain.setting, gain.task, gain.seeds, gain.images, *numbers])
    return text.getvalue().encode("utf-8-sig")


# --- What was run, and what it cannot say ---


def what_was_run(study, about):
    """A section of the page: command, data, versions, machine, time."""
    found = groups.records_of(study)
    first = found[0]
    classes = first["train_images"]
    named = ", ".join(f"{task} ({len(of_task)} classes)" for task, of_task in classes.items())
    known = numbers_of_labels(first)
    trained, evaluated = (max(labels.values()) for labels in known.values())
    if "images" in first:  # of those, perhaps no task has all labels
        trained, evaluated = first["images"]["training"], first["images"]["test"]
    for (kind, labels), count in zip(known.items(), (trained, evaluated)):
        if min(labels.values()) < count:
            counts = ", ".join(f"{task} {number:,}" for task, number in labels.items())
            kind = "held-out" if kind == "test" and about.is_held_out else kind
            named += f"; known {kind} labels: {counts}"
    whole = [record["wall_seconds"] for record in found if not record["resumed_after"]]
    time = f", {watching.duration(np.median(whole))} a run" if whole else ""
    fewest, most = (of(record["global_step"] for record in found) for of in (min, max))
    steps = f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"
    settings = [
        f"{name} `{shlex.join(command_line.words_of(given))}`"
        for name, given in about.settings.items()
    ]
    lines = [
        f"`{about.command}`",
        *([f"Settings, as flags of train.py: {', '.join(settings)}."] if settings else []),
        f"{about.dataset}: {trained:,} training images, {evaluated:,} {evaluated_on(about)}; {named}.",
        f"{len(found)} runs of {steps} steps{time}.",
        made_with(found).strip("*"),
    ]
    lines += [f"Python {first['versions']['python']}, tf-slim {first['versions']['tf-slim']}, numpy {first['versions']['numpy']}."]  # fmt: skip
    return "## What was run\n\n" + "\n".join(f"- {line}" for line in lines)


def evaluated_on(about):
    return "held-out training images" if about.is_held_out else "test images"


def numbers_of_labels(record):
    """How many labels the images had: "training" and "test" -> task -> number."""
    trained = {task: sum(of_task.values()) for task, of_task in record["train_images"].items()}
    tested = {task: len(shares(record, task)) for task in record["correct_last"]}
    return {"training": trained, "test": tested}


def limits(study, gains, about):
    """A section of the page, or None: what the comparison cannot say, a line for each reason."""
    of_tasks = numbers_of_labels(groups.records_of(study)[0])["test"]
    fewest = min(of_tasks, key=of_tasks.get)
    images, of_task = of_tasks[fewest], ""
    if len(set(of_tasks.values())) > 1:
        of_task = f" have a label of {fewest}"
    seeds = min((gain.seeds for gain in gains if gain.seeds), default=0)
    lines = []
    for group in study:
        if group.diverged:
            which = ranges_of(about.diverged[group.setting])
            lines.append(f"{group.setting} diverged with seed {which}, and is compared without.")
    if 0 < seeds < SEEDS_OF_A_PAGE:
        what = "no interval" if seeds < SEEDS_OF_AN_INTERVAL else "wide intervals"
        made = "1 seed makes" if seeds == 1 else f"{seeds} seeds make"
        lines.append(f"{made} {what}. Use a larger --seeds, {SEEDS_OF_A_PAGE} at least.")
    flags = groups.records_of(study)[0]["flags"]
    if not flags["train_examples"] and not flags["label_only"] and flags["starve"] == 1:
        lines.append(
            "All seeds train on the same images: no interval covers other training images. Where"
            " these are few, --train_examples gives each seed a choice of its own."
        )
    if about.left_out:
        lines.append(
            f"This folder has runs of {', '.join(about.left_out)}, too, which the command leaves out:"
            " p is not corrected for them. Name every setting that you tried."
        )
    if about.seeds_left_out:
        which = ranges_of(about.seeds_left_out)
        lines.append(f"This folder has runs of seeds {which}, too, which the command leaves out.")
    looks = [n for n in about.answered if n >= SEEDS_OF_AN_INTERVAL]
    if looks:
        lines.append(
            f"Seeds were added after the answer of {max(looks)} was known. p does not allow for"
            " that: whoever adds seeds until a gain is significant will find one by chance."
        )
    if images < FEW_IMAGES:
        lines.append(
            f"{images:,} {evaluated_on(about)}{of_task}: one of them is {100 / images:.2f} points, so small gains"
            " cannot be seen."
        )
    rising = [group.setting for group in study if is_rising(group)]
    if rising:
        lines.append(
            f"Accuracy is still rising ({', '.join(rising)}): longer runs may have other gains. Use"
            " a larger --num_epochs."
        )
    if fewest_evaluations(study) < 2 * LAST_EVALUATIONS:
        lines.append(
            f"Fewer than {2 * LAST_EVALUATIONS} evaluations a run, so it is not known whether"
            " accuracy is still rising. Use a smaller --eval_every."
        )
    if len(study) > 2 and not about.is_held_out:
        lines.append(
            "The best of these settings was found on the images that the table shows, so its gain"
            " is likely too large. Choose with --holdout, and compare the chosen one without it."
        )
    return "## What it cannot say\n\n" + "\n".join(f"- {line}" for line in lines) if lines else None


def fewest_evaluations(study):
    """How many evaluations the run with the fewest has."""
    return min(len(record["curves"]["accuracy_test"][1]) for record in groups.records_of(study))


def is_rising(group):
    """Whether the mean accuracy of the last evaluations is above that of as many before, by more
    than its standard error over the seeds. Of few seeds or evaluations, nobody can tell."""
    values = [record["curves"]["accuracy_test"][1] for record in group.records.values()]
    count = LAST_EVALUATIONS
    if len(values) < 2 or min(map(len, values)) < 2 * count:
        return False
    rises = [np.mean(of[-count:]) - np.mean(of[-2 * count : -count]) for of in values]
    return bool(np.mean(rises) > np.std(rises, ddof=1) / np.sqrt(len(rises)))
