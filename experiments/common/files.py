"""Files of a study: written atomically, and with one-line errors if they are damaged."""

from __future__ import annotations

import contextlib
import hashlib
import json
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


def read_table(path: Path, what_then: str) -> pd.DataFrame:
    """Returns the table in a CSV file, or raises a UserError that ends with the advice `what_then`."""
    import pandas as pd

    try:
        return pd.read_csv(path, dtype=_TYPES, keep_default_na=False, na_values=[""])  # Bit for bit, since 3.1.
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({first_line(error)}): {what_then}.") from None


def read_json(path: Path, fields: Mapping[str, type]) -> dict[str, Any] | None:
    """Returns the object in a JSON file; None unless it is an object with these fields."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None  # A pipe might never end.
        if isinstance(content, dict) and all(isinstance(content.get(name), kind) for name, kind in fields.items()):
            return content
    except (OSError, ValueError, RecursionError):
        pass
    return None


def sha256_of(path: Path) -> str | None:
    """Returns the SHA-256 of a file; None if it cannot be read."""
    try:
        if path.is_file():
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):
        pass
    return None
