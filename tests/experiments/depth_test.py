"""Verdicts, tables and figures of known results, for the questions of depth, critical period and controls."""

import itertools

import numpy as np
import pandas as pd
import pytest

from experiments import controls, critical_period, deep_mlp
from experiments.common import figures, statistics, verdicts
from experiments.common.results import Results
from experiments.common.tables import with_method
from experiments.tasks import comparing

SAME = {"init_gain": 1.0, "normalization": "none", "activation": "softplus", "optimizer": "sgd", "rule": "oja",
        "batch_size": 1, "diverged": False, "examples_per_class": 40.0, "examples_seen": 400}  # fmt: skip


def results(question, rows):
    """Returns results of a question from rows with one score each, for eight seeds that differ a little."""
    seeds = [row | {"seed": seed, "test_accuracy": row["score"] + 0.001 * seed} for row in rows for seed in range(8)]
    frame = pd.DataFrame([SAME | row for row in seeds])
    table = with_method(frame.assign(train_accuracy=frame["score"]).drop(columns="score"))
    return Results(table, None, question.schema)


def by_depth(accuracy, etas=(1e-4, 1e-3, 1e-2), rules=((0.0, np.inf), (1e-3, np.inf), (1e-3, 500.0))):
    """Returns results of the main study, with `accuracy(init, depth, rate, half_life)` at the best learning rate."""
    inits, depths = ("glorot_uniform", "he_normal"), (5, 10, 20)
    rows = [
        {"init": init, "depth": depth, "feedback": "backprop", "learning_rate": eta, "oja_rate": rate,
         "oja_half_life": life,
         "score": accuracy(init, depth, rate, life) if eta == sorted(etas)[len(etas) // 2] else 0.1}
        for init, depth, eta, (rate, life) in itertools.product(inits, depths, etas, rules)
    ]  # fmt: skip
    return results(deep_mlp.QUESTION, rows)


def falls(init, depth, rate, life):
    """With Glorot weights backprop fails between 5 and 10 layers, constant Oja between 10 and 20, fading Oja never."""
    if init == "he_normal" or np.isfinite(life):
        return 0.9
    return {5: 0.9, 10: 0.9 if rate else 0.1, 20: 0.1}[depth]


def test_the_depth_at_which_a_rule_stops_learning():
    found = by_depth(falls)
    level = deep_mlp.threshold(found)
    assert level == pytest.approx(0.5, abs=0.01)  # Half-way from a chance of 0.1 to 0.9.
    glorot, he = (deep_mlp.by_depth(rows) for _, rows in deep_mlp.protocols(found))
    reached = deep_mlp.depth_reached
    assert reached(glorot["backprop"], level) == pytest.approx([7.5] * 8, abs=0.04)  # Half-way down from 5 to 10.
    assert reached(glorot["hybrid"], level) == pytest.approx([15] * 8, abs=0.1)
    assert reached(glorot["fading"], level).tolist() == [20] * 8
    assert reached(he["backprop"], level).max() == 20
    told = deep_mlp.verdict(found)
    assert told.outcome == verdicts.REPRODUCED  # Of ten layers of Glorot weights.
    assert [part["part"] for part in told.parts] == ["Glorot-uniform weights, 10 layers: constant Oja"]
    assert any("without Oja stops at 7.5" in line and "fading Oja learns at 20 layers, the most tried" in line
               for line in told.evidence)  # fmt: skip
    assert told.gains["constant"].startswith("+0.8") and told.gains["rival"].startswith(
        "He's weights in place of the rule, gain +0.8"
    )
    text = deep_mlp.table(found)
    assert text.count("\n") == 1 + 2 * 3 * 3 and "| Glorot-uniform weights | 10 | constant Oja | 0.90" in text


def test_a_rule_that_learns_nowhere_stops_at_once():
    found = by_depth(lambda init, depth, rate, life: 0.9 if rate else 0.1)
    glorot = next(deep_mlp.by_depth(rows) for _, rows in deep_mlp.protocols(found))
    assert deep_mlp.depth_reached(glorot["backprop"], deep_mlp.threshold(found)).tolist() == [5] * 8
    told = deep_mlp.verdict(found)
    assert told.outcome == verdicts.REPRODUCED
    assert any("without Oja learns at none of these depths" in line for line in told.evidence)


def test_one_rule_alone_has_no_verdict():
    assert "| fading Oja | 0.9" in deep_mlp.table(by_depth(falls, rules=((1e-3, 500.0),)))
    assert deep_mlp.verdict(by_depth(falls, rules=((0.0, np.inf),))).outcome == verdicts.NOT_TESTED


CRITICAL = [
    {"init": "glorot_uniform", "depth": 10, "feedback": "backprop", "learning_rate": eta, "oja_rate": rate,
     "oja_half_life": life, "timing": timing, "examples_seen": seen, "score": score * seen / 400}
    for eta, worse, seen in ((eta, abs(eta - 2e-3) * 50, seen) for eta in (1e-3, 2e-3, 3e-3) for seen in (200, 400))
    for rate, life, timing, best in (
        (0.0, np.inf, "fading", 0.2), (1e-3, np.inf, "fading", 0.5), (1e-3, 100.0, "fading", 0.68),
        (1e-3, 500.0, "fading", 0.7), (1e-3, 500.0, "early", 0.69), (1e-3, 500.0, "late", 0.3), (1e-3, 500.0, "even", 0.4),
    )
    for score in [best - worse]
]  # fmt: skip


def test_a_critical_period():
    found = results(critical_period.QUESTION, CRITICAL)
    told = critical_period.verdict(found)
    assert told.outcome == verdicts.REPRODUCED
    assert "10 layers: 0.7" in told.evidence[0] and "late 0.30" in told.evidence[1]
    assert "best half-life 500 at 200 samples, 500 at 400 samples" in told.evidence[2]
    assert "| 10 layers | 500 | late | 0.30" in critical_period.table(found)


def controlled(**others):
    """Returns results of the controls in which Oja's rule has 0.8 and backprop 0.2."""
    places = {(15, 1.0, "backprop"): 0, (5, 0.3, "backprop"): 1}
    rows = [
        {"depth": depth, "init_gain": gain, "feedback": feedback, "init": "glorot_uniform", "learning_rate": eta,
         "strength": strength, "rival": rival, "score": scores[place] if eta == 1e-3 else 0.1}
        for (depth, gain, feedback), place in places.items()
        for rival, scores in ({"oja": (0.8, 0.8), "backprop": (0.2, 0.2)} | others).items()
        for eta, strength in itertools.product((1e-4, 1e-3, 1e-2), (0.3, 1.0))
    ]  # fmt: skip
    return results(controls.QUESTION, rows)


@pytest.mark.parametrize(
    ("others", "outcome"),
    [
        ({}, verdicts.REPRODUCED),
        ({"he_weights": (0.9, 0.9)}, verdicts.NOT_REPRODUCED),
        ({"he_weights": (0.9, 0.3)}, verdicts.MIXED),
        ({"sanger": (0.9, 0.9)}, verdicts.REPRODUCED),  # A variant of the rule does not count as a rival.
    ],
)
def test_a_rival_that_does_as_well_explains_the_effect_away(others, outcome):
    found = controlled(**others)
    told = controls.verdict(found)
    assert told.outcome == outcome
    assert all((f"{controls.RIVALS[name].label} (" in told.evidence[0]) for name in others)
    assert "η = 0.001, θ = 0.0003 |" in controls.table(found)  # Below the lowest rate there is only 0: no edge.
    at_the_edge = found.where(found.table["learning_rate"] < 1e-2)
    assert "(at the edge: η = 0.001)" in controls.table(at_the_edge)
    assert controls.verdict(at_the_edge).outcome == verdicts.UNDECIDED


def test_a_rival_without_a_parameter_is_at_an_edge_of_its_learning_rates_alone():
    """Its strength is a factor on the learning rate, and no parameter: the edge is the first or last of their products."""
    runs = list(itertools.product((1e-3, 3e-3, 1e-2), (0.3, 1.0, 3.0), ("backprop", "oja")))
    for best, edge in (((1e-2, 0.3), ""), ((3e-3, 3.0), ""), ((1e-2, 3.0), "η = 0.014"), ((1e-3, 0.3), "η = 0.00067")):
        rows = [
            {"depth": 15, "init": "glorot_uniform", "feedback": "backprop", "rival": rival, "learning_rate": eta,
             "strength": strength, "score": 0.5 + 0.3 * ((eta, strength) == best)}
            for eta, strength, rival in runs
        ]  # fmt: skip
        found = results(controls.QUESTION, rows)
        tuned = comparing.by_rival(found, controls.RIVALS)
        assert tuned["backprop"].edges == ([edge] if edge else []), best
        told = comparing.at(controls.RIVALS["backprop"], tuned["backprop"])
        assert told == f"η = {best[0] * best[1] ** (1 / 3):.2g}" + (f" (at the edge: {edge})" if edge else "")
        # The rule's strength is its rate, of which the highest one tried is an edge.
        assert ("strength 3" in tuned["oja"].edges) == (best[1] == 3)


@pytest.mark.parametrize(
    ("rival", "ends"),
    [("homeostasis", (3.0,)), ("clipping", (0.3,)), ("annealed", (0.3,)), ("normalized_weights", (0.3, 3.0))],
)
def test_a_strength_is_no_edge_where_beyond_it_there_is_only_no_method(rival, ends):
    """Below a rate and above a bound there is only learning without them; a norm has an edge on both sides."""
    for best in (0.3, 3.0):
        rows = [
            {"depth": 15, "init": "glorot_uniform", "feedback": "backprop", "rival": rival, "learning_rate": 1e-3,
             "strength": strength, "score": 0.5 + 0.3 * (strength == best)}
            for strength in (0.3, 1.0, 3.0)
        ]  # fmt: skip
        tuned = comparing.by_rival(results(controls.QUESTION, rows), controls.RIVALS)[rival]
        assert tuned.edges == ([f"strength {best:g}"] if best in ends else [])


def test_the_nearest_rival_is_one_that_is_not_beaten_by_enough():
    """A rival that is behind by 0.005 in every seed decides, not one that is behind by 0.1 less clearly."""
    found = controlled(close=(0.795, 0.3), noisy=(0.7, 0.3), far=(0.2, 0.2)).where(depth=15)
    table = found.table
    noise = np.where(table["rival"] == "noisy", 0.05 * (-1.0) ** table["seed"], 0.0)
    found = found.of(table.assign(test_accuracy=table["test_accuracy"] + noise))
    best = {rival: statistics.Tuned(part) for rival, part in found.by("rival")}
    rule, others = best.pop("oja"), {rival: best[rival] for rival in ("close", "noisy", "far")}
    assert statistics.gain(rule, others["noisy"]).p > statistics.gain(rule, others["close"]).p
    assert comparing.nearest(rule, others, 0.01) == "close"
    # If all are beaten by enough, the lower end of the gain decides, not the p-value.
    assert comparing.nearest(rule, others, 0.001) == "close"
    assert comparing.nearest(rule, {name: others[name] for name in ("far", "noisy")}, 0.001) == "noisy"


@pytest.mark.parametrize(
    ("question", "make"),
    [
        (deep_mlp, lambda: by_depth(falls)),
        (deep_mlp, lambda: by_depth(falls, etas=(1e-3,), rules=((0.0, np.inf),))),
        (critical_period, lambda: results(critical_period.QUESTION, CRITICAL)),
        (critical_period, lambda: results(critical_period.QUESTION, CRITICAL[:3])),
        (controls, lambda: controlled(sanger=(0.4, 0.5), he_weights=(0.9, 0.9))),
    ],
    ids=["depth", "backprop alone", "critical period", "no other timing", "controls"],
)
def test_figures_can_be_drawn(question, make, tmp_path):
    found = make()
    for name, draw in question.QUESTION.figures.items():
        path = tmp_path / f"{name}.png"
        figures.in_style(draw, found).savefig(path)
        assert path.stat().st_size > 5_000
