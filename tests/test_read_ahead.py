"""Batches made ahead in a thread: the same order, the same errors, and no thread that stays."""

import contextlib
import threading

import pytest
from conftest import make_split

import data
from harness.read_ahead import one_ahead


def test_batches_come_in_order_with_the_same_bits():
    split = make_split(300)
    dataset = data.with_statistics("made", split, split)
    made = list(one_ahead(lambda step: dataset.train_batch(step, 128, seed=5), range(2, 9)))
    assert len(made) == 7
    for step, (images, labels) in enumerate(made, 2):
        expected, of_images = dataset.train_batch(step, 128, seed=5)
        assert images.tobytes() == expected.tobytes()
        assert labels["group"].tolist() == of_images["group"].tolist()
    assert list(one_ahead(dataset.train_batch, [])) == []


def test_the_next_one_is_made_while_this_one_is_used_and_no_more_than_one():
    begun = [threading.Event() for _ in range(4)]

    def make(number):
        begun[number].set()
        return number, threading.current_thread()

    with contextlib.closing(one_ahead(make, range(4))) as made:
        for expected in range(3):
            number, thread = next(made)
            assert number == expected and thread is not threading.current_thread()
            assert begun[expected + 1].wait(60)
            assert not any(event.is_set() for event in begun[expected + 2 :])


def test_an_error_of_the_thread_is_raised_after_what_was_made_before_it():
    def make(number):
        if number == 2:
            raise data.DataError("images.npy: was cut off")
        return number

    made = one_ahead(make, range(9))
    assert [next(made), next(made)] == [0, 1]
    with pytest.raises(data.DataError, match="^images.npy: was cut off$"):
        next(made)


@pytest.mark.parametrize("end", ["close", "error", "exit"])
def test_no_thread_stays_however_its_caller_ends(end):
    before, may_end, ended = threading.active_count(), threading.Event(), []

    def make(number):
        if number:
            may_end.wait(60)
            ended.append(number)
        return number

    errors = {"close": GeneratorExit, "error": ZeroDivisionError, "exit": SystemExit}
    with contextlib.suppress(errors[end]), contextlib.closing(one_ahead(make, range(5))) as made:
        next(made)
        assert threading.active_count() == before + 1
        may_end.set()
        raise errors[end]
    assert threading.active_count() == before and ended == [1]
