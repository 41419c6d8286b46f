"""All runs of a grid in parallel: no run depends on other runs, on the devices, or on progress."""

import os
import pickle
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ojax
from ojax import online
from ojax.online import devices, networks
from tests.ojax.online.networks import assert_same_scores, mlp_learner, oja_sgd, small_data, step_by_step

# Tests share its programs: five runs, or fewer with padding.
PLAN, SLOTS = online.Plan(120, (0, 7, 50, 119, 120)), 5
EITHER_PATH = pytest.mark.parametrize("optimizer", [oja_sgd, step_by_step], ids=["windows", "step by step"])


def train(plan, etas, thetas, seeds, optimizer=oja_sgd, **options):
    hyper = {"learning_rate": etas, "oja_rate": thetas}
    return list(online.train(mlp_learner((784, 12, 10), optimizer), hyper, seeds, small_data(), plan, **options))


def run_of(scores, runs):
    return {name: column[runs] for name, column in scores.items()}


def test_a_run_is_bit_for_bit_equal_whatever_other_runs_there_are():
    alone = train(PLAN, [1e-2], [1e-3], [5])
    etas, thetas, seeds = [1e-3, 1e-2, 3e-2, 1e-2, 1e-2], [0.0, 1e-3, 1e-4, 0.0, 1e-3], [5, 5, 1, 2, 3]
    among, again = (train(PLAN, etas, thetas, seeds) for _ in range(2))
    assert_same_scores(among, again)
    assert_same_scores(
        [(seen, run_of(one, [0])) for seen, one in alone], [(seen, run_of(many, [1])) for seen, many in among]
    )


@pytest.mark.parametrize(("optimizer", "rtol"), [(step_by_step, 0), (oja_sgd, 1e-5)], ids=["step by step", "windows"])
def test_evaluations_do_not_disturb_a_run(optimizer, rtol):
    """Bit for bit without windows. A window ends at an evaluation, which changes the order of summation."""
    once = train(online.Plan(120, (120,)), [1e-2], [1e-3], [0], optimizer)
    often = train(PLAN, [1e-2], [1e-3], [0], optimizer)
    assert [count for count, _ in often] == [0, 7, 50, 119, 120]
    for name in ("test_accuracy", "test_loss", "weight_norm", "diverged_at"):
        np.testing.assert_allclose(once[-1][1][name], often[-1][1][name], rtol=rtol)
    assert np.isnan(often[0][1]["train_loss"]).all()
    spans = np.diff([0, 0, 7, 50, 119, 120])[1:]
    mean = sum(span * scores["train_loss"] for span, (_, scores) in zip(spans, often[1:], strict=True)) / 120
    np.testing.assert_allclose(mean, once[-1][1]["train_loss"], rtol=1e-5)


def test_seeds_pair_rules_and_differ_from_each_other():
    (_, at_start), *_, (_, at_end) = train(PLAN, [1e-2] * 3, [0.0, 1e-3, 0.0], [4, 4, 5], num_slots=SLOTS)
    norms = at_start["weight_norm"]
    np.testing.assert_array_equal(norms[0], norms[1])
    assert not np.array_equal(norms[0], norms[2])
    assert len(set(at_end["test_loss"].tolist())) == 3


def test_several_epochs_and_batches_learn():
    plan = online.Plan(num_train=1000, evaluate_at=(2000, 3968), epochs=4, batch_size=8)
    # 1000 // 8 * 8 * 4 = 4000 samples would fit; ending earlier is allowed.
    (_, first), (_, last) = train(plan, [3e-2], [0.0], [0])
    assert last["test_accuracy"][0] > 0.5
    assert last["train_loss"][0] < first["train_loss"][0]


def test_a_run_that_diverges_is_frozen_and_harms_no_other():
    healthy = train(PLAN, [1e-2, 1e-2], [1e-3, 0.0], [0, 1], num_slots=SLOTS)
    mixed = train(PLAN, [1e-2, 1e6, 1e-2], [1e-3, 1e6, 0.0], [0, 0, 1], num_slots=SLOTS)
    assert_same_scores(healthy, [(seen, run_of(beside, [0, 2])) for seen, beside in mixed])
    assert all((clean["diverged_at"] == -1).all() and (clean["diverged_layer"] == -1).all() for _, clean in healthy)
    since = [scores for seen, scores in mixed if seen >= 50]
    when = [int(scores["diverged_at"][1]) for scores in since]
    assert 0 < when[0] < 50 and len(set(when)) == 1
    layers = [int(scores["diverged_layer"][1]) for scores in since]
    assert 1 <= layers[0] <= 2 and len(set(layers)) == 1
    frozen = [scores["weight_norm"][1] for scores in since]
    np.testing.assert_array_equal(frozen[0], frozen[-1])


