"""A study's progress while it compiles and trains, on a terminal and as lines."""

import io
import time

import jax
import pytest
from rich.console import Console

from experiments.common import progress
from experiments.common.progress import Progress


def shown(terminal):
    return Console(file=io.StringIO(), force_terminal=terminal, width=120)


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS_UNTIL_COMPILING", 0.2)
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.6)


@pytest.mark.parametrize("terminal", [False, True], ids=["quiet lines", "terminal"])
def test_while_it_compiles_it_prints_the_seconds(terminal):
    console = shown(terminal)
    with Progress.shown(console, 200) as study:
        study.start("depth 1000", 2)
        study.advance(0)  # The initial weights exist, and the training program is being compiled.
        time.sleep(1.8)
        study.advance(50)
        learning = console.file.tell()
        time.sleep(0.5)
        study.advance(100)
    text = console.file.getvalue()
    assert "depth 1000: compiling, 0 s" in text and "depth 1000: compiling, 1 s" in text
    assert "compiling" not in text[learning:].split("100%")[-1]
    if not terminal:
        lines = text.splitlines()
        assert lines.index("depth 1000: 50% of all samples") < lines.index(next(line for line in lines if "100%" in line))
        assert sum("compiling" in line for line in lines) <= 3


def test_a_later_program_is_noticed():
    """From JAX's events of a compilation."""
    console = shown(False)
    with Progress.shown(console, 200) as study:
        study.start("depth 5", 2)
        study.advance(0)
        study.advance(50)
        jax.monitoring.record_event_duration_secs("/jax/core/compile/jaxpr_to_mlir_module_duration", 20.0)
        time.sleep(0.5)
        jax.monitoring.record_event_duration_secs("/jax/core/compile/backend_compile_duration", 1.0)
        time.sleep(0.5)
        study.advance(100)
    assert console.file.getvalue().count("depth 5: compiling, 20 s") == 1


def test_a_program_that_is_there_at_once_is_not_worth_a_line():
    console = shown(False)
    with Progress.shown(console, 200) as study:
        study.start("depth 5", 2)
        study.advance(0)
        study.advance(100)
        time.sleep(0.5)
    assert "compiling" not in console.file.getvalue() and "100%" in console.file.getvalue()


def test_a_resumed_study_says_from_where_and_how_long_it_will_take(monkeypatch):
    """Two programs, 10 s of compilation each, 100 samples per second: 250 of 1,750 samples were learned before."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    bar = progress.rich.progress.Progress(console=shown(False), disable=True)
    study = Progress(bar, 1750, 2)
    study.start("depth 5", 1)
    study.advance(250)
    now[0] += 10
    study.advance(260)  # Mostly compilation.
    now[0] += 1
    study.advance(360)
    now[0] += 1
    study.advance(460)
    lines = bar.console.file.getvalue().splitlines()
    assert lines[0] == "depth 5: resumes from sample 250 of each run, its last saved state"
    assert lines[-1].startswith("depth 5: 26% of all samples, 100 samples/s, ETA 23 s"), lines  # 1,290 more, and a program.
