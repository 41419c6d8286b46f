"""Each rule against an independent float64 statement, and every Optax wrapper that a user would put around it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ojax

RATE = 0.03
N_IN, N_OUT, BATCH = 7, 4, 5


@pytest.fixture
def layer():
    rng = np.random.default_rng(0)
    return rng.normal(size=(N_IN, N_OUT)), rng.normal(size=(BATCH, N_IN)), rng.normal(size=(BATCH, N_OUT))


# The papers' own forms: weights W with one row per neuron, one sample at a time, double precision, with y y^T formed.


def oja_statement(W, x, y):
    return np.outer(y, x) - np.outer(y, y) @ W


def oja_per_neuron_statement(W, x, y):
    return np.stack([y[i] * x - y[i] ** 2 * W[i] for i in range(len(y))])


def sanger_statement(W, x, y):
    return np.outer(y, x) - np.tril(np.outer(y, y)) @ W


def hebb_statement(W, x, y):
    return np.outer(y, x)


RULES = {
    ojax.oja: oja_statement,
    ojax.oja_per_neuron: oja_per_neuron_statement,
    ojax.sanger: sanger_statement,
    ojax.hebb: hebb_statement,
}
each_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)


def stated_change(rule, layer):
    kernel, pre, post = layer
    return RATE * np.mean([RULES[rule](kernel.T, x, y).T for x, y in zip(pre, post, strict=True)], axis=0)


def trees(layer, dtype=jnp.float32):
    kernel, pre, post = (jnp.asarray(array, dtype) for array in layer)
    return {"a": {"kernel": kernel, "bias": jnp.ones(3)}}, {"a": {"kernel": ojax.Activity(pre, post)}}


def changes(tx, params, activity, state=None):
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params) if state is None else state, params, activity=activity)
    return updates


@each_rule
def test_adds_the_stated_change_averaged_over_the_batch(rule, layer):
    params, activity = trees(layer)
    tx = rule(RATE)
    incoming = jax.tree.map(lambda leaf: 0.5 + leaf, params)
    updates, _ = tx.update(incoming, tx.init(params), params, activity=activity)
    np.testing.assert_allclose(updates["a"]["kernel"] - incoming["a"]["kernel"], stated_change(rule, layer), atol=1e-6)
    np.testing.assert_array_equal(updates["a"]["bias"], incoming["a"]["bias"])


@each_rule
def test_one_sample_and_many_leading_axes(rule, layer):
    params, _ = trees(layer)
    kernel, pre, post = layer
    one = {"a": {"kernel": ojax.Activity(jnp.asarray(pre[0]), jnp.asarray(post[0]))}}
    want = RATE * RULES[rule](kernel.T, pre[0], post[0]).T
    np.testing.assert_allclose(changes(rule(RATE), params, one)["a"]["kernel"], want, atol=1e-6)
    nested = {"a": {"kernel": ojax.Activity(jnp.asarray(pre)[:, None, None], jnp.asarray(post)[:, None, None])}}
    got = changes(rule(RATE), params, nested)["a"]["kernel"]
    np.testing.assert_allclose(got, stated_change(rule, layer), atol=1e-6)


@each_rule
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_the_change_has_the_parameters_dtype(rule, dtype, layer):
    params, _ = trees(layer, dtype)
    _, activity = trees(layer, jnp.float32)
    update = changes(rule(RATE), params, activity)["a"]["kernel"]
    assert update.dtype == dtype
    np.testing.assert_allclose(update.astype(jnp.float32), stated_change(rule, layer), rtol=0.02, atol=5e-3)


def test_the_large_product_is_never_formed():
    n_in, n_out = 3, 50
    params = {"w": jnp.ones((n_in, n_out))}

    def update(params, pre, post):
        return changes(ojax.oja(RATE), params, {"w": ojax.Activity(pre, post)})

    for shape in ((), (4,)):
        lowered = jax.jit(update).lower(params, jnp.ones((*shape, n_in)), jnp.ones((*shape, n_out)))
        assert f"{n_out}x{n_out}" not in lowered.as_text()


def test_it_comes_after_the_optimizer_with_a_separate_rate(layer):
    params, activity = trees(layer)
    grads = jax.tree.map(jnp.ones_like, params)
    for tx in (optax.chain(optax.sgd(0.1), ojax.oja(RATE)), ojax.oja_sgd(0.1, RATE)):
        updates, _ = tx.update(grads, tx.init(params), params, activity=activity)
        np.testing.assert_allclose(updates["a"]["kernel"], -0.1 + stated_change(ojax.oja, layer), atol=1e-6)
        np.testing.assert_allclose(updates["a"]["bias"], -0.1)


def test_a_schedule_counts_steps(layer):
    params, activity = trees(layer)
    tx = ojax.oja(lambda count: RATE * (count + 1))
    state = tx.init(params)
    for count in range(3):
        zeros = jax.tree.map(jnp.zeros_like, params)
        updates, state = tx.update(zeros, state, params, activity=activity)
        np.testing.assert_allclose(
            updates["a"]["kernel"], (count + 1) * stated_change(ojax.oja, layer), rtol=1e-4, atol=1e-6
        )
    assert state.count == 3


@pytest.mark.parametrize("rule", [*RULES, ojax.oja_sgd], ids=lambda rule: rule.__name__)
def test_inject_hyperparams_under_jit(rule, layer):
    params, activity = trees(layer)
    rates = {"learning_rate": 0.0, "oja_rate": RATE} if rule is ojax.oja_sgd else {"rate": RATE}
    tx = optax.inject_hyperparams(rule)(**rates)
    got = jax.jit(lambda params: changes(tx, params, activity))(params)["a"]["kernel"]
    np.testing.assert_allclose(got, stated_change(ojax.oja if rule is ojax.oja_sgd else rule, layer), atol=1e-6)


def test_inject_hyperparams(layer):
    params, activity = trees(layer)
    tx = optax.inject_hyperparams(ojax.oja)(rate=1.0)
    state = tx.init(params)
    state.hyperparams["rate"] = jnp.asarray(RATE)
    got = changes(tx, params, activity, state)["a"]["kernel"]
    np.testing.assert_allclose(got, stated_change(ojax.oja, layer), atol=1e-6)


@pytest.mark.parametrize("how", ["mask", "mask function", "optax.masked", "optax.partition"])
def test_masks(how, layer):
    kernel, pre, post = (jnp.asarray(array, jnp.float32) for array in layer)
    params = {"on": {"kernel": kernel}, "off": {"kernel": kernel}}
    activity = {name: {"kernel": ojax.Activity(pre, post)} for name in params}
    mask = {"on": {"kernel": True}, "off": False}
    tx = {
        "mask": lambda: ojax.oja(RATE, mask=mask),
        "mask function": lambda: ojax.oja(RATE, mask=lambda params: mask),
        "optax.masked": lambda: optax.masked(ojax.oja(RATE), mask),
        "optax.partition": lambda: optax.partition(
            {"plastic": ojax.oja(RATE), "fixed": optax.set_to_zero()}, {"on": "plastic", "off": "fixed"}
        ),
    }[how]()
    updates = changes(tx, params, activity)
    np.testing.assert_allclose(updates["on"]["kernel"], stated_change(ojax.oja, layer), atol=1e-6)
    np.testing.assert_array_equal(updates["off"]["kernel"], 0)


def test_multi_steps_uses_the_last_mini_step_and_can_leave_oja_online(layer):
    params, activity = trees(layer)
    others = jax.tree.map(lambda array: 2 * array, activity)
    grads = jax.tree.map(jnp.ones_like, params)

    def run(tx):
        state = tx.init(params)
        first, state = tx.update(grads, state, params, activity=others)
        second, _ = tx.update(grads, state, params, activity=activity)
        return first["a"]["kernel"], second["a"]["kernel"]

    whole = optax.MultiSteps(ojax.oja_sgd(0.1, RATE), 2).gradient_transformation()
    first, second = run(whole)
    np.testing.assert_array_equal(first, 0)
    np.testing.assert_allclose(second, -0.1 + stated_change(ojax.oja, layer), atol=1e-6)

    online = optax.chain(optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation(), ojax.oja(RATE))
    first, second = run(online)
    kernel, pre, post = layer
    np.testing.assert_allclose(first, stated_change(ojax.oja, (kernel, 2 * pre, 2 * post)), atol=1e-5)
    np.testing.assert_allclose(second, -0.1 + stated_change(ojax.oja, layer), atol=1e-6)


def test_jit_vmap_and_grad_over_the_rate(layer):
    params, activity = trees(layer)

    @jax.jit
    def kernel_change(rate):
        return changes(ojax.oja(rate), params, activity)["a"]["kernel"]

    rates = jnp.array([0.0, RATE, 2 * RATE])
    want = np.stack([scale * stated_change(ojax.oja, layer) for scale in range(3)])
    np.testing.assert_allclose(jax.vmap(kernel_change)(rates), want, atol=1e-6)
    slope = jax.grad(lambda rate: kernel_change(rate).sum())(0.5)
    np.testing.assert_allclose(slope, stated_change(ojax.oja, layer).sum() / RATE, rtol=1e-4)


def test_calls_of_a_shared_layer_are_one_batch(layer):
    params, _ = trees(layer)
    _, pre, post = (jnp.asarray(array, jnp.float32) for array in layer)
    calls = {"a": {"kernel": (ojax.Activity(pre[:2], post[:2]), ojax.Activity(pre[2:], post[2:]))}}
    got = changes(ojax.oja(RATE), params, calls)["a"]["kernel"]
    np.testing.assert_allclose(got, stated_change(ojax.oja, layer), atol=1e-6)


def test_a_list_of_kernels(layer):
    kernel, pre, post = (jnp.asarray(array, jnp.float32) for array in layer)
    updates = changes(ojax.oja(RATE), [kernel, kernel], [ojax.Activity(pre, post), None])
    np.testing.assert_allclose(updates[0], stated_change(ojax.oja, layer), atol=1e-6)
    np.testing.assert_array_equal(updates[1], 0)


def activity_of(pre_shape, post_shape):
    return ojax.Activity(jnp.ones(pre_shape), jnp.ones(post_shape))


@pytest.mark.parametrize(
    ("activity", "words"),
    [
        ({"b": {"kernel": activity_of((7,), (4,))}}, ["b/kernel", "(7,)", "(4,)", "no parameter", "a/kernel"]),
        ({"a": {"kernel": activity_of((6,), (4,))}}, ["a/kernel", "(6,)", "(4,)", "(7, 4)"]),
        ({"a": {"kernel": activity_of((4,), (7,))}}, ["a/kernel", "(4,)", "(7, 4)"]),
        ({"a": {"kernel": activity_of((2, 7), (3, 4))}}, ["a/kernel", "(2, 7)", "(3, 4)"]),
        ({"a": {"kernel": activity_of((0, 7), (0, 4))}}, ["a/kernel", "(0, 7)", "non-empty"]),
        ({"a": {"kernel": activity_of((), ())}}, ["a/kernel", "()", "(7, 4)"]),
        ({"a": {"bias": activity_of((3,), (3,))}}, ["a/bias", "(3,)"]),
        ({"a": {"kernel": jnp.ones(7)}}, ["a/kernel", "not an ojax.Activity"]),
        ({}, ["no ojax.Activity", "a/kernel"]),
        (None, ["needs the activity"]),
    ],
)
def test_an_activity_that_does_not_fit_is_named(activity, words, layer):
    params, _ = trees(layer)
    with pytest.raises(ValueError, match=r"ojax\.oja") as caught:
        changes(ojax.oja(RATE), params, activity)
    for word in words:
        assert word in str(caught.value)


def bcm_statement(W, x, y, threshold):
    threshold = threshold + 0.1 * (y**2 - threshold)
    return np.outer(y * (y - threshold), x), threshold


def bcm(layer, threshold):
    threshold = threshold + 0.1 * (jnp.mean(layer.post**2, axis=0) - threshold)
    return layer.pre.T @ (layer.post * (layer.post - threshold)) / len(layer.pre), threshold


def test_a_custom_rule_with_a_state(layer):
    """BCM's sliding threshold, with a bias that has no state, in a scan and under vmap over rates."""
    kernel, pre, post = layer
    params = {"a": {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.ones(3)}}
    samples = ojax.Activity(jnp.asarray(pre, jnp.float32), jnp.asarray(post, jnp.float32))

    def learn(rate):
        tx = optax.chain(optax.sgd(0.0), ojax.plasticity.rule(bcm, rate, init=lambda kernel: jnp.zeros(kernel.shape[1])))

        def step(carry, sample):
            params, state = carry
            zeros = jax.tree.map(jnp.zeros_like, params)
            updates, state = tx.update(zeros, state, params, activity={"a": {"kernel": sample}})
            return (optax.apply_updates(params, updates), state), None

        (learned, state), _ = jax.lax.scan(step, (params, tx.init(params)), samples)
        return learned, state[1].local["a"]["kernel"]

    W, threshold = kernel.T, np.zeros(N_OUT)
    for x, y in zip(pre, post, strict=True):
        change, threshold = bcm_statement(W, x, y, threshold)
        W = W + RATE * change
    learned, found = jax.vmap(learn)(jnp.array([RATE, -RATE]))  # A custom rule may have a rate of either sign.
    np.testing.assert_allclose(learned["a"]["kernel"][0], W.T, atol=1e-5)
    np.testing.assert_allclose(learned["a"]["kernel"][1], 2 * kernel - W.T, atol=1e-5)
    np.testing.assert_allclose(found[0], threshold, atol=1e-5)
    np.testing.assert_array_equal(learned["a"]["bias"], 1)


