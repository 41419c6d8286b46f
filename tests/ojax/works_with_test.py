"""The constructs of Optax, Flax, Equinox and JAX with which ojax was tried; `docs/how/works_with.md` lists these tests.

`python -m tests.ojax.works_with_test` writes the list again.
"""

import contextlib
import copy
import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from flax.traverse_util import flatten_dict
from jax import lax

import ojax
from ojax.trees import named_leaves
from tests.ojax.online import x64_test

PAGE = Path(__file__).parents[2] / "docs" / "how" / "works_with.md"
RATE = 0.1
OUT_IN = {"out_axis": 0}  # The weights of Equinox.

pytestmark = pytest.mark.compiled_quickly


class Case(NamedTuple):
    library: str
    construct: str
    outcome: str
    test: Callable[[], None]


CASES: list[Case] = []


def tried(library, construct, outcome):
    def register(test):
        CASES.append(Case(library, construct, outcome, test))
        return test

    return register


def oja_change(kernel, pre, post):
    """Returns Oja's change in float64, averaged over the batch; the kernel is (n_in, n_out)."""
    kernel, pre, post = (np.asarray(array, np.float64) for array in (kernel, pre, post))
    pre, post = pre.reshape(-1, kernel.shape[0]), post.reshape(-1, kernel.shape[1])
    return RATE * np.mean([np.outer(x - kernel @ y, y) for x, y in zip(pre, post, strict=True)], axis=0)


def changes(tx, params, activity, **given):
    """Returns a transformation's changes of zero updates, by path."""
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(lambda p, a: tx.update(zeros, tx.init(p), p, activity=a, **given))(params, activity)
    return {path: np.asarray(leaf) for path, leaf in named_leaves(updates)}


def assert_close(found, wanted, rtol=1e-4):
    np.testing.assert_allclose(found, wanted, rtol=rtol, atol=1e-6)


# Flax NNX: how a layer may be called.


class Net(nnx.Module):
    """A network whose first layer is called in the test's way; running statistics and dropout change during training."""

    def __init__(self, how):
        rngs = nnx.Rngs(0)
        self.first, self.second = nnx.Linear(6, 5, rngs=rngs), nnx.Linear(5, 3, rngs=rngs)
        self.statistics, self.dropout = nnx.BatchNorm(5, rngs=rngs), nnx.Dropout(0.2, rngs=rngs)
        self.how = how

    def __call__(self, x):
        def block(layer, x):
            hidden = nnx.relu(layer(x))
            ojax.record(layer, x, hidden)
            return hidden

        hidden = self.dropout(self.statistics(self.how(block)(self.first, x)))
        y = self.second(hidden)
        ojax.record(self.second, hidden, y)
        return y


def on_copy(make):
    return lambda block: lambda layer, x: block(make(layer), x)


HOWS = {
    "as it is": lambda block: block,
    "`jax.jit`": jax.jit,
    "`jax.checkpoint`": jax.checkpoint,
    "`jax.vmap`": lambda block: jax.vmap(block, in_axes=(None, 0)),
    "`jax.vmap` of `jax.jit`": lambda block: jax.vmap(jax.jit(block), in_axes=(None, 0)),
    "`jax.checkpoint` of a function that closes over the layer": lambda block: (
        lambda layer, x: jax.checkpoint(lambda x: block(layer, x))(x)
    ),
    "`lax.scan`, over samples": lambda block: lambda layer, x: lax.scan(lambda _, x: (None, block(layer, x)), None, x)[1],
    "`lax.map`": lambda block: lambda layer, x: lax.map(lambda x: block(layer, x), x),
    "`nnx.jit`": nnx.jit,
    "`nnx.remat`": nnx.remat,
    "`nnx.vmap`": lambda block: nnx.vmap(block, in_axes=(None, 0)),
    "`nnx.scan`, over samples": lambda block: nnx.scan(block, in_axes=(None, 0), out_axes=0),
    "`nnx.clone`": on_copy(nnx.clone),
    "`copy.deepcopy`": on_copy(copy.deepcopy),
    "`nnx.split` and `nnx.merge`": on_copy(lambda layer: nnx.merge(*nnx.split(layer))),
    "`jax.tree.map` over a layer": on_copy(lambda layer: jax.tree.map(lambda leaf: 1 * leaf, layer)),
}


@functools.cache
def learned():
    """Returns activity, gradients and the model's state for all of these ways, from one program."""
    x = jax.random.normal(jax.random.key(0), (4, 6))

    def step(how):
        model = Net(how)
        (_, activity), grads = ojax.value_and_grad(lambda model: jnp.mean(model(x) ** 2))(model)
        sides = {path: activity[path]["kernel"][0] for path in ("first", "second")}
        return sides, nnx.as_pure(grads), nnx.as_pure(nnx.state(model))

    return jax.jit(lambda: {name: step(how) for name, how in HOWS.items()})()


def check_how(name):
    wanted, found = learned()["as it is"], learned()[name]
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        if jnp.issubdtype(one.dtype, jnp.floating):
            assert_close(one, other)
        else:
            assert (one == other).all()  # Counts of random numbers drawn.


for _name in list(HOWS)[1:]:
    _library = "Flax NNX" if "nnx" in _name or "over a layer" in _name or "copy" in _name else "JAX"
    tried(_library, _name, "records as outside of it")(functools.partial(check_how, _name))


@tried("JAX", "`jax.jit`, `jax.vmap` of a function that closes over the network", "records as outside of it")
def check_closures():
    x = jax.random.normal(jax.random.key(0), (4, 6))
    for how in (jax.jit, lambda block: block):
        model = Net(how)
        model.eval()
        wanted = ojax.with_activity(model, x)
        for transform in (jax.jit, jax.vmap):
            jax.tree.map(assert_close, transform(lambda x, model=model: ojax.with_activity(model, x))(x), wanted)
    jax.tree.map(assert_close, ojax.with_activity(model.__call__, x), wanted)


def in_shard_map(block):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    return lambda layer, x: jax.shard_map(lambda x: block(layer, x), mesh=mesh, in_specs=jax.P(), out_specs=jax.P())(x)


REFUSED = (
    in_shard_map,
    lambda block: lambda layer, x: lax.cond(x.sum() > 0, block, lambda layer, x: x[:, :5], layer, x),
    lambda block: lambda layer, x: nnx.cond(x.sum() > 0, block, lambda layer, x: x[:, :5], layer, x),
    lambda block: lambda layer, x: lax.while_loop(lambda h: h.sum() < -9, lambda h: block(layer, h @ h.T @ x), x[:, :5]),
)


@tried("JAX", "`lax.cond`, `lax.while_loop`, `nnx.cond`, `jax.shard_map` inside of a model", "refused in one line")
def check_refused():
    for how in REFUSED:
        with pytest.raises(ValueError, match=r"^first/kernel recorded its activity inside of (shard_map|cond|while)"):
            ojax.with_activity(Net(how), jnp.ones((4, 6)))


