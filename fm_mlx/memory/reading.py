"""Reading texts of any length into a memory, a piece at a time."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, TextIO, cast

import mlx.core as mx
import numpy as np
from mlx_lm.generate import generation_stream, wired_limit

from fm_mlx.cache import WatchedCache, state_of
from fm_mlx.memory.identity import identity_of
from fm_mlx.memory.memory import Memory, Text, put_state
from fm_mlx.model import Model
from fm_mlx.prefill import prefill
from fm_mlx.support.files import check_regular
from fm_mlx.text import BLOCK, Block, encode_blocks, pieces_of_text

# Tokens that are read at a time; where a text is cut shows in the last bits of the state, so
# that this is no option.
PIECE = 2048

Readable = str | Path | Iterable[str] | TextIO


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
    if memory is None:
        memory = Memory.empty(model, tokenizer)
    else:
        memory.identity.check(identity_of(model, tokenizer), "the memory")
    reading = read(memory, model, tokenizer, text, name=name)
    for memory in reading:
        if progress is not None:
            progress(memory)
    return memory


def read(
    memory: Memory, model: Model, tokenizer: Any, text: Readable, *, name: str | None = None
) -> Iterator[Memory]:
    """Read a text piece by piece; each step is the memory after one more piece.

    The reading may be left after any step. If the last text of the memory is not complete, this
    text must begin with what was read of it, and the reading goes on there, to the same bits.

    Args:
        memory: a memory of this model; it stays as it is.
        model, tokenizer, text, name: as for `remember`.

    Raises:
        ValueError: the text is empty, or it is not the one that was begun.
    """
    return _read(memory, model, tokenizer, text, name or _name_of(text))


def rewind(
    memory: Memory, model: Model, tokenizer: Any, tokens: int, source: str | Path | None = None
) -> Memory:
    """The memory as it was after its first tokens, read again from the snapshot before.

    Args:
        memory: a memory of this model; it stays as it is.
        model: the model.
        tokenizer: its tokenizer.
        tokens: how many tokens to keep, from 0.
        source: the text that the last of them stands in, or the path of its file.

    Raises:
        ValueError: there is no such token; or no snapshot is kept there, and the source is
            absent, another text, or begins after the snapshot.
    """
    seen = memory.tokens_seen
    if not 0 <= tokens <= seen:
        raise ValueError(f"cannot rewind to token {tokens:,}; allowed are 0 to {seen:,}")
    memory.identity.check(identity_of(model, tokenizer), "the memory")
    if tokens == seen:
        return memory.branch()
    kept = [snapshot for snapshot in memory.snapshots if snapshot.tokens <= tokens]
    back = memory.at(kept[-1]) if kept and tokens else Memory.empty(model, tokenizer)
    if back.tokens_seen == tokens:
        return back
    if source is None:
        raise ValueError(
            f"no snapshot after {tokens:,} tokens, and no source to read again; "
            f"{memory.nearest(tokens)}"
        )
    ends = list(accumulate(text.tokens for text in memory.texts))
    number = next(i for i, end in enumerate(ends) if end >= tokens)
    text = memory.texts[number]
    if back.tokens_seen < ends[number] - text.tokens:
        raise ValueError(
            f"the snapshot before token {tokens:,} is after {back.tokens_seen:,}, "
            f"which is before {text.name} begins; {memory.nearest(tokens)}"
        )
    _after(text, _pieces_of(source))  # that it is the whole of what was read
    *_, back = _read(back, model, tokenizer, source, text.name, until=tokens)
    return back


def _read(
    memory: Memory,
    model: Model,
    tokenizer: Any,
    text: Readable,
    name: str,
    until: int | None = None,
) -> Iterator[Memory]:
    """`read`, to its end or until so many tokens were read, those of other texts included."""
    last = memory.texts[-1] if memory.texts else None
    begun = last if last is not None and not last.complete else None
    earlier = memory.texts[:-1] if begun else list(memory.texts)
    done = begun or Text(name, "", 0, 0, 0, complete=False, read_at="")
    characters, sha256 = _after(done, _pieces_of(text))
    blocks = _Blocks(done, sha256)

    cache = [WatchedCache() for _ in model.layers]
    put_state(cache, memory.state, model.args.num_active_states)

    def after(memory: Memory, count: int, ends: bool = False) -> Memory:
        where = f"reading stopped within the first {memory.tokens_seen + count:,} tokens"
        tokens = blocks.take(count)
        with wired_limit(model, cast(Any, [generation_stream])), mx.stream(generation_stream):
            prefill(model, tokens, cache, where)
            log_kept = np.array(mx.stack([layer.take_log_kept() for layer in cache]))
            state = mx.concatenate([cast(mx.array, state_of(layer)) for layer in cache])
            mx.eval(state)
        return memory.followed_by(
            state, memory.log_kept + log_kept, [*earlier, blocks.read(done, complete=ends)]
        )

    for block in encode_blocks(
        tokenizer,
        characters,
        False if earlier else None,
        inside=done.bytes > 0,
        closed=False,
    ):
        blocks.add(block)
        while blocks.waiting > PIECE and (until is None or until - memory.tokens_seen > PIECE):
            memory = after(memory, PIECE)
            yield memory
        if until is not None and until - memory.tokens_seen <= blocks.waiting:
            yield after(memory, until - memory.tokens_seen)
            return
    if blocks.waiting <= 0 or until is not None:
        raise ValueError(
            f"this is not the text {done.name} that was read: it ends before"
            if done.tokens or until is not None
            else f"{name} has no text"
        )
    yield after(memory, blocks.waiting, ends=True)


class _Blocks:
    """Tokenized blocks of a text that wait to be read, and how far it was read."""

    def __init__(self, begun: Text, sha256: Any):
        self._queue: deque[Block] = deque()
        self._sha256 = sha256
        self._bytes = begun.bytes
        self._beyond = begun.beyond
        self._tokens = begun.tokens
        self.waiting = -begun.beyond  # the first block was read in part

    def add(self, block: Block) -> None:
        self._queue.append(block)
        self.waiting += len(block.ids)

    def take(self, count: int) -> list[int]:
        """The next tokens; there are as many."""
        taken: list[int] = []
        while len(taken) < count:
            block = self._queue[0]
            ids = block.ids[self._beyond : self._beyond + count - len(taken)]
            taken += ids
            self._beyond += len(ids)
            if self._beyond == len(block.ids):
                data = block.text.encode()
                self._sha256.update(data)
                self._bytes += len(data)
                self._beyond = 0
                self._queue.popleft()
        self.waiting -= count
        self._tokens += count
        return taken

    def read(self, text: Text, complete: bool) -> Text:
        """The record of the text as far as its tokens were taken."""
        return replace(
            text,
            sha256=self._sha256.hexdigest(),
            bytes=self._bytes,
            beyond=self._beyond,
            tokens=self._tokens,
            complete=complete,
            read_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )


def _after(begun: Text, pieces: Iterable[str]) -> tuple[Iterator[str], Any]:
    """The rest of a text of which a part was read, and the hash of that part, to go on with.

    Raises:
        ValueError: the text does not begin with what was read.
    """
    sha256 = hashlib.sha256()
    pieces = iter(pieces)
    missing, rest = begun.bytes, b""
    while missing > 0:
        data = next(pieces, "").encode()
        if not data:
            break
        sha256.update(data[:missing])
        rest = data[missing:]
        missing -= len(data)
    if begun.bytes and (missing > 0 or sha256.hexdigest() != begun.sha256):
        raise ValueError(
            f"this is not the text {begun.name} that was read: "
            f"its first {begun.bytes:,} bytes are others"
        )
    return chain([rest.decode()], pieces), sha256


def _name_of(text: Readable) -> str:
    if isinstance(text, Path):
        return text.name
    return Path(str(getattr(text, "name", "text"))).name


def _pieces_of(text: Readable) -> Iterator[str]:
    """The characters of a text in pieces, with line ends as ``\\n``."""
    if isinstance(text, Path):
        check_regular(text)
        with text.open(encoding="utf-8") as file:
            try:
                yield from iter(lambda: file.read(BLOCK), "")
            except UnicodeDecodeError as error:
                raise ValueError(f"{text} is not UTF-8 text: {error.reason}") from error
    elif isinstance(text, str):
        yield text
    else:
        yield from pieces_of_text(text) or ()
