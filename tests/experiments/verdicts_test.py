"""Verdicts are correct: outcomes, their reasons, and each question's verdict on made-up results with a known truth."""

import collections
import math
import os

import numpy as np
import pandas as pd
import pytest

from experiments import critical_period, deep_mlp, mechanism, meta_learning, weight_init
from experiments.common import statistics, verdicts
from experiments.common.results import Results
from experiments.common.statistics import Interval, compare
from experiments.common.tables import with_method
from experiments.common.verdicts import MIXED, NOT_REPRODUCED, NOT_TESTED, PARTLY, REPRODUCED, UNDECIDED, Part
from tests.experiments import made_up

GAIN, SMALL, LOSS = Interval(0.2, 0.1, 0.3, 8), Interval(0.002, 0.001, 0.003, 8), Interval(-0.2, -0.3, -0.1, 8)
UNCLEAR = Interval(0.05, -0.01, 0.11, 8)
EDGE = ["the best η = 1 is the first or last value tried"]


def said(*gains, **options):
    parts = [gain if isinstance(gain, Part) else Part("a part", gain) for gain in gains]
    return verdicts.verdict_of(parts, [], **options)


def test_a_count_after_correction_is_corrected_even_if_all_parts_hold_alone():
    parts = [Part(name, Interval(0.05, 0.003, 0.097, 8)) for name in "ab"]
    as_a_claim, counted = (verdicts.verdict_of(parts, [], corrected=corrected) for corrected in (False, True))
    assert as_a_claim.outcome == counted.outcome == REPRODUCED
    assert {part["says"] for part in as_a_claim.parts} == {"holds"}
    assert {part["says"] for part in counted.parts} == {"clear alone, not after correction"}


@pytest.mark.parametrize(
    ("gains", "outcome"),
    [
        ([], NOT_TESTED),
        ([GAIN], REPRODUCED),
        ([GAIN, GAIN], REPRODUCED),
        ([Interval(0.2, 0.1, 0.3, 7)], UNDECIDED),  # Too few seeds.
        ([GAIN, Interval(0.2, 0.1, 0.3, 7)], UNDECIDED),
        ([SMALL], NOT_REPRODUCED),  # Clear, and too small to matter.
        ([Interval(0.009, 0.005, 0.013, 8)], UNDECIDED),  # Clear, and perhaps large enough.
        ([UNCLEAR], UNDECIDED),
        ([LOSS], NOT_REPRODUCED),
        ([LOSS, SMALL], NOT_REPRODUCED),
        ([GAIN, SMALL], PARTLY),
        ([GAIN, UNCLEAR], PARTLY),
        ([GAIN, LOSS], MIXED),
        ([GAIN, Interval(-0.005, -0.009, -0.001, 8)], PARTLY),  # Behind by less than matters.
        ([GAIN, Interval(-0.05, -0.11, 0.01, 8)], PARTLY),  # Perhaps behind.
        ([UNCLEAR, LOSS], NOT_REPRODUCED),
        ([UNCLEAR, Part("", LOSS, 0.01, EDGE)], UNDECIDED),
        ([UNCLEAR, Part("", LOSS, 0.21)], UNDECIDED),  # A clear loss, but not as large as it should be.
        ([Part("", GAIN, 0.01, EDGE)], UNDECIDED),
        ([GAIN, Part("", GAIN, 0.01, EDGE)], PARTLY),
        ([GAIN, Part("", LOSS, 0.01, EDGE)], PARTLY),
        ([Part("", LOSS, 0.01, EDGE), SMALL], UNDECIDED),
        ([Part("", GAIN, 0.3)], UNDECIDED),  # Clear, but it is not as large as it should be.
        ([Part("", GAIN, 0.31)], NOT_REPRODUCED),
    ],
)
def test_verdicts(gains, outcome):
    verdict = said(*gains)
    assert verdict.outcome == outcome
    assert bool(verdict.reason) == (outcome == UNDECIDED or (outcome == NOT_REPRODUCED and UNCLEAR in gains))


