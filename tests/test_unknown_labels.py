"""Labels that are unknown for some images: pools and batches, the graph, and a user's run."""

import collections
import csv
import io
import json
import re
import signal
import time

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import SECONDS, config_of, run_train, start_train
from test_equivalence import TASKS, batch, moving_statistics, start_of
from test_own_images import load, made, written
from test_train import tensors

import data
import model
from harness import choices, evaluation_log, flag_rules, pools, predictions
from harness.errors import Failed

# --- Pools and batches ---

ABOUT = {"a": np.repeat([3, -1, 0], [200, 500, 300]), "b": np.repeat([1, 2, -1], [200, 500, 300])}


def batches_of(of_pools, steps, batch_size=100, seed=0, balance=0.0):
    return [pools.batch_of_step(of_pools, s, batch_size, seed, balance) for s in range(steps)]


def test_images_with_labels_of_the_same_tasks_are_a_pool():
    none = np.repeat([-1, 0], [1, 999])  # one more image, without any label
    labels = {name: np.concatenate([values, [-1]]) for name, values in ABOUT.items()}
    found = pools.of_labels(labels)
    expected = {("a", "b"): range(200), ("b",): range(200, 700), ("a",): range(700, 1000)}
    assert {tasks: list(rows) for tasks, rows in found.items()} == {
        tasks: list(rows) for tasks, rows in expected.items()
    }
    assert pools.of_labels({"a": none[1:]}).keys() == {("a",)}


def test_a_batch_is_full_and_all_its_images_have_the_labels_that_it_trains():
    of_pools = pools.of_labels(ABOUT)
    for tasks, rows in batches_of(of_pools, 40, batch_size=70):
        assert len(rows) == 70
        for name in tasks:
            assert np.all(ABOUT[name][rows] >= 0)


def test_every_image_of_a_pool_is_seen_as_often_as_the_others():
    of_pools = pools.of_labels(ABOUT)
    seen = collections.Counter(
        int(row) for _, rows in batches_of(of_pools, 200, 70) for row in rows
    )
    for rows in of_pools.values():
        counts = [seen[int(row)] for row in rows]
        assert 1 <= min(counts) and max(counts) - min(counts) <= 1


@pytest.mark.parametrize("balance, steps", [(0, [2, 5, 3]), (1, [5, 5, 5]), (0.5, [3, 5, 4])])
def test_balance_turns_from_as_many_images_to_as_many_steps(balance, steps):
    of_pools = pools.of_labels(ABOUT)  # of 200, 500 and 300 images: 2, 5 and 3 batches
    sizes = dict(zip(of_pools, pools.steps_per_epoch(of_pools, 100, balance)))
    assert [sizes["a", "b"], sizes["b",], sizes["a",]] == steps
    trained = collections.Counter(t for t, _ in batches_of(of_pools, sum(steps), balance=balance))
    assert trained == sizes  # in each epoch


def test_pools_are_mixed_evenly_and_in_another_order_in_each_epoch():
    pool, number = pools.order_of_pools((10, 40), 0, 3)
    # The n-th batch of the small pool is among the n-th five of fifty, or beside them.
    np.testing.assert_allclose(np.flatnonzero(pool == 0), np.arange(10) * 5 + 2.5, atol=7.5)
    assert [number[pool == p].tolist() for p in (0, 1)] == [[*range(10)], [*range(40)]]
    assert not np.array_equal(pool, pools.order_of_pools((10, 40), 0, 4)[0])
    assert not np.array_equal(pool, pools.order_of_pools((10, 40), 1, 3)[0])


def test_a_batch_follows_from_step_and_seed_alone():
    of_pools = pools.of_labels(ABOUT)
    in_order = batches_of(of_pools, 12)
    for cached in (pools.order_of_pools, pools.pass_order):
        cached.cache_clear()
    for step in (11, 3, 7):
        tasks, rows = pools.batch_of_step(of_pools, step, 100, 0, 0.0)
        assert tasks == in_order[step][0] and rows.tolist() == in_order[step][1].tolist()
    assert any(
        rows.tolist() != other.tolist()
        for (_, rows), (_, other) in zip(in_order, batches_of(of_pools, 12, seed=1))
    )


