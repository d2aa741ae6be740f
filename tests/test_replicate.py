"""study/replicate.py: the study's runs in PyTorch, here on a CPU and a few steps long."""

import json

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import config_of, run_script

import data
import model
import train
from study import groups

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from study import replicate, torch_network  # noqa: E402

SHORT = ("--quick", "--device=cpu", "--seeds=10,11")


def replicate_script(records, *arguments, **environment):
    return run_script("study.replicate", f"--records={records}", *arguments, **environment)


@pytest.fixture(scope="module")
def images():
    return replicate.Images(data.load("synthetic"), "cpu")


def made_run(images, setting="none", seed=10):
    return replicate.Run(setting, seed, images, 1, 3)


def test_a_short_study_leaves_a_record_for_each_run_and_makes_none_twice(tmp_path, fashion_mnist):
    settings = "--settings=none,nddr,hard sharing"
    first = replicate_script(tmp_path, *SHORT, settings)
    assert first.returncode == 0 and "0 of 6 runs have a record" in first.stdout, first.stderr
    names = {"none", "nddr", "hard_sharing"}
    assert {p.name for p in tmp_path.iterdir()} == {
        f"{name}-seed{seed}.json" for name in names for seed in (10, 11)
    }
    record = json.loads((tmp_path / "nddr-seed11.json").read_text())
    assert record["setting"] == "nddr" and record["seed"] == 11 and record["device"] == "CPU"
    assert record["accuracy_test"].keys() == record["recall"].keys() == {"0.9", "0.999"}
    for by_task in record["accuracy_test"].values():
        assert {task: len(curve) for task, curve in by_task.items()} == {"article": 2, "group": 2}
    assert record["accuracy_test"]["0.9"] != record["accuracy_test"]["0.999"]
    assert len(record["loss"]) == record["epochs"] == 2
    assert np.shape(record["cross_stitch"]["cross_stitch_3"]) == (2, 2)
    (tmp_path / "none-seed10.json").unlink()
    written = (tmp_path / "nddr-seed10.json").stat().st_mtime_ns
    again = replicate_script(tmp_path, *SHORT, settings)
    assert again.returncode == 0 and "5 of 6 runs have a record" in again.stdout, again.stderr
    assert (tmp_path / "none-seed10.json").exists()
    assert (tmp_path / "nddr-seed10.json").stat().st_mtime_ns == written


def test_when_time_is_up_no_part_of_a_run_is_left(tmp_path, fashion_mnist):
    stopped = replicate_script(tmp_path, *SHORT, "--minutes=0")
    assert stopped.returncode == 0 and "Time is up" in stopped.stdout, stopped.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments, words", [
    ((), "PyTorch finds no GPU"), (("--settings=all",), "must be some of none, channel"),
    (("--seeds=a",), "must be numbers"), (("more",), "more: not a flag"),
    (("--device=cpu", "--data_dir=nowhere"), "nowhere"),
])  # fmt: skip
def test_what_cannot_be_run_gets_a_sentence(tmp_path, arguments, words):
    refused = replicate_script(tmp_path, *arguments, CUDA_VISIBLE_DEVICES="-1")
    assert refused.returncode == 1 and words in refused.stderr, refused.stderr
    assert "Traceback" not in refused.stderr and not list(tmp_path.iterdir())


def test_records_that_cannot_be_written_are_said_before_a_run_begins(tmp_path, fashion_mnist):
    file = tmp_path / "file"
    file.touch()
    refused = replicate_script(file, *SHORT)
    assert refused.returncode == 1 and str(file) in refused.stderr, refused.stderr
    assert "Traceback" not in refused.stderr and "|" not in refused.stderr  # no run's progress


def test_other_seeds_than_the_studys_are_kept_out_of_its_records():
    refused = run_script("study.replicate", "--device=cpu", "--minutes=0", "--seeds=9,10,20")
    assert refused.returncode == 1 and "--seeds=9,20: the study's seeds, 10 to 19" in refused.stderr


