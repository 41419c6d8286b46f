"""A task: axes, data and learner that several questions share."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.common.flags import Axis, Flag, Settings
from experiments.common.results import Score

if TYPE_CHECKING:
    from ojax.datasets import Dataset
    from ojax.online import Learner

# The settings of a compiled program, by name. They are the settings that all runs of a work directory share, and the axes.
# Static axes hold one value. Traced axes of names hold all of theirs, and a run has an index. Traced axes of numbers hold
# `(canonical,)` if all runs have the canonical value, else None.
Setting = Mapping[str, Any]


def later(name: str) -> Callable[..., Any]:
    """Returns a function that calls the one with a dotted name, and imports it only then, as `--help` needs no JAX."""
    return lambda *arguments: pkgutil.resolve_name(name)(*arguments)


class Task(NamedTuple):
    """The axes, data and learner that several questions share.

    Attributes:
      axes: The dimensions of the grid.
      flags: Its other settings.
      complete: Completes the user's settings by values that follow from others; raises UserError if they do not fit
        together.
      load: Loads the data; raises DatasetError or UserError.
      learner: Builds the learner for a setting and the data.
      canonical: Maps a run's settings, by name, to its canonical form. Runs of one form are trained once: e.g. without
        Oja's rule, its half-life has no effect. None if all runs differ.
      score: The score that compares its runs.
      baseline: The axis whose 0 is learning without the rule, by name; None if there is none.
      shuffle: Whether each run's samples are drawn in random order; False reads them in their own order.
      random_start: With `shuffle=False`, whether each run's seed draws its first sample.
      shown: `shown(setting, data)` returns the data of a program's runs, e.g. a stream made of `data`; None if all use
        `data` itself.
      apart: `apart(setting, data)` returns the arrays of `data` that this program has and others lack; None if there are
        none. Its runs are known by their hash, and the work directory is not, so that a later command can add such runs.
    """

    axes: tuple[Axis, ...]
    flags: tuple[Flag, ...]
    complete: Callable[[Settings], Settings]
    load: Callable[[Settings], Dataset]
    learner: Callable[[Setting, Dataset], Learner]
    canonical: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    score: Score = Score()
    baseline: str | None = None
    shuffle: bool = True
    random_start: bool = False
    shown: Callable[[Setting, Dataset], Dataset] | None = None
    apart: Callable[[Setting, Dataset], Any] | None = None