def test_a_pool_smaller_than_a_batch_goes_to_the_largest_that_trains_nothing_else():
    merged, unused = pools.for_batches(pools.of_labels(ABOUT), 250)
    assert {tasks: len(rows) for tasks, rows in merged.items()} == {("b",): 700, ("a",): 300}
    assert unused == {"a": 200}
    for tasks, rows in batches_of(pools.of_labels(ABOUT), 20, batch_size=250):
        assert len(tasks) == 1 and np.all(ABOUT[tasks[0]][rows] >= 0)


@pytest.mark.parametrize("batch_size, words", [
    (301, "only 300 training images have labels of a and of no other task.*=300 or less"),
    (800, "only 300 training images have labels of a and of no other task.*=300 or less"),
])  # fmt: skip
def test_too_few_images_with_a_tasks_label_name_a_batch_size_that_works(batch_size, words):
    of_pools = pools.of_labels(ABOUT)
    with pytest.raises(data.DataError, match=words) as caught:
        pools.for_batches(of_pools, batch_size)
    fitting = int(re.search(r"=(\d+) or less", str(caught.value))[1])
    pools.for_batches(of_pools, fitting)


def test_a_task_that_would_lose_all_its_labels_is_refused():
    labels = {"a": np.repeat([0, -1], [50, 950]), "b": np.zeros(1000, int)}
    with pytest.raises(data.DataError, match="batch_size=51: only 50 .* --batch_size=50 or less"):
        pools.for_batches(pools.of_labels(labels), 51)
    assert len(pools.for_batches(pools.of_labels(labels), 50)[0]) == 2


def test_a_few_images_that_fit_no_pool_are_left_out_and_counted():
    """Labels that are missing here and there make many small pools."""
    random = np.random.RandomState(0)
    labels = {name: np.where(random.uniform(size=60000) < 0.05, -1, 0) for name in "abcd"}
    of_pools = pools.of_labels(labels)
    merged, unused = pools.for_batches(of_pools, 128)
    assert min(map(len, merged.values())) >= 128
    for name, values in labels.items():
        used = sum(len(rows) for tasks, rows in merged.items() if name in tasks)
        assert used + unused[name] == np.sum(values >= 0) and used > 0.99 * np.sum(values >= 0)


# --- Choosing labels ---

ARTICLES = np.repeat(np.arange(10), 100 * np.arange(1, 11)).astype(np.uint8)  # 5,500 of them
NUMBERED = data.Split(np.arange(5500), {"article": ARTICLES})


def kept(count, seed=0, task="article"):
    """The numbers of the images that keep their label of a task."""
    split = data.hide_labels(NUMBERED, data.TASKS, {task: count}, seed)
    return set(np.flatnonzero(data.TASKS[task == "group"].labels(split) >= 0).tolist()), split


def test_labels_stay_in_the_proportions_of_the_classes_and_fewer_are_part_of_more():
    few, split = kept(550)
    np.testing.assert_array_equal(np.bincount(ARTICLES[list(few)]), 10 * np.arange(1, 11))
    assert len(few) == 550 and few < kept(1100)[0] and few == kept(550)[0] != kept(550, seed=1)[0]
    assert kept(7)[0] < few and len(kept(7)[0]) == 7
    np.testing.assert_array_equal(split.images, NUMBERED.images)


def test_hiding_the_article_hides_no_group_and_the_other_way_round():
    article, group = data.TASKS
    _, split = kept(100)
    np.testing.assert_array_equal(group.labels(split), group.labels(NUMBERED))
    few, split = kept(100, task="group")
    np.testing.assert_array_equal(article.labels(split), ARTICLES)
    assert not few & kept(100)[0] == few  # other images