def with_own_derivative(block):
    @nnx.custom_vjp
    def own(layer, x):
        return block(layer, x)

    own.defvjp(lambda layer, x: (block(layer, x), x), lambda x, errors: (errors[0][0], jnp.zeros_like(x)))
    return own


@tried(
    "JAX",
    "`jax.custom_vjp`, `nnx.custom_vjp`",
    "records as outside of it; inside of `jit` refused in one line",
)
def check_custom_derivative():
    x = jax.random.normal(jax.random.key(0), (4, 6))
    pre, post = learned()["as it is"][0]["first"]
    (_, activity), _ = ojax.value_and_grad(lambda model: jnp.mean(model(x) ** 2))(Net(with_own_derivative))
    jax.tree.map(assert_close, tuple(activity["first"]["kernel"][0]), (pre, post))
    with pytest.raises(ValueError, match=r"^first/kernel recorded its activity inside of custom_vjp"):
        jax.jit(lambda: ojax.with_activity(Net(with_own_derivative), x)[0])()


class Sequence(nnx.Module):
    def __init__(self, cell):
        self.rnn = nnx.RNN(cell)

    def __call__(self, x):
        return self.rnn(x)


class Recorded(nnx.SimpleCell):
    def __call__(self, carry, x):
        hidden, y = super().__call__(carry, x)
        ojax.record(self.dense_i, x, y)
        ojax.record(self.dense_h, carry, y)
        return hidden, y


@tried("Flax NNX", "`nnx.RNN`", "a rule averages over the steps")
def check_nnx_rnn():
    model, x = Sequence(Recorded(3, 4, rngs=nnx.Rngs(0))), jax.random.normal(jax.random.key(0), (2, 7, 3))
    hidden, activity = jax.jit(lambda x: ojax.with_activity(Sequence(Recorded(3, 4, rngs=nnx.Rngs(0))), x))(x)
    params = nnx.state(model, nnx.Param)
    found = changes(ojax.oja(RATE), params, activity)
    before = np.concatenate([np.zeros((2, 1, 4)), hidden[:, :-1]], axis=1)
    for name, pre in (("dense_i", x), ("dense_h", before)):
        kernel = getattr(model.rnn.cell, name).kernel[...]
        assert_close(found[f"rnn/cell/{name}/kernel"], oja_change(kernel, pre, hidden))


class Stack(nnx.Module):
    """Layers made by `nnx.vmap`, called sequentially by `nnx.scan` or in parallel by `nnx.vmap`."""

    def __init__(self, call, shape=(3,)):
        make = lambda key: nnx.Linear(4, 4, rngs=nnx.Rngs(key))  # noqa: E731
        for _ in shape:
            make = nnx.vmap(make)
        self.layers = make(jax.random.split(jax.random.key(0), shape))
        self.call = call

    def __call__(self, x):
        def block(x, layer):
            y = jnp.tanh(layer(x))
            ojax.record(layer, x, y)
            return y

        return self.call(block)(x, self.layers)


@tried("Flax NNX", "`nnx.scan` over layers, an ensemble by `nnx.vmap`", "each layer of the stack by itself")
def check_nnx_stacks():
    x = jax.random.normal(jax.random.key(0), (5, 4))
    scan = functools.partial(nnx.scan, in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    for call in (scan, functools.partial(nnx.vmap, in_axes=(None, 0))):
        model = Stack(call)
        _, activity = ojax.with_activity(model, x)
        ((pre, post),) = activity["layers"]["kernel"]
        found = changes(ojax.oja(RATE), nnx.state(model, nnx.Param), activity)["layers/kernel"]
        for layer, kernel in enumerate(model.layers.kernel[...]):
            assert_close(found[layer], oja_change(kernel, np.broadcast_to(pre, (3, 5, 4))[layer], post[layer]))


@tried("Flax NNX", "an ensemble by `nnx.vmap` of stacks of layers by `nnx.scan`", "each layer of each member by itself")
def check_nnx_stacks_of_stacks():
    x = jax.random.normal(jax.random.key(0), (5, 4))
    scan = functools.partial(nnx.scan, in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    # As many members as layers: the shapes fit in either order.
    model = Stack(lambda block: nnx.vmap(scan(block), in_axes=(None, 0)), (3, 3))
    _, activity = ojax.with_activity(model, x)
    found = changes(ojax.oja(RATE, batch_axis=(0, 1)), nnx.state(model, nnx.Param), activity)["layers/kernel"]
    for member, kernels in enumerate(model.layers.kernel[...]):
        hidden = x
        for layer, kernel in enumerate(kernels):
            pre, hidden = hidden, np.tanh(hidden @ kernel)
            assert_close(found[member, layer], oja_change(kernel, pre, hidden))


@tried("Flax NNX", "`nnx.Einsum`, `nnx.LinearGeneral`", "several output axes of a kernel are its outputs")
def check_nnx_general():
    x = jax.random.normal(jax.random.key(0), (5, 4))
    for layer in (nnx.Einsum("bi,ihd->bhd", (4, 2, 3), rngs=nnx.Rngs(0)), nnx.LinearGeneral(4, (2, 3), rngs=nnx.Rngs(0))):
        model = Single(layer)
        y, activity = ojax.with_activity(model, x)
        found = changes(ojax.oja(RATE), nnx.state(model, nnx.Param), activity)["layer/kernel"]
        kernel = layer.kernel[...].reshape(4, 6)
        assert_close(found.reshape(4, 6), oja_change(kernel, x, y.reshape(5, 6)))


class Tied(nnx.Module):
    def __init__(self):
        self.first, self.second = (nnx.Linear(4, 4, use_bias=False, rngs=nnx.Rngs(0)) for _ in range(2))
        self.second.kernel = self.first.kernel

    def __call__(self, x):
        for layer in (self.first, self.second):
            y = jnp.tanh(layer(x))
            ojax.record(layer, x, y)
            x = y
        return x


@tried("Flax NNX", "one variable in two layers", "the calls of both layers are one batch")
def check_tied():
    model, x = Tied(), jax.random.normal(jax.random.key(0), (3, 4))
    (_, activity), grads = ojax.value_and_grad(lambda model: jnp.mean(model(x) ** 2))(model)
    kernel = np.asarray(model.first.kernel[...])
    hidden = np.tanh(x @ kernel)
    nnx.Optimizer(model, optax.chain(optax.sgd(0.0), ojax.oja(RATE)), wrt=nnx.Param).update(model, grads, activity=activity)
    want = oja_change(kernel, np.concatenate([x, hidden]), np.concatenate([hidden, np.tanh(hidden @ kernel)]))
    assert_close(model.second.kernel[...] - kernel, want)


class Body(nnx.Module):
    """A frozen body and a head."""

    def __init__(self, body):
        self.body, self.head = body, nnx.Linear(5, 3, rngs=nnx.Rngs(1))

    def __call__(self, x):
        for layer in (self.body, self.head):
            y = nnx.tanh(layer(x))
            ojax.record(layer, x, y)
            x = y
        return x


HEAD = nnx.All(nnx.Param, nnx.PathContains("head"))


def check_part(how):
    rngs, x = nnx.Rngs(0), jax.random.normal(jax.random.key(0), (3, 6))
    lora = how == "LoRA"
    model = Body(nnx.LoRALinear(6, 5, lora_rank=2, rngs=rngs) if lora else nnx.Linear(6, 5, rngs=rngs))
    part = nnx.Any(nnx.LoRAParam, HEAD) if lora else HEAD
    argnums = 0 if how == "wrt" else nnx.DiffState(0, part)
    (_, activity), grads = ojax.value_and_grad(lambda model: jnp.mean(model(x) ** 2), argnums=argnums)(model)
    assert set(activity) == ({"body", "head"} if how == "wrt" else {"head"})
    before = jax.tree.map(jnp.copy, nnx.state(model))
    tx = optax.chain(optax.sgd(0.0), ojax.oja(RATE))
    nnx.Optimizer(model, tx, wrt=part).update(model, nnx.filter_state(grads, part), activity=activity)
    (sides,) = activity["head"]["kernel"]
    kernel = before["head"]["kernel"][...]
    assert_close(model.head.kernel[...] - kernel, oja_change(kernel, *sides))
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model)["body"], before["body"])


