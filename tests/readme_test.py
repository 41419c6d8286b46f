"""The README's code runs as written and learns, and so does that of the tutorials.

`make docs` executes all code of the documentation. Its results are checked here.
"""

import contextlib
import importlib
import io
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from experiments.common import verdicts
from tests import compiling
from tests.experiments.made_up import NAMES as QUESTIONS

pytestmark = pytest.mark.compiled_quickly

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
TUTORIALS = ROOT / "docs" / "tutorials"


def blocks(page, fence):
    """Returns the blocks of code after a fence."""
    return re.findall(rf"```{re.escape(fence)}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def run(page, fence, word):
    """Runs the page's only block with a word; returns its output and its names."""
    (block,) = (block for block in blocks(page, fence) if word in block)
    namespace = {"__name__": "page"}
    with contextlib.redirect_stdout(io.StringIO()) as printed, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX is in use already.
        exec(compile(block, str(page), "exec"), namespace)
    return printed.getvalue().strip(), namespace


@pytest.mark.parametrize("name", QUESTIONS)
def test_every_flagfile_has_enough_seeds_for_a_verdict(name):
    question = importlib.import_module(f"experiments.{name}").QUESTION
    assert question.parsed(f"--flagfile=experiments/flagfiles/{name}.flags")["seeds"] >= verdicts.FEWEST_SEEDS


def test_the_training_loop_runs_as_written():
    printed, _ = run(README, "python", "nnx.Optimizer")
    without, with_oja = (float(accuracy) for accuracy in re.findall(r"test accuracy (\S+)", printed))
    assert without < 0.2 and with_oja > 0.5


@pytest.mark.compiled_quickly(False)  # Its training would take longer than its compilation.
def test_the_grid_runs_as_written():
    rows = [line.split() for line in run(README, "python", "online.grid")[0].splitlines()]
    accuracies = [float(row[-1]) for row in rows if re.fullmatch(r"0\.\d+", row[-1])]
    assert len(accuracies) == 8
    without, with_oja = accuracies[::2], accuracies[1::2]  # The Oja rate varies fastest.
    assert max(without) < 0.3 and min(with_oja[2:]) > 0.4


def test_the_readme_has_no_other_code():
    assert len(blocks(README, "python")) == 2 == README.read_text(encoding="utf-8").count("```") / 2 - 1  # One is BibTeX.


def test_the_stream_is_learned_as_written():
    without, with_oja = run(TUTORIALS / "stream.md", "{code-cell}", "readout_alone")[1]["recalled"].sum(axis=1)
    assert 12 < without < 24 and 29 < with_oja <= 30


def test_a_custom_convolutional_network_learns_as_written():
    frame = run(TUTORIALS / "convolution.md", "{code-cell}", "nnx.Conv")[1]["frame"]
    assert len(frame) == 4 and frame["test_accuracy"].min() > 0.4


@pytest.mark.parametrize("name", ["my_question", "my_stopping_question"])
def test_custom_questions_are_commands(tmp_path, name):
    """Runs the file that the tutorial writes as a command, with smaller numbers than its defaults."""
    files = dict(
        block.removeprefix("%%writefile ").split("\n", 1)
        for block in blocks(TUTORIALS / "own_question.md", "{code-cell}")
        if block.startswith("%%")
    )
    (tmp_path / f"{name}.py").write_text(files[f"{name}.py"])
    flags = ["--widths=8", "--learning_rate=1e-2,1e-1", "--oja_rate=0,1e-3", "--seeds=2", "--num_train=40", "--evals=2"]
    command = [sys.executable, f"{name}.py", *flags, "--workdir=results"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": compiling.XLA_FLAGS}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert ("Verdict" in done.stdout) == (name == "my_question")
    assert (tmp_path / "results" / "figures" / "learning_curves.png").exists()


def test_make_sweep_ends_with_a_page(tmp_path):
    """The command of the README, with a smaller study."""
    tiny = "--depth=2 --init=he_normal --learning_rate=1e-2 --oja_rate=0,1e-3 --oja_half_life=inf --num_train=64 --evals=1"
    command = [
        "make",
        "--no-print-directory",
        "-o",
        ".venv/.ready",
        "sweep",
        f"BIN={Path(sys.executable).parent}",
        f"RESULTS={tmp_path}",
    ]
    environment = os.environ | {"XLA_FLAGS": compiling.XLA_FLAGS, "MAKEFLAGS": ""}  # `make test` has its own.
    done = subprocess.run([*command, f"FLAGS={tiny}"], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Studies: 1, about 8 minutes on two cores")
    assert "data:image/png" in (tmp_path / "index.html").read_text()
