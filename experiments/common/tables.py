"""Tidy tables of what runs have found: a row a run and evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from experiments.common.statistics import COURSES
from ojax import online

Scores = Mapping[str, np.ndarray]
# Scores whose name begins so are an array with a value a layer, and go to the table of measures.
MEASURE = "measure_"
_FIRST = ("test_accuracy", "test_loss", "train_accuracy", "train_loss")


class Tables(NamedTuple):
    """What a study found.

    Attributes:
      results: `results.csv`, a row a run and evaluation. Its columns are the axes and the seed; `method`, which is
        `backprop` where `oja_rate` is 0, else `hybrid`, or `fading` where its half-life is finite; `examples_seen`; and the
        learner's scores. `train_` scores are means over the samples since the last evaluation, each scored before its
        update. An array's columns are numbered: `weight_norm_1`. `diverged_at` is empty for a run whose numbers stayed
        finite.
      measures: `measures.csv`, a row a layer of these, of :mod:`ojax.measures`; None if they were not asked for.
    """

    results: pd.DataFrame
    measures: pd.DataFrame | None


def rows(runs: pd.DataFrame, counts: Mapping[str, Any], scores: Scores) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """The rows of one evaluation of those runs."""
    diverged = scores["diverged_at"] >= 0
    runs = with_method(runs).assign(**counts)
    found = {name: column for name, column in scores.items() if not name.startswith(MEASURE)}
    places = {name: pd.Series(found.pop(name), dtype="Int64").where(diverged) for name in ("diverged_at", "diverged_layer")}
    columns = online.columns(found)
    first = {name: columns.pop(name) for name in _FIRST if name in columns}
    results = runs.assign(**first, diverged=diverged, **places, **columns)
    layers = {name.removeprefix(MEASURE): column for name, column in scores.items() if name.startswith(MEASURE)}
    if not layers:
        return results, None
    runs = runs.drop(columns=["num_train", "examples_per_class"], errors="ignore")
    (num_layers,) = {column.shape[1] for column in layers.values()}
    measures = [
        runs.assign(
            layer=layer + 1, **{name: np.where(diverged, np.nan, column[:, layer]) for name, column in layers.items()}
        )
        for layer in range(num_layers)
    ]
    return results, pd.concat(measures)


def with_method(runs: pd.DataFrame) -> pd.DataFrame:
    """The table with the column `method`, if its runs have an Oja rate."""
    if "oja_rate" not in runs:
        return runs
    backprop, hybrid, fading = COURSES
    fades = np.isfinite(runs["oja_half_life"]) if "oja_half_life" in runs else False
    return runs.assign(method=np.where(runs["oja_rate"] == 0, backprop, np.where(fades, fading, hybrid)))


def sorted_rows(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """The table in the order of its runs and evaluations."""
    more = [name for name in ("examples_seen", "layer") if name in table]
    return table.sort_values([*columns, *more], kind="stable", ignore_index=True)
