"""The grid of a study: its runs, by the programs that train them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import pandas as pd

from experiments.common.errors import UserError
from experiments.common.flags import Axis, Settings
from experiments.common.question import Question
from ojax import online
from ojax.datasets import Dataset, facts
from ojax.online.checksums import sha256


class Part(NamedTuple):
    """The runs of one compiled program.

    Attributes:
      name: What tells it from the others, for progress.
      learner: What learns.
      plan: Samples and evaluations of each run.
      runs: The runs' settings: a column for each axis, and `seed`.
      hyper: The numbers of the traced axes, as the learner takes them.
    """

    name: str
    learner: online.Learner
    plan: online.Plan
    runs: pd.DataFrame
    hyper: dict[str, list[float]]


class Block(NamedTuple):
    """Runs that are trained at once: those from `start` to `stop` of a part."""

    part: Part
    start: int
    stop: int
    slots: int


class Grid(NamedTuple):
    """All runs of a study and their data. Nothing after it needs the settings.

    Attributes:
      parts: The runs, by program.
      dataset: The data.
      columns: What tells one run from another, as columns of the tables, in the order in which rows are sorted.
      facts: Of the study and its data, for `config.json`.
    """

    parts: list[Part]
    dataset: Dataset
    columns: list[str]
    facts: dict[str, Any]

    @property
    def num_runs(self) -> int:
        """Number of runs."""
        return sum(len(part.runs) for part in self.parts)

    @property
    def num_samples(self) -> int:
        """Samples of all runs together."""
        return sum(len(part.runs) * part.plan.evaluate_at[-1] for part in self.parts)

    def blocks(self, block_size: int) -> list[Block]:
        """The runs in blocks of that size at most, as even as they can be."""
        return [block for part in self.parts for block in _blocks_of(part, block_size)]

    def block_size(self, runs_that_fit: Callable[..., int] = online.runs_that_fit) -> int:
        """How many runs of any of the parts fit in memory at once, on the devices that are here or by another function.

        Raises:
          UserError: If not one does.
        """
        fitting = [runs_that_fit(part.learner, tuple(part.hyper), self.dataset, part.plan) for part in self.parts]
        if not min(fitting):
            name = self.parts[fitting.index(0)].name
            raise UserError(f"Not even one run of {name} fits in memory: take a smaller network.")
        return min(fitting)


def runs_of(question: Question, settings: Settings) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    """The settings of each program, and the runs that it trains.

    Raises:
      UserError: If there is no run.
    """
    programs = [axis for axis in settings.axes if not axis.traced]
    traced = [axis for axis in settings.axes if axis.traced]
    seeds = range(settings["seed"], settings["seed"] + settings["seeds"])
    found = []
    for program in _combinations(programs, settings):
        kept = [run for run in _combinations(traced, settings) if question.keep is None or question.keep(program | run)]
        if question.task.usual is not None:
            kept = [dict(run) for run in dict.fromkeys(tuple(question.task.usual(run).items()) for run in kept)]
        if kept:
            found.append((program, pd.DataFrame([run | {"seed": seed} for run in kept for seed in seeds])))
    if not found:
        raise UserError("This question keeps no combination of these values: see its --help.")
    return found


def make(question: Question, settings: Settings, dataset: Dataset) -> Grid:
    """The grid of every combination of the axes' values, each with every seed, but for those that the question drops.

    Raises:
      UserError: If there is no run, or the data do not have so many samples.
    """
    if settings["num_train"] > dataset.num_train:
        raise UserError(
            f"--num_train={settings['num_train']}: the training set of {dataset.name} has {dataset.num_train} samples; "
            "take fewer, or more --epochs."
        )
    make_learner = question.learner or question.task.learner
    traced = [axis for axis in settings.axes if axis.traced]
    parts = []
    for program, runs in runs_of(question, settings):
        hyper = {axis.name: _numbers(axis, runs[axis.name].tolist(), settings) for axis in traced}
        parts.append(
            Part(
                _name_of(program, settings.axes),
                make_learner({**settings, **program}, dataset),
                _plan(settings, program["batch_size"], shuffle=question.task.shuffle),
                runs.assign(**program),
                hyper,
            )
        )
    untuned = [axis.name for axis in settings.axes if not axis.tuned]
    columns = [*untuned, *(axis.name for axis in settings.axes if axis.tuned), "seed"]
    return Grid(parts, dataset, columns, {"dataset": fingerprint(dataset)})


def fingerprint(dataset: Dataset) -> dict[str, object]:
    """Facts and a hash of the data, by which a repeat knows that it has the same."""
    return {**facts(dataset), "sha256": sha256((dataset.train, dataset.test))}


def _combinations(axes: list[Axis], settings: Settings) -> list[dict[str, Any]]:
    names = [axis.name for axis in axes]
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*(settings[name] for name in names))]


def _numbers(axis: Axis, values: list[Any], settings: Settings) -> list[float]:
    """The values of a traced axis; a name's is its index."""
    return [settings[axis.name].index(value) if isinstance(value, str) else value for value in values]


def _plan(settings: Settings, batch_size: int, *, shuffle: bool) -> online.Plan:
    sizes: Any = {"num_train": settings["num_train"], "epochs": settings["epochs"], "batch_size": batch_size}
    evals, total = settings["evals"], settings.samples_seen(batch_size)
    if len(evals) == 1:
        return online.Plan.evenly(evals[0], **sizes, shuffle=shuffle)
    counts = {count // batch_size * batch_size for count in evals} | {total}
    return online.Plan(evaluate_at=tuple(sorted(counts)), **sizes, shuffle=shuffle)


def _name_of(program: Mapping[str, Any], axes: tuple[Axis, ...]) -> str:
    """A program in a line of progress: what is not as usual."""
    unusual = [f"{axis.name} {program[axis.name]}" for axis in axes if not axis.traced and program[axis.name] != axis.plain]
    return ", ".join(unusual) or "all runs"


def _blocks_of(part: Part, block_size: int) -> Iterator[Block]:
    num_blocks = -(-len(part.runs) // block_size)
    size = -(-len(part.runs) // num_blocks)
    for start in range(0, len(part.runs), size):
        yield Block(part, start, min(start + size, len(part.runs)), size)
