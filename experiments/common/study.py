"""From a configuration to tidy tables: the grid of runs, trained and scored block by block."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from experiments.common import network, processes, statistics, stopping
from experiments.common.config import Condition, Config
from experiments.common.errors import UserError
from experiments.common.network import MEASURE
from experiments.common.progress import Progress
from experiments.common.statistics import SETTING
from experiments.common.workdir import Workdir
from ojax import online
from ojax.datasets import Dataset
from ojax.online.checkpoints import Checkpoints, Interrupted

Keep = Callable[[Mapping[str, Any]], bool]
Scores = dict[str, np.ndarray]
# What tells one run from another, as columns of both tables, in the order in which rows are sorted.
COLUMNS = [*SETTING, "learning_rate", "oja_rate", "seed"]
_HYPER = ("init", "init_gain", "learning_rate", "oja_rate")


class Part(NamedTuple):
    """The runs of one compiled program: a condition, and the settings and seeds along its `runs` axis."""

    condition: Condition
    schedule: online.Schedule
    settings: pd.DataFrame


class Tables(NamedTuple):
    """What a study found: `results.csv`, a row a run and evaluation, and `measures.csv`, a row a layer of these.

    In the results, `train_accuracy` and `train_loss` are means over the samples since the last evaluation, each scored
    before its update; `weight_norm_1` is the first layer's Frobenius norm, and so on; `diverged_at` is empty for a run
    whose numbers stayed finite. The measures are those of :mod:`ojax.measures`; None if they were not asked for.
    """

    results: pd.DataFrame
    measures: pd.DataFrame | None

    def with_rule(self) -> "Tables":
        """The same with a column `rule`, see :data:`experiments.common.statistics.RULES`."""
        return Tables(*(None if table is None else statistics.with_rule(table) for table in self))


def parts(config: Config, keep: Keep) -> list[Part]:
    """The runs of the configuration's grid that `keep` takes, by the program that trains them.

    Args:
      config: Its lists make the grid: every combination of them, each with every seed.
      keep: From a run's settings (depth, init, learning_rate and so on, by name) to whether the study has that run.

    Raises:
      UserError: If flags do not go together.
    """
    found = []
    for condition in config.conditions():
        kept = [run for run in config.settings_of_runs() if keep(condition._asdict() | run)]
        runs = [run | {"seed": seed} for run in kept for seed in config.run_seeds()]
        if runs:
            found.append(Part(condition, config.schedule(condition.batch_size), pd.DataFrame(runs)))
    return found


def blocks(study: list[Part], block_size: int) -> Iterator[tuple[Part, pd.DataFrame]]:
    """The parts' runs in blocks of that size at most, as even as they can be, each with its part."""
    for part in study:
        size = num_slots(part, block_size)
        for start in range(0, len(part.settings), size):
            yield part, part.settings[start : start + size].reset_index(drop=True)


