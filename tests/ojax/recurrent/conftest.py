"""These tests compile many small programs and run each for a moment: the compiler's optimizations are left out."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def compiled_quickly():
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
