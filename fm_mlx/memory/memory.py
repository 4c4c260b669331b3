"""A memory: the states of all layers, what was read, and states of before."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import ArraysCache

from fm_mlx.memory import file
from fm_mlx.memory.identity import Identity, identity_of
from fm_mlx.memory.reading import Readable, check_source, name_of, read_text
from fm_mlx.memory.records import Snapshot, Text, thinned
from fm_mlx.memory.states import cache_from, first_states
from fm_mlx.model import Model


@dataclass
class Memory:
    """What a model has read.

    A memory does not change: what reads more or goes back gives a new one. Arrays of MLX never
    change either, so that memories share them until they differ.

    Attributes:
        identity: The model that read it, and its tokenizer.
        state: The states of all layers, (layers, m, d) float32.
        texts: What was read, in order.
        snapshots: Earlier states, the earliest first; the further back, the sparser.
    """

    identity: Identity
    state: mx.array
    texts: list[Text] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)

    @classmethod
    def empty(cls, model: Model, tokenizer: Any = None) -> Memory:
        """The memory of a model that has read nothing."""
        return cls(identity_of(model, tokenizer), first_states(model))

    @classmethod
    def load(cls, path: str | Path) -> Memory:
        """Read a memory from a file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no memory, of a newer format, cut short or altered.
        """
        content = file.read(path)
        return cls(content.identity, content.state, content.texts, content.snapshots)

    def save(self, path: str | Path, *, bits: int = 32) -> None:
        """Write the memory to a file, which appears whole or not at all.

        Args:
            path: where to write; a file that is there is replaced.
            bits: 32 keeps every bit; 8 rounds each row to integers with one float32 scale, and
                makes a file of about a quarter of the size.

        Raises:
            ValueError: bits is neither 32 nor 8.
        """
        content = file.Content(self.identity, self.state, self.texts, self.snapshots)
        file.write(path, content, bits)

    @property
    def tokens_seen(self) -> int:
        """How many tokens were read."""
        return sum(text.tokens for text in self.texts)

    @property
    def nbytes(self) -> int:
        """Bytes of the states, those of the snapshots included."""
        return sum(one.state.nbytes for one in (self, *self.snapshots))

    @property
    def log_kept(self) -> np.ndarray:
        """Sum of log(1 - theta) over all tokens for each row, (layers, m) float64."""
        return self.texts[-1].log_kept if self.texts else np.zeros(self.state.shape[:2])

    @property
    def digest(self) -> bytes:
        """The sha256 of the states: what a model goes on from, whatever led there."""
        return hashlib.sha256(np.array(self.state).tobytes()).digest()

    def branch(self) -> Memory:
        """A memory that goes its own way from here; it shares all arrays until it does."""
        return replace(self, texts=list(self.texts), snapshots=list(self.snapshots))

    def check(self, model: Model, tokenizer: Any = None) -> None:
        """Raise unless a model with its tokenizer read this; all its weights are compared.

        Raises:
            ValueError: another model did; says what differs.
        """
        self.identity.check(identity_of(model, tokenizer), "the memory")

    def prompt_cache(self, model: Model, tokenizer: Any = None) -> list[ArraysCache]:
        """Caches from which a model goes on; the memory stays as it is.

        Raises:
            ValueError: another model read this; says what differs.
        """
        self.check(model, tokenizer)
        return cache_from(model, self.state)

    def read(
        self, model: Model, tokenizer: Any, text: Readable, *, name: str | None = None
    ) -> Iterator[Memory]:
        """Read a text piece by piece; each step is the memory after 2,048 tokens more.

        The reading may be left after any step. If the last text of the memory is not complete,
        this text must begin with what was read of it, and the reading goes on there, to the
        same bits. That the memory is of this model is not checked (`check`).

        Args:
            model, tokenizer, text, name: as for `remember`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the text is empty, or it is not the one that was begun.
            NotFiniteError: the model computes NaN; names the first layer that does.
        """
        return self._read(model, tokenizer, text, name or name_of(text))

    def append(
        self,
        model: Model,
        tokenizer: Any,
        text: Readable,
        *,
        name: str | None = None,
        progress: Callable[[Memory], None] | None = None,
    ) -> Memory:
        """Read one more text, or the rest of the last; the arguments are those of `remember`.

        Raises:
            ValueError: another model read the memory, the text is empty, or it is not the one
                that was begun.
        """
        self.check(model, tokenizer)
        return self._appended(model, tokenizer, text, name, progress)

    def rewind(
        self,
        model: Model,
        tokenizer: Any,
        tokens: int,
        sources: str | Path | Sequence[str | Path] = (),
    ) -> Memory:
        """The memory as it was after its first tokens, read again from the snapshot before.

        Args:
            model: the model.
            tokenizer: its tokenizer.
            tokens: how many tokens to keep, from 0.
            sources: the text to read again, or the path of its file; of several texts all, in
                their order: from the one in which the snapshot lies to that of the last token.

        Raises:
            ValueError: there is no such token; no snapshot is kept there, and the sources are
                not the texts that were read; or another model read the memory.
        """
        if isinstance(sources, (str, Path)):
            sources = [sources]
        seen = self.tokens_seen
        if not 0 <= tokens <= seen:
            raise ValueError(f"cannot rewind to token {tokens:,}; allowed are 0 to {seen:,}")
        self.check(model, tokenizer)
        if tokens == seen:
            return self.branch()
        kept = [snapshot for snapshot in self.snapshots if snapshot.tokens <= tokens]
        back = self.at(kept[-1]) if kept and tokens else Memory(self.identity, first_states(model))
        ends = list(accumulate(text.tokens for text in self.texts))
        numbers = [n for n, end in enumerate(ends) if end > back.tokens_seen]
        needed = [self.texts[n] for n in numbers if ends[n] - self.texts[n].tokens < tokens]
        if back.tokens_seen == tokens:
            return back
        if len(sources) != len(needed):
            given = f"{len(sources)} texts" if sources else "no text"
            names = ", ".join(text.name for text in needed)
            raise ValueError(
                f"no snapshot after {tokens:,} tokens, and {given} to read again; "
                f"wanted are {names}; {self.nearest(tokens)}"
            )
        for text, source in zip(needed, sources, strict=True):
            check_source(source, text)  # that it is the whole of what was read
        for number, text, source in zip(numbers, needed, sources, strict=False):
            until = tokens - (ends[number] - text.tokens)
            end = min(until, text.tokens) if until < text.tokens or not text.complete else None
            *_, back = back._read(model, tokenizer, source, text.name, until=end)
        return back

    def at(self, snapshot: Snapshot) -> Memory:
        """The memory as it was when one of its snapshots was taken."""
        kept = [one for one in self.snapshots if one.tokens <= snapshot.tokens]
        texts = [*self.texts[: snapshot.texts - 1], snapshot.text]
        return Memory(self.identity, snapshot.state, texts, kept)

    def nearest(self, tokens: int) -> str:
        """Where the snapshots around a token are, for a message."""
        places = [snapshot.tokens for snapshot in self.snapshots]
        before = [place for place in places if place < tokens][-1:]
        after = [place for place in places if place > tokens][:1]
        shown = " and ".join(f"{place:,}" for place in before + after)
        return f"the nearest snapshots are after {shown}" if shown else "there are no snapshots"

    def _read(
        self, model: Model, tokenizer: Any, text: Readable, name: str, until: int | None = None
    ) -> Iterator[Memory]:
        """`read`, to the end of the text or until so many of its tokens were read."""
        if self.texts and not self.texts[-1].complete:
            *earlier, done = self.texts
        else:
            earlier = list(self.texts)
            done = Text(name, "", 0, 0, 0, complete=False, read_at="", log_kept=self.log_kept)
        memory = self
        for state, record in read_text(
            model,
            tokenizer,
            text,
            self.state,
            done,
            first=not earlier,
            before=sum(text.tokens for text in earlier),
            until=until,
        ):
            memory = memory._followed_by(state, [*earlier, record])
            yield memory

    def _appended(
        self,
        model: Model,
        tokenizer: Any,
        text: Readable,
        name: str | None,
        progress: Callable[[Memory], None] | None,
    ) -> Memory:
        """`append` to a memory that is known to be of this model."""
        memory = self
        for memory in self.read(model, tokenizer, text, name=name):
            if progress is not None:
                progress(memory)
        return memory

    def _followed_by(self, state: mx.array, texts: list[Text]) -> Memory:
        """The memory after one more piece, with a snapshot there, and no more than it needs."""
        tokens = sum(text.tokens for text in texts)
        now = Snapshot(state, len(texts), texts[-1], tokens)
        return Memory(self.identity, state, texts, thinned([*self.snapshots, now]))


def remember(
    model: Model,
    tokenizer: Any,
    text: Readable,
    memory: Memory | None = None,
    *,
    name: str | None = None,
    progress: Callable[[Memory], None] | None = None,
) -> Memory:
    """Read a text, and return what is remembered of it.

    Args:
        model: the model, from `fm_mlx.load`.
        tokenizer: its tokenizer.
        text: text, the path of a UTF-8 file, an open text file, or pieces of text.
        memory: what was read before; it stays as it is. None: nothing.
        name: what to call the text; its file's name if it has one, else "text".
        progress: called after each piece of 2,048 tokens with the memory as it is then.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the text is empty, or another model read the memory.
        NotFiniteError: the model computes NaN; names the first layer that does.
    """
    if memory is not None:
        return memory.append(model, tokenizer, text, name=name, progress=progress)
    return Memory.empty(model, tokenizer)._appended(model, tokenizer, text, name, progress)
