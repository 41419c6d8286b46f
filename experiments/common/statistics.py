"""What the runs of several seeds say: means with intervals, and the best setting of each method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from experiments.common.flags import DECLARED, Axis

if TYPE_CHECKING:
    import pandas as pd

_RESAMPLES = 9999
# Fewer seeds show too little of the chance between them.
FEWEST_SEEDS = 4
# From so many seeds on, those that choose a setting are others than the one that is reported; with fewer the choice of the
# others would be too noisy.
SEPARATE_FROM = 8
# What is compared: the error term alone, by whatever feedback it comes, and with Oja's term beside it.
METHODS = ("backprop", "hybrid")
# The values of the column `method`; with `fading` the rate of Oja's term falls as the run goes on.
COURSES = (*METHODS, "fading")
# A setting that is tuned: the values of the tuned axes, by name.
Tuned = Mapping[str, float]


class Interval(NamedTuple):
    """A mean over seeds and its 95 % bootstrap interval (percentile method); the ends are NaN for a single seed."""

    mean: float
    low: float
    high: float
    seeds: int

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if np.isnan(self.low) else f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def signed(self) -> str:
        """As a difference, with its sign."""
        ends = "" if np.isnan(self.low) else f" [{self.low:+.3f}, {self.high:+.3f}]"
        return f"{self.mean:+.3f}{ends}"

    @property
    def known(self) -> bool:
        """Whether there is an interval; one seed gives none."""
        return not np.isnan(self.low)

    @property
    def sign(self) -> int:
        """1 or -1 where the whole interval lies on one side of zero, else 0."""
        return int(self.low > 0) - int(self.high < 0)


def mean_interval(values: np.ndarray) -> Interval:
    """The mean over seeds with its bootstrap interval, the same each time it is asked."""
    values = np.asarray(values, np.float64)
    mean, seeds = float(np.mean(values)), len(values)
    if seeds < 2 or not np.isfinite(values).all():
        return Interval(mean, np.nan, np.nan, seeds)
    if np.ptp(values) == 0:
        return Interval(mean, mean, mean, seeds)
    draws = np.random.default_rng(0).integers(0, seeds, (_RESAMPLES, seeds))
    low, high = np.percentile(np.mean(values[draws], axis=1), [2.5, 97.5])
    return Interval(mean, float(low), float(high), seeds)


def final_rows(results: pd.DataFrame) -> pd.DataFrame:
    """Each run's last evaluation."""
    # Batches of another size may end a little earlier, where they do not divide the number of samples.
    return results[results["examples_seen"] == results.groupby("batch_size")["examples_seen"].transform("max")]


def axes_of(table: pd.DataFrame, *, tuned: bool) -> list[Axis]:
    """The declared axes among the columns of a table: those that are tuned, or those that make a network and protocol."""
    return [axis for name, axis in DECLARED.items() if name in table and axis.tuned == tuned]


