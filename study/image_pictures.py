"""The picture of the test images whose answers a unit improves most.

Unlike the other pictures it needs Fashion-MNIST, because records do not keep the images.
"""

import numpy as np

import data
from harness import process
from harness.errors import DataError
from harness.matrices import figure
from study import image_tables, per_image, plot
from study.groups import find

ROWS, COLUMNS = 3, 8


def draw_gained(task, study, path, beside):
    """Draws the test images that gain most in a task from the kind of sharing that gains most.

    Args:
      task: the task's name.
      study, path, beside: as `pictures.draw_curves`.

    Returns:
      The path, or None if there are too few records, or if Fashion-MNIST cannot be read.
    """
    setting = image_tables.gains_most(study)
    if setting is None:
        return None
    group, none = find(study, setting), find(study, "none")
    seeds = group.records.keys() & none.records.keys()
    holdout = group.records[min(seeds)]["flags"]["holdout"]
    try:
        dataset = data.load("fashion_mnist", tasks=["article", task], holdout=holdout)
    except DataError as error:
        # A warning would be hidden, as Matplotlib's are.
        process.say(f"{path} is not drawn, because it shows images of Fashion-MNIST. {error}")
        return None
    without, with_units = (
        np.mean(per_image.values(of.of_seeds(seeds), task), axis=0) for of in (none, group)
    )
    # Of images that gain as much, the first in the file.
    most = np.argsort(without - with_units, kind="stable")[: ROWS * COLUMNS]
    picture = figure.Figure(**plot.PANEL | {"figsize": (11, 5.6)})
    axes = picture.subplots(ROWS, COLUMNS)
    for panel, index in zip(np.ravel(axes), most):
        panel.imshow(255 - dataset.test.images[index], cmap="gray", vmin=0, vmax=255)
        labels = [of.classes[of.labels(dataset.test)[index]] for of in dataset.tasks]
        panel.set_title(": ".join(labels), fontsize=9)
        shares = f"{100 * without[index]:.0f} → {100 * with_units[index]:.0f} %"
        panel.set(xticks=[], yticks=[], xlabel=shares)
        panel.spines[:].set_visible(False)
    units = "" if setting == "hard sharing" else " units"
    picture.suptitle(
        f"Evaluations in which the {task} is right, without → with {setting}{units}"
        f" ({len(seeds)} seeds)"
    )
    return plot.save(picture, axes, path)
