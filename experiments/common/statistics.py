"""Statistics over seeds: means with intervals, the best setting of each method, and gains at equal search."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from experiments.common.flags import BATCH_SIZE, LEARNING_RATE, Axis
from experiments.common.results import CLASS, DIVERGED, GUESS, LAYER, METHOD, METHODS, SEED, SEEN, VARIANTS, Results

if TYPE_CHECKING:
    import pandas as pd

# The two-sided level of intervals; each tail has half of the rest.
LEVEL = 0.95
# Settings count as equally good if their choosing scores differ by less.
LEAST_CHOICE = 0.01
# Values of the tuned axes, by name.
Setting = Mapping[str, float]
_MIXED = "These rows mix several networks with one seed: take them apart by statistics.networks first."


class Interval(NamedTuple):
    """A mean over seeds and its 95 % interval by Student's t; the ends are NaN for a single seed.

    If all seeds are equal, the interval has no width.
    """

    mean: float
    low: float
    high: float
    seeds: int

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if np.isnan(self.low) else f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def signed(self) -> str:
        """Returns a difference as text, with its sign."""
        ends = "" if np.isnan(self.low) else f" [{self.low:+.3f}, {self.high:+.3f}]"
        return f"{self.mean:+.3f}{ends}"

    @property
    def known(self) -> bool:
        """Whether there is an interval; a single seed has no interval."""
        return not np.isnan(self.low)

    @property
    def sign(self) -> int:
        """1 or -1 if the whole interval is above or below zero, else 0."""
        return int(self.low > 0) - int(self.high < 0)

    @property
    def p(self) -> float:
        """The one-sided p-value against a mean of at most zero; below 0.025 if the interval is above zero."""
        if not self.known:
            return 1.0
        width = self.high - self.mean
        if width <= 0:
            return float(self.mean <= 0)
        return float(_special().stdtr(self.seeds - 1, -self.mean / width * _quantile(self.seeds)))


NO_INTERVAL = Interval(np.nan, np.nan, np.nan, 0)  # Of no seed.


def mean_interval(values: np.ndarray) -> Interval:
    """Returns the mean over seeds with its 95 % interval by Student's t."""
    values = np.asarray(values, np.float64)
    mean, seeds = float(np.mean(values)) if len(values) else np.nan, len(values)
    if seeds < 2 or not np.isfinite(values).all():
        return Interval(mean, np.nan, np.nan, seeds)
    if np.ptp(values) == 0:
        return Interval(mean := float(values[0]), mean, mean, seeds)
    half = float(np.std(values, ddof=1)) / seeds**0.5 * _quantile(seeds)
    return Interval(mean, mean - half, mean + half, seeds)


def _special() -> Any:
    """Returns SciPy's special functions, imported on use, so that `--help` does not wait for them."""
    import scipy.special

    return scipy.special


def _quantile(seeds: int) -> float:
    """Returns Student's t at the upper end of an interval over `seeds` seeds."""
    return float(_special().stdtrit(seeds - 1, (1 + LEVEL) / 2))


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values corrected by Holm's method, which controls the error rate of all of them together."""
    corrected, least, number = [1.0] * len(p_values), 0.0, len(p_values)
    for rank, place in enumerate(np.argsort(p_values, kind="stable")):
        least = max(least, min((number - rank) * p_values[place], 1.0))
        corrected[place] = least
    return corrected


def final_rows(results: Results) -> Results:
    """Returns each run's last evaluation."""
    table = results.table
    # Batch sizes that do not divide the number of samples end a little earlier.
    return results.where(table[SEEN] == table.groupby(BATCH_SIZE.name)[SEEN].transform("max"))


def chance(results: Results) -> float:
    """Returns the score of a guess: one over the number of classes, or the task's own if the data have no classes."""
    rows = results.table
    if GUESS in rows or CLASS not in rows:
        return float(rows[GUESS].max()) if GUESS in rows else results.schema.score.chance
    return float((rows[CLASS] / rows[SEEN])[rows[SEEN] > 0].iloc[-1])


def axes_of(results: Results, *, tuned: bool) -> list[Axis]:
    """Returns the axes that are columns of the table: the tuned ones, or those of the network and protocol."""
    return [axis for axis in results.schema.axes if axis.name in results.table and axis.tuned == tuned]


