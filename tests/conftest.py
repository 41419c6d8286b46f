"""Configures all tests: a cache of compiled programs, compiler options, their order, hypothesis's examples."""

import gc
import os

import pytest
from hypothesis import HealthCheck, settings

# NumPy reads it when it is loaded. With threads of a linear-algebra library, the float64 statements, on small matrices,
# took ten times as long.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
# JAX stores up to ten lines of code with each operation, which takes time and no test reads.
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"

_SHARED = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
# Equal examples in each run, so that only a change can make `make test` fail. `make soak` uses new examples.
settings.register_profile("few", _SHARED, max_examples=30, derandomize=True)
settings.register_profile("many", _SHARED, max_examples=1000)  # `make soak`
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "few"))

# Two processes share the tests by file: the longest files come first, so that both end together.
_LONGEST = ("faults", "experiments", "deep_mlp", "readme", "training", "windows", "study", "hostile", "run")


def pytest_configure(config):
    if "PYTEST_XDIST_WORKER" not in os.environ:
        # Hundreds of tests and some thirty commands compile the same few programs. Commands and parallel test processes
        # inherit the folder, and the next run of the tests has it too. A changed program has another key.
        # `pytest --cache-clear` empties it.
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(config.cache.mkdir("programs"))
    config.addinivalue_line(
        "markers",
        "compiled_quickly(yes=True): its programs need not be those of a user, see tests/compiling.py. Never for a claim "
        "of the same bits in two programs: a test that makes one in a module with this mark has its own, with False.",
    )
    # Hypothesis asks the collector who refers to NumPy's generator. Python 3.14 tells nothing of objects that are frozen.
    config.addinivalue_line("filterwarnings", "ignore:It looks like `register_random` was passed an object")
    config.addinivalue_line("markers", "figures: studies in the test's own process draw theirs, see tests/drawing.py.")


def pytest_collection():
    from experiments.common import hardware

    hardware.ignore_compilers()
    import jax

    from experiments.common import compilation
    from tests import compiling

    compiling.in_one_context()
    jax.config.update("jax_num_cpu_devices", 1)  # Of this process; commands choose for themselves.
    compilation.use_cache(None)


def pytest_collection_finish():
    # JAX and its programs are a million permanent objects: collecting them repeatedly took a tenth of the time.
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def pytest_collection_modifyitems(items):
    names = [f"{name}_test.py" for name in _LONGEST]

    def place(item):
        module = item.getparent(pytest.Module) or item
        # Where the mode changes, the programs in memory are lost.
        is_quick = module.get_closest_marker("compiled_quickly") is not None
        return names.index(item.path.name) if item.path.name in names else len(names), is_quick

    items.sort(key=place)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    from tests import compiling, drawing

    drawing.draw(item.get_closest_marker("figures") is not None)
    mark = item.get_closest_marker("compiled_quickly")
    compiling.quickly(mark is not None and mark.args != (False,))
