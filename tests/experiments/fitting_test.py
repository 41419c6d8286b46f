"""Studies whose blocks do not fit in a device's memory: blocks are halved, in all processes, with equal results."""

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import pytest

from experiments.deep_mlp import QUESTION
from ojax import online
from ojax.online import training
from tests import compiling
from tests.experiments.conducting import conduct

pytestmark = pytest.mark.compiled_quickly

SMALL = (
    *(
        "--depth=2",
        "--widths=8",
        "--learning_rate=1e-2",
        "--oja_rate=0,1e-3",
        "--oja_half_life=inf",
        "--init=glorot_uniform",
    ),
    *("--seeds=3", "--num_train=60", "--num_test=50", "--evals=2", "--block_size=6"),
)
ASKED = QUESTION._replace(verdict=None, figures={})


def exhaust(monkeypatch, most, num_calls=2):
    """Makes training of more than `most` runs fail in piece `num_calls` of their work, after their state was donated."""
    made, calls = training.programs, []

    def programs(*arguments):
        found = made(*arguments)

        def advance(state, run, shared):
            num_runs = len(jax.tree.leaves(state)[0])
            after = found.advance(state, run, shared)
            calls.append(num_runs)
            if num_runs > most and len(calls) % num_calls == 0:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 byte.")
            return after

        advance.lower = found.advance.lower
        return found._replace(advance=advance)

    monkeypatch.setattr(training, "programs", programs)
    return calls


@pytest.mark.compiled_quickly(False)
def test_a_block_that_does_not_fit_is_halved_and_the_numbers_stay(monkeypatch, tmp_path):
    conduct(ASKED, *SMALL, f"--workdir={tmp_path / 'whole'}")
    calls = exhaust(monkeypatch, most=2)
    said = conduct(ASKED, *SMALL, f"--workdir={tmp_path / 'halved'}")
    assert "6 runs at once do not fit in memory; at most 3 are trained from here on" in said
    assert "3 runs at once do not fit in memory; at most 2 are trained from here on" in said
    assert set(calls) == {6, 3, 2}
    results = [(tmp_path / folder / "results.csv").read_bytes() for folder in ("whole", "halved")]
    assert results[0] == results[1]
    assert not list((tmp_path / "halved").glob("checkpoints/*"))


def test_where_not_even_one_run_fits_it_ends(monkeypatch, tmp_path):
    exhaust(monkeypatch, most=0)
    with pytest.raises(online.OutOfMemoryError):
        conduct(ASKED, *SMALL, f"--workdir={tmp_path}")


def test_all_processes_notice_that_one_has_run_out_of_memory():
    """Else the other processes would wait for it forever."""
    script = textwrap.dedent("""
        import sys, jax
        jax.config.update("jax_num_cpu_devices", 1)
        jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
        from ojax import online
        from tests.experiments.fitting_test import exhaust
        from tests.ojax.online.networks import mlp_learner, small_data
        import pytest
        if int(sys.argv[2]) == 1:
            exhaust(pytest.MonkeyPatch(), most=0)
        hyper = {"learning_rate": [1e-2] * 4, "oja_rate": [0.0] * 4}
        train = online.train(mlp_learner((784, 8, 10)), hyper, [0, 1, 2, 3], small_data(), online.Plan(20, (10, 20)))
        try:
            list(train)
        except online.OutOfMemoryError as error:
            print("told:", error)
    """)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    options = {"cwd": Path(__file__).parents[2], "env": os.environ | {"XLA_FLAGS": compiling.XLA_FLAGS}}
    processes = [
        subprocess.Popen([sys.executable, "-c", script, address, str(number)], stdout=subprocess.PIPE, text=True, **options)
        for number in range(2)
    ]
    told = [process.communicate(timeout=240)[0] for process in processes]
    assert all("told: The devices' memory does not hold this many runs at once" in each for each in told), told