def networks(results: Results, but: str = "", always: str = "depth") -> Iterator[tuple[str, Results]]:
    """Splits the rows by network and protocol; yields a name with the values that differ, and the rows.

    Within each part, each method has its own best setting of the tuned axes. Rows are not split by the axis `but`. The axis
    `always` is part of the name even if it has one value.
    """
    axes = [axis for axis in axes_of(results, tuned=False) if axis.name != but]
    varying = [axis for axis in axes if axis.name == always or results.table[axis.name].nunique() > 1] or axes[:1]
    for values, part in results.table.groupby([axis.name for axis in varying], sort=False):
        yield ", ".join(axis.named(value) for axis, value in zip(varying, values, strict=True)), results.of(part)


class Best(dict[str, float]):
    """A method's best values of the tuned axes, by name, chosen on all seeds.

    Attributes:
      by_seed: For each seed the setting that the *other* seeds choose, at which its run is reported: so no run affects the
        choice of its own setting. Empty for a single seed.
      tried: Number of settings to choose from.
    """

    def __init__(self, setting: Setting, by_seed: Mapping[int, Setting], tried: int):
        super().__init__(setting)
        self.by_seed, self.tried = by_seed, tried


def at_setting(results: Results, setting: Setting) -> Results:
    """Returns the runs at a setting of the tuned axes, in the order of their seeds.

    With a :class:`Best`, each seed has the setting that the other seeds choose.
    """
    rows = results.table
    chosen = _are_at(rows, setting)
    for seed, own in getattr(setting, "by_seed", {}).items():
        chosen = np.where(rows[SEED] == seed, _are_at(rows, own), chosen)
    found = rows[chosen].sort_values(SEED, kind="stable")
    once = [name for name in (SEED, SEEN, LAYER) if name in found]
    if found.duplicated(once).any():
        raise ValueError(_MIXED)
    return results.of(found)


def _are_at(rows: pd.DataFrame, setting: Setting) -> np.ndarray:
    return np.all([rows[name] == value for name, value in setting.items()], axis=0)


