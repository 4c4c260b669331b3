"""A broken kernel, which the simulator or a comparison must catch.

A mutant is one piece of Metal text replaced in one kernel, whatever its variables are called.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from fm_mlx.metal_kernels import simulator
from fm_mlx.metal_kernels.catalogue import KERNELS
from fm_mlx.metal_kernels.simulator.language.tokens import Token, tokenize

# Metal text of several mutants.
BARRIER = "metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);"

# Stands between a Metal file and the statements of a kernel.
_BORDER = "// ----"

# Words of Metal that stand for themselves in a pattern, besides functions and macros.
_WORDS = frozenset(
    [
        *("auto", "bool", "const", "constant", "constexpr", "device", "float", "half", "inline"),
        *("int", "long", "metal", "mem_flags", "size_t", "static", "template", "thread"),
        *("threadgroup", "typename", "uint", "ulong", "void"),
        *("break", "continue", "else", "false", "for", "if", "return", "true", "while"),
        *("x", "y", "z"),
    ]
)


def replaced(text: str, old: str, new: str) -> str:
    """Metal text with the tokens that `old` matches replaced by `new`.

    White space, comments and names of variables do not matter: a variable of `old` stands for
    some name, the same one everywhere. Of several matches the one counts whose names are
    those of `old`.

    Raises:
        ValueError: if there is not exactly one match.
    """
    tokens, pattern = tokenize(text), tokenize(old)
    found = []
    for at in range(len(tokens) - len(pattern) + 1):
        part = tokens[at : at + len(pattern)]
        bound: dict[str, str] = {}
        if all(
            (
                _is_variable(pattern, i)
                and token.kind == "name"
                and bound.setdefault(wanted.text, token.text) == token.text
            )
            or token.text == wanted.text
            for i, (wanted, token) in enumerate(zip(pattern, part, strict=True))
        ):
            found.append((part[0].start, part[-1].end, bound))
    if len(found) > 1:
        found = [match for match in found if all(a == b for a, b in match[2].items())]
    if len(found) != 1:
        raise ValueError(f"{len(found)} matches, must be one: {old!r}")
    start, end, bound = found[0]
    new = re.sub(r"[A-Za-z_]\w*", lambda name: bound.get(name[0], name[0]), new)
    return text[:start] + new + text[end:]


def _is_variable(tokens: Sequence[Token], i: int) -> bool:
    text = tokens[i].text
    around = [tokens[j].text if 0 <= j < len(tokens) else "" for j in (i - 1, i + 1)]
    is_named = "::" in around or around[0] == "." or around[1] == "("
    return tokens[i].kind == "name" and not is_named and text not in _WORDS and not text.isupper()


@dataclass(frozen=True)
class Mutant:
    """`old` of a kernel's Metal text becomes `new`; `check` must not pass."""

    kernel: str
    name: str
    check: Callable[[], object]
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.kernel}: {self.name}"

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the kernel is the broken one.

        Raises:
            ValueError: if `old` does not match exactly once.
        """
        kernel = KERNELS[self.kernel]
        header, body = kernel.header, kernel.body
        # the kernel's own statements stand behind its file
        kernel.header, kernel.body = replaced(
            f"{header}\n{_BORDER}\n{body}", self.old, self.new
        ).split(f"\n{_BORDER}\n")
        whole = vars(kernel).pop("simulated", None)
        try:
            yield
        finally:
            kernel.header, kernel.body = header, body
            vars(kernel).pop("simulated", None)
            if whole is not None:
                kernel.simulated = whole

    def found(self) -> str | None:
        """What was found, by the simulator or by the oracle; None if nothing."""
        try:
            with self.applied():
                self.check()
        except simulator.SimulationError as error:
            return "simulator: " + ", ".join(sorted({f.kind for f in error.report.findings}))
        except AssertionError as error:
            return "oracle: " + (str(error) or "assertion failed").splitlines()[0]
        return None
