"""How far a study is: a bar with an ETA on a terminal, quiet lines elsewhere. While a program compiles, both say so."""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np
import rich.progress
from rich.console import Console
from rich.text import Text

_SECONDS_BETWEEN_LINES = 10.0
# A program that is loaded from the cache is not worth a line.
_SECONDS_UNTIL_COMPILING = 1.0


class Progress:
    """Counts samples over all runs of a study's parts (its depths, say)."""

    def __init__(self, bar: rich.progress.Progress, samples_of_all_runs: int, compilation: "_Compilation | None" = None):
        self._bar, self._console, self._compilation = bar, bar.console, compilation or _Compilation()
        self._total, self._done, self._best = samples_of_all_runs, 0, 0.0
        self._task = bar.add_task("", total=samples_of_all_runs, rate="", best="")
        self._began = time.monotonic()
        self._line_at = -math.inf  # The first line says at once that it learns.
        self._part, self._num_runs, self._skipped = "", 0, 0
        self._seen: int | None = None

    @classmethod
    @contextlib.contextmanager
    def shown(cls, console: Console, samples_of_all_runs: int) -> Iterator["Progress"]:
        """Shows progress on that console while the context lasts."""
        compilation = _Compilation()
        columns = (
            _WhatIsDone(compilation),
            rich.progress.BarColumn(),
            rich.progress.TaskProgressColumn(),
            rich.progress.TextColumn("{task.fields[rate]}"),
            rich.progress.TextColumn("ETA"),
            rich.progress.TimeRemainingColumn(),
            rich.progress.TextColumn("{task.fields[best]}"),
        )
        with rich.progress.Progress(*columns, console=console, disable=not console.is_terminal) as bar:
            progress = cls(bar, samples_of_all_runs, compilation)
            with compilation.watched(progress._say_compiling):
                yield progress

    @property
    def seconds(self) -> float:
        """Seconds since the start, compilation included."""
        return time.monotonic() - self._began

    def start(self, part: str, num_runs: int) -> None:
        """Begins a block of that many runs, of a part of the study."""
        self._part, self._num_runs, self._seen = part, num_runs, None
        self._bar.update(self._task, description=part)
        self._compilation.begin()

    def scored(self, scores: Mapping[str, np.ndarray]) -> None:
        """The runs of this block have been evaluated."""
        self._best = max(self._best, float(np.max(scores["test_accuracy"])))
        self._compilation.end()

    def advance(self, seen: int) -> None:
        """Each run of this block has now seen that many samples; the first time, before this process had begun."""
        if self._seen is None:
            self._skipped += seen * self._num_runs
        else:
            self._compilation.end()
        self._done += (seen - (self._seen or 0)) * self._num_runs
        self._seen = seen
        rate = (self._done - self._skipped) / self.seconds
        rate_text = f"{rate:,.0f} samples/s" if rate else ""
        best_text = f"best accuracy {self._best:.3f}" if self._best else ""
        self._bar.update(self._task, completed=self._done, rate=rate_text, best=best_text)
        now = time.monotonic()
        is_due = (self._done > self._skipped and now - self._line_at > _SECONDS_BETWEEN_LINES) or self._done == self._total
        if is_due and not self._console.is_terminal:
            facts = [f"{self._part}: {self._done / self._total:.0%} of all samples"]
            if self._line_at > 0 or self._done == self._total:  # At first the rate is mostly that of compilation.
                eta = f"ETA {(self._total - self._done) / rate:.0f} s" if rate else ""
                facts += [rate_text, eta, best_text]
            self._line_at = now
            self._console.print(", ".join(fact for fact in facts if fact), highlight=False, soft_wrap=True)

    def _say_compiling(self, seconds: float) -> None:
        if not self._console.is_terminal:
            self._console.print(f"{self._part}: compiling, {seconds:.0f} s", highlight=False, soft_wrap=True)


class _Compilation:
    """Since when a program is being compiled, as far as can be told from outside of JAX.

    A block of runs compiles from its start to its first samples. Later programs, such as the evaluation, are noticed when
    JAX has traced them, and end when XLA has compiled them.
    """

    def __init__(self) -> None:
        self._since: float | None = None
        self._of_block = False

    def begin(self) -> None:
        """A block starts."""
        self._since, self._of_block = time.monotonic(), True

    def end(self) -> None:
        """The block has learned from samples, or been evaluated."""
        if self._of_block:
            self._since, self._of_block = None, False

    def seconds(self) -> float | None:
        """How long it has taken so far; None if nothing is being compiled, or has been for a moment only."""
        since = self._since  # Another thread may end it in between.
        seconds = 0.0 if since is None else time.monotonic() - since
        return seconds if seconds >= _SECONDS_UNTIL_COMPILING else None

    @contextlib.contextmanager
    def watched(self, say: Callable[[float], None]) -> Iterator[None]:
        """While it lasts, says at times for how long a program has been compiling."""
        finished = threading.Event()
        thread = threading.Thread(target=self._watch, args=(say, finished), daemon=True)
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        thread.start()
        try:
            yield
        finally:
            finished.set()
            thread.join()
            jax.monitoring.unregister_event_duration_listener(self._listen)

    def _watch(self, say: Callable[[float], None], finished: threading.Event) -> None:
        said_of: float | None = None
        said_at = 0.0
        while not finished.wait(0.25):
            since, seconds, now = self._since, self.seconds(), time.monotonic()
            if seconds is not None and (since != said_of or now - said_at >= _SECONDS_BETWEEN_LINES):
                said_of, said_at = since, now
                say(seconds)

    def _listen(self, event: str, duration_secs: float, **_: object) -> None:
        if self._of_block:
            return
        if event.endswith("jaxpr_to_mlir_module_duration"):
            self._since = time.monotonic() - duration_secs
        elif event.endswith("backend_compile_duration"):
            self._since = None


class _WhatIsDone(rich.progress.ProgressColumn):
    """The part of the study, and for how long it has been compiling; drawn anew ten times a second."""

    def __init__(self, compilation: _Compilation):
        super().__init__()
        self._compilation = compilation

    def render(self, task: rich.progress.Task) -> Text:
        seconds = self._compilation.seconds()
        return Text(task.description if seconds is None else f"{task.description}: compiling, {seconds:.0f} s")
