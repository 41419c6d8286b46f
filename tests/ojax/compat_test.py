"""Fallbacks for missing private names: slower, noisier, or one clear line, and never wrong."""

import asyncio
import types

import jax
import numpy as np
import pytest

from experiments.common import compilation
from ojax import _compat, online
from ojax.online import devices


def test_a_part_of_a_program_is_evaluated_alike():
    program = _compat.program(lambda x, y: (x * y, x @ y), np.ones(3), np.arange(3.0))
    assert [equation.name for equation in program.equations] == ["mul", "dot_general"]
    times, product = program.equations
    evaluate = _compat.function_of(program, program.inputs, [product.outputs[0]], [product])
    assert [float(value) for value in evaluate(np.ones(3, np.float32), np.arange(3, dtype=np.float32))] == [3.0]
    with pytest.raises(_compat.UnknownProgramError, match="cannot evaluate"):
        _compat.function_of(program._replace(source=None), program.inputs, times.outputs, [times])


def test_options_that_a_compiler_refuses_are_left_out(monkeypatch):
    device = jax.devices()[0]
    _compat.quick_options.cache_clear()
    assert _compat.quick_options(device) == {"xla_backend_optimization_level": 1}
    monkeypatch.setitem(_compat._QUICKLY, "cpu", {"no_such_option": -1.0})
    _compat.quick_options.cache_clear()
    assert _compat.quick_options(device) == {}
    program = devices.compiled(lambda runs, shared: runs, devices.mesh_of_all(), "run", "shared", quickly=True)
    np.testing.assert_array_equal(program(np.ones(2), np.ones(1)), np.ones(2))
    _compat.quick_options.cache_clear()


def test_without_the_setting_cores_are_asked_for(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert _compat.num_cpu_devices() == jax.config.jax_num_cpu_devices == 1  # As the tests ask.
    asked = []
    monkeypatch.setattr(jax, "config", types.SimpleNamespace(update=lambda *setting: asked.append(setting)))
    assert _compat.num_cpu_devices() == -1
    online.use_all_cores()
    assert asked == [("jax_num_cpu_devices", online.num_cores())]
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=3")
    assert _compat.num_cpu_devices() == 0


@pytest.mark.parametrize("gone", ["get_file_cache", "reset_cache"])
def test_without_a_way_to_give_jax_a_cache_there_is_none(monkeypatch, tmp_path, gone):
    from jax._src import compilation_cache

    monkeypatch.delattr(compilation_cache, gone)
    assert compilation.use_cache(str(tmp_path)) is None
    assert not list(tmp_path.rglob("*.program")) and jax.config.jax_compilation_cache_dir is None
    monkeypatch.undo()
    compilation.use_cache(None)


def test_errors_are_told_apart_by_their_words():
    memory = [MemoryError(), RuntimeError("RESOURCE_EXHAUSTED: 1 byte"), RuntimeError("Ran out of memory in hbm")]
    assert all(map(_compat.is_out_of_memory, memory))
    lost = [
        RuntimeError("UNAVAILABLE: the coordination service"),
        RuntimeError("Gloo: Connection reset by peer"),
    ]
    assert all(map(_compat.is_of_a_lost_process, lost))
    assert not any(_compat.is_of_a_lost_process(error) for error in memory)
    assert not any(map(_compat.is_out_of_memory, [*lost, ValueError("INVALID_ARGUMENT: space")]))


def test_events_of_compilation_are_those_that_jax_reports():
    told = []

    def listen(event, duration, **_):
        told.append(_compat.compilation_of(event))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        jax.jit(lambda x: x * 3.25 + 1).lower(np.ones(3)).compile()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert [event for event in told if event is not None] == [True, False]


def test_orbax_ends_its_tasks_while_we_read_and_is_unchanged_afterwards(monkeypatch):
    from orbax.checkpoint._src import asyncio_utils

    if not hasattr(asyncio_utils, "_run_sync_via_new_loop"):
        pytest.skip("this Orbax, 0.12.0 say, has no such function")
    begun, ended = [], []

    async def slow():
        await asyncio.sleep(0.01)
        ended.append("slow")

    async def fails():
        begun.append(asyncio.ensure_future(slow()))
        raise OSError("damaged")

    before = asyncio_utils._run_sync_via_new_loop
    with _compat.ending_what_orbax_begins(), pytest.raises(OSError, match="damaged"):
        asyncio_utils.run_sync(fails())
    assert ended == ["slow"] and asyncio_utils._run_sync_via_new_loop is before
    monkeypatch.delattr(asyncio_utils, "_run_sync_via_new_loop")
    with _compat.ending_what_orbax_begins():
        assert not hasattr(asyncio_utils, "_run_sync_via_new_loop")


def test_without_the_parts_of_a_program_its_constants_are_those_that_it_shows():
    array = np.arange(3.0)
    assert _compat.constants_of(types.SimpleNamespace(consts=[array])) == [array]
    assert _compat.constants_of(types.SimpleNamespace()) == []
