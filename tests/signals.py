"""Signals in the processes that tests start."""

import signal


def hear_interrupts() -> None:
    """Undo that SIGINT is ignored, as it is where the tests run in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
