"""How long does a sample of online learning take, here and in what a user would write instead?

`python -m experiments.benchmark` (or `make bench`) runs all sides in turn, each in a process of its own, on the same
images, networks and numbers (float32), and prints microseconds a sample-run: one sample of one run, forward, backward and
update; first of dense networks, then of convolutional ones. `benchmark.csv` has every measurement, `benchmark.png` the cost
of dense ones against runs, depth, width and samples. It takes some six minutes on two cores, and half an hour with --full.
"""

import contextlib
import functools
import importlib.util
import itertools
import multiprocessing
import os
import resource
import sys
import timeit
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import rich.box
from absl import app, flags, logging
from rich.console import Console
from rich.table import Table

from experiments.common import figures, files, hardware, meta_sides, sides, stream_sides
from experiments.common.app import parse_flags
from experiments.common.errors import UserError, complain
from experiments.common.parsers import FilePath
from experiments.common.sides import ALL_CORES, COMPILED, CONVOLUTIONS, CORES, NETWORKS, OJAX, Measurement, Side
from ojax import online


class Worker:
    """A side in a process of its own, so that its memory and its threads are its own."""

    def __init__(self, side: Side):
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_work, args=(side, other), daemon=True)
        self._process.start()
        other.close()

    def measure(self, *arguments: Any) -> Measurement:
        """The side with that network and those numbers of runs and samples."""
        self._pipe.send(arguments)
        try:
            found = self._pipe.recv()
        except EOFError:
            raise UserError("A side's process died; is there memory enough for --runs?") from None
        if isinstance(found, str):
            raise UserError(found)
        return found

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()


def _work(side: Side, pipe: Any) -> None:
    online.use_all_cores()
    while True:
        try:
            found: Any = side(*pipe.recv())
            unit = 2**20 if sys.platform == "darwin" else 2**10
            found = found._replace(mebibytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)
        except EOFError:
            return
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
        pipe.send(found)


