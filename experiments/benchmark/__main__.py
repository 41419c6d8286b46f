"""The benchmark as a command."""

import contextlib
import functools
import importlib.util
import itertools
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from absl import app, flags, logging
from rich.console import Console

from experiments.benchmark import changing_sides, guard, meta_sides, report, sides, stream_sides
from experiments.benchmark.parts import changing, compare, compare_convolutions, meta_learning, overhead, scale, stream
from experiments.benchmark.sides import OJAX, Side
from experiments.benchmark.workers import Worker
from experiments.common import files, hardware
from experiments.common.app import check_flags_alone, parse_flags
from experiments.common.errors import UserError, complain
from experiments.common.parsers import FilePath


def main(arguments: Sequence[str]) -> None:
    """Measures, prints and writes; a user's error goes to standard error as one line, with exit code 2."""
    console = Console()
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.FATAL)
    hardware.ignore_compilers()  # For the sides, which import JAX in their own processes.
    try:
        check_flags_alone(arguments)
        if flags.FLAGS.check:
            for line in guard.check():
                console.print(line, highlight=False)
        else:
            _measure(console, Path(flags.FLAGS.workdir))
    except UserError as error:
        sys.exit(complain(error))


def _measure(console: Console, folder: Path) -> None:
    files.check_writable(folder)
    rows = pd.DataFrame(_measured(console, flags.FLAGS.repeats, flags.FLAGS.runs, flags.FLAGS.full))
    with files.replacing(folder / "benchmark.csv") as path:
        rows.to_csv(path, index=False)
    with files.replacing(folder / "benchmark.png") as path:
        report.figure_of(rows).savefig(path, dpi=200)
    titles = {
        "compare": "Dense networks",
        "convolutions": "Convolutional networks",
        "stream": "Recurrent networks, one time step per sample",
        "changing": "A stream that changes, 784-300-150-10 ReLU units with biases",
        "meta_learning": "Meta-learning, an episode of 250 samples and its gradient",
    }
    for part, title in titles.items():
        console.print(report.table_of(rows, part, title))
    for line in report.remarks(rows):
        console.print(line, highlight=False)
    guard.write()
    written = f"benchmark.csv and benchmark.png are in {folder}{os.sep}, the ratios of `make bench-check` in {guard.RATIOS}"
    console.print(written, highlight=False, soft_wrap=True)


def _measured(console: Console, repeats: int, runs: int, full: bool) -> list[dict[str, Any]]:
    """Returns all rows, and prints lines of progress."""
    every_seconds = 120.0 if full else 2.0
    if importlib.util.find_spec("torch") is None:
        advice = "pip install --editable '.[benchmark]'"
        console.print(f"PyTorch is not installed, so its sides are left out: {advice}", markup=False)
    if sides.compiler() is None:
        console.print("There is no C compiler (cc), so the compiled sides are left out.")
    rows: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack, console.status("starting") as status:

        def start(side: Side) -> Worker:
            worker = Worker(side)
            stack.callback(worker.close)
            return worker

        def start_all(known: Mapping[str, Side]) -> dict[str, Worker]:
            return {name: start(side) for name, side in sides.installed(known).items()}

        workers = start_all(sides.SIDES)
        saving = start(functools.partial(sides.ojax_runs, every_seconds=every_seconds))
        parts = (
            compare(workers, repeats, runs),
            compare_convolutions(start_all(sides.CONVOLUTIONAL_SIDES), repeats, runs),
            stream(start_all(stream_sides.SIDES), repeats, runs),
            changing(start_all(changing_sides.SIDES), repeats, runs),
            meta_learning(start_all(meta_sides.SIDES), repeats),
            overhead(workers[OJAX], saving, every_seconds, 1 if full else min(repeats, 2)),
            scale(workers[OJAX], full),
        )
        for row in itertools.chain(*parts):
            rows.append(row)
            status.update(f"{row['side']}, {row['network']}, {row['runs']} runs: {row['microseconds']:.1f} µs")
    return rows


if __name__ == "__main__":
    flags.DEFINE(FilePath(), "workdir", "results/benchmark", "Folder for benchmark.csv and benchmark.png.")
    flags.DEFINE_integer("repeats", 3, "Repetitions of the comparison.", lower_bound=1)
    flags.DEFINE_integer("runs", 16, "Runs that ojax learns in the comparison.", lower_bound=1)
    flags.DEFINE_boolean(
        "full", False, "Also a million samples per run, and checkpoints at the default interval: half an hour."
    )
    flags.DEFINE_boolean("check", False, "Only compare ratios with the committed ones, and fail where one is worse.")
    app.run(main, flags_parser=parse_flags)
