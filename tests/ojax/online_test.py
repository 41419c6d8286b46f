"""Runs equal an independent float64 statement, and no run depends on what stands beside it."""

import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ojax
from ojax import datasets, modules, online

WIDTHS = [784, 50, 40, 30, 10]


@pytest.fixture(scope="module")
def data():
    loaded = datasets.load()
    return loaded._replace(test_images=loaded.test_images[:200], test_labels=loaded.test_labels[:200])


def make_learner(widths=tuple(WIDTHS), input_kernel="layers/0/kernel"):
    network = modules.as_functions(lambda rngs: ojax.MLP(widths, rngs=rngs))
    return online.Learner(
        init=lambda key, hyper: network.init(key),
        apply=lambda params, state, images, training: network.apply(params, state, images, training=training),
        optimizer=lambda hyper: ojax.oja_sgd(hyper["learning_rate"], hyper["oja_rate"]),
        input_kernel=input_kernel,
    )


def train(data, schedule, etas, thetas, seeds, learner=None):
    hyper = {"learning_rate": etas, "oja_rate": thetas}
    return list(online.train(learner or make_learner(), hyper, seeds, data, schedule))


def assert_same_scores(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def run_of(score, runs):
    return jax.tree.map(lambda field: field[runs], score)


def softplus64(z):
    return np.logaddexp(0, 10 * z) / 10


def numpy_step(weights, x, label, eta, theta):
    """The paper's update in its own form, W of shape (n_out, n_in), y y^T and all; returns the new weights."""
    ys = [x]
    for layer, W in enumerate(weights):
        z = W @ ys[-1]
        ys.append(softplus64(z) if layer < len(weights) - 1 else np.exp(z - z.max()) / np.exp(z - z.max()).sum())
    error = ys[-1] - np.eye(len(ys[-1]))[label]
    new = []
    for layer in reversed(range(len(weights))):
        W, pre, post = weights[layer], ys[layer], ys[layer + 1]
        oja = np.outer(post, pre) - np.outer(post, post) @ W
        new.insert(0, W - eta * np.outer(error, pre) + theta * oja)
        error = (W.T @ error) * (1 - np.exp(-10 * pre))
    return new


@pytest.mark.parametrize(("eta", "theta"), [(1e-2, 0.0), (1e-2, 3e-4), (0.0, 3e-4)], ids=["backprop", "hybrid", "oja"])
def test_200_online_steps_equal_the_float64_statement(data, eta, theta):
    """On real images, from the same initial weights in the same order, to float32 rounding."""
    learner, steps = make_learner(), 200
    hyper = {"learning_rate": jnp.float32(eta), "oja_rate": jnp.float32(theta)}
    schedule = online.Schedule(num_train=steps, evaluate_at=(steps,))
    params, model_state = online.initial_params(learner, hyper, jnp.uint32(3))
    order = np.asarray(online.sample_order(schedule, len(data.train_labels), jnp.uint32(3)))[:, 0]
    weights = [np.asarray(leaf, np.float64).T for leaf in jax.tree.leaves(params)]
    start = weights
    state, learn = learner.optimizer(hyper).init(params), jax.jit(online.step, static_argnums=0)
    for sample in order:
        image, label = data.train_images[sample], data.train_labels[sample]
        made = learn(learner, hyper, params, model_state, state, image, label)
        params, state = jax.tree.map(jnp.add, params, made.updates), made.opt_state
        weights = numpy_step(weights, image.astype(np.float64), label, float(np.float32(eta)), float(np.float32(theta)))
    for got, want, first in zip(jax.tree.leaves(params), weights, start, strict=True):
        moved = np.abs(want - first).max()
        assert moved > 1e-3  # The statement did learn, so agreeing with it means something.
        np.testing.assert_allclose(got.T, want, atol=2e-5 * max(1.0, moved))

    # The compiled, mapped and sharded program is the same trajectory, in windows of samples and step by step: its weight
    # norms say so.
    for path in ("layers/0/kernel", None):
        ((_, score),) = train(data, schedule, [eta], [theta], [3], make_learner(input_kernel=path))
        np.testing.assert_allclose(score.weight_norms[0], [np.linalg.norm(W) for W in weights], rtol=1e-5)


def weights_after(learner, data, pieces, eta, theta, seed):
    """A run's weights after learning in pieces that end at these counts."""
    schedule = online.Schedule(num_train=pieces[-1], evaluate_at=(pieces[-1],))
    samples = online._Samples._make(map(jnp.asarray, data[1:5]))
    hyper = {"learning_rate": jnp.float32(eta), "oja_rate": jnp.float32(theta)}
    run, state, _ = online._begin(learner, schedule, len(data.train_labels), (hyper, jnp.uint32(seed)), samples)
    advance = jax.jit(lambda state, bounds: online._advance(learner, schedule, state, run, (samples, bounds)))
    for bounds in zip([0, *pieces], pieces, strict=False):
        state = advance(state, np.array(bounds, np.int32))
    return state


@pytest.mark.parametrize(("eta", "theta"), [(1e-2, 0.0), (1e-2, 3e-4), (0.0, 3e-4)], ids=["backprop", "hybrid", "oja"])
def test_windows_of_samples_equal_the_plain_optax_loop(data, eta, theta):
    """The fast path and one optax step after the other agree to float32 rounding, also where windows are cut short."""
    plain = weights_after(make_learner(input_kernel=None), data, [300], eta, theta, 3)
    for pieces in ([300], [5, 32, 33, 300]):
        fast = weights_after(make_learner(), data, pieces, eta, theta, 3)
        for got, want in zip(jax.tree.leaves(fast.params), jax.tree.leaves(plain.params), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=5e-6)
        np.testing.assert_allclose(fast.tally.loss_sum, plain.tally.loss_sum, rtol=1e-5)
        assert fast.tally.num_right == plain.tally.num_right


def test_a_run_diverges_in_a_window_as_it_does_step_by_step(data):
    states = [weights_after(make_learner(input_kernel=path), data, [40], 1e6, 1e6, 0) for path in ("layers/0/kernel", None)]
    assert states[0].tally.diverged_at == states[1].tally.diverged_at > 0
    again = weights_after(make_learner(), data, [16, 32, 40], 1e6, 1e6, 0)
    jax.tree.map(np.testing.assert_array_equal, states[0].params, again.params)  # Frozen, whatever follows.


UNFIT = {
    "adam": lambda rates: optax.adam(rates["learning_rate"]),
    "weight decay": lambda rates: optax.chain(optax.add_decayed_weights(1e-6), optax.sgd(rates["learning_rate"])),
    "clipping": lambda rates: optax.chain(optax.clip(1.0), optax.sgd(rates["learning_rate"])),
    "clipping by norm": lambda rates: optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(rates["learning_rate"])),
    "sign": lambda rates: optax.sign_sgd(rates["learning_rate"]),
    "clipped last": lambda rates: optax.chain(ojax.oja_sgd(rates["learning_rate"], rates["oja_rate"]), optax.clip(1.0)),
    "clipping of one run": lambda rates: optax.chain(optax.clip(1e9 - 1e12 * rates["oja_rate"]), optax.sgd(1e-2)),
    "decay after a warm-up": lambda rates: optax.chain(
        optax.add_decayed_weights(1e-4), optax.sgd(optax.linear_schedule(0.0, 1e-2, 50))
    ),
    "Hebb": lambda rates: optax.chain(optax.sgd(rates["learning_rate"]), ojax.hebb(rates["oja_rate"])),
    "Sanger": lambda rates: optax.chain(optax.sgd(rates["learning_rate"]), ojax.sanger(rates["oja_rate"])),
    "each neuron": lambda rates: optax.chain(optax.sgd(rates["learning_rate"]), ojax.oja_per_neuron(rates["oja_rate"])),
}
FIT = {
    "tiny rates": lambda rates: ojax.oja_sgd(1e-12, 1e-12),
    "absurd rates": lambda rates: ojax.oja_sgd(1e30, 1e30),
    "schedules": lambda rates: optax.chain(
        optax.sgd(optax.linear_schedule(1e-3, 1e-2, 50)), ojax.oja(optax.linear_schedule(0.0, 1e-3, 50))
    ),
    "injected": lambda rates: optax.chain(
        optax.inject_hyperparams(optax.sgd)(rates["learning_rate"]), ojax.oja(rates["oja_rate"])
    ),
    "a factor": lambda rates: optax.chain(optax.scale(0.5), optax.sgd(rates["learning_rate"]), ojax.oja(1e-3)),
    "another layer's decay": lambda rates: optax.chain(
        optax.masked(
            optax.add_decayed_weights(1e-2),
            lambda params: jax.tree.map_with_path(lambda path, _: path[1].key != 0, params),
        ),
        ojax.oja_sgd(rates["learning_rate"], rates["oja_rate"]),
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_an_optimizer_that_cannot_take_windows_is_refused(data, name):
    learner = make_learner()._replace(optimizer=UNFIT[name])
    with pytest.raises(ValueError, match="input_kernel='layers/0/kernel'"):
        train(data, online.Schedule(32, (32,)), [0.0, 1e-2], [0.0, 1e-3], [0, 0], learner)


@pytest.mark.parametrize("name", FIT)
def test_an_optimizer_that_can_take_windows_is_not_refused(data, name):
    learner = make_learner((784, 4, 10))._replace(optimizer=FIT[name])
    train(data, online.Schedule(32, (32,)), [0.0, 1e-2], [0.0, 1e-3], [0, 0], learner)


def test_windows_want_a_kernel_that_is_there(data):
    with pytest.raises(ValueError, match="no parameter 'layers/7/kernel'"):
        train(data, online.Schedule(32, (32,)), [1e-2], [0.0], [0], make_learner(input_kernel="layers/7/kernel"))


def test_oja_alone_finds_the_principal_subspace_of_real_images(data):
    """A linear layer of 8 units on centred images: W^T W near the identity, in the span of the top 8 components."""
    images = data.train_images - data.train_images.mean(axis=0)
    images = images / np.sqrt(np.mean(np.sum(images**2, axis=1)))  # Total variance 1, so that one rate fits.

    def apply(params, state, x, training):
        y = x @ params["kernel"]
        return y, {"kernel": ojax.Activity(x, y)}, state

    learner = online.Learner(
        init=lambda key, hyper: ({"kernel": 0.05 * jax.random.normal(key, (784, 8))}, {}),
        apply=apply,
        optimizer=lambda hyper: ojax.oja_sgd(0.0, hyper["oja_rate"]),
    )
    hyper = {"oja_rate": jnp.float32(0.02)}
    params, _ = online.initial_params(learner, hyper, jnp.uint32(0))
    order = online.sample_order(online.Schedule(10_000, (10_000,), epochs=4), len(images), jnp.uint32(0))
    labels = jnp.zeros(1, jnp.int32)

    @jax.jit
    def learn(params, images):
        def body(params, index):
            state = learner.optimizer(hyper).init(params)
            made = online.step(learner, hyper, params, {}, state, images[index], labels)
            return jax.tree.map(jnp.add, params, made.updates), None

        return jax.lax.scan(body, params, order)[0]

    kernel = np.asarray(learn(params, jnp.asarray(images))["kernel"], np.float64)
    np.testing.assert_allclose(kernel.T @ kernel, np.eye(8), atol=0.1)
    components = np.linalg.eigh(images.T @ images)[1][:, -8:]
    cosines = np.linalg.svd(components.T @ np.linalg.qr(kernel)[0], compute_uv=False)
    assert np.mean(cosines**2) > 0.95


def test_a_run_is_the_same_bit_for_bit_whatever_stands_beside_it(data):
    schedule = online.Schedule(num_train=120, evaluate_at=(50, 120))
    alone = train(data, schedule, [1e-2], [1e-3], [5])
    etas, thetas, seeds = [1e-3, 1e-2, 3e-2, 1e-2, 1e-2], [0.0, 1e-3, 1e-4, 0.0, 1e-3], [5, 5, 1, 2, 3]
    among = train(data, schedule, etas, thetas, seeds)
    again = train(data, schedule, etas, thetas, seeds)
    for (count, one), (other_count, many), (_, repeated) in zip(alone, among, again, strict=True):
        assert count == other_count
        assert_same_scores(many, repeated)
        assert_same_scores(run_of(one, [0]), run_of(many, [1]))


@pytest.mark.parametrize(("path", "rtol"), [(None, 0), ("layers/0/kernel", 1e-5)], ids=["step by step", "windows"])
def test_evaluations_do_not_disturb_a_run(data, path, rtol):
    """Bit for bit step by step. A window ends at an evaluation, which is another order of the same sums."""
    learner = make_learner(input_kernel=path)
    once = train(data, online.Schedule(120, (120,)), [1e-2], [1e-3], [0], learner)
    often = train(data, online.Schedule(120, (0, 7, 50, 119, 120)), [1e-2], [1e-3], [0], learner)
    assert [count for count, _ in often] == [0, 7, 50, 119, 120]
    for field in ("test_accuracy", "test_loss", "weight_norms", "diverged_at"):
        np.testing.assert_allclose(getattr(once[-1][1], field), getattr(often[-1][1], field), rtol=rtol)
    assert np.isnan(often[0][1].train_loss).all()
    spans = np.diff([0, 0, 7, 50, 119, 120])[1:]
    mean = sum(span * score.train_loss for span, (_, score) in zip(spans, often[1:], strict=True)) / 120
    np.testing.assert_allclose(mean, once[-1][1].train_loss, rtol=1e-5)


def test_seeds_pair_rules_and_differ_from_each_other(data):
    at_start = train(data, online.Schedule(50, (0, 50)), [1e-2, 1e-2, 1e-2], [0.0, 1e-3, 0.0], [4, 4, 5])
    norms = at_start[0][1].weight_norms
    np.testing.assert_array_equal(norms[0], norms[1])
    assert not np.array_equal(norms[0], norms[2])
    losses = at_start[1][1].test_loss
    assert len(set(losses.tolist())) == 3


def test_order_of_samples():
    schedule = online.Schedule(num_train=30, evaluate_at=(90,), epochs=3)
    order = np.asarray(online.sample_order(schedule, 100, jnp.uint32(1))).reshape(3, 30)
    assert len(set(order[0].tolist())) == 30
    assert all(set(epoch.tolist()) == set(order[0].tolist()) for epoch in order)
    assert len({tuple(epoch) for epoch in order.tolist()}) == 3
    np.testing.assert_array_equal(
        order[0], np.asarray(online.sample_order(schedule._replace(epochs=1), 100, jnp.uint32(1)))[:, 0]
    )
    batches = online.sample_order(schedule._replace(batch_size=8), 100, jnp.uint32(1))
    assert batches.shape == (9, 8)  # Three whole batches an epoch; the six samples left over are dropped.


def test_several_epochs_and_batches_learn(data):
    schedule = online.Schedule(num_train=1000, evaluate_at=(2000, 3968), epochs=4, batch_size=8)
    # 1000 // 8 * 8 * 4 = 4000 samples would fit; ending earlier is allowed.
    scores = train(data, schedule, [3e-2], [0.0], [0])
    assert scores[-1][1].test_accuracy[0] > 0.5
    assert scores[-1][1].train_loss[0] < scores[0][1].train_loss[0]


def test_a_run_that_diverges_is_frozen_and_harms_no_other(data):
    schedule = online.Schedule(num_train=100, evaluate_at=(50, 80, 100))
    healthy = train(data, schedule, [1e-2, 1e-2], [1e-3, 0.0], [0, 1])
    mixed = train(data, schedule, [1e-2, 1e6, 1e-2], [1e-3, 1e6, 0.0], [0, 0, 1])
    for (_, clean), (_, beside) in zip(healthy, mixed, strict=True):
        assert_same_scores(clean, run_of(beside, [0, 2]))
        assert (clean.diverged_at == -1).all()
    when = [int(score.diverged_at[1]) for _, score in mixed]
    assert 0 < when[0] < 50 and len(set(when)) == 1
    frozen = [score.weight_norms[1] for _, score in mixed]
    np.testing.assert_array_equal(frozen[0], frozen[-1])


def test_runs_mapped_by_vmap_as_on_gpu_and_tpu_are_the_same_to_rounding(data, monkeypatch):
    schedule = online.Schedule(num_train=100, evaluate_at=(50, 100))
    settings = ([1e-2, 1e6, 1e-2], [1e-4, 1e6, 0.0], [0, 0, 1])
    looped = train(data, schedule, *settings)
    monkeypatch.setattr(online, "_one_by_one", lambda mesh: False)
    for (_, one), (_, other) in zip(looped, train(data, schedule, *settings), strict=True):
        np.testing.assert_array_equal(one.diverged_at, other.diverged_at)
        np.testing.assert_allclose(one.weight_norms[[0, 2]], other.weight_norms[[0, 2]], rtol=1e-4)
        np.testing.assert_allclose(one.test_loss[[0, 2]], other.test_loss[[0, 2]], rtol=1e-3)


@pytest.mark.parametrize("path", ["layers/0/kernel", None], ids=["windows", "step by step"])
def test_looking_on_makes_no_difference(data, path):
    """Progress cuts the work into pieces; the bits stay."""
    learner, seen = make_learner(input_kernel=path), []
    schedule, settings = online.Schedule(300, (150, 300)), ({"learning_rate": [1e-2], "oja_rate": [1e-3]}, [0], data)
    plain = list(online.train(learner, *settings, schedule))
    watched = list(online.train(learner, *settings, schedule, on_progress=seen.append))
    assert len(seen) > 3 and seen[-1] == 300
    for (_, one), (_, other) in zip(plain, watched, strict=True):
        assert_same_scores(one, other)


def test_predictions_that_are_no_numbers_are_wrong():
    logits = jnp.array([[jnp.nan, 0.0], [0.0, jnp.inf], [1.0, 0.0]])
    np.testing.assert_array_equal(online._is_right(logits, jnp.array([0, 1, 0])), [False, False, True])


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"num_train": 0}, "num_train"),
        ({"num_train": 10_001}, "num_train"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 101}, "batch_size"),
        ({"epochs": 0}, "epochs"),
        ({"evaluate_at": ()}, "evaluate_at"),
        ({"evaluate_at": (50, 50)}, "evaluate_at"),
        ({"evaluate_at": (101,)}, "evaluate_at"),
        ({"evaluate_at": (7,), "batch_size": 2}, "evaluate_at"),
    ],
)
def test_a_schedule_that_does_not_fit(data, change, word):
    with pytest.raises(ValueError, match=word):
        train(data, online.Schedule(100, (100,))._replace(**change), [1e-2], [0.0], [0])


