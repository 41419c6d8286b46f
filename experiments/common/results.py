"""Results: a table of runs with its schema. All statistics, figures, verdicts and summaries are functions of results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from experiments.common.flags import LEARNING_RATE, Axis

if TYPE_CHECKING:
    import pandas as pd

# Columns of every table, in addition to the axes and the scores. `METHOD` and `LAYER` are in some tables only.
METHOD, SEED, SEEN, LAYER, DIVERGED = "method", "seed", "examples_seen", "layer", "diverged"
# A column that describes rows. No axis can have its name, and it is not a score.
CLASS = "examples_per_class"
COUNTS = ("num_train", SEEN, CLASS)
# Two scores that a learner may return as constants of its flags: a guess's, for data without classes, and the highest.
GUESS, MOST = "test_guess", "test_most"
PLACES = ("diverged_at", "diverged_layer")
# Values of the column `method` that are compared: the error term alone, with any feedback, and with Oja's term.
METHODS = ("backprop", "hybrid")
# All values of the column `method`; with `fading` the rate of Oja's term falls during the run.
VARIANTS = (*METHODS, "fading")


class Score(NamedTuple):
    """The score that compares the runs of a task.

    Attributes:
      column: The column of `results.csv` that is reported.
      chosen_by: The column that chooses settings, the higher the better; it must not depend on the test data of `column`.
      words: Its name in figures and tables.
      limits: The ends of its axis in figures; None for an open end.
      chance: The score of a guess for data without classes, if the learner does not give the score `test_guess`.
      least: The least difference that matters.
      unit: Its unit; empty for a share.
      samples: What the samples of the task are called.
    """

    column: str = "test_accuracy"
    chosen_by: str = "train_accuracy"
    words: str = "test accuracy"
    limits: tuple[float | None, float | None] = (0.0, 1.0)
    chance: float = 0.0
    least: float = 0.01
    unit: str = ""
    samples: str = "samples"


class Schema(NamedTuple):
    """The meaning of a table's columns.

    Attributes:
      axes: The axes of the grid; a table may lack some of them.
      score: The score that compares runs.
      baseline: The axis whose 0 is learning without the rule, by name; None if there is none.
    """

    axes: tuple[Axis, ...]
    score: Score = Score()
    baseline: str | None = None

    def named(self, setting: Mapping[str, Any]) -> str:
        """Returns a setting in words, `η = 0.01, θ = 0.001`, without canonical values.

        Without the rule only the learning rate matters.
        """
        axes, without = {axis.name: axis for axis in self.axes}, setting.get(self.baseline or "", 1) == 0
        known = {name: value for name, value in setting.items() if not without or name == LEARNING_RATE.name}
        return ", ".join(axes[name].named(value) for name, value in known.items() if value != axes[name].canonical)


@dataclass(frozen=True)
class Results:
    """Rows of runs, and the meaning of their columns.

    Attributes:
      table: One row per run and evaluation, as in `results.csv`. Its columns are the axes and the seed; `method`, which is
        `backprop` if `oja_rate` is 0, `fading` if its half-life is finite, else `hybrid`; `examples_seen`; and the
        learner's scores. `train_` scores are means over the samples since the last evaluation, each scored before its
        update. An array's columns are numbered: `weight_norm_1`. `diverged_at` is empty for a run whose numbers stayed
        finite.
      measures: One row per layer, run and evaluation, as in `measures.csv`, see :mod:`ojax.measures`; None without
        `--measures`, and in a part of the rows.
      schema: The axes, the score and the baseline.
    """

    table: pd.DataFrame
    measures: pd.DataFrame | None
    schema: Schema

    @property
    def scores(self) -> np.ndarray:
        """One score per row, in the order of the table."""
        return self.table[self.schema.score.column].to_numpy(np.float64)

    @property
    def layers(self) -> Results:
        """The measures as results with their own table."""
        if self.measures is None:
            raise ValueError("These results have no measures: run the study with --measures.")
        return self.of(self.measures)

    def of(self, table: pd.DataFrame) -> Results:
        """Returns other rows with the same schema."""
        return Results(table, None, self.schema)

    def where(self, *masks: Any, **values: Any) -> Results:
        """Returns the rows in all masks whose columns have these values: `where(depth=10, method="hybrid")`."""
        kept = [*masks, *(self.table[name] == value for name, value in values.items())]
        return self.of(self.table[np.all(kept, axis=0)])

    def by(self, *columns: Any, sort: bool = True) -> Iterator[tuple[Any, Results]]:
        """Yields each value of a column, or each tuple of values of several columns, with its rows.

        Args:
          *columns: Names of the columns, or arrays with one value per row.
          sort: Whether values are sorted; else they come in the order of the table.
        """
        keys: Any = list(columns) if len(columns) > 1 else columns[0]
        for value, rows in self.table.groupby(keys, sort=sort):
            yield value, self.of(rows)