PARTLY = {
    "wrt": "`nnx.Optimizer(wrt=filter)`",
    "DiffState": "`nnx.DiffState`",
    "LoRA": "`nnx.LoRA`, a head learned in full",
}
for _how, _construct in PARTLY.items():
    tried("Flax NNX", _construct, "activity of frozen layers is left out")(functools.partial(check_part, _how))


@tried("Flax NNX", "a dict or a list of models; arrays in `argnums`", "as in `nnx.value_and_grad`")
def check_containers():
    models = {"one": [Body(nnx.Linear(6, 5, rngs=nnx.Rngs(0)))], "two": Body(nnx.Linear(6, 5, rngs=nnx.Rngs(1)))}
    x = jax.random.normal(jax.random.key(0), (3, 6))

    def loss_fn(models, x):
        return jnp.mean((models["one"][0](x) + models["two"](x)) ** 2)

    (loss, (activity, of_x)), grads = ojax.value_and_grad(loss_fn, argnums=(0, 1))(models, x)
    jax.tree.map(assert_close, (loss, grads), nnx.value_and_grad(loss_fn, argnums=(0, 1))(models, x))
    assert not of_x
    found = changes(ojax.oja(RATE), nnx.state(models, nnx.Param), activity)
    for path, head in (("one/0", models["one"][0].head), ("two", models["two"].head)):
        (sides,) = activity["two"]["head"]["kernel"] if path == "two" else activity["one"][0]["head"]["kernel"]
        assert_close(found[f"{path}/head/kernel"], oja_change(head.kernel[...], *sides))


