"""Streams whose task changes: their samples, training on them as on arrays, and resuming."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ojax
from ojax import datasets, online, streams
from ojax.online import memory
from tests.ojax.online.networks import assert_same_scores, mlp_learner

pytestmark = pytest.mark.compiled_quickly

PERIOD, COUNT = 7, 40
HYPER, SEEDS = {"learning_rate": [0.1, 0.1, 1e30], "oja_rate": [0.0, 1e-2, 0.0]}, [0, 1, 1]


@functools.cache
def small():
    """Returns 30 samples of 6 different pixels, 3 in 10 of the first class, and 4 test samples."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2, 3], [3, 7, 9, 11])[rng.permutation(30)]
    return datasets.Dataset.from_arrays(
        rng.permuted(np.arange(180.0) / 180).reshape(30, 6), labels, np.eye(6)[:4], [0, 1, 2, 3]
    )


KINDS = {
    "pixels": streams.permuted_pixels,
    "labels": streams.permuted_labels,
    "gain": streams.drifting_gain,
    "classes": streams.classes_in_sequence,
}


@functools.cache
def taken(kind, seed=0, **options):
    """Returns the first samples of a stream."""
    stream = KINDS[kind](small(), period=PERIOD, **options).train
    shown = jax.jit(lambda key: streams.take(stream, stream.init(key, stream.data), COUNT))(jax.random.key(seed))
    return jax.tree.map(np.asarray, shown)


def rows_of(inputs):
    """Returns the rows of which the inputs are permutations."""
    sets = [frozenset(np.round(row * 180).astype(int)) for row in small().train.inputs]
    return [sets.index(frozenset(np.round(row * 180).astype(int))) for row in inputs]


def test_pixels_are_permuted_by_one_permutation_per_task():
    inputs, targets = taken("pixels")
    rows = rows_of(inputs)
    original = small().train.inputs[rows]
    np.testing.assert_array_equal(targets, small().train.targets[rows])
    assert sorted(rows[:30]) == list(range(30)) and rows[30:] != rows[:10]  # All rows, and then all again in another order.
    orders = [[row.tolist().index(pixel) for pixel in shown] for row, shown in zip(original, inputs, strict=True)]
    tasks = [orders[start : start + PERIOD] for start in range(0, COUNT, PERIOD)]
    assert all(order == task[0] for task in tasks for order in task)
    assert len({tuple(task[0]) for task in tasks}) == len(tasks)


def test_labels_are_permuted_and_tasks_come_again():
    inputs, targets = taken("labels", num_tasks=2)
    labels = small().train.targets[rows_of(inputs)]
    pairs = list(zip(labels.tolist(), targets.tolist(), strict=True))
    maps = [dict(pairs[start : start + PERIOD]) for start in range(0, COUNT, PERIOD)]
    for first, second in itertools.combinations(range(len(maps)), 2):
        both = maps[first].keys() & maps[second].keys()
        assert all(maps[first][label] == maps[second][label] for label in both) == (first % 2 == second % 2)
    assert all(len(set(task.values())) == len(task) for task in maps)


def test_the_gain_drifts_from_task_to_task():
    shown = taken("gain", low=0.5, high=2.0).inputs
    rows = {row: small().train.inputs[row] for row in range(30)}
    gains = []
    for inputs in shown:  # Each input is its row times a gain; the ratios of pixels identify the row.
        ratios = {row: inputs / np.maximum(pixels, 1e-9) for row, pixels in rows.items()}
        row = min(ratios, key=lambda row: np.std(ratios[row][rows[row] > 0]))
        gains.append(np.median(ratios[row][rows[row] > 0]))
    steps = np.diff(np.log(gains))
    assert min(gains) >= 0.5 and max(gains) <= 2 and np.ptp(gains) > 0.3
    for start in range(0, COUNT - PERIOD, PERIOD):
        np.testing.assert_allclose(steps[start : start + PERIOD], steps[start], atol=1e-4)


