"""Trains blocks of runs, and writes their rows into the study's folder."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import pandas as pd

from experiments.common import processes, stopping, tables
from experiments.common.grid import Block, Grid
from experiments.common.progress import Progress
from experiments.common.results import COUNTS, SEED
from experiments.common.workdir import Workdir
from ojax import online
from ojax.online.checkpoints import Checkpoints, Interrupted
from ojax.online.weights import SavedWeights


def run(
    grid: Grid,
    blocks: Sequence[Block],
    version: int,
    every: Any,
    folder: Workdir,
    weights: SavedWeights | None,
    progress: Progress,
) -> None:
    """Trains blocks of runs that are not done yet. A stopped block resumes from its last saved state.

    If a block does not fit in the devices' memory, it and all later blocks are halved. Rows and states go to `folder`,
    final weights to `weights`, unless it is None. `every` is a :class:`experiments.common.parsers.SaveEvery`.

    Raises:
      Interrupted: If a signal asked to stop.
      CheckpointError: If a block's state cannot be saved.
      UserError: If a block's rows or weights cannot be written.
      OutOfMemoryError: If one run per device does not fit.
    """
    waiting = deque(blocks)
    while waiting:
        block = waiting.popleft()
        keys = [block.part.keys[row] for row in block.rows]
        started_at = time.monotonic()
        progress.start(block.part.name, len(keys))
        name, state = processes.on_first(partial(folder.store.begin, keys, version))
        try:
            with Checkpoints(
                state, every_samples=every.samples, every_seconds=every.seconds, stop=stopping.asked
            ) as checkpoints:
                found = _train(grid, block, checkpoints, _saving(grid, name, block, weights), progress)
        except online.OutOfMemoryError:
            size = math.ceil(block.slots / 2)
            if block.slots <= jax.device_count():
                raise
            processes.on_first(partial(folder.store.forget, name))
            progress.forget(f"{len(keys)} runs at once do not fit in memory; at most {size} are trained from here on")
            waiting = deque(part for later in (block, *waiting) for part in later.split(size))
            continue
        seconds = time.monotonic() - started_at
        processes.on_first(partial(folder.store.write, name, keys, version, seconds, found._asdict()))
        if processes.any_of(stopping.asked()):
            raise Interrupted(f"Stopped; the rows of the runs that are done are saved in {folder.path}.")


def _saving(grid: Grid, name: str, block: Block, weights: SavedWeights | None) -> Any:
    """Returns an `on_trained` that saves the weights of a block; None if weights are not saved."""
    if weights is None:
        return None
    runs = block.part.runs.iloc[block.rows][grid.columns].to_dict("records")
    save = partial(weights.save, name, block.part.learner.apply, block.part.dataset, runs)
    return lambda params, state: processes.in_step(lambda: save(params, state))


def _train(grid: Grid, block: Block, checkpoints: Checkpoints, on_trained: Any, progress: Progress) -> tables.Tables:
    part = block.part
    runs = part.runs.iloc[block.rows].reset_index(drop=True)[grid.columns]
    trained = online.train(
        part.learner,
        {name: [numbers[row] for row in block.rows] for name, numbers in part.hyper.items()},
        runs[SEED].tolist(),
        part.dataset,
        part.plan,
        num_slots=block.slots,
        checkpoints=checkpoints,
        on_progress=progress.advance,
        on_trained=on_trained,
    )
    runs.insert(0, "run", range(len(runs)))
    num_classes, results, measures = len(grid.dataset.class_names), [], []
    for seen, scores in trained:
        progress.scored(scores)
        counts = (part.plan.num_train, seen, *([seen / num_classes] if num_classes else ()))
        found, of_layers = tables.rows(runs, dict(zip(COUNTS, counts, strict=False)), scores)
        results.append(found)
        measures += [] if of_layers is None else [of_layers]
    return tables.Tables(pd.concat(results), pd.concat(measures) if measures else None)
