import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ojax import online, recurrent, streams
from ojax.streams import numbers

pytestmark = pytest.mark.compiled_quickly


def taken(stream, count, seed=0):
    return jax.tree.map(
        np.asarray, jax.jit(lambda key: streams.take(stream, stream.init(key, {}), count))(jax.random.key(seed))
    )


@pytest.mark.parametrize("binary", [False, True])
def test_recall_asks_for_the_inputs_of_the_steps_before(binary):
    u, past = taken(streams.recall(3, binary=binary), 500)
    for delay in (1, 2, 3):
        np.testing.assert_array_equal(past[delay:, delay - 1], u[:-delay, 0])
        assert not past[:delay, delay - 1].any()
    assert abs(u.mean()) < 0.05 and u.min() >= -0.5 and u.max() <= 0.5
    assert set(np.unique(u)) == {-0.5, 0.5} if binary else u.var() == pytest.approx(1 / 12, rel=0.1)
    again, other = taken(streams.recall(3, binary=binary), 500), taken(streams.recall(3, binary=binary), 500, seed=1)
    np.testing.assert_array_equal(again.inputs, u)
    assert np.corrcoef(other.inputs[:, 0], u[:, 0])[0, 1] < 0.2


def test_the_generator_is_jaxs_own():
    key, count = jnp.array([123, 456], jnp.uint32), jnp.arange(8, dtype=jnp.uint32)
    wanted = jax.extend.random.threefry_2x32(key, count)  # It pairs the two halves of the counts.
    found = numbers.threefry(key, (count[:4], count[4:]))
    np.testing.assert_array_equal(np.concatenate(found), wanted)


def test_narma_is_its_recurrence():
    u, found = (part[:, 0].astype(np.float64) for part in taken(streams.narma10(), 300))
    y = np.zeros(301)
    for t in range(300):
        recent, ago = y[max(t - 9, 0) : t + 1].sum(), u[t - 9] if t >= 9 else 0
        y[t + 1] = 0.3 * y[t] + 0.05 * y[t] * recent + 1.5 * ago * u[t] + 0.1
    np.testing.assert_allclose(found, y[1:], rtol=1e-4)
    assert u.min() >= 0 and u.max() <= 0.5 and found.std() > 0.05


def test_mackey_glass_is_its_equation_and_the_target_lies_ahead():
    horizon, count = 6, 60
    stream = streams.mackey_glass(horizon)
    values, ahead = (part[:, 0] for part in taken(stream, count))
    np.testing.assert_array_equal(ahead[:-horizon], values[horizon:])
    history, _ = jax.jit(stream.init)(jax.random.key(0), {})
    past = list(np.asarray(history, np.float64)[::-1])
    for _ in range(10 * count):
        past.append(past[-1] + 0.1 * (0.2 * past[-171] / (1 + past[-171] ** 10) - 0.1 * past[-1]))
    np.testing.assert_allclose(ahead, np.array(past[170::10])[:count] - 1, atol=1e-3)
    assert np.ptp(taken(stream, 500).inputs) > 0.5


def test_a_run_is_evaluated_on_the_steps_that_come_next():
    """With a learning rate of 0 the test loss is the training loss of the following steps."""
    learner = recurrent.readout_alone(
        lambda rngs: recurrent.Network(recurrent.Cell(1, 4, rngs=rngs), 2, rngs=rngs),
        lambda hyper: optax.sgd(hyper["learning_rate"]),
    )
    data = streams.evaluated_ahead(streams.recall(2), num_test=50)
    plan = online.Plan(100, (50, 100))
    (_, first), (_, second) = online.train(learner, {"learning_rate": [0.0, 0.0]}, [0, 1], data, plan)
    np.testing.assert_allclose(first["test_loss"], second["train_loss"], rtol=1e-5)
    assert first["test_loss"][0] != first["test_loss"][1]


def test_the_copy_task_shows_its_bits_and_then_its_cue():
    inputs, bits = taken(streams.copy_task(3, delay=4), 100)
    assert inputs.shape == (100, 10, 2) and bits.shape == (100, 3)
    np.testing.assert_array_equal(inputs[:, :3, 0], 2 * bits - 1)
    np.testing.assert_array_equal(inputs[0, :, 1], [0] * 7 + [1] * 3)
    assert not inputs[:, 3:, 0].any() and 0.4 < bits.mean() < 0.6
    assert len(np.unique(bits, axis=0)) == 8


def test_what_makes_no_sense_is_refused():
    for make in (lambda: streams.recall(0), lambda: streams.mackey_glass(0), lambda: streams.copy_task(0, 1)):
        with pytest.raises(ValueError, match="at least"):
            make()
    with pytest.raises(ValueError, match="num_test must be at least 1"):
        streams.evaluated_ahead(streams.recall(2), 0)
