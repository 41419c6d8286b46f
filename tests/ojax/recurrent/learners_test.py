"""The exact methods agree with backpropagation through time, and the local ones with float64 NumPy."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import ojax
from ojax import datasets, online, recurrent, streams
from ojax.online.weights import SavedWeights
from tests.ojax.online.networks import assert_same_scores
from tests.ojax.recurrent.cells_test import GRU

N_IN, N, N_OUT, STEPS = 2, 5, 3, 8
pytestmark = pytest.mark.compiled_quickly


def maker(make_cell, **options):
    """Makes a network whose read-out does not start at zero, so that errors reach the cell at once."""

    def make(rngs):
        network = recurrent.Network(make_cell(N_IN, N, **options, rngs=rngs), N_OUT, rngs=rngs)
        network.readout.kernel[...] = jax.random.normal(rngs.params(), (N, N_OUT))
        return network

    return make


def oja_sgd(hyper):
    return ojax.oja_sgd(hyper["learning_rate"], hyper["oja_rate"])


@functools.cache
def stream(steps=STEPS):
    keys = jax.random.split(jax.random.key(1))
    return datasets.Examples(jax.random.normal(keys[0], (steps, N_IN)), jax.random.normal(keys[1], (steps, N_OUT)))


def summed_gradient(learner, samples):
    """Returns the sum of the gradients of all steps, with fixed weights."""

    @jax.jit
    def total(key):
        params, state = learner.init(key, {})

        def body(carry, sample):
            state, total = carry
            found = learner.gradient(params, state, sample, {})
            return (found.state, jax.tree.map(jnp.add, total, found.grads)), None

        start = (state, jax.tree.map(jnp.zeros_like, params))
        return jax.lax.scan(body, start, samples)[0][1]

    return total(jax.random.key(3))


def gradient_through_time(make, samples):
    network = ojax.modules.as_functions(make)

    def loss(params, kept):
        def body(carry, sample):
            carry, output = network.merge(params, kept)(carry, sample.inputs)
            return carry, recurrent.squared_error(output, sample.targets)

        return jnp.sum(jax.lax.scan(body, network.merge(params, kept).initialize_carry(), samples)[1])

    return jax.jit(lambda key: jax.grad(loss)(*network.init(key)))(jax.random.key(3))


def assert_close(found, wanted, tolerance=3e-6):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * float(jnp.abs(other).max()))


CELLS = {
    "leaky": maker(recurrent.Cell, leaking_rate=0.3),
    "LSTM": maker(
        nnx.OptimizedLSTMCell
    ),  # Its carry is a pair; it records no activity, so only its gradient can be tested.
}


@pytest.mark.parametrize("name", CELLS)
def test_rtrl_and_an_untruncated_horizon_are_backpropagation_through_time(name):
    make, samples = CELLS[name], stream()
    exact = gradient_through_time(make, samples)
    for learner in (
        recurrent.rtrl(make, oja_sgd),
        recurrent.truncated_bptt(make, oja_sgd, horizon=STEPS),
    ):
        assert_close(summed_gradient(learner, samples), exact)


def test_a_short_horizon_leaves_the_rest_out():
    make, samples = CELLS["leaky"], stream()
    exact = gradient_through_time(make, samples)["cell"]["recurrent"]["kernel"]
    errors = []
    for horizon in (1, 4):
        found = summed_gradient(recurrent.truncated_bptt(make, oja_sgd, horizon=horizon), samples)
        errors.append(float(jnp.linalg.norm(found["cell"]["recurrent"]["kernel"] - exact) / jnp.linalg.norm(exact)))
    assert errors[0] > errors[1] > 1e-3
    alone = summed_gradient(recurrent.readout_alone(make, oja_sgd), samples)
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(alone["cell"]))
    assert_close(alone["readout"], gradient_through_time(make, samples)["readout"])


def test_without_a_leak_eprop_is_a_horizon_of_one_step():
    make, samples = maker(recurrent.Cell), stream()
    local = summed_gradient(recurrent.rflo(make, oja_sgd, feedback="transposed"), samples)
    assert_close(local, summed_gradient(recurrent.truncated_bptt(make, oja_sgd, horizon=1), samples))


@pytest.mark.parametrize(("leaking_rate", "feedback"), [(1.0, "random"), (0.3, "random"), (0.3, "transposed")])
def test_200_steps_of_ojas_rule_and_rflo_are_those_of_numpy(leaking_rate, feedback):
    learner = recurrent.rflo(maker(recurrent.Cell, leaking_rate=leaking_rate), oja_sgd, feedback=feedback)
    samples, eta, theta = stream(200), 0.02, 0.01
    hyper = {"learning_rate": jnp.float32(eta), "oja_rate": jnp.float32(theta)}

    @jax.jit
    def whole_run(key):
        params, state = learner.init(key, hyper)
        return params, state, online.learn(learner, hyper, params, state, samples)

    params, state, learned = whole_run(jax.random.key(3))

    def as64(array):
        return np.array(array, np.float64)

    U, W = (as64(params["cell"][name]["kernel"]) for name in ("input", "recurrent"))
    V, b = as64(params["readout"]["kernel"]), as64(params["readout"]["bias"])
    B = as64(state["memory"]["feedback"]) if feedback == "random" else None
    h, trace_U, trace_W, losses = np.zeros(N), np.zeros((N_IN, N)), np.zeros((N, N)), []
    for x, target in zip(as64(samples.inputs), as64(samples.targets), strict=True):
        z = x @ U + h @ W
        y = np.tanh(z)
        new_h = (1 - leaking_rate) * h + leaking_rate * y
        slope = leaking_rate * (1 - np.tanh(z) ** 2)
        for i, j in np.ndindex(N, N):
            trace_W[i, j] = (1 - leaking_rate) * trace_W[i, j] + h[i] * slope[j]
        for i, j in np.ndindex(N_IN, N):
            trace_U[i, j] = (1 - leaking_rate) * trace_U[i, j] + x[i] * slope[j]
        e = new_h @ V + b - target
        losses.append(e @ e / 2)
        sent = (V if B is None else B) @ e
        new_U = U - eta * trace_U * sent + theta * (np.outer(x, y) - U @ np.outer(y, y))
        new_W = W - eta * trace_W * sent + theta * (np.outer(h, y) - W @ np.outer(y, y))
        V, b = V - eta * np.outer(new_h, e), b - eta * e
        U, W, h = new_U, new_W, new_h

    np.testing.assert_allclose(learned.sums["train_loss"].total, losses, rtol=2e-4)
    wanted = {"cell": {"input": {"kernel": U}, "recurrent": {"kernel": W}}, "readout": {"bias": b, "kernel": V}}
    for one, other in zip(jax.tree.leaves(learned.params), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(learned.state["carry"], h, atol=2e-5)


@functools.cache
def recall_case():
    """Random feedback, a leak and thus eligibility traces, two Oja rates; targets are inputs of one to four steps ago."""

    def scores(outputs, targets):
        return ojax.measures.squared_correlation(outputs, targets)

    learner = recurrent.rflo(
        lambda rngs: recurrent.Network(recurrent.Cell(1, 20, leaking_rate=0.8, rngs=rngs), 4, rngs=rngs),
        oja_sgd,
        scores={"test_r2": scores},
    )
    stream = streams.evaluated_ahead(streams.recall(4), num_test=400)
    hyper, seeds = online.grid({"learning_rate": [0.03], "oja_rate": [0.0, 1e-2]}, seeds=range(2))
    return learner, hyper, seeds, stream, online.Plan(6000, (2000, 6000))


def test_a_stream_is_learned_and_resumed_in_the_middle_to_the_same_bits(tmp_path):
    learner, *arguments = recall_case()
    undisturbed = list(online.train(learner, *arguments))
    calls = itertools.count(1)
    stopping = online.Checkpoints(tmp_path, every_samples=1500, stop=lambda: next(calls) == 3)
    with stopping as kept, pytest.raises(online.Interrupted):
        list(online.train(learner, *arguments, checkpoints=kept))
    seen = []
    with online.Checkpoints(tmp_path) as kept:
        resumed = list(online.train(learner, *arguments, checkpoints=kept, on_progress=seen.append))
    assert 0 < seen[0] < 6000
    assert_same_scores(resumed, undisturbed)
    _, scores = undisturbed[-1]
    assert (scores["diverged_at"] == -1).all()
    assert (scores["test_r2"][:, 0] > 0.9).all()  # The input of one step ago.
    assert (np.diff(scores["test_r2"].mean(axis=0)) < 0).all()  # The longer ago, the less.
    assert len(np.unique(scores["train_loss"])) == 4
    assert (scores["test_loss"] < undisturbed[0][1]["test_loss"]).all()


@pytest.mark.parametrize("horizon", [1, 2])
def test_a_short_horizon_is_resumed_and_its_weights_are_saved(tmp_path, horizon):
    """With a horizon of 1 the memory is empty."""
    rng = np.random.default_rng(0)
    data = datasets.Dataset.from_arrays(*(rng.normal(size=(60, n)).astype(np.float32) for n in (N_IN, N_OUT) * 2))
    learner = recurrent.truncated_bptt(maker(recurrent.Cell), lambda hyper: optax.sgd(hyper["rate"]), horizon=horizon)
    arguments = learner, {"rate": [0.05]}, [0], data, online.Plan(60, (20, 60), shuffle=False)
    undisturbed = online.train(*arguments)
    scores, calls = list(undisturbed), itertools.count(1)
    stopping = online.Checkpoints(tmp_path, every_samples=10, stop=lambda: next(calls) == 3)
    with stopping as kept, pytest.raises(online.Interrupted):
        list(online.train(*arguments, checkpoints=kept))
    seen = []
    with online.Checkpoints(tmp_path) as kept:
        resumed = list(online.train(*arguments, checkpoints=kept, on_progress=seen.append))
    assert 0 < seen[0] < 60
    assert_same_scores(resumed, scores[-len(resumed) :])
    SavedWeights(tmp_path / "weights").save("b", None, data, [{"seed": 0}], undisturbed.params, undisturbed.state)
    found = ojax.load_weights(tmp_path)
    np.testing.assert_array_equal(found.params["readout/kernel"], undisturbed.params["readout"]["kernel"][0])


def test_a_run_that_diverges_leaves_the_others_alone():
    learner, hyper, seeds, data, plan = recall_case()
    undisturbed = list(online.train(learner, hyper, seeds, data, plan))
    hyper = {**hyper, "learning_rate": [0.03, 1e30, 0.03, 0.03]}
    for (_, one), (_, other) in zip(online.train(learner, hyper, seeds, data, plan), undisturbed, strict=True):
        assert one["diverged_at"][1] >= 0
        jax.tree.map(lambda left, right: np.testing.assert_array_equal(left[[0, 2, 3]], right[[0, 2, 3]]), one, other)


def test_a_custom_stream_is_read_in_its_order():
    """E.g. from a file; here the target is the input of one step ago, with a horizon of two steps."""
    u = np.random.default_rng(0).uniform(-0.5, 0.5, (3001, 1)).astype(np.float32)
    data = datasets.Dataset.from_arrays(u[1:2501], u[:2500], u[2501:], u[2500:-1])
    learner = recurrent.truncated_bptt(
        lambda rngs: recurrent.Network(recurrent.Cell(1, 8, rngs=rngs), 1, rngs=rngs),
        lambda hyper: optax.sgd(hyper["learning_rate"]),
        horizon=2,
    )
    plan = online.Plan(2500, (2500,), shuffle=False)
    ((_, scores),) = online.train(learner, {"learning_rate": [0.1]}, [0], data, plan)
    assert scores["test_loss"] < 0.1 * np.var(u) / 2


def test_what_makes_no_sense_is_refused():
    make = maker(recurrent.Cell)
    with pytest.raises(ValueError, match="horizon must be at least 1 step, got 0"):
        recurrent.truncated_bptt(make, oja_sgd, horizon=0)
    with pytest.raises(ValueError, match="'random' or 'transposed', got 'direct'"):
        recurrent.rflo(make, oja_sgd, feedback="direct")
    with pytest.raises(ValueError, match="got a GRU"):
        recurrent.rflo(maker(GRU), oja_sgd)
    with pytest.raises(ValueError, match="another name than 'test_loss'"):
        recurrent.readout_alone(make, oja_sgd, scores={"test_loss": recurrent.squared_error})
    with pytest.raises(ValueError, match="must return an ojax"):
        recurrent.rtrl(lambda rngs: nnx.RNN(recurrent.Cell(1, 2, rngs=rngs)), oja_sgd)
    learner, hyper, seeds, data, _ = recall_case()
    with pytest.raises(ValueError, match="one step at a time, with batch_size=1"):
        online.train(learner, hyper, seeds, data, online.Plan(100, (100,), batch_size=10, shuffle=False))
