"""The flags that every experiment shares, and the configuration that they make.

JAX is not imported before a configuration is used, so that flags are answered at once.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import flags

from experiments.common.errors import UserError

if TYPE_CHECKING:
    from ojax import datasets, online

# The names that `experiments.common.network` knows, which imports JAX.
INITIAL_SCHEMES = ("glorot_uniform", "he_normal", "orthogonal", "normal", "same_scale")
FEEDBACK = ("backprop", "random", "direct")
NORMALIZATIONS = ("none", "layer", "batch")
OPTIMIZERS = ("sgd", "momentum", "rmsprop", "adam")
_MOST = 2**31 - 1  # Samples are counted in 32 bits.


class _NumbersParser(flags.ArgumentParser):
    """A comma-separated list of numbers, each at least `minimum`; the flag's value is a tuple without repeats."""

    def __init__(
        self, kind: type[int] | type[float], minimum: float, maximum: float = math.inf, *, exclusive: bool = False
    ):
        self.syntactic_help = "comma-separated numbers"
        self._kind, self._minimum, self._maximum, self._exclusive = kind, minimum, maximum, exclusive

    def parse(self, argument: str | Sequence[float]) -> tuple[float, ...]:
        words = argument.split(",") if isinstance(argument, str) else argument
        return tuple(dict.fromkeys(self._number(word) for word in words))

    def flag_type(self) -> str:
        return "comma-separated numbers"

    def _number(self, word: str | float) -> float:
        noun = "a whole number" if self._kind is int else "a number"
        try:
            number = self._kind(word)
        except ValueError:
            raise ValueError(f"{str(word).strip()!r} is not {noun}") from None
        if not math.isfinite(number) or number < self._minimum or (self._exclusive and number == self._minimum):
            raise ValueError(f"{word} is not {noun} {'above' if self._exclusive else 'of at least'} {self._minimum:g}")
        if number > self._maximum:
            raise ValueError(f"{word} is not {noun} of at most {self._maximum:g}")
        return number


class _NumbersWithRepeatsParser(_NumbersParser):
    def parse(self, argument: str | Sequence[float]) -> tuple[float, ...]:
        words = argument.split(",") if isinstance(argument, str) else argument
        return tuple(self._number(word) for word in words)


class _NamesParser(flags.ArgumentParser):
    """A comma-separated list of some of the given names, without repeats."""

    def __init__(self, choices: Sequence[str]):
        self.syntactic_help = "comma-separated names"
        self._choices = tuple(choices)

    def parse(self, argument: str | Sequence[str]) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(argument.split(",") if isinstance(argument, str) else argument))
        for name in names:
            if name not in self._choices:
                raise ValueError(f"{name!r} is none of {', '.join(self._choices)}")
        return names

    def flag_type(self) -> str:
        return "comma-separated names"


class Interval(NamedTuple):
    """How often to save: after so many samples of each run, or so many seconds; one of them is None."""

    samples: int | None
    seconds: float | None

    def __str__(self) -> str:
        return f"{self.seconds:g}s" if self.samples is None else str(self.samples)


_DEFAULT_INTERVAL = Interval(samples=None, seconds=120.0)


class _IntervalParser(flags.ArgumentParser):
    """A count of samples, or seconds with an s."""

    syntactic_help = "samples, or seconds with an s"

    def parse(self, argument: str | Interval) -> Interval:
        if isinstance(argument, Interval):
            return argument
        seconds = argument.endswith("s")
        number = _NumbersParser(float if seconds else int, 0, exclusive=True).parse(argument.removesuffix("s"))
        if len(number) != 1:
            raise ValueError("give one number of samples, or of seconds with an s, as in 120s")
        return Interval(None, number[0]) if seconds else Interval(int(number[0]), None)

    def flag_type(self) -> str:
        return "samples, or seconds with an s"


class _ListSerializer(flags.ArgumentSerializer):
    def serialize(self, value: Sequence[float | str]) -> str:
        return format_list(value)


