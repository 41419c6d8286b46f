"""The grid of a study: its runs, grouped by compiled program."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import pandas as pd

from experiments.common.errors import UserError
from experiments.common.flags import Axis, Settings
from experiments.common.question import Question
from experiments.common.results import SEED
from experiments.common.task import Task
from ojax import online
from ojax.datasets import Dataset, facts
from ojax.online.checksums import sha256


class Part(NamedTuple):
    """The runs of one compiled program.

    Attributes:
      name: Its name in progress: the values that differ from other parts'.
      learner: The learner.
      dataset: The data of its runs.
      plan: Samples and evaluations of each run.
      runs: The runs' settings: one column per axis, and `seed`.
      hyper: The values of the traced axes, as the learner's hyper-parameters.
      keys: One hash per run, of its program, setting and seed, and of the data that only some programs have.
    """

    name: str
    learner: online.Learner
    dataset: Dataset
    plan: online.Plan
    runs: pd.DataFrame
    hyper: dict[str, list[float]]
    keys: list[str]


class Block(NamedTuple):
    """Runs of one part that are trained at once, in a program compiled for at least as many."""

    part: Part
    rows: list[int]
    slots: int

    def split(self, size: int) -> list[Block]:
        """Returns its runs in blocks of at most `size`; the block itself if it is not larger."""
        if self.slots <= size:
            return [self]
        starts = range(0, len(self.rows), size)
        return [self._replace(rows=self.rows[start : start + size], slots=size) for start in starts]


class Grid(NamedTuple):
    """All runs of a study and their data. Training needs nothing else of the settings.

    Attributes:
      parts: The runs, by program.
      dataset: The data.
      columns: The columns that identify a run, in the sort order of the tables.
      facts: Facts on the study and its data, for `config.json`.
    """

    parts: list[Part]
    dataset: Dataset
    columns: list[str]
    facts: dict[str, Any]

    @property
    def num_runs(self) -> int:
        """Number of runs."""
        return sum(len(part.runs) for part in self.parts)

    def sorted_runs(self) -> pd.DataFrame:
        """Returns the settings and keys of all runs, one row per run, in the order of the tables."""
        parts = [part.runs[self.columns].assign(key=part.keys) for part in self.parts]
        return pd.concat(parts).sort_values(self.columns, kind="stable", ignore_index=True)

    def blocks(self, block_size: int, done: Collection[str] = (), unfinished: Sequence[Sequence[str]] = ()) -> list[Block]:
        """Returns the runs that are not done, in blocks; a part's blocks are of about equal size.

        Args:
          block_size: Largest number of runs in a block.
          done: Keys of the runs to leave out.
          unfinished: Keys of the blocks that an earlier command started. They come first, unchanged, if all their runs are
            wanted.
        """
        found, left_out = [], frozenset(done)
        for part in self.parts:
            rows = {key: row for row, key in enumerate(part.keys) if key not in left_out}
            for keys in unfinished:
                if all(key in rows for key in keys):
                    found.append(Block(part, [rows.pop(key) for key in keys], len(keys)))
            left = list(rows.values())
            size = math.ceil(len(left) / max(math.ceil(len(left) / block_size), 1))
            found += [Block(part, left[start : start + size], size) for start in range(0, len(left), max(size, 1))]
        return found

    def block_size(self, runs_that_fit: Callable[..., int] = online.runs_that_fit) -> int:
        """Returns how many runs fit in memory at once, for every part, on this machine's devices or by another function.

        Raises:
          UserError: If one run does not fit.
        """
        fitting = [runs_that_fit(part.learner, tuple(part.hyper), part.dataset, part.plan) for part in self.parts]
        if not min(fitting):
            name = self.parts[fitting.index(0)].name
            raise UserError(f"Not even one run of {name} fits in memory: take a smaller network.")
        return min(fitting)


def runs_of(question: Question, settings: Settings) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    """Returns the settings of each program, with its runs.

    Raises:
      UserError: If there is no run, or none of a value that the user gave.
    """
    programs = [axis for axis in settings.axes if not axis.traced]
    traced = [axis for axis in settings.axes if axis.traced]
    seeds = range(settings["seed"], settings["seed"] + settings["seeds"])
    found, present = [], set()
    for program in _combinations(programs, settings):
        kept = [run for run in _combinations(traced, settings) if question.keep is None or question.keep(program | run)]
        present |= {item for run in kept for item in (program | run).items()}
        if question.task.canonical is not None:
            kept = [dict(run) for run in dict.fromkeys(tuple(question.task.canonical(run).items()) for run in kept)]
        if kept:
            found.append((program, pd.DataFrame([run | {SEED: seed} for run in kept for seed in seeds])))
    if not found:
        raise UserError("This question keeps no combination of these values: see its --help.")
    for axis in settings.axes:
        lost = [str(value) for value in settings[axis.name] if (axis.name, value) not in present]
        if lost and axis.name in settings.given:
            words = f"--{axis.name}={','.join(lost)}"
            raise UserError(f"{words}: with the other flags this question has no such run; leave it out, or see --help.")
    return found


def make(question: Question, settings: Settings, dataset: Dataset) -> Grid:
    """Returns the grid of all combinations of axes' values and seeds that the question keeps.

    Raises:
      UserError: If there is no run, or the data have fewer than `num_train` samples.
    """
    make_learner = question.learner or question.task.learner
    traced = [axis for axis in settings.axes if axis.traced]
    known = {axis.name: _known_of(axis, settings[axis.name]) for axis in traced}
    fixed = {name: settings[name] for name in settings.fixed()} | known
    parts, apart = [], []
    for program, runs in runs_of(question, settings):
        hyper = {axis.name: _numbers(axis, runs[axis.name].tolist(), settings) for axis in traced}
        runs, setting = runs.assign(**program), {**fixed, **program}
        shown = dataset if question.task.shown is None else question.task.shown(setting, dataset)
        if settings["num_train"] > shown.num_train:
            raise UserError(
                f"--num_train={settings['num_train']}: the training set of {dataset.name} has {shown.num_train} samples; "
                "take fewer, or more --epochs."
            )
        alone = None if question.task.apart is None else question.task.apart(setting, dataset)
        more = [] if alone is None else [sha256(alone)]
        apart.append(alone)
        parts.append(
            Part(
                _name_of(program, settings.axes),
                make_learner(setting, dataset),
                shown,
                _plan(settings, program["batch_size"], question.task),
                runs,
                hyper,
                [_key(run, known, *more) for run in runs.to_dict("records")],
            )
        )
    untuned = [axis.name for axis in settings.axes if not axis.tuned]
    columns = [*untuned, *(axis.name for axis in settings.axes if axis.tuned), SEED]
    return Grid(parts, dataset, columns, {"dataset": fingerprint(dataset, apart)})


def fingerprint(dataset: Dataset, apart: Any = ()) -> dict[str, object]:
    """Returns facts and a hash of the data but for the arrays `apart`, to verify that a repetition has the same data."""
    left_out = {id(leaf) for leaf in jax.tree.leaves(apart)}
    shared = jax.tree.map(lambda leaf: None if id(leaf) in left_out else leaf, (dataset.train, dataset.test))
    return {**facts(dataset), "sha256": sha256(shared)}


def _combinations(axes: list[Axis], settings: Settings) -> list[dict[str, Any]]:
    names = [axis.name for axis in axes]
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*(settings[name] for name in names))]


def _known_of(axis: Axis, values: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Returns a traced axis's entry of a program's setting: its names, or whether all numbers are canonical.

    So a run's identity does not depend on the other numbers in its grid.
    """
    return values if isinstance(values[0], str) or values == (axis.canonical,) else None


