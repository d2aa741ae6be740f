"""With what, and on which machines, records were made: the line under a table."""

from harness.names import numerics_of


def made_with(records):
    """The line under a table: with what and on which machines its runs were made, and on what
    they were evaluated."""
    versions = sorted({record["versions"]["tensorflow"] for record in records})
    numerics = sorted({str(numerics_of(record)) for record in records})
    made = f"Made with TensorFlow {' and '.join(versions)}, numerics {' and '.join(numerics)}"
    made = f"{made}, on {machines_of(records)}."
    held_out = {record.get("flags", {}).get("holdout", 0) for record in records} - {0}
    if held_out:
        made = f"Accuracy on {min(held_out):,} held-out training images. {made}"
    return f"*{made}*"


def machines_of(records):
    """The kinds of machine that records were made on, with their seeds if there are several."""
    kinds = {}
    for record in records:
        kinds.setdefault(machine_of(record), set()).add(record["seed"])
    if len(kinds) == 1:
        return next(iter(kinds))
    return " and ".join(f"{kind} (seeds {ranges_of(kinds[kind])})" for kind in sorted(kinds))


def machine_of(record):
    """The kind of machine: what decides in which order sums are added up. Older records name
    no vector instructions."""
    machine = record["machine"]
    name = machine["processor"].replace("(R)", "").replace(" Processor", "")
    vectors = f" with {machine['vectors']}" if "vectors" in machine else ""
    plain = "" if machine.get("onednn", "1") == "1" else ", without oneDNN"
    chosen = "".join(f", {name}={value}" for name, value in machine.get("variables", {}).items())
    cores = f", {machine['threads']} cores a run" if machine["threads"] > 1 else ""
    return f"{name}{vectors}{plain}{chosen}{cores}"


def ranges_of(numbers):
    """Whole numbers as text: 0 to 3, 5."""
    numbers = sorted(numbers)
    starts = [n for n in numbers if n - 1 not in numbers]
    ends = [n for n in numbers if n + 1 not in numbers]
    return ", ".join(f"{a}" if a == b else f"{a} to {b}" for a, b in zip(starts, ends))
