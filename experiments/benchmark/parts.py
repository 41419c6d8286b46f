"""The parts of the benchmark: sides, networks and repetitions. Each yields one row per measurement."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import psutil

from experiments.benchmark import changing_sides, stream_sides
from experiments.benchmark.sides import ALL_CORES, COMPILED, CONVOLUTIONS, CORES, NETWORKS, OJAX, Measurement
from experiments.benchmark.workers import Worker

Rows = Iterator[dict[str, Any]]
Workers = Mapping[str, Worker]


def _alternately(
    part: str, workers: Workers, networks: Mapping[str, Any], repeats: int, size: Callable[[str, str], tuple[int, int]]
) -> Rows:
    """Measures all sides alternately on each network; `size(side, network)` returns numbers of runs and samples."""
    for repeat in range(repeats):
        for name, network in networks.items():
            for side, worker in workers.items():
                runs, samples = size(side, name)
                yield _row(part, side, name, runs, samples, repeat, worker.measure(network, runs, samples))


def compare(workers: Workers, repeats: int, runs: int) -> Rows:
    """Measures all sides on both dense networks; ojax with `runs` runs, the others with one."""
    compiled = {COMPILED: (1, 4000), ALL_CORES: (CORES, 4000)}

    def size(side: str, network: str) -> tuple[int, int]:
        return (runs, 1500) if side.startswith("ojax") else compiled.get(side, (1, 300))

    return _alternately("compare", workers, NETWORKS, repeats, size)


def compare_convolutions(workers: Workers, repeats: int, runs: int) -> Rows:
    """Measures all sides on both convolutional networks."""

    def size(side: str, network: str) -> tuple[int, int]:
        return (runs, 600) if side.startswith("ojax") else (1, 300)

    return _alternately("convolutions", workers, CONVOLUTIONS, repeats, size)


def scale(worker: Worker, full: bool) -> Rows:
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


def overhead(plain: Worker, saving: Worker, every_seconds: float, repeats: int) -> Rows:
    """Measures 256 runs with checkpoints and without, over about three intervals."""
    sides = {"no checkpoints": plain, f"checkpoints every {every_seconds:g} s": saving}
    samples = round(3 * every_seconds / 256 * 40_000 / 64) * 64  # At about 25 microseconds each.
    networks = {"5 layers": NETWORKS["5 layers"]}
    return _alternately("checkpoints", sides, networks, repeats, lambda side, network: (256, samples))


def stream(workers: Workers, repeats: int, runs: int) -> Rows:
    """Measures a recurrent network on a stream, with each method; ojax with `runs` runs, PyTorch with one."""
    methods = {method: method for method in stream_sides.METHODS}
    size = {OJAX: (runs, 8000)}
    return _alternately("stream", workers, methods, repeats, lambda side, method: size.get(side, (1, 1000)))


def changing(workers: Workers, repeats: int, runs: int) -> Rows:
    """Measures images with changing permutations of pixels, with each method; ojax with `runs` runs, PyTorch with one."""
    methods = {method: method for method in changing_sides.METHODS}

    def size(side: str, method: str) -> tuple[int, int]:
        return (runs, 2000 if method == "SGD" else 500) if side == OJAX else (1, 500)

    return _alternately("changing", workers, methods, repeats, size)


def meta_learning(workers: Workers, repeats: int) -> Rows:
    """Measures meta-learning by the gradient through whole episodes; ojax with eight runs, PyTorch with one."""
    size, networks = {OJAX: (8, 16)}, {"random feedback": "5 layers"}
    return _alternately("meta_learning", workers, networks, min(repeats, 3), lambda side, _: size.get(side, (1, 2)))


def _row(part: str, side: str, network: Any, runs: int, samples: int, repeat: int, found: Measurement) -> dict[str, Any]:
    facts = {"part": part, "side": side, "network": network, "runs": runs, "samples": samples, "repeat": repeat}
    return facts | found._asdict()
