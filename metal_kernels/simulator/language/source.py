"""The Metal source of a kernel in its parts, and what its signature says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .tokens import (
    Token,
    matching,
    split_at_commas,
    template_end,
    tokenize,
)


@dataclass(frozen=True)
class Parameter:
    """A parameter of a kernel function.

    Attributes:
        name: The name of the parameter.
        type: Its type as declared, with its address space, pointer or reference.
        attribute: Either "buffer", or the thread attribute that it takes.
    """

    name: str
    type: str
    attribute: str

    @property
    def is_reference(self) -> bool:
        return self.type.endswith("&")


@dataclass(frozen=True)
class KernelSource:
    """A whole Metal source in the parts that are compiled, around its kernel function.

    Attributes:
        name: The name of the kernel function.
        header: What stands before the function.
        signature: The text up to and with the brace that opens its body.
        body: The text up to and with the brace that closes it.
        template: Its template arguments with their brackets; empty if there are none.
        parameters: Its parameters in order.
    """

    name: str
    header: str
    signature: str
    body: str
    template: str
    parameters: tuple[Parameter, ...]


def read_source(text: str) -> KernelSource:
    """The parts of a Metal source around its last kernel function.

    Raises:
        ValueError: if there is no kernel function.
    """
    tokens = tokenize(text)
    start, name_at = _kernel_function(tokens)
    opened = name_at + 1
    closed = matching(tokens, opened)
    body = closed + 1
    end = matching(tokens, body)
    first = _template_start(tokens, start)
    return KernelSource(
        name=tokens[name_at].text,
        header=text[: tokens[first].start],
        signature=text[tokens[first].start : tokens[body].end],
        body=text[tokens[body].end : tokens[end].end],
        template=_template_arguments(text, tokens[end + 1 :], tokens[name_at].text),
        parameters=tuple(map(_parameter, split_at_commas(tokens[opened + 1 : closed]))),
    )


def _kernel_function(tokens: Sequence[Token]) -> tuple[int, int]:
    """Where ``[[kernel]] void name (`` begins, and where its name stands.

    The last one: the header may have kernel functions of its own.
    """
    texts = [token.text for token in tokens]
    for i in reversed(range(len(texts) - 5)):
        if texts[i : i + 4] == ["[[", "kernel", "]]", "void"] and texts[i + 5] == "(":
            return i, i + 4
        if texts[i : i + 2] == ["kernel", "void"] and texts[i + 3] == "(":
            return i, i + 2
    raise ValueError("there is no kernel function in the Metal source")


def _template_start(tokens: Sequence[Token], kernel_at: int) -> int:
    """Where ``template <...>`` before the kernel begins, or the kernel itself."""
    for i in range(kernel_at - 1, -1, -1):
        if tokens[i].text in (";", "}"):
            break
        if tokens[i].text == "template" and template_end(tokens, i + 1) == kernel_at - 1:
            return i
    return kernel_at


def _template_arguments(text: str, tokens: Sequence[Token], name: str) -> str:
    """``<...>`` of the explicit instantiation that follows the kernel."""
    for i in range(len(tokens) - 1):
        if tokens[i].text == name and tokens[i + 1].text == "<":
            end = template_end(tokens, i + 1)
            return text[tokens[i + 1].start : tokens[end].end]
    return ""


def _parameter(tokens: Sequence[Token]) -> Parameter:
    bracket = next(i for i, token in enumerate(tokens) if token.text == "[[")
    words = [token.text for token in tokens[:bracket]]
    return Parameter(words[-1], _joined(words[:-1]), tokens[bracket + 1].text)


def _joined(words: Sequence[str]) -> str:
    """Words with a blank where two names meet."""
    joined = ""
    for word in words:
        blank = joined[-1:].isidentifier() or joined[-1:].isdigit()
        joined += (" " if blank and (word[0].isalnum() or word[0] == "_") else "") + word
    return joined
