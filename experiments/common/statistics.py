"""Statistics over the seeds of results: means with intervals, and the best setting of each method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from experiments.common.flags import BATCH_SIZE, LEARNING_RATE, Axis
from experiments.common.results import DIVERGED, LAYER, METHOD, METHODS, SEED, SEEN, VARIANTS, Results

if TYPE_CHECKING:
    import pandas as pd

_RESAMPLES = 9999
# Fewer seeds show too little of the chance between them.
FEWEST_SEEDS = 4
# From so many seeds on, those that choose a setting are others than the one that is reported; with fewer the choice of the
# others would be too noisy.
SEPARATE_FROM = 8
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
    """Returns the mean over seeds with its bootstrap interval, the same each time."""
    values = np.asarray(values, np.float64)
    mean, seeds = float(np.mean(values)), len(values)
    if seeds < 2 or not np.isfinite(values).all():
        return Interval(mean, np.nan, np.nan, seeds)
    if np.ptp(values) == 0:
        return Interval(mean, mean, mean, seeds)
    draws = np.random.default_rng(0).integers(0, seeds, (_RESAMPLES, seeds))
    low, high = np.percentile(np.mean(values[draws], axis=1), [2.5, 97.5])
    return Interval(mean, float(low), float(high), seeds)


def final_rows(results: Results) -> Results:
    """Returns each run's last evaluation."""
    table = results.table
    # Batches of another size may end a little earlier, where they do not divide the number of samples.
    return results.where(table[SEEN] == table.groupby(BATCH_SIZE.name)[SEEN].transform("max"))


def axes_of(results: Results, *, tuned: bool) -> list[Axis]:
    """Returns the axes that are columns of the table: the tuned ones, or those that make a network and protocol."""
    return [axis for axis in results.schema.axes if axis.name in results.table and axis.tuned == tuned]


def networks(results: Results, but: str = "") -> Iterator[tuple[str, Results]]:
    """Splits the rows by network and protocol, each with a name that says what differs.

    Within each part, each method has its own best setting of the tuned axes. By one axis, `but`, they are not split.
    """
    axes = [axis for axis in axes_of(results, tuned=False) if axis.name != but]
    # The depth is the one thing that a reader always wants to know.
    varying = [axis for axis in axes if axis.name == "depth" or results.table[axis.name].nunique() > 1] or axes[:1]
    for values, part in results.table.groupby([axis.name for axis in varying], sort=False):
        yield ", ".join(axis.named(value) for axis, value in zip(varying, values, strict=True)), results.of(part)


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


def best_setting(results: Results) -> Best:
    """Returns the setting of the tuned axes with the highest running training accuracy, on average over seeds.

    In the first epoch that accuracy is measured on samples not seen before, and never on test images, so the test
    accuracy of what it chooses is not flattered by the choice. A task with another score says what chooses, see
    :class:`experiments.common.results.Score`.
    """
    names = [axis.name for axis in axes_of(results, tuned=True)]
    scores = results.table.groupby([*names, SEED])[results.schema.score.chosen_by].mean().unstack(SEED)

    def best(scores: pd.DataFrame) -> dict[str, float]:
        values = scores.mean(axis=1).fillna(-np.inf).idxmax()
        return dict(zip(names, values if len(names) > 1 else [values], strict=True))

    seeds = scores.columns if len(scores.columns) >= SEPARATE_FROM else ()
    return Best(best(scores), {seed: best(scores.drop(columns=seed)) for seed in seeds}, len(scores))


def at_setting(results: Results, setting: Tuned) -> Results:
    """Returns the runs at that setting of the tuned axes, in the order of their seeds.

    With a :class:`Best`, each seed is at the setting that the others choose.
    """
    rows = results.table
    chosen = _are_at(rows, setting)
    for seed, own in getattr(setting, "by_seed", {}).items():
        chosen = np.where(rows[SEED] == seed, _are_at(rows, own), chosen)
    found = rows[chosen].sort_values(SEED, kind="stable")
    once = [name for name in (SEED, SEEN, LAYER) if name in found]
    if found.duplicated(once).any():
        raise ValueError("These rows mix several networks with one seed: take them apart by statistics.networks first.")
    return results.of(found)