def test_a_side_that_is_missing():
    model = Body(nnx.Linear(6, 5, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"^ojax.record\(layer, pre, post\) needs the layer's input and its output, or"):
        ojax.with_activity(lambda x: ojax.record(model.head, x), jnp.ones((3, 5)))


def test_several_models_and_auxiliary_output_nest_as_in_jax():
    one, two = (Body(nnx.Linear(6, 5, rngs=nnx.Rngs(seed))) for seed in range(2))
    x = jnp.ones((3, 6))

    def loss_fn(x, one, two):
        y = one(x) + two(x)
        return jnp.mean(y**2), y

    ((loss, y), activities), grads = ojax.value_and_grad(loss_fn, argnums=(1, 2), has_aux=True)(x, one, two)
    (want, want_y), want_grads = nnx.value_and_grad(loss_fn, argnums=(1, 2), has_aux=True)(x, one, two)
    jax.tree.map(np.testing.assert_array_equal, (loss, y, grads), (want, want_y, want_grads))
    for model, activity in zip((one, two), activities, strict=True):
        np.testing.assert_array_equal(activity["head"]["kernel"][0].post, model(x))


class Own(nnx.Module):
    """A network that sows its own intermediates, and spikes."""

    def __init__(self):
        self.layer = nnx.Linear(6, 3, rngs=nnx.Rngs(0))

    def __call__(self, x):
        z = self.layer(x)
        self.sow(nnx.Intermediate, "features", z)
        ojax.record(self.layer, x, z > 0)
        return z


@tried("Flax NNX", "`Module.sow` of the model's own", "stays the model's")
def check_sow():
    model, x = Own(), jax.random.normal(jax.random.key(0), (4, 6))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Flax's, of sow.
        ojax.value_and_grad(lambda model: jnp.mean(model(x) ** 2))(model)
    assert list(nnx.pop(model, nnx.Intermediate)) == ["features"]
    # Inside of a capture of Flax's too.
    (_, activity), own = nnx.capture(lambda model: ojax.with_activity(model, x), nnx.Intermediate)(model)
    assert list(own) == ["features"] and list(activity) == ["layer"]


@tried("Flax NNX", "boolean activity, spikes", "as zeros and ones")
def check_spikes():
    model, x = Own(), jax.random.normal(jax.random.key(0), (4, 6))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        (_, activity), _ = ojax.value_and_grad(lambda model: jnp.mean(model(x) ** 2))(model)
    kernel = model.layer.kernel[...]
    found = changes(ojax.oja(RATE), nnx.state(model, nnx.Param), activity)["layer/kernel"]
    assert_close(found, oja_change(kernel, x, model.layer(x) > 0))


@tried("Flax NNX", "`nnx.Conv`, `nnx.ConvTranspose`", "patches of the image are the inputs")
def check_nnx_convolutions():
    image = jax.random.normal(jax.random.key(0), (2, 5, 4, 3))

    def products(make):
        layer = make(rngs=nnx.Rngs(0))
        _, activity = ojax.with_activity(Single(layer), image)
        ((pre, post),) = activity["layer"]["kernel"]
        return pre @ layer.kernel[...] + layer.bias[...], post

    makes = [
        functools.partial(kind, 3, 4, (3, 2), strides=strides, padding=padding)
        for kind in (nnx.Conv, nnx.ConvTranspose)
        for strides, padding in ((1, "SAME"), ((2, 1), "VALID"), ((3, 4), "SAME"))
    ]
    for found, wanted in jax.jit(lambda: [products(make) for make in makes])():
        assert_close(found, wanted)


class Single(nnx.Module):
    def __init__(self, layer):
        self.layer = layer

    def __call__(self, x):
        y = self.layer(x)
        ojax.record(self.layer, x, y)
        return y


# Flax Linen.


def linen_changes(model, x, *, post=None, tx=None, **options):
    """Returns the rule's changes of a model, its activity, and its parameters, all by path."""

    def change():
        variables = model.init(jax.random.key(0), x)
        _, activity = ojax.apply_linen(model, variables, x, post=post or {...: linen.tanh}, **options)
        params, rule = variables["params"], tx or ojax.oja(RATE)
        updates, _ = rule.update(jax.tree.map(jnp.zeros_like, params), rule.init(params), params, activity=activity)
        return updates, activity, params

    updates, activity, params = jax.jit(change)()
    return flatten_dict(updates, sep="/"), flatten_dict(activity, sep="/"), flatten_dict(params, sep="/")


def check_linen(model, x):
    """Checks that all kernels change by the rule of their own activity, and that its output is the layer's."""
    updates, activity, params = linen_changes(model, x)
    kernels = [path for path in params if path.endswith("kernel")]
    assert kernels and set(activity) == set(kernels)
    for path in kernels:
        n_out = activity[path][0].post.shape[-1]
        if params[path].ndim == 2 and not isinstance(activity[path][0].pre, ojax.Patches):
            sides = [
                np.concatenate([np.reshape(tuple(call)[side], (-1, size)) for call in activity[path]])
                for side, size in ((0, params[path].shape[0]), (1, n_out))
            ]
            assert_close(updates[path], oja_change(params[path], *sides))
        assert np.any(updates[path] != 0), path
    return updates, activity, params


SEQUENCE = jax.random.normal(jax.random.key(1), (2, 5, 6))


def compact(body):
    class Model(linen.Module):
        @linen.compact
        def __call__(self, x):
            return body(x)

    return Model()


@tried("Flax Linen", "`nn.RNN`, `nn.GRUCell`, `nn.LSTMCell`", "a rule averages over the steps")
def check_linen_rnn():
    check_linen(compact(lambda x: linen.RNN(linen.GRUCell(4))(linen.RNN(linen.LSTMCell(3))(x))), SEQUENCE)


@tried("Flax Linen", "`nn.OptimizedLSTMCell`", "as `nn.LSTMCell`")
def check_optimized_lstm():
    made = [
        linen_changes(compact(lambda x, cell=cell: linen.RNN(cell(4, name="cell"))(x)), SEQUENCE)
        for cell in (linen.OptimizedLSTMCell, linen.LSTMCell)
    ]
    (found, _, params), (wanted, _, same) = made
    assert jax.tree.structure(params) == jax.tree.structure(same)
    assert {path for path, leaf in found.items() if np.any(leaf != 0)} == {path for path in params if "kernel" in path}
    if all(np.array_equal(params[path], same[path]) for path in params):
        jax.tree.map(assert_close, found, wanted)


@tried("Flax Linen", "attention, `nn.DenseGeneral`", "all heads of a kernel are its outputs")
def check_attention():
    model = compact(lambda x: linen.MultiHeadDotProductAttention(num_heads=2, qkv_features=6)(x))
    updates, activity, params = check_linen(model, SEQUENCE)
    path = "MultiHeadDotProductAttention_0/query/kernel"
    ((pre, post),) = activity[path]
    assert_close(updates[path], oja_change(params[path].reshape(6, 6), pre, post).reshape(6, 2, 3))
    path = "MultiHeadDotProductAttention_0/out/kernel"
    ((pre, post),) = activity[path]
    assert_close(updates[path], oja_change(params[path].reshape(6, 6), pre, post).reshape(2, 3, 6))


@tried("Flax Linen", "`nn.vmap`, `nn.remat`, `nn.jit`", "records as outside of it")
def check_linen_lifted():
    def mapped(kind):
        return linen.vmap(kind, variable_axes={"params": None}, split_rngs={"params": False})

    for lift in (mapped, linen.remat, linen.jit):  # Each draws weights of its own.
        check_linen(compact(lambda x, lift=lift: lift(linen.Dense)(4)(x)), SEQUENCE)


@tried("Flax Linen", "`nn.scan` over steps", "a rule averages over the steps")
def check_linen_scan():
    class Step(linen.Module):
        @linen.compact
        def __call__(self, carry, x):
            carry = linen.tanh(linen.Dense(4)(jnp.concatenate([carry, x], axis=-1)))
            return carry, carry

    scan = linen.scan(Step, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1)
    _, activity, _ = check_linen(compact(lambda x: scan()(jnp.zeros((2, 4)), x)), SEQUENCE)
    ((pre, _),) = activity["ScanStep_0/Dense_0/kernel"]
    assert pre.shape == (5, 2, 10)


@tried("Flax Linen", "`nn.scan` over layers, `nn.vmap` over an ensemble", "each layer of the stack by itself")
def check_linen_stacks():
    class Block(linen.Module):
        @linen.compact
        def __call__(self, x, _):
            return linen.tanh(linen.Dense(6)(x)), None

    def stacked(axis):
        how = {"variable_axes": {"params": axis}, "split_rngs": {"params": True}, "length": 3}
        return compact(lambda x: linen.scan(Block, **how)()(x, None)[0])

    for axis in (0, 1):  # Leading axes are inferred from the activity; another axis is named.
        tx = ojax.oja(RATE, batch_axis=() if axis == 0 else axis)
        updates, activity, params = linen_changes(stacked(axis), SEQUENCE[:, 0], tx=tx)
        path = "ScanBlock_0/Dense_0/kernel"
        ((pre, post),) = activity[path]
        for layer in range(3):
            kernel, change = (np.take(np.asarray(array[path]), layer, axis) for array in (params, updates))
            assert_close(change, oja_change(kernel, pre[layer], post[layer]))
    with pytest.raises(ValueError, match=r"stacked ones \(of a scan over layers, an ensemble\) batch_axis"):
        linen_changes(stacked(1), SEQUENCE[:, 0])


@tried("Flax Linen", "`nn.Bidirectional`, `nn.remat_scan`, `nn.map_variables`", "records as outside of it")
def check_more_of_linen():
    check_linen(compact(lambda x: linen.Bidirectional(*[linen.RNN(linen.SimpleCell(3)) for _ in range(2)])(x)), SEQUENCE)
    check_linen(compact(lambda x: linen.remat_scan(linen.Dense, lengths=(2,))(features=6)(x)), SEQUENCE)
    small = functools.partial(jax.tree.map, lambda leaf: leaf / 2)
    check_linen(compact(lambda x: linen.map_variables(linen.Dense, "params", small, init=True)(3)(x)), SEQUENCE)


@tried("Flax Linen", "`nn.WeightNorm`, `nn.SpectralNorm`", "the rule changes the kernel that is normalized")
def check_linen_norms():
    check_linen(compact(lambda x: linen.WeightNorm(linen.Dense(4))(x)), SEQUENCE)
    spectral = compact(lambda x: linen.SpectralNorm(linen.Dense(4))(x, update_stats=False))
    check_linen(spectral, SEQUENCE)


@tried("Flax Linen", "`nn.ConvTranspose`", "patches of the image are the inputs")
def check_linen_transposed():
    image = jax.random.normal(jax.random.key(0), (2, 5, 4, 3))
    options = [
        {"strides": strides, "padding": padding, "kernel_dilation": dilation}
        for strides in (None, (3, 4))
        for padding in ("SAME", "VALID", ((1, 2), (0, 3)))
        for dilation in (None, (2, 1))
    ]

    def products(options):
        layer = linen.ConvTranspose(4, (3, 2), **options)
        variables = layer.init(jax.random.key(0), image)
        output, activity = ojax.apply_linen(layer, variables, image, post={...: linen.relu})
        return activity["kernel"][0].pre @ variables["params"]["kernel"] + variables["params"]["bias"], output

    for found, wanted in jax.jit(lambda: [products(each) for each in options])():
        assert_close(found, wanted)


@tried("Flax Linen", "a subclass of `nn.Dense` that calls `super().__call__`", "the kernel's own input and output")
def check_linen_subclass():
    class Scaled(linen.Dense):
        @linen.compact
        def __call__(self, x):
            return 3 * super().__call__(2 * x)

    _, activity, params = check_linen(compact(lambda x: Scaled(3)(x)), SEQUENCE)
    ((pre, post),) = activity["Scaled_0/kernel"]
    assert_close(pre, 2 * SEQUENCE)
    assert_close(post, np.tanh(2 * SEQUENCE @ params["Scaled_0/kernel"]))


@tried("Flax Linen", "`mutable=` a name, True, `DenyList`", "as in `model.apply`")
def check_linen_mutable():
    model = compact(lambda x: linen.Dense(3)(linen.BatchNorm(use_running_average=False)(x)))
    variables = model.init(jax.random.key(0), SEQUENCE)
    for mutable in ("batch_stats", ["batch_stats"], True, linen.DenyList("params")):
        found, activity = ojax.apply_linen(model, variables, SEQUENCE, post={...: linen.tanh}, mutable=mutable)
        wanted = model.apply(variables, SEQUENCE, mutable=mutable)
        jax.tree.map(np.testing.assert_array_equal, found, wanted)
        assert set(activity) == {"Dense_0"}


@tried("Flax Linen", "`TrainState`", "with `ojax.TrainState`, which takes the activity")
def check_train_state():
    model = compact(lambda x: linen.Dense(3)(x))
    params = model.init(jax.random.key(0), SEQUENCE)["params"]
    state = ojax.TrainState.create(apply_fn=model.apply, params=params, tx=ojax.oja_sgd(0.5, RATE))
    y, activity = ojax.apply_linen(model, {"params": params}, SEQUENCE, post={...: lambda z: z})
    grads = jax.tree.map(jnp.ones_like, params)
    new = jax.jit(lambda state: state.apply_gradients(grads=grads, activity=activity))(state)
    kernel = params["Dense_0"]["kernel"]
    assert_close(new.params["Dense_0"]["kernel"], kernel - 0.5 + oja_change(kernel, SEQUENCE, y))
    assert new.step == 1 and new.tx == state.tx
    without_rule = ojax.TrainState.create(apply_fn=model.apply, params=params, tx=optax.scale(-1.0))
    assert_close(without_rule.apply_gradients(grads=grads).params["Dense_0"]["kernel"], kernel - 1)


@tried("Flax Linen", "`nn.Partitioned` parameters", "as without")
def check_partitioned():
    boxed = linen.with_partitioning(linen.initializers.lecun_normal(), (None, "model"))
    updates, _, params = linen_changes(compact(lambda x: linen.Dense(3, kernel_init=boxed)(x)), SEQUENCE)
    kernel = params["Dense_0/kernel"].value
    assert_close(updates["Dense_0/kernel"].value, oja_change(kernel, SEQUENCE, np.tanh(SEQUENCE @ kernel)))


def test_a_name_in_post_that_is_no_layer():
    model = compact(lambda x: linen.Dense(3)(x))
    variables = model.init(jax.random.key(0), SEQUENCE)
    with pytest.raises(ValueError, match=r"post names dense_0, no recorded layer; they are Dense_0"):
        ojax.apply_linen(model, variables, SEQUENCE, post={"dense_0": linen.softmax, ...: linen.relu})


def test_a_function_of_one_argument_as_post():
    model = compact(lambda x: linen.Dense(3)(x))
    with pytest.raises(
        TypeError, match=r"^post is called as post\(path, output\), and fails. One non-linearity for all layers"
    ):
        ojax.apply_linen(model, model.init(jax.random.key(0), SEQUENCE), SEQUENCE, post=linen.softmax)


# What gets no activity.


@tried(
    "Flax Linen",
    "masked convolutions, `nn.ConvLocal`, `nn.DenseGeneral(batch_dims=...)`",
    "not recorded: a warning names it",
)
def check_warning():
    layers = {
        "Conv": lambda: linen.Conv(3, (2,), mask=jnp.ones((2, 6, 3))),
        "ConvLocal": lambda: linen.ConvLocal(3, (2,), padding="VALID"),
        "DenseGeneral": lambda: linen.DenseGeneral(4, batch_dims=(0,)),
    }
    for name, make in layers.items():
        with pytest.warns(UserWarning, match=f"ojax.oja leaves {name}_0/kernel alone: no activity was recorded"):
            linen_changes(compact(lambda x, make=make: linen.Dense(2)(make()(x))), SEQUENCE)


@pytest.mark.parametrize("how", ["mask", "post", "record"])
def test_a_kernel_left_out_on_purpose_needs_no_warning(how):
    model, x = compact(lambda x: linen.Dense(2)(linen.Dense(4)(x))), SEQUENCE
    if how == "record":
        network = ojax.recurrent.Network(ojax.recurrent.Cell(3, 4, rngs=nnx.Rngs(0)), 2, rngs=nnx.Rngs(1))
        _, activity = ojax.with_activity(network, jnp.zeros(4), jnp.ones(3))
        found = changes(ojax.oja(RATE), nnx.state(network, nnx.Param), activity)
        assert not found["readout/kernel"].any() and found["cell/input/kernel"].any()
        return
    post, mask = {"Dense_1": None, ...: linen.tanh}, {"Dense_0": True, "Dense_1": False}
    found, _, _ = (
        linen_changes(model, x, post=post) if how == "post" else linen_changes(model, x, tx=ojax.oja(RATE, mask=mask))
    )
    assert not found["Dense_1/kernel"].any() and found["Dense_0/kernel"].any()


def test_a_kernel_without_activity_is_named_once():
    params = {"a": {"kernel": jnp.ones((3, 2))}, "b": {"w": jnp.ones((2, 2)), "embedding": jnp.ones((9, 2))}}
    activity = {"a": {"kernel": ojax.Activity(jnp.ones(3), jnp.ones(2))}}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            ojax.oja(RATE).update(params, ojax.oja(RATE).init(params), params, activity=activity)
    assert [str(each.message).partition(":")[0] for each in caught] == ["ojax.oja leaves b/w alone"]


# Equinox.


class ActorCritic(eqx.Module):
    policy: eqx.nn.Linear
    value: eqx.nn.Linear

    def __init__(self):
        self.policy, self.value = (eqx.nn.Linear(4, n, key=jax.random.key(n)) for n in (2, 1))


def equinox_activity(net, x, names=("policy", "value")):
    return {name: {"weight": ojax.Activity(x, getattr(net, name)(x))} for name in names}


@tried("Equinox", "`eqx.nn.Linear`, an attribute called `value`", "with `out_axis=0`")
def check_equinox():
    net, x = ActorCritic(), jnp.arange(4.0)
    found = changes(ojax.oja(RATE, **OUT_IN), eqx.filter(net, eqx.is_array), equinox_activity(net, x))
    for name in ("policy", "value"):
        layer = getattr(net, name)
        assert_close(found[f"{name}/weight"], oja_change(layer.weight.T, x, layer(x)).T)


@tried("Equinox", "`eqx.partition`", "activity of frozen layers is left out")
def check_partition():
    net, x = ActorCritic(), jnp.arange(4.0)
    frozen = eqx.tree_at(
        lambda net: net.policy,
        jax.tree.map(lambda _: True, net),
        replace_fn=lambda part: jax.tree.map(lambda _: False, part),
    )
    learned, _ = eqx.partition(net, jax.tree.map(lambda keep, leaf: keep and eqx.is_array(leaf), frozen, net))
    found = changes(ojax.oja(RATE, **OUT_IN), learned, equinox_activity(net, x))
    assert set(found) == {"value/weight", "value/bias"} and found["value/weight"].any()


@tried(
    "Equinox",
    "`eqx.nn.MLP`, `eqx.filter_value_and_grad`, `eqx.filter_jit`",
    "with `out_axis=0`; the model itself as `params`",
)
def check_equinox_training():
    model, x = eqx.nn.MLP(4, 2, 3, 1, key=jax.random.key(0)), jax.random.normal(jax.random.key(1), (5, 4))
    tx = ojax.oja_sgd(0.0, RATE, **OUT_IN)

    @eqx.filter_value_and_grad(has_aux=True)
    def loss_fn(model):
        hidden = jax.nn.relu(jax.vmap(model.layers[0])(x))
        y = jax.vmap(model.layers[1])(hidden)
        return jnp.mean(y**2), {"layers": [{"weight": ojax.Activity(*sides)} for sides in ((x, hidden), (hidden, y))]}

    @eqx.filter_jit
    def step(model, state):
        (_, activity), grads = loss_fn(model)
        updates, state = tx.update(grads, state, model, activity=activity)
        return eqx.apply_updates(model, updates), activity

    after, activity = step(model, tx.init(eqx.filter(model, eqx.is_inexact_array)))
    for layer, new, sides in zip(model.layers, after.layers, activity["layers"], strict=True):
        assert_close(new.weight - layer.weight, oja_change(layer.weight.T, *sides["weight"]).T)


@tried("Equinox", "`eqx.nn.Shared`", "the activity of both layers is a tuple at the path of the first")
def check_equinox_shared():
    layers = tuple(eqx.nn.Linear(4, 4, key=jax.random.key(n)) for n in range(2))
    shared = eqx.nn.Shared(layers, lambda pair: pair[1].weight, lambda pair: pair[0].weight)
    kernel, x = layers[0].weight.T, jax.random.normal(jax.random.key(0), (5, 4))
    calls = (ojax.Activity(x, jnp.tanh(x)), ojax.Activity(jnp.tanh(x), x))
    found = changes(ojax.oja(RATE, **OUT_IN), eqx.filter(shared, eqx.is_array), {"pytree": [{"weight": calls}]})
    wanted = oja_change(kernel, *(np.concatenate(side) for side in zip(*calls, strict=True)))
    assert_close(found["pytree/0/weight"], wanted.T)


@tried("Equinox", "layers stacked by `eqx.filter_vmap`", "with `out_axis=-2, batch_axis=0`")
def check_equinox_stack():
    layers = eqx.filter_vmap(lambda key: eqx.nn.Linear(4, 3, key=key))(jax.random.split(jax.random.key(0), 2))
    x = jax.random.normal(jax.random.key(0), (2, 5, 4))
    activity, tx = {"weight": ojax.Activity(x, x[..., :3])}, ojax.oja(RATE, out_axis=-2, batch_axis=0)
    found = changes(tx, eqx.filter(layers, eqx.is_array), activity)["weight"]
    for layer, kernel in enumerate(layers.weight):
        assert_close(found[layer], oja_change(kernel.T, x[layer], x[layer, :, :3]).T)


@tried("Equinox", "`eqx.nn.Conv2d`", "with `out_axis=0, in_axis=1` and `ojax.Patches` of the image, channels last")
def check_equinox_convolution():
    conv, image = (
        eqx.nn.Conv2d(4, 6, 3, padding=1, groups=2, key=jax.random.key(0)),
        jnp.arange(100.0).reshape(4, 5, 5) / 50,
    )
    last = functools.partial(jnp.moveaxis, source=0, destination=-1)
    activity = ojax.Activity(ojax.Patches.of(last(image), (3, 3)), last(conv(image)))
    found = changes(ojax.oja(RATE, **OUT_IN, in_axis=1), eqx.filter(conv, eqx.is_array), {"weight": activity})["weight"]
    flax = {"kernel": jnp.transpose(conv.weight, (2, 3, 1, 0))}
    wanted = changes(ojax.oja(RATE), flax, {"kernel": activity})["kernel"]
    assert found.any()
    assert_close(found, np.transpose(wanted, (3, 2, 0, 1)))


# Optax.


def chain_of(make, **given):
    """Returns the changes of a kernel by a transformation that contains the rule, and their float64 statement."""
    params = {"a": {"kernel": jnp.eye(4, 3)}, "b": {"kernel": jnp.ones((3, 2))}}
    x = jax.random.normal(jax.random.key(0), (5, 4))
    sides = {"a": (x, x @ params["a"]["kernel"]), "b": (x[:, :3], x[:, 2:])}
    activity = {name: {"kernel": ojax.Activity(*each)} for name, each in sides.items()}
    found = changes(make(), params, activity, **given)
    return {name: (found[f"{name}/kernel"], oja_change(params[name]["kernel"], *each)) for name, each in sides.items()}


OPTAX = {
    "`optax.chain`": lambda: optax.chain(optax.sgd(0.1), ojax.oja(RATE)),
    "`optax.named_chain`": lambda: optax.named_chain(("sgd", optax.sgd(0.1)), ("oja", ojax.oja(RATE))),
    "`optax.inject_hyperparams`": lambda: optax.inject_hyperparams(ojax.oja)(RATE),
    "`optax.inject_hyperparams` of `ojax.plasticity.rule`, its functions in `static_args`": lambda: (
        optax.inject_hyperparams(ojax.plasticity.rule, static_args=["change"])(
            lambda layer: (layer.pre - layer.post @ layer.kernel.T).T @ layer.post / len(layer.pre), RATE
        )
    ),
    "a schedule": lambda: ojax.oja(optax.constant_schedule(RATE)),
    "`optax.MultiSteps`, inside of a chain": lambda: optax.chain(
        optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation(), ojax.oja(RATE)
    ),
    "`optax.conditionally_transform`, `optax.conditionally_mask`": lambda: optax.conditionally_mask(
        optax.conditionally_transform(ojax.oja(RATE), lambda step: step < 1), lambda step: step < 1
    ),
    "`optax.contrib.schedule_free`, around a chain": lambda: optax.contrib.schedule_free(
        optax.chain(optax.sgd(0.1), ojax.oja(RATE)), 0.1
    ),
    "transformations that read `value`: `optax.polyak_sgd`, `optax.contrib.momo`, `reduce_on_plateau`": lambda: optax.chain(
        optax.polyak_sgd(), optax.contrib.reduce_on_plateau(), ojax.oja(RATE)
    ),
    "`optax.apply_if_finite`, after the rule": lambda: optax.chain(
        optax.sgd(0.1), ojax.oja(RATE), optax.apply_if_finite(optax.identity(), 5)
    ),
}
for _name in OPTAX:

    def _check(name=_name):
        for found, wanted in chain_of(OPTAX[name], value=1.0).values():
            assert_close(found, wanted)

    tried("Optax", _name, "the rule's own change")(_check)

PARTS = {
    "`optax.masked`": lambda: optax.masked(ojax.oja(RATE), {"a": True, "b": False}),
    "`optax.partition`": lambda: optax.partition(
        {"oja": ojax.oja(RATE), "none": optax.set_to_zero()}, {"a": "oja", "b": "none"}
    ),
}
for _name in PARTS:

    def _check_part(name=_name):
        found = chain_of(PARTS[name])
        assert_close(*found["a"])
        assert not found["b"][0].any()

    tried("Optax", _name, "the rule's change, and no warning of what is masked")(_check_part)


@tried("Optax", "`optax.apply_if_finite`, around a rule", "a warning: it looks at the gradient alone")
def check_apply_if_finite():
    for make in (lambda: ojax.oja_sgd(0.1, RATE), lambda: ojax.bcm(RATE, mask={"a": True, "b": False})):
        with pytest.warns(
            UserWarning, match=r"^optax.apply_if_finite looks at gradients alone, .* Put it after: optax.chain"
        ):
            chain_of(lambda make=make: optax.apply_if_finite(make(), 5))


@tried(
    "Optax",
    "`optax.MultiSteps(should_skip_update_fn=optax.skip_not_finite)`, around a rule",
    "looks at the gradient alone: put `optax.apply_if_finite(optax.identity(), n)` after the rule",
)
def check_skip_not_finite():
    params, x = {"kernel": jnp.eye(4, 3)}, jnp.full(4, 1e30)

    def step(*after):
        tx = optax.chain(ojax.oja_sgd(0.0, RATE), *after)
        tx = optax.MultiSteps(tx, 1, should_skip_update_fn=optax.skip_not_finite)
        activity = {"kernel": ojax.Activity(x, x[:3])}
        return tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params, activity=activity)[0]["kernel"]

    assert not jnp.isfinite(step()).all()
    assert not step(optax.apply_if_finite(optax.identity(), 5)).any()