def test_images_without_any_label_are_left_out_with_a_count():
    both = {"article": 500, "group": 400}
    with pytest.warns(UserWarning, match=r"leaves out 4,[67]\d\d images, which have no label"):
        split = data.hide_labels(NUMBERED, data.TASKS, both, 0)
    known = [np.sum(task.labels(split) >= 0) for task in data.TASKS]
    assert known == [500, 400] and len(split.images) < 900


def test_images_whose_label_is_unknown_keep_their_share_in_a_subset():
    labels = np.where(np.arange(10000) % 4 == 0, np.arange(10000) % 5, -1)  # a quarter is known
    chosen = choices.balanced(labels, 1000, seed=0)
    assert abs(np.sum(labels[chosen] >= 0) - 250) <= 5
    np.testing.assert_allclose(np.bincount(labels[chosen][labels[chosen] >= 0]), 50, atol=1)
    assert set(chosen) < set(choices.balanced(labels, 2000, seed=0))


def test_held_out_images_of_ones_own_are_of_all_classes_though_the_files_are_sorted(tmp_path):
    images, labels, kinds = made((8, 8), 90, classes=3)
    order = np.argsort(labels, kind="stable")
    given = images[order], labels[order], kinds[order]
    folder = written(tmp_path / "mine", given)
    dataset = load(folder, holdout=30)
    assert np.bincount(dataset.test.labels["label"]).tolist() == [10] * 3
    np.testing.assert_array_equal(dataset.test.images, given[0][dataset.rows])
    rest = np.setdiff1d(np.arange(90), dataset.rows)
    np.testing.assert_array_equal(dataset.train.images, given[0][rest])
    np.testing.assert_array_equal(load(folder, holdout=30, seed=7).rows, dataset.rows)


def test_held_out_labels_stay_and_hidden_ones_change_the_fingerprint(fashion_mnist):
    def loaded(count, **options):
        return data.load(label_only={"article": count}, **options)

    held = loaded(500, train_examples=2000, holdout=1000)
    assert held.number_of_labels(held.test) == {"article": 1000, "group": 1000}
    assert held.number_of_labels(held.train) == {"article": 500, "group": 2000}
    other = loaded(501, train_examples=2000, holdout=1000)
    assert held.fingerprint() != other.fingerprint()


# --- Files ---


def hidden(labels, every, offset=0):
    """Labels of which only those of some images are known."""
    return np.where(np.arange(len(labels)) % every == offset, labels, -1)


def test_a_negative_label_in_npy_and_255_in_idx_files_are_unknown(tmp_path):
    images, labels, kinds = made((8, 8), 60)
    test_kinds = hidden(kinds, 3)
    folder = written(tmp_path / "mine", (images, hidden(labels, 4) * 7, kinds),
                     (images, labels * 7, test_kinds))  # fmt: skip
    dataset = load(folder)
    assert dataset.number_of_labels(dataset.train) == {"label": 15, "kind": 60}
    assert dataset.number_of_labels(dataset.test) == {"label": 60, "kind": 20}
    assert sum(dataset.images_by_class()["label"].values()) == 15
    (_, of_test), *_ = dataset.test_batches(60)
    np.testing.assert_array_equal(of_test["kind"], test_kinds)
    before = dataset.fingerprint()
    for prefix in ("train", "test"):
        path = folder / f"{prefix}-kind.npy"
        values = np.where(np.load(path) < 0, 255, np.load(path)).astype(np.uint8)
        path.unlink()
        name = f"{prefix.replace('test', 't10k')}-kind-labels-idx1-ubyte"
        header = bytes([0, 0, 8, 1]) + len(values).to_bytes(4, "big")
        (folder / name).write_bytes(header + values.tobytes())
    assert load(folder).fingerprint() == before


@pytest.mark.parametrize("training, test, words", [
    (-1, 0, "task 'kind': no training image has a label"),
    (0, -1, "task 'kind': no test image has a label"),
    (-1, -1, "every label of task 'kind' is unknown"),
])  # fmt: skip
def test_a_task_without_any_label_is_refused(training, test, words, tmp_path):
    images, labels, kinds = made((8, 8))
    given = [(images, labels, kinds if of == 0 else kinds * 0 - 1) for of in (training, test)]
    with pytest.raises(data.DataError, match=words):
        load(written(tmp_path / "mine", *given))