def test_hyper_parameters_of_another_length(data):
    with pytest.raises(ValueError, match="one value a run"):
        train(data, online.Schedule(10, (10,)), [1e-2], [0.0, 1.0], [0, 1])


def test_runs_that_fit_in_memory(data, monkeypatch):
    def fitting(free):
        monkeypatch.setattr(online, "_free_host_memory", lambda: free)
        schedule = online.Schedule(100, (50, 100))
        return online.runs_that_fit(make_learner(), ("learning_rate", "oja_rate"), data, schedule)

    shared = sum(array.nbytes for array in data[1:5]) * len(jax.local_devices())
    assert fitting(2**40) == fitting(2**41) > 100  # As many as are of use, and no more.
    few = fitting(shared + 2**27)
    assert 1 < few < fitting(shared + 2**28) <= fitting(2**40)
    assert fitting(shared + 2**27 // (2 * few)) == 1  # Less than twice a run's.
    assert fitting(shared) == 0


@pytest.mark.parametrize(
    ("arguments", "want"),
    [
        ({"num_evaluations": 4, "num_train": 100}, (25, 50, 75, 100)),
        ({"num_evaluations": 200, "num_train": 3}, (1, 2, 3)),
        ({"num_evaluations": 2, "num_train": 10, "batch_size": 4, "epochs": 3}, (12, 24)),
    ],
)
def test_evaluation_counts(arguments, want):
    assert online.evaluation_counts(**arguments) == want


def test_results_are_the_same_on_any_number_of_devices(tmp_path):
    """Bit for bit on CPU devices, also where the runs do not divide evenly; each count in a process of its own."""
    script = textwrap.dedent("""
        import sys, jax, numpy as np
        jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
        import ojax
        from ojax import datasets, modules, online
        network = modules.as_functions(lambda rngs: ojax.MLP([784, 20, 10], rngs=rngs))
        init = lambda key, hyper: network.init(key)
        apply = lambda params, state, images, training: network.apply(params, state, images, training=training)
        rule = lambda hyper: ojax.oja_sgd(hyper["learning_rate"], hyper["oja_rate"])
        learner = online.Learner(init, apply, rule, input_kernel="layers/0/kernel")
        hyper = {"learning_rate": [1e-2] * 5, "oja_rate": [0, 1e-4, 1e-3, 0, 1e-4]}
        schedule = online.Schedule(60, (30, 60))
        scores = list(online.train(learner, hyper, [0, 0, 0, 1, 1], datasets.load(), schedule))
        assert jax.device_count() == int(sys.argv[1])
        np.savez(sys.argv[2], *[field for _, score in scores for field in jax.tree.leaves(score)])
    """)
    found = []
    for count in (1, 2, 8):
        path = tmp_path / f"{count}.npz"
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        subprocess.run([sys.executable, "-c", script, str(count), str(path)], check=True, env=environment)
        with np.load(path) as arrays:
            found.append([arrays[name] for name in arrays.files])
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(one, two)
