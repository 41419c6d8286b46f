"""What all tests share: one cache of compiled programs, how they are compiled, how many examples hypothesis tries."""

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
# NumPy reads it when it is loaded. On small matrices the threads of a linear-algebra library only wait for one another: the
# float64 statements took ten times as long with them.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

_USUAL = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
settings.register_profile("few", _USUAL, max_examples=30)
settings.register_profile("many", _USUAL, max_examples=1000)  # `make soak`
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "few"))

# XLA compiles in a third of the time with these, and the programs run slower; other code, so other roundings.
QUICKLY = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}


def pytest_configure(config):
    config.addinivalue_line(
        "markers",
        "compiled_quickly(yes=True): the test compares to rounding, or not numbers at all, so its programs need not be "
        "those of a user. Never for a claim of the same bits: there mark the one test of a module with yes=False.",
    )


def pytest_collection():
    import jax

    from experiments.common import compilation

    jax.config.update("jax_num_cpu_devices", 1)  # Of this process; commands choose for themselves.
    compilation.use_cache(None)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    import jax
    from jax._src import compiler

    mark = item.get_closest_marker("compiled_quickly")
    quickly = mark is not None and (not mark.args or mark.args[0])
    if quickly == hasattr(compiler.get_compile_options, "usual"):
        return
    jax.clear_caches()  # No test takes a program that was compiled the other way; on disk they have keys of their own.
    if not quickly:
        compiler.get_compile_options = compiler.get_compile_options.usual
        return
    usual = compiler.get_compile_options

    def quick(*args, **kwargs):
        options = usual(*args, **kwargs)
        options.env_option_overrides = [*options.env_option_overrides, *QUICKLY.items()]
        return options

    quick.usual = usual
    compiler.get_compile_options = quick


def pytest_unconfigure():
    if _IS_FIRST:
        shutil.rmtree(os.environ[_FOLDER], ignore_errors=True)
