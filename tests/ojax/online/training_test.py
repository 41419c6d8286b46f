"""All runs of a grid side by side: no run depends on what stands beside it, on the devices, or on who looks on."""

import os
import subprocess
import sys
import textwrap

import jax.numpy as jnp
import numpy as np
import pytest

from ojax import online
from ojax.online import devices
from tests.ojax.online.networks import assert_same_scores, mlp_learner, oja_sgd, small_data, step_by_step

EITHER_PATH = pytest.mark.parametrize("optimizer", [oja_sgd, step_by_step], ids=["windows", "step by step"])


def train(schedule, etas, thetas, seeds, optimizer=oja_sgd, **options):
    hyper = {"learning_rate": etas, "oja_rate": thetas}
    return list(online.train(mlp_learner((784, 12, 10), optimizer), hyper, seeds, small_data(), schedule, **options))


def run_of(scores, runs):
    return {name: column[runs] for name, column in scores.items()}


def test_a_run_is_the_same_bit_for_bit_whatever_stands_beside_it():
    schedule = online.Schedule(num_train=120, evaluate_at=(50, 120))
    alone = train(schedule, [1e-2], [1e-3], [5])
    etas, thetas, seeds = [1e-3, 1e-2, 3e-2, 1e-2, 1e-2], [0.0, 1e-3, 1e-4, 0.0, 1e-3], [5, 5, 1, 2, 3]
    among, again = (train(schedule, etas, thetas, seeds) for _ in range(2))
    assert_same_scores(among, again)
    assert_same_scores(
        [(seen, run_of(one, [0])) for seen, one in alone], [(seen, run_of(many, [1])) for seen, many in among]
    )


@pytest.mark.parametrize(("optimizer", "rtol"), [(step_by_step, 0), (oja_sgd, 1e-5)], ids=["step by step", "windows"])
def test_evaluations_do_not_disturb_a_run(optimizer, rtol):
    """Bit for bit step by step. A window ends at an evaluation, which is another order of the same sums."""
    once = train(online.Schedule(120, (120,)), [1e-2], [1e-3], [0], optimizer)
    often = train(online.Schedule(120, (0, 7, 50, 119, 120)), [1e-2], [1e-3], [0], optimizer)
    assert [count for count, _ in often] == [0, 7, 50, 119, 120]
    for name in ("test_accuracy", "test_loss", "weight_norm", "diverged_at"):
        np.testing.assert_allclose(once[-1][1][name], often[-1][1][name], rtol=rtol)
    assert np.isnan(often[0][1]["train_loss"]).all()
    spans = np.diff([0, 0, 7, 50, 119, 120])[1:]
    mean = sum(span * scores["train_loss"] for span, (_, scores) in zip(spans, often[1:], strict=True)) / 120
    np.testing.assert_allclose(mean, once[-1][1]["train_loss"], rtol=1e-5)


def test_seeds_pair_rules_and_differ_from_each_other():
    at_start = train(online.Schedule(50, (0, 50)), [1e-2, 1e-2, 1e-2], [0.0, 1e-3, 0.0], [4, 4, 5])
    norms = at_start[0][1]["weight_norm"]
    np.testing.assert_array_equal(norms[0], norms[1])
    assert not np.array_equal(norms[0], norms[2])
    assert len(set(at_start[1][1]["test_loss"].tolist())) == 3


def test_several_epochs_and_batches_learn():
    schedule = online.Schedule(num_train=1000, evaluate_at=(2000, 3968), epochs=4, batch_size=8)
    # 1000 // 8 * 8 * 4 = 4000 samples would fit; ending earlier is allowed.
    (_, first), (_, last) = train(schedule, [3e-2], [0.0], [0])
    assert last["test_accuracy"][0] > 0.5
    assert last["train_loss"][0] < first["train_loss"][0]


