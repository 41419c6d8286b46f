"""What the runs of several seeds say: means with intervals, and the best setting of each rule."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

_RESAMPLES = 9999
# The values of the column `rule`: the error term alone, by whatever feedback it comes, and with Oja's term beside it.
RULES = ("backprop", "hybrid")
# What makes one network and protocol another, as columns of the tables; within these, each rule has its own best rates.
SETTING = ["depth", "init", "init_gain", "feedback", "normalization", "optimizer", "batch_size"]


class Interval(NamedTuple):
    """A mean over seeds and its 95 % bootstrap interval (percentile method); the ends are NaN for a single seed."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if np.isnan(self.low) else f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def signed(self) -> str:
        """As a difference, with its sign."""
        ends = "" if np.isnan(self.low) else f" [{self.low:+.3f}, {self.high:+.3f}]"
        return f"{self.mean:+.3f}{ends}"

    @property
    def known(self) -> bool:
        """Whether there is an interval; of a single seed nothing can be told from chance."""
        return not np.isnan(self.low)

    @property
    def sign(self) -> int:
        """1 or -1 where the whole interval lies on one side of zero, else 0."""
        return int(self.low > 0) - int(self.high < 0)


def mean_interval(values: np.ndarray) -> Interval:
    """The mean over seeds with its bootstrap interval, the same each time it is asked."""
    values = np.asarray(values, np.float64)
    mean = float(np.mean(values))
    if len(values) < 2 or not np.isfinite(values).all():
        return Interval(mean, np.nan, np.nan)
    if np.ptp(values) == 0:
        return Interval(mean, mean, mean)
    draws = np.random.default_rng(0).integers(0, len(values), (_RESAMPLES, len(values)))
    low, high = np.percentile(np.mean(values[draws], axis=1), [2.5, 97.5])
    return Interval(mean, float(low), float(high))


def final_rows(results: pd.DataFrame) -> pd.DataFrame:
    """Each run's last evaluation."""
    # Batches of another size may end a little earlier, where they do not divide the number of samples.
    return results[results["examples_seen"] == results.groupby("batch_size")["examples_seen"].transform("max")]


def networks(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The parts of the table with one setting of network and protocol each, and a name that says what differs."""
    varying = [name for name in SETTING if name == "depth" or table[name].nunique() > 1]
    for values, part in table.groupby(varying, sort=False):
        yield ", ".join(setting_name(name, value) for name, value in zip(varying, values, strict=True)), part


def setting_name(name: str, value: Any) -> str:
    """One of `SETTING` in words: `10 layers`, `gain 0.3`, `random feedback`."""
    return {
        "depth": "{} layers",
        "init": "{} weights",
        "init_gain": "gain {:g}",
        "feedback": "{} feedback" if value != "backprop" else "{}",
        "normalization": "{} norm" if value != "none" else "no norm",
        "optimizer": "{}",
        "batch_size": "batch {}",
    }[name].format(str(value).replace("_", " ") if isinstance(value, str) else value)


def with_rule(results: pd.DataFrame) -> pd.DataFrame:
    """The table with a column `rule`: `backprop` where `oja_rate` is 0, else `hybrid`."""
    return results.assign(rule=np.where(results["oja_rate"] == 0, *RULES))


def best_setting(rows: pd.DataFrame) -> tuple[float, float]:
    """The (learning_rate, oja_rate) of the highest running training accuracy, on average over seeds.

    In the first epoch that accuracy is measured on samples not seen before, and never on test images, so the test
    accuracy of what it chooses is not flattered by the choice.
    """
    means = rows.groupby(["learning_rate", "oja_rate"])["train_accuracy"].mean().fillna(0.0)
    return means.idxmax()


def at_setting(rows: pd.DataFrame, setting: tuple[float, float]) -> pd.DataFrame:
    """The runs at that (learning_rate, oja_rate), in the order of their seeds."""
    chosen = (rows["learning_rate"] == setting[0]) & (rows["oja_rate"] == setting[1])
    return rows[chosen].sort_values("seed")


class Comparison(NamedTuple):
    """Backprop against the hybrid on the same seeds: the same initial weights and the same order of samples."""

    backprop: pd.DataFrame
    hybrid: pd.DataFrame
    backprop_setting: tuple[float, float]
    hybrid_setting: tuple[float, float]

    def accuracy(self, rule: str) -> Interval:
        """Final test accuracy of `backprop` or `hybrid`."""
        return mean_interval(getattr(self, rule)["test_accuracy"].to_numpy())

    def gain(self) -> Interval:
        """Hybrid minus backprop, paired by seed."""
        pairs = self.hybrid["test_accuracy"].to_numpy(np.float64) - self.backprop["test_accuracy"].to_numpy(np.float64)
        return mean_interval(pairs)

    def num_diverged(self, rule: str) -> int:
        """Runs that left the finite range."""
        return int(getattr(self, rule)["diverged"].sum())


def compare_tuned(rows: pd.DataFrame) -> Comparison | None:
    """Each rule at its own best learning rate; None if there is but one rate, at which nothing is tuned."""
    return compare(rows) if rows["learning_rate"].nunique() > 1 else None


def compare(rows: pd.DataFrame) -> Comparison | None:
    """Each rule at its best setting among those in the table of final rows; None if a rule is not there."""
    parts = [rows[rows["rule"] == rule] for rule in RULES]
    if any(part.empty for part in parts):
        return None
    settings = [best_setting(part) for part in parts]
    (backprop, hybrid), (backprop_setting, hybrid_setting) = parts, settings
    return Comparison(
        at_setting(backprop, backprop_setting), at_setting(hybrid, hybrid_setting), backprop_setting, hybrid_setting
    )


def by_learning_rate(rows: pd.DataFrame) -> Iterator[tuple[float, Comparison | None]]:
    """Both rules at each learning rate, the hybrid with the Oja rate that does best there."""
    for eta, part in rows.groupby("learning_rate"):
        yield eta, compare(part)


def widest(rows: pd.DataFrame) -> Comparison | None:
    """The comparison at equal learning rates where the rules differ most; None if there is none."""
    comparisons = [comparison for _, comparison in by_learning_rate(rows) if comparison is not None]
    return max(comparisons, key=lambda comparison: abs(comparison.gain().mean), default=None)
