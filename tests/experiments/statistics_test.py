"""Intervals cover the truth, seeds are paired, and the choice of a setting does not depend on test images."""

import fractions
import itertools
import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from experiments.common import statistics
from experiments.common.results import Results
from experiments.common.tables import with_method
from experiments.deep_mlp import QUESTION
from experiments.tasks import classification


def setting(eta, theta):
    return {"learning_rate": eta, "oja_rate": theta}


def results(accuracy):
    """Returns final rows of image classification from `{(learning_rate, oja_rate): (train, test accuracies)}` per seed."""
    rows = [
        (eta, theta, seed, train, test, False)
        for (eta, theta), (trains, tests) in accuracy.items()
        for seed, (train, test) in enumerate(zip(trains, tests, strict=True))
    ]
    columns = ["learning_rate", "oja_rate", "seed", "train_accuracy", "test_accuracy", "diverged"]
    return Results(with_method(pd.DataFrame(rows, columns=columns)), None, QUESTION.schema)


def test_intervals():
    for count in (2, 3, 8, 400):
        values = np.random.default_rng(count).normal(size=count)
        want = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
        interval = statistics.mean_interval(values)
        assert interval == pytest.approx((values.mean(), want.low, want.high, count))
        assert interval.p == pytest.approx(scipy.stats.ttest_1samp(values, 0, alternative="greater").pvalue)
        assert (interval.p < 0.025) == (interval.low > 0)
    one = statistics.mean_interval(np.array([0.5]))
    assert str(one) == "0.500" and one.signed() == "+0.500" and one.sign == 0 and one.p == 1
    same = statistics.mean_interval(np.array([0.1, 0.1, 0.1]))
    assert same == (0.1, 0.1, 0.1, 3) and same.sign == 1 and same.p == 0
    none = statistics.mean_interval(np.zeros(3))
    assert none == (0, 0, 0, 3) and none.sign == 0 and none.p == 1
    assert statistics.mean_interval(np.array([-1.0, -1.3])).sign == 0  # Two seeds: 12.7 standard errors.
    assert statistics.mean_interval(np.array([-1.0, -1.1, -1.05, -1.02])).sign == -1
    assert statistics.mean_interval(np.array([-1.0, 1.1])).sign == 0
    assert not statistics.mean_interval(np.array([0.5, np.nan])).known


@pytest.mark.parametrize("seeds", [4, 8, 16])
def test_intervals_cover_the_truth(seeds):
    """95 +- 1.5 % for Gaussian differences; for seeds that either learn or do not, the shares in the docs."""
    rng = np.random.default_rng(seeds)

    def covered(draw, truth):
        intervals = [statistics.mean_interval(values) for values in draw((4000, seeds))]
        return np.mean([interval.low <= truth <= interval.high for interval in intervals])

    assert covered(lambda size: rng.normal(0.1, 0.05, size), 0.1) == pytest.approx(0.95, abs=0.015)
    # Half of the seeds learn and gain 0.5; the others gain nothing; the noise is 0.02.
    either = covered(lambda size: 0.5 * rng.integers(0, 2, size) + rng.normal(0, 0.02, size), 0.25)
    assert either == pytest.approx({4: 0.88, 8: 0.93, 16: 0.93}[seeds], abs=0.015)
    # One seed in ten fails.
    few = covered(lambda size: 0.5 * (rng.random(size) > 0.1) + rng.normal(0, 0.02, size), 0.45)
    assert few == pytest.approx({4: 0.41, 8: 0.57, 16: 0.81}[seeds], abs=0.02)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holms_correction_is_bonferronis_of_every_subset(p_values):
    """Holm's method is the closure of Bonferroni's test: the largest corrected p-value of a subset with the part."""
    indices = range(len(p_values))
    subsets = [s for size in range(1, len(p_values) + 1) for s in itertools.combinations(indices, size)]
    want = [min(max(len(s) * min(p_values[j] for j in s) for s in subsets if i in s), 1) for i in indices]
    assert statistics.holm(p_values) == pytest.approx(want)