def operations(network: sides.Convolutions) -> int:
    """Floating-point operations of a sample of a convolutional network, without its non-linearities.

    They are 2 a weight and position forward, 2 for the error above the first layer, 2 for the gradient and 2 for Hebb's
    product; for Oja's decay the products Y^T Y and W (Y^T Y), and in the read-out 4 a weight for the rank-one update.
    """
    total, size, n_in = 0, 28, 1
    for layer, (n_out, stride) in enumerate(zip(network.channels, network.strides, strict=True)):
        size, weights = -(-size // stride), 9 * n_in * n_out
        total += (8 if layer else 6) * size**2 * weights + 2 * n_out * (size**2 * n_out + weights)
        n_in = n_out
    return total + 10 * size**2 * n_in * 47


def roofline(widths: Sequence[int]) -> dict[str, float]:
    """Microseconds that one core needs at least for a sample, by its measured bandwidth and by its measured peak.

    The weights are read once for the forward product, and read and written once for the update, from the cache where they
    fit. The arithmetic is 2 operations a weight forward, 2 for W y, 2 for W e above the first layer, 4 for the update.
    """
    sizes = [n * m for n, m in itertools.pairwise(widths)]
    array = np.zeros(sum(sizes), np.float32)
    in_place = _best(lambda: np.add(array, 1, out=array))  # Reads and writes it all.
    peak = _peak()
    count = 8 * sum(sizes) + 2 * sum(sizes[1:])
    return {
        "bandwidth_gb_s": 8 * array.size / in_place / 1e9,
        "peak_gflop_s": peak / 1e9,
        "by_bandwidth_us": 1e6 * 1.5 * in_place,
        "by_peak_us": 1e6 * count / peak,
    }


@functools.cache
def _peak() -> float:
    """Operations a second of a core, measured on large matrices."""
    matrix = np.ones((1024, 1024), np.float32)
    return 2 * 1024**3 / _best(lambda: matrix @ matrix, times=20)


def _best(work: Callable[[], Any], times: int = 300) -> float:
    return min(timeit.repeat(work, number=1, repeat=times))


def compare(workers: Mapping[str, Worker], repeats: int, runs: int) -> Iterator[dict[str, Any]]:
    """All sides in turn on both networks, again and again; ojax with that many runs, the others with one."""
    for repeat in range(repeats):
        for name, widths in NETWORKS.items():
            for side, worker in workers.items():
                mapped, compiled = side.startswith("ojax"), side in (COMPILED, ALL_CORES)
                batch = runs if mapped else CORES if side == ALL_CORES else 1
                samples = 1500 if mapped else 4000 if compiled else 300
                yield _row("compare", side, name, batch, samples, repeat, worker.measure(widths, batch, samples))


def compare_convolutions(workers: Mapping[str, Worker], repeats: int, runs: int) -> Iterator[dict[str, Any]]:
    """The same of both convolutional networks."""
    for repeat in range(repeats):
        for name, network in CONVOLUTIONS.items():
            for side, worker in workers.items():
                batch, samples = (runs, 600) if side.startswith("ojax") else (1, 300)
                found = worker.measure(network, batch, samples)
                yield _row("convolutions", side, name, batch, samples, repeat, found)


def scale(worker: Worker, full: bool) -> Iterator[dict[str, Any]]:
    """The public path against depth, width, samples and number of runs, one at a time."""
    usual = NETWORKS["5 layers"]
    for depth in (2, 5, 10):
        widths = (784, *np.linspace(170, 70, depth - 1).round().astype(int).tolist(), 47)
        yield _row("depth", OJAX, depth, 16, 1000, 0, worker.measure(widths, 16, 1000))
    for factor in (0.5, 1, 2):
        widths = (784, *(round(factor * width) for width in usual[1:-1]), 47)
        yield _row("width", OJAX, widths[1], 16, 2000, 0, worker.measure(widths, 16, 2000))
    for samples in (1000, 10_000, 100_000, *([1_000_000] if full else [])):
        yield _row("samples", OJAX, "5 layers", 4, samples, 0, worker.measure(usual, 4, samples))
    weights = 4 * sum(n * m for n, m in itertools.pairwise(usual))
    for runs in (1, 8, 64, 512, 4096):
        if 3 * runs * weights < psutil.virtual_memory().available:
            samples = max(128, 60_000 // runs)
            yield _row("runs", OJAX, "5 layers", runs, samples, 0, worker.measure(usual, runs, samples))


def overhead(plain: Worker, saving: Worker, every_seconds: float, repeats: int) -> Iterator[dict[str, Any]]:
    """256 runs with checkpoints that often and without, in turn, over some three intervals."""
    sides = {"no checkpoints": plain, f"checkpoints every {every_seconds:g} s": saving}
    samples = round(3 * every_seconds / 256 * 40_000 / 64) * 64  # At about 25 microseconds each.
    for repeat in range(repeats):
        for side, worker in sides.items():
            found = worker.measure(NETWORKS["5 layers"], 256, samples)
            yield _row("checkpoints", side, "5 layers", 256, samples, repeat, found)


def stream(workers: Mapping[str, Worker], repeats: int, runs: int) -> Iterator[dict[str, Any]]:
    """A recurrent network that learns from a stream, with each method; ojax with that many runs, PyTorch with one."""
    for repeat in range(repeats):
        for method in stream_sides.METHODS:
            for side, worker in workers.items():
                mapped = side == OJAX
                batch, samples = (runs, 8000) if mapped else (1, 1000)
                yield _row("stream", side, method, batch, samples, repeat, worker.measure(method, batch, samples))


def meta_learning(workers: Mapping[str, Worker], repeats: int) -> Iterator[dict[str, Any]]:
    """Meta-learning by the gradient through whole episodes; ojax with eight runs, PyTorch with one."""
    for repeat in range(min(repeats, 3)):
        for side, worker in workers.items():
            runs, episodes = (8, 16) if side == OJAX else (1, 2)
            found = worker.measure("5 layers", runs, episodes)
            yield _row("meta_learning", side, "random feedback", runs, episodes, repeat, found)


def _row(part: str, side: str, network: Any, runs: int, samples: int, repeat: int, found: Measurement) -> dict[str, Any]:
    facts = {"part": part, "side": side, "network": network, "runs": runs, "samples": samples, "repeat": repeat}
    return facts | found._asdict()


def table_of(rows: pd.DataFrame, part: str, what: str) -> Table:
    """Medians and ranges of a comparison, and how many times ojax is faster."""
    table = Table(title=f"{what}: microseconds a sample-run, median (range), and times ojax's", box=rich.box.SIMPLE)
    table.add_column("side", no_wrap=True)
    compared = rows[rows["part"] == part]
    names = compared["network"].unique()
    for column in (*itertools.chain.from_iterable((name, "times") for name in names), "MiB"):
        table.add_column(column, justify="right", no_wrap=True)
    medians = compared.groupby(["side", "network"])["microseconds"].median()
    for side, mine in compared.groupby("side", sort=False):
        cells = []
        for name in names:
            found = mine.loc[mine["network"] == name, "microseconds"]
            cells.append(f"{found.median():,.1f} ({found.min():,.1f}–{found.max():,.1f})")
            cells.append(f"{found.median() / medians[OJAX, name]:.3g}")
        table.add_row(str(side), *cells, f"{mine['mebibytes'].max():,.0f}")
    return table


def figure_of(rows: pd.DataFrame) -> Any:
    """Cost against runs, depth, width and samples; beside the runs, what the other sides cost."""
    names = {"runs": "runs", "depth": "layers", "width": "width of the first\nhidden layer", "samples": "samples of a run"}
    figure, panels = figures.make_panels(1, 4, width=2.6, height=3.0, sharex=False)
    for axes, (part, label) in zip(panels[0], names.items(), strict=True):
        mine = rows[rows["part"] == part]
        x = mine[part if part in ("runs", "samples") else "network"].astype(float)
        axes.plot(x, mine["microseconds"], marker="o", markersize=3, color=figures.COLOURS["hybrid"])
        axes.set(xlabel=label, xscale="log", ylim=(0, 1.15 * mine["microseconds"].max()))
        if part in ("depth", "width"):
            axes.set_xticks(x, [f"{value:g}" for value in x], minor=False)
            axes.minorticks_off()
    axes = panels[0][0]
    others = rows[(rows["part"] == "compare") & (rows["network"] == "5 layers") & ~rows["side"].str.startswith("ojax")]
    costs = others.groupby("side", sort=False)["microseconds"].median()
    above = float("inf")
    for side, cost in costs.sort_values(ascending=False).items():
        axes.axhline(cost, color=figures.COLOURS["backprop"], linewidth=0.7)
        place = "bottom" if above / cost > 1.4 else "top"
        axes.annotate(str(side), (0.98, cost), xycoords=("axes fraction", "data"), fontsize=6, ha="right", va=place)
        above = cost
    highest = max([*costs, *rows.loc[rows["part"] == "runs", "microseconds"]])
    axes.set(ylabel="µs a sample-run", yscale="log", ylim=(10, 2 * highest))
    figure.tight_layout()
    return figure


def main(arguments: Sequence[str]) -> None:
    """Measures, prints and writes; errors of the user's go to standard error as one line, with exit code 2."""
    console, folder = Console(width=max(120, Console().width)), Path(flags.FLAGS.workdir)
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.FATAL)
    hardware.ignore_compilers()  # For the sides, which import JAX in processes of their own.
    try:
        if len(arguments) > 1:
            raise UserError(f"{arguments[1]!r} is not a flag: write --name=value.")
        files.check_writable(folder)
        rows = pd.DataFrame(_measured(console, flags.FLAGS.repeats, flags.FLAGS.runs, flags.FLAGS.full))
        with files.replacing(folder / "benchmark.csv") as path:
            rows.to_csv(path, index=False)
        with files.replacing(folder / "benchmark.png") as path:
            figure_of(rows).savefig(path, dpi=200)
        console.print(table_of(rows, "compare", "Dense networks"))
        console.print(table_of(rows, "convolutions", "Convolutional networks"))
        console.print(table_of(rows, "stream", "Recurrent networks, a time step a sample"))
        console.print(table_of(rows, "meta_learning", "Meta-learning, an episode of 250 samples and its gradient a sample"))
        for line in _remarks(rows):
            console.print(line, highlight=False, soft_wrap=True)
        console.print(f"benchmark.csv and benchmark.png are in {folder}{os.sep}", highlight=False)
    except UserError as error:
        sys.exit(complain(error))


def _measured(console: Console, repeats: int, runs: int, full: bool) -> list[dict[str, Any]]:
    """All rows, with a line of progress."""
    timed, every_seconds = dict(sides.SIDES), 120.0 if full else 2.0
    convolutional, recurrent = dict(sides.CONVOLUTIONAL_SIDES), dict(stream_sides.SIDES)
    episodes = dict(meta_sides.SIDES)
    if importlib.util.find_spec("torch") is None:
        advice = "pip install --editable '.[benchmark]'"
        console.print(f"PyTorch is not installed, so its sides are left out: {advice}", markup=False)
        timed, convolutional, recurrent, episodes = (
            {name: side for name, side in some.items() if "PyTorch" not in name}
            for some in (timed, convolutional, recurrent, episodes)
        )
    if sides.compiler() is None:
        console.print("There is no C compiler (cc), so the compiled sides are left out.")
        del timed[COMPILED], timed[ALL_CORES]
    rows: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack, console.status("starting") as status:

        def start(side: Side) -> Worker:
            worker = Worker(side)
            stack.callback(worker.close)
            return worker

        workers = {name: start(side) for name, side in timed.items()}
        saving = start(functools.partial(sides.ojax_runs, every_seconds=every_seconds))
        parts = (
            compare(workers, repeats, runs),
            compare_convolutions({name: start(side) for name, side in convolutional.items()}, repeats, runs),
            stream({name: start(side) for name, side in recurrent.items()}, repeats, runs),
            meta_learning({name: start(side) for name, side in episodes.items()}, repeats),
            overhead(workers[OJAX], saving, every_seconds, 1 if full else min(repeats, 2)),
            scale(workers[OJAX], full),
        )
        for row in itertools.chain(*parts):
            rows.append(row)
            status.update(f"{row['side']}, {row['network']}, {row['runs']} runs: {row['microseconds']:.1f} µs")
    return rows


def _remarks(rows: pd.DataFrame) -> Iterator[str]:
    """What the table means, a line each."""
    compared = rows[rows["part"] == "compare"]
    medians = compared.groupby(["side", "network"])["microseconds"].median()
    for name, widths in NETWORKS.items():
        least, mine = roofline(widths), medians[OJAX, name]
        bound = max(least["by_bandwidth_us"], least["by_peak_us"]) / CORES
        yield (
            f"{name}: one step after the other, {CORES} cores need at least {least['by_bandwidth_us'] / CORES:.1f} µs a "
            f"sample-run by bandwidth ({least['bandwidth_gb_s']:.0f} GB/s a core, measured over weights of this size) and "
            f"{least['by_peak_us'] / CORES:.1f} µs by arithmetic ({least['peak_gflop_s']:.0f} GFLOP/s a core, measured on "
            f"large matrices); ojax takes {mine / bound:.1f} times the larger. Its windows read most weights once in 16 "
            "samples, so that arithmetic bounds it, not bandwidth."
        )
    others = rows[rows["part"] == "convolutions"].groupby(["side", "network"])["microseconds"].median()
    for name, network in CONVOLUTIONS.items():
        bound = 1e6 * operations(network) / _peak() / CORES
        yield (
            f"Convolutions, {name}: {operations(network) / 1e6:.1f} million operations a sample take {CORES} cores "
            f"{bound:.1f} µs at their measured peak, so that arithmetic bounds ojax, which takes "
            f"{others[OJAX, name] / bound:.1f} times that; the rest is exponentials and the making of patches. PyTorch has "
            "one thread there: more make it slower."
        )
    first = compared[(compared["side"] == OJAX) & (compared["repeat"] == 0)].set_index("network")["first_seconds"]
    yield "From the call to the first samples learned, compilation included: " + ", ".join(
        f"{name} {first[name]:.1f} s" for name in NETWORKS
    )
    yield _of_checkpoints(rows[rows["part"] == "checkpoints"])
    for part, fewest in (("runs", 8), ("samples", 1000)):
        mine = rows[(rows["part"] == part) & (rows[part] >= fewest)]
        spread = mine["microseconds"].max() / mine["microseconds"].min()
        yield f"From {fewest:,} to {mine[part].max():,} {part} the cost stays within {spread:.2f} times its least."


def _of_checkpoints(rows: pd.DataFrame) -> str:
    """What they cost at the interval measured and, since each costs the same, at the default one."""
    seconds = rows["microseconds"] * rows["runs"] * rows["samples"] / 1e6
    without, saved = (seconds[rows["side"] == side].median() for side in rows["side"].unique())
    interval = float(rows["side"].iloc[1].split()[-2])
    share = (saved - without) / without
    default = "the default" if interval == 120 else f"so {share * interval / 120:.2%} at the default of every 120 s"
    return f"Checkpoints of {rows['runs'].iloc[0]} runs every {interval:g} s cost {share:.1%} of the time: {default}."


if __name__ == "__main__":
    flags.DEFINE(FilePath(), "workdir", "results/benchmark", "Folder for benchmark.csv and benchmark.png.")
    flags.DEFINE_integer("repeats", 3, "Repetitions of the comparison.", lower_bound=1)
    flags.DEFINE_integer("runs", 16, "Runs that ojax learns side by side in the comparison.", lower_bound=1)
    flags.DEFINE_boolean(
        "full", False, "Also a million samples a run, and checkpoints at the default interval: half an hour."
    )
    app.run(main, flags_parser=parse_flags)