def test_without_pytorch_the_script_says_what_to_install():
    prelude = "sys.modules['torch'] = None"
    refused = run_script("study.replicate", "--quick", prelude=prelude)
    assert refused.returncode == 1
    assert refused.stderr.strip() == "replicate.py: PyTorch is not installed: pip install torch"


def test_runs_of_one_seed_share_towers_and_the_batches_of_train_py(images):
    none, channel = made_run(images), made_run(images, "channel")
    assert torch.equal(none.order, channel.order)
    dataset = data.load("synthetic")
    for step, chosen in enumerate(none.order[: 3 * 128].split(128)):
        batch, labels = dataset.train_batch(step, 128, seed=10)
        np.testing.assert_array_equal(images.train[chosen], batch)
        for (task, _, _), values in zip(dataset.tasks, images.train_labels):
            np.testing.assert_array_equal(values[chosen], labels[task])
    for name, layer in none.network.layers.items():
        assert torch.equal(layer.weights, channel.network.layers[name].weights)
    assert not torch.equal(none.order, made_run(images, seed=11).order)


def test_a_step_takes_the_next_images_and_an_evaluation_changes_nothing(images):
    run = made_run(images, "channel")
    run.network.train()
    run.step()
    before = [tensor.detach().clone() for tensor in run.tensors()]
    run.predictions(0)
    assert all(torch.equal(a, b) for a, b in zip(before, run.tensors()))
    run.step()
    assert run.position == 2 * replicate.BATCH_SIZE
    changed = [not torch.equal(a, b) for a, b in zip(before, run.tensors())]
    named = {id(t): name for name, t in run.network.state_dict(keep_vars=True).items()}
    still = {named.get(id(t)) for t, c in zip(run.tensors(), changed) if not c}
    assert all(name and name.endswith("weight_of_batch") for name in still), still


def test_putting_the_tensors_back_undoes_a_step(images):
    """What is done with the steps that warm a GPU up."""
    run = made_run(images, "layer")
    run.network.train()
    before = [tensor.detach().clone() for tensor in run.tensors()]
    results = []
    for _ in range(2):
        run.generator.manual_seed(run.seed)
        run.step()
        results.append([tensor.detach().clone() for tensor in run.tensors()])
        with torch.no_grad():
            for tensor, value in zip(run.tensors(), before):
                tensor.copy_(value)
    for first, second in zip(*results):
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize("setting", ["channel", "layer", "nddr"])
def test_mean_weights_and_distances_are_those_of_train_py(setting, images):
    """For the same weights, model.py's graph has those means, and train.py those distances."""
    run = made_run(images, setting)
    with torch.no_grad():
        for alpha in run.network.units.values():
            alpha += 0.1 * torch.randn(alpha.shape, generator=torch.Generator().manual_seed(0))
    means, distances = run.units()
    net = model.build([("article", 10), ("group", 3)], config_of(setting), fast=False)
    with net.graph.as_default(), tf.Session() as session:
        session.run(net.initializer)
        for variable in net.unit_variables:
            alpha = run.network.units[model.unit_of(variable.op.name)]
            variable.load(alpha.detach().numpy(), session)
        described = train.describe_units(session, net, None)
    for found, name in ((means, "cross_stitch"), (distances, "distances")):
        assert found.keys() == described[name].keys() and len(found) == 3
        for scope, values in described[name].items():
            np.testing.assert_allclose(found[scope], values, atol=1e-4)
            assert not np.allclose(values, np.transpose(values), atol=2e-4)


def test_the_settings_are_those_of_the_study():
    kinds = {name: options.get("unit") for name, options in replicate.SETTINGS.items()}
    assert kinds.keys() == set(groups.KINDS)
    assert all(unit in (None, name) for name, unit in kinds.items())
    shared = torch_network.Network([10, 3], **replicate.SETTINGS["hard sharing"])
    assert set(shared.layers) == {"conv1_1", "conv2_1", "fc_3_1", "output_1", "output_2"}
