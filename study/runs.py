"""Which runs the study has: one table, `STUDIES`.

Every setting of a study is run with every seed. To add a setting, add a line to the study's
`settings`: its name and its flags of train.py. To add a study, add an entry, and the marks of
its tables to README.md. `python -m study.reproduce --only=NAME` makes what is missing.
"""

import typing

from harness import pools
from study import watching

ALL_IMAGES = 60000
STARVED_IMAGES = 14891  # of --starve=100


class Study(typing.NamedTuple):
    """Runs that are compared with each other."""

    settings: dict  # name -> flags of train.py; init_from is another setting of the same seed
    schedules: dict  # training images, or labels -> flags: num_epochs and eval_every at least
    seeds: range
    baselines: tuple = ("none",)  # the settings that the others are compared with
    borrowed: dict = {}  # study -> settings whose runs of the same seeds are shown as well
    repeated_by: str | None = None  # the study whose figures count instead, where it has a setting
    hidden: tuple = ()  # settings that no table shows: they lend their towers to others
    # Setting -> what it is compared with besides: the same units sharing nothing, for example.
    controls: dict = {}
    # What was asked before any of the runs was made: whether this setting gains in this measure.
    # Its p-value needs no correction, and the study has no part in the list of all comparisons.
    question: tuple | None = None
    condition: str = "images"  # what the keys of `schedules` count
    table: str = "gains"  # what its table shows, out of `tables.TABLES`
    more_tables: dict = {}  # name -> what it shows
    # File in img/ -> what it shows, out of `pictures.PICTURES`, and of which settings if not all.
    pictures: dict = {}
    beside: dict = {}  # study -> settings that its picture shows as well, with their own seeds

    @property
    def first_condition(self):
        """That of the question, and of what is shown of single settings and of the units."""
        return next(iter(self.schedules))


