"""How examples become the rows of a batch: side by side, packed, or as streams.

The shapes of batches come from few lengths, each of which compiles once. The order of an
epoch follows from a seed and the epoch's number alone, so that a run can be resumed anywhere.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from fm_mlx.lora.data import Example

# Shortest length that rows are padded to.
_LEAST = 32

# What the resets of a row are rounded up to, for few shapes.
_RESETS = 4

# Rows of a packing that are tried for a place, the last ones begun.
_OPEN_ROWS = 64


def bucket(tokens: int) -> int:
    """The length that rows of so many tokens are padded to: 32, 48, 64, 96, 128, 192, ..."""
    length = _LEAST
    while length < tokens:
        if length * 3 // 2 >= tokens:
            return length * 3 // 2
        length *= 2
    return length


class Batch(NamedTuple):
    """The arrays of a batch, as `fm_mlx.lora.loss.next_token_loss` takes them.

    Attributes:
        tokens: The tokens, (B, T + 1) int32, of which T are read.
        mask: The targets that count, (B, T) bool.
        reset_positions: Where texts begin in rows that hold several, (B, R) int32.
        fresh: The rows that begin a document if rows are pieces of streams, (B,) bool.
    """

    tokens: mx.array
    mask: mx.array
    reset_positions: mx.array | None = None
    fresh: mx.array | None = None


class Batches(ABC):
    """The batches of a set of examples.

    Args:
        examples: At least one example.
        batch_size: B, the rows of a batch, of all processes together.
        max_length: The largest T.
        rank: The number of this process among those that share each batch.
        size: The number of these processes.
    """

    # Whether a batch goes on with the states that the one before ended with.
    carries_states = False

    def __init__(
        self,
        examples: Sequence[Example],
        batch_size: int,
        max_length: int,
        rank: int = 0,
        size: int = 1,
    ):
        self.examples = examples
        self.batch_size = batch_size
        self.max_length = max_length
        self._own = slice(rank, None, size)

    @abstractmethod
    def epoch(self, rng: np.random.Generator | None) -> list[Any]:
        """What each batch of an epoch holds, for `build`; in a fixed order without rng."""

    @abstractmethod
    def build(self, batch: Any) -> Batch:
        """The arrays of one batch: this process's rows."""

    def forever(self, seed: int, skip: int = 0) -> Iterator[Batch]:
        """The batches of one epoch after another, without the first `skip`."""
        number = 0
        while True:
            batches = self.epoch(np.random.default_rng((seed, number)))
            for batch in batches[skip:]:
                yield self.build(batch)
            skip = max(0, skip - len(batches))
            number += 1

    def once(self) -> Iterator[Batch]:
        """Every example once, in a fixed order."""
        return map(self.build, self.epoch(None))

    def cut(self, example: Example) -> np.ndarray:
        """The tokens of an example that go into a row."""
        return example.tokens[: self.max_length + 1]

    def _rows(self, rows: list[Any]) -> list[Any]:
        """The rows of this process; empty ones fill the batch."""
        return (rows + [None] * (self.batch_size - len(rows)))[self._own]


class Buckets(Batches):
    """Examples of like length side by side, padded on the right."""

    def epoch(self, rng):
        lengths = [bucket(len(self.cut(example)) - 1) for example in self.examples]
        chance = np.arange(len(lengths)) if rng is None else rng.permutation(len(lengths))
        order = np.lexsort([chance, np.array(lengths)])
        starts = np.arange(0, len(order), self.batch_size)
        if rng is not None:
            starts = rng.permutation(starts)
        return [order[start : start + self.batch_size].tolist() for start in starts]

    def build(self, batch):
        longest = max(len(self.cut(self.examples[i])) for i in batch)
        length = min(bucket(longest - 1), self.max_length)
        rows = self._rows(batch)
        tokens, mask = _empty(len(rows), length)
        for row, i in enumerate(rows):
            if i is not None:
                _put(tokens[row], mask[row], 0, self.cut(self.examples[i]), self.examples[i].offset)
        return Batch(mx.array(tokens), mx.array(mask))