def test_classes_come_in_sequence_and_each_shows_all_of_its_samples():
    inputs, targets = taken("classes")
    tasks = [set(targets[start : start + PERIOD].tolist()) for start in range(0, COUNT, PERIOD)]
    assert all(len(task) <= 2 for task in tasks) and tasks[0] | tasks[1] == {0, 1, 2, 3}
    assert tasks[2] <= tasks[0] | tasks[2] and len(tasks[0] | tasks[2] | tasks[4]) == 2
    rows = np.array(rows_of(inputs))
    np.testing.assert_array_equal(targets, small().train.targets[rows])
    for label, size in enumerate([3, 7, 9, 11]):
        of_class = rows[targets == label]
        assert len(set(of_class[:size])) == min(size, len(of_class))


@pytest.mark.parametrize("kind", KINDS)
def test_another_seed_sees_another_stream(kind):
    one, other = taken(kind), taken(kind, seed=1)
    assert not np.array_equal(one.inputs, other.inputs)


def shifted(sample, task, key):
    return sample._replace(inputs=jnp.roll(sample.inputs, jax.random.randint(key, (), 1, 6)))


@functools.cache
def case(optimizer=None, batch_size=1):
    """Returns a learner of ReLU units with biases, and a stream with a custom change."""
    options = {"activation": jax.nn.relu, "use_bias": True}
    learner = mlp_learner((6, 5, 4), **options)
    data = streams.changing(small(), shifted, period=PERIOD)
    return learner, data, online.Plan(COUNT, (11 if batch_size == 1 else 12, COUNT), batch_size=batch_size)


def as_arrays(data, plan, seed):
    """Returns a seed's samples as arrays, in their order."""
    stream = data.train
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 0), 3)
    train = jax.jit(lambda key: streams.take(stream, stream.init(key, stream.data), plan.num_train))(key)
    return data._replace(train=jax.tree.map(np.asarray, train))


@pytest.mark.parametrize(("windows", "batch_size"), [("require", 1), ("off", 4)])
def test_a_run_learns_from_a_stream_as_from_arrays_until_it_diverges_too(windows, batch_size):
    learner, data, plan = case(batch_size=batch_size)
    found = list(online.train(learner, HYPER, SEEDS, data, plan, windows=windows))
    of_seed_1 = {name: values[1:] for name, values in HYPER.items()}
    arrays, in_order = as_arrays(data, plan, 1), plan._replace(shuffle=False)
    wanted = online.train(learner, of_seed_1, [1, 1], arrays, in_order, windows=windows)
    for (_, scores), (_, want) in zip(found, wanted, strict=True):
        for name in ("train_loss", "train_accuracy", "weight_norm"):
            np.testing.assert_allclose(scores[name][1], want[name][0], rtol=1e-5)
        for name in ("diverged_at", "diverged_layer"):
            np.testing.assert_array_equal(scores[name][1:], want[name])
    assert scores["diverged_at"][2] > 0 and (scores["diverged_at"][:2] == -1).all()
    assert scores["train_loss"][0] != scores["train_loss"][1]


@pytest.mark.parametrize("value", [3e38, np.nan])
def test_a_run_that_diverges_in_a_stream_is_frozen_there_with_windows_too(value):
    """From task 5 on labels are reversed, and the first class ends learning; its window begins in task 3."""

    def change(sample, task, key):
        inputs = jnp.where((task >= 5) & (sample.targets == 0), value, sample.inputs)
        return sample._replace(inputs=inputs, targets=jnp.where(task >= 5, 3 - sample.targets, sample.targets))

    data = streams.changing(small(), change, period=9)
    hyper, plan = {"learning_rate": [1e-1], "oja_rate": [0.0]}, online.Plan(100, (100,))
    learner = mlp_learner((6, 5, 4), activation=jax.nn.relu)
    found = [
        dict(list(online.train(learner, hyper, [0], data, plan, windows=windows))[-1][1]) for windows in ("require", "off")
    ]
    assert found[0]["diverged_at"][0] == found[1]["diverged_at"][0] >= 45
    for name in ("test_loss", "test_accuracy", "weight_norm"):
        np.testing.assert_allclose(found[0][name], found[1][name], rtol=1e-4)
    assert np.isfinite(found[0]["weight_norm"]).all()


