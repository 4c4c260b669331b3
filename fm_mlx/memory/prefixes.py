"""States after the beginnings of earlier prompts, from which later ones go on."""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Sequence

import mlx.core as mx
import numpy as np

# Tokens from the end of a prompt to the last place before it where the state is kept.
_NEAREST = 64


class PrefixStore:
    """Keeps states by the tokens that led to them; those that were used longest ago are dropped.

    A recurrent state cannot be cut back to an earlier token, so that what a prompt shares with
    one before it is saved only where a state was kept: at the end of a prompt, at the end of an
    answer, and at `stops` within a prompt.

    Args:
        max_bytes: what all states may take.

    Raises:
        ValueError: max_bytes is negative.
    """

    def __init__(self, max_bytes: int):
        if max_bytes < 0:
            raise ValueError(f"max_bytes is {max_bytes}; allowed are whole numbers from 0")
        self.max_bytes = max_bytes
        self.nbytes = 0
        self._states: OrderedDict[tuple[bytes, int, bytes], mx.array] = OrderedDict()
        self._lengths: dict[bytes, Counter[int]] = {}

    def __len__(self) -> int:
        return len(self._states)

    def find(self, root: bytes, tokens: Sequence[int]) -> tuple[int, mx.array | None]:
        """The state after the longest beginning of a prompt that was kept.

        One token at least is left to read: the logits after a prompt are not kept.

        Args:
            root: names what was there before the first token: a memory, or nothing.
            tokens: the prompt.

        Returns:
            How many tokens the beginning has, and the states (layers, m, d) float32 after it;
            0 and None if there is none.
        """
        lengths = [n for n in self._lengths.get(root, ()) if n < len(tokens)]
        found = None
        for key in _keys(root, tokens, lengths):
            found = key if key in self._states else found
        if found is None:
            return 0, None
        self._states.move_to_end(found)
        return found[1], self._states[found]

    def put(self, root: bytes, tokens: Sequence[int], states: mx.array) -> None:
        """Keep the states (layers, m, d) after all these tokens."""
        if states.nbytes > self.max_bytes:
            return  # it would drop all others, and then itself
        (key,) = _keys(root, tokens, [len(tokens)])
        if key in self._states:
            self._states.move_to_end(key)
            return
        self._states[key] = states
        self.nbytes += states.nbytes
        self._lengths.setdefault(root, Counter())[len(tokens)] += 1
        while self.nbytes > self.max_bytes:
            self._drop()

    def _drop(self) -> None:
        (root, length, _), states = self._states.popitem(last=False)
        self.nbytes -= states.nbytes
        lengths = self._lengths[root]
        lengths[length] -= 1
        if not lengths[length]:
            del lengths[length]
        if not lengths:
            del self._lengths[root]


def stops(start: int, end: int) -> list[int]:
    """Where to keep the state while the tokens of a prompt from start to end are read.

    The places are 64, 128, 256, ... tokens before the end, so that a prompt which parts from
    this one at any token reads at most as many tokens again as lie between there and the end,
    or 64. The end is the last of them.
    """
    places = [end]
    distance = _NEAREST
    while end - distance > start:
        places.append(end - distance)
        distance *= 2
    return places[::-1]


def _keys(
    root: bytes, tokens: Sequence[int], lengths: Sequence[int]
) -> list[tuple[bytes, int, bytes]]:
    """The keys of the beginnings of these lengths, the shortest first."""
    numbers = np.asarray(tokens, np.uint32)
    sha256 = hashlib.sha256()
    keys, start = [], 0
    for length in sorted(lengths):
        sha256.update(numbers[start:length].tobytes())
        keys.append((root, length, sha256.digest()))
        start = length
    return keys
