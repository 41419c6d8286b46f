"""Episodes: in each, a network with new weights learns a few classes online; its rule is meta-learned."""

from __future__ import annotations

from typing import TYPE_CHECKING

from absl import flags

from experiments.common.errors import UserError
from experiments.common.flags import BATCH_SIZE, Axis, Flag, Settings, whole
from experiments.common.parsers import Names, Numbers
from experiments.common.results import Score
from experiments.common.task import Task, later
from experiments.tasks import classification
from experiments.tasks.registry import POOLS

if TYPE_CHECKING:
    from ojax.datasets import Dataset

# Pools whose rules :mod:`experiments.transfer` tests in other conditions.
TAKEN_ELSEWHERE = ("alone", "oja", "ehebb_oja")
_POOL_WORDS = {
    "alone": "pseudo-gradient alone",
    "ehebb": "with eHebb",
    "oja": "with Oja",
    "ehebb oja": "with eHebb and Oja",
    "all": "all ten",
}
FEEDBACK = classification.FEEDBACK._replace(default="backprop,random", canonical=None)
AXES = (
    Axis(
        "pool",
        "alone,ehebb,oja,all",
        "The rules whose coefficients are learned: the pseudo-gradient alone, or with those named",
        Names(POOLS),
        traced=True,
        words=lambda value: _POOL_WORDS.get(value, f"with {value}"),
    ),
    FEEDBACK,
    Axis(
        "coefficients",
        "shared",
        "Whether all layers share the coefficients, or each has its own",
        Names(("shared", "by_layer")),
        canonical="shared",
    ),
    BATCH_SIZE,
    Axis(
        "meta_rate",
        "1e-3",
        "Rates of Adam, which moves the coefficients.",
        Numbers(float, 0, exclusive=True),
        traced=True,
        tuned=True,
        words="meta-rate {:g}",
    ),
    Axis(
        "l1",
        "0",
        "Weights of the L1 norm of the coefficients.",
        Numbers(float, 0),
        traced=True,
        words="L1 {:g}",
        canonical=0,
    ),
    Axis(
        "held_out",
        "0",
        "How many classes, the last ones, have no part in meta-learning.",
        Numbers(int, 0),
        words="{} classes held out",
        canonical=0,
    ),
)
IMAGES_AND_NETWORK = (
    classification.DATASET,
    classification.DATA_DIR,
    Flag("side", 28, "Pixels per side to which images are averaged down, a divisor of their size.", whole(1)),
    Flag("widths", "170,130,100,70", "Widths of the hidden layers.", Numbers(int, 1, 2**31 - 1, repeats=True)),
    Flag("outputs", 47, "Units of the read-out, at least as many as the data have classes.", whole(2)),
    Flag("classes", 5, "Classes per episode.", whole(2)),
    Flag("images", 50, "Training images per class of an episode.", whole(1)),
    Flag("queries", 10, "Query images per class of an episode.", whole(1)),
    Flag("num_test", 20, "Episodes of an evaluation, drawn from the test images.", whole(1)),
)
FLAGS = (
    *IMAGES_AND_NETWORK,
    Flag("start", 1e-3, "Initial coefficient of the pseudo-gradient; all others start at 0.", flags.FloatParser()),
    Flag("clip", 1.0, "Largest norm of a meta-gradient; larger ones are scaled down to it.", flags.FloatParser(0.0)),
)


def complete(settings: Settings) -> Settings:
    """Returns the settings after checking them."""
    if settings["batch_size"] != (1,):
        raise UserError("A rule is learned from one episode after the other: leave --batch_size at 1.")
    if settings.get("clip") == 0:
        raise UserError("--clip=0: no gradient would be left.")
    return settings


def load(settings: Settings) -> Dataset:
    """Loads the images by class, as the data of a meta-learner."""
    from experiments.tasks import meta_learners

    images = load_images(settings)._replace(class_names=())
    try:
        dataset = meta_learners.episodes_of(settings).of(images, settings["num_train"])
    except ValueError as error:
        raise UserError(f"--dataset={settings['dataset']}: {error}") from None
    held_out, count = max(settings["held_out"]), len(dataset.test)
    if settings["classes"] > count - held_out:
        left = f"leaves {max(count - held_out, 0)} of {count} classes"
        raise UserError(f"--held_out={held_out} {left}, too few for the {settings['classes']} of an episode (--classes).")
    return dataset


def load_images(settings: Settings) -> Dataset:
    """Loads all images, averaged down to `--side` pixels per side."""
    import numpy as np

    from ojax import datasets

    dataset = classification.load_images(settings.changed(num_test=0), flatten=True)
    if len(dataset.class_names) > settings["outputs"]:
        raise UserError(f"--outputs={settings['outputs']}: {dataset.name} has {len(dataset.class_names)} classes.")
    size, side = dataset.train.inputs.shape[1], settings["side"]
    whole_side = round(size**0.5)
    if whole_side**2 != size or whole_side % side:
        raise UserError(f"--side={side}: the images of {dataset.name} have {size} numbers, no square of such a side.")
    factor = whole_side // side

    def averaged(images: np.ndarray) -> np.ndarray:
        blocks = images.reshape(-1, side, factor, side, factor)
        return blocks.mean(axis=(2, 4), dtype=np.float32).reshape(len(images), -1)

    train, test = (datasets.Examples(averaged(part.inputs), part.targets) for part in (dataset.train, dataset.test))
    return dataset._replace(train=train, test=test)


TASK = Task(
    axes=AXES,
    flags=FLAGS,
    complete=complete,
    load=load,
    learner=later("experiments.tasks.meta_learners.learner"),
    score=Score(words="meta-accuracy", samples="episodes"),
    shuffle=False,
)