def test_some_of_many_is_corrected_for_their_number():
    """One of twenty parts with p = 0.02 is expected by chance; with p = 0.001 it is not."""
    clear_alone = Interval(0.05, 0.003, 0.097, 8)
    assert 0.0125 < clear_alone.p < 0.025 and said(clear_alone).outcome == REPRODUCED
    lucky = said(clear_alone, *[UNCLEAR] * 19)
    assert lucky.outcome == UNDECIDED and lucky.parts[0]["says"] == "clear alone, not after correction"
    assert said(clear_alone, UNCLEAR).outcome == UNDECIDED  # 2 x 0.02 is more than 0.025.
    assert said(GAIN, *[UNCLEAR] * 19).outcome == PARTLY
    assert said(*[clear_alone] * 20).outcome == REPRODUCED  # Each part must hold, which needs no correction.


def test_a_loss_of_many_is_corrected_for_their_number():
    """A claim that is reversed in six of nine parts, and holds in none, was called undecided."""
    lost_alone = Interval(-0.05, -0.097, -0.003, 8)
    assert 0.0125 < 1 - lost_alone.p < 0.025
    for gains in ([lost_alone, UNCLEAR], [lost_alone, *[UNCLEAR] * 19]):
        assert said(*gains).outcome == UNDECIDED and said(*gains).parts[0]["says"] == "reversed"
    assert said(LOSS, *[UNCLEAR] * 19).outcome == NOT_REPRODUCED
    assert said(LOSS, *[UNCLEAR] * 19).reason == "none of 20 gains holds after correction: 1 is reversed, 19 are not clear"


def test_the_parts_of_a_claim_are_a_table():
    assert verdicts.table(said()) == ""
    assert verdicts.table(said(Part("one", GAIN), Part("two", LOSS))).splitlines()[2:] == [
        f"| one | +0.200 [+0.100, +0.300] | {2 * GAIN.p:.2g} | holds |",
        "| two | -0.200 [-0.300, -0.100] | 1 | reversed |",
    ]
    says = [part["says"] for part in said(GAIN, SMALL, UNCLEAR, Part("", GAIN, 0.01, EDGE)).parts]
    assert says == ["holds", "below what matters", "not clear", f"undecided: {EDGE[0]}"]
    assert said(Interval(0.008, 0.002, 0.014, 8)).parts[0]["says"] == "clear, but perhaps too small to matter"
    # A margin is added before a gain is judged, and is not shown.
    behind = said(verdicts.not_worse("as good", Interval(-0.002, -0.005, 0.001, 8))).parts[0]
    assert behind["part"] == "as good, within 0.01" and behind["says"] == "holds"
    assert behind["gain"] == "-0.002 [-0.005, +0.001]" and behind["mean"] == -0.002
    assert behind["p"] == pytest.approx(Interval(0.008, 0.005, 0.011, 8).p)
    undecided = verdicts.table(said(Part("", GAIN, 0.01, EDGE)))
    assert f"|  | undecided: {EDGE[0]} |" in undecided  # Without a p-value, as it is not tested.


def test_a_doubt_about_the_whole_claim_decides():
    assert said(GAIN, doubts=["there is a single depth, 2"]).reason == "there is a single depth, 2"
    assert said(GAIN._replace(seeds=3), doubts=["one", "two"]).reason.endswith("and there are 3; one; two")
    assert said(doubts=["no trick helps"]).outcome == UNDECIDED
    assert said(GAIN).gains == {} and said(GAIN, gains={"constant": "+0.2"}).gains == {"constant": "+0.2"}
    assert "fewer" not in said(GAIN._replace(seeds=3)).reason and "there are 3" in said(GAIN._replace(seeds=3)).reason
    assert str(said(GAIN)) == "reproduced" and str(said(UNCLEAR)).startswith("undecided, as its gain is neither")


