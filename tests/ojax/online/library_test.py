"""Features of `online` for library users: rules with a third factor or errors, seeds, scores, and weights."""

import gc
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ojax
from ojax import datasets, online, plasticity

pytestmark = pytest.mark.compiled_quickly

RNG = np.random.default_rng(0)
INPUTS, TARGETS = RNG.normal(size=(12, 6)).astype(np.float32), RNG.normal(size=(12, 3)).astype(np.float32)
DATA = datasets.Dataset(datasets.Examples(INPUTS, TARGETS), datasets.Examples(INPUTS[:5], TARGETS[:5]))
PLAN = online.Plan(12, (4, 12))


def learner_of(optimizer, *, errors=False, rewards=True):
    """Returns a learner of a linear layer, whose reward is the closeness of its output to the target."""

    def gradient(params, state, sample, hyper):
        x, target = sample
        y = x @ params["w"]
        activity = {"w": ojax.Activity(x, y, None, y - target) if errors else ojax.Activity(x, y)}
        reward = jnp.exp(-jnp.sum((y - target) ** 2))
        signals = {"signals": {"reward": reward}} if rewards else {}
        zeros = jax.tree.map(jnp.zeros_like, params)
        return online.Gradient(zeros, activity, state, {"reward": online.Sum(reward, jnp.float32(1))}, **signals)

    def init(key, hyper):
        return {"w": 0.3 * jax.random.normal(key, (6, 3))}, {}

    return online.Learner(init, gradient, optimizer, lambda params, state, test, hyper: {"norm": jnp.sum(params["w"] ** 2)})


def runs_by_numpy(change, hyper, seeds):
    """Returns the weights of each run, trained sequentially in double precision."""
    found = []
    for number, seed in enumerate(seeds):
        params, _ = online.initial_params(learner_of(None), {}, seed)
        w, state = np.asarray(params["w"], np.float64), np.zeros(3)
        for index in np.asarray(online.sample_order(PLAN, 12, jnp.uint32(seed)))[:, 0]:
            x, target = INPUTS[index].astype(np.float64), TARGETS[index].astype(np.float64)
            w, state = change(w, x, target, state, {name: values[number] for name, values in hyper.items()})
        found.append(w)
    return np.stack(found)


def by_reward(w, x, target, state, hyper):
    y = x @ w
    reward = np.exp(-np.sum((y - target) ** 2))
    oja = np.outer(x, y) - w @ np.outer(y, y)
    return w + hyper["rate"] * reward * np.outer(x, y) + hyper["oja_rate"] * oja, state


def by_error(w, x, target, state, hyper):
    """Returns a bounded error with its own momentum, one per output unit."""
    state = 0.5 * state + np.tanh(x @ w - target)
    return w - hyper["rate"] * np.outer(x, state), state


def test_a_rule_with_a_third_factor_runs_over_a_grid_with_seeds():
    def optimizer(hyper):
        return optax.chain(ojax.reward_hebb(hyper["rate"]), ojax.oja(hyper["oja_rate"], signals=["reward"]))

    hyper, seeds = online.grid({"rate": [0.05, 0.2], "oja_rate": 0.01}, seeds=2)
    training = online.train(learner_of(optimizer), hyper, seeds, DATA, PLAN)
    list(training)
    np.testing.assert_allclose(training.params["w"], runs_by_numpy(by_reward, hyper, seeds), atol=1e-5)


def test_a_rule_with_errors_and_a_state_runs_over_a_grid_with_seeds():
    def change(layer, state):
        state = 0.5 * state + jnp.mean(jnp.tanh(layer.post_error), axis=0)
        return -layer.pre.T @ jnp.broadcast_to(state, layer.post.shape) / len(layer.pre), state

    def optimizer(hyper):
        return plasticity.rule(change, hyper["rate"], init=lambda kernel: jnp.zeros(kernel.shape[1]))

    hyper, seeds = online.grid({"rate": [0.05, 0.2]}, seeds=[3, 1])
    training = online.train(learner_of(optimizer, errors=True, rewards=False), hyper, seeds, DATA, PLAN)
    list(training)
    np.testing.assert_allclose(training.params["w"], runs_by_numpy(by_error, hyper, seeds), atol=1e-5)
    with pytest.raises(ValueError, match=r"optimizer fails: change: activity\['w'\] has no post_error, which"):
        online.train(learner_of(optimizer, rewards=False), hyper, seeds, DATA, PLAN)
    with pytest.raises(ValueError, match="optimizer fails: change knows no keyword 'reward'"):
        online.train(learner_of(optimizer, errors=True), hyper, seeds, DATA, PLAN)


RATES = {"rate": [0.1, 0.1]}


def hebbian(hyper):
    return ojax.reward_hebb(hyper["rate"])


def test_seeds_are_a_number_or_several_and_a_scalar_is_one_value():
    assert online.grid({"a": [1.0, 2.0], "b": 3.0}, seeds=2) == online.grid({"a": [1.0, 2.0], "b": [3.0]}, range(2))
    learner = learner_of(hebbian)
    wanted = list(online.train(learner, {"rate": [0.1, 0.1]}, range(2), DATA, PLAN))
    for seeds in (2, np.int64(2)):
        for (_, one), (_, other) in zip(online.train(learner, RATES, seeds, DATA, PLAN), wanted, strict=True):
            np.testing.assert_array_equal(one["norm"], other["norm"])
    frame = online.data_frame(RATES, 2, online.train(learner, RATES, 2, DATA, PLAN))
    assert frame["seed"].tolist() == [0, 1] * 2 and frame["rate"].tolist() == [0.1] * 4
    for seeds in (0, True, 1.5, [True]):
        with pytest.raises(ValueError, match="seeds must be"):
            online.train(learner, RATES, seeds, DATA, PLAN)


