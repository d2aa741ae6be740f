"""study.digits: a folder that one's own images could be, for the picture in README."""

import numpy as np
import pytest
from conftest import run_script

import data


def test_the_digits_are_a_folder_with_two_tasks(tmp_path):
    datasets = pytest.importorskip("sklearn.datasets")
    folder = tmp_path / "a folder" / "digits"
    ended = run_script("study.digits", folder)
    assert ended.returncode == 0, ended.stderr
    assert f"--data_dir={folder}' --tasks=digit,parity" in ended.stdout  # quoted, for its blank
    dataset = data.load("auto", folder, tasks=["digit", "parity"])
    assert [task.classes for task in dataset.tasks] == [tuple("0123456789"), ("even", "odd")]
    splits = dataset.train, dataset.test
    assert [len(split.images) for split in splits] == [1000, 797]
    pixels, digits = datasets.load_digits(return_X_y=True)
    images = np.concatenate([split.images for split in splits]).reshape(1797, 64)
    assert images.min() == 0 and images.max() == 255
    np.testing.assert_allclose(images / 255 * 16, pixels, atol=16 / 255)
    np.testing.assert_array_equal(np.concatenate([s.labels["digit"] for s in splits]), digits)
    np.testing.assert_array_equal(np.concatenate([s.labels["parity"] for s in splits]), digits % 2)


def test_without_scikit_learn_or_a_folder_a_sentence_says_what_to_do(tmp_path):
    missing = "import sys; sys.modules['sklearn'] = None"  # importing it fails
    ended = run_script("study.digits", tmp_path / "digits", prelude=missing)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert "Install it: pip install -r study/requirements.txt" in ended.stderr
    assert not (tmp_path / "digits").exists()
    ended = run_script("study.digits")
    assert ended.returncode == 1 and "name one folder to write into" in ended.stderr
