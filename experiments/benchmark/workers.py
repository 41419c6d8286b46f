"""Runs a side of the benchmark in its own process."""

import multiprocessing
import resource
import sys
from typing import Any

from experiments.benchmark.sides import Measurement, Side, count_work
from experiments.common.errors import UserError
from ojax import online


class Worker:
    """A side in its own process, with its own memory and threads.

    With `one_core` it uses one core and reports CPU time, which leaves out other processes' use of the core.
    """

    def __init__(self, side: Side, *, one_core: bool = False):
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_work, args=(side, other, one_core), daemon=True)
        self._process.start()
        other.close()

    def measure(self, *arguments: Any) -> Measurement:
        """Measures the side with a network and numbers of runs and samples."""
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


def _work(side: Side, pipe: Any, one_core: bool) -> None:
    if one_core:
        count_work()
    else:
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
