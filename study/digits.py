"""Writes scikit-learn's digits into a folder, for study.compare: 1,797 images of 8x8 pixels.

    python -m study.digits digits     # needs scikit-learn, of this folder's requirements.txt
    python -m study.compare --data_dir=digits --tasks=digit,parity

The tasks are digit and parity, even or odd. The first 1,000 images are for training, the other 797
for testing.
"""

import pathlib
import shlex

import numpy as np

from harness import process
from harness.errors import Failed

TRAINING_IMAGES = 1000
PARITIES = ("even", "odd")


def write(folder):
    """Writes images, labels and names of classes into a folder, which is made if it is missing."""
    try:
        from sklearn import datasets
    except ImportError as error:
        raise Failed(
            "scikit-learn is not installed. Install it: pip install -r study/requirements.txt"
        ) from error
    digits = datasets.load_digits()
    arrays = {
        "images": np.rint(digits.images * 255 / 16).astype(np.uint8),  # [N, 8, 8]
        "digit": digits.target,  # [N]
        "parity": digits.target % 2,  # [N]
    }
    folder.mkdir(parents=True, exist_ok=True)
    halves = {"train": slice(TRAINING_IMAGES), "test": slice(TRAINING_IMAGES, None)}
    for half, rows in halves.items():
        for name, values in arrays.items():
            np.save(folder / f"{half}-{name}.npy", values[rows])
    (folder / "parity-classes.txt").write_text("\n".join(PARITIES))


def main(argv):
    if len(argv) != 2:
        raise Failed("name one folder to write into, for example: python -m study.digits digits")
    write(pathlib.Path(argv[1]))
    given = shlex.join([f"--data_dir={argv[1]}", "--tasks=digit,parity"])
    print(f"Compare on them: python -m study.compare {given}")


if __name__ == "__main__":
    process.run(main)
