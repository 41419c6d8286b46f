"""Streams that change: a network learns task after task, online, and is not told when the task changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from absl import flags

from experiments.common.errors import UserError
from experiments.common.flags import BATCH_SIZE, LEARNING_RATE, Axis, Flag, Settings, whole
from experiments.common.parsers import Names
from experiments.common.results import Score
from experiments.common.task import Setting, Task, later
from experiments.tasks import classification, comparing
from experiments.tasks.registry import CHANGES, CONTINUAL, resolve

if TYPE_CHECKING:
    from ojax.datasets import Dataset

_CHANGE_WORDS = {
    "pixels": "pixels permuted",
    "labels": "labels permuted",
    "gain": "input gain drifts",
    "classes": "classes in sequence",
}
# Axes that this task shares with classification.
_SHARED = ("depth", "init", "init_gain", "activation")

AXES = (
    Axis("change", "pixels", "What changes from task to task", Names(CHANGES), words=lambda value: _CHANGE_WORDS[value]),
    *(axis for axis in classification.AXES if axis.name in _SHARED),
    Axis("rival", ",".join(CONTINUAL), "What is compared; all with --change=pixels, six with others", Names(CONTINUAL)),
    BATCH_SIZE,
    LEARNING_RATE._replace(default="3e-3,1e-2,3e-2"),
    comparing.STRENGTH,
)
FLAGS = (
    *(flag for flag in classification.FLAGS if flag.name != "measures"),
    Flag("period", 500, "Samples per task.", whole(1)),
    Flag("half_life", 1000.0, "Samples in which the rate of a fading rule halves.", flags.FloatParser(1e-6)),
    Flag("use_bias", False, "Whether layers have biases.", flags.BooleanParser()),
)


def complete(settings: Settings) -> Settings:
    """Returns the settings with an evaluation at the end of each task."""
    settings = comparing.complete(settings)
    period, count = settings["period"], settings["num_train"]
    if count % period:
        raise UserError(f"--num_train={count} is no multiple of --period={period}: give whole tasks.")
    if "upgd_features" in settings["rival"] and 1 in settings["depth"]:
        raise UserError("--depth=1: upgd_features is about hidden units; give two layers at least, or another --rival.")
    if settings["epochs"] > 1:
        raise UserError("A stream has no epochs: give a larger --num_train.")
    if "evals" in settings.given and settings["evals"] != (count // period,):
        raise UserError(f"--evals: a task is evaluated at its end, so leave it out; here there are {count // period}.")
    return settings.changed(evals=(count // period,))


def shown(setting: Setting, data: Dataset) -> Dataset:
    """Returns the stream of a setting, made of images."""
    return resolve(CHANGES[setting["change"]])(data, period=setting["period"], first_again=True)


TASK = Task(
    axes=AXES,
    flags=FLAGS,
    complete=complete,
    load=classification.load,
    learner=later("experiments.tasks.continual_learners.learner"),
    score=Score("train_accuracy", "train_accuracy", "online accuracy"),
    shown=shown,
)
