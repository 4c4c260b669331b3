"""Reading a text of any length, a piece at a time: from a state to the states after each piece."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any, TextIO, cast

import mlx.core as mx
import numpy as np
from mlx_lm.generate import generation_stream, wired_limit

from fm_mlx.cache import WatchedCache
from fm_mlx.memory.records import Text
from fm_mlx.memory.states import put_states, states_of
from fm_mlx.model import Model
from fm_mlx.prefill import prefill
from fm_mlx.text import Block, encode_blocks, pieces_of_file, pieces_of_text

# Tokens that are read at a time; where a text is cut shows in the last bits of the state, so
# that this is no option.
PIECE = 2048

Readable = str | Path | Iterable[str] | TextIO


def read_text(
    model: Model,
    tokenizer: Any,
    text: Readable,
    state: mx.array,
    done: Text,
    *,
    first: bool,
    before: int = 0,
    until: int | None = None,
) -> Iterator[tuple[mx.array, Text]]:
    """Read a text on from where it was left; the state and the record of it after each piece.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        text: the text from its beginning.
        state: the states of all layers, (layers, m, d) float32.
        done: what was read of the text.
        first: nothing was read before this text, so that special tokens may stand before it.
        before: how many tokens of other texts were read, for messages.
        until: stop after so many tokens of this text.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the text is empty, ends before `until`, or begins with something else than
            what was read of it.
        NotFiniteError: the model computes NaN; names the first layer that does.
    """
    characters, sha256 = _after(done, _pieces_of(text))
    blocks = _Blocks(done, sha256)
    log_kept = done.log_kept
    cache = [WatchedCache() for _ in model.layers]
    put_states(cache, state, model.args.num_active_states)

    def after(count: int, ends: bool = False) -> tuple[mx.array, Text]:
        nonlocal log_kept
        tokens = blocks.take(count)
        where = f"reading stopped within the first {before + blocks.taken:,} tokens"
        with wired_limit(model, cast(Any, [generation_stream])), mx.stream(generation_stream):
            prefill(model, tokens, cache, where)
            log_kept = log_kept + np.array(mx.stack([layer.take_log_kept() for layer in cache]))
            state = states_of(cache)
        return state, blocks.read(done, log_kept, complete=ends)

    for block in encode_blocks(
        tokenizer,
        characters,
        None if first else False,
        inside=done.bytes > 0,
        closed=False,
    ):
        blocks.add(block)
        while blocks.waiting > PIECE and (until is None or until - blocks.taken > PIECE):
            yield after(PIECE)
        if until is not None and until - blocks.taken <= blocks.waiting:
            yield after(until - blocks.taken)
            return
    if blocks.waiting <= 0 or until is not None:
        raise ValueError(
            f"this is not the text {done.name} that was read: it ends before"
            if done.tokens or until is not None
            else f"{done.name} has no text"
        )
    yield after(blocks.waiting, ends=True)


def check_source(text: Readable, done: Text) -> None:
    """Raise unless a text begins with what was read of it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the text begins with something else.
    """
    _after(done, _pieces_of(text))


def name_of(text: Readable) -> str:
    """What a text is called: its file's name without the folder if it has one, else "text"."""
    if isinstance(text, Path):
        return text.name
    return Path(str(getattr(text, "name", "text"))).name


class _Blocks:
    """Tokenized blocks of a text that wait to be read, and how far it was read."""

    def __init__(self, begun: Text, sha256: Any):
        self._queue: deque[Block] = deque()
        self._sha256 = sha256
        self._bytes = begun.bytes
        self._beyond = begun.beyond
        self.taken = begun.tokens
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
        self.taken += count
        return taken

    def read(self, text: Text, log_kept: np.ndarray, complete: bool) -> Text:
        """The record of the text as far as its tokens were taken."""
        return replace(
            text,
            sha256=self._sha256.hexdigest(),
            bytes=self._bytes,
            beyond=self._beyond,
            tokens=self.taken,
            complete=complete,
            read_at=datetime.now(UTC).isoformat(timespec="seconds"),
            log_kept=log_kept,
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


def _pieces_of(text: Readable) -> Iterator[str]:
    """The characters of a text in pieces, with line ends as ``\\n``."""
    if isinstance(text, Path):
        yield from pieces_of_file(text)
    elif isinstance(text, str):
        yield text
    else:
        yield from pieces_of_text(text) or ()