class Tuned:
    """A method in one network, at the setting of the tuned axes with the highest running training accuracy.

    In the first epoch this accuracy is measured on new samples, and never on test images, so the choice does not bias the
    test accuracy. A task with another score names the column that chooses, see :class:`experiments.common.results.Score`.

    Attributes:
      setting: Its best setting, on average over seeds.

    Args:
      part: The last evaluations of all its runs, in one network; also an attribute.
      rate: From a setting to its learning rate, if all tuned axes are factors of that rate.
      natural_ends: By the name of a tuned axis, its natural ends for this method, if the axis's own do not hold.

    Raises:
      ValueError: If the rows mix several networks.
    """

    def __init__(
        self,
        part: Results,
        rate: Callable[[Setting], float] | None = None,
        natural_ends: Mapping[str, tuple[float, ...]] | None = None,
    ):
        self.part, self._names, self._rate = part, [axis.name for axis in axes_of(part, tuned=True)], rate
        self._natural_ends = natural_ends or {}
        table = part.table
        values = np.array([table[name].to_numpy(np.float64) for name in self._names]).reshape(-1, len(table)).T
        self._settings, row = np.unique(values, axis=0, return_inverse=True)
        self._seeds, column = np.unique(table[SEED].to_numpy(), return_inverse=True)
        # Each run's row in the table, by setting and seed; -1 for a missing run.
        self._rows = np.full((len(self._settings), len(self._seeds)), -1)
        self._rows[row.ravel(), column] = np.arange(len(table))
        if (self._rows >= 0).sum() != len(table):
            raise ValueError(_MIXED)
        self._chosen_by = self._by_setting(part.schema.score.chosen_by)
        if (known := np.isfinite(self._chosen_by)).any() and DIVERGED in table:  # One that diverged is as bad as the worst.
            self._chosen_by[~known & (self.diverged == 1)] = self._chosen_by[known].min()
        by_seed: dict[int, Setting] = {}
        if len(self._seeds) > 1:
            by_seed = {int(seed): self._named(place) for seed, place in zip(self._seeds, self._order[0], strict=True)}
        best = int(np.argmax(self._means(slice(None))))
        self.setting = Best(self._named(best), by_seed, len(self._settings))

    def _by_setting(self, column: str) -> np.ndarray:
        """Returns a column of the table by setting (rows) and seed (columns); NaN for a missing run."""
        return np.where(self._rows >= 0, self.part.table[column].to_numpy(np.float64)[self._rows], np.nan)

    def _means(self, seeds: Any) -> np.ndarray:
        """Returns the mean choosing score of each setting over these seeds; -inf if none of them has a score."""
        scores = self._chosen_by[:, seeds]
        known = np.isfinite(scores)
        sums, counts = np.where(known, scores, 0.0).sum(axis=1), known.sum(axis=1)
        return np.where(counts > 0, sums / np.maximum(counts, 1), -np.inf)

    def _named(self, place: int) -> dict[str, float]:
        return dict(zip(self._names, self._settings[place].tolist(), strict=True))

    @functools.cached_property
    def _order(self) -> np.ndarray:
        """For each seed (columns), the settings from best to worst, ranked by the other seeds."""
        number = len(self._seeds)
        others = ~np.eye(number, dtype=bool) if number > 1 else np.ones((1, 1), bool)
        return np.argsort(-np.stack([self._means(mask) for mask in others], axis=1), axis=0, kind="stable")

    @functools.cached_property
    def runs(self) -> Results:
        """The reported runs, in the order of their seeds."""
        rows = self._rows[self._order[0], np.arange(len(self._seeds))]
        return self.part.of(self.part.table.iloc[rows[rows >= 0]])

    @functools.cached_property
    def scores(self) -> np.ndarray:
        """One score per seed."""
        return self.runs.scores

    @property
    def accuracy(self) -> Interval:
        """The mean score."""
        return mean_interval(self.scores)

    @property
    def words(self) -> str:
        """Its best setting in words."""
        return self.part.schema.named(self.setting)

    @functools.cached_property
    def diverged(self) -> np.ndarray:
        """Whether a run diverged, by setting and seed; NaN for a missing run."""
        return self._by_setting(DIVERGED)

    @property
    def num_diverged(self) -> int:
        """The number of reported runs that diverged."""
        return int(self.runs.table[DIVERGED].sum())

    @property
    def told(self) -> str:
        """The mean score in words, with the number of reported runs that diverged, if any."""
        return f"{self.accuracy}" + (f" ({self.num_diverged} diverged)" if self.num_diverged else "")

    @functools.cached_property
    def edges(self) -> list[str]:
        """The values of its best setting, in words, at the edge of the grid: a wider grid may find a better one.

        A value is not at the edge if a value inside the grid is as good, up to the least difference that matters, or if it
        is next to a natural end of its axis: inf for a half-life, 0 (no rule) for a rule's rate.
        """
        found, means, axes = [], self._means(slice(None)), axes_of(self.part, tuned=True)
        if self._rate is not None:
            axes = [axis for axis in axes if axis.name == LEARNING_RATE.name]
        for axis in axes:
            number = self._rate or operator.itemgetter(axis.name)
            tried = np.array([number(self._named(place)) for place in range(len(self._settings))])
            value, values = number(self.setting), np.unique(tried)
            between = values[1:-1]
            if value in between or len(values) == 1:
                continue
            is_natural = (0.0 if value == values[0] else np.inf) in self._natural_ends.get(axis.name, axis.natural_ends)
            loss = means.max() - means[np.isin(tried, between)].max(initial=-np.inf)
            if not is_natural and loss > LEAST_CHOICE:
                found.append(self.part.schema.named({axis.name: value}))
        return [words for words in found if words]

    def searched(self, budget: int | None = None) -> np.ndarray:
        """Returns the expected score of the best of `budget` settings, one per seed.

        The settings are drawn at random from the tried ones, and the other seeds choose the best of them. With all
        settings, the default, the result is `scores`.
        """
        number = len(self._settings)
        if budget is None or budget >= number:
            return self.scores
        # The setting of rank r is the best of the draw if it is drawn and no better one is drawn.
        left = number - 1 - np.arange(number)
        ways = _special().comb(left, budget - 1)
        if not np.isfinite(_special().comb(number, budget)):  # Their sum. Of more than 1,000 settings only ratios fit.
            ways = np.cumprod(np.append(1.0, 1 - (budget - 1) / left[:-1]))
        ranked = np.take_along_axis(self._by_setting(self.part.schema.score.column), self._order, axis=0)
        used = ways > 0
        return (ways[used] / ways.sum()) @ ranked[used]