def test_a_stream_resumes_in_the_middle_of_a_task_to_the_same_bits(tmp_path):
    learner, data, plan = case()
    arguments = (learner, HYPER, SEEDS, data, plan)
    undisturbed = list(online.train(*arguments))
    calls = itertools.count(1)
    stopping = online.Checkpoints(tmp_path, every_samples=3, stop=lambda: next(calls) == 2)
    with stopping as kept, pytest.raises(online.Interrupted):
        list(online.train(*arguments, checkpoints=kept))
    seen = []
    with online.Checkpoints(tmp_path) as kept:
        resumed = list(online.train(*arguments, checkpoints=kept, on_progress=seen.append))
    assert 0 < seen[0] < COUNT and seen[0] % PERIOD
    assert_same_scores(resumed, undisturbed)


def test_a_stream_of_another_period_does_not_resume(tmp_path):
    learner, data, plan = case()
    calls = itertools.count(1)
    stopping = online.Checkpoints(tmp_path, every_samples=3, stop=lambda: next(calls) == 2)
    with stopping as kept, pytest.raises(online.Interrupted):
        list(online.train(learner, HYPER, SEEDS, data, plan, checkpoints=kept))
    other = streams.changing(small(), shifted, period=PERIOD + 1)
    with (
        online.Checkpoints(tmp_path) as kept,
        pytest.raises(ValueError, match="another training, which differs in its stream"),
    ):
        online.train(learner, HYPER, SEEDS, other, plan, checkpoints=kept)


def test_test_samples_are_those_of_the_present_and_of_the_first_task():
    data = streams.permuted_pixels(small(), period=PERIOD, first_again=True)
    stream = data.train

    @jax.jit
    def after(key, steps):
        step = functools.partial(stream.advance, data=stream.data)
        state = jax.lax.fori_loop(0, steps, lambda i, state: step(state, i)[0], stream.init(key, stream.data))
        return state.made, stream.test(state, steps, stream.data, data.test)

    orders = []
    for steps in (0, PERIOD, PERIOD + 1):
        order, shown = after(jax.random.key(0), steps)
        orders.append(np.asarray(order).tolist())
        np.testing.assert_array_equal(shown["now"].inputs, small().test.inputs[:, order])
        np.testing.assert_array_equal(shown["first"].inputs, small().test.inputs[:, orders[0]])
    assert orders[0] == orders[1] != orders[2]


def test_memory_does_not_grow_with_the_stream():
    learner, data, _ = case()

    def size(num_train, dataset):
        run, state, _ = memory._shapes(learner, tuple(HYPER), dataset, online.Plan(num_train, (num_train,)))
        return memory._num_bytes((run, state))

    assert size(1000, data) == size(10**6, data)
    longer = datasets.Dataset(datasets.Examples(*(np.repeat(part, 50, axis=0) for part in small().train)), small().test)
    assert size(1000, longer) > size(10, longer)  # The stored order of arrays does grow.


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: streams.permuted_pixels(small(), period=0), "period must be a whole number of at least 1, got 0"),
        (lambda: streams.permuted_pixels(small(), period=5, num_tasks=1.5), "num_tasks must be a whole number"),
        (lambda: streams.classes_in_sequence(small(), period=5, num_tasks=0), "num_tasks must be a whole number"),
        (lambda: streams.drifting_gain(small(), period=5, low=0), "0 < low <= high"),
        (lambda: streams.classes_in_sequence(small(), period=5, per_task=5), "per_task must be from 1 to the 4 classes"),
        (lambda: streams.permuted_labels(small()._replace(train=small().test.inputs), period=5), "ojax.datasets.Examples"),
        (lambda: streams.permuted_pixels(case()[1], period=5), "ojax.datasets.Examples"),
        (lambda: streams.changing(case()[1], shifted, period=5), "is a stream already"),
        (lambda: online.train(case()[0], HYPER, SEEDS, case()[1], online.Plan(20, (40,), epochs=2)), "num_train=40"),
        (lambda: online.train(mlp_learner((6, 5, 3)), HYPER, SEEDS, *case()[1:]), "must be from 0 to 2"),
        (
            lambda: online.train(case()[0], HYPER, SEEDS, streams.changing(small(), lambda *_: 1 / 0, period=5), case()[2]),
            "The stream fails: division by zero",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(make, words):
    with pytest.raises(ValueError, match=words) as refused:
        make()
    assert "\n" not in str(refused.value)


def test_the_facts_of_a_stream_are_those_of_its_data():
    assert datasets.facts(case()[1]) == {**datasets.facts(small()), "stream": True}
    assert isinstance(case()[1].train, ojax.datasets.Stream)
