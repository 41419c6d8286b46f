"""What several questions share: the axes of their grids, the data, and what learns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.common.flags import Axis, Flag, Settings
from experiments.common.results import Score

if TYPE_CHECKING:
    from ojax.datasets import Dataset
    from ojax.online import Learner

# What a program may know of the runs that it trains, by name: the settings that all runs of a work directory share; the
# value of each static axis; all values of a traced axis of names, of which a run has the index; of a traced axis of numbers
# `(canonical,)` if all runs have its canonical value, else None.
Setting = Mapping[str, Any]


class Task(NamedTuple):
    """What several questions share.

    Attributes:
      axes: The dimensions of the grid.
      flags: Its other settings.
      complete: From the settings as given to those of the study, with what follows from them; raises UserError where they
        do not go together.
      load: The data; raises DatasetError or UserError.
      learner: Builds the learner for a setting and the data.
      canonical: From a run's settings, by name, to those of its canonical form. Runs of one form are trained once: without
        Oja's rule, its half-life makes no difference. None if all runs differ.
      score: The score by which its runs are judged.
      baseline: The axis whose 0 is learning without the rule, by name; None if there is none.
      shuffle: Whether each run's samples are drawn in random order; False reads them in their own order.
      random_start: Whether each run's seed draws where it starts to read them in their own order.
      shown: `shown(setting, data)`, the data as a program's runs see them, a stream made of them say; None if all see the
        data as they are.
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