@tried("Optax", "`optax.sgd` or `optax.adam`, after the rule", "takes the change for a gradient: put the rule last")
def check_before_sgd():
    for found, wanted in chain_of(lambda: optax.chain(ojax.oja(RATE), optax.sgd(0.5))).values():
        assert_close(found, -0.5 * wanted)


@tried("Optax", "`optax.MultiSteps`, around a rule", "the rule learns once in k steps, from the last activity")
def check_multisteps():
    params, tx = {"kernel": jnp.eye(4, 3)}, optax.MultiSteps(ojax.oja_sgd(0.0, RATE), 2)
    state, x = tx.init(params), jax.random.normal(jax.random.key(0), (2, 4))
    for number in range(2):
        activity = {"kernel": ojax.Activity(x[number], x[number, :3])}
        found, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params, activity=activity)
    assert_close(found["kernel"], oja_change(params["kernel"], x[1], x[1, :3]))


@tried("Optax", "`optax.tree.map_params`", "finds the state of a rule")
def check_map_params():
    for mask in (None, {"kernel": True, "bias": False}):
        tx = optax.chain(optax.sgd(0.1, momentum=0.9), ojax.bcm(RATE, mask=mask))
        state = optax.tree.map_params(tx, lambda leaf: leaf + 7, tx.init({"kernel": jnp.eye(4, 3), "bias": jnp.zeros(3)}))
        assert all((leaf == 7).all() for leaf in jax.tree.leaves(state))


