"""The parts of the benchmark: sides, networks and repetitions. Each yields one row per measurement."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import psutil

from experiments.benchmark import changing_sides, stream_sides
from experiments.benchmark.sides import ALL_CORES, COMPILED, CONVOLUTIONS, CORES, NETWORKS, OJAX, Measurement
from experiments.benchmark.workers import Worker


def compare(workers: Mapping[str, Worker], repeats: int, runs: int) -> Iterator[dict[str, Any]]:
    """Measures all sides alternately on both networks; ojax with `runs` runs, the others with one."""
    for repeat in range(repeats):
        for name, widths in NETWORKS.items():
            for side, worker in workers.items():
                mapped, compiled = side.startswith("ojax"), side in (COMPILED, ALL_CORES)
                batch = runs if mapped else CORES if side == ALL_CORES else 1
                samples = 1500 if mapped else 4000 if compiled else 300
                yield _row("compare", side, name, batch, samples, repeat, worker.measure(widths, batch, samples))


def compare_convolutions(workers: Mapping[str, Worker], repeats: int, runs: int) -> Iterator[dict[str, Any]]:
    """Measures all sides alternately on both convolutional networks."""
    for repeat in range(repeats):
        for name, network in CONVOLUTIONS.items():
            for side, worker in workers.items():
                batch, samples = (runs, 600) if side.startswith("ojax") else (1, 300)
                found = worker.measure(network, batch, samples)
                yield _row("convolutions", side, name, batch, samples, repeat, found)


def scale(worker: Worker, full: bool) -> Iterator[dict[str, Any]]:
    """Measures ojax against depth, width, samples and number of runs, one at a time."""
    canonical = NETWORKS["5 layers"]
    for depth in (2, 5, 10):
        widths = (784, *np.linspace(170, 70, depth - 1).round().astype(int).tolist(), 47)
        yield _row("depth", OJAX, depth, 16, 1000, 0, worker.measure(widths, 16, 1000))
    for factor in (0.5, 1, 2):
        widths = (784, *(round(factor * width) for width in canonical[1:-1]), 47)
        yield _row("width", OJAX, widths[1], 16, 2000, 0, worker.measure(widths, 16, 2000))
    for samples in (1000, 10_000, 100_000, *([1_000_000] if full else [])):
        yield _row("samples", OJAX, "5 layers", 4, samples, 0, worker.measure(canonical, 4, samples))
    weights = 4 * sum(n * m for n, m in itertools.pairwise(canonical))
    for runs in (1, 8, 64, 512, 4096):
        if 3 * runs * weights < psutil.virtual_memory().available:
            samples = max(128, 60_000 // runs)
            yield _row("runs", OJAX, "5 layers", runs, samples, 0, worker.measure(canonical, runs, samples))


def overhead(plain: Worker, saving: Worker, every_seconds: float, repeats: int) -> Iterator[dict[str, Any]]:
    """Measures 256 runs with checkpoints and without, alternately, over about three intervals."""
    sides = {"no checkpoints": plain, f"checkpoints every {every_seconds:g} s": saving}
    samples = round(3 * every_seconds / 256 * 40_000 / 64) * 64  # At about 25 microseconds each.
    for repeat in range(repeats):
        for side, worker in sides.items():
            found = worker.measure(NETWORKS["5 layers"], 256, samples)
            yield _row("checkpoints", side, "5 layers", 256, samples, repeat, found)


def stream(workers: Mapping[str, Worker], repeats: int, runs: int) -> Iterator[dict[str, Any]]:
    """Measures a recurrent network on a stream, with each method; ojax with `runs` runs, PyTorch with one."""
    for repeat in range(repeats):
        for method in stream_sides.METHODS:
            for side, worker in workers.items():
                mapped = side == OJAX
                batch, samples = (runs, 8000) if mapped else (1, 1000)
                yield _row("stream", side, method, batch, samples, repeat, worker.measure(method, batch, samples))


def changing(workers: Mapping[str, Worker], repeats: int, runs: int) -> Iterator[dict[str, Any]]:
    """Measures images with changing permutations of pixels, with each method; ojax with `runs` runs, PyTorch with one."""
    for repeat in range(repeats):
        for method in changing_sides.METHODS:
            for side, worker in workers.items():
                batch, samples = (runs, 2000 if method == "SGD" else 500) if side == OJAX else (1, 500)
                yield _row("changing", side, method, batch, samples, repeat, worker.measure(method, batch, samples))


def meta_learning(workers: Mapping[str, Worker], repeats: int) -> Iterator[dict[str, Any]]:
    """Measures meta-learning by the gradient through whole episodes; ojax with eight runs, PyTorch with one."""
    for repeat in range(min(repeats, 3)):
        for side, worker in workers.items():
            runs, episodes = (8, 16) if side == OJAX else (1, 2)
            found = worker.measure("5 layers", runs, episodes)
            yield _row("meta_learning", side, "random feedback", runs, episodes, repeat, found)


def _row(part: str, side: str, network: Any, runs: int, samples: int, repeat: int, found: Measurement) -> dict[str, Any]:
    facts = {"part": part, "side": side, "network": network, "runs": runs, "samples": samples, "repeat": repeat}
    return facts | found._asdict()
