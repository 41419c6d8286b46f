"""The command as a user types it: its files, its messages, and its refusals."""

import csv
import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags as absl_flags

from experiments.common.errors import UserError
from experiments.deep_mlp import QUESTION
from ojax.datasets import DatasetError
from tests import compiling
from tests.experiments.conducting import conduct

REPOSITORY = Path(__file__).parents[2]
SMALL = ["--depth=1,2", "--learning_rate=1e-2,3e-2", "--oja_rate=0,1e-4", "--seeds=2", "--num_train=60", "--evals=2"]


def deep_mlp(*flags, **environment):
    command = [sys.executable, "-m", "experiments.deep_mlp", *flags]
    environment = os.environ | {"XLA_FLAGS": compiling.XLA_FLAGS} | environment
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=environment)


def rows_of(folder):
    with (folder / "results.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "new folder"
    run = deep_mlp(*SMALL, f"--workdir={folder}", f"--compilation_cache={folder.parent / 'programs'}")
    assert run.returncode == 0, run.stderr
    return folder, run


def test_writes_the_table_the_figures_the_summary_and_the_configuration(finished):
    folder, run = finished
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.parent.name != "runs"}
    names = ("accuracy_by_depth", "learning_rate_range", "accuracy_by_learning_rate", "learning_curves", "search_budget")
    figures = {f"figures/{name}.{suffix}" for name in names for suffix in ("png", "pdf")}
    assert files == {".lock", "identity.json", "config.json", "results.csv", "runs.csv", "summary.md"} | figures
    rows = rows_of(folder)
    assert len(rows) == 2 * 2 * 2 * 2 * 2  # depths, learning rates, Oja rates, seeds, evaluations
    assert {row["examples_seen"] for row in rows} == {"30", "60"}
    wanted = "depth init_gain learning_rate oja_rate feedback batch_size seed examples_seen test_accuracy test_loss"
    assert set(f"{wanted} train_loss diverged".split()) <= set(rows[0])
    assert all(0 <= float(row["test_accuracy"]) <= 1 and row["diverged"] == "False" for row in rows)
    held = json.loads((folder / "config.json").read_text())
    assert held["flags"]["learning_rate"] == "0.01,0.03"
    assert {"jax", "ojax", "python"} <= set(held["versions"])
    assert held["dataset"]["sha256"] and held["devices"] and held["num_runs"] == 16
    summary = (folder / "summary.md").read_text()
    assert "| 2 | constant Oja |" in summary and "**Verdict: " in summary and held["command"] in summary
    assert str(folder) in run.stdout and "ETA" in run.stdout and run.stderr == ""


def test_the_command_in_the_summary_repeats_the_study_bit_for_bit_with_kept_programs_or_without(finished, tmp_path):
    folder, _ = finished
    programs = folder.parent / "programs"
    held = json.loads((folder / "config.json").read_text())
    flags = [f"--{name}={value}" for name, value in held["flags"].items() if value is not None]
    kept = {path: path.stat().st_ino for path in programs.glob("*/*.program")}
    assert len(kept) > 5
    for name, place in (("without", "none"), ("with", programs)):
        run = deep_mlp(*flags, f"--compilation_cache={place}", f"--workdir={tmp_path / name}")
        assert run.returncode == 0, run.stderr
        assert (tmp_path / name / "results.csv").read_bytes() == (folder / "results.csv").read_bytes()
    assert {path: path.stat().st_ino for path in programs.glob("*/*.program")} == kept  # Nothing was compiled again.


def test_a_finished_folder_shows_its_results_at_once_and_refuses_another_configuration(finished):
    folder, _ = finished
    before = (folder / "results.csv").stat().st_mtime_ns
    again = deep_mlp(*SMALL, f"--workdir={folder}")
    assert again.returncode == 0 and "constant Oja" in again.stdout
    assert (folder / "results.csv").stat().st_mtime_ns == before
    other = deep_mlp(*SMALL, "--num_test=5", f"--workdir={folder}")
    assert_one_clear_line(other, "another configuration", "--num_test=2000 there, 5 now")


def test_a_summary_that_an_editor_has_saved_in_another_encoding(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "study")
    summary = tmp_path / "study" / "summary.md"
    summary.write_text(summary.read_text(encoding="utf-8"), encoding="utf-16")
    with pytest.raises(UserError, match="is not UTF-8: move it away, and the same command writes it again"):
        conduct(QUESTION, *SMALL, f"--workdir={tmp_path / 'study'}")
    summary.unlink()
    assert "constant Oja" in conduct(QUESTION, *SMALL, f"--workdir={tmp_path / 'study'}")
    assert "| 2 | constant Oja |" in summary.read_text(encoding="utf-8")


def imported_for(module, *flags):
    """Returns the command's output, and the names of the modules that it imports."""
    command = [sys.executable, "-X", "importtime", "-m", f"experiments.{module}", *flags]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    return run.stdout, {line.rpartition("|")[2].strip() for line in run.stderr.splitlines() if "|" in line}