class Packed(Batches):
    """Several examples in a row, each with a memory of its own.

    The last token of an example does not predict the first one of the next.
    """

    def epoch(self, rng):
        order = range(len(self.examples))
        if rng is not None:
            order = rng.permutation(len(self.examples)).tolist()
        rows: list[list[int]] = []
        room: list[int] = []
        for i in order:
            wanted = len(self.cut(self.examples[i]))
            for row in range(max(0, len(rows) - _OPEN_ROWS), len(rows)):
                if room[row] >= wanted:
                    break
            else:
                row = len(rows)
                rows.append([])
                room.append(self.max_length + 1)
            rows[row].append(i)
            room[row] -= wanted
        resets = max(1, -(-max(len(row) - 1 for row in rows) // _RESETS) * _RESETS)
        length = min(bucket(self.max_length + 1 - min(room)), self.max_length)
        size = self.batch_size
        return [(rows[i : i + size], length, resets) for i in range(0, len(rows), size)]

    def build(self, batch):
        packed, length, resets = batch
        rows = self._rows(packed)
        tokens, mask = _empty(len(rows), length)
        positions = np.full((len(rows), resets), length, np.int32)
        for row, examples in enumerate(rows):
            at = 0
            for place, i in enumerate(examples or ()):
                if place:
                    positions[row, place - 1] = at
                cut = self.cut(self.examples[i])
                _put(tokens[row], mask[row], at, cut, self.examples[i].offset)
                at += len(cut)
        return Batch(mx.array(tokens), mx.array(mask), reset_positions=mx.array(positions))


class Streams(Batches):
    """Whole documents in pieces, one after the other in each row.

    A row that does not begin a document goes on with that of the batch before, whose state it
    needs. If there are fewer documents than rows the longest are cut, and each part begins
    with a fresh memory.
    """

    carries_states = True

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        parts = [(i, 0, len(example.tokens) - 1) for i, example in enumerate(self.examples)]
        while len(parts) < self.batch_size:
            longest = max(range(len(parts)), key=lambda p: parts[p][2] - parts[p][1])
            i, start, stop = parts[longest]
            if stop - start < 2:
                break
            middle = (start + stop) // 2
            parts[longest : longest + 1] = [(i, start, middle), (i, middle, stop)]
        # where each part begins and ends among the targets of a document
        self._parts = parts
        longest = max(stop - start for _, start, stop in parts)
        self._length = min(bucket(longest), self.max_length)

    def epoch(self, rng):
        lengths = np.array([stop - start for _, start, stop in self._parts])
        order = np.argsort(-lengths, kind="stable")
        streams: list[list[int]] = [[] for _ in range(self.batch_size)]
        load = [0] * self.batch_size
        for part in order.tolist():
            row = load.index(min(load))
            streams[row].append(part)
            load[row] += -(-int(lengths[part]) // self._length)
        if rng is not None:
            for stream in streams:
                rng.shuffle(stream)
        pieces = [[p for part in stream for p in self._pieces(part)] for stream in streams]
        steps = max(map(len, pieces))
        return [[row[s] if s < len(row) else None for row in pieces] for s in range(steps)]

    def _pieces(self, part: int) -> Iterator[tuple[int, int, int, bool]]:
        i, first, stop = self._parts[part]
        for start in range(first, stop, self._length):
            yield i, start, min(start + self._length, stop), start == first

    def build(self, batch):
        rows = self._rows(batch)
        tokens, mask = _empty(len(rows), self._length)
        fresh = np.ones(len(rows), bool)
        for row, piece in enumerate(rows):
            if piece is None:
                continue
            i, start, stop, fresh[row] = piece
            example = self.examples[i]
            offset = max(0, example.offset - start)
            _put(tokens[row], mask[row], 0, example.tokens[start : stop + 1], offset)
        return Batch(mx.array(tokens), mx.array(mask), fresh=mx.array(fresh))


KINDS = {"bucket": Buckets, "pack": Packed, "stream": Streams}


def _empty(rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((rows, length + 1), np.int32), np.zeros((rows, length), bool)


def _put(tokens: np.ndarray, mask: np.ndarray, at: int, text: np.ndarray, offset: int) -> None:
    """Write a text into a row; what it predicts from `offset` on, but its first token, counts."""
    tokens[at : at + len(text)] = text
    mask[at + max(offset, 1) - 1 : at + len(text) - 1] = True
