"""The exported network: the program's own answers, in graphs that other tools can read."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import ROOT, config_of, run_train

import data
import model
from harness.export import Export

COUNT = 200
TASKS = data.TASKS[:2]

# What a stranger does with the export, without this program.
LOAD = """
import sys, numpy as np, tensorflow as tf
folder, images, out = sys.argv[1:]
images = np.load(images)
loaded = tf.saved_model.load(folder)
classify = loaded.signatures["serving_default"]
with tf.GradientTape() as tape:
    answers = classify(images=tf.constant(images))
    score = sum(tf.reduce_sum(v[:, 0]) for n, v in answers.items() if "probabilities" in n)
gradients = dict(zip(
    [v.name for v in classify.trainable_variables],
    tape.gradient(score, classify.trainable_variables),
))
lite = tf.lite.Interpreter(
    model_content=tf.lite.TFLiteConverter.from_saved_model(folder).convert()
)
run = lite.get_signature_runner("serving_default")
# The converter takes the batch size as it comes with the first images.
of_lite = run(images=images)
np.savez(
    out,
    **{f"loaded {n}": v.numpy().astype("S") if v.dtype == tf.string else v for n, v in answers.items()},
    **{f"lite {n}": v.astype("S") if v.dtype == object else v for n, v in of_lite.items()},
    **{f"gradient {n}": v.numpy() for n, v in gradients.items() if v is not None},
)
assert "model" not in sys.modules and "tf_slim" not in sys.modules
"""


@pytest.fixture(scope="module", params=["channel", pytest.param("dense", marks=pytest.mark.slow)])
def export(request, tmp_path_factory):
    """A network trained for some steps and exported.

    Returns: its folder, the raw images, the program's predictions and logits, and the
    names of the trainable variables.
    """
    unit, folder = request.param, tmp_path_factory.mktemp("export")
    size = 8 if unit == "dense" else 28  # dense units at full size need 6 GB
    random = np.random.RandomState(0)
    raw = random.randint(0, 256, [COUNT, size, size]).astype(np.uint8)
    mean, deviation = (f(raw, axis=0).astype(np.float32) for f in (np.mean, np.std))
    images = ((raw - mean) * (1 / deviation))[..., None]
    config = config_of(unit, learning_rate=0.01, batch_norm_decay=0.5)
    tasks = [(t.name, len(t.classes)) for t in TASKS]
    net = model.build(tasks, config, (mean, 1 / deviation), image_shape=(size, size, 1))
    with tf.Session(graph=net.graph) as session, net.graph.as_default():
        session.run(net.initializer)
        labels = {net.labels[t.name]: random.randint(0, len(t.classes), 50) for t in TASKS}
        for _ in range(5):
            session.run(net.train_op, {net.x: images[:50], net.is_training: True, **labels})
        given = {net.x: images, net.is_training: False}
        predictions, logits = session.run([net.predictions, net.logits], given)
        tf.train.Saver().save(session, str(folder / "model.ckpt"), 5)
        trained = {v.op.name for v in tf.trainable_variables()}
    (folder / "empty").mkdir()
    (folder / "served").symlink_to("empty")
    names = [(task.name, task.classes) for task in TASKS]
    server = model.build_server(names, config, (size, size, 1))
    Export(str(folder / "served"), {}, {}, folder).write(server, tf.ConfigProto())
    return folder / "served", raw, predictions, logits, trained


@pytest.fixture(scope="module")
def answers(export, tmp_path_factory):
    """What LOAD got out of the export: name -> array."""
    folder = tmp_path_factory.mktemp("answers")
    np.save(folder / "raw.npy", export[1])
    command = [sys.executable, "-c", LOAD, export[0], folder / "raw.npy", folder / "out.npz"]
    loaded = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert loaded.returncode == 0, loaded.stderr
    return np.load(folder / "out.npz")


def test_a_loaded_export_predicts_what_the_program_predicts(export, answers):
    _, _, predictions, logits, _ = export
    names = {f"loaded {t.name}_{what}" for t in TASKS for what in ("id", "name", "probabilities")}
    assert names == {name for name in answers if name.startswith("loaded ")}
    for task in TASKS:
        ids = predictions[task.name]
        np.testing.assert_array_equal(answers[f"loaded {task.name}_id"], ids)
        names = [name.decode() for name in answers[f"loaded {task.name}_name"]]
        assert names == [task.classes[i] for i in ids]
        z = np.exp(logits[task.name] - logits[task.name].max(axis=1, keepdims=True))
        expected = z / z.sum(axis=1, keepdims=True)
        probabilities = answers[f"loaded {task.name}_probabilities"]
        np.testing.assert_allclose(probabilities, expected, atol=1e-5)
        assert len(np.unique(expected, axis=0)) > 100  # they do depend on the image


def test_tflite_predicts_what_the_program_predicts(export, answers):
    for task in TASKS:
        np.testing.assert_array_equal(answers[f"lite {task.name}_id"], export[2][task.name])


# Which of three quantised forms answer as the network does. Its pixels are standardised: their
# scale has a long tail, for which 8 bits are too few.
QUANTISE = """
import sys, numpy as np, tensorflow as tf
folder, images, out = sys.argv[1:]
images = np.load(images)
def answers(kind):
    converter = tf.lite.TFLiteConverter.from_saved_model(folder)
    if kind != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if kind == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if kind == "int8":
        converter.representative_dataset = lambda: ({"images": i[None]} for i in images[:100])
    run = tf.lite.Interpreter(model_content=converter.convert()).get_signature_runner()
    found = [run(images=image[None]) for image in images]
    return np.concatenate([one["article_id"] for one in found])
np.savez(out, **{kind: answers(kind) for kind in ("float32", "float16", "dynamic", "int8")})
"""


@pytest.mark.slow
def test_what_readme_says_of_quantised_networks(fashion_mnist, tmp_path):
    words = "Float16 and dynamic-range quantisation keep its answers, int8 does not"
    assert words in (ROOT / "README.md").read_text(encoding="utf-8")
    trained = run_train(f"--logdir={tmp_path / 'logs'}", f"--export_dir={tmp_path / 'served'}",
                        "--max_steps=80", "--eval_every=80", "--holdout=200")  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    np.save(tmp_path / "images.npy", fashion_mnist.test.images[:300])
    given = [sys.executable, "-c", QUANTISE]
    given += [tmp_path / name for name in ("served", "images.npy", "out.npz")]
    converted = subprocess.run(given, capture_output=True, text=True)
    assert converted.returncode == 0, converted.stderr
    found = np.load(tmp_path / "out.npz")
    agree = {kind: np.mean(found[kind] == found["float32"]) for kind in found.files}
    assert agree["float16"] >= 0.99 and agree["dynamic"] >= 0.99
    assert agree["int8"] < 0.8


def test_gradients_reach_every_trainable_variable_of_the_export(export, answers):
    gradients = {n[len("gradient ") :]: answers[n] for n in answers if n.startswith("gradient ")}
    assert {name.removesuffix(":0") for name in gradients} == export[4]
    for name, gradient in gradients.items():
        assert np.all(np.isfinite(gradient)) and np.any(gradient), name


def test_the_exported_graph_has_an_empty_function_library(export):
    with tf.Graph().as_default(), tf.Session() as session:
        exported = tf.saved_model.load(session, [tf.saved_model.SERVING], str(export[0]))
    assert not exported.graph_def.library.function
    types = {node.op for node in exported.graph_def.node}
    assert "Conv2D" in types and "MaxPool" in types
    assert not types & {"If", "StatelessIf", "PartitionedCall", "StatefulPartitionedCall"}
