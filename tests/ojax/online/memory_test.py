"""How many runs are taken at once, on a CPU and on devices that report their memory."""

import sys

import jax
import numpy as np
import optax
import pytest

import ojax
from experiments.common import flags
from ojax import meta, online, plasticity
from ojax.online import memory
from tests.ojax.online.networks import RATES, mlp_learner, oja_sgd, small_data
from tests.ojax.online.networks import step_by_step as one_by_one

PLAN = online.Plan(100, (50, 100))


def test_runs_that_fit_in_memory(monkeypatch):
    def fitting(free):
        monkeypatch.setattr(memory.host_memory, "free", lambda: free)
        return online.runs_that_fit(mlp_learner(), RATES, small_data(), PLAN)

    shared = memory._num_bytes((small_data().train, small_data().test)) * len(jax.local_devices())
    assert fitting(2**40) == fitting(2**41) > 100  # As many as are of use, and no more.
    few = fitting(shared + 2**27)
    assert 1 < few < fitting(shared + 2**28) <= fitting(2**40)
    assert fitting(shared + 2**27 // (2 * few)) == 1  # Less than twice a run's.
    assert fitting(shared) == 0


class Accelerator:
    """A device that reports its memory, as GPUs and TPUs do."""

    def __init__(self, limit, platform="gpu"):
        self.limit, self.platform = limit, platform

    def memory_stats(self):
        return {"bytes_limit": self.limit, "bytes_in_use": 0}


@pytest.mark.parametrize("measured", [False, True])
def test_runs_that_fit_on_devices_that_report_their_memory(monkeypatch, measured):
    from experiments.deep_mlp import QUESTION
    from experiments.tasks import classification

    settings = QUESTION.complete(flags.from_values(QUESTION.declared(), QUESTION.all_defaults(), {"measures": measured}))
    program = {"depth": 3, "feedback": "random", "normalization": "none", "activation": "tanh", "optimizer": "sgd"}
    setting = {**settings, **program, "rule": "oja", "batch_size": 1, "widths": (50, 40)}
    learner = classification.learner(setting, small_data())
    hyper = ("learning_rate", "oja_rate", "init", "init_gain")

    def fitting(*limits):
        monkeypatch.setattr(jax, "local_devices", lambda: [Accelerator(limit) for limit in limits])
        return online.runs_that_fit(learner, hyper, small_data(), PLAN)

    some = fitting(2**32)
    assert 100 < some < 100_000
    assert abs(fitting(2**32, 2**32) - 2 * some) <= 1
    assert fitting(2**33) > 1.9 * some and fitting(2**20) == 0


def test_the_activity_on_test_data_counts_once(monkeypatch):
    """With many test images, the widest pair of neighbouring layers and what is made between them."""
    learner, data = mlp_learner((784, 50, 40, 30, 10)), small_data()
    monkeypatch.setattr(jax, "local_devices", lambda: [Accelerator(2**36)])
    few = online.runs_that_fit(learner, RATES, data, PLAN)
    test = ojax.datasets.Examples(*(array.repeat(100, axis=0) for array in data.test))
    many = online.runs_that_fit(learner, RATES, data._replace(test=test), PLAN)
    free = 2**36 - memory._num_bytes((data.train, test))
    bytes_of_run = free / 2 / many - 2**36 / 2 / few
    activity = 4 * len(test.targets) * 50
    assert 1.5 * activity < bytes_of_run < 3 * activity and many < sys.maxsize


# MiB that a run takes beside the data: arguments, results that are not in place, and temporaries of the program that takes
# most, as the compilers' memory analysis says of 256 runs (32 with 18,800 test images). `make accelerators` compiles anew.
@pytest.mark.parametrize(("num_test", "v5e", "h100"), [(2000, 3.60, 2.98), (18_800, 23.2, 22.2)])
def test_the_estimate_is_near_the_compilers_own_analysis(monkeypatch, num_test, v5e, h100):
    data = ojax.datasets.load()
    test = ojax.datasets.Examples(*(np.resize(array, (num_test, *array.shape[1:])) for array in data.test))
    data = data._replace(test=test)
    learner = mlp_learner((784, 170, 130, 100, 70, 10))
    plan = online.Plan(5000, tuple(range(500, 5001, 500)))
    monkeypatch.setattr(jax, "local_devices", lambda: [Accelerator(80 * 2**30)])
    runs = online.runs_that_fit(learner, RATES, data, plan)
    free = 80 * 2**30 - memory._num_bytes((data.train, data.test))
    needed = memory.need(learner, RATES, data, plan)
    for measured in (v5e, h100):
        of_run = 2**20 * measured + needed.copy  # The analysis knows nothing of the copy on its way to a checkpoint.
        assert free / 2 / of_run / 1.5 < runs < free / 2 / of_run * 1.5


def test_the_estimate_of_learning():
    """The kernel's change at a window's end; gradients of a batch; nothing but activities, sample by sample."""
    kernel = 4 * 784 * 50
    windowed, step_by_step = (
        memory.need(mlp_learner(optimizer=rule), RATES, small_data(), PLAN).learning for rule in (oja_sgd, one_by_one)
    )
    assert kernel < windowed < 2 * kernel and step_by_step < 0.1 * kernel
    batches = memory.need(mlp_learner(), RATES, small_data(), PLAN._replace(batch_size=10))
    assert kernel < batches.learning < 3 * kernel


def test_the_estimate_of_a_gradient_through_an_episode():
    """The weights before each of four segments of four steps, and of each step of one; keys are a type of their own."""
    episodes = meta.Episodes(num_classes=4, num_train=4, num_query=2)
    inner = meta.classifier((784, 50, 10), {"oja": plasticity.POOL["oja"]})
    learner = meta.learner(inner, {"oja": 1e-3}, lambda hyper: optax.sgd(1e-3), episodes=episodes)
    weights = 4 * (784 + 10) * 50
    needed = memory.need(learner, (), episodes.of(ojax.datasets.load(), 2), online.Plan(2, (2,)))
    assert 8 * weights < needed.learning < 20 * weights and needed.held < weights
    assert needed.evaluation < 5 * weights


def test_a_tpu_takes_no_more_runs_than_it_has_lanes(monkeypatch):
    def fitting(*limits):
        monkeypatch.setattr(jax, "local_devices", lambda: [Accelerator(limit, "tpu") for limit in limits])
        return online.runs_that_fit(mlp_learner(), RATES, small_data(), PLAN)

    assert fitting(2**34) == 128 and fitting(2**34, 2**34) == 256
    assert 1 < fitting(2**27) < 128
