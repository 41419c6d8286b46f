"""Signals that ask to stop: heeded where work can be saved, at once elsewhere.

They are Ctrl-C, a scheduler's SIGTERM, and SIGHUP, which a terminal sends as it closes, unless `nohup` has it ignored.
"""

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

_HANGUP: Any = getattr(signal, "SIGHUP", None)  # Windows has none.
_HEEDS_HANGUP = _HANGUP is not None and signal.getsignal(_HANGUP) != signal.SIG_IGN
_SIGNALS = (signal.SIGINT, signal.SIGTERM, *([_HANGUP] if _HEEDS_HANGUP else []))
_received: list[signal.Signals] = []
_deferring = False


class Stopped(BaseException):
    """Asked to stop where there is nothing to save, or asked twice; no Exception, as KeyboardInterrupt is none."""


def watch() -> None:
    """Makes the signals raise :class:`Stopped`, or wait within :func:`deferred`."""
    for number in _SIGNALS:
        signal.signal(number, _receive)


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """While it lasts the signals end this process, also in a call that does not come back to Python to have them heard."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        watch()


def ignore() -> None:
    """No signal matters any more: all is saved."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """While it lasts a first signal is only remembered, for :func:`asked`."""
    global _deferring
    _deferring = True
    try:
        yield
    finally:
        _deferring = False


def asked() -> bool:
    """Whether a signal has asked to stop."""
    return bool(_received)


def exit_code() -> int:
    """What a shell reports of a process that the signal ended: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP."""
    return 128 + (_received[0] if _received else signal.SIGTERM)


def _receive(number: int, frame: Any) -> None:
    _received.append(signal.Signals(number))
    # A terminal that closes may send SIGHUP more than once, which is no impatience.
    if not _deferring or (len(_received) > 1 and number != _HANGUP):
        raise Stopped
