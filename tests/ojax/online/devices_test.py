"""A program that is compiled in another thread is compiled once, and errors of that thread are raised here."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ojax.online import devices
from tests.ojax.online.networks import compilations


def test_it_is_compiled_once_in_another_thread_with_the_settings_of_this_one():
    def learn(state, run, shared):
        return shared @ state + run

    mesh, rng = devices.mesh_of_all(), np.random.default_rng(0)
    program = devices.compiled(devices.update_runs(learn, mesh), mesh, "state", "run", "shared")
    state, run, shared = (rng.normal(size=size).astype(np.float32) for size in ((4, 3), (4, 3), (3, 3)))
    arguments = (*devices.put((state, run), mesh, devices.RUNS), devices.put(shared, mesh, devices.EVERYWHERE))
    shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding) for leaf in arguments]
    with compilations() as threads, jax.default_matmul_precision("highest"):  # Which is a setting of each thread.
        with devices.compiling(program, *shapes):
            pass
        found = program(*arguments)
    np.testing.assert_allclose(found, state @ shared.T + run, rtol=1e-5)
    assert len(threads) == 1 and threads[0] is not threading.current_thread()


def test_it_is_compiled_once_for_the_results_of_another_program():
    """JAX calls some results of a program on one device replicated, others not."""

    def begin(seed, shared):
        return jax.random.normal(jax.random.key(seed), (3,)), seed + shared, jnp.zeros(2)

    def learn(state, run, shared):
        return jax.tree.map(lambda leaf: leaf + run.astype(leaf.dtype) * shared, state)

    mesh = devices.mesh_of_all()
    first = devices.compiled(devices.map_runs(begin, mesh), mesh, "seeds", "shared")
    program = devices.compiled(devices.update_runs(learn, mesh), mesh, "state", "run", "shared")
    seeds, shared = devices.put(np.zeros(1, np.uint32), mesh, devices.RUNS), np.float32(1)
    runs = jax.sharding.NamedSharding(mesh, devices.RUNS)
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=runs), jax.eval_shape(first, seeds, shared)
    )
    with compilations() as threads, jax.default_matmul_precision("highest"):
        with devices.compiling(program, shapes, seeds, shared):
            state = first(seeds, shared)
        for _ in range(2):
            state = program(state, seeds, shared)
    assert len(threads) == 2


def test_what_goes_wrong_in_the_other_thread_is_raised_here():
    program, done = jax.jit(jnp.sin, compiler_options={"no_such_option": True}), []
    with pytest.raises(Exception, match="no_such_option"), devices.compiling(program, jnp.ones(3)):
        done.append("the work meanwhile")
    assert done