def test_a_class_that_only_one_side_has_is_warned_of(tmp_path):
    images, labels, kinds = made((8, 8))
    folder = written(tmp_path / "mine", (images, labels, kinds), (images, labels % 3, kinds))
    with pytest.warns(UserWarning, match=r"'label': no test image has label 3 \(and 16 more"):
        load(folder)


def test_256_names_beside_idx_labels_are_refused(tmp_path):
    images, labels, kinds = made((8, 8), 255, classes=255)
    folder = written(tmp_path / "mine", (images, labels, kinds))
    (folder / "label-classes.txt").write_text("\n".join(f"class {i}" for i in range(256)))
    with pytest.raises(data.DataError, match="256 names.*in IDX files, 255 is an unknown label"):
        load(folder)


# --- The graph ---


@pytest.fixture(scope="module", params=[True, False], ids=["fast", "plain"])
def graphs(request):
    """The same towers without units: for unknown labels, and for known ones."""
    config = config_of(None, keep_prob=1.0, l2_scale=1e-4)
    return [
        model.build(TASKS[:2], config, fast=request.param, some_unknown=some_unknown)
        for some_unknown in (True, False)
    ]


def one_step(net, images, labels):
    """Trains on one batch from the start values of test_equivalence. Returns: losses, gradients,
    moving statistics; accuracies."""
    with net.graph.as_default(), tf.Session(graph=net.graph) as session:
        session.run(start_of(net.graph))
        given = {net.x: images, net.is_training: True}
        given |= {net.labels[name]: values for name, values in labels.items()}
        trained = tf.trainable_variables()
        found = tf.gradients(net.loss, trained)
        fetches = [net.losses, net.l2_loss, net.loss, dict(zip((v.op.name for v in trained), found)),
                   net.accuracies, net.accuracy]  # fmt: skip
        values = session.run(fetches, given)
        return values, session.run(moving_statistics(net.graph))


def tower_of(name):
    return int(re.search(r"_(\d)/", name)[1])


@pytest.mark.parametrize("trained", ["article", "group"])
def test_a_batch_trains_the_towers_of_its_labels_only(trained, graphs):
    images, labels = batch(0, 2)
    other = "group" if trained == "article" else "article"
    some = {trained: labels[trained], other: np.full(len(images), -1)}
    (losses, l2, loss, gradients, accuracies, accuracy), moving = one_step(graphs[0], images, some)
    known, of_known = one_step(graphs[1], images, labels)
    assert losses[other] == accuracies[other] == 0
    assert losses[trained] == pytest.approx(known[0][trained], rel=1e-6)
    assert loss == pytest.approx(losses[trained] + l2, rel=1e-6)
    assert accuracy == accuracies[trained] == pytest.approx(known[4][trained])
    for name, gradient in gradients.items():
        if tower_of(name) == 1 + (trained == "group"):
            np.testing.assert_allclose(gradient, known[3][name], rtol=1e-4, atol=1e-6)
        elif "weights" not in name:  # what has no L2 loss
            assert not np.any(gradient), name
    # TensorFlow's way: the statistics of both towers move, whatever the batch trains.
    for name, value in moving.items():
        np.testing.assert_allclose(value, of_known[name], rtol=1e-4, atol=1e-6)


def test_losses_and_accuracies_are_those_of_the_images_with_a_label(graphs):
    images, labels = batch(1, 2)
    some = {"article": hidden(labels["article"], 3), "group": labels["group"]}
    net = graphs[0]
    with tf.Session(graph=net.graph) as session:
        session.run(start_of(net.graph))
        given = {net.x: images, net.is_training: True}
        given |= {net.labels[name]: values for name, values in some.items()}
        logits, losses, accuracies, mean = session.run(
            [net.logits, net.losses, net.accuracies, net.accuracy], given
        )
    for name, values in some.items():
        z, known = logits[name].astype(float), values >= 0
        log_sums = np.log(np.exp(z).sum(axis=1))
        entropies = log_sums[known] - z[known, values[known]]
        assert losses[name] == pytest.approx(entropies.mean(), rel=1e-5)
        right = z.argmax(axis=1)[known] == values[known]
        assert accuracies[name] == pytest.approx(right.mean())
    assert mean == pytest.approx(np.mean(list(accuracies.values())))