def test_a_custom_rule_in_a_mask_and_with_a_schedule(layer):
    params, activity = trees(layer)
    both = {"on": params["a"], "off": params["a"]}
    tx = ojax.plasticity.rule(
        bcm, lambda count: RATE * count, init=lambda kernel: jnp.zeros(kernel.shape[1]), mask={"on": True, "off": False}
    )
    state, zeros = tx.init(both), jax.tree.map(jnp.zeros_like, both)
    for _ in range(2):
        updates, state = tx.update(zeros, state, both, activity={"on": activity["a"], "off": activity["a"]})
    assert jax.tree.structure(state.inner_state.local) == jax.tree.structure(both | {"off": optax.MaskedNode()})
    assert state.inner_state.count == 2
    assert updates["on"]["kernel"].any() and not updates["off"]["kernel"].any()


def test_a_change_of_another_shape_is_named(layer):
    """The papers' (n_out, n_in), and a row."""
    for change in (lambda layer: layer.post.T @ layer.pre, lambda layer: layer.pre[0]):
        with pytest.raises(ValueError, match=r"the change of a/kernel has shape .*, and not the kernel's, .*\(7, 4\)"):
            changes(ojax.plasticity.rule(change, RATE), *trees(layer))


def test_an_axis_that_is_not_a_number():
    with pytest.raises(ValueError, match=r"ojax\.oja: out_axis must be a whole number or several, got 'last'"):
        ojax.oja(RATE, out_axis="last")


