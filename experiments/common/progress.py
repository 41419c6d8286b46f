"""How far a study is: a bar with an ETA on a terminal, quiet lines elsewhere."""

import contextlib
import time
from collections.abc import Iterator, Mapping

import numpy as np
import rich.progress
from rich.console import Console

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts samples over all runs of a study's parts (its depths, say)."""

    def __init__(self, bar: rich.progress.Progress, samples_of_all_runs: int):
        self._bar, self._console = bar, bar.console
        self._total, self._done, self._best = samples_of_all_runs, 0, 0.0
        self._task = bar.add_task("compiling", total=samples_of_all_runs, rate="", best="")
        self._began = self._line_at = time.monotonic()
        self._part, self._num_runs, self._skipped = "", 0, 0
        self._seen: int | None = None

    @classmethod
    @contextlib.contextmanager
    def shown(cls, console: Console, samples_of_all_runs: int) -> Iterator["Progress"]:
        """Shows progress on that console while the context lasts."""
        columns = (
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.TaskProgressColumn(),
            rich.progress.TextColumn("{task.fields[rate]}"),
            rich.progress.TextColumn("ETA"),
            rich.progress.TimeRemainingColumn(),
            rich.progress.TextColumn("{task.fields[best]}"),
        )
        with rich.progress.Progress(*columns, console=console, disable=not console.is_terminal) as bar:
            yield cls(bar, samples_of_all_runs)

    @property
    def seconds(self) -> float:
        """Seconds since the start, compilation included."""
        return time.monotonic() - self._began

    def start(self, part: str, num_runs: int) -> None:
        """Begins a block of that many runs, of a part of the study."""
        self._part, self._num_runs, self._seen = part, num_runs, None
        self._bar.update(self._task, description=part)

    def scored(self, scores: Mapping[str, np.ndarray]) -> None:
        """The runs of this block have been evaluated."""
        self._best = max(self._best, float(np.max(scores["test_accuracy"])))

    def advance(self, seen: int) -> None:
        """Each run of this block has now seen that many samples; the first time, before this process had begun."""
        if self._seen is None:
            self._skipped += seen * self._num_runs
        self._done += (seen - (self._seen or 0)) * self._num_runs
        self._seen = seen
        rate = (self._done - self._skipped) / self.seconds
        rate_text = f"{rate:,.0f} samples/s" if rate else ""
        best_text = f"best accuracy {self._best:.3f}" if self._best else ""
        self._bar.update(self._task, completed=self._done, rate=rate_text, best=best_text)
        now = time.monotonic()
        if not self._console.is_terminal and (now - self._line_at > _SECONDS_BETWEEN_LINES or self._done == self._total):
            self._line_at = now
            eta = f"ETA {(self._total - self._done) / rate:.0f} s" if rate else ""
            facts = [f"{self._part}: {self._done / self._total:.0%} of all samples", rate_text, eta, best_text]
            self._console.print(", ".join(fact for fact in facts if fact), highlight=False, soft_wrap=True)