def test_a_doubt_does_not_hide_a_loss():
    """With seven of twelve gains reversed, the reason named only a learning rate at an edge."""
    verdict = said(LOSS, LOSS, UNCLEAR, Part("", GAIN, 0.01, EDGE))
    assert verdict.outcome == NOT_REPRODUCED
    edge = "1 is not judged (a best value is the first or last value tried)"
    assert verdict.reason == f"none of 4 gains holds after correction: 2 are reversed, 1 is not clear, {edge}"
    assert said(Part("", GAIN, 0.01, EDGE)).reason == EDGE[0]
    assert said(*[Part("", GAIN, 0.01, EDGE)] * 2).reason.endswith(f": {edge.replace('1 is', '2 are')}")
    assert "reversed" not in said(UNCLEAR, Part("", LOSS, 0.01, EDGE)).reason
    assert said(SMALL, UNCLEAR).reason.endswith(": 1 is below what matters, 1 is not clear")
    small = Interval(0.008, 0.002, 0.014, 8)
    assert said(small, UNCLEAR).reason.endswith(": 1 is clear, but perhaps too small to matter, 1 is not clear")
    weak = Interval(0.1, 0.001, 0.2, 8)  # It holds by itself, at p = 0.024.
    assert said(weak, UNCLEAR).reason.endswith(": 1 is clear alone, 1 is not clear")


def test_as_well_as_is_not_behind_by_what_matters():
    def outcome(low, high):
        return said(verdicts.not_worse("", Interval((low + high) / 2, low, high, 8))).outcome

    assert outcome(-0.009, 0.005) == REPRODUCED
    assert outcome(-0.0099, -0.0095) == REPRODUCED  # Clearly behind, and by less than matters.
    assert outcome(-0.011, 0.005) == UNDECIDED
    assert outcome(-0.05, -0.011) == NOT_REPRODUCED
    assert outcome(-0.05, -0.009) == UNDECIDED


def test_two_seeds_on_easy_data_are_no_verdict():
    """0.999 against 0.997 is clear, but has too few seeds and a difference too small to matter."""
    gain = Interval(0.002, 0.002, 0.002, 2)
    assert gain.sign == 1 and said(gain).outcome == UNDECIDED
    assert said(gain._replace(seeds=8)).outcome == NOT_REPRODUCED


def depths(accuracy, tried=(5, 10), seeds=8, etas=(0.1, 0.2, 0.3), thetas=(0.0, 0.001, 0.002, 0.003), diverged=False):
    """Returns results of the main study from `accuracy(depth, theta)`, best at the second rate."""
    rows = [
        (depth, eta, theta, seed, accuracy(depth, theta) - 0.05 * abs(eta - 0.2) + 1e-3 * (seed % 3) * (theta > 0))
        for depth in tried
        for eta in etas
        for theta in thetas
        for seed in range(seeds)
    ]
    table = pd.DataFrame(rows, columns=["depth", "learning_rate", "oja_rate", "seed", "test_accuracy"])
    table = table.assign(
        train_accuracy=table["test_accuracy"] - 0.01 * (table["oja_rate"] - 0.0015).abs() / 1e-3,
        init="glorot_uniform",
        oja_half_life=np.inf,
        batch_size=1,
        examples_seen=100,
        examples_per_class=10,
        diverged=diverged,
    )
    return Results(with_method(table), None, deep_mlp.QUESTION.schema)


@pytest.mark.parametrize("level", [0.2, 0.708, 0.988])
def test_a_single_depth_says_nothing_of_how_deep(level):
    for depth in (2, 10):
        verdict = deep_mlp.verdict(depths(lambda *_: level, tried=(depth,)))
        words = " ".join(verdict.evidence)
        assert verdict.outcome == UNDECIDED and f"there is a single depth, {depth}" in verdict.reason
        assert "none of these depths" not in words and "stops at" not in words


