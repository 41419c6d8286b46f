"""The summary of a table: rules tuned or not, a single rule, diverged runs, a best value at the edge."""

import itertools

import pandas as pd
import pytest

from experiments.common import figures, summary, verdicts
from experiments.common.flags import Settings
from experiments.common.results import Results
from experiments.common.tables import with_method
from experiments.deep_mlp import QUESTION
from experiments.tasks import classification
from tests.experiments.conducting import parse

FACTS = {"question": "Why?", "claim": "So.", "command": "python -m x", "epochs": 1, "dataset": {"name": "embedded"}}


def results(accuracy, etas=(0.1, 0.2, 0.3), thetas=(0.0, 0.01), diverged_eta=None, gains=(1.0,)):
    """Returns results in which `accuracy(eta, theta, seed)` is both the running and the test accuracy."""
    rows = [
        (5, gain, eta, theta, seed, seen, accuracy(eta, theta, seed), accuracy(eta, theta, seed), eta == diverged_eta)
        for gain, eta, theta, seed, seen in itertools.product(gains, etas, thetas, range(4), (10, 20))
    ]
    names = "depth init_gain learning_rate oja_rate seed examples_seen train_accuracy test_accuracy diverged"
    same = {"init": "glorot_uniform", "feedback": "backprop", "normalization": "none", "optimizer": "sgd", "batch_size": 1}
    return Results(with_method(pd.DataFrame(rows, columns=names.split()).assign(**same)), None, QUESTION.schema)


def peak(eta, theta, seed):
    """Backprop is best at 0.2, where the hybrid is worse; at 0.1 the hybrid is better."""
    by_rate = {0.1: (0.2, 0.6), 0.2: (0.8, 0.7), 0.3: (0.5, 0.5)}
    return by_rate[eta][theta > 0] + 0.01 * seed


def text(found, equal_rates=True):
    verdict = verdicts.Verdict(verdicts.PARTLY, ["Because."])
    return summary.summary(found, FACTS, verdict, ["figure"], equal_rates=equal_rates)


def test_both_comparisons_are_in_the_summary():
    told = text(results(peak))
    assert "with Oja better at 0.1, worse at 0.2 of 3" in told
    assert "each at its own best**: with Oja worse, -0.100 [-0.100, -0.100], 0.715" in told
    assert "| 5 layers | best: 0.2, and 0.2 with Oja |" in told and "| 5 layers | 0.1 |" in told
    assert "# Why?" in told and "**Verdict: partly reproduced.**\n\n- Because.\n" in told
    tuned_alone = text(results(peak), equal_rates=False)
    assert "| 5 layers | best: 0.2, and 0.2 with Oja |" in tuned_alone and "| 5 layers | 0.1 |" not in tuned_alone
    assert "edge" not in told and "diverged" not in told and "    python -m x" in told


def test_gains_at_equal_rates_are_at_equal_search():
    def accuracy(eta, theta, seed):
        return 0.5 + {0.0: 0.0, 0.01: 0.1, 0.02: 0.3}[theta] + 0.01 * seed

    told = text(results(accuracy, thetas=(0.0, 0.01, 0.02)))
    assert told.count("+0.200 [+0.200, +0.200]") >= 3  # The mean of both, not the better one's 0.3.
    assert told.count("+0.300 [") == 1  # In brackets, each at its own best.


def test_a_best_at_the_edge_of_the_grid_is_printed():
    assert "η = 0.2 without Oja" in text(results(peak, etas=(0.1, 0.2)))


def test_one_learning_rate_is_no_tuning():
    told = text(results(peak, etas=(0.1,)))
    assert "neither method is tuned" in told and "own best" not in told and "best:" not in told


@pytest.mark.parametrize("theta", [0.0, 0.01])
def test_one_rule_alone(theta):
    told = text(results(peak, thetas=(theta,)))
    assert "no second method to compare with" in told
    assert told.count("| 5 layers |") == 3
    without, with_oja = (3, "none") if theta == 0 else ("none", 3)
    assert f"Settings to choose from: {without} without Oja's rule, {with_oja} with it." in told


def test_diverged_runs_are_counted():
    told = text(results(peak, diverged_eta=0.3))
    assert "8 of 24 runs diverged" in told and "(4 diverged)" in told


@pytest.mark.parametrize(
    "found",
    [
        results(peak),
        results(peak, etas=(0.1,)),
        results(peak, thetas=(0.0,)),
        results(peak, thetas=(0.01,)),
        results(peak, diverged_eta=0.1, gains=(0.3, 1.0)),
        results(peak).where(seed=0),
    ],
    ids=["both", "one rate", "backprop alone", "hybrid alone", "two gains, diverged", "one seed"],
)
def test_figures_of_any_grid_can_be_drawn(found, tmp_path):
    for draw in (figures.learning_curves, figures.accuracy_plane):
        path = tmp_path / f"{draw.__name__}.png"
        draw(found).savefig(path)
        assert path.stat().st_size > 5_000


@pytest.mark.parametrize("columns", [None, 1, 4])
def test_a_legend_fits_a_narrow_figure(columns):
    def draw(labels):
        figure, panels = figures.make_panels(1, 1, width=3.0, height=2.0)
        for text in labels:
            panels[0][0].plot([0, 1], label=text)
        figures.legend(figure, panels[0][0], columns=columns)
        return figure

    names = ("nothing (backprop)", "fading Oja, hidden layers", "constant Oja, hidden layers")
    figure = figures.in_style(draw, names)
    figure.draw_without_rendering()
    (drawn,) = figure.legends
    box = drawn.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and [text.get_text() for text in drawn.get_texts()] == list(names)
    assert not figures.in_style(draw, ()).legends


def test_the_command_repeats_the_settings():
    settings = parse(QUESTION, "--learning_rate=0.1,0.2", "--depth=5", "--workdir=w", "--data_dir=d")
    flags = settings.flags()
    assert "--learning_rate=0.1,0.2" in flags and "--depth=5" in flags and "--seeds=8" in flags
    assert not any(flag.startswith(("--workdir", "--data_dir", "--widths")) for flag in flags)
    by_widths = parse(QUESTION, "--widths=20,20")
    assert {"--widths=20,20", "--depth=3"} <= set(by_widths.flags())
    assert parse(QUESTION, *by_widths.flags()).deciding() == by_widths.deciding()


@pytest.mark.parametrize(("depth", "widths"), [(1, ()), (2, (170,)), (3, (170, 70)), (5, (170, 130, 100, 70))])
def test_hidden_widths(depth, widths):
    assert classification.hidden_widths({"depth": depth, "widths": None}) == widths
    assert classification.hidden_widths({"depth": 3, "widths": (9, 8)}) == (9, 8)


def test_a_study_without_a_verdict():
    told = summary.summary(results(peak), FACTS | {"claim": ""}, None, [], equal_rates=False)
    assert "Verdict" not in told and "claim" not in told and "# Why?" in told


def test_settings_are_a_mapping():
    settings = Settings((), {"seeds": 3})
    assert dict(settings) == {"seeds": 3} and settings.changed(seeds=4)["seeds"] == 4 and len(settings) == 1
