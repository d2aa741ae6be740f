"""The IDX reader on damaged bytes: it refuses them, or reads exactly what they contain.

The 2,000 examples are always the same. To try more:

    FUZZ_EXAMPLES=100000 python -m pytest -s tests/test_fuzz_idx.py
"""

import collections
import gzip
import io
import os
import pathlib
import struct

import pytest

import data
from harness import disk, idx

hypothesis = pytest.importorskip("hypothesis", reason="pip install -r tests/requirements.txt")
st = hypothesis.strategies

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", 2000))
COUNT = 3
VALID = {
    "images": struct.pack(">4I", 0x803, COUNT, 28, 28) + bytes(i % 251 for i in range(COUNT * 784)),
    "labels": struct.pack(">2I", 0x801, COUNT) + bytes(range(COUNT)),
}

# --- Mutations ---


def replace(content, at, count, values):
    """Replaces some bytes by others; of either there may be none."""
    return content[:at] + values + content[at + count :]


def flip(content, at, bit):
    at %= max(len(content), 1)
    return replace(content, at, 1, bytes(byte ^ 1 << bit for byte in content[at : at + 1]))


def announce(content, field, value):
    """Overwrites one word of the IDX header."""
    return replace(content, 4 * field, 4, struct.pack(">I", value))


def reshape(content, shape, count):
    """Writes another shape into the header and keeps the first `count` values."""
    header = struct.pack(f">{len(shape)}I", *shape)
    return content[:4] + header + content[4 + len(header) :][:count]


# Half of the places are in the header and the labels, which are few bytes among many.
places = st.integers(0, 20) | st.integers(0, 20 + COUNT * 784)
counts = st.integers(0, 12) | st.sampled_from([784, 2 * 784, COUNT * 784])
words = st.integers(0, 2**32 - 1) | st.sampled_from(
    # Limits of the count, the size, the magic number, numpy's integers and the reader.
    [0, 1, 2, 4, 27, 29, 784, 0x801, 0x803, 0x804, 0xD03, 2**24 // 784, 2**24 // 784 + 1]
    + [2**16, 2**24, 2**24 + 1, 2**31 - 1, 2**31, 2**32 - 1]
)
of_bytes = st.one_of(
    st.tuples(st.just(flip), places, st.integers(0, 7)),
    st.tuples(st.just(replace), places, counts, st.binary(max_size=8)),
)
of_idx = st.one_of(
    of_bytes,
    st.tuples(st.just(announce), st.integers(0, 3), words),
    st.tuples(st.just(reshape), st.lists(words, min_size=1, max_size=3), counts),
)
which = st.sampled_from(["images", "labels"])
mutations = st.lists(st.tuples(which, of_idx), min_size=1, max_size=4)
mutations_of_gzip = st.just([]) | st.lists(st.tuples(which, of_bytes), max_size=2)


def mutate(contents, changes):
    contents = dict(contents)
    for name, (mutation, *arguments) in changes:
        contents[name] = mutation(contents[name], *arguments)
    return contents


def test_mutated_files_are_refused_or_read_exactly(tmp_path):
    hypothesis.configuration.set_hypothesis_home_dir(tmp_path)  # by default, the project's folder
    outcomes = collections.Counter()

    @hypothesis.settings(
        max_examples=EXAMPLES, derandomize=True, deadline=None, database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.given(mutations, mutations_of_gzip, st.sampled_from([0, 1]))
    def read(changes, changes_of_gzip, level):
        mutated = mutate(VALID, changes)
        packed = {name: gzip.compress(c, level, mtime=0) for name, c in mutated.items()}
        packed = mutate(packed, changes_of_gzip)
        try:
            files = {
                f"train-{name}-idx{dimensions}-ubyte.gz": disk.File(
                    pathlib.Path(name), idx.parse(io.BytesIO(packed[name]), name)
                )
                for name, dimensions in (("images", 3), ("labels", 1))
            }
            split = data.split_of(files, "train", "label")
        except data.DataError as error:
            outcomes["refused"] += 1
            assert str(error).startswith(("images: ", "labels: ")), error
            return
        outcomes["read"] += 1
        count = len(split.images)
        assert count >= 1 and not any(size % 4 for size in split.images.shape[1:3])
        assert split.main_labels().shape == (count,) and split.main_labels().max() <= 254
        content = gzip.decompress(packed["images"])
        assert split.images.tobytes() == content[4 + 4 * content[3] :]  # behind the header
        assert split.main_labels().tobytes() == gzip.decompress(packed["labels"])[8:]

    read()
    # The reader does not refuse everything, and the mutations do change something.
    assert min(outcomes["refused"], outcomes["read"]) > EXAMPLES / 50
    print(f"{sum(outcomes.values()):,} examples: {dict(outcomes)}")  # with -s