def format_list(values: Sequence[float | str]) -> str:
    """`0,0.0003,1`, as a flag takes them; what it reads back are the same values."""
    return ",".join(map(_format, values))


def _format(value: float | str) -> str:
    short = value if isinstance(value, str) else f"{value:g}"
    return short if isinstance(value, str) or (isinstance(value, float) and float(short) == value) else str(value)


def define_flags(values: flags.FlagValues, defaults: Mapping[str, Any]) -> None:
    """Defines every experiment's flags, with other defaults for those of the given names."""

    def numbers(name: str, default: str | None, help_text: str, parser: _NumbersParser) -> None:
        flags.DEFINE(parser, name, default, help_text, values, serializer=_ListSerializer())

    def names(name: str, default: str, choices: Sequence[str], help_text: str) -> None:
        listed = f"{help_text}, of {', '.join(choices)}."
        flags.DEFINE(_NamesParser(choices), name, default, listed, values, serializer=_ListSerializer())

    def integer(name: str, default: int, help_text: str, lowest: int, highest: int | None = None) -> None:
        flags.DEFINE_integer(name, default, help_text, lowest, highest, flag_values=values)

    text = functools.partial(flags.DEFINE_string, flag_values=values)
    text("workdir", "results", "Folder for the configuration, tables and figures; made if it is not there.")
    text(
        "dataset",
        "embedded",
        "Data set: embedded (10,000 images of Fashion-MNIST, shipped with ojax), a TFDS image-classification set by its "
        "name (mnist, fashion_mnist, emnist/balanced, ...), or idx:FOLDER with MNIST-style IDX files.",
    )
    text("data_dir", None, "Folder with prepared TFDS data sets; TFDS's own default if not given.")
    numbers("depth", "5,10", "Numbers of layers, the read-out included.", _NumbersParser(int, 1, 1000))
    numbers(
        "widths",
        None,
        "Widths of the hidden layers, instead of --depth; by default they fall from 170 to 70.",
        _NumbersWithRepeatsParser(int, 1, _MOST),
    )
    positive = _NumbersParser(float, 0, exclusive=True)
    numbers("learning_rate", "3e-4,1e-3,3e-3,1e-2,3e-2", "Learning rates (eta) of the error term.", positive)
    numbers(
        "oja_rate",
        "0,3e-5,1e-4,3e-4,1e-3",
        "Rates (theta) of Oja's rule; 0 is the error term alone.",
        _NumbersParser(float, 0),
    )
    names("init", "glorot_uniform", INITIAL_SCHEMES, "How the initial weights are drawn")
    numbers("init_gain", "1", "Factors on the initial weights.", positive)
    names("feedback", "backprop", FEEDBACK, "How the error is sent back through the layers")
    names("normalization", "none", NORMALIZATIONS, "What normalizes the hidden layers")
    names("optimizer", "sgd", OPTIMIZERS, "What makes the error term of the gradient")
    integer("seeds", 8, "Number of seeds at each setting.", 1, 10**6)
    integer("seed", 0, "The first seed; the others follow it.", 0, 2**31)
    integer("num_train", 5000, "Training samples of each run, drawn by its seed.", 1, _MOST)
    integer("num_test", 2000, "Test images at each evaluation, at most; 0 takes all.", 0)
    integer("epochs", 1, "Times that a run sees its training samples.", 1, _MOST)
    numbers("batch_size", "1", "Samples a step; 1 is online learning.", _NumbersParser(int, 1))
    numbers(
        "evals",
        "10",
        "One number: that many evaluations, evenly spaced. Several: the counts of samples at which to evaluate; the end "
        "of the run is added, and counts beyond it are left out.",
        _NumbersParser(int, 0),
    )
    flags.DEFINE_boolean(
        "measures",
        False,
        "Record what each layer's activity, weights and errors are like, at the evaluations.",
        flag_values=values,
    )
    flags.DEFINE(
        _IntervalParser(),
        "checkpoint_every",
        str(_DEFAULT_INTERVAL),
        "How often the state of all runs is saved, for the same command to go on from: seconds with an s, or a count of "
        "samples of each run. It is also saved when Ctrl-C or SIGTERM asks to stop.",
        values,
        serializer=flags.ArgumentSerializer(),
    )
    flags.DEFINE_integer(
        "block_size", None, "Runs that are trained at once, at most; by default as many as fit in half of the memory.", 1,
        flag_values=values,
    )  # fmt: skip
    text(
        "compilation_cache",
        None,
        "Folder that keeps compiled programs for the next command, or none; by default ojax/programs in the user's cache "
        "folder. They are machine code: take no folder in which somebody else can write.",
    )
    several = "of a job of several processes; needless where JAX finds it, under Slurm or on Cloud TPU"
    text("coordinator_address", None, f"HOST:PORT of process 0 {several}.")
    flags.DEFINE_integer("num_processes", None, f"Number of processes {several}.", 1, flag_values=values)
    flags.DEFINE_integer("process_id", None, f"Number of this process, from 0, {several}.", 0, flag_values=values)
    for name, default in defaults.items():
        values.set_default(name, default)


