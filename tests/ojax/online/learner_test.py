"""Learners of three kinds go through `train` without a line of their own there: a stream with a state, a regression, and a
meta-learner whose samples are episodes. All get several seeds, checkpoints and resume."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ojax
from ojax import datasets, online
from tests.ojax.online.networks import assert_same_scores

N = 12  # Units of the recurrent network.

# The delta rule alone teaches the read-out here. Oja's rule leaves it alone on purpose, and warns of it once.
pytestmark = [
    pytest.mark.compiled_quickly,
    pytest.mark.filterwarnings("ignore:ojax.oja leaves readout alone:UserWarning"),
]


def recall_learner():
    """Returns a recurrent learner that recalls the input of three steps ago by the delta rule, one step per sample.

    Oja's rule changes its recurrent and input weights. Its state is the hidden state, past inputs and a random key.
    """

    def init(key, hyper):
        keys = jax.random.split(key, 2)
        params = {
            "recurrent": 0.5 * jax.random.normal(keys[0], (N, N)) / jnp.sqrt(N),
            "input": 0.5 * jax.random.normal(keys[1], (1, N)),
            "readout": jnp.zeros((N, 1)),
        }
        return params, {"hidden": jnp.zeros(N), "past": jnp.zeros(3), "noise": jax.random.key(0)}

    def gradient(params, state, sample, hyper):
        u = sample["u"]
        noise, key = jax.random.split(state["noise"])
        before = state["hidden"] + 1e-3 * jax.random.normal(key, (N,))
        hidden = jnp.tanh(before @ params["recurrent"] + u[None] @ params["input"])
        output = hidden @ params["readout"]
        error = output - state["past"][-1]
        grads = jax.tree.map(jnp.zeros_like, params) | {"readout": jnp.outer(hidden, error)}
        activity = {"recurrent": ojax.Activity(before, hidden), "input": ojax.Activity(u[None], hidden)}
        past = jnp.roll(state["past"], 1).at[0].set(u)
        sums = {"squared_error": online.Sum(jnp.sum(error**2), jnp.float32(1))}
        return online.Gradient(grads, activity, {"hidden": hidden, "past": past, "noise": noise}, sums)

    def evaluate(params, state, test, hyper):
        return {"spectrum": jnp.linalg.svd(params["recurrent"], compute_uv=False), "hidden": state["hidden"]}

    return online.Learner(init, gradient, lambda hyper: ojax.oja_sgd(hyper["learning_rate"], hyper["oja_rate"]), evaluate)


@functools.cache  # One learner, so that its programs are compiled once.
def recall_case():
    stream = np.random.default_rng(0).uniform(-0.5, 0.5, 5000).astype(np.float32)
    hyper, seeds = online.grid({"learning_rate": [0.1], "oja_rate": [0.0, 1e-2]}, seeds=range(2))
    plan = online.Plan(3000, (1000, 2000, 3000), shuffle=False)
    return recall_learner(), hyper, seeds, datasets.Dataset({"u": stream}, {}), plan


def regression_case():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 8))
    y = np.stack([x[:, 0] * x[:, 1], np.sin(x[:, 2])], axis=1)
    learner = online.supervised(
        lambda rngs: ojax.MLP([8, 30, 2], readout=ojax.modules.linear, rngs=rngs),
        lambda hyper: optax.chain(optax.sgd(hyper["learning_rate"], momentum=0.5), ojax.oja(1e-4)),
        loss=lambda output, target: jnp.sum((output - target) ** 2),
        metrics={"largest": lambda output, target: jnp.max(jnp.abs(output - target))},
    )
    dataset = datasets.Dataset.from_arrays(x[:500], y[:500], x[500:], y[500:])
    hyper, seeds = online.grid({"learning_rate": [3e-3, 1e-2]}, seeds=range(2))
    return learner, hyper, seeds, dataset, online.Plan(500, (500, 2000), epochs=4)


def meta_case():
    """Learns the two rates of a small classifier: a sample is an episode, with a gradient through the whole training."""
    inner = online.classifier(
        lambda rngs: ojax.MLP([5, 8, 3], rngs=rngs), lambda hyper: ojax.oja_sgd(hyper["eta"], hyper["theta"])
    )

    def gradient(params, state, episode, hyper):
        def query_loss(coefficients):
            weights, inner_state = inner.init(jax.random.key(episode["seed"]), {})
            learned = online.learn(inner, coefficients, weights, inner_state, episode["train"])
            scores = inner.evaluate(learned.params, learned.state, episode["query"], {})
            return scores["test_loss"], scores["test_accuracy"]

        (loss, accuracy), grads = jax.value_and_grad(query_loss, has_aux=True)(params)
        one = jnp.float32(1)
        return online.Gradient(grads, {}, state, {"loss": online.Sum(loss, one), "accuracy": online.Sum(accuracy, one)})

    learner = online.Learner(
        init=lambda key, hyper: ({"eta": jnp.float32(1e-2), "theta": jnp.float32(0)}, {}),
        gradient=gradient,
        optimizer=lambda hyper: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(hyper["learning_rate"])),
        evaluate=lambda params, state, test, hyper: dict(params),
    )
    rng = np.random.default_rng(0)
    episodes, steps = 40, 30
    centres = rng.normal(size=(episodes, 3, 5))
    labels = rng.integers(0, 3, (episodes, steps + 10)).astype(np.int32)
    inputs = (centres[np.arange(episodes)[:, None], labels] + 0.3 * rng.normal(size=(*labels.shape, 5))).astype(np.float32)
    samples = {
        "seed": np.arange(episodes, dtype=np.uint32),
        "train": datasets.Examples(inputs[:, :steps], labels[:, :steps]),
        "query": datasets.Examples(inputs[:, steps:], labels[:, steps:]),
    }
    hyper, seeds = online.grid({"learning_rate": [1e-3, 2e-3]}, seeds=range(2))
    return learner, hyper, seeds, datasets.Dataset(samples, {}), online.Plan(40, (20, 40, 120), epochs=3)


CASES = {"a stream": recall_case, "a regression": regression_case, "episodes": meta_case}


@pytest.mark.parametrize("name", CASES)
def test_it_learns_and_is_stopped_and_resumed_to_the_same_bits(name, tmp_path):
    learner, *arguments = CASES[name]()
    undisturbed = list(online.train(learner, *arguments))
    calls = itertools.count(1)
    stopping = online.Checkpoints(tmp_path, every_samples=64, stop=lambda: next(calls) == 3)
    with stopping as kept, pytest.raises(online.Interrupted):
        list(online.train(learner, *arguments, checkpoints=kept))
    assert any(tmp_path.iterdir())
    seen = []
    with online.Checkpoints(tmp_path) as kept:
        resumed = list(online.train(learner, *arguments, checkpoints=kept, on_progress=seen.append))
    assert seen[0] > 0
    assert_same_scores(resumed, undisturbed)

    _, last = undisturbed[-1]
    assert (last["diverged_at"] == -1).all()
    if name == "a stream":
        assert last["squared_error"].mean() < 0.06 < undisturbed[0][1]["squared_error"].mean()  # Their variance is 1/12.
        assert last["spectrum"][2:, 0].mean() != pytest.approx(last["spectrum"][:2, 0].mean(), rel=0.05)
        assert len(np.unique(last["hidden"], axis=0)) == 4
    elif name == "a regression":
        assert last["test_loss"].mean() < 0.8 * undisturbed[0][1]["test_loss"].mean()
        assert (last["test_largest"] > 0).all() and last["weight_norm"].shape == (4, 2)
    else:
        assert last["accuracy"].mean() > undisturbed[0][1]["accuracy"].mean() + 0.1
        assert (last["eta"] > 3e-2).all() and (last["theta"] != 0).all()


def test_an_episode_learns_as_learn_does():
    """The meta-learner's sum equals the inner run's."""
    learner, _, _, dataset, _ = meta_case()
    inner = online.classifier(
        lambda rngs: ojax.MLP([5, 8, 3], rngs=rngs), lambda hyper: ojax.oja_sgd(hyper["eta"], hyper["theta"])
    )
    coefficients = {"eta": jnp.float32(3e-2), "theta": jnp.float32(1e-3)}
    episode = jax.tree.map(lambda leaf: jnp.asarray(leaf[7]), dataset.train)

    @jax.jit
    def loss_after():
        learned = online.learn(inner, coefficients, *inner.init(jax.random.key(episode["seed"]), {}), episode["train"])
        return inner.evaluate(learned.params, learned.state, episode["query"], {})["test_loss"]

    loss = jax.jit(learner.gradient)(coefficients, {}, episode, {}).sums["loss"].total
    np.testing.assert_allclose(loss, loss_after(), rtol=1e-6)


def test_a_learner_that_diverges_is_frozen_whatever_it_is():
    learner, _, seeds, dataset, plan = recall_case()
    hyper = {"learning_rate": [0.1, 1e30], "oja_rate": [0.0, 0.0]}
    train = functools.partial(online.train, dataset=dataset, plan=plan, num_slots=len(seeds))
    scores = list(train(learner, hyper, [0, 0]))
    alone = list(train(learner, {name: values[:1] for name, values in hyper.items()}, [0]))
    for (_, both), (_, one) in zip(scores, alone, strict=True):
        assert both["diverged_at"][0] == -1 < both["diverged_at"][1]
        for name, column in one.items():
            np.testing.assert_array_equal(both[name][:1], column)
