"""Errors that the user can fix, each with one line that says how."""

import contextlib
import sys
from collections.abc import Iterator


class UserError(Exception):
    """A wrong flag, file or folder; the message is one line that says what to do."""


def in_flags(error: Exception) -> str:
    """Returns an error's message with the flag `--data_dir` in place of the library's argument `data_dir`."""
    return str(error).replace("in the folder data_dir", "in the folder --data_dir", 1)


@contextlib.contextmanager
def of_flag(name: str, value: object) -> Iterator[None]:
    """Turns a ValueError of the library into a UserError that names the flag of the value."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"--{name}={value}: {error}") from None


def complain(message: object, code: int = 2) -> int:
    """Writes one line to standard error; returns the exit code. A signal's code, above 128, is a stop and no error."""
    print(("" if code > 128 else "error: ") + " ".join(str(message).split()), file=sys.stderr)
    return code
