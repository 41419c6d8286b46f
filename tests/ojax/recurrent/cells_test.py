import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ojax
from ojax import recurrent

N_IN, N = 3, 5
pytestmark = pytest.mark.compiled_quickly


class GRU(nnx.GRUCell):
    """A custom cell: the gates and the candidate are the outputs of its two kernels."""

    def __call__(self, carry, inputs):
        hidden, output = super().__call__(carry, inputs)
        parts = zip(jnp.split(self.dense_i(inputs), 3, -1), jnp.split(self.dense_h(carry), 3, -1), strict=True)
        (xr, hr), (xz, hz), (xn, hn) = parts
        r, z = nnx.sigmoid(xr + hr), nnx.sigmoid(xz + hz)
        outputs = jnp.concatenate([r, z, jnp.tanh(xn + r * hn)], axis=-1)
        ojax.record(self.dense_i, inputs, outputs)
        ojax.record(self.dense_h, carry, outputs)
        return hidden, output


class Simple(nnx.SimpleCell):
    def __call__(self, carry, inputs):
        hidden, output = super().__call__(carry, inputs)
        ojax.record(self.dense_i, inputs, hidden)
        ojax.record(self.dense_h, carry, hidden)
        return hidden, output


def sequence(steps=4, batch=()):
    return jax.random.normal(jax.random.key(1), (*batch, steps, N_IN))


@pytest.mark.parametrize("leaking_rate", [1.0, 0.3])
def test_a_step_is_the_formula(leaking_rate):
    cell = recurrent.Cell(N_IN, N, leaking_rate=leaking_rate, rngs=nnx.Rngs(0))
    U, W = (np.asarray(layer.kernel[...], np.float64) for layer in (cell.input, cell.recurrent))
    h, x = np.linspace(-1, 1, N), np.array([0.5, -1.0, 2.0])
    (hidden, output), activity = ojax.with_activity(cell, jnp.float32(h), jnp.float32(x))
    y = np.tanh(x @ U + h @ W)
    np.testing.assert_allclose(hidden, (1 - leaking_rate) * h + leaking_rate * y, rtol=1e-5)
    np.testing.assert_array_equal(hidden, output)
    for kernel, pre in (("input", x), ("recurrent", h)):
        ((found_pre, found_post),) = nnx.as_pure(activity)[kernel]["kernel"]
        np.testing.assert_allclose(found_pre, pre, rtol=1e-6)
        np.testing.assert_allclose(found_post, y, rtol=1e-5)


def test_ojas_rule_on_both_kernels_is_that_of_the_stacked_matrix():
    cell = recurrent.Cell(N_IN, N, rngs=nnx.Rngs(0))
    h, x = jnp.linspace(-1, 1, N), jnp.array([0.5, -1.0, 2.0])
    (y, _), activity = ojax.with_activity(cell, h, x)
    params = nnx.state(cell, nnx.Param)
    tx = ojax.oja(0.1)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params, activity=activity)
    stacked = np.concatenate([cell.input.kernel[...], cell.recurrent.kernel[...]]).astype(np.float64)
    pre, y = np.concatenate([x, h]).astype(np.float64), np.asarray(y, np.float64)
    change = 0.1 * np.outer(pre - stacked @ y, y)
    np.testing.assert_allclose(updates["input"]["kernel"][...], change[:N_IN], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(updates["recurrent"]["kernel"][...], change[N_IN:], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("make", [Simple, GRU])
def test_over_a_sequence_a_rule_averages_over_the_steps(make):
    tx, xs = ojax.oja(0.1), sequence()

    def update(model, activity):
        params = nnx.state(model, nnx.Param)
        zeros = jax.tree.map(jnp.zeros_like, params)
        return tx.update(zeros, tx.init(params), params, activity=activity)[0]

    @jax.jit
    def both():
        rnn = nnx.RNN(make(N_IN, N, rngs=nnx.Rngs(0)), return_carry=True)
        (carry, outputs), activity = ojax.with_activity(rnn, xs)
        together = update(rnn, activity)["cell"]
        hidden, separate, hiddens = jnp.zeros(N), [], []
        for x in xs:
            (hidden, _), of_step = ojax.with_activity(rnn.cell, hidden, x)
            separate.append(update(rnn.cell, of_step))
            hiddens.append(hidden)
        mean = jax.tree.map(lambda *steps: sum(steps) / len(steps), *separate)
        return (carry, outputs, jax.tree.leaves(together)), (hidden, jnp.stack(hiddens), jax.tree.leaves(mean))

    for one, other in zip(*map(jax.tree.leaves, both()), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    changes = both()[0][2]
    assert [bool(jnp.any(leaf != 0)) for leaf in changes] == [leaf.ndim == 2 for leaf in changes]  # Kernels, not biases.


def test_the_gradient_of_a_sequence_comes_with_its_activity():
    rnn = nnx.RNN(recurrent.Cell(N_IN, N, rngs=nnx.Rngs(0)))
    xs = sequence(batch=(2,))

    def loss_fn(model, xs):
        return jnp.sum(model(xs)[:, -1] ** 2)

    (loss, activity), grads = ojax.value_and_grad(loss_fn)(rnn, xs)
    ((pre, post),) = nnx.as_pure(activity)["cell"]["recurrent"]["kernel"]
    assert pre.shape == post.shape == (4, 2, N)  # Steps, batch, units.
    U, W = (jnp.asarray(layer.kernel[...]) for layer in (rnn.cell.input, rnn.cell.recurrent))

    def plain(U, W):
        h = jnp.zeros((2, N))
        for step in range(4):
            h = jnp.tanh(xs[:, step] @ U + h @ W)
        return jnp.sum(h**2)

    np.testing.assert_allclose(loss, plain(U, W), rtol=1e-5)
    for name, grad in zip(("input", "recurrent"), jax.grad(plain, (0, 1))(U, W), strict=True):
        np.testing.assert_allclose(nnx.as_pure(grads)["cell"][name]["kernel"], grad, rtol=1e-3, atol=1e-5)


def test_what_makes_no_sense_is_refused():
    for rate in (0.0, 1.5):
        with pytest.raises(ValueError, match="leaking_rate must be above 0"):
            recurrent.Cell(1, 2, leaking_rate=rate, rngs=nnx.Rngs(0))


def test_a_plastic_readout_records_and_another_does_not():
    for readout, calls in ((None, 0), (jax.nn.softmax, 1)):
        network = recurrent.Network(recurrent.Cell(N_IN, N, rngs=nnx.Rngs(0)), 2, readout=readout, rngs=nnx.Rngs(1))
        (_, output), activity = ojax.with_activity(network, network.initialize_carry(), jnp.ones(N_IN))
        assert len(nnx.as_pure(activity)["readout"]["kernel"]) == calls
        np.testing.assert_array_equal(output, 0)
