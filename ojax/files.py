"""Writes files atomically."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

_PREFIX = ".tmp-"


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yields a temporary path in the target's folder, which replaces the target if the block ends without an error.

    A process that is killed in the block leaves a temporary file, see :func:`is_temporary`.

    Raises:
      OSError: If the file cannot be written.
    """
    temporary = target.with_name(f"{_PREFIX}{secrets.token_hex(8)}{target.suffix}")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def is_temporary(name: str) -> bool:
    """Returns whether the name is one of the temporary files of :func:`replacing`."""
    return name.startswith(_PREFIX)
