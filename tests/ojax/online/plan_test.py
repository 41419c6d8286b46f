"""The samples of a run, their order, and its evaluations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ojax import online


def order_of(plan, train_size, seed):
    return np.asarray(online.sample_order(plan, train_size, jnp.uint32(seed)))


def test_a_shuffled_order():
    plan = online.Plan(num_train=30, evaluate_at=(90,), epochs=3)
    order = order_of(plan, 100, 1).reshape(3, 30)
    assert len(set(order[0].tolist())) == 30
    assert all(set(epoch.tolist()) == set(order[0].tolist()) for epoch in order)
    assert len({tuple(epoch) for epoch in order.tolist()}) == 3
    np.testing.assert_array_equal(order[0], order_of(plan._replace(epochs=1), 100, 1)[:, 0])
    batches = order_of(plan._replace(batch_size=8), 100, 1)
    assert batches.shape == (9, 8)  # Three whole batches per epoch; the remaining six samples are dropped.


def test_data_in_their_own_order_start_at_the_first_sample_or_where_the_seed_says():
    plan = online.Plan(num_train=30, evaluate_at=(60,), epochs=2, shuffle=False)
    for seed in range(20):
        np.testing.assert_array_equal(order_of(plan, 33, seed)[:, 0], np.tile(np.arange(30), 2))
    plan, starts = plan._replace(random_start=True), set()
    for seed in range(200):
        order = order_of(plan, 33, seed)[:, 0]
        np.testing.assert_array_equal(order, np.tile(order[0] + np.arange(30), 2))
        starts.add(int(order[0]))
    assert starts == {0, 1, 2, 3}
    orders = [order_of(plan, 1000, seed) for seed in range(5)]
    with jax.enable_x64(True):
        np.testing.assert_array_equal(orders, [order_of(plan, 1000, seed) for seed in range(5)])
    assert order_of(plan, 30, 5)[0, 0] == 0


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"num_train": 0}, "num_train"),
        ({"num_train": 10_001}, "num_train"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 101}, "batch_size"),
        ({"epochs": 0}, "epochs"),
        ({"random_start": True}, "random_start"),
        ({"evaluate_at": ()}, "evaluate_at"),
        ({"evaluate_at": (50, 50)}, "evaluate_at"),
        ({"evaluate_at": (101,)}, "evaluate_at"),
        ({"evaluate_at": (7,), "batch_size": 2}, "evaluate_at"),
    ],
)
def test_a_plan_that_does_not_fit(change, word):
    with pytest.raises(ValueError, match=word):
        online.Plan(100, (100,))._replace(**change).check(10_000)


@pytest.mark.parametrize(
    ("arguments", "want"),
    [
        ({"num_evaluations": 4, "num_train": 100}, (25, 50, 75, 100)),
        ({"num_evaluations": 200, "num_train": 3}, (1, 2, 3)),
        ({"num_evaluations": 2, "num_train": 10, "batch_size": 4, "epochs": 3}, (12, 24)),
    ],
)
def test_evaluations_are_evenly_spaced(arguments, want):
    plan = online.Plan.evenly(**arguments, shuffle=False)
    assert plan == online.Plan(
        evaluate_at=want, shuffle=False, **{k: v for k, v in arguments.items() if k != "num_evaluations"}
    )


def test_sums_of_more_samples_than_32_bits_count_are_refused():
    plan = online.Plan(1000, (2**24,), epochs=20_000)
    plan.check(1000)
    for counts in ((2**24 + 1,), (1, 2**24 + 2)):
        with pytest.raises(ValueError, match="at most 16,777,216 samples between two evaluations"):
            plan._replace(evaluate_at=counts).check(1000)
