"""What all tests share: one cache of compiled programs, and how many examples hypothesis tries."""

import os
import shutil
import tempfile

import pytest
from hypothesis import HealthCheck, settings

# Hundreds of tests and some thirty commands compile the same few programs. Commands and the processes that share the tests
# inherit the folder. It is new for each run of the tests, so that each begins with programs that it has compiled itself.
_FOLDER = "JAX_COMPILATION_CACHE_DIR"
_IS_FIRST = "PYTEST_XDIST_WORKER" not in os.environ
if _IS_FIRST:
    os.environ[_FOLDER] = tempfile.mkdtemp(prefix="ojax-tests-programs-")

_USUAL = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
settings.register_profile("few", _USUAL, max_examples=30)
settings.register_profile("many", _USUAL, max_examples=1000)  # `make soak`
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "few"))


def pytest_collection():
    import jax

    from experiments.common import compilation

    jax.config.update("jax_num_cpu_devices", 1)  # Of this process; commands choose for themselves.
    compilation.use_cache(None)


def pytest_unconfigure():
    if _IS_FIRST:
        shutil.rmtree(os.environ[_FOLDER], ignore_errors=True)


@pytest.fixture(scope="module")
def compiled_quickly():
    """For tests that compile many programs and run each for a moment: the compiler optimizes little."""
    import jax

    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
