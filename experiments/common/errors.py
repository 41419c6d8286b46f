"""Errors that the user can fix, and the one line that says how."""

import contextlib
import sys
from collections.abc import Iterator


class UserError(Exception):
    """A wrong flag, file or folder; the message is one line that says what to do."""


def in_flags(error: Exception) -> str:
    """Returns the message of an error, in which the library names its argument `data_dir`, as a command says it."""
    return str(error).replace("in the folder data_dir", "in the folder --data_dir", 1)


@contextlib.contextmanager
def of_flag(name: str, value: object) -> Iterator[None]:
    """Raises a ValueError of the library, which knows no flags, as a UserError that names the flag it comes from."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"--{name}={value}: {error}") from None


def complain(message: object, code: int = 2) -> int:
    """Writes one line to standard error; returns the exit code."""
    print("error: " + " ".join(str(message).split()), file=sys.stderr)
    return code
