"""Intervals cover what they should, pairs are paired, and the choice of a setting never sees a test image."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from experiments.common import statistics, verdicts
from experiments.common.results import Results
from experiments.common.statistics import Interval
from experiments.common.tables import with_method
from experiments.deep_mlp import QUESTION
from experiments.tasks import classification


def setting(eta, theta):
    return {"learning_rate": eta, "oja_rate": theta}


def results(accuracy):
    """Final rows of image classification from `{(learning_rate, oja_rate): (train, test accuracies)}`, one per seed."""
    rows = [
        (eta, theta, seed, train, test, False)
        for (eta, theta), (trains, tests) in accuracy.items()
        for seed, (train, test) in enumerate(zip(trains, tests, strict=True))
    ]
    columns = ["learning_rate", "oja_rate", "seed", "train_accuracy", "test_accuracy", "diverged"]
    return Results(with_method(pd.DataFrame(rows, columns=columns)), None, QUESTION.schema)


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
        assert statistics.mean_interval(values)[1:3] == pytest.approx(tuple(want.confidence_interval))
    one = statistics.mean_interval(np.array([0.5]))
    assert str(one) == "0.500" and one.signed() == "+0.500" and one.sign == 0
    same = statistics.mean_interval(np.array([0.5, 0.5]))
    assert same == (0.5, 0.5, 0.5, 2) and same.sign == 1
    assert statistics.mean_interval(np.array([-1.0, -1.1])).sign == -1
    assert statistics.mean_interval(np.array([-1.0, 1.1])).sign == 0


def test_the_best_setting_is_chosen_on_training_samples_alone():
    rows = results({(0.1, 0.0): ([0.9, 0.9], [0.1, 0.1]), (0.2, 0.0): ([0.5, 0.5], [0.8, 0.8])})
    assert statistics.best_setting(rows) == setting(0.1, 0.0)
    unseen = results({(0.1, 0.0): ([np.nan] * 2, [0.1, 0.1]), (0.2, 0.0): ([0.5, 0.5], [0.8, 0.8])})
    assert statistics.best_setting(unseen) == setting(0.2, 0.0)


def test_no_run_chooses_its_own_setting():
    """One setting is best on seed 0's training samples alone; the other seeds choose another for it."""
    trains = {0.1: [1.0] + [0.5] * 7, 0.2: [0.6] + [0.52] * 7, 0.3: [0.1] * 8}
    rows = results({(eta, 0.0): (train, [eta] * 8) for eta, train in trains.items()})
    best = statistics.best_setting(rows)  # Means over all: 0.5625, 0.53 and 0.1; without seed 0: 0.5, 0.52 and 0.1.
    assert best == setting(0.1, 0.0) and best.tried == 3
    assert [best.by_seed[seed]["learning_rate"] for seed in range(8)] == [0.2] + [0.1] * 7
    assert statistics.at_setting(rows, best).scores.tolist() == [0.2] + [0.1] * 7
    few = statistics.best_setting(rows.where(rows.table["seed"] < 7))
    assert not few.by_seed and set(statistics.at_setting(rows, few).scores) == {0.1}


def test_a_half_life_makes_the_method_fading_which_counts_as_with_oja():
    rows = results({(0.1, 0.0): ([0.5] * 4, [0.5] * 4), (0.1, 0.01): ([0.6] * 4, [0.6] * 4)})
    fading = rows.where(method="hybrid").table.assign(train_accuracy=0.7, test_accuracy=0.8, oja_half_life=100.0)
    rows = rows.of(with_method(pd.concat([rows.table.assign(oja_half_life=np.inf), fading])))
    assert rows.table.groupby("method")["test_accuracy"].first().to_dict() == {
        "backprop": 0.5,
        "hybrid": 0.6,
        "fading": 0.8,
    }
    comparison = statistics.compare(rows)
    assert comparison.gain().mean == pytest.approx(0.3) and comparison.hybrid_setting["oja_half_life"] == 100
    assert comparison.rates("hybrid") == "η = 0.1, θ = 0.01, half-life 100"
    assert statistics.at_the_edge(rows.where(rows.table["method"] != "backprop"), comparison.hybrid_setting) == [
        "half-life 100"
    ]


