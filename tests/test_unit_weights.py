"""Of a unit's weights: how far each pair's block moved from its start, and how they are spread."""

import numpy as np
import pytest

from harness import unit_weights
from harness.unit_weights import WEIGHT_BINS

START = np.array([[0.9, 0.1], [0.1, 0.9]], np.float32)


@pytest.mark.parametrize("shape", [[2, 2], [2, 2, 5], [2, 2, 5, 3]])  # layer, channel, one's own
def test_the_distance_of_a_pair_is_the_size_of_its_change(shape):
    start = np.broadcast_to(START.reshape(2, 2, *[1] * (len(shape) - 2)), shape)
    values = start.copy()
    values[0, 1] -= 0.5
    expected = [[0, 0.5], [0, 0]]
    np.testing.assert_allclose(unit_weights.distance(values, start, 2), expected, atol=1e-5)


@pytest.mark.parametrize("size", [3, 4, 64])
def test_the_squares_of_a_block_are_divided_by_the_length_of_its_side(size, monkeypatch):
    monkeypatch.setattr(unit_weights, "AT_ONCE", 5 * 2 * size)  # five rows at a time
    start = np.kron(START, np.eye(size, dtype=np.float32))
    values = start.copy()
    values[0, 2] += 3.0  # one weight of the block to tower 1 from tower 1
    expected = [[np.sqrt(9 / size), 0], [0, 0]]
    np.testing.assert_allclose(unit_weights.distance(values, start, 2), expected, atol=1e-5)
    values = start.copy()
    values[size:, :size] += 0.5 * np.eye(size)  # all of the identity to tower 2 from tower 1
    expected = [[0, 0], [0.5, 0]]
    np.testing.assert_allclose(unit_weights.distance(values, start, 2), expected, atol=1e-5)


@pytest.mark.parametrize("towers, size", [(2, 32), (2, 64), (2, 1024), (3, 100)])
def test_distances_have_the_bits_of_those_in_the_records(towers, size, monkeypatch):
    """Which were computed with one einsum over a copy of the whole variable."""
    monkeypatch.setattr(unit_weights, "AT_ONCE", 100_000)
    start = np.kron(np.eye(towers, dtype=np.float32), np.eye(size, dtype=np.float32))
    noise = np.random.RandomState(0).standard_normal(start.shape).astype(np.float32)
    values = start + np.float32(0.02) * noise
    blocks = values.reshape(towers, size, towers, size).copy()
    for index in range(size):
        blocks[:, index, :, index] -= np.eye(towers, dtype=np.float32)
    squares = np.einsum("iajb,iajb->ij", blocks, blocks) / size
    expected = np.sqrt(squares).round(6).tolist()
    assert unit_weights.distance(values, start, towers) == expected


@pytest.mark.parametrize("shape", [[], [4], [2, 5], [3, 3], [5, 2, 2]])
def test_the_distance_of_a_variable_without_pairs_is_one_number(shape):
    start = np.full(shape, 0.3, np.float32)
    assert unit_weights.distance(start - 0.25, start, 2) == pytest.approx(0.25)


def test_a_histogram_of_channels_has_a_list_for_each_pair():
    values = np.zeros([2, 2, 5], np.float32)
    values[0, 1] = [-7, 0.501, 0.502, 1.98, 9]  # the outermost bins count all beyond them
    counts = unit_weights.histogram(values)
    assert np.shape(counts) == (2, 2, 60) and np.sum(counts) == values.size
    low, middle, high = counts[0][1][0], counts[0][1][30], counts[0][1][-1]
    assert (low, middle, high) == (1, 2, 2) and WEIGHT_BINS[30] == 0.5
    assert counts[0][0][20] == 5 and WEIGHT_BINS[20] == 0  # a bin begins with its edge


@pytest.mark.parametrize("shape", [[2, 2], [2, 5], [6, 6], [4], []])
def test_a_histogram_of_any_other_variable_is_one_list(shape, monkeypatch):
    monkeypatch.setattr(unit_weights, "AT_ONCE", 7)
    values = np.random.RandomState(0).uniform(-2, 3, shape)
    counts = unit_weights.histogram(values)
    clipped = np.clip(values, WEIGHT_BINS[0], WEIGHT_BINS[-1])
    assert counts == np.histogram(clipped, WEIGHT_BINS)[0].tolist()
