"""A memory: the states of all layers, what was read, and states of before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import ArraysCache

from fm_mlx import cache as caches
from fm_mlx.memory.identity import Identity, identity_of
from fm_mlx.model import Model


@dataclass(frozen=True)
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
    """

    name: str
    sha256: str
    bytes: int
    beyond: int
    tokens: int
    complete: bool
    read_at: str


@dataclass(frozen=True)
class Snapshot:
    """A memory at an earlier token.

    Attributes:
        state: (layers, m, d) float32.
        log_kept: (layers, m) float64; see `Memory`.
        texts: How many texts had been begun.
        text: The last of them, as far as it had been read.
        tokens: How many tokens of all texts had been read.
    """

    state: mx.array
    log_kept: np.ndarray
    texts: int
    text: Text
    tokens: int


@dataclass
class Memory:
    """What a model has read.

    Arrays of MLX never change, so branches and snapshots share them until they differ.

    Attributes:
        identity: The model that read it, and its tokenizer.
        state: The states of all layers, (layers, m, d) float32.
        log_kept: Sum of log(1 - theta) over all tokens for each row, (layers, m) float64: its
            exponential is the share of a row that is left of what it held before the first.
        texts: What was read, in order.
        snapshots: Earlier states, the earliest first; the further back, the sparser.
    """

    identity: Identity
    state: mx.array
    log_kept: np.ndarray
    texts: list[Text] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)

    @classmethod
    def empty(cls, model: Model, tokenizer: Any = None) -> Memory:
        """The memory of a model that has read nothing."""
        args = model.args
        shape = (args.num_memory_states, args.memory_size)
        learned = model.initial_memory.states()
        states = [mx.zeros(shape, mx.float32) if state is None else state for state in learned]
        log_kept = np.zeros((len(states), args.num_memory_states))
        return cls(identity_of(model, tokenizer), mx.stack(states), log_kept)

    @property
    def tokens_seen(self) -> int:
        """How many tokens were read."""
        return sum(text.tokens for text in self.texts)

    @property
    def nbytes(self) -> int:
        """Bytes of the states, those of the snapshots included."""
        states = [self, *self.snapshots]
        return sum(one.state.nbytes + one.log_kept.nbytes for one in states)

    def branch(self) -> Memory:
        """A memory that goes its own way from here; it shares all arrays until it does."""
        return replace(self, texts=list(self.texts), snapshots=list(self.snapshots))

    def prompt_cache(self, model: Model, tokenizer: Any = None) -> list[ArraysCache]:
        """Caches from which a model goes on; the memory stays as it is.

        Raises:
            ValueError: another model read this; says what differs.
        """
        self.identity.check(identity_of(model, tokenizer), "the memory")
        made = model.make_cache()
        put_state(made, self.state, model.args.num_active_states)
        return made

    def at(self, snapshot: Snapshot) -> Memory:
        """The memory as it was when one of its snapshots was taken."""
        kept = [one for one in self.snapshots if one.tokens <= snapshot.tokens]
        texts = [*self.texts[: snapshot.texts - 1], snapshot.text]
        return Memory(self.identity, snapshot.state, snapshot.log_kept, texts, kept)

    def nearest(self, tokens: int) -> str:
        """Where the snapshots around a token are, for a message."""
        places = [snapshot.tokens for snapshot in self.snapshots]
        before = [place for place in places if place < tokens][-1:]
        after = [place for place in places if place > tokens][:1]
        shown = " and ".join(f"{place:,}" for place in before + after)
        return f"the nearest are after {shown}" if shown else "there are none"

    def followed_by(self, state: mx.array, log_kept: np.ndarray, texts: list[Text]) -> Memory:
        """The memory after one more piece, with a snapshot there, and no more than it needs."""
        tokens = sum(text.tokens for text in texts)
        now = Snapshot(state, log_kept, len(texts), texts[-1], tokens)
        return Memory(self.identity, state, log_kept, texts, thinned([*self.snapshots, now]))


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


def put_state(cache: Iterable[ArraysCache], states: mx.array, num_active: int) -> None:
    """Put the states (layers, m, d) of a memory into caches; k is that of the steps to come."""
    for layer, state in zip(cache, states, strict=True):
        caches.set_state(layer, state[None], num_active)
