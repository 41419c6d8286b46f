"""A stream: a recurrent network learns from one time step per sample, and its memory of past inputs is measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from absl import flags

from experiments.common.errors import UserError, of_flag
from experiments.common.flags import (
    BATCH_SIZE,
    LEARNING_RATE,
    OJA_RATE,
    Axis,
    Flag,
    Settings,
    kind_of_data,
    whole,
)
from experiments.common.parsers import DataName, Names, Numbers
from experiments.common.results import Score
from experiments.common.task import Task, later
from experiments.tasks.registry import LEARNING, RECURRENT_INITIALIZERS, SIGNS, STREAMS

if TYPE_CHECKING:
    from ojax.datasets import Dataset

STACKED = next(iter(SIGNS))

_LEARNING_WORDS = {
    "readout": "read-out alone",
    "rflo": "RFLO",
    "eprop": "e-prop",
    "tbptt": "truncated BPTT",
    "rtrl": "RTRL",
}
_RULE_WORDS = {"stacked": "Oja on [U; W]", "recurrent": "Oja on W", "anti": "anti-Oja"}

RECURRENT_WEIGHTS = (
    Axis(
        "init",
        "normal",
        "How the recurrent weights are drawn",
        Names(RECURRENT_INITIALIZERS),
        traced=True,
        words="{} weights",
    ),
    Axis(
        "init_gain",
        "1",
        "Factors on the recurrent weights, whose spectral radius is near 1 at factor 1.",
        Numbers(float, 0, exclusive=True),
        traced=True,
        words="gain {:g}",
    ),
)
AXES = (
    Axis(
        "learning",
        "readout,rflo,tbptt",
        "How the error reaches the past",
        Names(LEARNING),
        words=lambda value: _LEARNING_WORDS[value],
    ),
    *RECURRENT_WEIGHTS,
    Axis(
        "input_scale",
        "0.5",
        "Input weights are uniform from minus to plus this.",
        Numbers(float, 0, exclusive=True),
        traced=True,
        words="inputs ±{:g}",
    ),
    Axis(
        "rule",
        "stacked",
        "Which kernels Oja's rule acts on: that of input and recurrent weights stacked, or on the recurrent ones alone, or "
        "the first with its sign reversed",
        Names(SIGNS),
        traced=True,
        words=lambda value: _RULE_WORDS[value],
    ),
    BATCH_SIZE,
    LEARNING_RATE,
    OJA_RATE,
)
FLAGS = (
    Flag(
        "dataset",
        "uniform",
        "The stream: uniform or binary, independent inputs, of which those of the last --delays steps are asked for; "
        "and for questions that take them narma10 or mackey_glass, made from the run's seed like these, or npz:FILE with "
        "arrays x and y, a row a time step, and x_test and y_test.",
        DataName(),
        fixed=kind_of_data,
    ),
    Flag("units", 100, "Number of recurrent units.", whole(1)),
    Flag("delays", 100, "Number of past inputs to recall.", whole(1)),
    Flag("horizon", 10, "Steps through which truncated BPTT sends an error back.", whole(1)),
    Flag("leaking_rate", 1.0, "Share of the hidden state that is new in each step.", flags.FloatParser(0.0, 1.0)),
    Flag("num_test", 3000, "Steps of an evaluation, half of them to fit the read-outs of the memory capacity.", whole(100)),
)


def complete(settings: Settings) -> Settings:
    """Returns the settings after checking the stream and the axes."""
    name = settings["dataset"]
    if name not in STREAMS and not name.startswith("npz:"):
        raise UserError(f"--dataset={name}: a stream is one of {', '.join(STREAMS)}, or npz:FILE.")
    if settings["batch_size"] != (1,):
        raise UserError("A stream is learned one time step after the other: leave --batch_size at 1.")
    if any(settings["oja_rate"]) and 0 in settings["oja_rate"] and STACKED not in settings["rule"]:
        raise UserError(f"--rule: give {STACKED} too, to which the runs without Oja's rule belong.")
    if settings["leaking_rate"] == 0:
        raise UserError("--leaking_rate=0: the hidden state would never change.")
    return settings


def canonical(run: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the run in its canonical form: without Oja's rule, the axis `rule` has no effect."""
    return {**run, "rule": STACKED} if run["oja_rate"] == 0 else run


def load(settings: Settings) -> Dataset:
    """Loads the stream from a file, or returns one that is generated during training."""
    from experiments.tasks import recurrent
    from ojax import datasets
    from ojax.datasets import checking

    name = settings["dataset"]
    if name in STREAMS:
        return recurrent.data_of(settings)
    dataset = datasets.load(name)
    with of_flag("dataset", name):
        checking.require_numbers(dataset)
    targets = [part.reshape(len(part), -1) for part in (dataset.train.targets, dataset.test.targets)]
    return dataset._replace(
        train=dataset.train._replace(targets=targets[0]), test=dataset.test._replace(targets=targets[1])
    )


TASK = Task(
    axes=AXES,
    flags=FLAGS,
    complete=complete,
    load=load,
    learner=later("experiments.tasks.recurrent.stream_learner"),
    canonical=canonical,
    score=Score("test_recall", "train_r2", "inputs recalled", (0.0, None), least=1.0, unit="inputs"),
    shuffle=False,
    random_start=True,
    baseline=OJA_RATE.name,
)
