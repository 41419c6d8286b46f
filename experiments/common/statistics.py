"""Statistics over the seeds of results: means with intervals, the best setting of each method, and equal search."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from experiments.common.flags import BATCH_SIZE, LEARNING_RATE, Axis
from experiments.common.results import CLASS, DIVERGED, LAYER, METHOD, METHODS, SEED, SEEN, VARIANTS, Results

if TYPE_CHECKING:
    import pandas as pd

# The two-sided level of intervals; each end alone has half of the rest.
LEVEL = 0.95
# Settings whose choosing scores differ by less are as good as one another.
LEAST_CHOICE = 0.01
# Values of the tuned axes, by name.
Setting = Mapping[str, float]


class Interval(NamedTuple):
    """A mean over seeds and its 95 % interval by Student's t; the ends are NaN for a single seed.

    Seeds that are all equal have an interval of no width.
    """

    mean: float
    low: float
    high: float
    seeds: int

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if np.isnan(self.low) else f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def signed(self) -> str:
        """Returns a difference in words, with its sign."""
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

    @property
    def p(self) -> float:
        """The one-sided p-value of a mean that is not above zero: below 0.025 where the interval lies above zero."""
        if not self.known:
            return 1.0
        width = self.high - self.mean
        if width <= 0:
            return float(self.mean <= 0)
        return float(_special().stdtr(self.seeds - 1, -self.mean / width * _quantile(self.seeds)))


def mean_interval(values: np.ndarray) -> Interval:
    """Returns the mean over seeds with its 95 % interval by Student's t."""
    values = np.asarray(values, np.float64)
    mean, seeds = float(np.mean(values)), len(values)
    if seeds < 2 or not np.isfinite(values).all():
        return Interval(mean, np.nan, np.nan, seeds)
    if np.ptp(values) == 0:
        return Interval(mean := float(values[0]), mean, mean, seeds)
    error = float(np.std(values, ddof=1)) / seeds**0.5
    half = error * _quantile(seeds)
    return Interval(mean, mean - half, mean + half, seeds)


def _special() -> Any:
    """SciPy's special functions, imported when used, so that `--help` need not wait for them."""
    import scipy.special

    return scipy.special


def _quantile(seeds: int) -> float:
    """Student's t at the upper end of an interval over so many seeds."""
    return float(_special().stdtrit(seeds - 1, (1 + LEVEL) / 2))


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values corrected for their number by Holm's method: each below a level holds, at that level for all."""
    corrected, least, number = [1.0] * len(p_values), 0.0, len(p_values)
    for rank, place in enumerate(np.argsort(p_values, kind="stable")):
        least = max(least, min((number - rank) * p_values[place], 1.0))
        corrected[place] = least
    return corrected


def final_rows(results: Results) -> Results:
    """Returns each run's last evaluation."""
    table = results.table
    # Batches of another size may end a little earlier, where they do not divide the number of samples.
    return results.where(table[SEEN] == table.groupby(BATCH_SIZE.name)[SEEN].transform("max"))


