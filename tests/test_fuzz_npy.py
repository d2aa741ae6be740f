"""The .npy reader on damaged bytes: it refuses them, or reads what numpy reads.

The 2,000 examples are always the same. To try more:

    FUZZ_EXAMPLES=100000 python -m pytest -s tests/test_fuzz_npy.py
"""

import collections
import io
import os

import numpy as np
import pytest
from test_fuzz_idx import mutate, of_bytes

import data
from harness import npy

hypothesis = pytest.importorskip("hypothesis", reason="pip install -r tests/requirements.txt")
st = hypothesis.strategies

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", 2000))


def bytes_of(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


VALID = {
    "images": bytes_of(np.arange(3 * 8 * 8, dtype=np.uint8).reshape(3, 8, 8)),
    "labels": bytes_of(np.arange(30)),
}


def put(content, word, other):
    """Writes another word into the header."""
    return content.replace(word, other, 1)


# Words of a header, and what could stand there.
old = st.sampled_from(
    [b"|u1", b"<i8", b"False", b"(3, 8, 8)", b"(30,)", b"'shape'", b"8", b"30", b" }"]
)
new = st.sampled_from(
    [b"|O8", b"<U8", b"|S0", b">i8", b"|b1", b"<f8", b"<M8[ns]", b"|V24", b"<i9", b"True", b"None"]
    + [b"(192,)", b"()", b"(3, -8, -8)", b"(0, 8, 8)", b"(3, 2**40)", b"9" * 30, b"1.5", b"3L"]
    + [b"'descr'", b"[('a', '<i8')]", b"[" * 99, b"\\", b"\n", b"#", b"\xff", b"{1: 2}", b""]
)  # fmt: skip
changes = st.lists(
    st.tuples(
        st.sampled_from(["images", "labels"]),
        st.one_of(of_bytes, st.tuples(st.just(put), old, new)),
    ),
    min_size=1, max_size=3,
)  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # of numpy, about headers as Python 2 wrote them
def test_mutated_files_are_refused_or_read_as_numpy_reads_them(tmp_path):
    hypothesis.configuration.set_hypothesis_home_dir(tmp_path)
    outcomes = collections.Counter()

    @hypothesis.settings(
        max_examples=EXAMPLES, derandomize=True, deadline=None, database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.given(changes)
    def read(changes):
        for name, content in mutate(VALID, changes).items():
            if content == VALID[name]:
                continue
            try:
                found = npy.parse(io.BytesIO(content), name)
            except data.DataError as error:
                outcomes["refused"] += 1
                assert str(error).startswith(f"{name}: ") and str(error).isprintable()
                continue
            outcomes["read"] += 1
            expected = np.load(io.BytesIO(content), allow_pickle=False)
            assert found.dtype == expected.dtype and found.shape == expected.shape
            assert found.tobytes() == expected.tobytes()

    read()
    assert min(outcomes["refused"], outcomes["read"]) > EXAMPLES / 50
    print(f"{sum(outcomes.values()):,} files: {dict(outcomes)}")  # with -s
