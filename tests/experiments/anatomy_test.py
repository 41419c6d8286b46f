"""The anatomy: a small study runs, and verdict and predictors on made-up tables are true."""

import functools

import numpy as np
import pandas as pd
import pytest

from experiments import anatomy
from experiments.common import figures, grid, verdicts
from experiments.common.results import DIVERGED, SEED, SEEN, Results
from experiments.tasks.comparing import DEEP, NETWORKS, POOR, RANDOM
from experiments.tasks.registry import ANATOMY
from tests.experiments.conducting import conduct, parse

pytestmark = pytest.mark.compiled_quickly

QUESTION = anatomy.QUESTION
ARMS = ("backprop", "oja", "rest", "along_weights", "homeostasis", "isometry")
# The accuracy of each arm in each network, as in the pilots.
TRUTH = {
    DEEP: (0.1, 0.55, 0.56, 0.1, 0.63, 0.3),
    POOR: (0.1, 0.5, 0.51, 0.1, 0.5, 0.3),
    RANDOM: (0.1, 0.54, 0.55, 0.1, 0.34, 0.3),
}


def middle_of(table):
    """Returns the middle learning rate of each run's network."""
    return np.where(table["depth"] == 15, 1e-3, 3e-3)


@functools.cache
def made_up():
    """Returns results: the middle of each grid is best, and only `explained_energy` has the ranks of the accuracy."""
    rng = np.random.default_rng(0)
    settings = parse(QUESTION, f"--rival={','.join(ARMS)}")
    runs = pd.concat([part.assign(**program) for program, part in grid.runs_of(QUESTION, settings)], ignore_index=True)
    network = zip(runs["depth"], runs["init_gain"], runs["feedback"], strict=True)
    score = np.array([TRUTH[where][ARMS.index(arm)] for where, arm in zip(network, runs["rival"], strict=True)])
    score -= 0.02 * ((runs["learning_rate"] != middle_of(runs)) | (runs["strength"] != 1)).to_numpy()
    score = score + 0.002 * rng.normal(size=len(runs))
    rows = [
        runs.assign(**{SEEN: seen, "test_accuracy": score, "train_accuracy": score, DIVERGED: False})
        for seen in (500, 3000)
    ]
    layers = [
        runs.assign(
            **{SEEN: seen, "layer": layer, "explained_energy": score, "activity_gain": 1 + score, "centred_gain": 1.0},
            **{name: rng.normal(size=len(runs)) for name in ("sample_correlation", "leading_share", "dead_units")},
            **{name: rng.normal(size=len(runs)) for name in ("effective_dimension", "effective_rank")},
            gradient_angle=np.where(runs["feedback"] == "random", 90 - score, 0.0),
            feedback_alignment=np.where(runs["feedback"] == "random", score, np.nan),
        )[runs["depth"] >= layer]
        for seen in (500, 3000)
        for layer in range(1, 16)
    ]
    results = pd.concat(rows, ignore_index=True).assign(examples_per_class=lambda table: table[SEEN] / 10)
    return Results(results, pd.concat(layers, ignore_index=True), QUESTION.schema)


def where(mask):
    """Returns the made-up results of the runs in `mask(table)`."""
    results, layers = made_up().table, made_up().layers.table
    return Results(results[mask(results)], layers[mask(layers)], QUESTION.schema)


def set_to(score, arms=ARMS, depth=None):
    """Returns the made-up results without measures, with some arms at a score, in networks of one depth or in all."""
    table = made_up().table.copy()
    chosen = table["rival"].isin(arms) & (True if depth is None else table["depth"] == depth)
    at = score - 0.02 * ((table["learning_rate"] != middle_of(table)) | (table["strength"] != 1))
    for column in ("test_accuracy", "train_accuracy"):
        table[column] = np.where(chosen, at + 0.001 * (table["seed"] % 2), table[column])
    return made_up().of(table)


def test_the_verdict_is_the_truth():
    told = anatomy.verdict(made_up())
    assert told.outcome == verdicts.REPRODUCED and len(told.parts) == 3 * 3 + 2
    assert told.gains[NETWORKS[DEEP]].startswith("gain homeostasis 0.6")
    assert not told.gains[NETWORKS[RANDOM]].startswith("the rest")  # A part of the rule does not count as a rival.


@pytest.mark.parametrize("network", NETWORKS)
def test_a_component_along_the_weights_that_rescues_refutes_it(network):
    told = anatomy.verdict(set_to(0.56, ["along_weights"], network[0]))
    failed = {part["part"] for part in told.parts if part["says"] != "holds"}
    assert told.outcome in (verdicts.PARTLY, verdicts.MIXED)
    assert any("as good as with the component along W" in name for name in failed)
    assert all(name.startswith(NETWORKS[network]) and "along W" in name for name in failed)


@pytest.mark.parametrize(("score", "says"), [(0.525, "below what matters"), (0.515, "holds"), (0.6, "reversed")])
def test_homeostasis_within_two_points_under_random_feedback_refutes_it(score, says):
    told = anatomy.verdict(set_to(score, ["homeostasis"], 10))
    (part,) = (part for part in told.parts if "over gain homeostasis" in part["part"])
    assert part["says"] == says and (told.outcome == verdicts.REPRODUCED) == (says == "holds")