def test_a_run_that_diverges_is_frozen_and_harms_no_other():
    schedule = online.Schedule(num_train=100, evaluate_at=(50, 80, 100))
    healthy = train(schedule, [1e-2, 1e-2], [1e-3, 0.0], [0, 1])
    mixed = train(schedule, [1e-2, 1e6, 1e-2], [1e-3, 1e6, 0.0], [0, 0, 1])
    assert_same_scores(healthy, [(seen, run_of(beside, [0, 2])) for seen, beside in mixed])
    assert all((clean["diverged_at"] == -1).all() and (clean["diverged_layer"] == -1).all() for _, clean in healthy)
    when = [int(scores["diverged_at"][1]) for _, scores in mixed]
    assert 0 < when[0] < 50 and len(set(when)) == 1
    layers = [int(scores["diverged_layer"][1]) for _, scores in mixed]
    assert 1 <= layers[0] <= 2 and len(set(layers)) == 1
    frozen = [scores["weight_norm"][1] for _, scores in mixed]
    np.testing.assert_array_equal(frozen[0], frozen[-1])


def test_runs_mapped_by_vmap_as_on_gpu_and_tpu_are_the_same_to_rounding(monkeypatch):
    schedule = online.Schedule(num_train=100, evaluate_at=(50, 99, 100))
    settings = ([1e-2, 1e6, 1e-2], [1e-4, 1e6, 0.0], [0, 0, 1])
    looped = train(schedule, *settings)
    monkeypatch.setattr(devices, "_one_by_one", lambda mesh: False)
    schedule = schedule._replace(evaluate_at=(50, 100))  # Another, so that nothing is remembered.
    for (_, one), (_, other) in zip([looped[0], looped[2]], train(schedule, *settings), strict=True):
        for name in ("diverged_at", "diverged_layer"):
            np.testing.assert_array_equal(one[name], other[name])
        np.testing.assert_allclose(one["weight_norm"][[0, 2]], other["weight_norm"][[0, 2]], rtol=1e-4)
        np.testing.assert_allclose(one["test_loss"][[0, 2]], other["test_loss"][[0, 2]], rtol=1e-3)


@EITHER_PATH
def test_looking_on_makes_no_difference(optimizer):
    """Progress cuts the work into pieces; the bits stay."""
    seen, schedule = [], online.Schedule(300, (150, 300))
    plain = train(schedule, [1e-2], [1e-3], [0], optimizer)
    watched = train(schedule, [1e-2], [1e-3], [0], optimizer, on_progress=seen.append)
    assert len(seen) > 3 and seen[-1] == 300
    assert_same_scores(plain, watched)


def test_hyper_parameters_of_another_length():
    with pytest.raises(ValueError, match="one value a run"):
        train(online.Schedule(10, (10,)), [1e-2], [0.0, 1.0], [0, 1])


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


def test_results_are_the_same_on_any_number_of_devices(tmp_path):
    """Bit for bit on CPU devices, also where the runs do not divide evenly; each count in a process of its own."""
    script = textwrap.dedent("""
        import sys, jax, numpy as np
        jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
        import ojax
        from ojax import datasets, online
        rule = lambda hyper: ojax.oja_sgd(hyper["learning_rate"], hyper["oja_rate"])
        learner = online.classifier(lambda rngs: ojax.MLP([784, 20, 10], rngs=rngs), rule)
        hyper = {"learning_rate": [1e-2] * 5, "oja_rate": [0, 1e-4, 1e-3, 0, 1e-4]}
        schedule = online.Schedule(60, (30, 60))
        scores = list(online.train(learner, hyper, [0, 0, 0, 1, 1], datasets.load(), schedule))
        assert jax.device_count() == int(sys.argv[1])
        np.savez(sys.argv[2], *[column for _, found in scores for column in found.values()])
    """)
    found = []
    for count in (1, 2, 8):
        path = tmp_path / f"{count}.npz"
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        subprocess.run([sys.executable, "-c", script, str(count), str(path)], check=True, env=environment)
        with np.load(path) as arrays:
            found.append([arrays[name] for name in arrays.files])
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(one, two)


def test_the_seed_may_be_any_of_32_bits():
    schedule = online.Schedule(20, (20,))
    ((_, scores),) = train(schedule, [1e-2] * 2, [0.0] * 2, [2**32 - 1, jnp.uint32(5)])
    assert np.isfinite(scores["test_loss"]).all()