def test_a_depth_at_which_all_learn_is_not_where_they_stop():
    words = deep_mlp.verdict(depths(lambda *_: 0.7, tried=(2, 5), seeds=3)).evidence[0]
    assert "without Oja learns at 5 layers, the most tried; constant Oja learns at 5" in words and "stops" not in words
    falls = deep_mlp.verdict(depths(lambda depth, theta: 0.7 if depth < 8 or theta else 0.1)).evidence[0]
    assert "without Oja stops at 7.5" in falls and "constant Oja learns at 10 layers, the most tried" in falls
    late = deep_mlp.verdict(depths(lambda depth, theta: 0.7 if theta else 0.1)).evidence[0]
    assert "without Oja learns at none of these depths" in late


def test_where_nothing_was_learned_nothing_is_concluded():
    for diverged in (False, True):
        verdict = deep_mlp.verdict(depths(lambda _, theta: 0.1 + 0.036 * (theta > 0), diverged=diverged))
        assert verdict.outcome == UNDECIDED and "too little was learned" in verdict.reason
        assert "counts as learned" not in " ".join(verdict.evidence)
        assert ("diverged at every setting tried" in verdict.reason) == diverged
    assert deep_mlp.verdict(depths(lambda _, theta: 0.4 + 0.036 * (theta > 0))).outcome == REPRODUCED


def test_a_sentence_says_of_how_many_settings_a_gain_is():
    found = depths(lambda *_: 0.5, tried=(10,))
    comparison = compare(found)
    assert f"gain {comparison.gain().signed()} at 3 settings each (" in verdicts.sentence("Ten", comparison)
    assert verdicts.sentence("Ten", comparison).endswith("each at its own best).")  # 3 without the rule, 9 with it.
    alike = compare(found.where(found.table["oja_rate"].isin([0, 0.001])))
    assert "settings" not in verdicts.sentence("Ten", alike)


@pytest.mark.parametrize(("above", "outcome"), [(0.049, UNDECIDED), (0.051, REPRODUCED)])
def test_something_was_learned_where_a_mean_is_above_chance_by_five_points(above, outcome):
    verdict = deep_mlp.verdict(depths(lambda _, theta: 0.1 + (above - 0.001) * (theta > 0)))
    assert verdict.outcome == outcome


def test_a_best_rate_at_the_edge_decides_nothing():
    found = depths(lambda _, theta: 0.4 + 0.1 * (theta > 0))
    at_the_edge = found.where(found.table["learning_rate"] < 0.3)
    verdict = deep_mlp.verdict(at_the_edge)
    assert verdict.outcome == UNDECIDED and "the best η = 0.2 of the baseline is the first or last" in verdict.reason
    assert "the claim is about 10 layers" in deep_mlp.verdict(found.where(found.table["depth"] < 10)).reason


def test_a_clear_loss_with_a_clear_gain_is_mixed():
    rows = []
    for init, gain in (("glorot_uniform", 0.1), ("he_normal", -0.1)):
        for life in (100.0, 200.0, 300.0, np.inf):
            for eta in (0.1, 0.2, 0.3):
                for theta in (0.0, 0.001, 0.002, 0.003):
                    score = 0.5 + gain * (np.isfinite(life) and theta > 0)
                    chooses = (
                        score - abs(eta - 0.2) - abs(theta - 0.002) - 1e-5 * abs(life - 200 if np.isfinite(life) else 0)
                    )
                    rows += [
                        (init, life if theta else np.inf, eta, theta, seed, score + 1e-3 * (seed % 2), chooses)
                        for seed in range(8)
                    ]
    columns = ["init", "oja_half_life", "learning_rate", "oja_rate", "seed", "test_accuracy", "train_accuracy"]
    table = pd.DataFrame(rows, columns=columns).drop_duplicates(columns[:5])
    more = {
        "depth": 10,
        "feedback": "backprop",
        "timing": "fading",
        "batch_size": 1,
        "examples_seen": 10,
        "diverged": False,
    }
    found = Results(with_method(table.assign(**more)), None, critical_period.QUESTION.schema)
    verdict = critical_period.verdict(found)
    assert verdict.outcome == MIXED and [part["says"] for part in verdict.parts] == ["holds", "reversed"]


