"""Names that the program and its study share. They are here because the study does without
TensorFlow.
"""

# Layers that a cross-stitch unit may follow, or after which towers may begin, in their order.
# Dropout follows the last, and with hard sharing all tasks share the layers up to the last.
PLACES = ("pool_1", "pool_2", "fc_3")
SETTINGS, RESULTS = "settings.json", "results.json"  # in a run's folder
PROGRESS = "progress.json"  # there, too, while it trains
NUMBER = "run"  # in settings.json and beside each checkpoint: a random number, the run's own
CLASS_TAG = "tasks/"  # begins the curves of single classes
# The original's names of flags, which work, too.
ALIASES = {
    "cross_stitch_enabled": "cross_stitch",
    "lr": "learning_rate",
    "n_epoch": "num_epochs",
    "n_batch_size": "batch_size",
    "reg_lambda": "l2_scale",
}
NUMERICS = 2  # raised by a change of this program that alters a result's bits
LAST_EVALUATIONS = 5  # a run's accuracy, accuracy_test_last, is the mean of so many


def numerics_of(content):
    """The numerics that a run's settings or its record name. The first ones do not name them."""
    return content.get("numerics", 1)


def sharing_of(flags):
    """What a run's towers share: "hard_sharing", the kind of unit, or "none".

    Args:
      flags: train.py's flags, name -> value. One task has nothing to share.
    """
    if flags.get("hard_sharing"):
        return "hard_sharing"
    shares = flags["cross_stitch"] and "," in flags["tasks"]
    return flags["cross_stitch_unit"] if shares else "none"


def curve_of_class(task, index, class_, measure):
    """The name of a class's curve, for example tasks/article/0_T-shirt-top/recall. A slash in a
    name would begin a part of the tag."""
    return f"{CLASS_TAG}{task}/{index}_{class_.replace('/', '-')}/{measure}"


def unit_scope(place):
    """The scope of the unit after a layer, such as "cross_stitch_1" after "pool_1"."""
    return f"cross_stitch_{PLACES.index(place) + 1}"
