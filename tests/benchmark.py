"""How fast is this program? Measured against PyTorch, Keras and the plain slim graph.

    pip install -r tests/benchmark-requirements.txt
    python tests/benchmark.py --record=tests/speed_amd.json    # 25 minutes on a quiet machine
    python tests/benchmark.py --against=FOLDER    # this program against another checkout
    python tests/benchmark.py --bfloat16          # its two precisions, and PyTorch's autocast
    python tests/benchmark.py --draw              # writes the records into the pages

Each measurement is a new process (contenders.py), alone on the machine. In a round, each
contender is measured once, in an order drawn anew; ratios are of the same round. A library
with several modes takes part with the one that was fastest in a first round. A library that
is not installed is left out.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import math
import pathlib
import random
import re
import statistics
import subprocess
import sys

import numpy as np
import scipy.stats
import tqdm

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # PYTHONSAFEPATH=1 leaves the second out

from contenders import BATCH_SIZE, MODES  # noqa: E402

from harness import files  # noqa: E402

TESTS = ROOT / "tests"
PAGES = (ROOT / "README.md", TESTS / "README.md")
UNITS = ("none", "channel", "layer", "nddr", "dense")
COMPARED = ("none", "channel")  # with all peers
TITLES = {"slim": "plain slim", "torch": "PyTorch", "keras": "Keras 3"}
IN_BFLOAT16 = {"ours": "float32", "rewritten": "the rewriter", "autocast": "PyTorch's autocast"}
TOWERS = (1, 4, 8)  # beside 2
OTHERS = ("evaluation", "program")  # that this program alone is measured for
FEW = 3  # processes of what is slow, or compared with nothing


# --- Measuring ---


class Machine:
    """Measures contenders, each in a new process. Args: steps of each; how many there will be."""

    def __init__(self, steps, count):
        self.steps, self.cores = steps, 0
        self.description = self.ask("machine")
        self.cores = self.description["threads"]
        form = "{percentage:.0f}%|{bar}| {remaining} left {postfix}"
        self.bar = tqdm.tqdm(total=count, bar_format=form, dynamic_ncols=True)

    def ask(self, *contender, program=ROOT, steps=None):
        """Runs a contender. Returns: what it prints."""
        command = [sys.executable, str(TESTS / "contenders.py"), *map(str, contender)]
        command += [f"--cores={self.cores}", f"--steps={steps or self.steps}"]
        done = subprocess.run(
            [*command, f"--program={program}"], capture_output=True, text=True, errors="replace"
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it printed no error"])[-1]
            sys.exit(f"{' '.join(map(str, contender))} cannot be measured: {last}")
        return json.loads(done.stdout)

    def measure(self, *contender, **options):
        """As `ask`, for the bar and rounded. Returns: a number or a list of numbers."""
        self.bar.set_postfix_str(" ".join(map(str, contender)))
        answer = self.ask(*contender, **options)
        self.bar.update()
        return [round(v, 3) for v in answer] if isinstance(answer, list) else round(answer, 1)

    def in_rounds(self, rounds, contenders):
        """Measures each contender once in a round, in an order drawn anew.

        Args: rounds; key -> (contender, its options of `measure`).
        Returns: key -> what was measured, a list in the order of the rounds.
        """
        measured = {key: [] for key in contenders}
        for _ in range(rounds):
            for key in random.sample(list(contenders), len(contenders)):
                contender, options = contenders[key]
                measured[key].append(self.measure(*contender, **options))
        return measured


def measure_peers(units, rounds, steps):
    """This program and its peers. Returns: the record."""
    peers = ["slim", *(name for name in ("torch", "keras") if importlib.util.find_spec(name))]
    compared = [unit for unit in COMPARED if unit in units]
    few = min(rounds, FEW)
    trials = {
        (peer, unit, mode): ([peer, unit, mode], {"steps": max(1, steps // 2)})
        for unit in compared for peer in peers for mode in MODES[peer]
    }  # fmt: skip
    pairs = [("ours", unit) for unit in units if unit != "dense"]
    pairs += [(peer, unit) for unit in compared for peer in peers]
    rare = {f"{name} {unit}": ([name, unit], {}) for unit in compared for name in OTHERS}
    for n in TOWERS:
        fewer = {"steps": max(1, steps * 2 // max(n, 2))}
        rare |= {f"ours {unit} {n}": (["ours", unit, n], fewer) for unit in compared}
    if "dense" in units:
        fewer = {"steps": max(1, steps // 8)}  # each takes as long as 15 others
        rare["ours dense"] = (["ours", "dense"], fewer)
        rare["slim dense"] = (["slim", "dense", MODES["slim"][0]], fewer)

    commit = files.commit()  # now: the user may commit while this runs
    machine = Machine(steps, len(trials) + rounds * len(pairs) + few * len(rare))
    first = machine.in_rounds(1, trials)
    modes = {f"{peer} {unit}": {} for peer, unit, _ in trials}
    for (peer, unit, mode), (speed,) in first.items():
        modes[f"{peer} {unit}"][mode] = speed
    best = {name: [max(speeds, key=speeds.get)] for name, speeds in modes.items()}
    contenders = {f"{n} {unit}": ([n, unit, *best.get(f"{n} {unit}", [])], {}) for n, unit in pairs}
    measured = machine.in_rounds(rounds, contenders) | machine.in_rounds(few, rare)
    machine.bar.close()
    libraries = "tensorflow", "tf-slim", "numpy", *(set(peers) - {"slim"})
    return {
        "commit": commit,
        "machine": machine.description,
        "versions": versions_of(sorted(libraries)),
        "steps": steps,
        "modes": modes,
        "measured": measured,
    }


def measure_bfloat16(units, rounds, steps):
    """This program in bfloat16, and what else there is. Returns: the record."""
    commit = files.commit()
    has_torch = importlib.util.find_spec("torch")
    modes = {unit: {} for unit in units if unit in COMPARED and has_torch}
    trials = {
        (unit, mode): (["autocast", unit, mode], {"steps": max(1, steps // 2)})
        for unit in modes for mode in MODES["torch"]
    }  # fmt: skip
    names = ("bfloat16", "ours", "rewritten")
    contenders = {
        f"{name} {unit}": ([name, unit], {"steps": max(1, steps // 8) if unit == "dense" else steps})
        for unit in units for name in names
    }  # fmt: skip
    machine = Machine(steps, len(trials) + rounds * (len(contenders) + len(modes)))
    machine.description = machine.ask("machine", "bfloat16")
    for (unit, mode), (speed,) in machine.in_rounds(1, trials).items():
        modes[unit][mode] = speed
    for unit, speeds in modes.items():
        contenders[f"autocast {unit}"] = (["autocast", unit, max(speeds, key=speeds.get)], {})
    measured = machine.in_rounds(rounds, contenders)
    machine.bar.close()
    libraries = ("tensorflow", *(["torch"] if has_torch else []))
    return {
        "commit": commit,
        "machine": machine.description,
        "versions": versions_of(libraries),
        "steps": steps,
        "modes": modes,
        "measured": measured,
    }


def measure_against(folder, units, rounds, steps):
    """This checkout and that of another folder. Returns: the record."""
    commit, other = files.commit(), files.commit(folder)
    machine = Machine(steps, 2 * rounds * len(units))
    measured = {}
    for unit in units:
        sides = {"this": ROOT, "other": folder}
        contenders = {side: (["ours", unit], {"program": path}) for side, path in sides.items()}
        measured[unit] = machine.in_rounds(rounds, contenders)
    machine.bar.close()
    return {
        "commit": commit,
        "against": other,
        "machine": machine.description,
        "versions": versions_of(["tensorflow"]),
        "steps": steps,
        "measured": measured,
    }


def versions_of(libraries):
    """The versions of these libraries, name -> version."""
    return {name: version_of(name) for name in libraries}


def version_of(library):
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:  # TensorFlow's has several names
        return importlib.metadata.version(importlib.metadata.packages_distributions()[library][0])


# --- What a record says ---


def ratio(values, others):
    """The geometric mean of their ratios, pair by pair, and Student's 95 % interval.

    Returns: mean, lower limit, upper limit.
    """
    logs = np.log(np.array(values) / np.array(others))
    half = scipy.stats.t.ppf(0.975, len(logs) - 1) * scipy.stats.sem(logs)
    return tuple(math.exp(logs.mean() + d) for d in (0, -half, half))


def spread(values, digits=0):
    """The median, the lowest and the highest as text; "–" without values."""
    if not values:
        return "–"
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f} – {high:,.{digits}f})"


def table(*rows):
    """Rows of cells as Markdown; the first has the titles."""
    first, *others = [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join([first, "|---" * len(rows[0]) + "|", *others])


def report(record):
    """A record as Markdown."""
    machine = record["machine"]
    vectors = [machine["vectors"], machine.get("bfloat16")]
    vectors = f" with {' and '.join(filter(None, vectors))}" if any(vectors) else ""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    about = (
        f"{machine['processor']}{vectors}, {machine['threads']} cores, which every contender was"
        f" given; {versions}; commit {short(record['commit'])}. Each process trained"
        f" {record['steps']} batches of {BATCH_SIZE} images, after a fifth of them to warm up; fewer"
        " of what is slower."
    )
    tables = tables_against if "against" in record else tables_of_peers
    tables = tables_of_bfloat16 if "bfloat16" in machine else tables
    return "\n\n".join([about, *tables(record)])


def short(commit):
    """The first digits of a commit, and whether it was changed."""
    head, *dirty = commit.split("-")
    return "-".join([head[:7], *dirty])


def tables_against(record):
    rows = [("setting", "this, images a second", "other", "ratio", "pairs")]
    for unit, measured in record["measured"].items():
        this, other = measured["this"], measured["other"]
        middle, low, high = ratio(this, other)
        interval = f"{middle:.3f} ({low:.3f} – {high:.3f})"
        rows.append((unit, spread(this), spread(other), interval, len(this)))
    same = record["commit"] == record["against"] and "dirty" not in record["commit"]
    other = "another clone of the same commit" if same else f"commit {short(record['against'])}"
    return [
        f"The other checkout is {other}. Speeds: the median (lowest – highest) of all processes."
        " Ratios: the geometric mean over pairs of processes (95 % interval).",
        table(*rows),
    ]


def tables_of_bfloat16(record):
    measured = record["measured"]
    rows = [("setting", "bfloat16, images a second")]
    rows[0] += tuple(f"times as fast as {title}" for title in IN_BFLOAT16.values())
    for unit in (unit for unit in UNITS if f"bfloat16 {unit}" in measured):
        speeds, row = measured[f"bfloat16 {unit}"], [unit]
        row.append(spread(speeds))
        for name in IN_BFLOAT16:
            others = measured.get(f"{name} {unit}")
            row.append("{:.2f} ({:.2f} – {:.2f})".format(*ratio(speeds, others)) if others else "–")
        rows.append(row)
    best = ", ".join(f"{max(m, key=m.get)} ({unit})" for unit, m in record["modes"].items())
    of_torch = f" PyTorch's best mode: {best}." if best else ""
    return [
        f"Speeds: the median (lowest – highest) of {len(speeds)} processes. Ratios: the geometric"
        f" mean over pairs of processes (95 % interval).{of_torch}",
        table(*rows),
    ]


def tables_of_peers(record):
    measured, modes = record["measured"], record["modes"]
    units = [unit for unit in UNITS if f"ours {unit}" in measured]
    compared = [unit for unit in units if unit in COMPARED]
    peers = [peer for peer in TITLES if any(name.split()[0] == peer for name in modes)]
    rounds = max(len(values) for values in measured.values())
    few = min(len(values) for values in measured.values())
    of_dense = f"; of {few} for dense units" if "dense" in units else ""

    speeds = [("setting", "this program", *(TITLES[peer] for peer in peers))]
    speeds += [
        (unit, *(spread(measured.get(f"{name} {unit}")) for name in ("ours", *peers)))
        for unit in units
    ]

    def interval(unit, other):
        if other not in measured or (other == "ours none" and unit in ("none", "dense")):
            return "–"  # dense units were not measured in the rounds of the others
        return "{:.2f} ({:.2f} – {:.2f})".format(*ratio(measured[f"ours {unit}"], measured[other]))

    ratios = [("setting", *(f"against {TITLES[peer]}" for peer in peers), "against none")]
    ratios += [
        (unit, *(interval(unit, f"{peer} {unit}") for peer in peers), interval(unit, "ours none"))
        for unit in units
    ]

    trials = [("library", "mode", *compared)]
    trials += [
        (TITLES[peer], mode, *(f"{modes[f'{peer} {unit}'][mode]:,.0f}" for unit in compared))
        for peer in peers
        for mode in MODES[peer]
    ]

    others = [("", *compared)]
    for n in sorted((*TOWERS, 2)):
        names = [f"ours {unit}" if n == 2 else f"ours {unit} {n}" for unit in compared]
        times = [[1000 * BATCH_SIZE / speed for speed in measured[name]] for name in names]
        others.append((f"towers: {n}, ms a step", *map(spread, times)))
    evaluated = [measured[f"evaluation {unit}"] for unit in compared]
    others.append(("evaluation, images a second", *map(spread, evaluated)))
    runs = [zip(*measured[f"program {unit}"]) for unit in compared]
    seconds, memory = zip(*runs) if runs else ((), ())
    others.append(("train.py to its first step, s", *(spread(v, 1) for v in seconds)))
    others.append(("train.py's peak memory, GB", *(spread(v, 2) for v in memory)))

    return [
        f"Training, images a second: the median (lowest – highest) of {rounds} processes"
        f"{of_dense}. PyTorch, Keras 3 and plain slim in their best mode, see below.",
        table(*speeds),
        f"How many times as fast as these: the geometric mean over {rounds} pairs, one of each"
        f" round (95 % interval){of_dense}.",
        table(*ratios),
        "The modes of the others, images a second, one process each in a first round of half as"
        " many steps, which chose the best.",
        table(*trials),
        f"This program: the median (lowest – highest) of {few} processes, of {rounds} for 2"
        " towers. train.py trains and evaluates on Fashion-MNIST.",
        table(*others),
    ]


# --- Pages ---


def read_records(folder=TESTS):
    """The records that pages show. Returns: name -> record."""
    paths = [*sorted(folder.glob("speed_*.json"))]
    paths += [folder / "same_commit.json", folder / "bfloat16.json"]
    return {path.stem: json.loads(path.read_text()) for path in paths if path.exists()}


def drawn(text, records):
    """A page with what the records say, in tables and before marks.

    A mark is <!-- speed; RECORD; SETTING against PEER -->, behind the ratio that it names.
    Raises: SystemExit, a mark names what no record has.
    """

    def figure(match):
        _, name, unit, title = match.groups()
        peer = {title: peer for peer, title in (TITLES | IN_BFLOAT16).items()}.get(title)
        try:
            measured = records[name]["measured"]
            own = "bfloat16" if peer in IN_BFLOAT16 else "ours"
            middle, _, _ = ratio(measured[f"{own} {unit}"], measured[f"{peer} {unit}"])
        except KeyError:
            sys.exit(f"{match[0]}: no record in tests/ has this ratio. Change the mark.")
        return f"{middle:.2f}{match[1]}"

    text = re.sub(r"[\d.]*(<!-- speed; (\S+); (\S+) against (.+?) -->)", figure, text)

    def tables(match):
        chosen = [record for name, record in records.items() if name.startswith(match[2])]
        return "\n\n".join([match[1], *map(report, chosen), match[3]])

    within = "(?:(?!<!-- table ).)*?"  # without another table's mark
    marks = rf"(<!-- table (speed|same_commit|bfloat16) -->){within}(<!-- end of table -->)"
    return re.sub(marks, tables, text, flags=re.S)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=8, help="measurements of each contender")
    parser.add_argument("--steps", type=int, default=100, help="that each process trains")
    parser.add_argument("--units", help=f"settings, out of {','.join(UNITS)}")
    parser.add_argument("--against", help="folder of another checkout, at 1c155a2 or later")
    parser.add_argument("--bfloat16", action="store_true", help="measure the two precisions")
    parser.add_argument("--record", type=pathlib.Path, help="file for every figure, as JSON")
    parser.add_argument("--show", type=pathlib.Path, help="print a record's report instead")
    parser.add_argument("--draw", action="store_true", help="write all records into the pages")
    options = parser.parse_args()
    if options.draw:
        for page in PAGES:
            files.write(page, drawn(page.read_text(encoding="utf-8"), read_records()))
        return
    if options.show:
        record = files.read_json(options.show) if options.show.is_file() else {}
        if "measured" not in record:
            parser.error(f"--show={options.show}: no such file, or no record of this program")
        return print(report(record))

    units = options.units.split(",") if options.units else COMPARED if options.against else UNITS
    if not set(units) <= set(UNITS):
        parser.error(f"--units={options.units}: choose out of {','.join(UNITS)}")
    if options.rounds < 2 or options.steps < 1:
        parser.error("an interval needs --rounds=2, and a speed --steps=1, at least")
    if options.bfloat16 and options.against is not None:
        parser.error("--bfloat16 --against: leave out one of the two")
    if options.against is not None and not (
        options.against and pathlib.Path(options.against, "harness", "machine.py").exists()
    ):
        parser.error(f"--against={options.against}: not a checkout at 1c155a2 or later")
    if options.record and not options.record.resolve().parent.is_dir():
        parser.error(f"--record={options.record}: its folder does not exist")
    if options.record and options.record.is_dir():
        parser.error(f"--record={options.record}: is a folder; name a file")
    if options.against:
        folder = pathlib.Path(options.against).resolve()
        record = measure_against(folder, units, options.rounds, options.steps)
    elif options.bfloat16:
        record = measure_bfloat16(units, options.rounds, options.steps)
    else:
        record = measure_peers(units, options.rounds, options.steps)
    failed = None
    try:
        if options.record:
            files.write_json(options.record, record)
    except OSError as error:  # a full disk must not cost the figures
        failed = f"benchmark.py: {options.record}: {error.strerror}. The figures are above."
    print("\n" + report(record))
    if failed:
        sys.exit(failed)


if __name__ == "__main__":
    main()
