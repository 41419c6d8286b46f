"""From a configuration to tidy tables: the grid of runs, trained and scored."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from experiments.common import network, statistics
from experiments.common.config import Condition, Config
from experiments.common.progress import Progress
from experiments.common.statistics import SETTING
from ojax import online
from ojax.datasets import Dataset

Keep = Callable[[Mapping[str, Any]], bool]
# What tells one run from another, as columns of both tables, in the order in which rows are sorted.
COLUMNS = [*SETTING, "learning_rate", "oja_rate", "seed"]


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


def run(config: Config, dataset: Dataset, study: list[Part], progress: Progress) -> Tables:
    """Trains every run of the study's parts."""
    results, measures = [], []
    for condition, schedule, settings in study:
        learner = network.learner(
            config.all_widths(condition.depth, dataset),
            schemes=config.init,
            feedback=condition.feedback,
            normalization=condition.normalization,
            optimizer=condition.optimizer,
            measured=config.measures,
        )
        hyper = {name: settings[name].tolist() for name in ("init_gain", "learning_rate", "oja_rate")}
        hyper["init"] = [config.init.index(name) for name in settings["init"]]
        runs = settings.assign(**condition._asdict())[COLUMNS]
        progress.start(_name(condition), len(runs))
        for seen, score in online.train(learner, hyper, settings["seed"].tolist(), dataset, schedule):
            progress.advance(seen, score)
            per_class = seen / len(dataset.class_names)
            rows = runs.assign(num_train=schedule.num_train, examples_seen=seen, examples_per_class=per_class)
            results.append(_score_rows(rows, score))
            measures += [_measure_rows(rows, layer, score) for layer in range(condition.depth) if config.measures]
    return Tables(_sorted(results, []), _sorted(measures, ["layer"]) if measures else None)


def fingerprint(dataset: Dataset) -> dict[str, object]:
    """Sizes and a hash of the data, by which a repeat knows that it has the same."""
    digest = hashlib.sha256()
    for array in dataset[1:5]:
        digest.update(np.ascontiguousarray(array).data)
    return {
        "name": dataset.name,
        "train": len(dataset.train_labels),
        "test": len(dataset.test_labels),
        "pixels": dataset.train_images.shape[1],
        "classes": len(dataset.class_names),
        "sha256": digest.hexdigest(),
    }


def _score_rows(rows: pd.DataFrame, score: online.Score) -> pd.DataFrame:
    diverged = score.diverged_at >= 0
    return rows.assign(
        test_accuracy=score.test_accuracy,
        test_loss=score.test_loss,
        train_accuracy=score.train_accuracy,
        train_loss=score.train_loss,
        diverged=diverged,
        diverged_at=pd.Series(score.diverged_at, dtype="Int64").where(diverged),
        **{f"weight_norm_{layer}": column for layer, column in enumerate(score.weight_norms.T, start=1)},
    )


def _measure_rows(rows: pd.DataFrame, layer: int, score: online.Score) -> pd.DataFrame:
    rows = rows.drop(columns=["num_train", "examples_per_class"])
    return rows.assign(layer=layer + 1, **{name: column[:, layer] for name, column in score.measures.items()})


def _sorted(tables: list[pd.DataFrame], more_keys: list[str]) -> pd.DataFrame:
    table = pd.concat(tables, ignore_index=True)
    return table.sort_values([*COLUMNS, "examples_seen", *more_keys], kind="stable", ignore_index=True)


def _name(condition: Condition) -> str:
    """A condition in a line of progress: its depth, and what is not as in the paper."""
    usual = Condition(condition.depth, "backprop", "none", "sgd", 1)
    unusual = [
        f"{name} {value}" for name, value, plain in zip(Condition._fields, condition, usual, strict=True) if value != plain
    ]
    return ", ".join([f"depth {condition.depth}", *unusual])
