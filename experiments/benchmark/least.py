"""Lower bounds on a core's time per sample, from its measured bandwidth and peak."""

import functools
import itertools
import timeit
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.benchmark.sides import Convolutions


def operations(network: Convolutions) -> int:
    """Returns the floating-point operations per sample of a convolutional network, without its non-linearities.

    Per weight and position they are 2 forward, 2 for the error above the first layer, 2 for the gradient and 2 for Hebb's
    product. In addition there are the products Y^T Y and W (Y^T Y) of Oja's decay, and 4 per weight of the read-out for its
    rank-one update.
    """
    total, size, n_in = 0, 28, 1
    for layer, (n_out, stride) in enumerate(zip(network.channels, network.strides, strict=True)):
        size, weights = -(-size // stride), 9 * n_in * n_out
        total += (8 if layer else 6) * size**2 * weights + 2 * n_out * (size**2 * n_out + weights)
        n_in = n_out
    return total + 10 * size**2 * n_in * 47


def roofline(widths: Sequence[int]) -> dict[str, float]:
    """Returns the least microseconds per sample on one core, by its measured bandwidth and by its measured peak.

    The weights are read once for the forward product, and read and written once for the update, from the cache if they fit.
    The operations per weight are 2 forward, 2 for W y, 2 for W e above the first layer, 4 for the update.
    """
    sizes = [n * m for n, m in itertools.pairwise(widths)]
    array = np.zeros(sum(sizes), np.float32)
    in_place = _best(lambda: np.add(array, 1, out=array))  # Reads and writes the whole array.
    of_core = peak()
    count = 8 * sum(sizes) + 2 * sum(sizes[1:])
    return {
        "bandwidth_gb_s": 8 * array.size / in_place / 1e9,
        "peak_gflop_s": of_core / 1e9,
        "by_bandwidth_us": 1e6 * 1.5 * in_place,
        "by_peak_us": 1e6 * count / of_core,
    }


@functools.cache
def peak() -> float:
    """Returns the operations per second of a core, measured on large matrices."""
    matrix = np.ones((1024, 1024), np.float32)
    return 2 * 1024**3 / _best(lambda: matrix @ matrix, times=20)


def _best(work: Callable[[], Any], times: int = 300) -> float:
    return min(timeit.repeat(work, number=1, repeat=times))