def test_what_predicts_the_accuracy_is_found():
    found = anatomy.predictors(made_up())
    assert list(found) == list(NETWORKS)
    for network, of_measures in found.items():
        assert of_measures["explained_energy"][0].mean > 0.99 > abs(of_measures["leading_share"][0].mean)
        assert set(of_measures["explained_energy"][1]) == set(range(1, network[0]))  # Not the read-out.
        assert of_measures["activity_gain"][0].mean > 0.99  # The further from 1, the better, in these.
        assert "centred_gain" not in of_measures  # Where all are equal there is no rank.
        assert ("gradient_angle" in of_measures) == ("feedback_alignment" in of_measures) == (network == RANDOM)
    assert found[RANDOM]["gradient_angle"][0].mean < -0.99
    assert sum("correlates most with the final accuracy" in words for words in anatomy.verdict(made_up()).evidence) == 3


def test_its_tables_and_figures():
    table = anatomy.table(made_up())
    assert all(table.count(f"| {name} |") >= len(ARMS) for name in NETWORKS.values())
    assert "| explained energy | +" in table and "measure after 500 samples" in table
    assert "measure after" not in anatomy.table(made_up().of(made_up().table))
    for name, draw in (QUESTION.figures | QUESTION.measure_figures).items():
        figure = figures.in_style(draw, made_up())
        assert len(figure.axes) == len(NETWORKS) * (len(anatomy.BY_LAYER) if name == "by_layer" else 1), name
        assert all(axes.lines or axes.texts for axes in figure.axes)


def diverged():
    """Returns the made-up results of runs that all diverged at once."""
    results = set_to(0.1).table.assign(**{DIVERGED: True})
    measures = dict.fromkeys(anatomy.MEASURES, np.nan)
    return Results(results, made_up().layers.table.assign(**measures), QUESTION.schema)


@pytest.mark.parametrize(
    ("results", "networks"),
    [
        (lambda: where(lambda table: table["rival"] == "isometry"), 3),
        (lambda: where(lambda table: table["depth"] == 10), 1),
        (lambda: where(lambda table: table[SEED] == 16), 3),
        (lambda: where(lambda table: table[SEEN] == 3000), 3),
        (lambda: Results(set_to(0.1).table, made_up().measures, QUESTION.schema), 3),
        (diverged, 3),
    ],
    ids=["no arm that is shown", "one network", "one seed", "one evaluation", "nothing learned", "all diverged"],
)
def test_figures_and_words_of_odd_results(request, results, networks):
    results, name = results(), request.node.callspec.id
    told = anatomy.verdict(results)
    words = [*told.evidence, anatomy.table(results)]
    assert sum("the best first" in sentence for sentence in told.evidence) == networks
    assert not any("nan" in sentence for sentence in words)
    predicts = {"one network": 1, "one evaluation": 3}.get(name, 0)  # One seed has no interval, so that nothing is clear.
    assert sum("correlates most with" in sentence for sentence in told.evidence) == predicts
    assert (told.outcome == verdicts.REPRODUCED) == (name in ("one network", "one evaluation"))
    for draw in (QUESTION.figures | QUESTION.measure_figures).values():
        assert figures.in_style(draw, results).axes


def test_labels_fit_a_table():
    assert not any("|" in arm.label for arm in ANATOMY.values())


def test_every_arm_of_a_network_has_equally_many_settings():
    settings = parse(QUESTION, "--flagfile=experiments/flagfiles/anatomy.flags")
    runs = pd.concat([part.assign(**program) for program, part in grid.runs_of(QUESTION, settings)])
    assert set(runs[SEED]) == set(range(16, 24))
    counts = runs.groupby(["depth", "init_gain", "feedback", "rival"]).size()
    assert len(counts) == len(NETWORKS) * len(ANATOMY)
    for (depth, *_), count in counts.items():
        assert count == (15 if depth == 15 else 9) * 8


@pytest.mark.figures
def test_it_runs_and_measures_hidden_layers(tmp_path):
    flags = ("--depth=5", "--rival=shuffled_first", "--learning_rate=1e-2", "--strength=0.001,1")
    small = ("--num_train=60", "--evals=1,60", "--num_test=50", "--seeds=2")
    conduct(QUESTION, *flags, *small, f"--workdir={tmp_path}")
    results, measures = (pd.read_csv(tmp_path / f"{name}.csv") for name in ("results", "measures"))
    assert len(measures) == 5 * len(results) == 40 and set(anatomy.MEASURES) < set(measures)
    assert "principal_angle_mean" not in measures
    # The phase has changed the hidden layers before the first sample, more for larger strengths.
    norms = results[results[SEEN] == 1].pivot_table("weight_norm_2", "seed", "strength")
    assert (abs(norms[1] - norms[0.001]) > 0.05).all()
    assert (tmp_path / "figures" / "by_layer.png").exists() and not (
        tmp_path / "figures" / "measures_by_layer.png"
    ).exists()
