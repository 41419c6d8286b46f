"""Detects whether ojax has become slower, by its speed relative to other sides and the committed ratios.

All sides alternate on one core, in short repetitions. The fastest repetition of each side counts, by its CPU time: other
users of the machine only slow some repetitions down. Seconds depend on the machine, so only ratios are stored.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from experiments.benchmark import sides
from experiments.benchmark.sides import BY_SAMPLE, COMPILED, CONVOLUTIONS, NETWORKS, OJAX, Network
from experiments.benchmark.workers import Worker
from experiments.common import files
from experiments.common.errors import UserError

RATIOS = Path(__file__).with_name("ratios.json")
TOLERATED = 1.25  # A ratio counts as worse if it is this many times smaller than the committed one.
Ratios = dict[str, float]  # The speed of ojax over a side's, by network and side.


class _Work(NamedTuple):
    """One network, and per side the samples of a repetition, which takes about a tenth of a second."""

    network: Network
    samples: Mapping[str, int]


_WORK = {
    "5 dense layers": _Work(NETWORKS["5 layers"], {OJAX: 2000, COMPILED: 1000, BY_SAMPLE: 300}),
    "4 convolutional layers": _Work(CONVOLUTIONS["4 layers"], {OJAX: 500, BY_SAMPLE: 300}),
}


def measure(repetitions: int = 10) -> Iterator[Ratios]:
    """Yields the ratios after `repetitions` repetitions, after twice as many, and so on."""
    known = sides.installed(sides.SIDES)
    with contextlib.ExitStack() as stack:
        workers = {
            name: stack.enter_context(contextlib.closing(Worker(known[name], one_core=True)))
            for name in (OJAX, COMPILED, BY_SAMPLE)
            if name in known
        }
        least: dict[tuple[str, str], float] = {}
        while True:
            for _ in range(repetitions):
                for name, work in _WORK.items():
                    for side in work.samples.keys() & workers.keys():
                        found = workers[side].measure(work.network, 1, work.samples[side]).microseconds
                        least[name, side] = min(found, least.get((name, side), found))
            yield {f"{name}: {side}": time / least[name, OJAX] for (name, side), time in least.items() if side != OJAX}


def write() -> Ratios:
    """Measures the ratios and writes them to the committed file."""
    found = dict(sorted(next(measure(repetitions=30)).items()))
    with files.replacing(RATIOS) as path:
        path.write_text(json.dumps({name: round(ratio, 2) for name, ratio in found.items()}, indent=2) + "\n")
    return found


def check() -> Iterator[str]:
    """Yields a line per ratio.

    Raises:
      UserError: If a ratio is worse than the committed one, even after six times as many repetitions.
    """
    try:
        committed: Ratios = json.loads(RATIOS.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{RATIOS} is missing or damaged: run `make bench` on a state that is known to be fast.") from None
    worse: list[str] = []
    ratios: Ratios = {}
    for ratios, _ in zip(measure(), range(6), strict=False):
        worse = [name for name, ratio in ratios.items() if ratio * TOLERATED < committed.get(name, 0)]
        if not worse:
            break
    for name, ratio in sorted(ratios.items()):
        yield f"{name}: ojax is {ratio:.2f} times faster; committed: {committed.get(name, float('nan')):.2f}"
    if worse:
        raise UserError(
            f"ojax has become slower by more than {TOLERATED - 1:.0%} compared with {'; '.join(sorted(worse))}. Find the "
            "change that did it; if it is meant, `make bench` writes new ratios."
        )
