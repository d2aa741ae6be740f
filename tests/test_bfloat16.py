"""In bfloat16, the network computes what it does in float32, as exactly as 8 bits allow."""

import csv
import json
import random

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import config_of, run_script
from test_equivalence import TASKS, batch, gradients_in_adam, start_of
from test_resume import (
    LENGTH,
    STEPS,
    UNITS,
    assert_same_outcome,
    folder,
    kill_on_the_way,
    outcome,
    run,
    steps_saved,
)
from test_train import assert_one_sentence, results_in, tensors

import data
import model
from harness import processor

BFLOAT16 = "--precision=bfloat16"
# A number that is rounded to 8 bits is wrong by 2^-9 at most, of its size.
ROUNDING = 2**-9
PRODUCTS = {None: 3, "channel": 3, "nddr": 6}  # from image to logits

needs_instructions = pytest.mark.skipif(
    not processor.bfloat16_instructions(), reason="this processor cannot multiply bfloat16"
)


def both(unit, **options):
    """The network in float32 and in bfloat16."""
    for precision in ("float32", "bfloat16"):
        yield model.build(TASKS[:2], config_of(unit, precision=precision, **options))


def feed(net, seed, training=True):
    images, labels = batch(seed, 2)
    by_task = {net.labels[name]: labels[name] for name in labels}
    return {net.x: images, net.is_training: training, **by_task}


def distance(one, other):
    """How far two arrays are apart, of the second one's size."""
    return np.linalg.norm(one - other) / np.linalg.norm(other)


@needs_instructions  # without them, sums inside a product are rounded, too
@pytest.mark.parametrize("unit", PRODUCTS)
def test_logits_losses_and_gradients_are_those_of_float32_as_exactly_as_8_bits_allow(unit):
    # Of each product, two factors and the result are rounded.
    of_logits, values = 3 * PRODUCTS[unit] * ROUNDING, []
    for net in both(unit, keep_prob=1.0, l2_scale=1e-4):
        moments = gradients_in_adam(net.graph)
        with tf.Session(graph=net.graph) as session:
            session.run(start_of(net.graph))
            evaluated = session.run(net.logits, feed(net, 0, training=False))
            fetches = [net.logits, net.losses, net.l2_loss, net.train_op]
            logits, losses, l2_loss, _ = session.run(fetches, feed(net, 0))
            values.append((evaluated, logits, losses, l2_loss, session.run(moments)))
    (evaluated, logits, losses, l2_loss, moments), in_bfloat16 = values
    for expected, found in ((evaluated, in_bfloat16[0]), (logits, in_bfloat16[1])):
        for task in expected:
            apart = distance(found[task], expected[task])
            assert 0 < apart < of_logits, task
    for task in losses:
        # Of one image, its loss changes at most twice as much as its logits do.
        size = np.sqrt(np.mean(np.square(logits[task])))
        assert abs(in_bfloat16[2][task] - losses[task]) < 2 * size * of_logits, task
    assert in_bfloat16[3] == l2_loss  # of the variables themselves
    for name, expected in moments.items():
        # Pooling and ReLU send a gradient elsewhere where two values are as near as the
        # roundings: of about such a share of them, which is what the cosine lacks to 1.
        found = in_bfloat16[4][name]
        cosine = np.vdot(found, expected) / np.linalg.norm(found) / np.linalg.norm(expected)
        assert cosine > 1 - 2 * of_logits, name  # there and back


@pytest.mark.parametrize("unit", [None, "channel"])
def test_five_steps_with_dropout_end_near_those_of_float32(unit):
    weights = []
    for net in both(unit):
        with net.graph.as_default():
            trained = tf.trainable_variables()
        with tf.Session(graph=net.graph) as session:
            session.run(net.initializer)
            start = session.run(trained)
            for step in range(5):
                loss, _ = session.run([net.loss, net.train_op], feed(net, step))
            moved = [now - then for now, then in zip(session.run(trained), start)]
        weights.append((loss, np.concatenate([m.ravel() for m in moved])))
    (expected_loss, expected), (loss, found) = weights
    assert abs(loss - expected_loss) < 0.1 * expected_loss
    # Adam moves each weight by its gradient's sign first, and small gradients change theirs.
    assert np.vdot(found, expected) > 0.9 * np.linalg.norm(found) * np.linalg.norm(expected)


@pytest.mark.parametrize("unit, products", [(None, 6), ("channel", 6), ("nddr", 9)])
def test_products_are_of_bfloat16_and_variables_are_not(unit, products):
    plain, net = both(unit)
    # Two convolutions and fc_3 of each tower; nddr's three units.
    large = [
        op for op in net.graph.get_operations()
        if op.type in ("Conv2D", "MatMul", "Einsum", "BatchMatMulV2")
        and op.name.startswith("network/")
        and op.outputs[0].dtype == tf.bfloat16
    ]  # fmt: skip
    assert len(large) == products
    assert net.checksum() == plain.checksum()
    for graph in (plain.graph, net.graph):
        with graph.as_default():
            assert {v.dtype.base_dtype for v in tf.global_variables()} == {tf.float32, tf.int64}
    found, expected = (
        {
            name: [v.op.name for v in net.graph.get_collection(name)]
            for name in ("variables", "trainable_variables", "model_variables")
        }
        for net in (net, plain)
    )
    assert found == expected


# --- The program ---


