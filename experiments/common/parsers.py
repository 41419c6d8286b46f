"""Parsers of flags' values: lists of numbers and of names, paths, data sets, and save intervals."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from absl import flags


class Numbers(flags.ArgumentParser):
    """A comma-separated list of numbers, each at least `minimum`; its value is a tuple, by default without repeats."""

    syntactic_help = "comma-separated numbers"

    def __init__(
        self,
        kind: type[int] | type[float],
        minimum: float,
        maximum: float = math.inf,
        *,
        exclusive: bool = False,
        infinite: bool = False,
        repeats: bool = False,
    ):
        self._kind, self._minimum, self._maximum, self._exclusive = kind, minimum, maximum, exclusive
        self._infinite, self._repeats = infinite, repeats

    def parse(self, argument: str | Sequence[float]) -> tuple[float, ...]:
        """Returns the numbers; raises ValueError if an item is not a number in range."""
        numbers = [self._number(word) for word in (argument.split(",") if isinstance(argument, str) else argument)]
        return tuple(numbers if self._repeats else dict.fromkeys(numbers))

    def _number(self, word: str | float) -> float:
        noun = "a whole number" if self._kind is int else "a number"
        try:
            number = self._kind(word)
            if isinstance(word, float) and number != word:
                raise ValueError
        except (ValueError, TypeError, OverflowError):
            raise ValueError(f"{str(word).strip()!r} is not {noun}") from None
        finite = math.isfinite(number) or (self._infinite and number == math.inf)
        if not finite or number < self._minimum or (self._exclusive and number == self._minimum):
            raise ValueError(f"{word} is not {noun} {'above' if self._exclusive else 'of at least'} {self._minimum:g}")
        if number > self._maximum:
            raise ValueError(f"{word} is not {noun} of at most {self._maximum:g}")
        return number


class Whole(flags.IntegerParser):
    """One whole number, from the lowest to the highest."""

    def convert(self, argument: float | str) -> int:
        """Returns the number; raises ValueError if it is not whole."""
        try:
            number = int(argument) if isinstance(argument, float) else argument
            if number != argument:
                raise ValueError
            return super().convert(number)
        except (ValueError, TypeError, OverflowError):
            raise ValueError(f"{argument!r} is not a whole number") from None


class Names(flags.ArgumentParser):
    """A comma-separated list of some of the given names, without repeats."""

    syntactic_help = "comma-separated names"

    def __init__(self, choices: Iterable[str]):
        self.choices = tuple(choices)

    def parse(self, argument: str | Sequence[str]) -> tuple[str, ...]:
        """Returns the names; raises ValueError if an item is not one of them."""
        names = tuple(dict.fromkeys(argument.split(",") if isinstance(argument, str) else argument))
        for name in names:
            if name not in self.choices:
                raise ValueError(f"{name!r} is not one of {', '.join(self.choices)}")
        return names


class FilePath(flags.ArgumentParser):
    """A file or folder; the flag's value has `~` and variables expanded, see :func:`ojax.paths.expanded`.

    Args:
      remote: Whether it may be a path on the network, such as a bucket.
    """

    syntactic_help = "a file or folder"

    def __init__(self, *, remote: bool = False):
        self._remote = remote

    def parse(self, argument: str | os.PathLike) -> str:
        """Returns the path; raises ValueError if it is not usable as written."""
        if isinstance(argument, str) and re.fullmatch(r"[\w./-]+", argument):
            return argument  # E.g. the defaults: `--help` should not wait for the import of JAX.
        from ojax.paths import expanded

        return expanded(argument, remote=self._remote)


class DataName(flags.ArgumentParser):
    """The name of a data set; the path in it is read like :class:`FilePath`, see :func:`ojax.datasets.full_name`."""

    syntactic_help = "a data set"

    def parse(self, argument: str | os.PathLike) -> str:
        """Returns the name; raises ValueError if its path is not usable as written."""
        if isinstance(argument, str) and re.fullmatch(r"\w+(/\w+)?", argument):
            return argument  # See :class:`FilePath`.
        from ojax.datasets import full_name

        return full_name(argument)


class SaveEvery(NamedTuple):
    """An interval between saves, in samples per run or in seconds; one of them is None."""

    samples: int | None
    seconds: float | None

    def __str__(self) -> str:
        return f"{self.seconds:g}s" if self.samples is None else str(self.samples)


class SaveEveryParser(flags.ArgumentParser):
    """A count of samples, or seconds with an s."""

    syntactic_help = "samples, or seconds with an s"

    def parse(self, argument: str | SaveEvery) -> SaveEvery:
        """Returns the interval; raises ValueError if the argument is not an interval."""
        if isinstance(argument, SaveEvery):
            return argument
        argument = str(argument)
        seconds = argument.endswith("s")
        number = Numbers(float if seconds else int, 0, exclusive=True).parse(argument.removesuffix("s"))
        if len(number) != 1:
            raise ValueError("give one number of samples, or of seconds with an s, as in 120s")
        return SaveEvery(None, number[0]) if seconds else SaveEvery(int(number[0]), None)


def is_list(parser: flags.ArgumentParser) -> bool:
    """Returns whether a parser's values are tuples."""
    return isinstance(parser, Numbers | Names)


class ListSerializer(flags.ArgumentSerializer):
    """Writes a list in the syntax of a flag."""

    def serialize(self, value: Sequence[float | str]) -> str:
        """Returns a list as text: `0,0.0003,1`."""
        return format_list(value)


def format_list(values: Sequence[float | str]) -> str:
    """Returns a list in the syntax of a flag, `0,0.0003,1`, which is read back exactly."""
    return ",".join(map(_format, values))


def _format(value: float | str) -> str:
    short = value if isinstance(value, str) else f"{value:g}"
    return short if isinstance(value, str) or (isinstance(value, float) and float(short) == value) else str(value)
