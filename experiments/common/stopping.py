"""Handles signals that ask to stop: after work is saved, or at once if there is nothing to save.

They are Ctrl-C, a scheduler's SIGTERM, and SIGHUP, which a closing terminal sends unless `nohup` ignores it.
"""

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

_HANGUP: Any = getattr(signal, "SIGHUP", None)  # Windows has no SIGHUP.
_HEEDS_HANGUP = _HANGUP is not None and signal.getsignal(_HANGUP) != signal.SIG_IGN
_ALARM: Any = getattr(signal, "SIGALRM", None)  # Nor this one.
# Python drops an exception that is raised in some callbacks, e.g. of its garbage collector. So a stop is raised again after
# so many seconds, unless it has been handled.
_AGAIN = 1.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, *([_HANGUP] if _HEEDS_HANGUP else []))
_received: list[signal.Signals] = []
_deferring = False


class Stopped(BaseException):
    """A signal asked to stop while there was nothing to save, or twice. A BaseException, like KeyboardInterrupt."""


def watch() -> None:
    """Makes the signals raise :class:`Stopped`, or wait within :func:`deferred`."""
    for number in _SIGNALS:
        signal.signal(number, _receive)
    if _ALARM is not None:
        signal.signal(_ALARM, _stop)


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Makes the signals end this process while the context lasts, even in a call that does not return to Python."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        watch()


def ignore() -> None:
    """Ignores all further signals, once everything is saved."""
    if _ALARM is not None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(_ALARM, signal.SIG_IGN)
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Only records a first signal while the context lasts, for :func:`asked`."""
    global _deferring
    _deferring = True
    try:
        yield
    finally:
        _deferring = False


def asked() -> bool:
    """Returns whether a signal has asked to stop."""
    return bool(_received)


def exit_code() -> int:
    """Returns the signal's exit code, as in a shell: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP."""
    return 128 + (_received[0] if _received else signal.SIGTERM)


def _receive(number: int, frame: Any) -> None:
    _received.append(signal.Signals(number))
    # A closing terminal may send SIGHUP more than once, which does not count as a second request.
    if not _deferring or (len(_received) > 1 and number != _HANGUP):
        _stop(number, frame)


def _stop(number: int, frame: Any) -> None:
    if _ALARM is not None:
        signal.setitimer(signal.ITIMER_REAL, _AGAIN)
    raise Stopped