def networks(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Splits the table by network and protocol, each with a name that says what differs.

    Within each part, each method has its own best setting of the tuned axes.
    """
    axes = axes_of(table, tuned=False)
    varying = [axis for axis in axes if table[axis.name].nunique() > 1] or axes[:1]
    if any(axis.name == "depth" for axis in axes) and all(axis.name != "depth" for axis in varying):
        varying.insert(0, DECLARED["depth"])  # The one thing that a reader always wants to know.
    for values, part in table.groupby([axis.name for axis in varying], sort=False):
        yield ", ".join(axis.named(value) for axis, value in zip(varying, values, strict=True)), part


class Best(dict[str, float]):
    """The values of the tuned axes at which a method does best, by name, chosen on all seeds.

    Attributes:
      by_seed: For each seed the setting that the *other* seeds choose, at which its run is reported: so no run has a say in
        the choice of its own setting. Empty for fewer than eight seeds, which all have the setting of all.
      tried: Number of settings that there were to choose from.
    """

    def __init__(self, setting: Tuned, by_seed: Mapping[int, Tuned], tried: int):
        super().__init__(setting)
        self.by_seed, self.tried = by_seed, tried


def best_setting(rows: pd.DataFrame) -> Best:
    """The setting of the tuned axes with the highest running training accuracy, on average over seeds.

    In the first epoch that accuracy is measured on samples not seen before, and never on test images, so the test
    accuracy of what it chooses is not flattered by the choice. A task with another :class:`Score` says what chooses.
    """
    names = [axis.name for axis in axes_of(rows, tuned=True)]
    scores = rows.groupby([*names, "seed"])[DECLARED.score.chosen_by].mean().unstack("seed")

    def best(scores: pd.DataFrame) -> dict[str, float]:
        values = scores.mean(axis=1).fillna(-np.inf).idxmax()
        return dict(zip(names, values if len(names) > 1 else [values], strict=True))

    seeds = scores.columns if len(scores.columns) >= SEPARATE_FROM else ()
    return Best(best(scores), {seed: best(scores.drop(columns=seed)) for seed in seeds}, len(scores))


def at_setting(rows: pd.DataFrame, setting: Tuned) -> pd.DataFrame:
    """The runs at that setting of the tuned axes, each seed at its own of a :class:`Best`, in the order of their seeds."""
    chosen = _are_at(rows, setting)
    for seed, own in getattr(setting, "by_seed", {}).items():
        chosen = np.where(rows["seed"] == seed, _are_at(rows, own), chosen)
    found = rows[chosen].sort_values("seed", kind="stable")
    once = [name for name in ("seed", "examples_seen", "layer") if name in found]
    if found.duplicated(once).any():
        raise ValueError("These rows mix several networks with one seed: take them apart by statistics.networks first.")
    return found


def _are_at(rows: pd.DataFrame, setting: Tuned) -> np.ndarray:
    return np.logical_and.reduce([rows[name] == value for name, value in setting.items()])


def named(setting: Tuned) -> str:
    """A setting in words: `η = 0.01, θ = 0.001`; without Oja's term, only its learning rate matters."""
    known = {name: value for name, value in setting.items() if setting.get("oja_rate", 1) or name == "learning_rate"}
    return ", ".join(DECLARED[name].named(value) for name, value in known.items() if value != DECLARED[name].plain)


def at_the_edge(rows: pd.DataFrame, setting: Tuned) -> list[str]:
    """The tuned axes, in words, of which the best value is the first or last that these runs have tried."""
    ends = {name: {rows[name].min(), rows[name].max()} for name in setting}
    at_end = {name: value for name, value in setting.items() if len(ends[name]) > 1 and value in ends[name]}
    return [named({name: value}) for name, value in at_end.items() if value != DECLARED[name].plain]  # Its natural end.


class Comparison(NamedTuple):
    """Backprop against the hybrid on the same seeds: the same initial weights and the same order of samples."""

    backprop: pd.DataFrame
    hybrid: pd.DataFrame
    backprop_setting: Best
    hybrid_setting: Best

    def accuracy(self, method: str) -> Interval:
        """Final score of `backprop` or `hybrid`."""
        return mean_interval(scores_of(getattr(self, method)))

    def gain(self) -> Interval:
        """Hybrid minus backprop, paired by seed."""
        return mean_interval(scores_of(self.hybrid) - scores_of(self.backprop))

    def num_diverged(self, method: str) -> int:
        """Runs that left the finite range."""
        return int(getattr(self, method)["diverged"].sum())


def compare_tuned(rows: pd.DataFrame) -> Comparison | None:
    """Each method at its own best learning rate; None if there is but one rate, at which nothing is tuned."""
    return compare(rows) if rows["learning_rate"].nunique() > 1 else None


def by_method(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The runs of each method: without Oja's term, and with it, constant or fading."""
    return {method: rows[(rows["method"] != "backprop") == (method == "hybrid")] for method in METHODS}


def by_course(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The runs without Oja's term, with a constant one and with one that fades, those that there are."""
    return {course: rows[rows["method"] == course] for course in COURSES if (rows["method"] == course).any()}


def scores_of(rows: pd.DataFrame) -> np.ndarray:
    """The score of each run, in the order of the table."""
    return rows[DECLARED.score.column].to_numpy(np.float64)


def best_runs(rows: pd.DataFrame) -> pd.DataFrame:
    """The runs of one method at its own best setting, in the order of their seeds."""
    return at_setting(rows, best_setting(rows))


def compare(rows: pd.DataFrame) -> Comparison | None:
    """Each method at its best setting among those in the table of final rows; None if a method is not there."""
    parts = by_method(rows).values()
    if any(part.empty for part in parts):
        return None
    settings = [best_setting(part) for part in parts]
    return Comparison(*(at_setting(part, setting) for part, setting in zip(parts, settings, strict=True)), *settings)


def by_learning_rate(rows: pd.DataFrame) -> Iterator[tuple[float, Comparison | None]]:
    """Both methods at each learning rate, the hybrid with the Oja rate that does best there."""
    for eta, part in rows.groupby("learning_rate"):
        yield eta, compare(part)


def width(values: Sequence[float], scores: Sequence[float], threshold: float) -> float:
    """Decades of a positive axis over which the score, linear between its values on a logarithmic axis, is high enough."""
    fine = np.linspace(np.log10(values[0]), np.log10(values[-1]), 2001)
    return float(np.mean(np.interp(fine, np.log10(values), scores) >= threshold) * (fine[-1] - fine[0]))


def widest(rows: pd.DataFrame) -> Comparison | None:
    """The comparison at equal learning rates where the methods differ most; None if there is none."""
    comparisons = [comparison for _, comparison in by_learning_rate(rows) if comparison is not None]
    return max(comparisons, key=lambda comparison: abs(comparison.gain().mean), default=None)
