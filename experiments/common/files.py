"""Files of a study: written atomically, and with one-line errors if they are damaged."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.common.errors import UserError
from experiments.common.results import PLACES
from ojax import files
from ojax.trees import first_line

if TYPE_CHECKING:  # pandas is slow to import, and the page of studies does not need it.
    import pandas as pd

# Columns of whole numbers with gaps, which pandas would read as floats.
_TYPES = dict.fromkeys(PLACES, "Int64")
# Of a name that leads to no file.
_IS_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Wraps :func:`ojax.files.replacing`: also makes the folder, and raises UserError if the file cannot be written."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(target) as temporary:
            yield temporary
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror or error}.") from None


def check_writable(folder: Path) -> None:
    """Raises UserError if no file can be written into the folder; makes the folder if it is missing."""
    with replacing(folder / ".tmp-probe") as temporary:
        temporary.touch()
    (folder / ".tmp-probe").unlink(missing_ok=True)


def write_text(target: Path, text: str) -> None:
    """Writes a text file, or raises UserError."""
    with replacing(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_table(target: Path, table: pd.DataFrame) -> None:
    """Writes a CSV file, or raises UserError."""
    with replacing(target) as temporary:
        table.to_csv(temporary, index=False)


def read_text(path: Path, what_then: str) -> str:
    """Returns the text of a file, or raises a UserError that ends with the advice `what_then`."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise _unread(path, error) from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8: {what_then}.") from None


def read_table(path: Path, what_then: str) -> pd.DataFrame:
    """Returns the table in a CSV file, or raises a UserError that ends with the advice `what_then`."""
    import pandas as pd

    try:
        return pd.read_csv(path, dtype=_TYPES, keep_default_na=False, na_values=[""])  # Bit for bit, since 3.1.
    except OSError as error:
        raise _unread(path, error) from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({first_line(error)}): {what_then}.") from None


def read_json(path: Path, fields: Mapping[str, type]) -> dict[str, Any] | None:
    """Returns the object in a JSON file; None if no file has this name, or it holds no object with these fields.

    Raises:
      UserError: If the file cannot be read.
    """
    with _reading(path), contextlib.suppress(ValueError, RecursionError):
        content = json.loads(path.read_text(encoding="utf-8")) if _is_file(path) else None
        if isinstance(content, dict) and all(isinstance(content.get(name), kind) for name, kind in fields.items()):
            return content
    return None


def sha256_of(path: Path) -> str | None:
    """Returns the SHA-256 of a file; None if no file has this name.

    Raises:
      UserError: If it cannot be read.
    """
    with _reading(path), contextlib.suppress(ValueError):  # A NUL in the name.
        if _is_file(path):
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
    return None


def listed(folder: Path) -> list[Path]:
    """Returns what is in a folder, sorted; nothing if there is no folder.

    Raises:
      UserError: If it cannot be read.
    """
    with _reading(folder):
        return sorted(folder.iterdir())
    return []


def _is_file(path: Path) -> bool:
    """Unlike Path.is_file, raises the errors of a file that cannot be reached."""
    return stat.S_ISREG(os.stat(path).st_mode)  # A pipe might never end.


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Ends the body if there is no file, and raises UserError if it cannot be read: it may well be whole."""
    try:
        yield
    except OSError as error:
        if error.errno not in _IS_MISSING:
            raise _unread(path, error) from None


def _unread(path: Path, error: OSError) -> UserError:
    return UserError(f"{path} cannot be read: {error.strerror or error}; try again.")