def num_slots(part: Part, block_size: int) -> int:
    """The number of runs in all but the last of the part's blocks, for which its program is compiled."""
    num_blocks = -(-len(part.settings) // block_size)
    return -(-len(part.settings) // num_blocks)


def block_size(config: Config, dataset: Dataset, study: list[Part]) -> int:
    """How many runs of any of the parts fit in memory at once.

    Raises:
      UserError: If not one does.
    """
    fitting = [online.runs_that_fit(learner(config, dataset, part), _HYPER, dataset, part.schedule) for part in study]
    if not min(fitting):
        raise UserError(
            f"Not even one run of {_name(study[fitting.index(0)].condition)} fits in memory: take a smaller network."
        )
    return min(fitting)


def learner(config: Config, dataset: Dataset, part: Part) -> online.Learner:
    """The network and the rule of that part's runs."""
    return network.learner(
        config.all_widths(part.condition.depth, dataset),
        schemes=config.init,
        feedback=part.condition.feedback,
        normalization=part.condition.normalization,
        optimizer=part.condition.optimizer,
        measured=config.measures,
    )


def run(config: Config, dataset: Dataset, study: list[Part], size: int, folder: Workdir, progress: Progress) -> None:
    """Trains every run of the study's parts, block by block, and leaves the rows of each block in the folder.

    Blocks that are there already are not run again, and one that was stopped goes on where its state was last saved.

    Raises:
      Interrupted: If a signal asked to stop.
      CheckpointError: If a block's state cannot be saved.
      UserError: If a block's rows cannot be written.
    """
    done, every = set(processes.on_first(lambda: folder.blocks_done(size))), config.checkpoint_every
    learners = {part.condition: learner(config, dataset, part) for part in study}
    for number, (part, settings) in enumerate(blocks(study, size)):
        progress.start(_name(part.condition), len(settings))
        if number in done:
            progress.advance(part.schedule.evaluate_at[-1])
            continue
        hyper = {name: settings[name].tolist() for name in _HYPER if name != "init"}
        hyper["init"] = [config.init.index(name) for name in settings["init"]]
        with Checkpoints(
            folder.checkpoints(number), every_samples=every.samples, every_seconds=every.seconds, stop=stopping.asked
        ) as checkpoints:
            tables = _block_tables(
                part,
                settings.assign(**part.condition._asdict())[COLUMNS],
                len(dataset.class_names),
                online.train(
                    learners[part.condition],
                    hyper,
                    settings["seed"].tolist(),
                    dataset,
                    part.schedule,
                    num_slots=num_slots(part, size),
                    checkpoints=checkpoints,
                    on_progress=progress.advance,
                ),
                progress,
            )
        processes.on_first(partial(folder.write_block, number, size, tables._asdict()))
        if processes.any_of(stopping.asked()):
            raise Interrupted(f"Stopped; the rows of the blocks that are done are saved in {folder.path}.")


def tables(folder: Workdir, num_blocks: int, measured: bool) -> Tables:
    """The rows of all blocks, sorted."""
    measures = _sorted(folder.read_blocks("measures", num_blocks), ["layer"]) if measured else None
    return Tables(_sorted(folder.read_blocks("results", num_blocks), []), measures)


def fingerprint(dataset: Dataset) -> dict[str, object]:
    """Sizes and a hash of the data, by which a repeat knows that it has the same."""
    digest = hashlib.sha256()
    for array in (*dataset.train, *dataset.test):
        digest.update(np.ascontiguousarray(array).data)
    return {
        "name": dataset.name,
        "train": dataset.num_train,
        "test": len(dataset.test.targets),
        "pixels": dataset.train.inputs.shape[1],
        "classes": len(dataset.class_names),
        "sha256": digest.hexdigest(),
    }


def _block_tables(
    part: Part, runs: pd.DataFrame, num_classes: int, scores: Iterable[tuple[int, Scores]], progress: Progress
) -> Tables:
    results, measures = [], []
    for seen, found in scores:
        progress.scored(found)
        counts = {"num_train": part.schedule.num_train, "examples_seen": seen, "examples_per_class": seen / num_classes}
        rows = runs.assign(**counts)
        of_layers = {name.removeprefix(MEASURE): found.pop(name) for name in list(found) if name.startswith(MEASURE)}
        results.append(_score_rows(rows, found))
        if of_layers:
            diverged = found["diverged_at"] >= 0
            measures += [_measure_rows(rows, layer, diverged, of_layers) for layer in range(part.condition.depth)]
    return Tables(pd.concat(results), pd.concat(measures) if measures else None)


def _score_rows(rows: pd.DataFrame, scores: Scores) -> pd.DataFrame:
    diverged = scores["diverged_at"] >= 0
    means = {name: scores[name] for name in ("test_accuracy", "test_loss", "train_accuracy", "train_loss")}
    places = {name: pd.Series(scores[name], dtype="Int64").where(diverged) for name in ("diverged_at", "diverged_layer")}
    norms = online.columns({"weight_norm": scores["weight_norm"]})
    return rows.assign(**means, diverged=diverged, **places, **norms)


def _measure_rows(rows: pd.DataFrame, layer: int, diverged: np.ndarray, measures: Scores) -> pd.DataFrame:
    rows = rows.drop(columns=["num_train", "examples_per_class"])
    columns = {name: np.where(diverged, np.nan, column[:, layer]) for name, column in measures.items()}
    return rows.assign(layer=layer + 1, **columns)


def _sorted(table: pd.DataFrame, more_keys: list[str]) -> pd.DataFrame:
    return table.sort_values([*COLUMNS, "examples_seen", *more_keys], kind="stable", ignore_index=True)


def _name(condition: Condition) -> str:
    """A condition in a line of progress: its depth, and what is not as in the paper."""
    usual = Condition(condition.depth, "backprop", "none", "sgd", 1)
    unusual = [
        f"{name} {value}" for name, value, plain in zip(Condition._fields, condition, usual, strict=True) if value != plain
    ]
    return ", ".join([f"depth {condition.depth}", *unusual])
