"""Features of every rule: errors, signals, states, stacks of kernels, and refused arguments."""

import inspect
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import ojax
from ojax import plasticity
from tests.ojax.patches_test import by_loops
from tests.ojax.plasticity.rules_test import RATE, bcm_statement, changes, oja_statement

pytestmark = pytest.mark.compiled_quickly

RNG = np.random.default_rng(0)
N_IN, N_OUT, BATCH = 7, 4, 5
KERNEL, PRE, POST, PRE_ERROR, POST_ERROR = (
    RNG.normal(size=size) for size in ((N_IN, N_OUT), (BATCH, N_IN), (BATCH, N_OUT), (BATCH, N_IN), (BATCH, N_OUT))
)
PARAMS = {"w": jnp.asarray(KERNEL, jnp.float32)}


def activity_of(*sides):
    return {"w": ojax.Activity(*(jnp.asarray(side, jnp.float32) for side in sides))}


def rewarded(layer):
    return plasticity.Outer(layer.pre, layer.signals["reward"][:, None] * layer.post)


# Errors and signals.


def test_a_change_reads_errors_and_signals_and_may_be_a_sum():
    def change(layer):
        by_reward = jnp.reshape(layer.signals["reward"], (-1, 1)) * layer.post
        return [plasticity.Outer(layer.pre, by_reward), plasticity.Outer(layer.pre_error, layer.post_error), -layer.kernel]

    tx, reward = plasticity.rule(change, RATE, signals=["reward"]), RNG.normal(size=BATCH)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    activity = activity_of(PRE, POST, PRE_ERROR, POST_ERROR)
    updates, _ = jax.jit(lambda r: tx.update(zeros, tx.init(PARAMS), PARAMS, activity=activity, reward=r))(reward)
    want = PRE.T @ (reward[:, None] * POST) / BATCH + PRE_ERROR.T @ POST_ERROR / BATCH - KERNEL
    np.testing.assert_allclose(updates["w"], RATE * want, atol=1e-6)


def test_a_missing_error_or_signal_and_an_unknown_keyword_are_one_line():
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)

    def update(tx, **given):
        return tx.update(zeros, tx.init(PARAMS), PARAMS, activity=activity_of(PRE, POST), **given)

    reads_error = plasticity.rule(lambda layer: plasticity.Outer(layer.pre, layer.post_error), RATE, name="mine")
    third = plasticity.rule(rewarded, RATE, signals=["reward"])
    undeclared = plasticity.rule(rewarded, RATE)
    for match, tx, given in (
        (r"^mine: activity\['w'\] has no post_error, which this rule reads: give ojax.Activity", reads_error, {}),
        (r"^rewarded needs the signal 'reward': call tx.update\(.*reward=\.\.\.\)", third, {}),
        (r"^ojax.oja knows no keyword 'reward' of tx.update.*signals=\['reward'\]", ojax.oja(RATE), {"reward": 0.7}),
        (r"^rewarded knows no keyword 'rewrad'", third, {"reward": jnp.ones(BATCH), "rewrad": 1.0}),
        (r"reads the signal 'reward' without declaring it", undeclared, {}),
    ):
        with pytest.raises(ValueError, match=match) as caught:
            update(tx, **given)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="a signal cannot be called activity"):
        plasticity.rule(rewarded, RATE, signals=["activity"])


def test_rules_work_in_a_chain_with_other_signals_and_with_values_that_optax_reads():
    plateau = optax.contrib.reduce_on_plateau(patience=1)
    third = ojax.reward_hebb(RATE)
    tx = optax.chain(optax.sgd(0.1), plateau, ojax.oja(RATE, signals=["reward"]), third)
    grads, reward = jax.tree.map(jnp.ones_like, PARAMS), RNG.normal(size=BATCH)
    updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS, activity=activity_of(PRE, POST), reward=reward, value=1.0)
    oja = np.mean([oja_statement(KERNEL.T, x, y).T for x, y in zip(PRE, POST, strict=True)], axis=0)
    want = -0.1 + RATE * (oja + np.mean([r * np.outer(x, y) for r, x, y in zip(reward, PRE, POST, strict=True)], axis=0))
    np.testing.assert_allclose(updates["w"], want, atol=1e-6)


