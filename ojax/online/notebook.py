"""Shows a training's progress bar in a notebook, as HTML without widgets."""

import html
import sys
import time
from collections.abc import Callable


def in_notebook() -> bool:
    """Returns whether this process is the kernel of a notebook, without importing IPython."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


class Bar:
    """A progress bar below the current cell; only for notebooks."""

    def __init__(self) -> None:
        from IPython.display import display

        self._share, self._text = 0.0, ""
        self._shown = display(self, display_id=True)

    def show(self, share: float, text: str) -> None:
        """Shows the finished share, from 0 to 1, and a text."""
        self._share, self._text = share, text
        self._shown.update(self)

    def __repr__(self) -> str:
        return f"{self._share:.0%} {self._text}".strip()

    def _repr_html_(self) -> str:
        bar = f"<progress value='{self._share:.4f}' max='1' style='width: 16em; max-width: 40%'></progress>"
        return f"<div>{bar} <span>{html.escape(self._text)}</span></div>"


def progress_of(num_runs: int, num_samples: int) -> Callable[[int], None] | None:
    """Returns an `on_progress` for :func:`ojax.online.train` that shows a bar in a notebook; None elsewhere.

    Args:
      num_runs: Number of runs.
      num_samples: Number of samples per run.
    """
    if not in_notebook():
        return None
    runs = f"{num_runs:,} run{'s' * (num_runs > 1)}"
    bar, started = Bar(), time.monotonic()
    bar.show(0, f"{runs}: compiling")
    first: tuple[int, float] | None = None  # Samples seen, and the time, once the program is compiled.

    def on_progress(seen: int) -> None:
        nonlocal first
        now = time.monotonic()
        text = f"{runs}, {seen:,} of {num_samples:,} samples each"
        if seen == num_samples:
            text = f"{runs}, {seen:,} samples each, {now - started:.1f} s"
        elif first is not None and seen > first[0]:
            text += f", ETA {(num_samples - seen) * (now - first[1]) / (seen - first[0]):.0f} s"
        elif not seen:
            text = f"{runs}: compiling"
        if seen and first is None:
            first = (seen, now)
        bar.show(seen / num_samples, text)

    return on_progress
