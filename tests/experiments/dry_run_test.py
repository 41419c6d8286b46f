"""A study's programs compiled for a CPU in place of described hardware; see `make accelerators`."""

import json
from unittest import mock

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from experiments import deep_mlp
from experiments.common import dry_run, hardware
from experiments.common.errors import UserError
from experiments.common.hardware import Hardware
from ojax.plasticity.rule import RUNS_AXIS
from tests.experiments import commands
from tests.experiments.conducting import conduct, parse

pytestmark = pytest.mark.compiled_quickly
SMALL = (
    *("--widths=12,8", "--learning_rate=1e-2", "--oja_rate=0,1e-3", "--seeds=3", "--num_train=64", "--evals=1"),
    "--num_test=50",
)


@pytest.fixture
def described(monkeypatch):
    def describe(memory):
        mesh = Mesh(np.array(jax.devices()[:1]), (RUNS_AXIS,))
        monkeypatch.setattr(hardware, "described", lambda name: Hardware(name, "described", mesh, memory))

    return describe


def refusal(tmp_path, capsys, *flags):
    """Returns the line with which a dry run exits."""
    with pytest.raises(SystemExit) as exit_code:
        dry_run.run(deep_mlp.QUESTION, parse(deep_mlp.QUESTION, *flags, f"--workdir={tmp_path}", "--compile_for=a:1"))
    told = capsys.readouterr().err
    assert exit_code.value.code == 2 and told.count("\n") == 1
    return told


def test_a_dry_run_says_what_programs_take_and_leaves_room_for_the_study(described, tmp_path, capsys):
    described(2**30)
    flags = (*SMALL, "--block_size=4", f"--workdir={tmp_path}", "--compile_for=a:1")
    dry_run.run(deep_mlp.QUESTION, parse(deep_mlp.QUESTION, *flags))
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "compiled" / "a_1.json").read_text())
    programs = {entry["program"]: entry for entry in found["programs"]}
    assert list(programs) == ["begin", "advance", "evaluate"] and all(name in printed for name in programs)
    assert found["runs"] == 6 and found["memory"] == 2**30 and "2 x 3" in printed
    kernels = 4 * (784 * 12 + 12 * 8 + 8 * 10)
    assert 3 * kernels < programs["advance"]["copy"] < 4 * kernels
    assert programs["advance"]["arguments"] > 3 * kernels + 10_000 * 784 * 4
    assert not any(entry["fault"] for entry in found["programs"])
    # The study itself can use the folder afterwards.
    conduct(deep_mlp.QUESTION._replace(verdict=None, figures={}), *SMALL, "--block_size=4", f"--workdir={tmp_path}")
    assert (tmp_path / "results.csv").exists()


def test_a_study_that_does_not_fit_is_told(described, tmp_path, capsys):
    described(2**24)  # Less than the data.
    told = refusal(tmp_path, capsys, *SMALL, "--block_size=4")
    assert told.startswith("error: 2 of 3 programs do not compile or fit on a:1") and "smaller --block_size" in told
    described(2**20)
    assert "Not even one run" in refusal(tmp_path, capsys, *SMALL)


@pytest.mark.parametrize("error", [jax.errors.JaxRuntimeError("no kernel"), NotImplementedError("no kernel")])
def test_a_program_that_fails_while_the_block_size_is_sought_is_told(described, monkeypatch, tmp_path, capsys, error):
    described(2**30)
    monkeypatch.setattr(dry_run.memory, "runs_that_fit_into", mock.Mock(side_effect=error))
    told = refusal(tmp_path, capsys, *SMALL)
    assert told.startswith("error: A program for a:1 fails: it does not compile") and "kernel" in told


@pytest.mark.parametrize("name", ["v5e:2x2", "h100"])
def test_a_compiler_that_is_missing_is_named_with_its_extra(monkeypatch, name):
    monkeypatch.setattr(hardware, "_has", lambda module: False)
    with pytest.raises(UserError, match=r"needs the compiler for .PUs: pip install --editable '\.\[experiments,compile\]'"):
        hardware.described(name)


def test_what_is_no_hardware_is_refused_in_one_line(tmp_path):
    code, _, told = commands.run(*SMALL, f"--workdir={tmp_path}", "--compile_for=nonsense")
    assert code == 2 and told.count("\n") == 1
    assert told.startswith("error: --compile_for=nonsense is no hardware that is known: give a TPU topology, such as v5e")


def test_where_only_compilers_are_installed_no_accelerator_is_looked_for(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(hardware, "_has", lambda module: True)
    monkeypatch.setattr(hardware.Path, "glob", lambda path, pattern: iter(["/dev/nvidia0"]))
    hardware.ignore_compilers()
    assert "JAX_PLATFORMS" not in hardware.os.environ
    monkeypatch.setattr(hardware.Path, "glob", lambda path, pattern: iter([]))
    hardware.ignore_compilers()
    assert hardware.os.environ.pop("JAX_PLATFORMS") == "cpu"