# States.


def test_the_librarys_bcm_and_its_state_has_the_structure_of_the_parameters():
    params = {"a": PARAMS, "bias": jnp.zeros(3)}
    tx = optax.chain(optax.sgd(0.0), ojax.bcm(RATE))
    state = tx.init(params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    want, threshold = KERNEL.T, np.zeros(N_OUT)
    learned = params
    for x, y in zip(PRE, POST, strict=True):
        change, threshold = bcm_statement(want, x, y, threshold)
        want = want + RATE * change
        updates, state = tx.update(zeros, state, learned, activity={"a": activity_of(x, y)})
        learned = optax.apply_updates(learned, updates)
    np.testing.assert_allclose(learned["a"]["w"], want.T, atol=1e-6)
    local = state[1].local
    assert jax.tree.structure(local) == jax.tree.structure(params)
    np.testing.assert_allclose(local["a"]["w"], threshold, atol=1e-6)
    # As in Optax's own example: a spec per parameter, and None for a state that belongs to no parameter.
    specs = {"a": {"w": "by row"}, "bias": "everywhere"}
    named = optax.tree.map_params(tx, lambda _, spec: spec, state, specs, transform_non_params=lambda _: None)
    assert named[1].local == specs
    shapes = optax.tree.map_params(tx, lambda leaf, param: (leaf.shape, param.shape), state, params)[1].local
    assert shapes["a"]["w"] == ((N_OUT,), (N_IN, N_OUT))


def test_a_state_of_several_arrays_is_several_trees_of_parameters():
    def change(layer, state):
        trace = 0.5 * state["trace"] + layer.pre.T @ layer.post
        return trace, {"trace": trace, "count": state["count"] + 1}

    def init(kernel):
        return {"trace": jnp.zeros_like(kernel), "count": jnp.int32(0)}

    tx = plasticity.rule(change, lambda count: RATE, init=init, mask={"w": True, "off": False})
    params = PARAMS | {"off": jnp.ones((2, 2))}
    state, zeros = tx.init(params), jax.tree.map(jnp.zeros_like, params)

    def step(carry, _):
        updates, state = tx.update(zeros, carry, params, activity=activity_of(PRE, POST))
        return state, updates["w"]

    state, updates = jax.lax.scan(step, state, length=2)
    np.testing.assert_allclose(updates[1], RATE * 1.5 * PRE.T @ POST, rtol=1e-4)
    local = state.inner_state.local
    assert local["count"] == {"w": 2, "off": optax.MaskedNode()} and local["trace"]["w"].shape == (N_IN, N_OUT)
    wrong = plasticity.rule(lambda layer, state: (layer.kernel, None), RATE, init=init)
    with pytest.raises(ValueError, match="the new state of w must have the structure of what init returns"):
        changes(wrong, PARAMS, activity_of(PRE, POST))


def test_the_state_may_be_donated():
    tx = plasticity.rule(
        lambda layer, state: (layer.kernel, state), RATE, init=lambda kernel: (jnp.zeros(kernel.shape[1]), jnp.int32(0))
    )
    params = PARAMS | {"bias": jnp.zeros(N_OUT)}
    update = jax.jit(lambda state: tx.update(params, state, params, activity=activity_of(PRE, POST))[1], donate_argnums=0)
    local = update(tx.init(params)).local
    assert [leaf.shape for leaf in jax.tree.leaves(local)] == [(), (N_OUT,), (), ()]


def test_each_group_of_a_kernel_keeps_a_separate_state():
    window, groups, n_out = (3, 2), 2, 6
    image, kernel = RNG.normal(size=(6, 7, 4)), RNG.normal(size=(*window, 2, n_out))
    seen = ojax.Patches.of(jnp.asarray(image, jnp.float32), window, padding="VALID")
    patches = by_loops(image, [(0, 0), (0, 0)], (1, 1), (1, 1), window)
    post = RNG.normal(size=(*patches.shape[:2], n_out))
    params, activity = {"w": jnp.asarray(kernel, jnp.float32)}, {"w": ojax.Activity(seen, jnp.asarray(post, jnp.float32))}
    tx = ojax.bcm(RATE)
    updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params, activity=activity)
    threshold = 0.1 * np.mean(post**2, axis=(0, 1))
    np.testing.assert_allclose(state.local["w"], threshold, rtol=1e-5)
    for group in range(groups):
        outs, ins = slice(3 * group, 3 * group + 3), slice(2 * group, 2 * group + 2)
        rows, y = patches[..., ins].reshape(-1, 12), post[..., outs].reshape(-1, 3)
        want = RATE * rows.T @ (y * (y - threshold[outs])) / len(rows)
        np.testing.assert_allclose(updates["w"][..., outs].reshape(12, 3), want, atol=1e-6)


