"""Tokens as text that can be seen, whatever is in them."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Any

# White space and control characters that have a sign of their own; DEL's is not beside the others.
_SIGNS = {"\n": "⏎", "\t": "⇥", "\x7f": "␡"}


class TokenTexts:
    """The text of each token as it stands inside a text, made visible by `visible`.

    A token that is part of a character, or has no text, is shown by the tokenizer's name for it.

    Args:
        tokenizer: a tokenizer from `load`.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        # alone a token may lose the space in front of it
        self._lead = tokenizer.encode("a", add_special_tokens=False)
        self._before = tokenizer.decode(self._lead)
        self._known: dict[int, str] = {}

    def __call__(self, ids: Iterable[int]) -> list[str]:
        return [self._of(token) for token in ids]

    def _of(self, token: int) -> str:
        if token not in self._known:
            self._known[token] = visible(self._decoded(token))
        return self._known[token]

    def _decoded(self, token: int) -> str:
        text = self._tokenizer.decode([*self._lead, token])
        text = text[len(self._before) :] if text.startswith(self._before) else ""
        if text and "\N{REPLACEMENT CHARACTER}" not in text:
            return text
        return str(self._tokenizer.convert_ids_to_tokens(token) or f"<{token}>")


def visible(text: str) -> str:
    """The text with signs for what would not be seen, or would change how the rest is seen.

    Line ends, tabs and control characters get a sign of Unicode; other white space, characters
    without a width and those that turn the direction of writing get their number, "<U+202E>".
    The ordinary space stays.
    """
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    if character in _SIGNS:
        return _SIGNS[character]
    if character < " ":
        return chr(0x2400 + ord(character))
    if character != " " and unicodedata.category(character)[0] in "CZ":
        return f"<U+{ord(character):04X}>"
    return character
