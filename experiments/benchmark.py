"""How long does a sample of online learning take, here and in what a user would write instead?

`python -m experiments.benchmark` (or `make bench`) runs all sides in turn, each in a process of its own, on the same
images, networks and numbers (float32), and prints microseconds a sample-run: one sample of one run, forward, backward and
update. `benchmark.csv` has every measurement, `benchmark.png` the cost against runs, depth, width and samples.
"""

import contextlib
import ctypes
import functools
import importlib.util
import itertools
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from absl import app, flags
from rich.console import Console
from rich.table import Table

from experiments.common import figures, network, workdir
from experiments.common.app import complain, parse_flags
from experiments.common.errors import UserError
from ojax import checkpoints, datasets, online

NETWORKS = {
    "5 layers": (784, 170, 130, 100, 70, 47),
    "10 layers": (784, 170, 150, 130, 120, 110, 100, 90, 80, 70, 47),
}
ETA, THETA = 1e-3, 1e-4


class Measurement(NamedTuple):
    """What a side reports of one go.

    Attributes:
      microseconds: A sample of a run, the mean over the go.
      first_seconds: From the call to the first samples learned: compilation, mostly.
      mebibytes: The most memory that the side's process has had so far, libraries included.
    """

    microseconds: float
    first_seconds: float = np.nan
    mebibytes: float = np.nan


Side = Callable[[Sequence[int], int, int], Measurement]  # Of a network's widths, runs and samples.


@functools.cache
def _data() -> datasets.Dataset:
    data = datasets.load()
    return data._replace(test_images=data.test_images[:10], test_labels=data.test_labels[:10], class_names=("",) * 47)