def test_with_all_labels_known_the_graph_for_unknown_ones_computes_the_same(graphs):
    images, labels = batch(2, 2)
    (one, moving), (other, of_other) = (one_step(net, images, labels) for net in graphs)
    for mine, its in zip(one, other):
        if isinstance(mine, dict):
            for name in mine:
                np.testing.assert_allclose(mine[name], its[name], rtol=1e-4, atol=1e-6)
        else:
            assert mine == pytest.approx(its, rel=1e-5)


# --- A user's run ---


@pytest.fixture(scope="module")
def few_kinds(tmp_path_factory):
    """A folder of 300 training images: all have a label, 40 a kind; of the test images, half."""
    images, labels, kinds = made((8, 8), 300, classes=6)
    tested = made((8, 8), 60, classes=6, seed=1)
    return written(
        tmp_path_factory.mktemp("few") / "mine",
        (images, labels, np.where(np.arange(300) < 40, kinds, -1)),
        (tested[0], tested[1], hidden(tested[2], 2)),
    )


GIVEN = ("--tasks=label,kind", "--batch_size=20", "--balance=0.5", "--run_name=run",
         "--eval_every=4", "--max_steps=20", "--batch_norm_decay=0.5")  # fmt: skip


@pytest.fixture(scope="module")
def finished(few_kinds, tmp_path_factory):
    """Returns: the folder of a run that nothing interrupts, and what it said."""
    logs = tmp_path_factory.mktemp("logs")
    ended = run_train(f"--data_dir={few_kinds}", f"--logdir={logs}", *GIVEN)
    assert ended.returncode == 0, ended.stderr
    return logs / "run", ended


def test_a_run_says_how_many_labels_are_known(finished):
    run_dir, ended = finished
    assert "Known labels of the 300 training images: label 300, kind 40." in ended.stdout
    assert "Known labels of the 60 test images: label 60, kind 30." in ended.stdout
    results = json.loads((run_dir / "results.json").read_text())
    assert results["labels"]["test"] == {"label": 60, "kind": 30}
    assert (
        np.sum(results["confusion"]["kind"]) == 30 and np.sum(results["confusion"]["label"]) == 60
    )
    assert sum(results["train_images"]["kind"].values()) == 40
    assert "test images" in ended.stdout.split("seed 0")[1]


def test_a_steps_line_has_losses_of_the_tasks_that_it_trained(finished):
    lines = [
        json.loads(line) for line in (finished[0] / evaluation_log.NAME).read_text().splitlines()
    ]
    kinds = set()
    for line in lines[1:]:
        has = {name for name in ("label", "kind") if f"loss_{name}" in line}
        assert has == {name for name in ("label", "kind") if f"accuracy_train_{name}" in line}
        total = line["loss_l2"] + sum(line[f"loss_{name}"] for name in has)
        assert line["loss_total"] == pytest.approx(total, rel=1e-5)
        kinds.add(frozenset(has))
    assert frozenset(["label"]) in kinds and kinds <= {
        frozenset(["label"]),
        frozenset(["label", "kind"]),
    }


