"""The number of runs at once: on a CPU, on devices that report their memory, and after running out of it."""

import types

import jax
import numpy as np
import pytest

from ojax import online
from ojax.online import devices, memory, training
from tests.ojax.online.networks import RATES, mlp_learner, small_data

PLAN = online.Plan(100, (50, 100))


def test_runs_that_fit_in_a_machines_memory(monkeypatch):
    def fitting(free):
        monkeypatch.setattr(memory.host_memory, "free", lambda: free)
        return online.runs_that_fit(mlp_learner(), RATES, small_data(), PLAN)

    shared = memory._num_bytes((small_data().train, small_data().test)) * len(jax.local_devices())
    assert fitting(2**40) == fitting(2**41) > 100  # No more than are useful.
    few = fitting(shared + 2**27)
    assert 1 < few < fitting(shared + 2**28) <= fitting(2**40)
    assert fitting(shared + 2**27 // (2 * few)) == 1  # Less than twice a run's.
    assert fitting(shared) == 0


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Builds programs as for a GPU, and compiles them for this CPU, whose compiler reports memory as a GPU's does."""
    monkeypatch.setattr(devices, "platform", lambda mesh: "gpu")
    memory.programs.programs.cache_clear()
    yield
    memory.programs.programs.cache_clear()


@pytest.mark.compiled_quickly
def test_a_line_through_two_numbers_of_runs_gives_what_another_takes(as_on_a_gpu):
    learner, data, device = mlp_learner((784, 12, 10)), small_data(), jax.devices()[0]
    needed = memory.needs(learner, RATES, data, PLAN, device)
    copy = memory.bytes_of_copy(learner, RATES, data, PLAN)
    assert copy > 4 * (784 * 12 + 12 * 10)
    for need, program in zip(
        needed, memory.lowered(300, learner, RATES, data, PLAN, memory._alone(device)).values(), strict=True
    ):
        compiled = sum(memory.sizes(program.compile()))
        np.testing.assert_allclose(need.shared + 300 * (need.per_run - copy), compiled, rtol=0.02)
    # The data are shared: an estimate from one number of runs would be far too large per run.
    assert max(need.shared for need in needed) > 10_000 * 784 * 4 > 50 * max(need.per_run for need in needed)


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_runs_that_fit_on_devices_that_report_their_memory(monkeypatch, platform):
    monkeypatch.setattr(memory, "needs", lambda *_: [memory.Need(2**20, 2**16), memory.Need(2**21, 2**15)])
    monkeypatch.setattr(devices, "platform", lambda mesh: platform)
    monkeypatch.setattr(memory, "_alone", lambda device: None)

    def fitting(*free):
        stats = [{"bytes_limit": size + 100, "bytes_in_use": 100} for size in free]
        here = [types.SimpleNamespace(memory_stats=lambda found=found: found) for found in stats]
        monkeypatch.setattr(jax, "local_devices", lambda: here)
        return online.runs_that_fit(mlp_learner(), RATES, small_data(), PLAN)

    most = 128 if platform == "tpu" else (2**30 - 2**20) // 2**17
    assert fitting(2**30) == most and fitting(2**30, 2**30) == 2 * most
    assert fitting(2**22) == (2**22 - 2**20) // 2**17
    assert fitting(2**22, 2**30) == 2 * fitting(2**22)  # The smallest counts.
    assert fitting(2**21 + 2**16) == 1 and fitting(2**21) == 0


def test_where_many_runs_do_not_compile_fewer_are_tried(monkeypatch):
    """As a TPU's compiler refuses programs that do not fit."""
    asked, most = [], [0]

    def lowered(num_runs, *_):
        asked.append(num_runs)

        def compile():
            if num_runs > most[0]:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm.")
            return 1000, 10 * num_runs

        return {"advance": types.SimpleNamespace(compile=compile)}

    monkeypatch.setattr(memory, "lowered", lowered)
    monkeypatch.setattr(memory, "sizes", lambda compiled: compiled)
    monkeypatch.setattr(memory, "bytes_of_copy", lambda *_: 1)
    for most[0], wanted in ((200, [(1000, 11)]), (20, [(1000, 11)]), (1, [(0, 1011)]), (0, [])):
        assert memory.needs(None, None, None, None, jax.devices()[0]) == wanted
    assert asked[-8:] == [128, 64, 32, 16, 8, 4, 2, 1]


@pytest.mark.compiled_quickly
@pytest.mark.parametrize("program", ["begin", "advance", "evaluate"])
def test_a_device_that_runs_out_of_memory_ends_a_training_with_one_line(monkeypatch, program):
    made = training.programs

    def failing(*arguments):
        def fail(*_):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte.")

        found = made(*arguments)
        real = getattr(found, program)
        fail.lower, fail.eval_shape = real.lower, real.eval_shape
        monkeypatch.setattr(training, "arguments", lambda begin, *rest: arguments_of(found.begin, *rest))
        return found._replace(**{program: fail})

    arguments_of = training.arguments
    monkeypatch.setattr(training, "programs", failing)
    hyper = {name: [1e-3] for name in RATES}
    with pytest.raises(online.OutOfMemoryError, match="does not hold this many runs") as error:
        list(online.train(mlp_learner((784, 12, 10)), hyper, [0], small_data(), PLAN))
    assert "\n" not in str(error.value) and "RESOURCE_EXHAUSTED" in str(error.value.__cause__)


def test_another_error_of_a_device_stays_what_it_is():
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), devices.fitting():
        raise jax.errors.JaxRuntimeError("INTERNAL: no such thing")
