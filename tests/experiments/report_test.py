"""What the summary says of a table: each rule tuned or not, one rule alone, diverged runs, a best at the edge."""

import dataclasses
import itertools

import pandas as pd
import pytest

from experiments.common import figures, report
from experiments.common.config import Config
from experiments.common.study import Tables

CONFIG = Config(
    workdir="w", dataset="embedded", data_dir=None, depth=(5,), widths=None, learning_rate=(0.1, 0.2, 0.3),
    oja_rate=(0.0, 0.01), init=("glorot_uniform",), init_gain=(1.0,), feedback=("backprop",), normalization=("none",),
    optimizer=("sgd",), seeds=4, seed=0, num_train=20, num_test=0, epochs=1, batch_size=(1,), evals=(2,), measures=False,
)  # fmt: skip


def results(accuracy, etas=(0.1, 0.2, 0.3), thetas=(0.0, 0.01), diverged_eta=None, gains=(1.0,)):
    """A results table in which `accuracy(eta, theta, seed)` is both the running and the test accuracy."""
    rows = [
        (5, gain, eta, theta, seed, seen, accuracy(eta, theta, seed), accuracy(eta, theta, seed), eta == diverged_eta)
        for gain, eta, theta, seed, seen in itertools.product(gains, etas, thetas, range(4), (10, 20))
    ]
    names = "depth init_gain learning_rate oja_rate seed examples_seen train_accuracy test_accuracy diverged"
    same = {"init": "glorot_uniform", "feedback": "backprop", "normalization": "none", "optimizer": "sgd", "batch_size": 1}
    return pd.DataFrame(rows, columns=names.split()).assign(**same)


def peak(eta, theta, seed):
    """Backprop is best at 0.2, where the hybrid is worse; at 0.1 the hybrid is better."""
    by_rate = {0.1: (0.2, 0.6), 0.2: (0.8, 0.7), 0.3: (0.5, 0.5)}
    return by_rate[eta][theta > 0] + 0.01 * seed


def text(table, equal_rates=True):
    tables, verdict = Tables(table, None).with_rule(), report.Verdict(report.PARTLY, ["Because."])
    options = {"title": "Why?", "claim": "So.", "verdict": verdict, "command": "python -m x", "figures": ["figure"]}
    return report.summary(tables, CONFIG, equal_rates=equal_rates, **options)


def test_both_comparisons_stand_side_by_side():
    summary = text(results(peak))
    assert "with Oja better at 0.1, worse at 0.2 of 3" in summary
    assert "each at its own best**: with Oja worse, -0.100 [-0.100, -0.100], 0.715" in summary
    assert "| 5 layers | best: 0.2 and 0.2 |" in summary and "| 5 layers | 0.1 |" in summary
    assert "# Why?" in summary and "**Verdict: partly reproduced.** Because." in summary
    tuned_alone = text(results(peak), equal_rates=False)
    assert "| 5 layers | best: 0.2 and 0.2 |" in tuned_alone and "| 5 layers | 0.1 |" not in tuned_alone
    assert "edge" not in summary and "diverged" not in summary and "    python -m x" in summary


def test_a_best_at_the_edge_of_the_grid_is_said():
    assert "η = 0.2 without Oja" in text(results(peak, etas=(0.1, 0.2)))


def test_one_learning_rate_is_no_tuning():
    summary = text(results(peak, etas=(0.1,)))
    assert "neither rule is tuned" in summary and "own best" not in summary and "best:" not in summary


@pytest.mark.parametrize("theta", [0.0, 0.01])
def test_one_rule_alone(theta):
    summary = text(results(peak, thetas=(theta,)))
    assert "no second rule to compare with" in summary
    assert summary.count("| 5 layers |") == 3


def test_diverged_runs_are_counted():
    summary = text(results(peak, diverged_eta=0.3))
    assert "8 of 24 runs diverged" in summary and "(4 diverged)" in summary


@pytest.mark.parametrize(
    "table",
    [
        results(peak),
        results(peak, etas=(0.1,)),
        results(peak, thetas=(0.0,)),
        results(peak, thetas=(0.01,)),
        results(peak, diverged_eta=0.1, gains=(0.3, 1.0)),
        results(peak)[lambda rows: rows["seed"] == 0],
    ],
    ids=["both", "one rate", "backprop alone", "hybrid alone", "two gains, diverged", "one seed"],
)
def test_figures_of_any_grid_can_be_drawn(table, tmp_path):
    for draw in (figures.learning_curves, figures.accuracy_plane, figures.backprop_vs_hybrid):
        path = tmp_path / f"{draw.__name__}.png"
        draw(Tables(table, None).with_rule()).savefig(path)
        assert path.stat().st_size > 5_000


def test_the_command_repeats_the_configuration():
    flags = CONFIG.flags()
    assert "--learning_rate=0.1,0.2,0.3" in flags and "--depth=5" in flags
    assert not any(flag.startswith(("--workdir", "--data_dir", "--widths")) for flag in flags)
    by_widths = dataclasses.replace(CONFIG, widths=(20, 20))
    assert "--widths=20,20" in by_widths.flags() and by_widths.hidden_widths(3) == (20, 20)


@pytest.mark.parametrize(("depth", "widths"), [(1, ()), (2, (170,)), (3, (170, 70)), (5, (170, 130, 100, 70))])
def test_hidden_widths(depth, widths):
    assert CONFIG.hidden_widths(depth) == widths
