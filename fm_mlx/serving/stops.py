"""Where a text ends: at the first of some strings, which is not shown."""

from __future__ import annotations

from collections.abc import Sequence


class StopText:
    """Holds back what may be the beginning of a stop string.

    Args:
        stop: the strings that end the text; none of them is empty.

    Attributes:
        found: Whether one of them has come.
    """

    def __init__(self, stop: Sequence[str]):
        self._stop = stop
        self._held = ""
        self.found = False

    def feed(self, text: str) -> str:
        """What may be shown after some more text."""
        self._held += text
        places = [place for place in map(self._held.find, self._stop) if place >= 0]
        if places:
            self.found = True
            return self._release(min(places))
        return self._release(len(self._held) - self._begun())

    def rest(self) -> str:
        """What was held back, once the text has ended by itself."""
        return "" if self.found else self._release(len(self._held))

    def _release(self, count: int) -> str:
        shown, self._held = self._held[:count], self._held[count:]
        return shown

    def _begun(self) -> int:
        """The length of the longest end of the text that begins a stop string."""
        longest = max(map(len, self._stop), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stop):
                return length
        return 0
