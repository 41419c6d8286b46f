"""Stresses of the classification task, each compared with its formula in NumPy or its statistics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest

import experiments
import ojax
from experiments.common import grid
from experiments.common.errors import UserError
from experiments.deep_mlp import QUESTION
from experiments.tasks import classification, noise, stresses
from ojax import online
from tests.experiments.conducting import parse

pytestmark = pytest.mark.compiled_quickly

ETA, THETA, STEPS = 0.1, 0.05, 4
CANONICAL = {**classification.NO_STRESS, "batch_size": 1}


@functools.cache
def params():
    one, other = jax.random.split(jax.random.key(0))
    return {"a": jax.random.normal(one, (40, 30)), "b": 3 * jax.random.normal(other, (30, 5)), "bias": jnp.ones(5)}


def steps_of(make, start=None, steps=STEPS, pre=1.0):
    """Returns (p, g, p after) for each step, as float64; gradients are random."""
    p = params() if start is None else start
    tx = make()
    state, update = tx.init(p), jax.jit(tx.update)
    for step in range(steps):
        grads = jax.tree.map(lambda leaf, step=step: jax.random.normal(jax.random.key(step), leaf.shape), p)
        activity = {
            name: ojax.Activity(pre * jnp.ones(leaf.shape[0]) * (step + 1), jnp.ones(leaf.shape[1]))
            for name, leaf in p.items()
            if leaf.ndim == 2
        }
        updates, state = update(grads, state, p, activity=activity)
        new = jax.tree.map(jnp.add, p, updates)
        yield tuple({name: np.asarray(leaf, np.float64) for name, leaf in tree.items()} for tree in (p, grads, new))
        p = new


def sgd():
    return optax.with_extra_args_support(optax.sgd(ETA))


def test_without_stress_the_learner_and_the_data_are_those_there_were():
    settings = parse(QUESTION, "--depth=2", "--num_test=50")
    data = classification.load(settings)
    made = grid.make(QUESTION, settings, data)
    (part,) = made.parts
    assert part.dataset is data
    assert stresses.under(CANONICAL, part.learner) is part.learner
    assert online.fast_path(part.learner, tuple(part.hyper), data, part.plan).layer is not None
    stressed = stresses.under({**CANONICAL, "error_delay": 1}, part.learner)  # The control: it uses no windows.
    assert online.fast_path(stressed, tuple(part.hyper), data, part.plan).layer is None


def test_a_study_of_stressed_networks_has_the_same_runs_without_stress():
    flags = {"widths": [8], "learning_rate": 1e-2, "oja_rate": [0, 1e-3], "seeds": 2, "num_train": 64, "evals": 1}
    flags |= {"num_test": 50}
    alone = experiments.study("deep_mlp", **flags).results.table
    values = {"update_noise": [0, 1.0], "input_scale": [1, 3.0]}
    question = QUESTION._replace(varies=None, keep=lambda run: run["update_noise"] == 0 or run["input_scale"] == 1)
    together = experiments.study(question, **flags, **values).results.table
    same = together[(together["update_noise"] == 0) & (together["input_scale"] == 1)].reset_index(drop=True)
    pd.testing.assert_frame_equal(same, alone, check_exact=True)
    assert together.groupby(["update_noise", "input_scale"])["test_loss"].mean().nunique() == 3


def test_noise_multiplies_every_update():
    factors = []
    for p, g, new in steps_of(lambda: stresses.noisy(sgd(), 0.3), steps=20):
        factors.append(np.concatenate([((new[name] - p[name]) / (-ETA * g[name])).ravel() for name in ("a", "b")]))
        assert np.abs(new["bias"] - p["bias"] + ETA * g["bias"]).max() > 1e-4
    together = np.concatenate(factors)
    assert np.median(together) == pytest.approx(1, abs=0.02)
    assert np.subtract(*np.percentile(together, [84.13, 15.87])) / 2 == pytest.approx(0.3, rel=0.03)
    assert np.abs(np.corrcoef(factors) - np.eye(20)).max() < 0.5  # Another one in every step ...
    other = jax.tree.map(lambda leaf: leaf + 1e-3, params())
    assert not np.array_equal(*(noise.normal(noise.key_of(p), p)["bias"] for p in (params(), other)))  # ... and run.


def test_updates_are_noisy_by_exactly_the_numbers_drawn():
    tx = stresses.noisy(sgd(), 2.0)
    state, updates = tx.init(params()), params()
    found, after = tx.update(updates, state, params())
    drawn = noise.normal(jax.random.split(state.key)[1], updates)
    for name, leaf in updates.items():
        want = -ETA * np.asarray(leaf, np.float64) * (1 + 2 * np.asarray(drawn[name], np.float64))
        np.testing.assert_allclose(found[name], want, rtol=1e-5, atol=1e-6)
    assert not np.array_equal(*(jax.random.key_data(each.key) for each in (state, after)))


@pytest.mark.parametrize("levels", [2, 16, 255])
def test_weights_have_levels(levels):
    start = {name: np.asarray(leaf, np.float64) for name, leaf in params().items()}
    for p, g, new in steps_of(lambda: stresses.rounded(sgd(), levels)):
        np.testing.assert_allclose(new["bias"], p["bias"] - ETA * g["bias"], rtol=1e-5)
        for name in ("a", "b"):
            deviation = np.sqrt(np.mean(start[name] ** 2))
            every = np.linspace(-3 * deviation, 3 * deviation, levels)
            place = np.abs(new[name][..., None] - every).argmin(axis=-1)
            np.testing.assert_allclose(new[name], every[place], atol=1e-5 * deviation)
            exact = np.clip(p[name] - ETA * g[name], every[0], every[-1])
            assert np.abs(new[name] - exact).max() < (1 + 1e-4) * (every[1] - every[0])
            spread = 3 * (every[1] - every[0]) / np.sqrt(exact.size)
            assert (new[name] - exact).mean() == pytest.approx(0, abs=spread)


def test_rounding_is_unbiased_for_each_weight():
    tx = stresses.rounded(sgd(), 4)
    still = jax.tree.map(jnp.zeros_like, params())

    @jax.jit
    def rounded(key):
        updates, _ = tx.update(still, tx.init(params())._replace(key=key), params())
        return params()["a"] + updates["a"]

    mean = np.mean([rounded(jax.random.key(seed)) for seed in range(400)], axis=0)
    deviation = np.sqrt(np.mean(np.asarray(params()["a"]) ** 2))
    error = (mean - np.clip(params()["a"], -3 * deviation, 3 * deviation)) / (2 * deviation)
    assert np.abs(error).max() < 4.5 * 0.5 / np.sqrt(400) and np.abs(error.mean()) < 0.005


def test_a_share_of_connections_is_there_for_good():
    kept = stresses.connected(jax.random.key(1), params(), 0.2)
    np.testing.assert_array_equal(kept["bias"], params()["bias"])
    there = {name: np.asarray(kept[name]) != 0 for name in ("a", "b")}
    assert there["a"].mean() == pytest.approx(0.2, abs=0.05)
    np.testing.assert_allclose(kept["a"][there["a"]], params()["a"][there["a"]] / np.sqrt(0.2), rtol=1e-6)
    assert np.mean(kept["a"] ** 2) == pytest.approx(float(jnp.mean(params()["a"] ** 2)), rel=0.3)
    other = stresses.connected(jax.random.key(2), params(), 0.2)
    assert not np.array_equal(there["a"], np.asarray(other["a"]) != 0)
    for p, g, new in steps_of(lambda: stresses.masked(ojax.oja_sgd(ETA, THETA)), start=kept):
        free = dict(g)
        for name in ("a", "b"):
            assert not new[name][~there[name]].any()
            assert np.abs(new[name] - p[name])[there[name]].min() > 0
        np.testing.assert_allclose(new["bias"], p["bias"] - ETA * free["bias"], rtol=1e-5)
    seen = []
    probe = optax.GradientTransformationExtraArgs(
        lambda _: (), lambda grads, state, params=None, **_: (seen.append(grads), (grads, state))[1]
    )
    tx = stresses.masked(probe)
    tx.update(params(), tx.init(kept), kept)  # A transformation that adapts to gradients sees none there.
    np.testing.assert_array_equal(np.asarray(seen[0]["a"]) != 0, there["a"])


@pytest.mark.parametrize("delay", [1, 2])
def test_the_error_comes_late_and_the_rule_is_on_time(delay):
    gradients = []
    for step, (p, g, new) in enumerate(steps_of(lambda: stresses.late(ojax.oja_sgd(ETA, THETA), delay))):
        gradients.append(g)
        old = gradients[step - delay] if step >= delay else None
        for name in ("a", "b"):
            x, y = np.full(p[name].shape[0], step + 1.0), np.ones(p[name].shape[1])
            want = p[name] + THETA * np.outer(x - p[name] @ y, y) - (0 if old is None else ETA * old[name])
            np.testing.assert_allclose(new[name], want, rtol=1e-4, atol=1e-4)


def test_stresses_go_together():
    def make():
        setting = {**CANONICAL, "update_noise": 0.3, "weight_levels": 16, "connectivity": 0.2, "error_delay": 1}
        learner = online.Learner(lambda key, hyper: (params(), {}), None, lambda hyper: ojax.oja_sgd(ETA, THETA), None)
        return stresses.under(setting, learner)

    start, _ = make().init(jax.random.key(0), {})
    (_, _, first), (_, _, second), *_ = steps_of(lambda: make().optimizer({}), start=start)
    for name in ("a", "b"):
        there = np.asarray(start[name]) != 0
        assert 0 < there.mean() < 0.5 and not first[name][~there].any() and not second[name][~there].any()
        assert 2 <= len(np.unique(np.round(second[name][there], 4))) <= 16


def test_inputs_are_scaled_and_labels_permuted_half_way():
    settings = parse(QUESTION, "--num_train=40", "--num_test=50", "--seeds=1")
    data = classification.load(settings)
    setting = {**CANONICAL, "num_train": 40, "epochs": 1, "batch_size": 1}
    scaled = classification.shown({**setting, "input_scale": 3.0}, data)
    np.testing.assert_array_equal(scaled.train.inputs, 3 * np.asarray(data.train.inputs))
    np.testing.assert_array_equal(scaled.test.inputs, 3 * np.asarray(data.test.inputs))
    assert scaled.test.targets is data.test.targets and np.asarray(scaled.train.inputs).dtype == np.float32

    stream = classification.shown({**setting, "label_changes": 1}, data)
    taken = ojax.streams.take(stream.train, stream.train.init(jax.random.key(0), data.train), 40)
    by_pixels = {image.tobytes(): label for image, label in zip(*map(np.asarray, data.train), strict=True)}
    true = [by_pixels[image.tobytes()] for image in np.asarray(taken.inputs)]
    maps = [dict(zip(true[half], np.asarray(taken.targets)[half], strict=True)) for half in (slice(20), slice(20, 40))]
    for half, labels in zip((slice(20), slice(20, 40)), maps, strict=True):
        assert [labels[label] for label in true[half]] == list(np.asarray(taken.targets)[half])
    assert any(maps[0][label] != maps[1][label] for label in maps[0].keys() & maps[1].keys())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--label_changes=2", "--num_train=40"], "whole number of batches"),
        (["--label_changes=1", "--num_train=40", "--epochs=2"], "larger --num_train"),
        (["--error_delay=1", "--num_train=40", "--batch_size=8"], "leave --batch_size at 1 with a delay"),
    ],
)
def test_stresses_that_cannot_be_are_refused(flags, words):
    settings = parse(QUESTION, *flags, "--num_test=50")
    with pytest.raises(UserError, match=words):
        grid.make(QUESTION, settings, classification.load(settings))