def given_activity(tx, activity):
    return optax.GradientTransformationExtraArgs(tx.init, functools.partial(tx.update, activity=activity))


@tried(
    "Optax",
    "`optax.lookahead`, `optax.contrib.sam`",
    "take no keywords: give the rule's `update` its activity by `functools.partial`",
)
def check_lookahead():
    params, x = {"kernel": jnp.eye(4, 3)}, jax.random.normal(jax.random.key(0), (5, 4))
    tx = given_activity(ojax.oja_sgd(0.1, RATE), {"kernel": ojax.Activity(x, x[:, :3])})
    both = optax.LookaheadParams.init_synced(params)
    tx = optax.lookahead(tx, sync_period=2, slow_step_size=0.5)
    with pytest.raises(TypeError, match="activity"):
        tx.update(params, tx.init(both), both, activity={})
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(both), both)
    assert_close(updates.fast["kernel"], oja_change(params["kernel"], x, x[:, :3]))


@tried("Optax", "line searches: `optax.scale_by_backtracking_linesearch`", "`value_fn` takes an argument `activity`")
def check_line_search():
    params, x = {"kernel": jnp.eye(4, 3)}, jax.random.normal(jax.random.key(0), (5, 4))
    value_fn = lambda params, activity=None: jnp.sum(params["kernel"] ** 2)  # noqa: E731
    given = {"value": 1.0, "grad": params, "value_fn": value_fn, "activity": {"kernel": ojax.Activity(x, x[:, :3])}}
    search = optax.chain(optax.sgd(0.1), optax.scale_by_backtracking_linesearch(3))
    alone, _ = search.update(params, search.init(params), params, **given)
    tx = optax.chain(search, ojax.oja(RATE))
    updates, _ = tx.update(params, tx.init(params), params, **given)
    assert_close(updates["kernel"] - alone["kernel"], oja_change(params["kernel"], x, x[:, :3]))