@pytest.mark.parametrize("rate", [float("nan"), float("inf")])
def test_a_custom_rule_is_named_in_errors(rate, layer):
    with pytest.raises(ValueError, match=r"bcm: the rate must be finite"):
        ojax.plasticity.rule(bcm, rate, init=jnp.zeros_like)
    with pytest.raises(ValueError, match=r"^bcm needs the activity"):
        changes(ojax.plasticity.rule(bcm, RATE, init=jnp.zeros_like), trees(layer)[0], None)


@each_rule
@pytest.mark.parametrize("flat", [True, False], ids=["flat inputs", "inputs as the kernel has them"])
def test_a_kernel_of_any_rank_is_a_matrix_of_inputs_and_outputs(rule, flat):
    rng = np.random.default_rng(3)
    kernel, pre, post = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(6, 2, 3, 4)), rng.normal(size=(6, 5))
    want = stated_change(rule, (kernel.reshape(24, 5), pre.reshape(6, 24), post)).reshape(kernel.shape)
    params = {"w": jnp.asarray(kernel, jnp.float32)}
    single = [jnp.asarray(array, jnp.float32) for array in (pre.reshape(6, 24) if flat else pre, post)]
    np.testing.assert_allclose(changes(rule(RATE), params, {"w": ojax.Activity(*single)})["w"], want, atol=1e-6)
    # Channels first, as PyTorch has them: the same kernel with its last axis in front.
    first = {"w": jnp.moveaxis(params["w"], -1, 0)}
    got = changes(rule(RATE, out_axis=0), first, {"w": ojax.Activity(*single)})["w"]
    np.testing.assert_allclose(got, np.moveaxis(want, -1, 0), atol=1e-6)


