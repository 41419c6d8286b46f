"""Convolutional networks are trained by `train` like dense ones, on images that keep their shape."""

import itertools
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import ojax
from ojax import datasets, online
from ojax.online.weights import SavedWeights
from tests.ojax.online.networks import assert_same_scores, has_first_layer, oja_sgd

pytestmark = pytest.mark.compiled_quickly

# The last run diverges.
HYPER = {"learning_rate": [3e-2, 3e-2, 1e6], "oja_rate": [0.0, 1e-3, 1e-3]}
SEEDS = [0, 0, 1]
PLAN = online.Plan(800, (100, 800))


def images():
    data = datasets.load(flatten=False)
    return data._replace(test=datasets.Examples(*(array[:100] for array in data.test)))


LEARNER = online.classifier(lambda rngs: ojax.CNN((28, 28, 1), [8], 10, strides=3, rngs=rngs), oja_sgd)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def undisturbed(folder):
    """Returns the scores of all runs, and saves their final weights."""

    def save(params, state):
        SavedWeights(folder).save("0", LEARNER.apply, images(), [{"run": run} for run in range(3)], params, state)

    return list(online.train(LEARNER, HYPER, SEEDS, images(), PLAN, on_trained=save))


def test_it_learns_and_a_run_that_diverges_harms_no_other(undisturbed):
    _, last = undisturbed[-1]
    assert (last["test_accuracy"][:2] > 0.4).all() and last["test_loss"][0] != last["test_loss"][1]
    assert last["diverged_at"][:2].tolist() == [-1, -1] and 0 < last["diverged_at"][2] < 100
    assert 1 <= last["diverged_layer"][2] <= 2 and last["weight_norm"].shape == (3, 2)
    assert not has_first_layer(LEARNER, images())  # Its first kernel does not multiply a vector.
    alone = list(online.train(LEARNER, {name: values[:2] for name, values in HYPER.items()}, SEEDS[:2], images(), PLAN))
    for (_, one), (_, many) in zip(alone, undisturbed, strict=True):
        for name, column in one.items():
            np.testing.assert_array_equal(column, many[name][:2])


def test_its_weights_are_read_back_with_the_network(undisturbed, folder):
    run, test = ojax.load_weights(folder, run={"run": 1}), images().test
    assert run.params["layers/0/kernel"].shape == (3, 3, 1, 8)
    accuracy = np.mean(np.argmax(run.network(test.inputs), axis=-1) == test.targets)
    np.testing.assert_allclose(accuracy, undisturbed[-1][1]["test_accuracy"][1], atol=1e-6)


def test_interrupted_and_resumed_it_ends_with_the_same_bits(undisturbed, tmp_path):
    calls = itertools.count(1)
    stopping = online.Checkpoints(tmp_path, every_samples=64, stop=lambda: next(calls) == 3)
    with stopping as kept, pytest.raises(online.Interrupted):
        list(online.train(LEARNER, HYPER, SEEDS, images(), PLAN, checkpoints=kept))
    seen = []
    with online.Checkpoints(tmp_path) as kept:
        resumed = online.train(LEARNER, HYPER, SEEDS, images(), PLAN, checkpoints=kept, on_progress=seen.append)
        assert_same_scores(list(resumed), undisturbed)
    assert seen[0] > 0


def test_mapped_by_vmap_over_two_devices_as_on_gpus_it_is_the_same_to_rounding(undisturbed, tmp_path):
    script = textwrap.dedent("""
        import sys, jax, numpy as np
        jax.config.update("jax_num_cpu_devices", 2)
        from ojax import online
        from tests.ojax.online import convolution_test as here
        online.devices.sequential = lambda mesh: False
        plan = here.PLAN._replace(num_train=100, evaluate_at=(100,))
        ((_, scores),) = online.train(here.LEARNER, here.HYPER, here.SEEDS, here.images(), plan)
        np.savez(sys.argv[1], **scores)
    """)
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "scores.npz")], check=True)
    (_, looped), _ = undisturbed
    with np.load(tmp_path / "scores.npz") as mapped:
        np.testing.assert_array_equal(mapped["diverged_at"], looped["diverged_at"])
        np.testing.assert_allclose(mapped["weight_norm"][:2], looped["weight_norm"][:2], rtol=1e-4)
        np.testing.assert_allclose(mapped["test_loss"][:2], looped["test_loss"][:2], rtol=1e-3)
