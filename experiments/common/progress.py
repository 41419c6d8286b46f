"""Shows a study's progress and compilations: as a bar with an ETA on a terminal, as a few lines elsewhere."""

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

from ojax import _compat
from ojax.online import notebook

_SECONDS_BETWEEN_LINES = 10.0
# A program that is loaded from the cache is not reported.
_SECONDS_UNTIL_COMPILING = 1.0


class Progress:
    """Counts samples over all runs of a study."""

    def __init__(self, bar: rich.progress.Progress, samples: int, programs: int, compilation: "_Compilation | None" = None):
        self._bar, self._console, self._compilation = bar, bar.console, compilation or _Compilation()
        self._total, self._done, self._skipped, self._best = samples, 0, 0, 0.0
        self._task = bar.add_task("", total=samples, rate="", eta="", best="")
        # Rich would need ipywidgets in a notebook.
        self._in_notebook = notebook.Bar() if notebook.in_notebook() else None
        self._began = self._at = time.monotonic()
        self._line_at = -math.inf  # The first line is printed at once.
        self._part, self._num_runs = "", 0
        self._seen: int | None = None
        self._pace = _Pace(programs)

    @classmethod
    @contextlib.contextmanager
    def shown(cls, console: Console, samples: int, programs: int = 1) -> Iterator["Progress"]:
        """Shows progress on a console while the context lasts.

        Args:
          console: A terminal or a notebook gets a bar, any other output a few lines.
          samples: Number of samples of all runs together.
          programs: Number of programs to compile.
        """
        compilation = _Compilation()
        columns = (
            _WhatIsDone(compilation),
            rich.progress.BarColumn(),
            rich.progress.TaskProgressColumn(),
            rich.progress.TextColumn("{task.fields[rate]}"),
            rich.progress.TextColumn("{task.fields[eta]}"),
            rich.progress.TextColumn("{task.fields[best]}"),
        )
        with rich.progress.Progress(*columns, console=console, disable=not console.is_terminal) as bar:
            progress = cls(bar, samples, programs, compilation)
            with compilation.watched(progress._say_compiling):
                yield progress

    @property
    def seconds(self) -> float:
        """Seconds since the start, compilation included."""
        return time.monotonic() - self._began

    def say(self, text: str) -> None:
        """Prints a line."""
        self._console.print(text, highlight=False, soft_wrap=True)

    def start(self, part: str, num_runs: int) -> None:
        """Starts a block of `num_runs` runs, of a part of the study."""
        self._pace.start(part)
        self._part, self._num_runs, self._seen, self._at = part, num_runs, None, time.monotonic()
        self._bar.update(self._task, description=part)
        self._compilation.begin()

    def forget(self, why: str) -> None:
        """Discards the block's samples, since its runs must be trained again in other blocks; prints the reason."""
        self._done -= (self._seen or 0) * self._num_runs
        self._compilation.end()
        self.say(why)

    def scored(self, scores: Mapping[str, np.ndarray]) -> None:
        """Records an evaluation of this block's runs."""
        if "test_accuracy" in scores:
            self._best = max(self._best, float(np.max(scores["test_accuracy"])))
        self._compilation.end()

    def advance(self, seen: int) -> None:
        """Sets the samples seen per run of this block. The first call reports where training resumed."""
        now = time.monotonic()
        new = (seen - (self._seen or 0)) * self._num_runs
        if self._seen is None:
            self._skipped += new
            if seen:
                self.say(f"{self._part}: resumes from sample {seen:,} of each run, its last saved state")
        else:
            self._compilation.end()
            self._pace.count(new, now - self._at)
        self._done, self._seen, self._at = self._done + new, seen, now
        self._show()

    def _show(self) -> None:
        now = time.monotonic()
        rate = self._pace.rate()
        rate_text = f"{rate:,.0f} samples/s" if rate else ""
        eta = f"ETA {self._pace.seconds_for(self._total - self._done):.0f} s" if rate else ""
        best = f"best accuracy {self._best:.3f}" if self._best else ""
        self._bar.update(self._task, completed=self._done, rate=rate_text, eta=eta, best=best)
        is_due = (self._done > self._skipped and now - self._line_at > _SECONDS_BETWEEN_LINES) or self._done == self._total
        facts = [f"{self._part}: {self._done / self._total:.0%} of all samples", rate_text, eta, best]
        text = ", ".join(fact for fact in facts if fact)
        if self._in_notebook is not None:
            done = f"{self._total:,} samples, {self.seconds:.0f} s" if self._done == self._total else text
            self._in_notebook.show(self._done / self._total, done)
        elif is_due and not self._console.is_terminal:
            self._line_at = now
            self.say(text)

    def _say_compiling(self, seconds: float) -> None:
        text = f"{self._part}: compiling, {seconds:.0f} s"
        if self._in_notebook is not None:
            self._in_notebook.show(self._done / self._total, text)
        elif not self._console.is_terminal:
            self._console.print(text, highlight=False, soft_wrap=True)


