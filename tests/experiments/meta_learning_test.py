"""A small study of meta-learning."""

import json

import numpy as np
import pandas as pd
import pytest

from experiments import meta_learning
from experiments.common import figures, grid
from experiments.common.errors import UserError
from tests.experiments import made_up
from tests.experiments.conducting import conduct, parse

pytestmark = pytest.mark.compiled_quickly

SMALL = (
    *("--side=7", "--widths=8", "--outputs=10", "--classes=3", "--images=4", "--queries=2", "--num_test=2"),
    *("--pool=alone,oja,all", "--l1=0,1", "--feedback=random", "--num_train=4", "--evals=2", "--seeds=2"),
)


@pytest.mark.figures
def test_it_runs_draws_its_figures_and_says_what_it_found(tmp_path):
    printed = conduct(meta_learning.QUESTION, *SMALL, f"--workdir={tmp_path}")
    results = pd.read_csv(tmp_path / "results.csv")
    assert len(results) == 2 * 2 * 4  # Alone, with Oja, and all with and without L1; two seeds, two evaluations.
    alone, final = results[results["pool"] == "alone"], results[results["examples_seen"] == 4]
    assert (alone["coefficient_oja"] == 0).all() and (alone["coefficient_pseudo_gradient"] != 1e-3).all()
    assert (final.loc[final["pool"] == "all", "coefficient_weight_decay"] != 0).all()
    # A seed has equal episodes and weights for all pools.
    first = results[(results["examples_seen"] == 2) & (results["l1"] == 0)].groupby("seed")["test_accuracy"]
    assert first.nunique().le(3).all() and results["test_accuracy"].between(0, 1).all()
    assert results["test_guess"].round(6).eq(0.333333).all()  # One of the three classes of an episode.
    for name in meta_learning.QUESTION.figures:
        assert (tmp_path / "figures" / f"{name}.png").stat().st_size > 5_000
    held = json.loads((tmp_path / "config.json").read_text())
    assert held["verdict"] == "not tested"
    assert "Random feedback: with Oja's rule over the pseudo-gradient alone: " in " ".join(held["evidence"])
    assert "all ten" in printed


@pytest.mark.figures
def test_figures_are_drawn_where_no_episode_has_a_finite_number():
    found = made_up.results("meta_learning", np.random.default_rng(0))
    columns = ("train_accuracy", "train_loss", "coefficient_oja", "test_error_angle_1")
    lost = found.of(found.table.assign(**dict.fromkeys(columns, np.nan)))
    for name in ("over_episodes", "coefficients", "alignment"):
        assert figures.in_style(meta_learning.QUESTION.figures[name], lost).axes


def test_its_flagfiles_parse():
    own = "--flagfile=experiments/flagfiles/meta_learning.flags"
    settings = parse(meta_learning.QUESTION, own)
    assert sum(len(runs) for _, runs in grid.runs_of(meta_learning.QUESTION, settings)) == 8 * 3 * (12 + 2 + 2 + 3)
    published = parse(meta_learning.QUESTION, own, "--flagfile=experiments/flagfiles/meta_learning_published.flags")
    assert (published["dataset"], published["num_train"], published["side"]) == ("embedded", 600, 28)
    l1 = parse(meta_learning.QUESTION, own, "--flagfile=experiments/flagfiles/meta_learning_l1.flags")
    assert sum(len(runs) for _, runs in grid.runs_of(meta_learning.QUESTION, l1)) == 8 * 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--side=9",), "--side=9: the images of embedded have 784 numbers"),
        (("--outputs=5",), "--outputs=5: embedded has 10 classes"),
        (("--queries=200",), "the test data have 10 classes of"),
        (
            ("--held_out=8", "--pool=alone", "--l1=0"),
            "--held_out=8 leaves 2 of 10 classes, too few for the 3 of an episode",
        ),
        (("--batch_size=2",), "leave --batch_size at 1"),
    ],
)
def test_wrong_arguments_are_refused_with_the_reason(flags, message, tmp_path):
    with pytest.raises(UserError, match=message):
        conduct(meta_learning.QUESTION, *SMALL, *flags, f"--workdir={tmp_path}")
