"""The README's code runs as written and learns."""

import contextlib
import io
import os
import re
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest

from tests import compiling

README = Path(__file__).parents[1] / "README.md"


def run_block(word, namespace=None):
    """What the README's only Python block with that word prints."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    (block,) = (block for block in blocks if word in block)
    with contextlib.redirect_stdout(io.StringIO()) as printed, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX is in use already.
        exec(compile(block, str(README), "exec"), {"__name__": "readme"} if namespace is None else namespace)
    return printed.getvalue().strip()


@pytest.mark.compiled_quickly
def test_the_training_loop_runs_as_written():
    accuracy = float(re.search(r"([\d.]+)$", run_block("nnx.Optimizer")).group(1))
    assert accuracy > 0.4


def test_the_grid_runs_as_written():
    rows = [line.split() for line in run_block("pd.concat").splitlines()]
    accuracies = [float(row[-1]) for row in rows if re.fullmatch(r"0\.\d+", row[-1])]
    assert len(accuracies) == 8 and max(accuracies) > 0.5


def test_the_stream_is_learned_as_written():
    without, with_oja = map(float, re.findall(r"\d+\.\d+", run_block("readout_alone")))
    assert 12 < without < 24 and 29 < with_oja <= 30


@pytest.mark.compiled_quickly
def test_the_study_in_a_script_and_its_weights_run_as_written(tmp_path, monkeypatch):
    namespace = {"__name__": "readme"}
    assert run_block("experiments.study", namespace).count("0.0") == 4  # A row for each method and learning rate.
    assert len(namespace["study"].results) == 160 and namespace["figure"].axes
    import matplotlib

    import experiments

    monkeypatch.setattr(matplotlib, "get_backend", matplotlib.get_backend)
    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)
    small = {"widths": 8, "learning_rate": [1e-3, 1e-2], "oja_rate": [0, 3e-4], "seeds": 1, "num_train": 64, "evals": 1}
    experiments.study("deep_mlp", **small, workdir="results/mine", save_weights=True)
    run_block("load_weights", namespace)
    assert namespace["logits"].shape == (2000, 10)


def test_a_convolutional_network_of_ones_own_learns_as_written():
    accuracies = [float(number) for number in re.findall(r"0\.\d+", run_block("nnx.Conv"))]
    assert len(accuracies) == 4 and min(accuracies) > 0.4


QUESTIONS = {"Does Oja": "learning_curves", "Does a rule": "learning_curves"}


@pytest.mark.parametrize("start", QUESTIONS)
def test_the_questions_of_ones_own_run_as_written(tmp_path, start):
    """The indented module, in its own file, with smaller numbers than its defaults."""
    text = README.read_text(encoding="utf-8")
    (block,) = re.findall(rf'(?m)^    """{start}.*?^        app\.run\(QUESTION\)\n', text, flags=re.DOTALL)
    (tmp_path / "my_question.py").write_text(textwrap.dedent(block))
    flags = ["--widths=8", "--learning_rate=1e-2,1e-1", "--oja_rate=0,1e-3", "--seeds=2", "--num_train=40", "--evals=2"]
    command = [sys.executable, "my_question.py", *flags, "--workdir=results"]
    environment = os.environ | {"PYTHONPATH": str(README.parent), "XLA_FLAGS": compiling.XLA_FLAGS}
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    assert ("Verdict" in run.stdout) == (start == "Does Oja")
    assert (tmp_path / "results" / "figures" / f"{QUESTIONS[start]}.png").exists()


def test_every_path_that_it_names_is_there():
    text = README.read_text(encoding="utf-8")
    paths = re.findall(r"\b(?:ojax|experiments|tests)/[\w/.]+\.(?:py|flags)|\.readme/\w+\.png", text)
    assert len(paths) >= 5
    for path in set(paths) - {"experiments/my_question.py", "experiments/flagfiles/NAME.flags"}:
        assert (README.parent / path).exists(), path