class Run(typing.NamedTuple):
    """One run of train.py."""

    study: str
    setting: str  # begins with the number of training images, if train_examples sets it
    seed: int
    flags: dict  # of train.py, besides the seed
    source: typing.Any = None  # the Run whose towers it starts with

    @property
    def name(self):
        return name_of(self.setting, self.seed)

    @property
    def seed_index(self):
        """0 for the first seed of its study, 1 for the next."""
        return self.seed - STUDIES[self.study].seeds[0]

    @property
    def cost(self):
        """What it costs, in training images of towers that share nothing."""
        of_study = STARVED_IMAGES if "starve" in self.flags else ALL_IMAGES
        examples = self.flags.get("train_examples") or of_study
        of_epoch = -(-examples // 128)
        if "label_only" in self.flags:
            few = int(self.flags["label_only"].rpartition(":")[2])
            sizes = {("few",): range(few), ("all",): range(examples - few)}
            of_epoch = sum(pools.steps_per_epoch(sizes, 128, self.flags["balance"]))
        steps = self.flags["num_epochs"] * of_epoch
        steps = min(steps, self.flags.get("max_steps", steps))
        return int(watching.cost_of(self.flags, steps, 128, 10000).total)


def name_of(setting, seed):
    """What folders and records call a run."""
    return f"{setting}-seed{seed}".replace(" ", "_")


# --- Settings ---

NO_UNITS = {"cross_stitch": False}
START_07 = {"cross_stitch_init": 0.7}
RATE_X1000 = {"cross_stitch_learning_rate_scale": 1000}
# Without dense units, which take as long as 15 others: the replication has them.
KINDS_OF_SHARING = {
    "none": NO_UNITS,
    "channel": {"cross_stitch_unit": "channel"},
    "layer": {"cross_stitch_unit": "layer"},
    "nddr": {"cross_stitch_unit": "nddr"},
    "hard sharing": {**NO_UNITS, "hard_sharing": True},
}
FEW_LABELS_SETTINGS = {**KINDS_OF_SHARING, "start 0.7": START_07, "rate x1000": RATE_X1000}
SHARING_AND_CONTROLS = {
    **KINDS_OF_SHARING,
    "start 0.7": START_07,
    "channel own only": {"cross_stitch_own_only": True},
    "nddr own only": {"cross_stitch_unit": "nddr", "cross_stitch_own_only": True},
}
CONTROLS = {"channel": "channel own only", "nddr": "nddr own only"}
# Nddr units take half as long again: some studies do without, so that they can be finished.
WITHOUT_NDDR = {name: given for name, given in KINDS_OF_SHARING.items() if name != "nddr"}

# --- Schedules ---

# Two evaluations in an epoch: their last five differ more than five in a row of 100 steps
# would, so that their mean is a steadier figure.
FIVE_EPOCHS = {ALL_IMAGES: {"num_epochs": 5, "eval_every": 235}}
THIRTY_EPOCHS = {ALL_IMAGES: {"num_epochs": 30, "eval_every": 469}}
FEW_IMAGES = {  # the epochs were chosen on held-out images
    3000: {"train_examples": 3000, "num_epochs": 30, "eval_every": 80},
    1000: {"train_examples": 1000, "num_epochs": 50, "eval_every": 40},
    300: {"train_examples": 300, "num_epochs": 60, "eval_every": 20},
}
HELD_OUT = {"holdout": 10000}
# 25 epochs, half of what the other settings have.
HALF = {"num_epochs": 25}
# Of 6,000 images of the commonest article to 60 of the rarest, an evaluation each epoch; their
# number was chosen on held-out images.
STARVED = {STARVED_IMAGES: {"starve": 100, "eval_every": 117, "num_epochs": 20}}


def few_labels(task, *numbers):
    """20,000 images, of which so many have this task's label. Returns: schedules."""
    # Balance and epochs were chosen on held-out images: with as many steps of the few labels as
    # of the others, accuracy is highest, and steady after one of these epochs of 298 steps.
    of_all = {"train_examples": 20000, "balance": 1.0, "num_epochs": 3}
    return {
        number: {**of_all, "label_only": f"{task}:{number}", "eval_every": 149}
        for number in numbers
    }


# --- Studies ---

# Of replicate.py's runs, fixed before any of them.
SEEDS_OF_THE_REPLICATION = range(10, 20)
EPOCHS_OF_THE_REPLICATION = 30

# A choice that was made with some seeds is tested with others.
STUDIES = {
    # What sharing brings, and what units bring that share nothing: for new images.
    "all_images": Study(
        {**SHARING_AND_CONTROLS, "channel": {}},  # its runs are also those beside bfloat16
        FIVE_EPOCHS,
        range(200, 208),
        baselines=("none", "channel"),
        controls=CONTROLS,
        more_tables={
            "results": "kinds",
            "needed": "images needed",
            "changed": "images changed",
            "weights": "weights",
        },
        pictures={
            "acc_test.png": ("accuracy", "none", "channel"),
            "total_loss.png": ("loss", "none", "channel"),
            "weights_of_layer_units.png": ("weights over training", "layer"),
            "weights_at_the_end.png": ("weights at the end", "channel"),
            "images_that_gained.png": ("images whose group gained",),
        },
    ),
    # The same before records kept what was predicted for each image.
    "full": Study(
        SHARING_AND_CONTROLS,
        FIVE_EPOCHS,
        range(200, 208),
        baselines=("none", "channel"),
        controls=CONTROLS,
        repeated_by="all_images",
    ),
    # What 30 epochs bring, for new images, and before records kept what was predicted.
    "all_images_30_epochs": Study(
        {name: KINDS_OF_SHARING[name] for name in ("none", "channel", "layer")},
        THIRTY_EPOCHS,
        range(5),
        pictures={"acc_test_30_epochs.png": ("accuracy", "none", "channel")},
    ),
    "full_30_epochs": Study(
        WITHOUT_NDDR, THIRTY_EPOCHS, range(5), repeated_by="all_images_30_epochs"
    ),
    "where": Study(
        {
            "channel at pool_1": {"cross_stitch_unit": "channel", "cross_stitch_at": "pool_1"},
            "channel at pool_2": {"cross_stitch_unit": "channel", "cross_stitch_at": "pool_2"},
            "channel at fc_3": {"cross_stitch_unit": "channel", "cross_stitch_at": "fc_3"},
            "layer at pool_1": {"cross_stitch_unit": "layer", "cross_stitch_at": "pool_1"},
            "layer at pool_2": {"cross_stitch_unit": "layer", "cross_stitch_at": "pool_2"},
            "layer at fc_3": {"cross_stitch_unit": "layer", "cross_stitch_at": "fc_3"},
            "shared until pool_1": {**NO_UNITS, "share_until": "pool_1"},
            "shared until pool_2": {**NO_UNITS, "share_until": "pool_2"},
        },
        FIVE_EPOCHS,
        range(200, 205),
        borrowed={"full": tuple(WITHOUT_NDDR)},
        pictures={"where.png": ("places",)},
    ),
    "few_images": Study(
        WITHOUT_NDDR,
        FEW_IMAGES,
        range(10),
        pictures={"few_images.png": ("images",)},
        beside={
            "full": (*KINDS_OF_SHARING, "start 0.7"),
            "best_lever": ("start 0.7",),
            "fast_units": ("rate x1000",),
        },
    ),
    # The paper's levers, on held-out images: they choose one.
    "levers": Study(
        {
            "alone half": {**NO_UNITS, **HALF},
            "none": NO_UNITS,
            "channel": {},
            "alone first": {"init_from": "alone half", **HALF},
            "rate x10": {"cross_stitch_learning_rate_scale": 10},
            "rate x100": {"cross_stitch_learning_rate_scale": 100},
            "rate x1000": RATE_X1000,
            "start 0.5": {"cross_stitch_init": 0.5},
            "start 0.7": START_07,
            "start 0.9": {"cross_stitch_init": 0.9},
        },
        {1000: {**FEW_IMAGES[1000], **HELD_OUT}},
        range(10),
        baselines=("none", "channel"),
        hidden=("alone half",),
    ),
    # "Start 0.7" was first among the levers by their seeds 0 to 2, just before "rate x1000".
    "best_lever": Study({"none": NO_UNITS, "start 0.7": START_07}, FEW_IMAGES, range(200, 210)),
    # "Rate x1000" was first by all ten.
    "fast_units": Study(
        {
            "none": NO_UNITS,
            "rate x1000": RATE_X1000,
            "rate x1000 own only": {**RATE_X1000, "cross_stitch_own_only": True},
        },
        {1000: FEW_IMAGES[1000]},
        range(210, 220),
        controls={"rate x1000": "rate x1000 own only"},
        question=("rate x1000", "mean"),
    ),
    # Whether sharing helps a task whose label is known for few images.
    "few_article_labels": Study(
        FEW_LABELS_SETTINGS,
        few_labels("article", 1000, 300, 3000),
        range(300, 310),
        question=("start 0.7", "article"),
        condition="article labels",
        table="tasks",
        more_tables={"few_labels_weights": "weights"},
        pictures={
            "few_article_labels.png": ("few article labels",),
            "few_labels_weights.png": ("weights at the end", "start 0.7"),
        },
    ),
    # Nddr units had gained most there: whether that is the sharing, with seeds of its own.
    "few_labels_control": Study(
        {
            "none": NO_UNITS,
            "nddr": {"cross_stitch_unit": "nddr"},
            "nddr own only": {"cross_stitch_unit": "nddr", "cross_stitch_own_only": True},
        },
        few_labels("article", 1000),
        range(310, 315),
        controls={"nddr": "nddr own only"},
        condition="article labels",
        table="tasks",
    ),
    # The same where the other label is rare. An article says which group it is of.
    "few_group_labels": Study(
        FEW_LABELS_SETTINGS,
        few_labels("group", 1000),
        range(300, 305),
        condition="group labels",
        table="tasks",
    ),
    # What bfloat16 costs: each setting against the same in float32.
    "precision": Study(
        {
            "none bfloat16": {**NO_UNITS, "precision": "bfloat16"},
            "channel bfloat16": {"precision": "bfloat16"},
        },
        FIVE_EPOCHS,
        range(200, 205),
        baselines=(),
        borrowed={"all_images": ("none", "channel")},
        controls={"none bfloat16": "none", "channel bfloat16": "channel"},
        table="against controls",
    ),
    "starved": Study(
        {**KINDS_OF_SHARING, "start 0.7": START_07},
        STARVED,
        range(10),
        question=("channel", "recall, rarest - commonest"),
        table="ranks",
        pictures={"starved.png": ("ranks",)},
    ),
}


def setting_of(study, images, name):
    """How records name a setting: "1000 none" is "none" with --train_examples=1000."""
    return f"{images} {name}" if "train_examples" in STUDIES[study].schedules[images] else name


def settings_of(study):
    """The settings of a study as records name them -> training images, name in the table."""
    return {
        setting_of(study, images, name): (images, name)
        for images in STUDIES[study].schedules
        for name in STUDIES[study].settings
    }


def is_also_in_float32(run):
    """Whether its record says how many of its answers differ in float32: of a study's run in
    another precision."""
    return run.study in STUDIES and "precision" in run.flags


def runs_of(study):
    """The runs of a study, all settings of a seed before the next seed. Returns: a list."""
    table, runs = STUDIES[study], {}
    for images, schedule in table.schedules.items():
        for seed in table.seeds:
            for name, given in table.settings.items():
                setting = setting_of(study, images, name)
                flags = {"batch_norm_decay": 0.9, **schedule, **given}
                lender = flags.pop("init_from", None)  # stands before those that start from it
                source = runs[images, seed, lender] if lender else None
                runs[images, seed, name] = Run(study, setting, seed, flags, source)
    return list(runs.values())


def all_runs():
    """The runs of all studies, in the order in which they are made. Returns: a list."""
    return [run for study in STUDIES for run in runs_of(study)]


def runs_for(names):
    """The runs of these studies, and those of others that their tables show. Returns: a list."""
    borrowed = {
        (other, setting_of(other, condition, setting), seed)
        for name in names
        for other, settings in STUDIES[name].borrowed.items()
        for setting in settings
        for condition in STUDIES[name].schedules
        for seed in STUDIES[name].seeds
    }
    return [
        run
        for run in all_runs()
        if run.study in names or (run.study, run.setting, run.seed) in borrowed
    ]


def in_tasks(runs):
    """Runs in lists. A list's runs start with the same towers, and are made one after another."""
    tasks = {}
    for run in runs:
        first = run.source or run
        tasks.setdefault((first.study, first.name), []).append(run)
    return list(tasks.values())


def quick(runs):
    """Two seeds of each setting, a few steps long. They only show that everything works.

    All but the starved ones train on as few images, so one schedule of each study is enough.
    """
    # The whole test set would take longer than all the rest.
    short = {"train_examples": 256, "num_epochs": 3, "eval_every": 2, "holdout": 1000}
    short["batch_norm_decay"] = 0.5

    def shortened(run):
        source = run.source and shortened(run.source)
        flags = {**run.flags, **short}
        if "starve" in flags:  # which chooses the training images itself
            del flags["train_examples"]
            flags["max_steps"] = 6
        if "label_only" in flags:  # a batch of labels, and a batch of images without one
            flags["label_only"] = f"{flags['label_only'].partition(':')[0]}:128"
        return run._replace(flags=flags, source=source)

    def is_of_the_first_schedule(run):
        schedule = STUDIES[run.study].schedules[STUDIES[run.study].first_condition]
        return all(run.flags.get(n) == schedule.get(n) for n in ("train_examples", "label_only"))

    chosen = filter(is_of_the_first_schedule, runs)
    return [shortened(run) for run in chosen if run.seed_index < 2]
