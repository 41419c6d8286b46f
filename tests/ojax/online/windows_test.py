"""A kernel in coordinates of its window equals the kernel itself, and other layers use no windows."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ojax
from ojax import online
from ojax.online import devices, programs, windows
from tests.ojax.online.first_layer_test import HAVE_NOT
from tests.ojax.online.networks import RATES, as_hyper, has_first_layer, mlp_learner, oja_sgd, small_data, step_by_step
from tests.ojax.online.run_test import KINDS

pytestmark = pytest.mark.compiled_quickly


@pytest.mark.parametrize("seen", [0, 1, 7, 12])
def test_rows_follow_the_kernel_and_give_it_back(seen):
    """A linear layer with made-up errors, against float64; after `seen` of 12 samples, the rest not yet learned."""
    rng, window = np.random.default_rng(0), 12
    images, kernel, errors = (rng.normal(size=size) for size in ((window, 30), (30, 5), (window, 5)))
    images, eta, theta = images / 5, 0.3, 0.2
    want, posts = kernel, np.zeros((window, 5))
    single = [jnp.asarray(array, jnp.float32) for array in (kernel, images)]
    rows, gram = windows.rows_of_kernel(*single), single[1] @ single[1].T
    for index in range(seen):
        post = images[index] @ want
        np.testing.assert_allclose(rows[index], post, rtol=1e-4, atol=1e-4)  # Row k is the output for image k.
        posts[index] = post
        want = want - eta * np.outer(images[index], errors[index]) + theta * np.outer(images[index] - want @ post, post)
        gradient = windows.gradient_of_rows(jnp.int32(index), gram, jnp.asarray(errors[index], jnp.float32))
        pre, post = windows.activity_of_rows(jnp.int32(index), gram, jnp.asarray(posts[index], jnp.float32))
        rows = rows - eta * gradient + theta * jnp.outer(pre - rows @ post, post)  # The rules are unchanged.
    found = kernel + windows.change_of_kernel(*single, jnp.asarray(posts, jnp.float32), rows)
    assert seen == 0 or np.abs(want - kernel).max() > 0.1
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4)


def state_after(optimizer, pieces, eta, theta, seed):
    """Returns a run after training in pieces that end at these counts."""
    learner, data = mlp_learner(optimizer=optimizer), small_data()
    plan = online.Plan(num_train=pieces[-1], evaluate_at=(pieces[-1],))
    layer = online.fast_path(learner, RATES, data, plan).layer
    assert (layer is None) == (optimizer is step_by_step)
    arrays = jax.tree.map(jnp.asarray, (data.train, data.test))
    run, state, _ = programs.begin(learner, plan, data.num_train, (as_hyper(eta, theta), jnp.uint32(seed)), arrays)
    # The data are arguments: as constants they would be written into the cache with each program.
    learn_on = jax.jit(lambda state, *shared: programs.learn_on(learner, plan, layer, state, run, shared))
    for bounds in zip([0, *pieces], pieces, strict=False):
        state = learn_on(state, arrays, np.array(bounds, np.int32))
    return state


@KINDS
def test_windows_of_samples_equal_the_optax_loop(eta, theta):
    """The fast path and sequential Optax steps agree to float32 rounding, also if windows are cut short."""
    plain = state_after(step_by_step, [300], eta, theta, 3)
    for pieces in ([300], [5, 32, 33, 300]):
        fast = state_after(oja_sgd, pieces, eta, theta, 3)
        for got, want in zip(jax.tree.leaves(fast.params), jax.tree.leaves(plain.params), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=5e-6)
        sums, wanted = fast.counts.sums, plain.counts.sums
        np.testing.assert_allclose(sums["train_loss"].total, wanted["train_loss"].total, rtol=1e-5)
        assert sums["train_accuracy"] == wanted["train_accuracy"]


@pytest.mark.compiled_quickly(False)
def test_a_run_diverges_in_a_window_as_it_does_step_by_step():
    states = [state_after(optimizer, [40], 1e6, 1e6, 0) for optimizer in (oja_sgd, step_by_step)]
    assert states[0].counts.diverged_at == states[1].counts.diverged_at > 0
    again = state_after(oja_sgd, [16, 32, 40], 1e6, 1e6, 0)
    jax.tree.map(np.testing.assert_array_equal, states[0].params, again.params)  # Frozen for all later samples.


def scaled(learner):
    """Returns the learner with initial weights multiplied by the hyper-parameter `gain`."""

    def init(key, hyper):
        params, state = learner.init(key, hyper)
        return jax.tree.map(lambda leaf: hyper["gain"] * leaf, params), state

    return learner._replace(init=init)


def test_windows_of_gpus_and_tpus_learn_as_those_of_a_cpu(monkeypatch):
    """Their form of windows, here on a CPU: runs in parallel, windows of fixed length, divergence at any sample."""
    learner = scaled(mlp_learner((784, 12, 9, 10), optimizer=oja_sgd))
    # Runs that learn, and runs that diverge at the first, the second and a later sample.
    hyper = {
        "gain": [1.0, 1.0, 1e30, 1.0, 1.0],
        "learning_rate": [1e-2, 1e-2, 1e-2, 1e30, 1e-2],
        "oja_rate": [0.0, 1e-3, 1e-3, 0.0, 100.0],
    }
    plan = online.Plan(90, (40, 90))  # No whole number of windows.

    def trained():
        programs.programs.cache_clear()
        weights = []
        scores = list(
            online.train(
                learner, hyper, [0, 1, 2, 3, 4], small_data(), plan, on_trained=lambda params, _: weights.append(params)
            )
        )
        return scores, jax.tree.map(np.asarray, weights[0])

    wanted, wanted_weights = trained()
    assert wanted[-1][1]["diverged_at"][:4].tolist() == [-1, -1, 0, 1] and 1 < wanted[0][1]["diverged_at"][4] < 40
    for platform in ("gpu", "tpu"):
        monkeypatch.setattr(devices, "platform", lambda mesh, platform=platform: platform)
        found, found_weights = trained()
        for (_, one), (_, other) in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(one["diverged_at"], other["diverged_at"])
            np.testing.assert_allclose(one["test_loss"][:2], other["test_loss"][:2], rtol=2e-3)
        for one, other in zip(jax.tree.leaves(found_weights), jax.tree.leaves(wanted_weights), strict=True):
            assert np.isfinite(other[[0, 1, 2]]).all()
            np.testing.assert_allclose(one[:4], other[:4], rtol=2e-3, atol=1e-5)
        # A diverged run keeps its weights, finite or not.
        at = [scores["weight_norm"][2:] for _, scores in found]
        np.testing.assert_array_equal(*at)
    programs.programs.cache_clear()


def assert_trains_as_the_plain_scan(learner, steps=1000):
    data, plan = small_data(), online.Plan(steps, (steps,))
    hyper = as_hyper(1e-2, 1e-3)
    ((_, scores),) = online.train(learner, {name: [float(rate)] for name, rate in hyper.items()}, [0], data, plan)

    @jax.jit
    def plain():
        params, state = online.initial_params(learner, hyper, 0)
        order = online.sample_order(plan, data.num_train, 0)[:, 0]
        samples = jax.tree.map(lambda array: jnp.asarray(array)[order], data.train)
        learned = online.learn(learner, hyper, params, state, samples)
        return learner.evaluate(learned.params, learned.state, data.test, hyper)

    want = plain()
    for name in ("test_loss", "weight_norm"):
        np.testing.assert_allclose(scores[name][0], want[name], rtol=1e-4)


@pytest.mark.parametrize("name", ["a centred image", "a squashed image", "a loss that reads the kernel"])
def test_a_network_that_does_not_fit_learns_all_the_same(name):
    assert_trains_as_the_plain_scan(online.classifier(HAVE_NOT[name], oja_sgd))


def decay_later(hyper):
    """Weight decay from sample 150 to 9,000."""
    decay = optax.add_decayed_weights(lambda count: jnp.where((count >= 150) & (count < 9000), 1e-2, 0.0))
    return optax.chain(decay, oja_sgd(hyper))


OTHERS = {
    "scheduled decay": decay_later,
    "weight decay": lambda rates: optax.chain(optax.add_decayed_weights(1e-6), oja_sgd(rates)),
    "Adam": lambda rates: optax.chain(optax.adam(1e-3), ojax.oja(rates["oja_rate"])),
    "momentum": lambda rates: optax.chain(optax.sgd(rates["learning_rate"], momentum=0.5), ojax.oja(rates["oja_rate"])),
    "clipping": lambda rates: optax.chain(optax.clip(1.0), oja_sgd(rates)),
    "clipping by norm": lambda rates: optax.chain(optax.clip_by_global_norm(1.0), oja_sgd(rates)),
    "clipped last": lambda rates: optax.chain(oja_sgd(rates), optax.clip(1e-3)),
    "Hebb": lambda rates: optax.chain(optax.sgd(rates["learning_rate"]), ojax.hebb(1e-6)),
    "Sanger": lambda rates: optax.chain(optax.sgd(rates["learning_rate"]), ojax.sanger(rates["oja_rate"])),
    "each neuron": lambda rates: optax.chain(optax.sgd(rates["learning_rate"]), ojax.oja_per_neuron(rates["oja_rate"])),
    "masked": lambda rates: optax.masked(oja_sgd(rates), lambda tree: True),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_transformations_take_no_windows(name):
    assert not has_first_layer(mlp_learner((784, 12, 10), OTHERS[name]))


@pytest.mark.parametrize("name", ["scheduled decay", "Adam"])
def test_a_transformation_that_does_not_fit_learns_all_the_same(name):
    assert_trains_as_the_plain_scan(mlp_learner((784, 12, 10), OTHERS[name]))


def test_scheduled_rates_are_carried_over_windows():
    def fading(hyper):
        return ojax.oja_sgd(optax.linear_schedule(1e-3, 1e-2, 500), lambda count: hyper["oja_rate"] * 2.0 ** (-count / 200))

    learner = mlp_learner((784, 12, 10), fading)
    assert has_first_layer(learner)
    assert_trains_as_the_plain_scan(learner)
