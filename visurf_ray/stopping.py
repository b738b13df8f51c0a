"""Signals that stop a run: SIGTERM, which schedulers send, and SIGINT, which Ctrl-C sends."""

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(KeyboardInterrupt):
    """A signal has asked the program to end.

    Attributes:
        signum: the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__()
        self.signum = signum


class _Signals:
    """What the handler knows.

    Attributes:
        first: the first signal, and when it came (`time.monotonic()`).
        holding: whether it is held back.
        grace: seconds from the first signal on in which a run may save its state.
    """

    first: tuple[int, float] | None = None
    holding = False
    grace = 0.0


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Have SIGTERM and SIGINT raise Stopped in the main thread. A signal is forgotten at the end of the context."""
    for signum in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(signum) is not signal.SIG_IGN:  # a shell has its background jobs ignore SIGINT
            signal.signal(signum, _stop)
    try:
        yield
    finally:
        _Signals.first = None


def _stop(signum: int, frame: FrameType | None) -> None:
    if _Signals.first is None:
        _Signals.first = signum, time.monotonic()
        if _Signals.holding:
            signal.signal(signal.SIGALRM, lambda *_: _raise())
            signal.setitimer(signal.ITIMER_REAL, _Signals.grace)
            return
    _raise()


def _raise() -> None:
    assert _Signals.first
    raise Stopped(_Signals.first[0])


def stopped() -> bool:
    """Return whether a signal has asked the program to end."""
    return _Signals.first is not None


@contextmanager
def finishing_first(grace: float) -> Iterator[None]:
    """Hold back the first signal until the end of the context, for so many seconds. A second one is not held back."""
    _Signals.holding, _Signals.grace = True, grace
    try:
        yield
    finally:
        _Signals.holding = False
        if _Signals.first:
            signal.setitimer(signal.ITIMER_REAL, 0)
            _raise()


@contextmanager
def time_left(grace: float) -> Iterator[None]:
    """Give the context what is left of `grace` seconds since the first signal, if there was one; Stopped ends it."""
    if _Signals.first is None or math.isinf(grace):
        yield
        return
    left = grace - (time.monotonic() - _Signals.first[1])
    signal.signal(signal.SIGALRM, lambda *_: _raise())
    signal.setitimer(signal.ITIMER_REAL, max(left, 0.01))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
