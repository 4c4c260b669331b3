"""Texts as tokens to measure with."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fm_mlx.text import encode_blocks, pieces_of_file


class Tokens(NamedTuple):
    """The beginning of a text as tokens.

    Attributes:
        ids: (n,) int32, without special tokens.
        bytes_per_token: Of the text that was tokenized.
    """

    ids: np.ndarray
    bytes_per_token: float


def read_tokens(tokenizer: Any, path: Path, limit: int) -> Tokens:
    """The first tokens of a text file, of which no more is read than they take.

    Args:
        tokenizer: a tokenizer from `load`, or one of transformers.
        path: a file in UTF-8.
        limit: how many tokens at most.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no regular file, not UTF-8, or empty.
    """
    parts: list[np.ndarray] = []
    tokens = size = 0
    for block in encode_blocks(tokenizer, pieces_of_file(path), False, closed=False):
        parts.append(np.array(block.ids, np.int32))
        tokens += len(block.ids)
        size += len(block.text.encode())
        if tokens >= limit:
            break
    if not tokens:
        raise ValueError(f"{path} has no text")
    return Tokens(np.concatenate(parts)[:limit], size / tokens)


def encode_inside(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a short text that stands within another."""
    blocks = encode_blocks(tokenizer, [text], False, inside=True, closed=False)
    return [token for block in blocks for token in block.ids]
