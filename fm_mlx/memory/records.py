"""What is known of the texts in a memory, and states of before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np


@dataclass(frozen=True, eq=False)
class Text:
    """A text that was read, or the part of it that was.

    Attributes:
        name: What the text was called: the name of its file without the folder.
        sha256: The digest of the bytes that are counted in `bytes`.
        bytes: How many bytes of the text were read, in UTF-8 with line ends as ``\\n``, up to the
            last place where the text was cut to be tokenized.
        beyond: How many tokens were read beyond those bytes.
        tokens: How many tokens were read, all in all.
        complete: Whether the text was read to its end.
        read_at: When the last of it was read, as ISO 8601 in UTC.
        log_kept: Sum of log(1 - theta) for each row, over all tokens of this text and of those
            before it, (layers, m) float64: its exponential is the share of a row that is left
            of what it held before the first.
    """

    name: str
    sha256: str
    bytes: int
    beyond: int
    tokens: int
    complete: bool
    read_at: str
    log_kept: np.ndarray


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A memory at an earlier token.

    Attributes:
        state: (layers, m, d) float32.
        texts: How many texts had been begun.
        text: The last of them, as far as it had been read.
        tokens: How many tokens of all texts had been read.
    """

    state: mx.array
    texts: int
    text: Text
    tokens: int


def thinned(snapshots: Sequence[Snapshot]) -> list[Snapshot]:
    """Drop the snapshots that are not needed to rewind at the price of half the distance.

    From the snapshot before it, any token at a distance of n tokens from the last one is at
    most n / 2 tokens away, or one piece. That leaves two or three for each doubling of
    the distance, and what is dropped now is not needed later.
    """
    kept = list(snapshots[:1])
    for i in range(1, len(snapshots) - 1):
        after = snapshots[i + 1].tokens
        distance = snapshots[-1].tokens - after
        if after - kept[-1].tokens > distance / 2:
            kept.append(snapshots[i])
    return kept + list(snapshots[1:][-1:])