def test_equal_search_is_the_mean_over_all_draws_of_settings():
    rng = np.random.default_rng(0)
    scores = {(eta, theta): rng.random((2, 5)) for eta in (0.1, 0.2, 0.3) for theta in (0.01, 0.02)}
    rows = results(scores)
    best = statistics.Tuned(rows)
    train, test = (np.array([pair[part] for pair in scores.values()]) for part in (0, 1))
    for budget in (1, 2, 4, 6):
        want = []
        for seed in range(5):
            others = np.delete(train, seed, axis=1).mean(axis=1)
            draws = [max(draw, key=lambda place: others[place]) for draw in itertools.combinations(range(6), budget)]
            want.append(test[draws, seed].mean())
        assert best.searched(budget) == pytest.approx(np.array(want)), budget
    assert (best.searched() == best.scores).all() and (best.searched(99) == best.scores).all()
    fewer = statistics.Tuned(rows.where(rows.table["learning_rate"] < 0.2))
    want = statistics.mean_interval(fewer.scores - best.searched(2))
    assert statistics.gain(fewer, best) == want and statistics.gain(best, fewer).mean == pytest.approx(-want.mean)


@pytest.mark.parametrize("number", [400, 1028, 1029, 1030, 1031, 2200])
def test_equal_search_of_very_many_settings(number):
    """Of more than about 1,030 settings the number of draws of half of them does not fit in 64 bits."""
    found = statistics.Tuned(results({(0.1 + place, 0.0): ([place] * 2, [place] * 2) for place in range(number)}))
    ways = [math.comb(place, number // 2 - 1) for place in range(number)]
    mean = fractions.Fraction(sum(place * way for place, way in enumerate(ways)), sum(ways))
    np.testing.assert_allclose(found.searched(number // 2), [float(mean)] * 2, rtol=1e-12)


def test_a_natural_end_is_no_edge():
    rng = np.random.default_rng(0)
    for theta, edges in ((0.01, []), (0.02, []), (0.03, ["θ = 0.03"])):
        scores = {(eta, t): rng.random((2, 4)) / 10 for eta in (0.1, 0.2, 0.3) for t in (0.01, 0.02, 0.03)}
        scores[0.2, theta] = (np.ones(4), np.ones(4))
        assert statistics.Tuned(results(scores)).edges == edges
    # An equally good value inside the grid is enough.
    level = {(eta, 0.01): (np.full(4, 0.5 + 0.009 * (eta == 0.1)), np.ones(4)) for eta in (0.1, 0.2, 0.3)}
    assert statistics.Tuned(results(level)).edges == []
    steep = {(eta, 0.01): (np.full(4, 0.5 + 0.011 * (eta == 0.1)), np.ones(4)) for eta in (0.1, 0.2, 0.3)}
    assert statistics.Tuned(results(steep)).edges == ["η = 0.1"]
    two = {(eta, 0.01): (np.full(4, 0.5), np.ones(4)) for eta in (0.1, 0.2)}
    assert statistics.Tuned(results(two)).edges == ["η = 0.1"]  # There is no value between the ends.
    alone = statistics.Tuned(results({(0.1, 0.01): ([1.0] * 4, [1.0] * 4)}))
    assert alone.edges == []  # A single value has no edge.


def test_the_best_setting_is_chosen_on_training_samples_alone():
    rows = results({(0.1, 0.0): ([0.9, 0.9], [0.1, 0.1]), (0.2, 0.0): ([0.5, 0.5], [0.8, 0.8])})
    assert statistics.Tuned(rows).setting == setting(0.1, 0.0)
    unseen = results({(0.1, 0.0): ([np.nan] * 2, [0.1, 0.1]), (0.2, 0.0): ([0.5, 0.5], [0.8, 0.8])})
    assert statistics.Tuned(unseen).setting == setting(0.2, 0.0)


def test_no_run_chooses_its_own_setting():
    """One setting is best on seed 0's training samples alone; the other seeds choose another for it."""
    trains = {0.1: [1.0] + [0.5] * 7, 0.2: [0.6] + [0.52] * 7, 0.3: [0.1] * 8}
    rows = results({(eta, 0.0): (train, [eta] * 8) for eta, train in trains.items()})
    best = statistics.Tuned(rows).setting  # Means over all: 0.5625, 0.53 and 0.1; without seed 0: 0.5, 0.52 and 0.1.
    assert best == setting(0.1, 0.0) and best.tried == 3
    assert [best.by_seed[seed]["learning_rate"] for seed in range(8)] == [0.2] + [0.1] * 7
    assert statistics.at_setting(rows, best).scores.tolist() == [0.2] + [0.1] * 7
    two = rows.where(rows.table["seed"] < 2)
    tuned = statistics.Tuned(two)
    assert tuned.scores.tolist() == statistics.at_setting(two, tuned.setting).scores.tolist()
    assert tuned.scores.tolist() == [0.2, 0.1]
    one = statistics.Tuned(rows.where(seed=0)).setting
    assert not one.by_seed and one == setting(0.1, 0.0)


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
    assert comparison.difference().mean == pytest.approx(0.3) and comparison.hybrid.setting["oja_half_life"] == 100
    assert comparison.hybrid.words == "η = 0.1, θ = 0.01, half-life 100"
    # The expected score of one of the two settings: 0.6 with the constant rule, 0.8 with the fading one.
    assert comparison.gain().mean == pytest.approx(0.2)
    # The half-life of a constant rule, inf, is a natural end, and the lowest one tried is none.
    assert comparison.hybrid.edges == ["half-life 100"]


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
    assert comparison.backprop.setting == setting(0.1, 0.0) and comparison.hybrid.setting == setting(0.1, 0.01)
    gain = comparison.difference()
    # Every seed gains 0.1 exactly, although the seeds differ by far more.
    assert (gain.mean, gain.low, gain.high) == pytest.approx((0.1, 0.1, 0.1)) and gain.sign == 1
    assert statistics.compare(rows.where(method="hybrid")) is None
    assert statistics.compare_tuned(rows) is not None
    assert statistics.compare_tuned(rows.where(learning_rate=0.1)) is None


def test_final_rows():
    rows = pd.DataFrame({"examples_seen": [10, 20, 10, 18], "seed": [0, 0, 1, 1], "batch_size": [1, 1, 3, 3]})
    final = statistics.final_rows(Results(rows, None, QUESTION.schema)).table
    assert final["seed"].tolist() == [0, 1] and final["examples_seen"].tolist() == [20, 18]


def test_chance_is_one_over_the_number_of_classes():
    rows = pd.DataFrame({"examples_seen": [20, 0], "examples_per_class": [5.0, 0.0]})
    assert statistics.chance(Results(rows, None, QUESTION.schema)) == 0.25
    without = QUESTION.schema._replace(score=QUESTION.schema.score._replace(chance=0.3))
    assert statistics.chance(Results(rows[["examples_seen"]], None, without)) == 0.3


def test_networks_are_named_by_what_differs():
    rows = pd.DataFrame({"depth": [10, 10, 5], "init": ["he_normal", "glorot_uniform", "he_normal"], "init_gain": 1.0})
    rows = rows.assign(learning_rate=[0.1, 0.2, 0.3])
    found = Results(rows, None, QUESTION.schema)
    named = {name: part.table.index.tolist() for name, part in statistics.networks(found)}
    assert named == {
        "10 layers, He-normal weights": [0],
        "10 layers, Glorot-uniform weights": [1],
        "5 layers, He-normal weights": [2],
    }
    assert next(iter(named)) == "10 layers, He-normal weights"  # In the order of the table.
    named = {name: part.table.index.tolist() for name, part in statistics.networks(found, but="init")}
    assert named == {"10 layers": [0, 1], "5 layers": [2]}
    one = statistics.networks(found.where(depth=10, init="he_normal"))
    assert [name for name, _ in one] == ["10 layers"]  # The depth is always part of the name.
    no_depth = Results(rows[["init", "init_gain"]].iloc[[0, 2]], None, QUESTION.schema)
    assert [name for name, _ in statistics.networks(no_depth)] == ["He-normal weights"]


def test_a_missing_score_has_no_part_in_the_choice():
    """The means of the known scores choose; a setting without any is chosen by nobody."""
    scores = {0.1: [-0.5, np.nan, -0.3], 0.2: [-0.397] * 3, 0.3: [np.nan] * 3, 0.4: [np.nan, np.nan, -0.8]}
    rows = results({(eta, 0.0): (train, [eta] * 3) for eta, train in scores.items()})
    best = statistics.Tuned(rows).setting
    assert best == setting(0.2, 0.0)  # The mean of two known scores is -0.4.
    assert [best.by_seed[seed]["learning_rate"] for seed in range(3)] == [0.1, 0.2, 0.2]
    assert statistics.Tuned(rows.of(rows.table.drop(index=1))).setting.by_seed == best.by_seed  # Nor has a missing run.
    # The last setting is never the best of two.
    scores = {0.1: ([0.5] * 2, [0.5] * 2), 0.2: ([0.4] * 2, [0.3] * 2), 0.3: ([0.1] * 2, [np.nan] * 2)}
    searched = statistics.Tuned(results({(eta, 0.0): both for eta, both in scores.items()})).searched(2)
    assert searched == pytest.approx([(2 * 0.5 + 0.3) / 3] * 2)
    one = statistics.Tuned(results({(0.1, 0.0): ([0.3], [0.1]), (0.2, 0.0): ([0.4], [0.2])}))
    assert one.scores.tolist() == [0.2]  # A single seed chooses for itself.


def test_a_run_that_diverged_without_a_score_counts_as_the_worst():
    """Else the setting at which all other runs diverge is the best one for the seed that survives."""
    scores = {0.1: [0.6, 0.6, 0.6], 0.2: [0.9, np.nan, np.nan], 0.3: [0.2, 0.2, 0.2]}
    rows = results({(eta, 0.0): (train, [eta] * 3) for eta, train in scores.items()})
    table = rows.table.assign(diverged=rows.table["train_accuracy"].isna())
    assert statistics.Tuned(rows).setting == setting(0.2, 0.0)  # Missing for another reason: no part in the choice.
    best = statistics.Tuned(rows.of(table)).setting
    assert best == setting(0.1, 0.0)  # 0.6 against (0.9 + 0.2 + 0.2) / 3.
    assert all(own["learning_rate"] == 0.1 for own in best.by_seed.values())
    nothing = statistics.Tuned(rows.of(table[table["diverged"]]))  # No run has a score.
    assert nothing.setting == setting(0.2, 0.0) and nothing.num_diverged == 2


def test_the_number_of_settings():
    rows = results({(eta, theta): ([0.5], [0.5]) for eta, theta in ((0.1, 0.0), (0.1, 0.01), (0.2, 0.01), (0.2, 0.02))})
    assert statistics.num_settings(rows) == 3
    assert statistics.num_settings(rows, "rule") == 0  # There is no such column.
    assert statistics.num_settings(rows.of(rows.table.drop(columns="train_accuracy"))) == 0
    assert statistics.num_settings(rows.of(rows.table.drop(columns=["learning_rate", "oja_rate"]))) == 0


def test_absent_variants_are_left_out():
    rows = results({(0.1, 0.0): ([0.5], [0.5]), (0.1, 0.01): ([0.6], [0.6])})
    assert list(statistics.by_variant(rows)) == ["backprop", "hybrid"]
    comparison = statistics.compare(rows)
    assert comparison.of("backprop") is comparison.backprop and comparison.of("hybrid") is comparison.hybrid


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
