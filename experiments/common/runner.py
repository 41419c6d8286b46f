"""Trains a grid block by block, and leaves the rows of each block in its folder."""

from __future__ import annotations

from functools import partial
from typing import Any

import pandas as pd

from experiments.common import processes, stopping, tables
from experiments.common.grid import Block, Grid
from experiments.common.progress import Progress
from experiments.common.workdir import Workdir
from ojax import online
from ojax.online.checkpoints import Checkpoints, Interrupted
from ojax.online.weights import SavedWeights


def run(grid: Grid, block_size: int, every: Any, folder: Workdir, weights: SavedWeights | None, progress: Progress) -> None:
    """Trains every run of the grid.

    Blocks that are there already are not run again, and one that was stopped goes on where its state was last saved.

    Args:
      grid: The runs.
      block_size: How many are trained at once, at most.
      every: How often the state is saved, a :class:`experiments.common.parsers.SaveEvery`.
      folder: Where the rows and states go.
      weights: Where the final weights go, or None.
      progress: Receives progress updates.

    Raises:
      Interrupted: If a signal asked to stop.
      CheckpointError: If a block's state cannot be saved.
      UserError: If a block's rows or weights cannot be written.
    """
    done = set(processes.on_first(lambda: folder.blocks_done(block_size)))
    if weights is not None:
        done &= set(processes.on_first(weights.saved))
    blocks = grid.blocks(block_size)
    if done:
        progress.say(f"{len(done)} of {len(blocks)} blocks of runs are done already")
    for number, block in enumerate(blocks):
        num_runs = block.stop - block.start
        progress.start(block.part.name, num_runs)
        if number in done:
            progress.skip(block.part.plan.evaluate_at[-1])
            continue
        with Checkpoints(
            folder.checkpoints(number), every_samples=every.samples, every_seconds=every.seconds, stop=stopping.asked
        ) as checkpoints:
            found = _train(grid, block, checkpoints, _saving(grid, number, block, weights), progress)
        processes.on_first(partial(folder.write_block, number, block_size, found._asdict()))
        if processes.any_of(stopping.asked()):
            raise Interrupted(f"Stopped; the rows of the blocks that are done are saved in {folder.path}.")


def _saving(grid: Grid, number: int, block: Block, weights: SavedWeights | None) -> Any:
    """What saves the weights of a block when its runs are trained."""
    if weights is None:
        return None
    runs = block.part.runs[block.start : block.stop][grid.columns].to_dict("records")
    save = partial(weights.save, number, block.part.learner.apply, grid.dataset, runs)
    return lambda params, state: processes.in_step(lambda: save(params, state))


def _train(grid: Grid, block: Block, checkpoints: Checkpoints, on_trained: Any, progress: Progress) -> tables.Tables:
    part, span = block.part, slice(block.start, block.stop)
    runs = part.runs[span].reset_index(drop=True)[grid.columns]
    trained = online.train(
        part.learner,
        {name: numbers[span] for name, numbers in part.hyper.items()},
        runs["seed"].tolist(),
        grid.dataset,
        part.plan,
        num_slots=block.slots,
        checkpoints=checkpoints,
        on_progress=progress.advance,
        on_trained=on_trained,
    )
    num_classes, results, measures = len(grid.dataset.class_names), [], []
    for seen, scores in trained:
        progress.scored(scores)
        counts: dict[str, float] = {"num_train": part.plan.num_train, "examples_seen": seen}
        if num_classes:
            counts["examples_per_class"] = seen / num_classes
        found, of_layers = tables.rows(runs, counts, scores)
        results.append(found)
        measures += [] if of_layers is None else [of_layers]
    return tables.Tables(pd.concat(results), pd.concat(measures) if measures else None)