@EITHER_PATH
def test_a_run_that_has_diverged_is_counted_and_no_more(optimizer):
    """It takes no further step, and its sums are those of its frozen weights."""
    updates = []

    def noted(hyper):
        def rate(count):
            jax.debug.callback(updates.append, count)
            return hyper["learning_rate"]

        return optimizer({**hyper, "learning_rate": rate})

    def loss(logits, label):
        """Returns the cross-entropy, with a NaN derivative at label 3."""
        other = (label != 3).astype(jnp.float32)
        return networks.cross_entropy(logits, label) + jnp.sqrt(0 * jnp.sum(logits) + other) - other

    def network(rngs):
        return ojax.MLP((784, 12, 10), rngs=rngs)

    learner = online.supervised(network, noted, loss=loss, metrics={"accuracy": networks.is_right})
    hyper, plan = {"learning_rate": [1e-2], "oja_rate": [1e-3]}, online.Plan(90, (40, 90))
    training = online.train(learner, hyper, [0], small_data(), plan)
    (_, scores), (_, frozen) = training
    jax.effects_barrier()
    order = online.sample_order(plan, small_data().num_train, 0)[:, 0]
    samples = jax.tree.map(lambda array: jnp.asarray(array)[order], small_data().train)
    diverged = int(np.argmax(samples.targets == 3))
    assert 0 < diverged < 40 and scores["diverged_at"] == frozen["diverged_at"] == diverged
    assert len(updates) == diverged + 1  # The last one is not kept.

    params, state = jax.tree.map(lambda leaf: leaf[0], (training.params, training.state))
    sums = jax.vmap(lambda sample: learner.gradient(params, state, sample, {}).sums)(samples)
    for name in ("train_loss", "train_accuracy"):
        assert np.isfinite(frozen[name])
        np.testing.assert_allclose(frozen[name], np.mean(sums[name].total[40:]), rtol=1e-6)


def test_runs_mapped_by_vmap_as_on_gpu_and_tpu_are_the_same_to_rounding(monkeypatch):
    settings = ([1e-2, 1e6, 1e-2], [1e-4, 1e6, 0.0], [0, 0, 1])
    looped = train(PLAN, *settings, num_slots=SLOTS)
    monkeypatch.setattr(devices, "sequential", lambda mesh: False)
    plan = PLAN._replace(evaluate_at=PLAN.evaluate_at[:-1])  # Another plan, so that no cached program is used.
    for (_, one), (_, other) in zip(looped[:-1], train(plan, *settings), strict=True):
        for name in ("diverged_at", "diverged_layer"):
            np.testing.assert_array_equal(one[name], other[name])
        np.testing.assert_allclose(one["weight_norm"][[0, 2]], other["weight_norm"][[0, 2]], rtol=1e-4)
        np.testing.assert_allclose(one["test_loss"][[0, 2]], other["test_loss"][[0, 2]], rtol=1e-3)


@EITHER_PATH
def test_looking_on_makes_no_difference(optimizer):
    """Progress divides the work into pieces, without changing a bit."""
    seen, plan = [], online.Plan(300, (150, 300))
    plain = train(plan, [1e-2], [1e-3], [0], optimizer)
    watched = train(plan, [1e-2], [1e-3], [0], optimizer, on_progress=seen.append)
    assert len(seen) > 3 and seen[-1] == 300
    assert_same_scores(plain, watched)


def test_hyper_parameters_of_another_length():
    with pytest.raises(ValueError, match="one value per run"):
        train(online.Plan(10, (10,)), [1e-2], [0.0, 1.0], [0, 1])


def test_a_grid_has_every_combination():
    hyper, seeds = online.grid({"a": [1.0, 2.0], "b": [3.0, 4.0]}, seeds=[7, 8])
    assert list(zip(hyper["a"], hyper["b"], seeds, strict=True)) == [
        (a, b, seed) for a in (1.0, 2.0) for b in (3.0, 4.0) for seed in (7, 8)
    ]
    assert online.grid({}, seeds=[1]) == ({}, [1])


def test_scores_become_columns():
    columns = online.columns({"loss": np.zeros(3), "norm": np.arange(6).reshape(3, 2), "plane": np.ones((3, 1, 2))})
    assert list(columns) == ["loss", "norm_1", "norm_2", "plane_1_1", "plane_1_2"]
    np.testing.assert_array_equal(columns["norm_2"], [1, 3, 5])


def on_devices(count):
    """Returns the scores of five runs on `count` CPU devices; each count needs its own process."""
    script = textwrap.dedent("""
        import pickle, sys, jax
        jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
        from tests.ojax.online import training_test
        assert jax.device_count() == int(sys.argv[1])
        with open(sys.argv[2], "wb") as file:
            pickle.dump(training_test.five_runs(), file)
    """)
    with tempfile.NamedTemporaryFile() as file:
        command, environment = [sys.executable, "-c", script, str(count), file.name], os.environ | {"JAX_PLATFORMS": "cpu"}
        subprocess.run(command, check=True, env=environment, cwd=Path(__file__).parents[3])
        return pickle.load(file)


def five_runs():
    return train(PLAN, [1e-2] * 5, [0, 1e-4, 1e-3, 0, 1e-4], [0, 0, 0, 1, 1])


def test_results_are_the_same_on_any_number_of_devices():
    """Bit for bit on CPU devices, also where the runs do not divide evenly."""
    assert jax.device_count() == 1
    here = five_runs()
    for count in (2, 8):
        assert_same_scores(on_devices(count), here)


def test_the_seed_may_be_any_of_32_bits():
    *_, (_, scores) = train(PLAN, [1e-2] * 2, [0.0] * 2, [2**32 - 1, jnp.uint32(5)], num_slots=SLOTS)
    assert np.isfinite(scores["test_loss"]).all() and len(set(scores["test_loss"].tolist())) == 2