# Stacks of kernels, several output axes, and other axes.


def stacked(tx, kernel, pre, post):
    return changes(tx, {"w": jnp.asarray(kernel, jnp.float32)}, activity_of(pre, post))["w"]


def test_stacked_kernels_are_kernels_of_their_own():
    """A scan over layers, or an ensemble in one optimizer, with an axis in front, in the middle, and unnamed."""
    kernels, pre, post = RNG.normal(size=(3, 6, 4)), RNG.normal(size=(3, 5, 6)), RNG.normal(size=(3, 5, 4))
    parts = zip(kernels, pre, post, strict=True)
    want = RATE * np.stack(
        [np.mean([oja_statement(W.T, x, y).T for x, y in zip(*sides, strict=True)], axis=0) for W, *sides in parts]
    )
    np.testing.assert_allclose(stacked(ojax.oja(RATE, batch_axis=0), kernels, pre, post), want, atol=1e-6)
    np.testing.assert_allclose(stacked(ojax.oja(RATE), kernels, pre, post), want, atol=1e-6)
    middle = stacked(ojax.oja(RATE, batch_axis=1), np.moveaxis(kernels, 0, 1), pre, post)
    np.testing.assert_allclose(middle, np.moveaxis(want, 0, 1), atol=1e-6)
    one = stacked(ojax.oja(RATE, batch_axis=0), kernels, pre[:, 0], post[:, 0])
    np.testing.assert_allclose(one[1], RATE * oja_statement(kernels[1].T, pre[1, 0], post[1, 0]).T, atol=1e-6)
    bcm = ojax.bcm(RATE, batch_axis=0)
    params = {"w": jnp.asarray(kernels, jnp.float32)}
    _, state = bcm.update(params, bcm.init(params), params, activity=activity_of(pre, post))
    np.testing.assert_allclose(state.local["w"], 0.1 * np.mean(post**2, axis=1), rtol=1e-5)
    with pytest.raises(ValueError, match=r"does not fit the parameter of shape \(3, 6, 4\), whose .*batch_axis \(\)"):
        changes(ojax.bcm(RATE), params, activity_of(pre, post))
    with pytest.raises(ValueError, match=r"the parameter of shape \(7, 4\), whose .*batch_axis \(0,\)"):
        changes(ojax.oja(RATE, batch_axis=0), PARAMS, activity_of(PRE, POST))


def test_several_output_axes_as_of_attentions_heads():
    kernel, pre, post = RNG.normal(size=(6, 2, 5)), RNG.normal(size=(3, 4, 6)), RNG.normal(size=(3, 4, 2, 5))
    flat = pre.reshape(12, 6), post.reshape(12, 10)
    want = RATE * np.mean([oja_statement(kernel.reshape(6, 10).T, x, y).T for x, y in zip(*flat, strict=True)], axis=0)
    for tx in (ojax.oja(RATE), ojax.oja(RATE, out_axis=(-2, -1))):
        np.testing.assert_allclose(stacked(tx, kernel, pre, post), want.reshape(6, 2, 5), atol=1e-6)