@each_rule
def test_weights_with_the_outputs_first(rule, layer):
    """Equinox's and PyTorch's (n_out, n_in), square ones too."""
    kernel, pre, post = layer
    for size in (N_OUT, N_IN):
        part = (kernel[:size], pre[:, :size], post)
        params = {"w": jnp.asarray(part[0].T, jnp.float32)}
        activity = {"w": ojax.Activity(*(jnp.asarray(array, jnp.float32) for array in part[1:]))}
        got = changes(rule(RATE, out_axis=0), params, activity)["w"]
        np.testing.assert_allclose(got, stated_change(rule, part).T, atol=1e-6)
    with pytest.raises(ValueError, match=r"a kernel .n_out, n_in. needs"):
        changes(rule(RATE, out_axis=0), {"w": jnp.ones((N_IN, N_OUT))}, activity)


def test_missing_params_are_named(layer):
    params, activity = trees(layer)
    tx = ojax.oja(RATE)
    with pytest.raises(ValueError, match="needs the params"):
        tx.update(params, tx.init(params), activity=activity)


@pytest.mark.parametrize("rate", [-1e-3, float("nan"), float("inf")])
def test_a_wrong_rate_is_refused_when_the_rule_is_made(rate):
    for rule in (ojax.oja, ojax.oja_per_neuron, ojax.sanger):
        with pytest.raises(ValueError, match=rule.__name__):
            rule(rate)