def test_help_explains_every_flag_with_its_default():
    shown = deep_mlp("--help").stdout
    for flag in ("--workdir", "--dataset", "--data_dir", "--depth", "--widths", "--learning_rate", "--oja_rate"):
        assert flag in shown
    for flag in (
        "--init_gain",
        "--seeds",
        "--seed",
        "--num_train",
        "--epochs",
        "--batch_size",
        "--evals",
        "--feedback",
        "--init",
        "--normalization",
        "--optimizer",
        "--compilation_cache",
        "measures:",
    ):
        assert flag in shown
    assert "(default: '5,10')" in shown


@pytest.mark.parametrize("flags", [["--help"], ["--learning_rate=fast"], ["--batch_size=70000"]], ids=" ".join)
@pytest.mark.parametrize("module", ["deep_mlp", "data_scarcity"])
def test_flags_are_checked_before_anything_slow_is_imported(module, flags):
    _, modules = imported_for(module, *flags)
    assert "experiments.common.flags" in modules
    assert not modules & {"jax", "flax", "optax", "orbax", "scipy", "matplotlib", "rich"}


def assert_one_clear_line(run, *words):
    assert run.returncode == 2, (run.stdout, run.stderr)
    assert run.stdout == ""
    assert run.stderr.startswith("error: ") and run.stderr.count("\n") == 1, run.stderr
    for word in words:
        assert word in run.stderr


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--no_such_flag=1"], ["no_such_flag"]),
        (["--learning_rate=-1e-3"], ["learning_rate", "above 0"]),
        (["--learning_rate=0"], ["learning_rate", "above 0"]),
        (["--oja_rate=-1e-3"], ["oja_rate", "at least 0"]),
        (["--oja_rate=0,nan"], ["oja_rate", "nan"]),
        (["--oja_rate="], ["oja_rate"]),
        (["--learning_rate=fast"], ["learning_rate", "'fast' is not a number"]),
        (["--depth=0"], ["depth", "at least 1"]),
        (["--depth=2.5"], ["depth", "whole number"]),
        (["--widths=10,0"], ["widths", "at least 1"]),
        (["--widths=10,10", "--depth=5"], ["--widths", "--depth=5"]),
        (["--seeds=0"], ["seeds"]),
        (["--num_train=x"], ["--num_train=x", "'x' is not a whole number"]),
        (["--seed=-1"], ["seed"]),
        (["--num_train=10001"], ["--num_train=10001", "10000"]),
        (["--batch_size=0"], ["batch_size"]),
        (["--batch_size=100", "--num_train=50"], ["--batch_size=100", "--num_train=50"]),
        (["--evals=0"], ["--evals"]),
        (["--evals=10,6000"], ["--evals", "6000", "5000"]),
        (["--feedback=telepathy"], ["feedback", "telepathy", "direct"]),
        (["--init=glorot_uniform,zeros"], ["init", "zeros", "orthogonal"]),
        (["--normalization=group"], ["normalization", "group"]),
        (["--optimizer=sgd,lion"], ["optimizer", "lion"]),
        (["--batch_size=1,0"], ["batch_size"]),
        (["--measures=perhaps"], ["measures", "perhaps"]),
        (["--dataset=mnits"], ["mnits", "idx:FOLDER"]),
        (["--dataset=idx:/no/such/folder"], ["/no/such/folder"]),
        (["--dataset=mnist", "--data_dir=/no/such/folder"], ["mnist", "data_dir"]),
        (["--flagfile=/no/such/file"], ["/no/such/file"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith(("-", "depth=")) else "",
)
def test_bad_input_is_refused_before_any_training(flags, words, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "results"
    with pytest.raises((UserError, DatasetError, absl_flags.Error, OSError)) as refused:
        conduct(QUESTION, *flags, f"--workdir={folder}")
    for word in words:
        assert word in str(refused.value)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("flags", "word"),
    [(["--learning_rate=fast"], "fast"), (["--evals=10,6000"], "6000"), (["depth=5"], "--name=value")],
)
def test_the_command_refuses_in_one_line(flags, word, tmp_path):
    assert_one_clear_line(deep_mlp(*flags, f"--workdir={tmp_path / 'results'}"), word)


def test_a_truncated_idx_file(tmp_path):
    for split, count in (("train", 100), ("t10k", 10)):
        header = bytes([0, 0, 8, 3]) + count.to_bytes(4) + (28).to_bytes(4) * 2
        (tmp_path / f"{split}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1]) + count.to_bytes(4) + bytes(count))
        with gzip.open(tmp_path / f"{split}-images-idx3-ubyte.gz", "wb") as file:
            file.write(header + bytes(count * 784 - (split == "t10k")))
    run = deep_mlp(f"--dataset=idx:{tmp_path}", f"--workdir={tmp_path / 'results'}")
    assert_one_clear_line(run, "t10k-images-idx3-ubyte.gz")


def test_a_workdir_that_is_a_file_or_belongs_to_somebody_else(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "identity.json").write_text('{"settings"')
    (tmp_path / "theirs" / "figures").mkdir(parents=True)
    refused = {file: "not a folder", file / "below": "below"}
    refused |= {tmp_path / "damaged": "damaged", tmp_path / "theirs": "holds figures, which no study has written"}
    for folder, word in refused.items():
        with pytest.raises(UserError, match=word):
            conduct(QUESTION, f"--workdir={folder}")
    assert file.read_text() == "mine"