@needs_instructions
def test_a_run_in_bfloat16_resumes_in_it_and_is_evaluated_and_exported_in_float32(tmp_path):
    given = (UNITS["channel"], BFLOAT16)
    finished = run(tmp_path, *given, "--max_steps=20")
    assert finished.returncode == 0, finished.stderr
    results = results_in(folder(tmp_path))
    assert results["flags"]["precision"] == "bfloat16"
    assert results["machine"]["bfloat16"] == processor.bfloat16_instructions()
    other = run(tmp_path, UNITS["channel"], "--max_steps=40")
    assert_one_sentence(other, "--precision=float32", "--precision=bfloat16")
    exported = run(tmp_path, *given, "--max_steps=20", "--eval_only", f"--export_dir={tmp_path}/e")
    assert exported.returncode == 0, exported.stderr
    with tf.Session(graph=tf.Graph()) as session:
        tf.saved_model.load(session, ["serve"], f"{tmp_path}/e")
        types = {t.dtype for op in session.graph.get_operations() for t in op.outputs}
    assert tf.float32 in types and tf.bfloat16 not in types


@needs_instructions
@pytest.mark.slow
def test_a_run_in_bfloat16_that_is_killed_ends_in_the_same_bits(tmp_path):
    given = (UNITS["channel"], BFLOAT16)
    undisturbed = run(tmp_path / "undisturbed", *given, LENGTH)
    assert undisturbed.returncode == 0, undisturbed.stderr
    logdir = tmp_path / "killed"
    assert kill_on_the_way(logdir, 2, random.Random(), *given) == 2
    assert steps_saved(logdir)[-1] == STEPS
    assert_same_outcome(outcome(logdir), outcome(tmp_path / "undisturbed"))


@needs_instructions
@pytest.mark.slow
def test_a_run_in_either_precision_starts_from_towers_of_the_other(tmp_path):
    alone = run(tmp_path / "alone", UNITS["none"], BFLOAT16, "--max_steps=20")
    assert alone.returncode == 0, alone.stderr
    towers = folder(tmp_path / "alone")
    units = run(tmp_path / "units", f"--init_from={towers}", "--max_steps=1", "--lr=1e-9")
    assert units.returncode == 0, units.stderr
    before, after = tensors(towers), tensors(folder(tmp_path / "units"))
    name = "network/fc_3_1/weights"
    after, before = (np.frombuffer(values[name], np.float32) for values in (after, before))
    np.testing.assert_allclose(after, before, atol=1e-6)


NO_INSTRUCTIONS = "from harness import processor; processor.BFLOAT16 = ('no_such_instruction',)"


def test_what_cannot_multiply_bfloat16_is_refused_in_a_sentence(tmp_path):
    on_gpu = run(tmp_path, BFLOAT16, "--device=gpu")
    assert_one_sentence(on_gpu, "--device=gpu --precision=bfloat16", "leave out one of the two")
    refused = run(tmp_path, BFLOAT16, prelude=NO_INSTRUCTIONS)
    assert_one_sentence(refused, BFLOAT16, "no instructions for it", "Leave out the flag.")
    assert not list(tmp_path.glob("*/*"))


@needs_instructions
def test_without_onednn_bfloat16_is_refused(tmp_path):
    refused = run(tmp_path, BFLOAT16, TF_ENABLE_ONEDNN_OPTS="0")
    assert_one_sentence(refused, BFLOAT16, "TF_ENABLE_ONEDNN_OPTS=0", "Unset it")


@needs_instructions
def test_a_run_in_bfloat16_is_evaluated_on_a_machine_without_it(tmp_path):
    given = (UNITS["none"], BFLOAT16, "--max_steps=10")
    assert run(tmp_path, *given).returncode == 0
    evaluated = run(tmp_path, *given, "--eval_only", prelude=NO_INSTRUCTIONS)
    assert evaluated.returncode == 0 and "Evaluated: " in evaluated.stdout, evaluated.stderr


@needs_instructions
@pytest.mark.slow
def test_a_record_says_how_many_answers_differ_in_float32(fashion_mnist, tmp_path):
    given = ("--quick", "--only=precision", "--seeds=1", f"--logdir={tmp_path}")
    made = run_script("study.reproduce", *given)
    assert made.returncode == 0, made.stderr
    counted = {}
    for path in (tmp_path / "quick" / "records" / "precision").glob("*.json"):
        record = json.loads(path.read_text())
        run_folder = tmp_path / "quick" / "runs" / "precision" / path.stem
        assert ("differ_in_float32" in record) == ("bfloat16" in record["setting"])
        if "differ_in_float32" in record:
            # A byte for each image: the articles, then the groups, of the last evaluation.
            last = np.fromfile(run_folder / "predictions.bin", np.uint8)[-2000:].reshape(2, 1000)
            with (run_folder / "predictions.csv").open(encoding="utf-8-sig") as file:
                rows = list(csv.DictReader(file))
            for task, classes in zip(data.TASKS, last):
                in_float32 = [row[f"{task.name}_prediction"] for row in rows]
                different = np.sum(np.array(task.classes)[classes] != np.array(in_float32))
                assert record["differ_in_float32"][task.name] == different
                counted[path.stem, task.name] = different
    assert len(counted) == 4
    assert "| none bfloat16 | 1 |" in (tmp_path / "quick" / "tables.md").read_text()