def test_the_weights_of_a_training():
    training = online.train(learner_of(hebbian), {"rate": [0.1, 0.2]}, 2, DATA, PLAN, num_slots=5)
    next(training)
    with pytest.raises(ValueError, match="not at its end: take all evaluations"):
        _ = training.params
    ((_, scores),) = training
    assert training.params["w"].shape == (2, 6, 3) and training.state == {}
    np.testing.assert_allclose(jnp.sum(training.params["w"] ** 2, axis=(1, 2)), scores["norm"], rtol=1e-6)


def test_a_training_that_is_never_iterated_warns():
    training = online.train(learner_of(hebbian), {"rate": [0.1]}, 1, DATA, PLAN)
    with pytest.warns(RuntimeWarning, match="has trained nothing; it trains when iterated"):
        del training
        gc.collect()
    started = online.train(learner_of(hebbian), {"rate": [0.1]}, 1, DATA, PLAN)
    next(started)
    del started
    gc.collect()


def test_a_missing_key_is_hypers_only_if_it_is_one():
    def reads(what):
        learner = learner_of(hebbian)

        def gradient(params, state, sample, hyper):
            if what == "hyper":
                _ = hyper["reward_rate"]
            if what == "params":
                _ = params["v"]
            return learner.gradient(params, state, sample, hyper)

        return learner._replace(gradient=gradient)

    with pytest.raises(ValueError, match="gradient reads 'reward_rate', but hyper only has rate"):
        online.train(reads("hyper"), {"rate": [0.1]}, 1, DATA, PLAN)
    with pytest.raises(ValueError, match="gradient fails: KeyError 'v', which is no key of hyper"):
        online.train(reads("params"), {"rate": [0.1]}, 1, DATA, PLAN)


def r2(outputs, targets):
    return 1 - jnp.sum((outputs - targets) ** 2) / jnp.sum((targets - targets.mean(axis=0)) ** 2)


def test_scores_of_the_whole_test_set():
    learner = online.supervised(
        lambda rngs: ojax.MLP([6, 3], readout=ojax.modules.linear, rngs=rngs),
        lambda hyper: ojax.oja_sgd(hyper["rate"], 0.0),
        loss=lambda output, target: jnp.sum((output - target) ** 2),
        scores={"r2": r2, "by_output": lambda outputs, targets: jnp.mean(outputs, axis=0)},
    )
    training = online.train(learner, {"rate": [0.01] * 2}, 2, DATA, PLAN)
    *_, (_, scores) = training
    outputs = np.stack([INPUTS[:5] @ kernel for kernel in jax.tree.leaves(training.params)[0]])
    np.testing.assert_allclose(scores["test_r2"], [r2(output, TARGETS[:5]) for output in outputs], rtol=1e-4)
    np.testing.assert_allclose(scores["test_by_output"], outputs.mean(axis=1), rtol=1e-4)
    with pytest.raises(ValueError, match="need different names; 'loss' is there twice"):
        online.supervised(None, None, loss=r2, scores={"loss": r2})


def test_training_inside_of_a_mesh_is_the_same_training():
    learner = learner_of(hebbian)
    wanted = list(online.train(learner, RATES, 2, DATA, PLAN))
    for axis_type, hold in itertools.product(jax.sharding.AxisType, (True, False)):
        if axis_type is jax.sharding.AxisType.Manual:
            continue
        with jax.set_mesh(jax.make_mesh((1,), ("data",), axis_types=(axis_type,))):
            training = online.train(learner, RATES, 2, DATA, PLAN)
            found = list(training) if hold else [next(training)]
        found += list(training)  # Training continues outside of the context.
        for (_, one), (_, other) in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(one["norm"], other["norm"])


def test_windows_of_samples_inside_of_a_mesh():
    data = datasets.Dataset.from_arrays(INPUTS, np.arange(12) % 4, INPUTS, np.arange(12) % 4)
    learner = online.classifier(
        lambda rngs: ojax.MLP([6, 5, 4], rngs=rngs), lambda hyper: ojax.oja_sgd(hyper["rate"], 0.01)
    )
    assert online.fast_path(learner, ("rate",), data, PLAN).layer is not None
    wanted = list(online.train(learner, RATES, 2, data, PLAN))
    with jax.set_mesh(jax.make_mesh((1,), ("data",))):
        found = list(online.train(learner, RATES, 2, data, PLAN))
    for (_, one), (_, other) in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one["test_loss"], other["test_loss"])


def test_scores_of_a_column_of_outputs_and_a_row_of_targets_are_refused():
    """Their difference has shape (samples, samples); R² was -979."""

    def learner(**options):
        return online.supervised(
            lambda rngs: ojax.MLP([6, 4, 1], readout=ojax.modules.linear, rngs=rngs),
            lambda hyper: ojax.oja_sgd(hyper["learning_rate"], hyper["oja_rate"]),
            loss=lambda output, target: jnp.sum((output - target) ** 2),
            **options,
        )

    hyper = {"learning_rate": [1e-2], "oja_rate": [0.0]}
    score = {"r2": lambda y, t: jnp.mean(y - t)}
    flat, column = (
        DATA._replace(train=part(DATA.train), test=part(DATA.test))
        for part in (
            lambda examples: examples._replace(targets=examples.targets[:, 0]),
            lambda examples: examples._replace(targets=examples.targets[:, :1]),
        )
    )
    with pytest.raises(ValueError, match=r"give targets of shape \(samples, 1\), y\[:, None\]"):
        online.train(learner(scores=score), hyper, 1, flat, PLAN)
    for one, data in ((learner(), flat), (learner(scores=score), column)):
        assert len(list(online.train(one, hyper, 1, data, PLAN))) == 2