def _are_at(rows: pd.DataFrame, setting: Tuned) -> np.ndarray:
    return np.all([rows[name] == value for name, value in setting.items()], axis=0)


def at_the_edge(results: Results, setting: Tuned) -> list[str]:
    """Returns the tuned axes, in words, of which the best value is the first or last that these runs have tried."""
    rows, schema = results.table, results.schema
    ends = {name: {rows[name].min(), rows[name].max()} for name in setting}
    at_end = {name: value for name, value in setting.items() if len(ends[name]) > 1 and value in ends[name]}
    return [words for name, value in at_end.items() if (words := schema.named({name: value}))]


class Comparison(NamedTuple):
    """Backprop against the hybrid on the same seeds: the same initial weights and the same order of samples."""

    backprop: Results
    hybrid: Results
    backprop_setting: Best
    hybrid_setting: Best

    def scores(self, method: str) -> np.ndarray:
        """Final score per seed of `backprop` or `hybrid`."""
        return getattr(self, method).scores

    def accuracy(self, method: str) -> Interval:
        """Mean final score of `backprop` or `hybrid`."""
        return mean_interval(self.scores(method))

    def gain(self) -> Interval:
        """Hybrid minus backprop, paired by seed."""
        return mean_interval(self.hybrid.scores - self.backprop.scores)

    def rates(self, method: str) -> str:
        """The best setting of `backprop` or `hybrid` in words."""
        return self.hybrid.schema.named(getattr(self, f"{method}_setting"))

    def num_diverged(self, method: str) -> int:
        """Runs that left the finite range."""
        return int(getattr(self, method).table[DIVERGED].sum())


def compare_tuned(results: Results) -> Comparison | None:
    """Compares each method at its own best learning rate; None if there is but one rate, at which nothing is tuned."""
    return compare(results) if results.table[LEARNING_RATE.name].nunique() > 1 else None


def by_method(results: Results) -> dict[str, Results]:
    """Splits the runs by method: without Oja's term, and with it, constant or fading."""
    without = results.table[METHOD] == METHODS[0]
    return dict(zip(METHODS, (results.where(without), results.where(~without)), strict=True))


def by_variant(results: Results) -> dict[str, Results]:
    """Splits the runs into those without Oja's term, with a constant one and with one that fades; those that there are."""
    parts = {variant: results.where(method=variant) for variant in VARIANTS}
    return {variant: part for variant, part in parts.items() if not part.table.empty}


def best_runs(results: Results) -> Results:
    """Returns the runs of one method at its own best setting, in the order of their seeds."""
    return at_setting(results, best_setting(results))


def compare(results: Results) -> Comparison | None:
    """Compares the methods, each at its best setting among these final rows; None if a method is not there."""
    backprop, hybrid = by_method(results).values()
    if backprop.table.empty or hybrid.table.empty:
        return None
    settings = best_setting(backprop), best_setting(hybrid)
    return Comparison(at_setting(backprop, settings[0]), at_setting(hybrid, settings[1]), *settings)


def by_learning_rate(results: Results) -> Iterator[tuple[float, Comparison | None]]:
    """Compares both methods at each learning rate, the hybrid with the Oja rate that does best there."""
    for eta, part in results.by(LEARNING_RATE.name):
        yield eta, compare(part)


def width(values: Sequence[float], scores: Sequence[float], threshold: float) -> float:
    """Decades of a positive axis over which the score, linear between its values on a logarithmic axis, is high enough."""
    fine = np.linspace(np.log10(values[0]), np.log10(values[-1]), 2001)
    return float(np.mean(np.interp(fine, np.log10(values), scores) >= threshold) * (fine[-1] - fine[0]))


def widest(results: Results) -> Comparison | None:
    """Returns the comparison at equal learning rates where the methods differ most; None if there is none."""
    comparisons = [comparison for _, comparison in by_learning_rate(results) if comparison is not None]
    return max(comparisons, key=lambda comparison: abs(comparison.gain().mean), default=None)
