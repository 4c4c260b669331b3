"""Text of any length as tokens: block by block, and the tokens are those of the whole text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from fm_mlx.support.files import check_regular

# Characters that are tokenized at a time.
BLOCK = 16384


class Block(NamedTuple):
    """A part of a text that was tokenized by itself.

    Attributes:
        text: The part, as it stands in the text.
        ids: Its token ids, with the special tokens before the first and after the last part.
    """

    text: str
    ids: list[int]


def encode_pieces(
    tokenizer: Any, texts: Iterable[str], add_special_tokens: bool | None = None
) -> Iterator[list[int]]:
    """Token ids of a text that comes in pieces, block by block.

    However the text is cut into pieces, the ids are those of the whole text: it is tokenized in
    blocks that end between two words or lines, where tokenizers split text anyway. Only if
    16,384 characters have no such place they are cut elsewhere, before whitespace if there is
    any; that may change the tokens at the cut.

    Args:
        tokenizer: a tokenizer from `load`, or one of transformers.
        texts: the text, in pieces of any length.
        add_special_tokens: as for `stream_generate`.

    Yields:
        Token ids, never an empty list.
    """
    for block in encode_blocks(tokenizer, texts, add_special_tokens):
        if block.ids:
            yield block.ids


def encode_text(tokenizer: Any, text: str, add_special_tokens: bool | None = None) -> list[int]:
    """Token ids of a whole text, by `encode_pieces`."""
    pieces = encode_pieces(tokenizer, [text], add_special_tokens)
    return [token for ids in pieces for token in ids]


def encode_blocks(
    tokenizer: Any,
    texts: Iterable[str],
    add_special_tokens: bool | None = None,
    *,
    inside: bool = False,
    closed: bool = True,
) -> Iterator[Block]:
    """The blocks of `encode_pieces` with the text of each; together they are the whole text.

    Args:
        tokenizer, texts, add_special_tokens: as for `encode_pieces`.
        inside: the text goes on from a block of the same text: nothing stands before it.
        closed: special tokens may stand after the text as well.
    """
    prefixing = is_prefixing(tokenizer)
    after: list[int] = []
    for count, text in enumerate(blocks_of(texts)):
        if count == 0 and not inside:
            ids = tokenizer.encode(text, add_special_tokens=False)
            if wants_special_tokens(tokenizer, text, add_special_tokens):
                before, after = special_tokens(tokenizer)
                ids = before + ids
        else:
            ids = _encode_inside(tokenizer, text, prefixing)
        yield Block(text, ids)
    if after and closed:
        yield Block("", after)


def wants_special_tokens(tokenizer: Any, text: str, wanted: bool | None) -> bool:
    if wanted is not None:
        return wanted
    first = tokenizer.bos_token
    return first is None or not text.startswith(first)


def special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids a tokenizer puts before and after a text."""
    ids = tokenizer.encode("a", add_special_tokens=False)
    marked = tokenizer.encode("a", add_special_tokens=True)
    for n in range(len(marked) - len(ids) + 1):
        if marked[n : n + len(ids)] == ids:
            return marked[:n], marked[n + len(ids) :]
    return [], []


def is_prefixing(tokenizer: Any) -> bool:
    """Whether the tokenizer puts a space before every text it is given, as Llama 2's does."""
    first, second, both = (
        tokenizer.encode(text, add_special_tokens=False) for text in ("a", " a", "a a")
    )
    return first + second != both


def _encode_inside(tokenizer: Any, block: str, prefixing: bool) -> list[int]:
    """Ids of a block that is not the first."""
    if prefixing:
        # a word in front takes the space that does not belong here; its tokens are dropped
        lead = "a" if block[0].isspace() else "a\n"
        drop = tokenizer.encode(lead, add_special_tokens=False)
        ids = tokenizer.encode(lead + block, add_special_tokens=False)
        if ids[: len(drop)] == drop:
            return ids[len(drop) :]
    return tokenizer.encode(block, add_special_tokens=False)


def blocks_of(texts: Iterable[str], size: int | None = None) -> Iterator[str]:
    """Re-cut a text into blocks of at most ``size`` characters, whatever its pieces were."""
    size = size or BLOCK
    waiting: list[str] = []
    length = 0
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"a piece of the prompt is a {type(text).__name__}; allowed is str")
        waiting.append(text)
        length += len(text)
        if length <= size + 1:
            continue
        text = "".join(waiting)
        start = 0
        while len(text) - start > size + 1:  # one more than a block: the cut looks ahead
            cut = _cut(text, start, start + size)
            yield text[start:cut]
            start = cut
        waiting, length = [text[start:]], len(text) - start
    text = "".join(waiting)
    if len(text) > size:
        cut = _cut(text, 0, size)
        yield text[:cut]
        text = text[cut:]
    if text:
        yield text


def _cut(text: str, start: int, stop: int) -> int:
    """The last place in text[start : stop + 1] to cut at; at or before ``stop``.

    Tokenizers split text before the space between two words and after a line break in front of
    a word. They do not all do so at other whitespace: some join punctuation and line breaks.
    """
    spare = stop
    for place in range(stop, start, -1):
        before, after, next_after = text[place - 1], text[place], text[place + 1 : place + 2]
        if before == "\n" and after.isalpha():
            return place
        if before.isalnum() and after == " " and next_after.isalpha():
            return place
        if spare == stop and after.isspace() and not before.isspace():
            spare = place
    return spare


def pieces_of_text(prompt: Any) -> Iterable[str] | None:
    """The pieces of a prompt in pieces; None for text and for token ids."""
    if isinstance(prompt, (str, mx.array)):
        return None
    if hasattr(prompt, "read"):
        return iter(lambda: prompt.read(BLOCK), "")
    if isinstance(prompt, Iterator) or not isinstance(prompt, Sequence):
        return None if hasattr(prompt, "shape") else prompt
    return prompt if len(prompt) and isinstance(prompt[0], str) else None


def pieces_of_file(path: Path) -> Iterator[str]:
    """The characters of a text file in pieces, with line ends as ``\\n``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no regular file, or not UTF-8.
    """
    check_regular(path)
    with path.open(encoding="utf-8") as file:
        try:
            yield from iter(lambda: file.read(BLOCK), "")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text: {error.reason}") from error
