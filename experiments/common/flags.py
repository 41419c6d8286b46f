"""Flags and axes, each declared once, and the settings of a study.

JAX is not imported here, so that `--help` and a wrong flag respond at once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags

from experiments.common import parsers
from experiments.common.errors import UserError
from experiments.common.parsers import FilePath, Names, Numbers, Whole

_MOST = 2**31 - 1  # Samples are counted in 32 bits.
_MOST_BETWEEN = 2**24  # As in ojax.online.plan.


class Flag(NamedTuple):
    """One setting of a study, and its flag.

    Attributes:
      name: Its name.
      default: The flag's default, as a user would write it; None without a default.
      help: One or two sentences for `--help`.
      parser: Parses and checks the value.
      decides: Whether results depend on it.
      fixed: Maps its value to the part that all runs of a work directory must share; None if runs may differ in it, as in
        seeds.
    """

    name: str
    default: Any
    help: str
    parser: flags.ArgumentParser = flags.ArgumentParser()
    decides: bool = True
    fixed: Callable[[Any], Any] | None = lambda value: value


class Axis(NamedTuple):
    """One dimension of the grid of runs: a flag with a list of values, a column of the tables, and words in figures.

    Attributes:
      name: Name of the axis, its flag and its column.
      default: The flag's default list, as a user would write it.
      help: One sentence for `--help`.
      parser: Parses and checks the values: an :class:`experiments.common.parsers.Numbers` or `Names`.
      traced: Whether one compiled program has all values: numbers as they are, names as indices into the list. Otherwise
        each value needs its own compiled program.
      tuned: Whether each method is compared at its own best value, as for a learning rate.
      words: Format of a value in figures, `{} layers`; or a function of the value.
      canonical: The value that progress and summaries do not mention; with None they mention all values.
      natural_ends: Natural ends of the axis, 0 or inf: a best value there is not at the edge of its grid.
    """

    name: str
    default: str
    help: str
    parser: flags.ArgumentParser
    traced: bool = False
    tuned: bool = False
    words: str | Callable[[Any], str] = "{}"
    canonical: Any = None
    natural_ends: tuple[float, ...] = ()

    def named(self, value: Any) -> str:
        """Returns a value in the words of a figure: `10 layers`, `gain 0.3`, `random feedback`."""
        readable = value.replace("_", " ") if isinstance(value, str) else value
        return self.words(readable) if callable(self.words) else self.words.format(readable)


def kind_of_data(name: str) -> str:
    """Returns `npz` for `npz:FILE`: data are identified by their hash, not their path."""
    return name.partition(":")[0]


def whole(lowest: int, highest: int = _MOST) -> flags.ArgumentParser:
    """Returns a parser of one whole number."""
    return Whole(lowest, highest)


# The flags of every study.
STUDY = (
    Flag("seeds", 8, "Number of seeds at each setting.", whole(1, 10**6), fixed=None),
    Flag("seed", 0, "The first seed; the others follow it.", whole(0, 2**31), fixed=None),
    Flag("num_train", 5000, "Training samples of each run, drawn by its seed.", whole(1)),
    Flag("epochs", 1, "Number of passes over the training samples.", whole(1)),
    Flag(
        "evals",
        "10",
        "One number: that many evaluations, evenly spaced. Several: the counts of samples at which to evaluate; the end of "
        "the run is added. Of a default list, counts beyond the end are left out.",
        Numbers(int, 0),
    ),
    Flag(
        "save_weights",
        False,
        "Keep the final weights of every run, for ojax.load_weights(workdir, run=...).",
        flags.BooleanParser(),
        fixed=None,
    ),
    Flag(
        "tensorboard",
        False,
        "Also write event files for TensorBoard: mean and interval over the seeds of each setting.",
        flags.BooleanParser(),
        decides=False,
    ),
    Flag(
        "workdir",
        "results",
        "Folder for the configuration, tables and figures; created if missing.",
        FilePath(),
        decides=False,
    ),
    Flag(
        "accept_changes",
        False,
        "Train the runs that --workdir does not hold yet although those that it holds are of another version of the "
        "source, the packages or the processor; its runs.csv has the version of each.",
        flags.BooleanParser(),
        decides=False,
    ),
    Flag(
        "checkpoint_every",
        "120s",
        "How often the state of all runs is saved, for the same command to go on from: seconds with an s, or a count of "
        "samples of each run. It is also saved when Ctrl-C, SIGTERM or SIGHUP asks to stop.",
        parsers.SaveEveryParser(),
        decides=False,
    ),
    Flag(
        "block_size",
        None,
        "Largest number of runs that are trained at once; by default as many as fit in half of the memory.",
        whole(1),
        decides=False,
    ),
    Flag(
        "compilation_cache",
        None,
        "Folder that keeps compiled programs for the next command, or none; by default ojax/programs in the user's cache "
        "folder. They are machine code: take no folder in which somebody else can write.",
        FilePath(),
        decides=False,
    ),
    Flag(
        "compile_for",
        None,
        "Train nothing, but compile the study's programs for hardware that need not be here, and say what they take: TPUs "
        "(v5e:2x2), a GPU (h100), or a file that describes one. Needs, in an environment of its own, "
        "pip install --editable '.[experiments,compile]'.",
        FilePath(),
        decides=False,
    ),
    *(
        Flag(name, None, f"{what} of a job of several processes; not needed under Slurm.", parser, decides=False)
        for name, what, parser in (
            ("coordinator_address", "HOST:PORT of process 0", flags.ArgumentParser()),
            ("num_processes", "Number of processes", whole(1)),
            ("process_id", "Number of this process, from 0,", whole(0)),
        )
    ),
)
BATCH_SIZE = Axis(
    "batch_size", "1", "Samples per step; 1 is online learning.", Numbers(int, 1), words="batch {}", canonical=1
)  # Every task has it, since the plan needs it.
# Axes of tasks with an error term and a plasticity rule; `LEARNING_RATE._replace(default=...)` changes the values.
LEARNING_RATE = Axis(
    "learning_rate",
    "3e-4,1e-3,3e-3,1e-2,3e-2",
    "Learning rates (eta) of the error term.",
    Numbers(float, 0, exclusive=True),
    traced=True,
    tuned=True,
    words="η = {:g}",
)
OJA_RATE = Axis(
    "oja_rate",
    "0,1e-3,1e-2",
    "Rates (theta) of the plasticity rule; 0 is the error term alone.",
    Numbers(float, 0),
    traced=True,
    tuned=True,
    words="θ = {:g}",
    natural_ends=(0.0,),
)
OJA_HALF_LIFE = Axis(
    "oja_half_life",
    "inf",
    "Samples in which the rate of the plasticity rule halves; inf keeps it constant.",
    Numbers(float, 0, exclusive=True, infinite=True),
    traced=True,
    tuned=True,
    words=lambda value: "constant" if value == math.inf else f"half-life {value:g}",
    canonical=math.inf,
    natural_ends=(math.inf,),
)


class Settings(Mapping[str, Any]):
    """The settings of a study by name, as numbers, tuples and strings: `settings["seeds"]`.

    Args:
      declared: All flags and axes.
      values: The value of each.
      given: Names of the settings that the user gave.
    """

    def __init__(self, declared: Sequence[Flag | Axis], values: Mapping[str, Any], given: Iterable[str] = ()):
        self._declared, self._values, self.given = declared, dict(values), frozenset(given)
        self.axes = tuple(declaration for declaration in declared if isinstance(declaration, Axis))

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Any:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def changed(self, **values: Any) -> Settings:
        """Returns the settings with some values changed."""
        return Settings(self._declared, self._values | values, self.given)

    def fixed(self) -> dict[str, Any]:
        """Returns the values that all runs of a work directory share, as a user would write them; no axes and no seeds."""
        flags = [flag for flag in self._declared if isinstance(flag, Flag) and flag.decides]
        return {flag.name: _as_written(flag.fixed(self[flag.name])) for flag in flags if flag.fixed is not None}

    def deciding(self) -> dict[str, Any]:
        """Returns the values on which results depend, as a user would write them."""
        deciding = [flag.name for flag in self._declared if isinstance(flag, Axis) or flag.decides]
        return {name: _as_written(self[name]) for name in deciding}

    def flags(self) -> list[str]:
        """Returns the flags that repeat the study, defaults included, without flags for paths."""
        return [f"--{name}={value}" for name, value in self.deciding().items() if value is not None]

    def samples_seen(self, batch_size: int) -> int:
        """Returns the number of samples that a run learns from; a partial last batch of an epoch is dropped."""
        return self["num_train"] // batch_size * batch_size * self["epochs"]

    def check(self) -> None:
        """Raises UserError if settings do not fit together."""
        if self["num_train"] * self["epochs"] > _MOST:
            raise UserError(
                f"--num_train={self['num_train']} times --epochs={self['epochs']} is more than {_MOST:,} samples."
            )
        for batch_size in self["batch_size"]:
            if batch_size > self["num_train"]:
                raise UserError(f"--batch_size={batch_size} is more than --num_train={self['num_train']}.")
            total = self.samples_seen(batch_size)
            if self["evals"] == (0,):
                raise UserError("--evals=0: at least one evaluation is needed, the one at the end.")
            if len(self["evals"]) > 1 and max(self["evals"]) > total:
                raise UserError(f"--evals: {max(self['evals'])} is more than a run's {total} samples.")
            counts = [0, *sorted(self["evals"]), total]
            gaps = [total / self["evals"][0]] if len(self["evals"]) == 1 else [b - a for a, b in itertools.pairwise(counts)]
            if max(gaps) > _MOST_BETWEEN:
                raise UserError(f"--evals: evaluate at least every {_MOST_BETWEEN:,} samples, which 32-bit sums can count.")


def _as_written(value: Any) -> Any:
    return parsers.format_list(value) if isinstance(value, tuple) else value


def define(declared: Sequence[Flag | Axis], defaults: Mapping[str, Any], values: flags.FlagValues) -> None:
    """Defines the flags, with other defaults for the names in `defaults`."""
    for name, repeats in itertools.groupby(sorted(flag.name for flag in declared)):
        if len(list(repeats)) > 1:
            raise ValueError(f"The flag --{name} is declared twice.")
    for flag in declared:
        default = defaults.get(flag.name, flag.default)
        if isinstance(flag.parser, flags.BooleanParser):
            flags.DEFINE_boolean(flag.name, default, flag.help, flag_values=values)
            continue
        choices = f", of {', '.join(flag.parser.choices)}." if isinstance(flag.parser, Names) else ""
        serializer = parsers.ListSerializer() if parsers.is_list(flag.parser) else flags.ArgumentSerializer()
        flags.DEFINE(flag.parser, flag.name, default, flag.help + choices, values, serializer=serializer)
    unknown = set(defaults) - {flag.name for flag in declared}
    if unknown:
        raise ValueError(f"There is no flag --{min(unknown)} to give a default to.")


def from_flags(declared: Sequence[Flag | Axis], parsed: flags.FlagValues) -> Settings:
    """Returns the settings of a parsed command line.

    Raises:
      UserError: If a number is NaN, which Absl's parser of numbers takes.
    """
    for flag in declared:
        if isinstance(value := parsed[flag.name].value, float) and math.isnan(value):
            raise UserError(f"--{flag.name}={value} is not a number.")
    given = [flag.name for flag in declared if parsed[flag.name].present]
    return Settings(declared, {flag.name: parsed[flag.name].value for flag in declared}, given)


def _as_flag(value: Any, is_list: bool) -> Any:
    """Converts a value of a script for a flag's parser."""
    if hasattr(value, "tolist"):  # Values of NumPy, JAX and pandas.
        value = value.tolist()
    if is_list and not isinstance(value, str):
        return tuple(value) if isinstance(value, Iterable) else (value,)
    return value


def from_values(declared: Sequence[Flag | Axis], defaults: Mapping[str, Any], values: Mapping[str, Any]) -> Settings:
    """Returns the settings of a script or notebook, from numbers, strings, lists, or a flag's words.

    Raises:
      UserError: If there is no such setting, or its value is not valid.
    """
    parsed = flags.FlagValues()
    define(declared, defaults, parsed)
    for name, value in values.items():
        if name not in parsed:
            raise UserError(f"There is no setting {name!r}; there are {', '.join(flag.name for flag in declared)}.")
        if value is None and parsed[name].default is None:
            continue
        try:
            parsed[name].parse(_as_flag(value, parsers.is_list(parsed[name].parser)))
        except (flags.Error, TypeError, AttributeError) as error:
            raise UserError(f"{name}={value!r} is not valid: {' '.join(str(error).split())}") from None
        parsed[name].present = 1
    parsed.mark_as_parsed()
    return from_flags(declared, parsed)