def test_an_evaluation_leaves_out_images_without_a_label(few_kinds, finished):
    run_dir, _ = finished
    evaluated = run_train(
        f"--data_dir={few_kinds}", f"--logdir={run_dir.parent}", *GIVEN, "--eval_only"
    )
    assert evaluated.returncode == 0, evaluated.stderr
    content = (run_dir / predictions.TABLE).read_bytes().decode("utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(content)))
    results = json.loads((run_dir / "results.json").read_text())
    for task, count in (("label", 60), ("kind", 30)):
        known = [row for row in rows if row[f"{task}_label"] != ""]
        right = np.mean([row[f"{task}_label"] == row[f"{task}_prediction"] for row in known])
        assert len(known) == count and right == pytest.approx(results["accuracy_test"][task])
    correct = results["correct_last"]["kind"]
    assert [digit == "-" for digit in correct] == [row["kind_label"] == "" for row in rows]
    last = results["accuracy_test_last"]["kind"]
    assert np.mean([int(digit) for digit in correct if digit != "-"]) / 5 == pytest.approx(
        last, abs=1e-5
    )


def test_a_killed_run_ends_in_the_same_bits(few_kinds, finished, tmp_path):
    given = (f"--data_dir={few_kinds}", f"--logdir={tmp_path}", *GIVEN)
    killed = start_train(*given, "--save_checkpoint_secs=0.01")
    end = time.monotonic() + SECONDS
    while not list(tmp_path.glob("run/model.ckpt-1*.index")):
        assert killed.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    killed.kill()
    killed.communicate(timeout=SECONDS)
    assert killed.returncode == -signal.SIGKILL
    resumed = run_train(*given)
    assert resumed.returncode == 0 and "Resuming after step" in resumed.stdout, resumed.stderr
    assert tensors(tmp_path / "run") == tensors(finished[0])
    left, right = (evaluation_log.curves(of) for of in (tmp_path / "run", finished[0]))
    for name in left.keys() - {"images_per_second"}:
        assert left[name] == right[name], name


def test_labels_that_no_batch_can_use_are_counted_in_a_warning(tmp_path):
    images, labels, kinds = made((8, 8), 120)
    row = np.arange(120)  # 60 have a label only, 10 both, 50 a kind only
    few = images, np.where(row < 70, labels, -1), np.where(row >= 60, kinds, -1)
    folder = written(tmp_path / "mine", few, (images, labels, kinds))
    ended = run_train(f"--data_dir={folder}", f"--logdir={tmp_path}", "--tasks=label,kind",
                      "--batch_size=20", "--max_steps=1")  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    said = " ".join(ended.stderr.split())
    assert "fewer than --batch_size=20 images have labels of the same tasks: 10 of kind" in said


def test_a_batch_size_that_no_images_fill_is_refused(few_kinds, tmp_path):
    given = [f"--data_dir={few_kinds}", f"--logdir={tmp_path}", *GIVEN, "--batch_size=41"]
    refused = run_train(*given)
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert "use --batch_size=40 or less" in refused.stderr


def test_label_only_needs_no_tasks_where_the_data_has_one(few_kinds, tmp_path):
    ended = run_train(f"--data_dir={few_kinds}", f"--logdir={tmp_path}", "--label_only=label:100",
                      "--max_steps=1", "--batch_size=20")  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "training leaves out 200 images" in " ".join(ended.stderr.split())


def test_a_balance_without_unknown_labels_is_warned_of(few_kinds, tmp_path):
    ended = run_train(f"--data_dir={few_kinds}", f"--logdir={tmp_path}", "--tasks=label",
                      "--balance=1", "--max_steps=1", "--batch_size=20")  # fmt: skip
    assert (
        ended.returncode == 0
        and "ignored, because all training labels are known: --balance"
        in " ".join(ended.stderr.split())
    )


@pytest.mark.parametrize("given", ["article", "article:", "article:0", "article:x", ":3",
                                   "article:3,article:4", "article:3,,group:4", ""])  # fmt: skip
def test_label_only_names_tasks_with_numbers(given):
    with pytest.raises(Failed, match="must be tasks with a number of labels each, such as"):
        flag_rules.label_only({"label_only": given})


def test_the_order_of_label_only_is_no_difference():
    one, other = (flag_rules.label_only({"label_only": text}) for text in ("b:2,a:1", " a:1, b:2"))
    assert flag_rules.label_only_text(one) == flag_rules.label_only_text(other) == "a:1,b:2"
    assert flag_rules.label_only_text(flag_rules.label_only({"label_only": None})) is None