@tried("Optax", "`optax.flatten`, around a rule", "refused in one line: put the rule after it")
def check_flatten():
    with pytest.raises(ValueError, match="at the path of no parameter; the parameters are one array without a path"):
        chain_of(lambda: optax.flatten(ojax.oja(RATE)))
    for found, wanted in chain_of(lambda: optax.chain(optax.flatten(optax.adam(0.1)), ojax.oja(RATE))).values():
        assert_close(found, wanted)


# JAX.


@tried("JAX", "`jax.shard_map` with `check_vma=False`, `jax.pmap`, around learning", "with `axis_name`; refused without")
def check_unchecked_shards():
    kernel, x = jnp.eye(6, 4), jnp.arange(12.0).reshape(2, 6)

    def change(options, kernel, x):
        return changes(ojax.oja(RATE, **options), {"w": kernel}, {"w": ojax.Activity(x, x @ kernel)})["w"]

    def by_shard_map(options, axis="data"):
        mesh = jax.make_mesh((1,), (axis,), axis_types=(jax.sharding.AxisType.Auto,))
        shards = {"mesh": mesh, "in_specs": (jax.P(), jax.P(axis)), "out_specs": jax.P(), "check_vma": False}
        return jax.shard_map(lambda kernel, x: jnp_change(options, kernel, x), **shards)(kernel, x)

    def by_pmap(options):
        return jax.pmap(functools.partial(jnp_change, options), "data", in_axes=(None, 0))(kernel, x[None])[0]

    def jnp_change(options, kernel, x):
        tx, params, activity = ojax.oja(RATE, **options), {"w": kernel}, {"w": ojax.Activity(x, x @ kernel)}
        return tx.update({"w": jnp.zeros_like(kernel)}, tx.init(params), params, activity=activity)[0]["w"]

    with pytest.raises(ValueError, match="Give axis_name='runs'"):  # As an axis of ojax.online was once called.
        by_shard_map({}, axis="runs")
    for learn in (by_shard_map, by_pmap):
        with pytest.raises(
            ValueError, match=r"replicas of a kernel could drift apart. Give axis_name='data', or axis_name="
        ):
            learn({})
        with pytest.raises(ValueError, match="axis_name is batch, and here data is mapped over"):
            learn({"axis_name": "batch"})
        for axis_name in ("data", ()):
            assert_close(learn({"axis_name": axis_name}), oja_change(kernel, x, x @ kernel))


