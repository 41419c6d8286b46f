"""Intervals cover what they should, pairs are paired, and the choice of a setting never sees a test image."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from experiments.common import statistics


def table(accuracy):
    """Final rows from `{(learning_rate, oja_rate): (train accuracies, test accuracies)}`, one value a seed."""
    rows = [
        (eta, theta, seed, train, test, False)
        for (eta, theta), (trains, tests) in accuracy.items()
        for seed, (train, test) in enumerate(zip(trains, tests, strict=True))
    ]
    columns = ["learning_rate", "oja_rate", "seed", "train_accuracy", "test_accuracy", "diverged"]
    return statistics.with_rule(pd.DataFrame(rows, columns=columns))


def test_intervals():
    values = np.random.default_rng(0).normal(5, 2, size=400)
    interval = statistics.mean_interval(values)
    half_width = 1.96 * values.std() / 20
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half_width, abs=0.03)
    assert interval.high == pytest.approx(values.mean() + half_width, abs=0.03)
    assert interval == statistics.mean_interval(values)
    for count in (2, 3, 8):  # And an independent statement of them.
        values = np.random.default_rng(count).normal(size=count)
        want = scipy.stats.bootstrap(
            (values,), np.mean, n_resamples=9999, method="percentile", rng=np.random.default_rng(0)
        )
        assert statistics.mean_interval(values)[1:] == pytest.approx(tuple(want.confidence_interval))
    one = statistics.mean_interval(np.array([0.5]))
    assert str(one) == "0.500" and one.signed() == "+0.500" and one.sign == 0
    same = statistics.mean_interval(np.array([0.5, 0.5]))
    assert same == (0.5, 0.5, 0.5) and same.sign == 1
    assert statistics.mean_interval(np.array([-1.0, -1.1])).sign == -1
    assert statistics.mean_interval(np.array([-1.0, 1.1])).sign == 0


def test_the_best_setting_is_chosen_on_training_samples_alone():
    rows = table({(0.1, 0.0): ([0.9, 0.9], [0.1, 0.1]), (0.2, 0.0): ([0.5, 0.5], [0.8, 0.8])})
    assert statistics.best_setting(rows) == (0.1, 0.0)
    unseen = table({(0.1, 0.0): ([np.nan] * 2, [0.1, 0.1]), (0.2, 0.0): ([0.5, 0.5], [0.8, 0.8])})
    assert statistics.best_setting(unseen) == (0.2, 0.0)


def test_a_comparison_is_paired_by_seed():
    rows = table(
        {
            (0.1, 0.0): ([0.5] * 4, [0.1, 0.4, 0.7, 0.2]),
            (0.1, 0.01): ([0.6] * 4, [0.2, 0.5, 0.8, 0.3]),
            (0.2, 0.01): ([0.3] * 4, [0.9, 0.9, 0.9, 0.9]),
        }
    )
    comparison = statistics.compare(rows.sample(frac=1, random_state=0))
    assert comparison.backprop_setting == (0.1, 0.0) and comparison.hybrid_setting == (0.1, 0.01)
    gain = comparison.gain()
    # Every seed gains 0.1 exactly, although the seeds differ by far more.
    assert (gain.mean, gain.low, gain.high) == pytest.approx((0.1, 0.1, 0.1)) and gain.sign == 1
    assert statistics.compare(rows[rows["rule"] == "hybrid"]) is None
    assert statistics.compare_tuned(rows) is not None
    assert statistics.compare_tuned(rows[rows["learning_rate"] == 0.1]) is None


def test_final_rows():
    rows = pd.DataFrame({"examples_seen": [10, 20, 10, 20], "seed": [0, 0, 1, 1], "batch_size": 1})
    assert statistics.final_rows(rows)["seed"].tolist() == [0, 1]