class Condition(NamedTuple):
    """What a run has in common with those that the same compiled program trains; all else is an array of numbers."""

    depth: int
    feedback: str
    normalization: str
    optimizer: str
    batch_size: int


@dataclasses.dataclass(frozen=True)
class Config:
    """One configuration of a study; every field is the flag of that name."""

    workdir: str
    dataset: str
    data_dir: str | None
    depth: tuple[int, ...]
    widths: tuple[int, ...] | None
    learning_rate: tuple[float, ...]
    oja_rate: tuple[float, ...]
    init: tuple[str, ...]
    init_gain: tuple[float, ...]
    feedback: tuple[str, ...]
    normalization: tuple[str, ...]
    optimizer: tuple[str, ...]
    seeds: int
    seed: int
    num_train: int
    num_test: int
    epochs: int
    batch_size: tuple[int, ...]
    evals: tuple[int, ...]
    measures: bool
    checkpoint_every: Interval = _DEFAULT_INTERVAL
    block_size: int | None = None
    compilation_cache: str | None = None
    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None

    @classmethod
    def from_flags(cls, parsed: flags.FlagValues) -> "Config":
        """The configuration of the parsed command line; raises UserError for flags that do not go together."""
        values: dict[str, Any] = {field.name: parsed[field.name].value for field in dataclasses.fields(cls)}
        if values["widths"] is not None:
            depth = (len(values["widths"]) + 1,)
            if parsed["depth"].present and values["depth"] != depth:
                raise UserError(
                    f"--depth={format_list(values['depth'])} does not go with --widths, whose {depth[0] - 1} hidden "
                    f"layers and the read-out make {depth[0]}: leave --depth out."
                )
            values["depth"] = depth
        if not parsed["evals"].present and len(values["evals"]) > 1:  # An experiment's default, for its own default length.
            values["evals"] = tuple(n for n in values["evals"] if n < values["num_train"] * values["epochs"]) or (1,)
        return cls(**values)

    def flags(self) -> list[str]:
        """The flags that repeat this configuration, defaults included, without those that only say where things are."""
        return [f"--{name}={value}" for name, value in self.settings().items() if value is not None]

    def settings(self) -> dict[str, Any]:
        """What decides the results, as flag values; a work directory belongs to one of these."""
        settings = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in _WHERE_AND_HOW:
            del settings[name]
        if self.widths is not None:
            del settings["depth"]
        return {k: format_list(v) if isinstance(v, tuple) else v for k, v in settings.items()}

    def conditions(self) -> list[Condition]:
        """Every combination of what makes a program of its own."""
        return [Condition(*values) for values in itertools.product(*(getattr(self, name) for name in Condition._fields))]

    def settings_of_runs(self) -> list[dict[str, Any]]:
        """Every combination of what one program takes as numbers, but for the seeds."""
        names = ("init", "init_gain", "learning_rate", "oja_rate")
        return [dict(zip(names, values, strict=True)) for values in itertools.product(*(getattr(self, n) for n in names))]

    def hidden_widths(self, depth: int) -> tuple[int, ...]:
        """Widths of the hidden layers of a network with that many layers, the read-out included."""
        if self.widths is not None:
            return self.widths
        if depth in _HIDDEN_WIDTHS:
            return _HIDDEN_WIDTHS[depth]
        return tuple(round(170 - 100 * layer / max(depth - 2, 1)) for layer in range(depth - 1))

    def all_widths(self, depth: int, dataset: datasets.Dataset) -> list[int]:
        """Widths of all layers of that network, from the pixels to the classes."""
        return [dataset.train.inputs.shape[1], *self.hidden_widths(depth), len(dataset.class_names)]

    def run_seeds(self) -> list[int]:
        """The seeds of each setting."""
        return list(range(self.seed, self.seed + self.seeds))

    def load_dataset(self) -> datasets.Dataset:
        """The data set, with the first `num_test` test images; raises DatasetError or UserError."""
        from ojax import datasets

        dataset = datasets.load(self.dataset, data_dir=self.data_dir)
        if self.num_train > dataset.num_train:
            raise UserError(
                f"--num_train={self.num_train}: the training set of {self.dataset} has {dataset.num_train} "
                "samples; take fewer, or more --epochs."
            )
        if not self.num_test:
            return dataset
        return dataset._replace(test=datasets.Examples(*(array[: self.num_test] for array in dataset.test)))

    def check(self) -> None:
        """Raises UserError where flags do not go together."""
        for batch_size in self.batch_size:
            self._check_batch_size(batch_size)

    def _check_batch_size(self, batch_size: int) -> None:
        if batch_size > self.num_train:
            raise UserError(f"--batch_size={batch_size} is more than --num_train={self.num_train}.")
        if self.num_train * self.epochs > _MOST:
            raise UserError(f"--num_train={self.num_train} times --epochs={self.epochs} is more than {_MOST:,} samples.")
        total = self.samples_seen(batch_size)
        if self.evals == (0,):
            raise UserError("--evals=0: at least one evaluation is needed, the one at the end.")
        if len(self.evals) > 1 and max(self.evals) > total:
            raise UserError(f"--evals: {max(self.evals)} is more than the {total} samples that a run sees.")

    def samples_seen(self, batch_size: int) -> int:
        """How many samples a run learns from; what an epoch has left after its last whole batch is dropped."""
        return self.num_train // batch_size * batch_size * self.epochs

    def schedule(self, batch_size: int) -> online.Schedule:
        """Counts of samples and evaluations; raises UserError where flags do not go together."""
        from ojax import online

        self._check_batch_size(batch_size)
        sizes: Any = {"num_train": self.num_train, "epochs": self.epochs, "batch_size": batch_size}
        total = self.samples_seen(batch_size)
        if len(self.evals) == 1:
            return online.Schedule(evaluate_at=online.evaluation_counts(self.evals[0], **sizes), **sizes)
        counts = {count // batch_size * batch_size for count in self.evals} | {total}
        return online.Schedule(evaluate_at=tuple(sorted(counts)), **sizes)


# Flags that make no difference to the results.
_WHERE_AND_HOW = (
    *("workdir", "data_dir", "checkpoint_every", "block_size", "compilation_cache"),
    *("coordinator_address", "num_processes", "process_id"),
)
# The five-layer network of arXiv 2210.16414, and its like with ten layers; other depths are spaced evenly.
_HIDDEN_WIDTHS = {5: (170, 130, 100, 70), 10: (170, 150, 130, 120, 110, 100, 90, 80, 70)}
