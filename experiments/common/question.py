"""A question: one file of `experiments/` with a study, a claim, a verdict and figures."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import flags as absl_flags

from experiments.common import flags
from experiments.common.errors import UserError
from experiments.common.flags import Axis, Flag, Settings
from experiments.common.parsers import format_list
from experiments.common.results import COUNTS, LAYER, METHOD, SEED, Results, Schema
from experiments.common.task import Setting, Task

if TYPE_CHECKING:
    from experiments.common.figures import Drawings
    from experiments.common.verdicts import Verdict
    from ojax.datasets import Dataset
    from ojax.online import Learner

# Names of columns that no axis can have.
_RESERVED = re.compile(
    "|".join((METHOD, LAYER, "run", SEED, *COUNTS))
    + "|diverged.*|examples_.*|(test|train|measure|weight_norm|singular_value|principal_angle)_.*"
)
Keep = Callable[[Mapping[str, Any]], bool]


class Question(NamedTuple):
    """One scientific question.

    Attributes:
      module: The name of its file for `python -m`; its last part names the default work directory.
      question: A module's docstring: the question in its first line, and the method below.
      task: The axes, data and learner that it shares with other questions.
      claim: The claim that its verdict tests, in a sentence or two.
      abstract: The sentence of the paper's abstract that it tests; empty for this project's own claims.
      verdict: `verdict(results)` returns the verdict on the claim; None for a question without a claim.
      figures: Functions that draw the results, by name of file.
      defaults: Its own defaults of flags, by name: `{"feedback": "backprop,random"}`.
      axes: Its own axes, in addition to the task's.
      flags: Its own flags, in addition to the task's.
      learner: `learner(setting, data)` in place of the task's, for a custom network or rule; it may call
        `classification.learner(setting, data, network=..., rule=...)`. With a rule of its own `--optimizer` and `--rule`
        are refused, as they would have no effect.
      data: `data(settings)` in place of the task's.
      keep: `keep(run) -> bool` filters the grid of all combinations; `run` holds a run's settings by name.
      measure_figures: Figures that are only drawn with --measures, in addition to those of all questions.
      varies: Names of the axes that are not tuned and may have several values; the others need a single value. None for all
        axes.
      requires: Values that an axis must have for the comparison, by its name: `{"oja_rate": (0.0,)}`.
      both_methods: Whether the verdict needs runs without Oja's rule and with it, if its task has a baseline.
      equal_rates: Whether the summary also compares the methods at equal learning rates, in addition to each at its own
        best.
      methods: The column of methods in the figure of search: the rule, or an axis such as `rival`.
      table: `table(results)` in Markdown, in place of the summary's own table of both methods.
    """

    module: str
    question: str
    task: Task
    claim: str = ""
    abstract: str = ""
    verdict: Callable[[Results], Verdict] | None = None
    figures: Drawings = types.MappingProxyType({})
    defaults: Mapping[str, Any] = types.MappingProxyType({})
    axes: Sequence[Axis] = ()
    flags: Sequence[Flag] = ()
    learner: Callable[[Setting, Dataset], Learner] | None = None
    data: Callable[[Settings], Dataset] | None = None
    keep: Keep | None = None
    measure_figures: Drawings = types.MappingProxyType({})
    varies: Sequence[str] | None = None
    requires: Mapping[str, Sequence[Any]] = types.MappingProxyType({})
    both_methods: bool = True
    equal_rates: bool = False
    methods: str = METHOD
    table: Callable[[Results], str] | None = None

    @property
    def name(self) -> str:
        """The last part of its module's name."""
        return self.module.rpartition(".")[2]

    @property
    def title(self) -> str:
        """The question, without the method."""
        return inspect.cleandoc(self.question).partition("\n")[0]

    @property
    def method(self) -> str:
        """The method of the study."""
        return inspect.cleandoc(self.question).partition("\n")[2].strip()

    @property
    def schema(self) -> Schema:
        """The axes, the score and the baseline of its results."""
        return Schema((*self.task.axes, *self.axes), self.task.score, self.task.baseline)

    def declared(self) -> tuple[Flag | Axis, ...]:
        """Returns all of its axes and flags.

        Raises:
          UserError: If one of its own flags or axes has a name that is taken.
        """
        declared: tuple[Flag | Axis, ...] = (*self.task.axes, *self.axes, *self.task.flags, *self.flags, *flags.STUDY)
        names = [declaration.name for declaration in declared]
        mine: tuple[Flag | Axis, ...] = (*self.axes, *self.flags)
        for own in mine:
            if names.count(own.name) > 1 or (isinstance(own, Axis) and _RESERVED.fullmatch(own.name)):
                raise UserError(f"{self.module} cannot have a flag or an axis {own.name!r}: that name is taken.")
        return declared

    def parsed(self, *arguments: str) -> Settings:
        """Returns the settings of a command line: `--depth=5`, `--flagfile=FILE`."""
        values = absl_flags.FlagValues()
        flags.define(self.declared(), self.all_defaults(), values)
        absl_flags.DEFINE_multi_string("flagfile", [], "As absl's own.", flag_values=values)
        values(["command", *arguments])
        return self.complete(flags.from_flags(self.declared(), values))

    def all_defaults(self) -> dict[str, Any]:
        """Its own defaults, and the default of its work directory."""
        return {"workdir": f"results/{self.name}", **self.defaults}

    def complete(self, settings: Settings) -> Settings:
        """Returns the settings, completed by values that follow from others.

        Raises:
          UserError: If settings do not fit together, or leave nothing to compare.
        """
        settings = self.task.complete(settings)
        if "evals" not in settings.given and len(settings["evals"]) > 1:  # The default fits the default num_train.
            last = min(settings.samples_seen(batch_size) for batch_size in settings["batch_size"])
            kept = tuple(count for count in settings["evals"] if count < last)
            # A single count would be a number of evaluations.
            settings = settings.changed(evals=(*kept, last) if len(kept) == 1 else kept or (1,))
        for axis in settings.axes:
            values = settings[axis.name]
            if self.varies is not None and not axis.tuned and len(values) > 1 and axis.name not in self.varies:
                raise UserError(f"--{axis.name}={format_list(values)}: this question compares runs of one {axis.name}.")
            try:
                [axis.named(value) for value in values]
            except (ValueError, KeyError, IndexError, TypeError) as error:
                raise UserError(f"The axis {axis.name} cannot name its values: {error}.") from None
        for name, needed in self.requires.items():
            if missing := [value for value in needed if value not in settings[name]]:
                raise UserError(
                    f"--{name}={format_list(settings[name])}: this question needs {format_list(missing)} among them."
                )
        baseline = self.task.baseline
        rates = settings[baseline] if baseline else (0, 1)
        if self.verdict is not None and self.both_methods and (0 not in rates or not any(rates)):
            raise UserError(
                f"--{baseline}={format_list(rates)}: this question compares learning with and without Oja's rule, so give "
                "0 and at least one rate above it."
            )
        settings.check()
        return settings