@tried("JAX", "kernels in bfloat16, float16, 8-bit floats", "the change is computed in float32, and has the kernel's type")
def check_small_floats():
    kernel, x = np.eye(4, 3), np.arange(8).reshape(2, 4) / 8
    for dtype in ("bfloat16", "float16", "float8_e4m3fn"):
        sides = jnp.asarray(x, dtype), jnp.asarray(x[:, :3], dtype)
        params = {"w": jnp.asarray(kernel, dtype)}
        with jax.numpy_dtype_promotion("strict"):
            found = changes(ojax.oja(RATE), params, {"w": ojax.Activity(*sides)})["w"]
        assert found.dtype == params["w"].dtype
        np.testing.assert_allclose(
            np.asarray(found, float), oja_change(kernel, x, x[:, :3]), atol=2e-2 if "8" in dtype else 2e-4
        )
    for dtype in ("int8", "int32"):
        with pytest.raises(ValueError, match=f"ojax.oja: w is {dtype}, to which a small change cannot be added"):
            changes(ojax.oja(RATE), {"w": jnp.asarray(kernel, dtype)}, {"w": ojax.Activity(x, x[:, :3])})


@tried("JAX", "images of bytes, bfloat16 and float16 in `ojax.CNN`", "as float32, in learning and prediction")
def check_dtypes():
    model = ojax.CNN((6, 6, 1), [3], 4, rngs=nnx.Rngs(0))
    images = jax.random.randint(jax.random.key(0), (2, 6, 6, 1), 0, 255).astype("uint8")

    def outputs(images):
        return model(images), ojax.with_activity(nnx.clone(model), images)[0]

    wanted = model(images.astype(jnp.float32))
    for dtype in ("uint8", "bfloat16", "float16"):
        for found in jax.jit(outputs)(images.astype(dtype)):
            assert found.dtype == jnp.float32
            assert_close(found, model(images.astype(dtype).astype(jnp.float32)), rtol=1e-3)
    (loss, _), _ = ojax.value_and_grad(lambda model: jnp.mean(model(images) ** 2))(model)
    assert_close(loss, jnp.mean(wanted**2), rtol=1e-3)


@tried("JAX", "an explicit mesh, `jax.set_mesh`", "the change is sharded as the kernel")
def check_explicit_mesh():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    kernel, x = np.eye(6, 4, dtype=np.float32), np.arange(48, dtype=np.float32).reshape(8, 6) / 48
    with jax.set_mesh(mesh):
        by_sample = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))
        for spec in (jax.P(), jax.P(None, "data")):
            params = {"kernel": jax.device_put(kernel, jax.NamedSharding(mesh, spec))}
            sides = (by_sample, by_sample @ kernel) if spec == jax.P() else (x, x @ params["kernel"])
            for tx in (ojax.oja(RATE), ojax.oja(optax.constant_schedule(RATE))):
                found = changes(tx, params, {"kernel": ojax.Activity(*sides)})["kernel"]
                assert_close(found, oja_change(kernel, x, x @ kernel))

        @nnx.jit
        def step(model, optimizer, x):
            (loss, activity), grads = ojax.value_and_grad(lambda model: jnp.mean(model(x) ** 2))(model)
            optimizer.update(model, grads, activity=activity)
            return loss

        model = ojax.MLP([6, 3], rngs=nnx.Rngs(0))
        step(model, nnx.Optimizer(model, ojax.oja_sgd(0.1, RATE), wrt=nnx.Param), by_sample)
        assert jax.typeof(model.layers[0].kernel[...]).sharding.spec == jax.P(None, None)


@tried(
    "JAX",
    "`jax_debug_nans` with `jax_disable_jit`, strict promotion of types and of ranks, `jax.checking_leaks`",
    "no false alarm; `online.train` compiles",
)
def check_settings():
    strict = jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise")
    with contextlib.ExitStack() as stack:
        for setting in (jax.debug_nans(True), jax.disable_jit(), *strict):
            stack.enter_context(setting)
        assert ojax.MLP([6, 5, 3], rngs=nnx.Rngs(0), use_bias=True)(jnp.ones((2, 6))).shape == (2, 3)
        assert ojax.modules.softplus(jnp.ones((2, 2, 2))).shape == (2, 2, 2)
        data = [np.ones((4, 6), np.float32), np.arange(4) % 3] * 2
        learner = ojax.online.classifier(
            lambda rngs: ojax.MLP([6, 5, 3], rngs=rngs),
            lambda hyper: ojax.oja_sgd(hyper["learning_rate"], hyper["oja_rate"]),
        )
        hyper, seeds = ojax.online.grid({"learning_rate": [0.1], "oja_rate": [0.01]}, seeds=[0])
        dataset, plan = ojax.datasets.Dataset.from_arrays(*data), ojax.online.Plan(4, (4,))
        with jax.checking_leaks():
            ojax.online.fast_path(learner, hyper, dataset, plan)
        ((seen, scores),) = ojax.online.train(learner, hyper, seeds, dataset, plan)
    assert seen == 4 and np.isfinite(scores["train_loss"]).all()


tried("JAX", "`jax_enable_x64`, all learners", "weights stay float32, and learn as without it")(
    functools.partial(x64_test.test_a_run_equals_its_32_bit_run, "BPTT")
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.construct.replace("`", ""))
def test_works_with(case):
    case.test()


HEAD_OF_PAGE = """# Works with

Each row has a test. `python -m tests.ojax.works_with_test` writes this page from them.
"""


def page():
    lines = [HEAD_OF_PAGE]
    for library in ("Optax", "Flax NNX", "Flax Linen", "Equinox", "JAX"):
        rows = [f"| {case.construct} | {case.outcome} |" for case in CASES if case.library == library]
        lines += [f"## {library}\n", "| construct | what happens |", "|---|---|", *rows, ""]
    return "\n".join(lines)


def test_the_page_lists_what_was_tried():
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m tests.ojax.works_with_test"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