def test_width_in_decades():
    assert statistics.width([0.01, 0.1, 1, 10], [0, 1, 1, 0], 0.5) == pytest.approx(2, abs=0.01)
    assert statistics.width([0.01, 0.1], [0, 0], 0.5) == 0


def test_a_comparison_is_paired_by_seed():
    rows = results(
        {
            (0.1, 0.0): ([0.5] * 4, [0.1, 0.4, 0.7, 0.2]),
            (0.1, 0.01): ([0.6] * 4, [0.2, 0.5, 0.8, 0.3]),
            (0.2, 0.01): ([0.3] * 4, [0.9, 0.9, 0.9, 0.9]),
        }
    )
    comparison = statistics.compare(rows.of(rows.table.sample(frac=1, random_state=0)))
    assert comparison.backprop_setting == setting(0.1, 0.0) and comparison.hybrid_setting == setting(0.1, 0.01)
    gain = comparison.gain()
    # Every seed gains 0.1 exactly, although the seeds differ by far more.
    assert (gain.mean, gain.low, gain.high) == pytest.approx((0.1, 0.1, 0.1)) and gain.sign == 1
    assert statistics.compare(rows.where(method="hybrid")) is None
    assert statistics.compare_tuned(rows) is not None
    assert statistics.compare_tuned(rows.where(learning_rate=0.1)) is None


def test_final_rows():
    rows = pd.DataFrame({"examples_seen": [10, 20, 10, 20], "seed": [0, 0, 1, 1], "batch_size": 1})
    assert statistics.final_rows(Results(rows, None, QUESTION.schema)).table["seed"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("gains", "outcome"),
    [
        ([], verdicts.NOT_TESTED),
        ([Interval(0.2, 0.1, 0.3, 4)], verdicts.REPRODUCED),
        ([Interval(0.2, 0.1, 0.3, 3)], verdicts.UNDECIDED),  # Too few seeds.
        ([Interval(0.002, 0.001, 0.003, 8)], verdicts.NOT_REPRODUCED),  # Clear, and too small to matter.
        ([Interval(0.05, -0.01, 0.1, 8)], verdicts.UNDECIDED),  # Not clear.
        ([Interval(-0.2, -0.3, -0.1, 8)], verdicts.NOT_REPRODUCED),
        ([Interval(0.2, 0.1, 0.3, 8), Interval(-0.2, -0.3, -0.1, 8)], verdicts.PARTLY),
        ([Interval(0.05, -0.01, 0.1, 8), Interval(-0.2, -0.3, -0.1, 8)], verdicts.UNDECIDED),
    ],
)
def test_verdicts(gains, outcome):
    assert verdicts.verdict_of(gains, []).outcome == outcome


def test_two_seeds_on_easy_data_are_no_verdict():
    """0.999 against 0.997: clear, and neither enough seeds nor a difference that matters."""
    rows = results({(0.1, 0.0): ([0.9] * 2, [0.997] * 2), (0.1, 0.01): ([0.9] * 2, [0.999] * 2)})
    gain = statistics.compare(rows).gain()
    assert gain.sign == 1 and verdicts.verdict_of([gain], []).outcome == verdicts.UNDECIDED
    assert verdicts.verdict_of([gain._replace(seeds=8)], []).outcome == verdicts.NOT_REPRODUCED


def test_axes_name_themselves_in_words():
    words = {axis.name: axis for axis in classification.AXES}
    named = {"depth": 10, "init": "he_normal", "init_gain": 0.3, "feedback": "random", "rule": "oja_per_neuron"}
    assert [words[name].named(value) for name, value in named.items()] == [
        "10 layers",
        "He-normal weights",
        "gain 0.3",
        "random feedback",
        "oja per neuron rule",
    ]
    assert QUESTION.schema.named(setting(0.01, 0.001)) == "η = 0.01, θ = 0.001"
    assert QUESTION.schema.named(setting(0.01, 0)) == "η = 0.01"
