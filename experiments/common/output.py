"""Output whose failures do not stop a study: a closed pipe, a full disk or a narrow encoding only loses text."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterable
from typing import IO, TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from rich.console import Console

_LETTERS = {"η": "eta", "θ": "theta", "²": "^2", "µ": "u", "×": "x", "±": "+-", "≥": ">=", "≤": "<=", "•": "*", "…": "."}
_SPELLED = str.maketrans(_LETTERS | dict.fromkeys("–—−", "-") | dict.fromkeys("“”", '"') | dict.fromkeys("‘’", "'"))


class Outlived:
    """A text stream whose failures do not raise errors.

    Letters that its encoding lacks are spelled out or become question marks. If writing fails, later output is dropped,
    with one note on standard error.

    Args:
      stream: The stream.
      name: Its name in the note.
    """

    def __init__(self, stream: Any, name: str = "standard output"):
        self._stream, self._name, self._is_lost = stream, name, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes the text if it can."""
        self._try(lambda: self._stream.write(encodable(text, self._stream.encoding)))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Writes the lines if it can."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flushes the stream if it can."""
        self._try(self._stream.flush)

    def _try(self, work: Callable[[], Any]) -> None:
        if self._is_lost:
            return
        try:
            work()
        except (OSError, ValueError) as error:  # ValueError: the stream is closed.
            self._is_lost = True
            with contextlib.suppress(OSError, ValueError, AttributeError):
                # Discards the rest of its buffer, and the output of C libraries.
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stream.fileno())
                os.close(null)
            is_unread = isinstance(error, OSError) and error.errno == errno.EPIPE
            reason = "nobody reads it any more" if is_unread else getattr(error, "strerror", None) or error
            with contextlib.suppress(OSError, ValueError):
                if sys.stderr is not self:
                    note = f"note: {self._name} is lost ({reason}); a study goes on without it, and saves its results."
                    print(note, file=sys.stderr)


def outlive() -> None:
    """Makes this process survive failures of standard output and standard error, closed ones too."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # It takes the lowest free number, which another file would get otherwise.
    for name, words in (("stdout", "standard output"), ("stderr", "standard error")):
        stream = getattr(sys, name) or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        if not isinstance(stream, Outlived):
            setattr(sys, name, Outlived(stream, words))


def console() -> Console:
    """Returns a console on standard output, whose failures do not raise errors."""
    from rich.console import Console

    return Console(quiet=True) if sys.stdout is None else Console(file=cast("IO[str]", Outlived(sys.stdout)))


def encodable(text: str, encoding: str | None) -> str:
    """Returns the text in letters of the encoding: other letters are spelled out, or become question marks."""
    encoding = encoding or "utf-8"
    try:
        text.encode(encoding)
        return text
    except UnicodeEncodeError:
        return text.translate(_SPELLED).encode(encoding, "replace").decode(encoding)
    except LookupError:
        return text