class _Pace:
    """Estimates of training speed and compile time."""

    def __init__(self, programs: int):
        self._programs, self._compiled, self._started = programs, 0, set[str]()
        self._samples, self._seconds, self._compiling, self._is_first = 0, 0.0, 0.0, True

    def start(self, part: str) -> None:
        """Records the start of a part's block; its program may have to be compiled."""
        self._is_first = part not in self._started
        self._started.add(part)

    def count(self, samples: int, seconds: float) -> None:
        """Records a piece of work; a program's first piece is mostly its compilation."""
        if self._is_first:
            self._compiled, self._compiling, self._is_first = self._compiled + 1, self._compiling + seconds, False
        else:
            self._samples, self._seconds = self._samples + samples, self._seconds + seconds

    def rate(self) -> float | None:
        """Returns samples per second; None while unknown."""
        return self._samples / self._seconds if self._samples and self._seconds else None

    def seconds_for(self, samples: int) -> float:
        """Returns the expected time for more samples, and for the programs that are not compiled yet."""
        waiting = max(self._programs - self._compiled, 0) * self._compiling / max(self._compiled, 1) if samples else 0.0
        return samples / (self.rate() or math.inf) + waiting


class _Compilation:
    """Measures for how long a program has been compiling, from JAX's events.

    A block of runs counts as compiling from its start to its first samples. For later programs, such as the evaluation,
    compilation starts when JAX has traced them, and ends when XLA has compiled them.
    """

    def __init__(self) -> None:
        self._since: float | None = None
        self._of_block = False

    def begin(self) -> None:
        """Records the start of a block."""
        self._since, self._of_block = time.monotonic(), True

    def end(self) -> None:
        """Records that the block has learned from samples or was evaluated."""
        if self._of_block:
            self._since, self._of_block = None, False

    def seconds(self) -> float | None:
        """Returns the duration of the current compilation; None unless it has taken over a second."""
        since = self._since  # A copy, since another thread may end the compilation.
        seconds = 0.0 if since is None else time.monotonic() - since
        return seconds if seconds >= _SECONDS_UNTIL_COMPILING else None

    @contextlib.contextmanager
    def watched(self, say: Callable[[float], None]) -> Iterator[None]:
        """Reports at intervals for how long a program has been compiling, while the context lasts."""
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
        if (begins := _compat.compilation_of(event)) is not None:
            self._since = time.monotonic() - duration_secs if begins else None


class _WhatIsDone(rich.progress.ProgressColumn):
    """The part of the study, and its compile time so far; redrawn ten times per second."""

    def __init__(self, compilation: _Compilation):
        super().__init__()
        self._compilation = compilation

    def render(self, task: rich.progress.Task) -> Text:
        seconds = self._compilation.seconds()
        return Text(task.description if seconds is None else f"{task.description}: compiling, {seconds:.0f} s")
