"""The rivals of streams that change, each compared with its formula in float64 NumPy over several steps."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ojax
from experiments.tasks import continual_rivals as rivals
from experiments.tasks import noise as random_numbers
from experiments.tasks.registry import CONTINUAL, resolve
from ojax import modules
from ojax.trees import named_leaves

pytestmark = pytest.mark.compiled_quickly

WIDTHS, STEPS, ETA = (9, 7, 6, 4), 6, 0.1


@functools.cache
def network():
    return modules.as_functions(lambda rngs: ojax.MLP(WIDTHS, activation=jax.nn.relu, use_bias=True, rngs=rngs))


@functools.cache
def gradient():
    @jax.jit
    def of_sample(params, key):
        x = jax.random.normal(key, (WIDTHS[0],))

        def loss(params):
            logits, activity, _ = network().apply(params, {}, x)
            return -jax.nn.log_softmax(logits)[1], activity

        return jax.value_and_grad(loss, has_aux=True)(params)

    return of_sample


@functools.cache
def initial(seed=0):
    params, _ = jax.jit(network().init)(jax.random.key(seed))
    return jax.tree.map(lambda leaf: leaf if leaf.ndim == 2 else leaf + 0.1, params)


def arrays(tree):
    return {path: np.asarray(leaf, np.float64) for path, leaf in named_leaves(tree)}


def steps_of(make, steps=STEPS, params=None, **extra):
    """Returns for each step (p, g, activity by layer, p after, the optimizer's state before)."""
    params = initial() if params is None else params
    tx = optax.with_extra_args_support(make())  # As a learner does.
    state, update = tx.init(params), jax.jit(tx.update)
    for step in range(steps):
        (loss, activity), grads = gradient()(params, jax.random.key(step))
        more = {name: value(loss) for name, value in extra.items()}
        updates, after = update(grads, state, params, activity=activity, **more)
        new = jax.tree.map(jnp.add, params, updates)
        posts = [np.asarray(activity["layers"][layer]["kernel"][0].post, np.float64) for layer in range(len(WIDTHS) - 1)]
        yield arrays(params), arrays(grads), posts, arrays(new), state
        params, state = new, after


def assert_follows(make, formula, **options):
    """Asserts that `formula(p, g, step)` is the parameter after a step, for every parameter and step."""
    for step, (params, grads, _, new, _) in enumerate(steps_of(make, **options)):
        for path, p in params.items():
            np.testing.assert_allclose(new[path], formula(path, p, grads[path], step), rtol=2e-5, atol=1e-6, err_msg=path)


def test_every_rival_learns_and_is_another():
    found = {}
    for name, rival in CONTINUAL.items():
        options = dict.fromkeys(rival.uses, 100.0)
        make = functools.partial(resolve(rival.rule), ETA, rival.parameter(1.0), **options)
        extra = {"loss": lambda loss: loss} if name == "fading_again" else {}
        *_, (_, _, _, new, _) = steps_of(make, **extra)
        assert all(np.isfinite(leaf).all() for leaf in new.values()), name
        found[name] = np.concatenate([leaf.ravel() for leaf in new.values()])
    # Continual backprop has replaced nothing yet, nothing is clipped, and the last rates equal the first ones.
    same = {"backprop", "continual_backprop", "weight_clipping", "layer_norm", "isometry"}, {"fading_oja", "fading_again"}
    for name, other in [(a, b) for a in found for b in found if a < b and not any({a, b} <= each for each in same)]:
        assert np.abs(found[name] - found[other]).max() > 1e-7, (name, other)


def test_l2_and_l2_towards_the_initial_weights():
    start = arrays(initial())
    assert_follows(lambda: rivals.l2(ETA, 0.3), lambda path, p, g, step: p - ETA * (g + 0.3 * p))
    assert_follows(lambda: rivals.l2_init(ETA, 0.3), lambda path, p, g, step: p - ETA * (g + 0.3 * (p - start[path])))


def test_adam():
    first, second = ({path: 0.0 for path in arrays(initial())} for _ in range(2))

    def formula(path, p, g, step):
        first[path], second[path] = 0.9 * first[path] + 0.1 * g, 0.999 * second[path] + 0.001 * g**2
        m, v = first[path] / (1 - 0.9 ** (step + 1)), second[path] / (1 - 0.999 ** (step + 1))
        return p - 0.1 * ETA * m / (np.sqrt(v) + 1e-8)

    assert_follows(lambda: resolve(CONTINUAL["adam"].rule)(ETA, 1.0), formula)


def noise_of(key):
    """Returns the noise of a step."""
    return arrays(random_numbers.normal(jax.random.split(key)[1], initial()))


def test_noise_is_normal_and_another_in_every_step_and_for_every_seed():
    key = random_numbers.key_of(initial())
    drawn = [key]
    for _ in range(30):
        drawn.append(jax.random.split(drawn[-1])[0])
    found = [np.concatenate([leaf.ravel() for leaf in noise_of(key).values()]) for key in drawn]
    together = np.concatenate(found)
    assert together.mean() == pytest.approx(0, abs=0.05) and together.std() == pytest.approx(1, abs=0.05)
    assert np.abs(np.corrcoef(found) - np.eye(len(found))).max() < 0.6
    assert not np.array_equal(found[0][:5], noise_of(random_numbers.key_of(initial(1)))["layers/0/bias"][:5])


def test_shrink_and_perturb():
    for params, grads, _, new, key in steps_of(lambda: rivals.shrink_and_perturb(ETA, 0.3)):
        noise = noise_of(key)
        for path, p in params.items():
            want = (1 - ETA * 0.3) * p - ETA * (grads[path] + rivals.PERTURBATION * noise[path])
            np.testing.assert_allclose(new[path], want, rtol=2e-5, atol=1e-6)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("by_feature", [False, True])
def test_upgd(by_feature):
    make, decay = rivals.upgd_features if by_feature else rivals.upgd, rivals.UTILITY_DECAY
    trace = {}
    for step, (params, grads, posts, new, state) in enumerate(steps_of(lambda: make(ETA, 0.3))):
        noise = noise_of(state.key)
        if by_feature:  # By the gradient of a gate on each unit: y_i times the error of y_i.
            errors = {layer: grads[f"layers/{layer + 1}/bias"] @ params[f"layers/{layer + 1}/kernel"].T for layer in (0, 1)}
            worth = {f"layers/{layer}": -posts[layer] * error for layer, error in errors.items()}
        else:
            worth = {path: -grads[path] * p for path, p in params.items()}
        trace = {path: decay * trace.get(path, 0) + (1 - decay) * u for path, u in worth.items()}
        corrected = {path: u / (1 - decay ** (step + 1)) for path, u in trace.items()}
        largest = max(u.max() for u in corrected.values())
        for path, p in params.items():
            u = corrected.get(path.rpartition("/")[0] if by_feature else path)
            scaled = None if u is None else sigmoid(u / largest) if largest > 0 else 0.5
            change = grads[path] if scaled is None else (grads[path] + 0.3 * noise[path]) * (1 - scaled)
            want = (1 - ETA * rivals.UPGD_WEIGHT_DECAY) * p - ETA * change
            np.testing.assert_allclose(new[path], want, rtol=1e-3, atol=1e-5)


def test_continual_backprop_replaces_the_ripe_units_of_low_utility(monkeypatch):
    monkeypatch.setattr(rivals, "MATURITY", 3)
    rate, decay, layers = 0.08, rivals.REPLACEMENT_DECAY, (0, 1)
    trace, age = ({layer: np.zeros(WIDTHS[layer + 1]) for layer in layers} for _ in range(2))
    due, replaced = dict.fromkeys(layers, 0.0), 0
    deviation = {layer: arrays(initial())[f"layers/{layer}/kernel"].std() for layer in layers}
    for params, grads, posts, new, _ in steps_of(lambda: rivals.continual_backprop(ETA, rate), steps=14):
        want = {path: p - ETA * grads[path] for path, p in params.items()}
        for layer in layers:
            here, after, bias = (
                f"layers/{n}/{kind}" for n, kind in ((layer, "kernel"), (layer + 1, "kernel"), (layer, "bias"))
            )
            worth = np.abs(posts[layer]) * np.abs(want[after]).sum(axis=1)
            trace[layer] = decay * trace[layer] + (1 - decay) * worth
            age[layer] += 1
            ripe = age[layer] > 3
            due[layer] += rate * ripe.sum()
            if due[layer] >= 1 and ripe.any():
                unit = np.argmin(np.where(ripe, trace[layer], np.inf))
                fresh = new[here][:, unit]  # Redrawn: only its range is known here.
                assert (
                    np.abs(fresh).max() <= np.sqrt(3) * deviation[layer] and np.abs(fresh - want[here][:, unit]).min() > 0
                )
                want[here][:, unit], want[after][unit], want[bias][unit] = fresh, 0, 0
                trace[layer][unit] = age[layer][unit] = 0
                due[layer] -= 1
                replaced += 1
        for path in params:
            np.testing.assert_allclose(new[path], want[path], rtol=2e-5, atol=1e-6)
    assert replaced >= 6


def test_spectral_regularization():
    """After convergence of the power iteration, it is gradient descent on the penalty."""
    vectors = {path: np.full(p.shape[-1], p.shape[-1] ** -0.5) for path, p in arrays(initial()).items()}

    def formula(path, p, g, step):
        if p.ndim == 1:
            return p - ETA * (g + 0.3 * 4 * (p @ p) * p)
        u = p @ vectors[path]
        u /= np.linalg.norm(u)
        vectors[path] = u @ p / np.linalg.norm(u @ p)
        sigma = u @ p @ vectors[path]
        return p - ETA * (g + 0.3 * 4 * (sigma**2 - 1) * sigma * np.outer(u, vectors[path]))

    assert_follows(lambda: rivals.spectral(ETA, 0.3), formula)
    kernel = np.random.default_rng(0).normal(size=(5, 4))
    u, sigma, v = np.linalg.svd(kernel)
    exact = 4 * (sigma[0] ** 2 - 1) * sigma[0] * np.outer(u[:, 0], v[0])
    penalty = jax.grad(lambda w: (jnp.linalg.norm(w, 2) ** 2 - 1) ** 2)(jnp.asarray(kernel, jnp.float32))
    np.testing.assert_allclose(penalty, exact, rtol=1e-3, atol=1e-3)


def test_isometry_regularization_acts_every_so_often(monkeypatch):
    monkeypatch.setattr(rivals.rivals, "PULL_EVERY", 3)

    def formula(path, p, g, step):
        want = p - ETA * g
        if step % 3 < 2 or p.ndim == 1:
            return want
        n, m = p.shape
        pull = 4 * p @ (p.T @ p - np.eye(m)) if n >= m else 4 * (p @ p.T - np.eye(n)) @ p
        return want - 3 * ETA * 0.05 * pull

    assert_follows(lambda: rivals.isometry(ETA, 0.05), formula)


def test_weight_clipping():
    bounds = {path: 1.01 * np.abs(p).max() for path, p in arrays(initial()).items() if p.ndim == 2}
    clipped = []

    def formula(path, p, g, step):
        bound = bounds[path.replace("bias", "kernel")]
        clipped.append(np.abs(p - g).max() > bound)
        return np.clip(p - g, -bound, bound)

    assert_follows(lambda: rivals.weight_clipping(1.0, 1.01), formula)
    assert any(clipped)


def test_gain_homeostasis():
    for params, grads, posts, new, _ in steps_of(lambda: resolve(CONTINUAL["homeostasis"].rule)(ETA, 0.3), steps=2):
        for layer in (1, 2):
            path, (x, y) = f"layers/{layer}/kernel", [(post @ post) for post in posts[layer - 1 : layer + 1]]
            change = 0.3 * (x - y) / (x + y) if layer == 1 else 0  # The read-out is left out.
            want = params[path] * (1 + change) - ETA * grads[path]
            np.testing.assert_allclose(new[path], want, rtol=2e-5, atol=1e-6)


def test_layer_norm_normalizes_hidden_layers():
    params, _ = modules.as_functions(lambda rngs: rivals.normalized(WIDTHS, rngs=rngs)).init(jax.random.key(0))
    assert {path for path, _ in named_leaves(params) if "normalization" in path} == {
        f"layers/{layer}/normalization/{name}" for layer in (0, 1) for name in ("bias", "scale")
    }


def changes_in(losses):
    """Returns the averages in float64, and the samples at which they signal a change."""
    fast = slow = variance = 0.0
    seen = 0
    for number, loss in enumerate(losses):
        fast += max(0.05, 1 / (seen + 1)) * (loss - fast)
        slow += max(0.005, 1 / (seen + 1)) * (loss - slow)
        changed = seen >= 200 and fast - slow > 3 * math.sqrt(variance)
        variance += max(0.005, 1 / (seen + 1)) * ((fast - slow) ** 2 - variance)
        seen = 0 if changed else seen + 1
        if changed:
            yield number


def test_a_change_of_the_loss_is_found_soon_after_it():
    losses = np.random.default_rng(0).gamma(1.0, 0.7, 5000) + np.where(np.arange(5000) >= 2000, 1.5, 0.0)

    @jax.jit
    def seen(losses):
        def body(watch, loss):
            watch = rivals.watched(watch, loss)
            return watch, watch.seen

        return jax.lax.scan(body, rivals.Watch(*[jnp.float32(0)] * 4), losses)[1]

    found = np.flatnonzero(np.asarray(seen(jnp.asarray(losses, jnp.float32))) == 0)
    np.testing.assert_array_equal(found, list(changes_in(losses)))
    assert any(2000 <= number < 2030 for number in found)
    assert len(found) < 9  # Skewed losses exceed three deviations by chance about once in 800 samples.


@pytest.mark.parametrize(("name", "in_readout"), [("fading_oja", False), ("fading_in_all", True)])
def test_a_fading_rule_acts_in_hidden_layers_or_in_all(name, in_readout):
    make = functools.partial(resolve(CONTINUAL[name].rule), ETA, 0.02, half_life=2.0)
    for count, (params, grads, posts, new, _) in enumerate(steps_of(make)):
        for layer in (1, 2):
            path, x, y = f"layers/{layer}/kernel", posts[layer - 1], posts[layer]
            rate = 0.02 * 2 ** (-count / 2) if layer == 1 or in_readout else 0
            want = params[path] - ETA * grads[path] + rate * np.outer(x - params[path] @ y, y)
            np.testing.assert_allclose(new[path], want, rtol=2e-5, atol=1e-6)


def test_oja_fades_again_when_the_loss_tells():
    """With given rates and losses: it equals constant Oja at the rate of the count."""
    make = functools.partial(rivals.fading_again, ETA, 0.02, half_life=2.0)
    found = list(steps_of(make, loss=lambda loss: loss))
    for count, (params, grads, posts, new, _) in enumerate(found):
        rate, path = 0.02 * 2 ** (-count / 2), "layers/1/kernel"
        x, y, W = posts[0], posts[1], params[path]
        want = W - ETA * grads[path] + rate * np.outer(x - W @ y, y)
        np.testing.assert_allclose(new[path], want, rtol=2e-5, atol=1e-6)
