"""Tidy tables of runs: one row per run and evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from experiments.common.flags import OJA_HALF_LIFE, OJA_RATE
from experiments.common.results import COUNTS, DIVERGED, LAYER, METHOD, PLACES, SEEN, VARIANTS
from ojax import online

Scores = Mapping[str, np.ndarray]
# Scores with this prefix are arrays with one value per layer, and go to the table of measures.
MEASURE = "measure_"
_FIRST = ("test_accuracy", "test_loss", "train_accuracy", "train_loss")


class Tables(NamedTuple):
    """`results.csv`, and `measures.csv` if measures were asked for; see :class:`experiments.common.results.Results`."""

    results: pd.DataFrame
    measures: pd.DataFrame | None


def rows(runs: pd.DataFrame, counts: Mapping[str, Any], scores: Scores) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Returns the rows of one evaluation of these runs."""
    diverged = scores[PLACES[0]] >= 0
    runs = with_method(runs).assign(**counts)
    found = {name: column for name, column in scores.items() if not name.startswith(MEASURE)}
    places = {name: pd.Series(found.pop(name), dtype="Int64").where(diverged) for name in PLACES}
    columns = online.columns(found)
    first = {name: columns.pop(name) for name in _FIRST if name in columns}
    results = runs.assign(**first, **{DIVERGED: diverged}, **places, **columns)
    layers = {name.removeprefix(MEASURE): column for name, column in scores.items() if name.startswith(MEASURE)}
    if not layers:
        return results, None
    runs = runs.drop(columns=[name for name in COUNTS if name != SEEN], errors="ignore")
    (num_layers,) = {column.shape[1] for column in layers.values()}
    measures = [
        runs.assign(**{LAYER: layer + 1}).assign(
            **{name: np.where(diverged, np.nan, column[:, layer]) for name, column in layers.items()}
        )
        for layer in range(num_layers)
    ]
    return results, pd.concat(measures)


def with_method(runs: pd.DataFrame) -> pd.DataFrame:
    """Returns the table with the column `method`, if its runs have an Oja rate."""
    if OJA_RATE.name not in runs:
        return runs
    backprop, hybrid, fading = VARIANTS
    fades = np.isfinite(runs[OJA_HALF_LIFE.name]) if OJA_HALF_LIFE.name in runs else False
    return runs.assign(**{METHOD: np.where(runs[OJA_RATE.name] == 0, backprop, np.where(fades, fading, hybrid))})


def sorted_rows(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Returns the table in the order of its runs and evaluations."""
    more = [name for name in (SEEN, LAYER) if name in table]
    return table.sort_values([*columns, *more], kind="stable", ignore_index=True)