def test_a_convolution_with_its_channels_first():
    """Equinox's and PyTorch's (n_out, n_in, *window), against the same kernel of Flax."""
    window, image = (3, 2), jnp.asarray(RNG.normal(size=(6, 7, 4)), jnp.float32)
    kernel, seen = jnp.asarray(RNG.normal(size=(*window, 4, 5)), jnp.float32), ojax.Patches.of(image, window)
    activity = {"w": ojax.Activity(seen, jnp.asarray(RNG.normal(size=(6, 7, 5)), jnp.float32))}
    for rule in (ojax.oja, ojax.oja_tied, ojax.homeostasis):
        want = changes(rule(RATE), {"w": kernel}, activity)["w"]
        got = changes(rule(RATE, in_axis=1, out_axis=0), {"w": jnp.transpose(kernel, (3, 2, 0, 1))}, activity)["w"]
        np.testing.assert_allclose(jnp.transpose(got, (2, 3, 1, 0)), want, atol=1e-6)


# Combinations with a rule.


def test_updates_and_parameters_of_different_structure():
    """An Equinox module's activation function is a leaf of the parameters, and None in the gradient."""
    params = {"w": PARAMS["w"], "f": jax.nn.relu, "frozen": jnp.ones((2, 2)), "size": 3}
    grads = {"w": jnp.zeros((N_IN, N_OUT)), "f": None, "frozen": None, "size": None}
    activity = activity_of(PRE, POST) | {"frozen": ojax.Activity(jnp.ones(2), jnp.ones(2))}
    want = changes(ojax.oja(RATE), PARAMS, activity_of(PRE, POST))["w"]
    for tx in (ojax.oja_sgd(0.1, RATE), ojax.oja(RATE), optax.chain(ojax.bcm(0.0), ojax.oja(RATE))):
        updates, _ = tx.update(grads, tx.init(grads), params, activity=activity)
        np.testing.assert_array_equal(updates["w"], want)
        assert updates["f"] is None and updates["frozen"] is None


def test_a_rule_that_reaches_nothing_is_refused():
    both = {"a": {"w": PARAMS["w"], "bias": jnp.zeros(3)}, "b": PARAMS}
    activity = {"a": activity_of(PRE, POST)}
    by_name = jax.tree.map_with_path(lambda keys, _: "rule" if keys[-1].key == "bias" else "sgd", both)
    nothing = jax.tree.map(lambda _: False, both)
    for tx in (
        ojax.oja(RATE, mask={"a": False, "b": True}),
        optax.masked(ojax.oja(RATE), nothing),
        optax.partition({"rule": ojax.oja(RATE), "sgd": optax.sgd(0.1)}, by_name),
        optax.chain(optax.sgd(0.1), ojax.bcm(RATE, mask={"a": False, "b": True})),
    ):
        with pytest.raises(ValueError, match=r"would change nothing: its mask or partition leaves it .*a/w") as caught:
            changes(tx, both, activity)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="reaches no parameter: there is no update at the path"):
        ojax.oja(RATE).update({"w": None}, ojax.oja(RATE).init(PARAMS), PARAMS, activity=activity_of(PRE, POST))


def test_complex_weights_and_activity_are_refused():
    for param, x, y in ((KERNEL + 0j, PRE, POST), (KERNEL, PRE + 1j, POST), (KERNEL, PRE, 1j * POST)):
        activity = {"w": ojax.Activity(jnp.asarray(x), jnp.asarray(y))}
        with pytest.raises(ValueError, match=r"ojax\.oja: w or its activity is complex64, and rules are for real numbers"):
            changes(ojax.oja(RATE), {"w": jnp.asarray(param)}, activity)


def test_spikes_are_numbers():
    want = changes(ojax.oja(RATE), PARAMS, activity_of(PRE > 0, POST > 0))["w"]
    spikes = {"w": ojax.Activity(jnp.asarray(PRE > 0), jnp.asarray(POST > 0))}
    np.testing.assert_array_equal(changes(ojax.oja(RATE), PARAMS, spikes)["w"], want)


ALL = (ojax.oja, ojax.oja_tied, ojax.oja_per_neuron, ojax.sanger, ojax.hebb, ojax.bcm, ojax.homeostasis)