MANY = os.environ.get("HYPOTHESIS_PROFILE") == "many"


@pytest.mark.hypothesis  # So that `make soak` tries 500 of each.
@pytest.mark.parametrize("name", made_up.NAMES)
def test_without_any_effect_no_question_finds_one(name):
    """On tables of its real shape a verdict finds an effect in at most 5 % of studies; of eight, in one by chance."""
    number = 500 if MANY else 8
    outcomes = collections.Counter(made_up.verdict(name, np.random.default_rng(seed)).outcome for seed in range(number))
    found = sum(outcomes[word] for word in (REPRODUCED, PARTLY, MIXED))
    assert found <= max(1, 0.05 * number), outcomes


@pytest.mark.parametrize(
    "name", ["feedback_alignment", "data_scarcity", "blank_rows", "copy_task", "convolution", "transfer"]
)
def test_a_large_effect_is_found(name):
    """The positive control of the previous test."""
    assert made_up.verdict(name, np.random.default_rng(0), 0.1).outcome in (REPRODUCED, PARTLY)


@pytest.mark.parametrize("name", made_up.NAMES)
def test_where_all_runs_diverged_no_question_finds_anything(name):
    verdict = made_up.question(name).verdict(made_up.results(name, np.random.default_rng(0), diverged=True))
    assert verdict.outcome in (UNDECIDED, NOT_TESTED), verdict


@pytest.mark.parametrize(
    ("lost", "at_best", "words"),
    [(4, True, ""), (5, True, "diverged at its best setting"), (5, False, "diverged at every setting tried")],
)
def test_a_method_of_which_most_runs_diverged_decides_nothing(lost, at_best, words):
    found = depths(lambda _, theta: 0.4 + 0.1 * (theta > 0))
    table = found.table
    diverged = (table["seed"] < lost) & (table["oja_rate"] == 0) & ((table["learning_rate"] == 0.2) | (not at_best))
    verdict = deep_mlp.verdict(found.of(table.assign(diverged=diverged)))
    assert verdict.outcome == (UNDECIDED if words else REPRODUCED)
    assert words in verdict.reason and ("of the baseline" in verdict.reason) == bool(words)


def evidence(name, found):
    return " ".join(made_up.question(name).verdict(found).evidence)


def test_evidence_is_true_where_nothing_was_learned():
    nothing = {name: made_up.results(name, np.random.default_rng(0), diverged=True) for name in made_up.NAMES}
    assert "With 5 layers too little was learned at any gain." in evidence("weight_init", nothing["weight_init"])
    assert "decades of gain" not in evidence("weight_init", nothing["weight_init"])
    tricks = evidence("engineering_tricks", nothing["engineering_tricks"])
    assert "is not clearly different from batch 8 (" in tricks and "better than" not in tricks and "worse" not in tricks
    assert verdicts.TOO_LITTLE_LEARNED in made_up.question("mechanism").verdict(nothing["mechanism"]).reason


@pytest.mark.parametrize(("hidden", "gains"), [(0, 0), (1, 4), (2, 6)])
def test_a_mechanism_is_judged_by_the_layers_that_there_are(hidden, gains):
    """At an equal rate and each method at its own best."""
    found = made_up.results("mechanism", np.random.default_rng(0), 0.1)
    shallow, layers = (part.where(depth=5) for part in (found, found.layers))
    layers = layers.where(layers.table["layer"] <= hidden + 1).table.assign(depth=hidden + 1)
    layers.loc[layers["layer"] == 1, "error_gain"] = np.nan  # It goes no further back.
    told = mechanism.verdict(Results(shallow.table.assign(depth=hidden + 1), layers, found.schema))
    assert len(told.parts) == gains and "there are 0" not in told.reason
    assert all(("the error on its way back" in sentence) == (hidden > 1) for sentence in told.evidence)
    assert ("there is no hidden layer" in " ".join(told.evidence)) == (not hidden)
    assert (told.outcome == NOT_TESTED) == (not hidden)


