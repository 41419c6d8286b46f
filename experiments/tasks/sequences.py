"""Sequences: a recurrent network reads a sequence step by step, then gives its output after a delay."""

from __future__ import annotations

from typing import TYPE_CHECKING

from experiments.common.errors import UserError
from experiments.common.flags import BATCH_SIZE, LEARNING_RATE, OJA_RATE, Axis, Flag, Settings, kind_of_data, whole
from experiments.common.parsers import DataName, Numbers
from experiments.common.task import Setting, Task
from experiments.tasks import classification
from experiments.tasks.stream import RECURRENT_WEIGHTS

if TYPE_CHECKING:
    from ojax.datasets import Dataset
    from ojax.online import Learner

COPY = "copy"

AXES = (
    Axis("delay", "0,20,60", "Steps without input before the output.", Numbers(int, 0, 10**4), words="delay {}"),
    *RECURRENT_WEIGHTS,
    BATCH_SIZE,
    LEARNING_RATE._replace(default="3e-3,1e-2,3e-2"),
    OJA_RATE,
)
FLAGS = (
    Flag(
        "dataset",
        "embedded",
        f"Images that are seen row by row, as every question takes them; or {COPY}, random bits to be repeated, made from "
        "the run's seed.",
        DataName(),
        fixed=kind_of_data,
    ),
    classification.DATA_DIR,
    Flag("units", 64, "Number of recurrent units.", whole(1)),
    Flag("length", 5, f"Bits per sequence of --dataset={COPY}.", whole(1)),
    Flag("num_test", 1000, "Largest number of test sequences per evaluation.", whole(1)),
)


def load(settings: Settings) -> Dataset:
    """Loads images; or sequences of the first delay, which :func:`shown` replaces by each program's own."""
    if settings["dataset"] == COPY:
        from experiments.tasks import recurrent

        return recurrent.copy_task({**settings, "delay": settings["delay"][0]})
    dataset = classification.load(settings)
    size = dataset.train.inputs.shape[1]
    if round(size**0.5) ** 2 != size:
        raise UserError(f"--dataset={settings['dataset']}: images of {size} numbers are no square of grey pixels.")
    return dataset


def learner(setting: Setting, data: Dataset) -> Learner:
    """Returns the learner of a setting's recurrent network, by backpropagation through the whole sequence."""
    from experiments.tasks import recurrent

    return recurrent.copy_learner(setting) if setting["dataset"] == COPY else recurrent.row_learner(setting, data)


def shown(setting: Setting, data: Dataset) -> Dataset:
    """Returns the images, or the sequences of a setting's delay."""
    from experiments.tasks import recurrent

    return recurrent.copy_task(setting) if setting["dataset"] == COPY else data


TASK = Task(
    axes=AXES,
    flags=FLAGS,
    complete=lambda settings: settings,
    load=load,
    learner=learner,
    shown=shown,
    baseline=OJA_RATE.name,
)