def _ojax(widths: Sequence[int], runs: int, samples: int, *, rule: bool = True, save: bool = False) -> Measurement:
    """The public path: an optax chain, runs mapped and sharded; with checkpoints every two seconds, or none."""
    constants = {"learning_rate": ETA, "oja_rate": THETA * rule, "init_gain": 1.0, "init": 0.0}
    hyper = {name: [value] * runs for name, value in constants.items()}
    train_size = len(_data().train_labels)
    schedule = online.Schedule(min(samples, train_size), evaluate_at=(samples,), epochs=-(-samples // train_size))
    times: list[tuple[int, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        with checkpoints.Checkpoints(folder, every_seconds=2.0) if save else contextlib.nullcontext() as kept:
            for _ in online.train(
                *(_learner(tuple(widths)), hyper, range(runs), _data(), schedule),
                checkpoints=kept,
                on_progress=lambda seen: times.append((seen, time.perf_counter())),
            ):
                pass
        ended = time.perf_counter()  # Of what is saved in the background, too.
    (first, first_time), (last, last_time) = times[1], times[-1]
    seconds = (ended if save else last_time) - first_time
    return Measurement(1e6 * seconds / (last - first) / runs, first_time - began)


@functools.cache
def _learner(widths: tuple[int, ...]) -> online.Learner:
    return network.learner(widths)


def _jax_by_sample(widths: Sequence[int], runs: int, samples: int) -> Measurement:
    """The same chain in a Python loop that dispatches one step a sample."""
    learner, data = _learner(tuple(widths)), _data()
    hyper = {"learning_rate": jnp.float32(ETA), "oja_rate": jnp.float32(THETA)}
    hyper |= {"init_gain": jnp.float32(1), "init": jnp.float32(0)}
    params, state = jax.jit(online.initial_params, static_argnums=0)(learner, hyper, 0)
    opt_state = learner.optimizer(hyper).init(params)

    @jax.jit
    def learn(params, opt_state, image, label):
        made = online.step(learner, hyper, params, state, opt_state, image, label)
        return optax.apply_updates(params, made.updates), made.opt_state

    def go(params, opt_state, count):
        began = time.perf_counter()
        for image, label in zip(data.train_images[:count], data.train_labels[:count], strict=True):
            params, opt_state = learn(params, opt_state, image, label)
        jax.block_until_ready(params)
        return params, opt_state, time.perf_counter() - began

    params, opt_state, first = go(params, opt_state, 1)
    *_, seconds = go(params, opt_state, samples)
    return Measurement(1e6 * seconds / samples, first)


def _torch(widths: Sequence[int], runs: int, samples: int, *, form: str) -> Measurement:
    """One run in PyTorch: `autograd` with SGD and no Oja, or the update by hand, as `published` or in its `cheap` form."""
    import torch

    torch.manual_seed(0)
    data = _data()
    images, labels = torch.from_numpy(data.train_images[:samples]), torch.from_numpy(data.train_labels[:samples]).long()
    layers = [torch.nn.Linear(n, m, bias=False) for n, m in itertools.pairwise(widths)]
    softplus = torch.nn.Softplus(beta=10)

    def autograd(image, label):
        optimizer.zero_grad()
        y = image
        for layer in layers[:-1]:
            y = softplus(layer(y))
        torch.nn.functional.cross_entropy(layers[-1](y), label[None]).backward()
        optimizer.step()

    def by_hand(image, label):
        with torch.no_grad():
            ys = [image[0]]
            for layer in layers[:-1]:
                ys.append(softplus(layer.weight @ ys[-1]))
            ys.append(torch.softmax(layers[-1].weight @ ys[-1], 0))
            error = ys[-1] - torch.nn.functional.one_hot(label, widths[-1])
            for layer, x, y in zip(layers[::-1], ys[-2::-1], ys[:0:-1], strict=True):
                below = (layer.weight.T @ error) * (1 - torch.exp(-10 * x))
                if form == "published":
                    decay = torch.outer(y, y) @ layer.weight
                    layer.weight += -ETA * torch.outer(error, x) + THETA * (torch.outer(y, x) - decay)
                else:
                    layer.weight += torch.outer(-ETA * error, x) + torch.outer(THETA * y, x - layer.weight.T @ y)
                error = below

    step = autograd if form == "autograd" else by_hand
    optimizer = torch.optim.SGD([layer.weight for layer in layers], lr=ETA)
    step(images[:1], labels[0])
    began = time.perf_counter()
    for index in range(samples):
        step(images[index : index + 1], labels[index])
    return Measurement(1e6 * (time.perf_counter() - began) / samples)


def _compiled(widths: Sequence[int], runs: int, samples: int) -> Measurement:
    """`reference.c` on one core."""
    library, data = ctypes.CDLL(str(_compile())), _data()
    dice = np.random.default_rng(0)
    layers = [dice.uniform(-1, 1, (n, m)) * np.sqrt(6 / (n + m)) for n, m in itertools.pairwise(widths)]
    weights = np.concatenate([layer.ravel() for layer in layers]).astype(np.float32)
    activity, errors = np.zeros(sum(widths), np.float32), np.zeros(2 * max(widths), np.float32)
    order = dice.permutation(len(data.train_labels))[:samples].astype(np.int32)
    shape = np.array(widths, np.int32)

    def pointer(array: np.ndarray) -> ctypes.c_void_p:
        return ctypes.c_void_p(array.ctypes.data)

    began = time.perf_counter()
    library.learn(
        len(layers), pointer(shape), pointer(weights), pointer(activity), pointer(errors), max(widths),
        pointer(data.train_images), pointer(data.train_labels), pointer(order), samples,
        ctypes.c_float(ETA), ctypes.c_float(THETA),
    )  # fmt: skip
    return Measurement(1e6 * (time.perf_counter() - began) / samples)


@functools.cache
def _compile() -> Path:
    folder = Path(tempfile.mkdtemp())
    source = Path(__file__).parent / "common" / "reference.c"
    options = ["-O3", "-march=native", "-ffast-math", "-shared", "-fPIC"]
    command = [_compiler() or "cc", *options, str(source), "-o", str(folder / "reference.so"), "-lm"]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "reference.so"


def _compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


OJAX, COMPILED = "ojax: optax chain with ojax.oja()", "C, compiled, one core"
SIDES: dict[str, Side] = {
    OJAX: _ojax,
    "ojax, backprop alone": functools.partial(_ojax, rule=False),
    "JAX, one dispatch a sample": _jax_by_sample,
    "PyTorch by hand, as published": functools.partial(_torch, form="published"),
    "PyTorch by hand, cheap form": functools.partial(_torch, form="cheap"),
    "PyTorch autograd, SGD, no Oja": functools.partial(_torch, form="autograd"),
    COMPILED: _compiled,
}


class Worker:
    """A side in a process of its own, so that its memory and its threads are its own."""

    def __init__(self, side: Side):
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_work, args=(side, other), daemon=True)
        self._process.start()
        other.close()

    def measure(self, *arguments: Any) -> Measurement:
        """The side at those widths, runs and samples."""
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


def roofline(widths: Sequence[int]) -> dict[str, float]:
    """Microseconds that one core needs at least for a sample, by its measured bandwidth and by its measured peak.

    The weights are read once for the forward product, and read and written once for the update, from the cache where they
    fit. The arithmetic is 2 operations a weight forward, 2 for W y, 2 for W e above the first layer, 4 for the update.
    """
    sizes = [n * m for n, m in itertools.pairwise(widths)]
    array = np.zeros(sum(sizes), np.float32)
    in_place = _best(lambda: np.add(array, 1, out=array))  # Reads and writes it all.
    matrix = np.ones((1024, 1024), np.float32)
    peak = 2 * 1024**3 / _best(lambda: matrix @ matrix, times=20)
    operations = 8 * sum(sizes) + 2 * sum(sizes[1:])
    return {
        "bandwidth_gb_s": 8 * array.size / in_place / 1e9,
        "peak_gflop_s": peak / 1e9,
        "by_bandwidth_us": 1e6 * 1.5 * in_place,
        "by_peak_us": 1e6 * operations / peak,
    }


def _best(work: Callable[[], Any], times: int = 300) -> float:
    def once() -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    return min(once() for _ in range(times))


def compare(workers: Mapping[str, Worker], repeats: int, runs: int) -> Iterator[dict[str, Any]]:
    """All sides in turn on both networks, again and again; ojax with that many runs, the others with one."""
    for repeat in range(repeats):
        for name, widths in NETWORKS.items():
            for side, worker in workers.items():
                batch, samples = (runs, 2000) if side.startswith("ojax") else (1, 4000 if side == COMPILED else 1000)
                yield _row("compare", side, name, batch, samples, repeat, worker.measure(widths, batch, samples))


def scale(worker: Worker, full: bool) -> Iterator[dict[str, Any]]:
    """The public path against number of runs, depth, width and samples, one at a time."""
    usual = NETWORKS["5 layers"]
    fitting = online.runs_that_fit(
        _learner(usual), ("learning_rate", "oja_rate", "init_gain", "init"), _data(), online.Schedule(64, (64,))
    )
    for runs in (1, 4, 16, 64, 256, 1024, 4096):
        if runs <= fitting:
            samples = max(64, 60_000 // runs)
            yield _row("runs", OJAX, "5 layers", runs, samples, 0, worker.measure(usual, runs, samples))
    for depth in (2, 5, 10, 20):
        widths = (784, *np.linspace(170, 70, depth - 1).round().astype(int).tolist(), 47)
        yield _row("depth", OJAX, depth, 16, 1000, 0, worker.measure(widths, 16, 1000))
    for factor in (0.5, 1, 2, 4):
        widths = (784, *(round(factor * width) for width in usual[1:-1]), 47)
        yield _row("width", OJAX, widths[1], 16, 400, 0, worker.measure(widths, 16, 400))
    for samples in (1000, 10_000, 100_000, *([1_000_000] if full else [])):
        yield _row("samples", OJAX, "5 layers", 8, samples, 0, worker.measure(usual, 8, samples))


def overhead(plain: Worker, saving: Worker, repeats: int) -> Iterator[dict[str, Any]]:
    """64 runs with checkpoints every two seconds and without, in turn."""
    for repeat in range(repeats):
        for side, worker in (("without checkpoints", plain), ("checkpoints every 2 s", saving)):
            yield _row("checkpoints", side, "5 layers", 64, 2500, repeat, worker.measure(NETWORKS["5 layers"], 64, 2500))


def _row(part: str, side: str, network: Any, runs: int, samples: int, repeat: int, found: Measurement) -> dict[str, Any]:
    facts = {"part": part, "side": side, "network": network, "runs": runs, "samples": samples, "repeat": repeat}
    return facts | {"microseconds_per_sample_run": found.microseconds, **found._asdict()}


def table_of(rows: pd.DataFrame) -> Table:
    """Medians and ranges of the comparison, and how many times ojax is faster."""
    table = Table(title="microseconds a sample-run: median [range over repetitions]")
    for column in ("side", *NETWORKS, "times ojax's", "memory, MiB"):
        table.add_column(column, justify="left" if column == "side" else "right")
    compared = rows[rows["part"] == "compare"]
    medians = compared.groupby(["side", "network"])["microseconds"].median()
    for side in compared["side"].unique():
        mine = compared[compared["side"] == side]
        cells, ratios = [], []
        for name in NETWORKS:
            found = mine.loc[mine["network"] == name, "microseconds"]
            cells.append(f"{found.median():,.1f} [{found.min():,.1f}, {found.max():,.1f}]")
            ratios.append(f"{found.median() / medians[OJAX, name]:.2f}")
        table.add_row(side, *cells, ", ".join(ratios), f"{mine['mebibytes'].max():,.0f}")
    return table


def figure_of(rows: pd.DataFrame) -> Any:
    """Cost against runs, depth, width and samples; the ranges of the comparison's other sides beside it."""
    names = {"runs": "runs", "depth": "layers", "width": "width of the first hidden layer", "samples": "samples of a run"}
    figure, panels = figures.make_panels(1, 4, width=2.2, height=2.2, sharex=False)
    for axes, (part, label) in zip(panels[0], names.items(), strict=True):
        mine = rows[rows["part"] == part]
        x = mine[part if part in ("runs", "samples") else "network"].astype(float)
        axes.plot(x, mine["microseconds"], marker="o", markersize=3, color=figures.COLOURS["hybrid"])
        axes.set(xlabel=label, ylabel="µs a sample-run" if part == "runs" else "", xscale="log", ylim=(0, None))
        if part in ("depth", "width"):
            axes.set_xticks(x, [f"{value:g}" for value in x], minor=False)
            axes.minorticks_off()
    return figure


def main(arguments: Sequence[str]) -> None:
    """Measures, prints and writes; errors of the user's go to standard error as one line, with exit code 2."""
    console, folder = Console(), Path(flags.FLAGS.workdir)
    try:
        with workdir.replacing(folder / "probe.txt", publish=False):
            pass
        sides = dict(SIDES)
        if importlib.util.find_spec("torch") is None:
            console.print("PyTorch is not installed: its sides are left out (pip install torch).")
            sides = {name: side for name, side in sides.items() if "PyTorch" not in name}
        if _compiler() is None:
            console.print("There is no C compiler: the compiled reference is left out.")
            del sides[COMPILED]
        rows = []
        with console.status("measuring") as status:
            workers = {name: Worker(side) for name, side in sides.items()}
            saving = Worker(functools.partial(_ojax, save=True))
            parts = (
                compare(workers, flags.FLAGS.repeats, flags.FLAGS.runs),
                overhead(workers[OJAX], saving, flags.FLAGS.repeats),
                scale(workers[OJAX], flags.FLAGS.full),
            )
            for part in parts:
                for row in part:
                    rows.append(row)
                    status.update(f"{row['side']}, {row['network']}, {row['runs']} runs: {row['microseconds']:.1f} µs")
            for worker in (*workers.values(), saving):
                worker.close()
        frame = pd.DataFrame(rows).drop(columns="microseconds_per_sample_run")
        with workdir.replacing(folder / "benchmark.csv") as path:
            frame.to_csv(path, index=False)
        with workdir.replacing(folder / "benchmark.png") as path:
            figure_of(frame).savefig(path, dpi=200)
        console.print(table_of(frame))
        for line in _remarks(frame):
            console.print(line, highlight=False, soft_wrap=True)
        console.print(f"benchmark.csv and benchmark.png are in {folder}{os.sep}", highlight=False)
    except UserError as error:
        sys.exit(complain(error))


def _remarks(rows: pd.DataFrame) -> Iterator[str]:
    for name, widths in NETWORKS.items():
        least = roofline(widths)
        yield (
            f"{name}: at the least {least['by_bandwidth_us']:.1f} µs on one core by bandwidth "
            f"({least['bandwidth_gb_s']:.0f} GB/s measured over weights of this size), {least['by_peak_us']:.1f} µs by "
            f"arithmetic ({least['peak_gflop_s']:.0f} GFLOP/s measured); the larger bounds it."
        )
    compared = rows[(rows["part"] == "compare") & (rows["side"] == OJAX)]
    first = compared[compared["repeat"] == 0].set_index("network")["first_seconds"]
    yield "From the call to the first samples learned, compilation included: " + ", ".join(
        f"{name} {first[name]:.1f} s" for name in NETWORKS
    )
    saved = rows[rows["part"] == "checkpoints"].groupby("side")["microseconds"].median()
    extra = saved["checkpoints every 2 s"] / saved["without checkpoints"] - 1
    yield (
        f"Checkpoints of 64 runs every 2 s cost {extra:.1%} of the time; every 120 s, the default, a sixtieth of that: "
        f"{extra / 60:.2%}."
    )
    many = rows[rows["part"] == "runs"]
    many = many[many["runs"] >= 8]["microseconds"]
    yield f"From 8 to {int(rows['runs'].max()):,} runs the cost stays within {many.max() / many.min():.2f} times its least."


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "results/benchmark", "Folder for benchmark.csv and benchmark.png.")
    flags.DEFINE_integer("repeats", 3, "Repetitions of the comparison.", lower_bound=1)
    flags.DEFINE_integer("runs", 16, "Runs that ojax learns side by side in the comparison.", lower_bound=1)
    flags.DEFINE_boolean("full", False, "Also a million samples a run: some minutes more.")
    app.run(main, flags_parser=parse_flags)
