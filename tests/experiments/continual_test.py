"""The question of streams that change: a small study runs, and verdicts on made-up tables are true."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from experiments import continual
from experiments.common import grid, statistics, verdicts
from experiments.common.errors import UserError
from experiments.common.results import DIVERGED, SEED, SEEN, Results
from experiments.tasks import continual as task
from experiments.tasks.registry import CONTINUAL
from ojax import online
from ojax.online import samples
from tests.experiments.conducting import conduct, parse

pytestmark = pytest.mark.compiled_quickly

QUESTION = continual.QUESTION
TINY = (
    "--widths=8",
    "--num_train=120",
    "--period=30",
    "--num_test=50",
    "--seeds=2",
    "--strength=1",
    "--learning_rate=1e-2",
)


@pytest.mark.figures
def test_it_runs_and_measures_every_task(tmp_path):
    conduct(QUESTION, *TINY, "--change=pixels", "--rival=backprop,fading_again", f"--workdir={tmp_path}")
    found = pd.read_csv(tmp_path / "results.csv")
    assert found.groupby(["rival", "seed"])[SEEN].apply(list).tolist() == [[30, 60, 90, 120]] * 4
    assert found["train_accuracy"].between(0, 1).all() and found["dead_units"].between(0, 1).all()
    assert found["effective_rank"].between(1, 8).all()
    first = found[found[SEEN] == 30]
    np.testing.assert_array_equal(first["test_accuracy"], first["test_first_accuracy"])
    later = found[found[SEEN] == 120]
    assert (later["test_accuracy"] != later["test_first_accuracy"]).any()
    # Both methods have equal samples, and differ by the rule.
    losses = found.pivot_table("train_loss", ["seed", SEEN], "rival")
    assert (losses.max(axis=1) - losses.min(axis=1)).between(1e-7, 0.5).all()
    summary = (tmp_path / "summary.md").read_text()
    assert "Verdict: not tested" in summary and "| pixels permuted | Oja fading again, hidden layers |" in summary
    assert "never by" not in summary and (tmp_path / "figures" / "accuracy_by_task.png").exists()


@functools.cache
def parsed():
    settings = parse(QUESTION, *TINY, "--num_train=60")
    return settings, task.TASK.load(settings)


@pytest.mark.parametrize("rival", CONTINUAL)
def test_every_rival_has_a_learner_that_takes_a_step(rival):
    settings, data = parsed()
    static = {"depth": 2, "batch_size": 1, "rival": rival, "change": "labels", "activation": "softplus"}
    setting = {**settings, **static}
    learner, stream = task.TASK.learner(setting, data), task.shown(setting, data)
    hyper = {axis.name: np.float32(0 if axis.name == "init" else 1) for axis in settings.axes if axis.traced}
    sample, test = samples.shapes(online.Plan(1, (1,)), stream.train, stream.test)

    def step(key, sample):
        params, state = learner.init(key, hyper)
        opt_state = learner.optimizer(hyper).init(params)
        return online.step(learner, hyper, params, state, opt_state, sample), learner.evaluate(
            params, state, test_of(test), hyper
        )

    def test_of(shapes):
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    found, scores = jax.eval_shape(step, jax.random.key(0), sample)
    assert set(found.sums) == {"train_loss", "train_accuracy"} and "test_first_accuracy" in scores


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--num_train=100", "--period=30"), "no multiple of --period=30"),
        (("--num_train=60", "--period=30", "--epochs=2"), "A stream has no epochs"),
        (("--num_train=60", "--period=30", "--evals=3"), "leave it out; here there are 2"),
        (("--num_train=60", "--period=30", "--batch_size=4"), "leave --batch_size at 1"),
        (("--num_train=60", "--period=30", "--rival=oja"), "needs backprop"),
        (("--num_train=60", "--period=30", "--depth=1"), "--depth=1: upgd_features is about hidden units"),
    ],
)
def test_what_does_not_go_together_is_refused(flags, words):
    with pytest.raises(UserError, match=words):
        parse(QUESTION, *flags)


@pytest.mark.parametrize(
    ("name", "period", "num_train", "seeds", "rates", "strengths"),
    [
        ("upgd_mnist", 5000, 10**6, 20, (1e-2,), (0.3,)),
        ("upgd_emnist", 2500, 5 * 10**5, 8, (3e-3, 1e-2, 3e-2), (0.1, 0.3, 1.0)),
    ],
)
def test_the_set_up_of_upgd(name, period, num_train, seeds, rates, strengths):
    settings = parse(QUESTION, f"--flagfile=experiments/flagfiles/{name}.flags")
    assert (settings["num_train"], settings["period"], settings["evals"]) == (num_train, period, (200,))
    assert (settings["widths"], settings["activation"], settings["use_bias"]) == ((300, 150), ("relu",), True)
    assert (settings["seeds"], settings["learning_rate"], settings["strength"]) == (seeds, rates, strengths)


def made_up(effect, *, fades=0.0, tasks=8, seeds=8):
    """Returns results: the middle of each grid is best, and the rules are better by `effect` in the last half of the tasks.

    In the first quarter they are better by `fades`, which only affects the choice of settings.
    """
    rng = np.random.default_rng(0)
    settings = parse(QUESTION, "--change=pixels,gain", "--rival=backprop,oja,fading_oja,adam", f"--seeds={seeds}")
    runs = pd.concat([part.assign(**program) for program, part in grid.runs_of(QUESTION, settings)], ignore_index=True)
    rules = runs["rival"].isin(["oja", "fading_oja"])
    score = 0.6 + 0.02 * rng.normal(size=seeds)[runs[SEED]] + 0.002 * rng.normal(size=len(runs))
    score -= 0.1 * ((runs["learning_rate"] != 1e-2) | (runs["strength"] != 1))
    rows = []
    for number in range(1, tasks + 1):
        gain = rules * (effect if number > tasks // 2 else fades if number <= tasks // 4 else 0.0)
        more = {SEEN: 500 * number, "train_accuracy": score + gain, DIVERGED: False, "examples_per_class": 50.0 * number}
        rows.append(runs.assign(**more, dead_units=0.1, effective_rank=5.0, test_first_accuracy=0.3))
    return Results(pd.concat(rows, ignore_index=True), None, QUESTION.schema)


@pytest.mark.parametrize(
    ("effect", "outcome"),
    [(0.05, verdicts.REPRODUCED), (0.0, verdicts.NOT_REPRODUCED), (-0.05, verdicts.NOT_REPRODUCED)],
)
def test_the_verdict_is_on_the_last_half(effect, outcome):
    results = made_up(effect, fades=0.2)
    found = continual.verdict(results)
    assert found.outcome == outcome, found
    assert len(found.parts) == 4 and len(found.evidence) == 2
    for (name, best), word in itertools.product(continual.by_network(results), ("pixels", "gain")):
        if word in name:
            assert best["oja"].setting["learning_rate"] == 1e-2 and best["oja"].setting.tried == 9
            gain = statistics.gain(best["oja"], best["backprop"])
            assert gain.mean == pytest.approx(effect, abs=0.01)
            assert continual.change_of(best["oja"]).mean == pytest.approx(effect - 0.2, abs=0.01)
    table = continual.table(results)
    assert table.count("| pixels permuted |") == table.count("| input gain drifts |") == 4


def test_what_is_compared_elsewhere_is_there():
    settings = parse(QUESTION, "--flagfile=experiments/flagfiles/continual.flags")
    programs = pd.DataFrame([program for program, _ in grid.runs_of(QUESTION, settings)])
    found = programs.groupby("change")["rival"].apply(set).to_dict()
    assert found["pixels"] == set(CONTINUAL)
    assert found["labels"] == found["gain"] == found["classes"] == set(continual.ELSEWHERE)
    assert {"backprop", "oja", "fading_oja"} < set(continual.ELSEWHERE) and len(continual.ELSEWHERE) == 6


def test_a_value_that_was_given_and_has_no_run_is_refused():
    """A question keeps some combinations only; of its defaults it may leave out what does not fit the flags."""
    left_out = "--rival=l2,homeostasis: with the other flags this question has no such run"
    with pytest.raises(UserError, match=left_out):
        grid.runs_of(QUESTION, parse(QUESTION, "--change=labels", "--rival=backprop,l2,homeostasis"))
    assert len(grid.runs_of(QUESTION, parse(QUESTION, "--change=labels"))) == len(continual.ELSEWHERE)
