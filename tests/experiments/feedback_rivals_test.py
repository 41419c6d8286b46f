"""The rivals under random feedback, each compared with its formula in float64 NumPy."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import ojax
from experiments import feedback_rivals as study
from experiments.common import figures, verdicts
from experiments.tasks import classification, rivals
from experiments.tasks import feedback_rivals as made
from experiments.tasks.registry import CEILING, FEEDBACK
from ojax import online
from ojax.datasets import Examples
from tests.experiments import made_up
from tests.experiments.conducting import conduct, parse

pytestmark = pytest.mark.compiled_quickly

WIDTHS, ETA, STEPS = (9, 8, 7, 4), 0.1, 4
LAYERS = range(len(WIDTHS) - 1)


def data():
    rng = np.random.default_rng(0)
    examples = Examples(rng.normal(size=(20, WIDTHS[0])).astype(np.float32), rng.integers(0, 4, 20).astype(np.int32))
    return ojax.datasets.Dataset(examples, examples, class_names=("a", "b", "c", "d"), name="normal")


@functools.cache
def setting():
    settings = parse(study.QUESTION, "--widths=8,7")
    names = {axis.name: settings[axis.name][0] for axis in settings.axes if not axis.traced}
    return {**settings.fixed(), **names, "widths": (8, 7), "init": ("glorot_uniform",), "measures": False}


@functools.cache
def learner(name):
    return rivals.learner({**setting(), "rival": name}, data(), FEEDBACK)


def hyper(strength=1.0):
    numbers = {"learning_rate": ETA, "strength": strength, "init": 0, "init_gain": 1}
    return {name: jnp.float32(number) for name, number in numbers.items()}


def layers_of(tree, name):
    """Returns arrays of a name by layer, in float64; None if a layer lacks it."""
    return [
        np.asarray(tree["layers"][layer][name], np.float64) if name in tree.get("layers", {}).get(layer, {}) else None
        for layer in LAYERS
    ]


def steps_of(name, strength=1.0):
    """Returns for each step the kernels, the state before, the gradient, and the next kernels."""
    mine, numbers = learner(name), hyper(strength)
    params, state = jax.jit(mine.init)(jax.random.key(0), numbers)
    opt_state = mine.optimizer(numbers).init(params)

    @jax.jit
    def step(params, state, opt_state, sample):
        found = mine.gradient(params, state, sample, numbers)
        made = online.learner.Gradient(found.grads, found.activity, found.state, found.sums, found.signals)
        updates, after = mine.optimizer(numbers).update(made.grads, opt_state, params, activity=made.activity)
        return jax.tree.map(jnp.add, params, updates), found, after

    for number in range(STEPS):
        sample = Examples(jnp.asarray(data().train.inputs[number]), jnp.asarray(data().train.targets[number]))
        new, found, after = step(params, state, opt_state, sample)
        yield params, state, found, new, sample
        params, state, opt_state = new, found.state, after


def softplus(z):
    return np.logaddexp(0, 10 * z) / 10


def by_feedback(kernels, feedback, sample, decorrelations=None):
    """Returns gradients of the cross-entropy by the chain rule, with the error through the feedback weights."""
    x, inputs, pre, derivatives = np.asarray(sample.inputs, np.float64), [], [], []
    for layer, kernel in enumerate(kernels):
        seen = x if decorrelations is None else x @ decorrelations[layer]
        z = seen @ kernel
        inputs.append(seen)
        pre.append(z)
        derivatives.append(1 / (1 + np.exp(-10 * z)))
        x = softplus(z)
    error = np.exp(pre[-1] - pre[-1].max())
    error = error / error.sum() - np.eye(WIDTHS[-1])[int(sample.targets)]
    grads = []
    for layer in reversed(LAYERS):
        grads.insert(0, np.outer(inputs[layer], error))
        if layer:
            error = feedback[layer] @ error * derivatives[layer - 1]
    return grads, inputs


def assert_close(found, wanted, **tolerance):
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, **{"rtol": 2e-4, "atol": 2e-6} | tolerance)


def test_every_rival_learns_and_is_another(monkeypatch):
    monkeypatch.setattr(made, "NUM_NOISE", 3)
    found = {}
    for name, rival in FEEDBACK.items():
        (_, before, *_), *_, (_, _, last, new, _) = steps_of(name)
        kernels = layers_of(new, "kernel")
        assert all(np.isfinite(leaf).all() for leaf in kernels), name
        found[name] = np.concatenate([leaf.ravel() for leaf in kernels])
        weights = [layers_of(state, "feedback")[1:] for state in (before, last.state)]
        is_fixed = all(np.array_equal(*pair) for pair in zip(*weights, strict=True))
        assert is_fixed == (rival.kind != CEILING), name  # All but the ceiling leave the feedback weights alone.
    for name, other in [(one, other) for one in found for other in found if one < other]:
        assert np.abs(found[name] - found[other]).max() > 1e-7, (name, other)


@pytest.mark.parametrize(("name", "hidden_alone"), [("normalized_weights", True), ("normalized_everywhere", False)])
def test_each_neuron_has_the_norm_after_every_step(name, hidden_alone):
    norm = FEEDBACK[name].parameter(1.0)
    for params, state, _, new, sample in steps_of(name):
        kernels = layers_of(params, "kernel")
        grads, _ = by_feedback(kernels, layers_of(state, "feedback"), sample)
        want = [kernel - ETA * grad for kernel, grad in zip(kernels, grads, strict=True)]
        scaled = [kernel * norm / np.linalg.norm(kernel, axis=0) for kernel in want]
        assert_close(layers_of(new, "kernel"), [*scaled[:-1], want[-1] if hidden_alone else scaled[-1]])


def test_pretraining_on_noise_is_gradient_descent_by_feedback(monkeypatch):
    monkeypatch.setattr(made, "NUM_NOISE", 3)
    rate, key = FEEDBACK["noise_first"].parameter(1.0), jax.random.key(0)
    params, state = learner("backprop").init(key, hyper())
    kernels, feedback = layers_of(params, "kernel"), layers_of(state, "feedback")
    for drawn in jax.random.split(jax.random.fold_in(key, 3), 3):
        of_image, of_label = jax.random.split(drawn)
        sample = Examples(jax.random.normal(of_image, (9,)), jax.random.randint(of_label, (), 0, 4))
        grads, _ = by_feedback(kernels, feedback, sample)
        kernels = [kernel - rate * grad for kernel, grad in zip(kernels, grads, strict=True)]
    found, _ = rivals.learner({**setting(), "rival": "noise_first"}, data(), FEEDBACK).init(key, hyper())
    assert_close(layers_of(found, "kernel"), kernels)


def test_inputs_are_decorrelated():
    rate = FEEDBACK["decorrelated"].parameter(30.0)
    for params, state, found, new, sample in steps_of("decorrelated", strength=30.0):
        kernels, matrices = layers_of(params, "kernel"), layers_of(state, "decorrelation")
        grads, inputs = by_feedback(kernels, layers_of(state, "feedback"), sample, matrices)
        assert_close(layers_of(new, "kernel"), [w - ETA * g for w, g in zip(kernels, grads, strict=True)])
        for z, R, after in zip(inputs, matrices, layers_of(found.state, "decorrelation"), strict=True):
            C = np.outer(z, z) - np.diag(z**2)
            V = np.diag(z**2 - 1)
            np.testing.assert_allclose(after, R - rate * R @ (0.5 * C + 0.5 * V), rtol=1e-4, atol=1e-5)


def test_decorrelation_ends_at_uncorrelated_inputs_of_unit_variance():
    mixed = np.random.default_rng(0).normal(size=(4000, 3)) @ [[1.0, 0.8, 0.0], [0.0, 1.0, 0.5], [0.0, 0.0, 2.0]]

    def gradient(params, state, sample, hyper):
        pre = sample @ state["layers"][0]["decorrelation"]
        return online.learner.Gradient({}, {"layers": {0: {"kernel": (ojax.Activity(pre, pre),)}}}, state, {})

    params = {"layers": {0: {"kernel": jnp.eye(3)}}}
    mine = made.decorrelating(online.Learner(None, gradient, None, None), lambda hyper: 0.01)

    @jax.jit
    def learned(samples):
        def step(state, sample):
            return mine.gradient(params, state, sample, {}).state, None

        return jax.lax.scan(step, {"layers": {0: {"decorrelation": jnp.eye(3)}}}, samples)[0]

    z = mixed @ layers_of(learned(jnp.asarray(mixed, jnp.float32)), "decorrelation")[0]
    np.testing.assert_allclose(z.T @ z / len(z), np.eye(3), atol=0.2)
    assert np.abs(mixed.T @ mixed / len(z) - np.eye(3)).max() > 0.8


def test_under_true_errors_a_decorrelated_network_learns_by_backprop():
    """Without feedback weights the error goes back through `R W`; with direct feedback it reaches no layer below."""
    x = jnp.asarray(data().train.inputs[0])
    for feedback in ("backprop", "direct"):
        model = made.decorrelated(WIDTHS, feedback=feedback, rngs=ojax.modules.nnx.Rngs(0))
        plain = ojax.MLP(WIDTHS, feedback=feedback, rngs=ojax.modules.nnx.Rngs(0))
        for network in (model, plain):
            assert network(x).shape == (4,)
        np.testing.assert_allclose(model(x), plain(x), rtol=1e-5)  # The matrices begin as identities.


def test_kolen_pollack_feedback_changes_as_the_kernels_do():
    decay, gaps = FEEDBACK["kolen_pollack"].parameter(10.0), []
    for params, state, found, new, sample in steps_of("kolen_pollack", strength=10.0):
        kernels, feedback = layers_of(params, "kernel"), layers_of(state, "feedback")
        grads, _ = by_feedback(kernels, feedback, sample)
        assert_close(layers_of(new, "kernel"), [w - ETA * g - decay * w for w, g in zip(kernels, grads, strict=True)])
        wanted = [b - ETA * g - decay * b for b, g in zip(feedback[1:], grads[1:], strict=True)]
        assert_close(layers_of(found.state, "feedback")[1:], wanted)
        gaps.append(np.linalg.norm(kernels[1] - feedback[1]))
    np.testing.assert_allclose(np.divide(gaps[1:], gaps[:-1]), 1 - decay, rtol=1e-4)  # So they converge to each other.


def test_sign_symmetric_feedback_has_the_signs_of_the_kernels():
    sizes = None
    for params, state, found, new, sample in steps_of("sign_symmetric"):
        kernels, before = layers_of(params, "kernel"), layers_of(state, "feedback")
        sizes = sizes or [None, *map(np.abs, before[1:])]
        feedback = [None, *(np.sign(w) * b for w, b in zip(kernels[1:], sizes[1:], strict=True))]
        grads, _ = by_feedback(kernels, feedback, sample)
        assert_close(layers_of(new, "kernel"), [w - ETA * g for w, g in zip(kernels, grads, strict=True)])
        assert_close(layers_of(found.state, "feedback")[1:], feedback[1:])


def test_only_what_leaves_a_first_layer_alone_is_carried_over_windows():
    plan = online.Plan(num_train=20, evaluate_at=(20,))
    fast = {name for name in FEEDBACK if online.fast_path(learner(name), tuple(hyper()), data(), plan).layer is not None}
    assert fast >= {"backprop", "oja", "fading_oja", "he_weights", "noise_first", "sign_symmetric"}
    assert not fast & {"decorrelated", "normalized_weights", "adam", "kolen_pollack"}


RUN = {**study.HOME, **classification.NO_STRESS, "learning_rate": 1e-3}


@pytest.mark.parametrize(
    ("changed", "rivals_kept"),
    [
        ({}, set(FEEDBACK)),
        ({"depth": 5}, set(study.FEW)),
        ({"depth": 5, "learning_rate": 1e-5}, set()),
        ({"update_noise": 1.0}, set(study.STRESSED)),
        ({"update_noise": 1.0, "weight_levels": 16}, set()),
        ({"depth": 5, "update_noise": 1.0}, set()),
    ],
)
def test_all_rivals_learn_at_home_and_a_few_elsewhere(changed, rivals_kept):
    assert {rival for rival in FEEDBACK if study.keep({**RUN, **changed, "rival": rival})} == rivals_kept


def with_scores(gains):
    """Returns made-up results in which some rivals are better by a gain, everywhere or in one condition."""
    found = made_up.results("feedback_rivals", np.random.default_rng(0))
    table = found.table
    for (rival, noise), gain in gains.items():
        chosen = (table["rival"] == rival) & ((table["update_noise"] == noise) if noise is not None else True)
        table.loc[chosen, ["test_accuracy", "train_accuracy"]] += gain
    return found


@pytest.mark.parametrize(
    ("gains", "outcome"),
    [
        ({("oja", None): 0.1}, verdicts.REPRODUCED),
        ({("oja", None): 0.1, ("layer_norm", None): 0.2}, verdicts.NOT_REPRODUCED),
        ({("oja", None): 0.1, ("layer_norm", 1.0): 0.2}, verdicts.MIXED),
        ({("oja", None): 0.1, ("sign_symmetric", None): 0.3}, verdicts.REPRODUCED),  # A ceiling is not a rival.
    ],
)
def test_the_rule_is_ahead_if_it_is_ahead_of_every_rival(gains, outcome):
    found = with_scores(gains)
    told = study.verdict(found)
    assert told.outcome == outcome, told.parts
    assert (
        re.fullmatch("10 layers: constant Oja over its hardest rival, [a-z ]+", told.parts[0]["part"])
        and len(told.parts) == 8
    )
    assert any("update noise 0.3" in part["part"] for part in told.parts)


def test_a_lead_below_two_points_is_too_small_at_home_and_enough_elsewhere():
    found = with_scores({("layer_norm", None): 0.2})
    scores = ["test_accuracy", "train_accuracy"]
    ours, theirs = (found.table["rival"] == rival for rival in ("oja", "layer_norm"))
    noise = np.random.default_rng(1).normal(0.015, 0.001, (ours.sum(), 2))
    noise[:, 1] = 0.015  # So that both choose the same settings.
    found.table.loc[ours, scores] = found.table.loc[theirs, scores].to_numpy() + noise
    told = study.verdict(found)
    home, *others = (part["says"] for part in told.parts)
    assert home == "below what matters" and set(others) == {"holds"} and told.outcome == verdicts.PARTLY


def test_its_table_has_all_rivals_the_ceiling_last():
    found = with_scores({("kolen_pollack", None): 0.3})
    rows = [line for line in study.table(found).splitlines() if line.startswith("| 10 layers |")]
    assert len(rows) == len(FEEDBACK)
    assert all(FEEDBACK[name].label in "".join(rows[-2:]) for name in ("kolen_pollack", "sign_symmetric"))
    for draw in (study.rivals, study.stress):
        assert figures.in_style(draw, found).axes


@pytest.mark.figures
def test_a_small_study_with_measures(monkeypatch, tmp_path):
    monkeypatch.setitem(study.HOME, "depth", 3)
    flags = ["--widths=8,6", "--rival=backprop,oja,sign_symmetric", "--update_noise=0,1", "--strength=1", "--measures"]
    flags += ["--learning_rate=1e-3,1e-2", "--seeds=2", "--num_train=64", "--num_test=50", "--evals=0,64"]
    conduct(study.QUESTION, *flags, f"--workdir={tmp_path}")
    summary = (tmp_path / "summary.md").read_text()
    assert "angle to true gradient (°), hidden layers" in summary and "3 layers, update noise 1 |" in summary
    assert {path.stem for path in (tmp_path / "figures").glob("*.png")} >= {"rivals", "stress", "measures_of_rivals"}
    rows = pd.read_csv(tmp_path / "results.csv")
    assert set(rows.loc[rows["update_noise"] == 1, "rival"]) == {"backprop", "oja"}
