"""A question: one file of `experiments/` that asks, with a claim, a verdict and figures."""

from __future__ import annotations

import hashlib
import inspect
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.common import flags
from experiments.common.errors import UserError
from experiments.common.flags import Axis, Flag, Settings
from experiments.common.parsers import format_list
from experiments.common.task import Setting, Task
from experiments.tasks import classification

if TYPE_CHECKING:
    from experiments.common.figures import Drawings
    from experiments.common.tables import Tables
    from experiments.common.verdicts import Verdict
    from ojax.datasets import Dataset
    from ojax.online import Learner

Keep = Callable[[Mapping[str, Any]], bool]


class Question(NamedTuple):
    """One scientific question.

    Attributes:
      module: The name of its file, as `python -m` takes it; its last part names the default work directory.
      question: The question in its first line, and below it what is done; a module's docstring.
      claim: What the paper says of it, in a sentence or two.
      verdict: From the tables to what they say of the claim; None for a question without one.
      figures: By name of file; each a function of the tables.
      task: The axes, data and learner that it shares with others.
      defaults: Its own defaults of flags, by name: `{"feedback": "backprop,random"}`.
      axes: Its own axes beside the task's.
      flags: Its own flags beside the task's.
      learner: `learner(setting, data)` in place of the task's, for a network or a rule of its own; it may call
        `classification.learner(setting, data, network=..., rule=...)`.
      data: `data(settings)` in place of the task's.
      keep: From a run's settings, by name, to whether the study has that run. The grid is every combination of the axes'
        values, and not each may make sense.
      measure_figures: Figures that are drawn with --measures alone, beside the measures' own.
      requires: Values that an axis must have, by its name: `{"oja_rate": (0.0,)}`, without which there is nothing to
        compare with.
      both_methods: Whether the verdict needs runs without Oja's rule and with it.
      equal_rates: Whether the summary compares the methods at equal learning rates too, beside each at its own best.
    """

    module: str
    question: str
    claim: str = ""
    verdict: Callable[[Tables], Verdict] | None = None
    figures: Drawings = types.MappingProxyType({})
    task: Task = classification.TASK
    defaults: Mapping[str, Any] = types.MappingProxyType({})
    axes: Sequence[Axis] = ()
    flags: Sequence[Flag] = ()
    learner: Callable[[Setting, Dataset], Learner] | None = None
    data: Callable[[Settings], Dataset] | None = None
    keep: Keep | None = None
    measure_figures: Drawings = types.MappingProxyType({})
    requires: Mapping[str, Sequence[Any]] = types.MappingProxyType({})
    both_methods: bool = True
    equal_rates: bool = False

    @property
    def name(self) -> str:
        """The last part of its module's name."""
        return self.module.rpartition(".")[2]

    @property
    def title(self) -> str:
        """The question itself."""
        return inspect.cleandoc(self.question).partition("\n")[0]

    @property
    def method(self) -> str:
        """What is done to answer it."""
        return inspect.cleandoc(self.question).partition("\n")[2].strip()

    def declared(self) -> tuple[Flag | Axis, ...]:
        """All of its axes and flags."""
        flags.declare(*self.axes)
        return (*self.task.axes, *self.axes, *self.task.flags, *self.flags, *flags.STUDY)

    def all_defaults(self) -> dict[str, Any]:
        """Its own defaults, and that of its work directory."""
        return {"workdir": f"results/{self.name}", **self.defaults}

    def complete(self, settings: Settings) -> Settings:
        """The settings with what follows from them.

        Raises:
          UserError: If they do not go together, or leave the question without an answer.
        """
        settings = self.task.complete(settings)
        if "evals" not in settings.given and len(settings["evals"]) > 1:  # Its own default, for its own default length.
            last = settings["num_train"] * settings["epochs"]
            settings = settings.changed(evals=tuple(count for count in settings["evals"] if count < last) or (1,))
        for name, needed in self.requires.items():
            if missing := [value for value in needed if value not in settings[name]]:
                raise UserError(
                    f"--{name}={format_list(settings[name])}: this question needs {format_list(missing)} among them."
                )
        rates = settings.get("oja_rate", ())
        if self.verdict is not None and self.both_methods and (0 not in rates or not any(rates)):
            raise UserError(
                f"--oja_rate={format_list(rates)}: this question compares learning with and without Oja's rule, so give 0 "
                "and at least one rate above it."
            )
        settings.check()
        return settings

    def code(self) -> dict[str, str]:
        """Digests of the functions of its own that decide the results, by name."""
        own = {"learner": self.learner, "data": self.data, "keep": self.keep}
        return {name: _digest(function) for name, function in own.items() if function is not None}

    def report_code(self) -> str:
        """A digest of what turns its tables into a report: claim, verdict and figures."""
        drawings = {**self.figures, **self.measure_figures}
        parts = [self.question, self.claim, str(self.equal_rates), *drawings]
        functions = [function for function in (self.verdict, *drawings.values()) if function is not None]
        return hashlib.sha256("\n".join([*parts, *map(_digest, functions)]).encode()).hexdigest()[:16]


def _digest(function: Callable[..., Any]) -> str:
    """Changes with the source of a function, and of all in its own module that it uses."""
    module = sys.modules.get(function.__module__)
    parts, waiting, seen = [], [function], set()
    while waiting:
        value = waiting.pop(0)
        inner = getattr(value, "__wrapped__", getattr(value, "func", value))  # A decorated or a partial function.
        code = getattr(inner, "__code__", None)
        if code is None:
            parts.append(repr(value))  # A constant, or a class.
            continue
        try:
            parts.append(inspect.getsource(inner))
        except (OSError, TypeError):
            parts.append(code.co_code.hex() + repr(code.co_consts))
        for name in sorted(_names_in(code)):
            used = vars(module).get(name) if module is not None else None
            own = getattr(used, "__module__", function.__module__) == function.__module__
            if used is not None and own and not inspect.ismodule(used) and name not in seen:
                seen.add(name)
                waiting.append(used)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _names_in(code: types.CodeType) -> set[str]:
    inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return set(code.co_names).union(*map(_names_in, inner))
