"""What the runs of several seeds say: means with intervals, and the best setting of each rule."""

from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.stats

_RESAMPLES = 9999
RULES = ("backprop", "hybrid")


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
    def sign(self) -> int:
        """1 or -1 where the whole interval lies on one side of zero, else 0."""
        return int(self.low > 0) - int(self.high < 0)


def mean_interval(values: np.ndarray) -> Interval:
    """The mean over seeds with its bootstrap interval, the same each time it is asked."""
    values = np.asarray(values, np.float64)
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, np.nan, np.nan)
    if np.ptp(values) == 0:
        return Interval(mean, mean, mean)
    interval = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=_RESAMPLES, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return Interval(mean, float(interval.low), float(interval.high))


def final_rows(results: pd.DataFrame) -> pd.DataFrame:
    """Each run's last evaluation."""
    return results[results["examples_seen"] == results["examples_seen"].max()]


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