@pytest.mark.parametrize("name", ["meta_learning", "transfer"])
def test_a_guess_among_the_classes_of_an_episode_is_nothing_learned(name):
    """Data of episodes have no classes, and 0.1 was taken for learned where a guess among five classes is 0.2."""
    found = made_up.results(name, np.random.default_rng(0), 0.1)
    for level, doubted in ((0.2, True), (0.3, False)):
        scores = found.table["test_accuracy"] - found.table["test_accuracy"].mean() + level
        told = made_up.question(name).verdict(found.of(found.table.assign(test_accuracy=scores.clip(level, level + 0.03))))
        assert any(verdicts.TOO_LITTLE_LEARNED in part["says"] for part in told.parts) == doubted


def test_a_run_that_diverged_is_not_a_steady_one():
    """It has no measures: its seed is left out of both methods, and the part is not judged."""
    found = made_up.results("mechanism", np.random.default_rng(0), 0.1)
    measures = ["effective_dimension", "activity_gain", "error_gain"]

    def diverged(seeds):
        lost = ((found.layers.table["method"] == "hybrid") & (found.layers.table["seed"] < seeds)).to_numpy()
        table = found.layers.table.copy()
        table.loc[lost, measures] = np.nan
        return mechanism.verdict(Results(found.table, table, found.schema))

    without, some, every = (diverged(seeds) for seeds in (0, 3, 8))
    silent = found.layers.table.copy()
    silent.loc[(silent["layer"] == 2) & (silent["seed"] == 0), "activity_gain"] = 0.0
    told = mechanism.verdict(Results(found.table, silent, found.schema))
    assert all("1 of 8 seeds have a run that diverged, or a layer that is silent" in part["says"] for part in told.parts)
    assert all(math.isfinite(part["mean"]) for part in told.parts)
    assert all(math.isfinite(part["mean"]) for part in some.parts)
    assert not any("diverged" in part["says"] for part in without.parts)
    assert all("3 of 8 seeds have a run that diverged" in part["says"] for part in some.parts)
    assert all("8 of 8 seeds have a run that diverged" in part["says"] and not part["gain"] for part in every.parts)
    assert not any("a verdict needs" in verdict.reason for verdict in (some, every))
    assert (some.outcome, every.outcome) == (UNDECIDED, UNDECIDED)


def test_a_width_is_told_at_own_best_and_at_equal_search():
    found = made_up.results("weight_init", np.random.default_rng(0), 0.1)
    told = next(sentence for sentence in made_up.question("weight_init").verdict(found).evidence if "decades" in sentence)
    (_, glorot, _, threshold), *_ = weight_init.by_depth(found)
    own, equal = (weight_init.widths(glorot, threshold, equal_search=equal) for equal in (False, True))
    assert f"over {statistics.mean_interval(own['hybrid'])} decades of gain with Oja" in told
    wider = statistics.mean_interval(equal["hybrid"] - equal["backprop"])
    assert f"or of {wider.signed()} at equal search" in told


def test_lost_episodes_are_a_share_of_episodes():
    """Each row has the share since the evaluation before: half of 10 episodes and none of 90 are one in twenty."""
    found = made_up.results("meta_learning", np.random.default_rng(0))
    rows = [found.table.assign(examples_seen=seen, train_lost=lost) for seen, lost in ((0, np.nan), (10, 0.5), (100, 0.0))]
    assert set(meta_learning.lost_episodes(found.of(pd.concat(rows))).values()) == {0.05}


def test_evidence_of_one_seed_claims_nothing_clear():
    found = made_up.results("short_term_memory", np.random.default_rng(0), 0.1).where(seed=0)
    assert "the capacity is clearly larger in 0 of 6 comparisons" in evidence("short_term_memory", found)
    tricks = made_up.results("engineering_tricks", np.random.default_rng(0), 0.1).where(seed=0)
    assert "clearly" not in evidence("engineering_tricks", tricks)