def test_no_rule_promotes_ranks_or_types():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        for rule in (
            *ALL,
            lambda rate: ojax.homeostasis(rate, per="neuron"),
            lambda rate: plasticity.pool(plasticity.POOL, dict.fromkeys(plasticity.POOL, rate)),
        ):
            for tx in (
                rule(RATE),
                optax.chain(optax.sgd(0.1), rule(ojax.fading(RATE, 10.0))) if rule in ALL else rule(RATE),
            ):
                for sides in ((PRE[0], POST[0], PRE_ERROR[0], POST_ERROR[0]), (PRE, POST, PRE_ERROR, POST_ERROR)):
                    assert np.isfinite(changes(tx, PARAMS, activity_of(*sides))["w"]).all()
        seen = ojax.Patches.of(jnp.ones((6, 6, 2)), (3, 3))
        for rule in ALL:
            params, activity = {"w": jnp.ones((3, 3, 2, 4))}, {"w": ojax.Activity(seen, jnp.ones((6, 6, 4)))}
            assert np.isfinite(changes(rule(RATE), params, activity)["w"]).all()
        tx = ojax.reward_hebb(RATE)
        tx.update(PARAMS, tx.init(PARAMS), PARAMS, activity=activity_of(PRE, POST), reward=1.0)


@pytest.mark.parametrize(
    "schedule",
    [
        lambda count: 1e-3 if count < 100 else 1e-4,
        lambda count: (1e-3, 1e-4)[int(count) // 100],
        lambda count: np.interp(count, [0, 100], [1e-3, 0]),
        lambda count: float(count) * 1e-3,
    ],
    ids=["if", "index", "NumPy", "float"],
)
def test_schedules_that_cannot_be_traced_work_without_jit(schedule):
    tx = ojax.oja_sgd(schedule, schedule)
    assert not isinstance(tx, plasticity.OjaSGD)
    want = changes(optax.chain(optax.sgd(schedule), ojax.oja(schedule)), PARAMS, activity_of(PRE, POST))
    np.testing.assert_array_equal(changes(tx, PARAMS, activity_of(PRE, POST))["w"], want["w"])
    assert isinstance(ojax.oja_sgd(1e-2, lambda count: 1e-3 * 0.5**count), plasticity.OjaSGD)


@pytest.mark.parametrize("half_life", [0, -1.0, np.float64(0), float("nan")])
def test_a_half_life_that_is_not_above_0_is_refused(half_life):
    with pytest.raises(ValueError, match=f"half_life must be above 0, got {half_life}"):
        ojax.fading(1e-3, half_life)
    assert (
        ojax.fading(1e-3, np.inf)(100)
        == jax.jit(lambda half_life: ojax.fading(1e-3, half_life)(0))(5.0)
        == np.float32(1e-3)
    )


def test_updates_that_are_not_finite_are_refused_after_the_rule():
    """`apply_if_finite` around a rule checks only the gradients that go in."""
    tx = optax.chain(ojax.oja_sgd(0.0, 0.05), optax.apply_if_finite(optax.identity(), max_consecutive_errors=50))
    params = {"w": jnp.full((6, 4), 0.5)}
    state, zeros = tx.init(params), jax.tree.map(jnp.zeros_like, params)
    for x in 30 * jax.random.normal(jax.random.key(0), (20, 6)):
        updates, state = tx.update(zeros, state, params, activity={"w": ojax.Activity(x, x @ params["w"])})
        params = optax.apply_updates(params, updates)
    assert np.isfinite(params["w"]).all() and state[-1].total_notfinite > 0


def test_a_batch_that_is_sharded_is_averaged_over_the_devices():
    """With JAX's check of replication no name is needed; without it the axes are named."""
    script = textwrap.dedent("""
        import jax
        jax.config.update("jax_num_cpu_devices", 2)
        import numpy as np
        from tests.ojax.plasticity import system_test
        system_test.check_sharded()
    """)
    subprocess.run([sys.executable, "-c", script], check=True)


def check_sharded():
    """For a process with two devices."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    x, y = (jnp.asarray(side, jnp.float32) for side in (RNG.normal(size=(8, N_IN)), RNG.normal(size=(8, N_OUT))))

    def step(make, w, x, y):
        grads, params, activity = {"w": jnp.zeros_like(w)}, {"w": w}, {"w": ojax.Activity(x, y)}
        (by_oja, _), (by_bcm, bcm) = (tx.update(grads, tx.init(params), params, activity=activity) for tx in make())
        return by_oja, bcm.local, by_bcm

    for options, check_vma in (({}, True), ({"axis_name": "data"}, False), ({"axis_name": ["data"]}, True)):
        make = lambda: (ojax.oja_sgd(0.0, RATE, **options), ojax.bcm(RATE, **options))  # noqa: B023, E731
        sharded = jax.shard_map(
            lambda w, x, y: step(make, w, x, y),  # noqa: B023
            mesh=mesh,
            in_specs=(P(), P("data"), P("data")),
            out_specs=P(),
            check_vma=check_vma,
        )
        found = jax.jit(sharded)(PARAMS["w"], x, y)
        want = step(lambda: (ojax.oja_sgd(0.0, RATE), ojax.bcm(RATE)), PARAMS["w"], x, y)
        # Every device uses a threshold of its own samples in BCM's change; the new threshold is exact.
        for got in jax.tree.leaves(found):
            shards = [np.asarray(shard.data) for shard in got.addressable_shards]
            np.testing.assert_array_equal(shards[0], shards[1])
        for got, whole in zip(jax.tree.leaves(found[:2]), jax.tree.leaves(want[:2]), strict=True):
            np.testing.assert_allclose(got, whole, atol=1e-6)


# Gain homeostasis.


def homeostasis_statement(W, x, y, per):
    """Returns the change for W with one row per neuron, and x and y of one sample; y's last axis is its channels."""
    squares = np.sum(y.reshape(-1, y.shape[-1]) ** 2, axis=0)
    pre, post = np.sum(x**2), squares
    if per == "layer":
        return W * (pre - post.sum()) / (pre + post.sum()) if pre + post.sum() > 0 else 0 * W
    pre = pre / len(squares)
    return W * np.array([(pre - one) / (pre + one) if pre + one > 0 else 0.0 for one in post])[:, None]


@pytest.mark.parametrize("per", ["layer", "neuron"])
def test_gain_homeostasis_equals_its_statement(per):
    pre, post = np.concatenate([PRE, np.zeros((1, N_IN))]), np.concatenate([POST, np.zeros((1, N_OUT))])
    post[0], post[1, 2] = 0, 0
    want = np.mean([homeostasis_statement(KERNEL.T, x, y, per).T for x, y in zip(pre, post, strict=True)], axis=0)
    got = changes(ojax.homeostasis(RATE, per=per), PARAMS, activity_of(pre, post))["w"]
    np.testing.assert_allclose(got, RATE * want, atol=1e-6)
    nothing = changes(ojax.homeostasis(RATE, per=per), PARAMS, activity_of(np.zeros(N_IN), np.zeros(N_OUT)))["w"]
    np.testing.assert_array_equal(nothing, 0)


@pytest.mark.parametrize("per", ["layer", "neuron"])
@pytest.mark.parametrize("groups", [1, 2])
def test_gain_homeostasis_of_a_convolution_has_the_norms_of_whole_images(per, groups):
    window, images = (3, 2), RNG.normal(size=(2, 6, 7, 4))
    kernel, post = RNG.normal(size=(*window, 4 // groups, 6)), RNG.normal(size=(2, 6, 7, 6))
    seen = ojax.Patches.of(jnp.asarray(images, jnp.float32), window)
    activity = {"w": ojax.Activity(seen, jnp.asarray(post, jnp.float32))}
    got = changes(ojax.homeostasis(RATE, per=per), {"w": jnp.asarray(kernel, jnp.float32)}, activity)["w"]
    for group in range(groups):
        outs, ins = np.split(np.arange(6), groups)[group], np.split(np.arange(4), groups)[group]
        W = kernel[..., outs].reshape(-1, len(outs)).T
        by_image = [homeostasis_statement(W, x[..., ins], y[..., outs], per).T for x, y in zip(images, post, strict=True)]
        np.testing.assert_allclose(got[..., outs].reshape(W.T.shape), RATE * np.mean(by_image, axis=0), atol=1e-6)


def test_gain_homeostasis_brings_the_gain_to_one():
    w, tx = {"w": 3 * PARAMS["w"]}, ojax.homeostasis(0.05)
    for x in jax.random.normal(jax.random.key(0), (400, N_IN)):
        updates = changes(tx, w, {"w": ojax.Activity(x, x @ w["w"])})
        w = optax.apply_updates(w, updates)
    gain = float(jnp.sum(w["w"] ** 2)) / N_IN  # The mean of |y|^2 over that of |x|^2, for white inputs.
    assert 0.7 < gain < 1.5
    with pytest.raises(ValueError, match="per must be 'layer' or 'neuron', got 'unit'"):
        ojax.homeostasis(0.1, per="unit")


def test_sanger_over_a_batch_scans_over_no_samples():
    program = jax.make_jaxpr(lambda x, y: changes(ojax.sanger(RATE), PARAMS, {"w": ojax.Activity(x, y)}))
    assert "scan" not in str(program(jnp.ones((64, N_IN)), jnp.ones((64, N_OUT))))
    assert "scan" in str(jax.make_jaxpr(lambda x: jax.lax.scan(lambda c, x: (c + x, x), 0.0, x))(jnp.ones(3)))


# The options of every rule.

RULES = (
    ojax.oja,
    ojax.oja_sgd,
    ojax.oja_tied,
    ojax.oja_per_neuron,
    ojax.sanger,
    ojax.hebb,
    ojax.reward_hebb,
    ojax.bcm,
    ojax.homeostasis,
    plasticity.pool,
)


@pytest.mark.parametrize("make", RULES)
def test_every_rule_shows_and_takes_the_options_and_names_them_where_one_is_unknown(make):
    options = {
        name for name, each in inspect.signature(plasticity.rule).parameters.items() if each.default is not each.empty
    }
    options -= {"init", "name"}
    given = inspect.signature(make).parameters
    assert options <= set(given) and "options" not in given
    required = {name: {} if make is plasticity.pool else 0.1 for name, each in given.items() if each.default is each.empty}
    tx = make(**required, **{name: given[name].default for name in options})
    assert isinstance(tx, optax.GradientTransformationExtraArgs)
    with pytest.raises(
        TypeError, match=rf"^{make.__name__} has no argument 'layout'; it has .*out_axis.* is now out_axis=0\.$"
    ):
        make(**required, layout="out_in")


def test_a_static_option_under_inject_hyperparams():
    tx = optax.inject_hyperparams(ojax.oja)(RATE, out_axis=0)
    with pytest.raises(ValueError, match=r"with optax.inject_hyperparams, static_args=\[\"out_axis\"\]"):
        tx.init(PARAMS)
    assert optax.inject_hyperparams(ojax.oja, static_args="out_axis")(RATE, out_axis=0).init(PARAMS)


@pytest.mark.parametrize("rate", ["0.1", None, {"w": 0.1}])
def test_a_rate_that_is_no_number(rate):
    with pytest.raises(ValueError, match=r"^ojax.oja: the rate must be a number or a schedule, got"):
        ojax.oja(rate)


def test_two_parameters_of_one_path():
    params = {"a/w": PARAMS["w"], "a": {"w": PARAMS["w"]}}
    with pytest.raises(ValueError, match=r"^ojax.oja: two parameters have the path 'a/w'; rename one"):
        changes(ojax.oja(RATE), params, {"a": activity_of(PRE, POST)})


def test_a_change_with_a_state_has_an_init():
    with pytest.raises(
        TypeError, match=r"mean: change is called with a layer, as there is no init, but it is change\(layer, m\)"
    ):
        plasticity.rule(lambda layer, m: (m, m), 0.1, name="mean")
    with pytest.raises(TypeError, match="called with a layer and a state, as there is an init"):
        plasticity.rule(lambda layer: layer.kernel, 0.1, init=jnp.zeros_like)
    for change in (lambda *arguments: None, lambda layer, scale=2.0: layer.kernel, np.vectorize(float)):
        plasticity.rule(change, 0.1)