def test_hebb_may_be_anti_hebbian(layer):
    params, activity = trees(layer)
    got = changes(ojax.hebb(-RATE), params, activity)["a"]["kernel"]
    np.testing.assert_allclose(got, -stated_change(ojax.hebb, layer), atol=1e-6)


def test_rules_on_a_linear_layer_find_the_principal_components():
    """Oja: an orthonormal basis of the principal subspace. Sanger: the components. Per neuron: the first, each."""
    rng = np.random.default_rng(1)
    basis, _ = np.linalg.qr(rng.normal(size=(8, 8)))
    data = (rng.normal(size=(20_000, 8)) * [3.0, 2.0, 1.5, 0.3, 0.2, 0.2, 0.1, 0.1]) @ basis.T

    def learn(rule):
        tx = rule(lambda count: 0.005 / (1 + count / 3000))

        def step(carry, x):
            params, state = carry
            activity = {"w": ojax.Activity(x, x @ params["w"])}
            updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params, activity=activity)
            return (optax.apply_updates(params, updates), state), None

        params = {"w": jnp.asarray(rng.normal(size=(8, 3)) * 0.3, jnp.float32)}
        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), jnp.asarray(data, jnp.float32))
        return np.asarray(params["w"], np.float64)

    eigenvectors = np.linalg.eigh(data.T @ data)[1][:, ::-1][:, :3]

    subspace = learn(ojax.oja)
    np.testing.assert_allclose(subspace.T @ subspace, np.eye(3), atol=0.05)
    cosines = np.linalg.svd(eigenvectors.T @ np.linalg.qr(subspace)[0], compute_uv=False)
    assert cosines.min() > 0.995

    components = learn(ojax.sanger)
    np.testing.assert_allclose(np.abs(eigenvectors.T @ components), np.eye(3), atol=0.1)

    first = learn(ojax.oja_per_neuron)
    np.testing.assert_allclose(np.abs(eigenvectors[:, 0] @ first), 1, atol=0.05)