def chance(results: Results) -> float:
    """Returns the score of a guess: one by the number of classes, where the data have classes, else the schema's."""
    rows = results.table
    if CLASS not in rows:
        return results.schema.score.chance
    return float((rows[CLASS] / rows[SEEN])[rows[SEEN] > 0].iloc[-1])


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
        the choice of its own setting. Empty for a single seed.
      tried: Number of settings that there were to choose from.
    """

    def __init__(self, setting: Setting, by_seed: Mapping[int, Setting], tried: int):
        super().__init__(setting)
        self.by_seed, self.tried = by_seed, tried


class _Grid:
    """The runs of one method in one network, by setting (rows) and seed (columns).

    Raises:
      ValueError: If the rows mix several networks.
    """

    def __init__(self, results: Results):
        table = results.table
        self.names = [axis.name for axis in axes_of(results, tuned=True)]
        values = np.array([table[name].to_numpy(np.float64) for name in self.names]).reshape(-1, len(table)).T
        self.settings, row = np.unique(values, axis=0, return_inverse=True)
        self.seeds, column = np.unique(table[SEED].to_numpy(), return_inverse=True)
        # Where each run is in the table; -1 where there is none.
        self.rows = np.full((len(self.settings), len(self.seeds)), -1)
        self.rows[row.ravel(), column] = np.arange(len(table))
        if (self.rows >= 0).sum() != len(table):
            raise ValueError("These rows mix several networks with one seed: take them apart by statistics.networks first.")
        self._chosen_by = self.values(table[results.schema.score.chosen_by].to_numpy(np.float64))

    def values(self, column: np.ndarray) -> np.ndarray:
        """Returns a column of the table by setting and seed; NaN where there is no run."""
        return np.where(self.rows >= 0, column[self.rows], np.nan)

    def _means(self, seeds: Any) -> np.ndarray:
        """The mean score of each setting by which these seeds choose; -inf where none of them has one."""
        scores = self._chosen_by[:, seeds]
        known = np.isfinite(scores)
        sums, counts = np.where(known, scores, 0.0).sum(axis=1), known.sum(axis=1)
        return np.where(counts > 0, sums / np.maximum(counts, 1), -np.inf)

    @functools.cached_property
    def order(self) -> np.ndarray:
        """For each seed (columns), the settings from the best to the worst, as the other seeds find them."""
        number = len(self.seeds)
        others = ~np.eye(number, dtype=bool) if number > 1 else np.ones((1, 1), bool)
        return np.argsort(-np.stack([self._means(mask) for mask in others], axis=1), axis=0, kind="stable")

    def tried(self, name: str) -> list[float]:
        """The values of an axis, in order; the one that there is twice, if there is but one."""
        values = sorted(set(self.settings[:, self.names.index(name)].tolist()))
        return values if len(values) > 1 else 2 * values

    def loss(self, name: str, values: Sequence[float]) -> float:
        """How much lower the score that chooses is at best with these values of an axis."""
        means = self._means(slice(None))
        among = means[np.isin(self.settings[:, self.names.index(name)], values)]
        return float(means.max() - among.max(initial=-np.inf))

    def best(self) -> Best:
        """The setting that all seeds choose, and for each seed the one that the others choose."""
        first, by_seed = int(np.argmax(self._means(slice(None)))), {}
        if len(self.seeds) > 1:
            by_seed = {int(seed): self._named(place) for seed, place in zip(self.seeds, self.order[0], strict=True)}
        return Best(self._named(first), by_seed, len(self.settings))

    def _named(self, place: int) -> dict[str, float]:
        return dict(zip(self.names, self.settings[place].tolist(), strict=True))

    @property
    def chosen(self) -> np.ndarray:
        """Where the reported runs are in the table, in the order of their seeds."""
        rows = self.rows[self.order[0], np.arange(len(self.seeds))]
        return rows[rows >= 0]


def best_setting(results: Results) -> Best:
    """Returns the setting of the tuned axes with the highest running training accuracy, on average over seeds.

    In the first epoch that accuracy is measured on samples not seen before, and never on test images, so the test
    accuracy of what it chooses is not flattered by the choice. A task with another score says what chooses, see
    :class:`experiments.common.results.Score`.
    """
    return _Grid(results).best()


def at_setting(results: Results, setting: Setting) -> Results:
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


def _are_at(rows: pd.DataFrame, setting: Setting) -> np.ndarray:
    return np.all([rows[name] == value for name, value in setting.items()], axis=0)


class Tuned:
    """A method in one network, at its own best setting.

    Args:
      part: All its runs, their last evaluations.

    Attributes:
      part: See above.
      setting: Its best setting.
    """

    def __init__(self, part: Results):
        self.part, self._grid = part, _Grid(part)
        self.setting = self._grid.best()

    @functools.cached_property
    def runs(self) -> Results:
        """The runs that are reported, in the order of their seeds."""
        return self.part.of(self.part.table.iloc[self._grid.chosen])

    @functools.cached_property
    def scores(self) -> np.ndarray:
        """One score per seed."""
        return self.part.scores[self._grid.chosen]

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
        """Whether a run left the finite range, by setting and seed; NaN where there is no run."""
        return self._grid.values(self.part.table[DIVERGED].to_numpy(np.float64))

    @property
    def num_diverged(self) -> int:
        """The number of reported runs that left the finite range."""
        return int(self.part.table[DIVERGED].to_numpy()[self._grid.chosen].sum())

    @functools.cached_property
    def edges(self) -> list[str]:
        """The values of its best setting, in words, that are the first or last tried: a wider grid may find a better one.

        A value between them that is as good, but for the least difference that matters, is enough for a value to be no
        edge. So is a natural end of its axis: a rate that never halves (inf), or the lowest rate of a rule, below which
        there is only learning without it (0).
        """
        found = []
        for axis in axes_of(self.part, tuned=True):
            value, (low, *between, high) = self.setting[axis.name], self._grid.tried(axis.name)
            if value in between or low == high:
                continue
            is_natural = (0.0 if value == low else np.inf) in axis.natural_ends
            if not is_natural and self._grid.loss(axis.name, between) > LEAST_CHOICE:
                found.append(self.part.schema.named({axis.name: value}))
        return [words for words in found if words]

    def searched(self, budget: int | None = None) -> np.ndarray:
        """Returns the score that is expected of the best of so many settings, one per seed.

        They are drawn at random from those tried, and the other seeds say which of them is best. With all settings, the
        default, these are `scores`.
        """
        number = len(self._grid.settings)
        if budget is None or budget >= number:
            return self.scores
        # The setting of rank r is the best of the draw if it is drawn, and no better one is.
        ways = _special().comb(number - 1 - np.arange(number), budget - 1)
        ranked = np.take_along_axis(self._grid.values(self.part.scores), self._grid.order, axis=0)
        used = ways > 0
        return (ways[used] / ways.sum()) @ ranked[used]


def gain(one: Tuned, other: Tuned) -> Interval:
    """Returns the score of one method over that of another, paired by seed, after equal search.

    Where they have different numbers of settings to choose from, the one with more has the score expected of as many as
    the other has.
    """
    budget = min(one.setting.tried, other.setting.tried)
    return mean_interval(one.searched(budget) - other.searched(budget))


def difference(one: Tuned, other: Tuned) -> Interval:
    """Returns the score of one method over that of another, paired by seed, each at its own best, whatever their search."""
    return mean_interval(one.scores - other.scores)


class Comparison(NamedTuple):
    """Backprop against the hybrid on the same seeds: the same initial weights and the same order of samples."""

    backprop: Tuned
    hybrid: Tuned

    def of(self, method: str) -> Tuned:
        """Returns `backprop` or `hybrid`."""
        return self.backprop if method == METHODS[0] else self.hybrid

    def scores(self, method: str) -> np.ndarray:
        """Returns the final score per seed of `backprop` or `hybrid`, each at its own best."""
        return self.of(method).scores

    def accuracy(self, method: str) -> Interval:
        """Returns the mean final score of `backprop` or `hybrid`, each at its own best."""
        return self.of(method).accuracy

    def gain(self) -> Interval:
        """Returns hybrid minus backprop, paired by seed, after equal search."""
        return gain(self.hybrid, self.backprop)

    def difference(self) -> Interval:
        """Returns hybrid minus backprop, paired by seed, each at its own best, however many settings each had."""
        return difference(self.hybrid, self.backprop)

    def searched(self, method: str) -> np.ndarray:
        """Returns the score of a method, one per seed, after equal search, see :func:`gain`."""
        return self.of(method).searched(min(self.backprop.setting.tried, self.hybrid.setting.tried))

    def rates(self, method: str) -> str:
        """Returns the best setting of `backprop` or `hybrid` in words."""
        return self.of(method).words

    def num_diverged(self, method: str) -> int:
        """Returns the number of reported runs that left the finite range."""
        return self.of(method).num_diverged


def compare_tuned(results: Results) -> Comparison | None:
    """Compares each method at its own best learning rate; None if there is but one rate, at which nothing is tuned."""
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
    """Splits the runs into those without Oja's term, with a constant one and with one that fades; those that there are."""
    parts = {variant: results.where(method=variant) for variant in VARIANTS}
    return {variant: part for variant, part in parts.items() if not part.table.empty}


def tuned_variants(results: Results) -> dict[str, Tuned]:
    """Returns, of the final rows of one network, each variant that there is at its own best."""
    return {variant: Tuned(part) for variant, part in by_variant(results).items()}


def compare(results: Results) -> Comparison | None:
    """Compares the methods, each at its best setting among these final rows; None if a method is not there."""
    backprop, hybrid = by_method(results).values()
    if backprop.table.empty or hybrid.table.empty:
        return None
    return Comparison(Tuned(backprop), Tuned(hybrid))


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
    return max(comparisons, key=lambda comparison: abs(comparison.difference().mean), default=None)