def gain(one: Tuned, other: Tuned) -> Interval:
    """Returns one method's score minus another's, paired by seed, after equal search.

    If they have different numbers of settings to choose from, the method with more gets the expected score of the best of
    as many as the other has.
    """
    budget = min(one.setting.tried, other.setting.tried)
    return mean_interval(one.searched(budget) - other.searched(budget))


def difference(one: Tuned, other: Tuned) -> Interval:
    """Returns one method's score minus another's, paired by seed, each at its own best, without equal search."""
    return mean_interval(one.scores - other.scores)


class Comparison(NamedTuple):
    """Backprop against the hybrid on the same seeds, with equal initial weights and order of samples."""

    backprop: Tuned
    hybrid: Tuned

    def of(self, method: str) -> Tuned:
        """Returns `backprop` or `hybrid`, each at its own best."""
        return self.backprop if method == METHODS[0] else self.hybrid

    def gain(self) -> Interval:
        """Returns hybrid minus backprop, paired by seed, after equal search."""
        return gain(self.hybrid, self.backprop)

    def difference(self) -> Interval:
        """Returns hybrid minus backprop, paired by seed, each at its own best, without equal search."""
        return difference(self.hybrid, self.backprop)

    def searched(self, method: str) -> np.ndarray:
        """Returns the score of a method, one per seed, after equal search, see :func:`gain`."""
        return self.of(method).searched(min(self.backprop.setting.tried, self.hybrid.setting.tried))


def compare_tuned(results: Results) -> Comparison | None:
    """Compares each method at its own best learning rate; None if there is only one learning rate."""
    return compare(results) if results.table[LEARNING_RATE.name].nunique() > 1 else None


def num_settings(results: Results, methods: str = METHOD) -> int:
    """Returns the largest number of settings that a method had to choose from; 0 without methods or a score."""
    table, names = results.table, [axis.name for axis in axes_of(results, tuned=True)]
    if methods not in table or not names or not {results.schema.score.column, results.schema.score.chosen_by} <= set(table):
        return 0
    return int(table[[methods, *names]].drop_duplicates().groupby(methods).size().max())


def by_method(results: Results) -> dict[str, Results]:
    """Splits the runs by method: without Oja's term, and with it, constant or fading."""
    without = results.table[METHOD] == METHODS[0]
    return dict(zip(METHODS, (results.where(without), results.where(~without)), strict=True))


def by_variant(results: Results) -> dict[str, Results]:
    """Splits the runs by variant: without Oja's term, with a constant or a fading one; absent variants are left out."""
    parts = {variant: results.where(method=variant) for variant in VARIANTS}
    return {variant: part for variant, part in parts.items() if not part.table.empty}


def tuned_variants(results: Results) -> dict[str, Tuned]:
    """Returns each variant at its own best, from the final rows of one network."""
    return {variant: Tuned(part) for variant, part in by_variant(results).items()}


def compare(results: Results) -> Comparison | None:
    """Compares the methods, each at its best setting in these final rows; None if a method is missing."""
    parts = by_method(results).values()
    return None if any(part.table.empty for part in parts) else Comparison(*map(Tuned, parts))


def comparisons(results: Results, *columns: str, sort: bool = True) -> dict[Any, Comparison]:
    """Returns the comparison of the methods by value of these columns; values that lack a method are left out."""
    return {value: found for value, part in results.by(*columns, sort=sort) if (found := compare(part))}


def width(values: Sequence[float], scores: Sequence[float], threshold: float) -> float:
    """Returns the decades of an axis over which the score, interpolated in its logarithm, is at least `threshold`."""
    fine = np.linspace(np.log10(values[0]), np.log10(values[-1]), 2001)
    return float(np.mean(np.interp(fine, np.log10(values), scores) >= threshold) * (fine[-1] - fine[0]))


def widest(results: Results) -> Comparison | None:
    """Returns the comparison at the equal learning rate where the methods differ most; None if there is none."""
    found = comparisons(results, LEARNING_RATE.name).values()
    return max(found, key=lambda comparison: abs(comparison.difference().mean), default=None)