def _key(run: Mapping[str, Any], *known: Any) -> str:
    return hashlib.sha256(json.dumps([run, *known], sort_keys=True).encode()).hexdigest()[:16]


def _numbers(axis: Axis, values: list[Any], settings: Settings) -> list[float]:
    """Returns the values of a traced axis as numbers; a name becomes its index."""
    return [settings[axis.name].index(value) if isinstance(value, str) else value for value in values]


def _plan(settings: Settings, batch_size: int, task: Task) -> online.Plan:
    sizes: Any = {"num_train": settings["num_train"], "epochs": settings["epochs"], "batch_size": batch_size}
    sizes |= {"shuffle": task.shuffle, "random_start": task.random_start}
    evals, total = settings["evals"], settings.samples_seen(batch_size)
    if len(evals) == 1:
        return online.Plan.evenly(evals[0], **sizes)
    counts = {count // batch_size * batch_size for count in evals} | {total}
    return online.Plan(evaluate_at=tuple(sorted(counts)), **sizes)


def _name_of(program: Mapping[str, Any], axes: tuple[Axis, ...]) -> str:
    """Returns a program's name in progress: its values that are not canonical."""
    other = [axis.name for axis in axes if not axis.traced and program[axis.name] != axis.canonical]
    return ", ".join(f"{name} {program[name]}" for name in other) or "all runs"
