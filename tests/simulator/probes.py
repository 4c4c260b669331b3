"""Small pieces of Metal, by chapter of the Metal Shading Language specification.

They are in probes.txt. A chapter begins with ``===`` and its title, then what its probes need
before the kernel. After ``---`` come the probes of a feature:

* ``runs``: a number and an expression, or statements that set ``out``. The number is what lane 5
  of a SIMD-group must get, where ``x`` holds 0, 1, .. 255, ``i`` is the lane, ``B`` a barrier
  and ``o + END`` begins 64 zeros of the output. With ``for T in char half`` there is one probe
  for each of the types.
* ``refused``: what the error says behind the line's number, and statements.
* ``missing``: statements that do not compile.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

LANE = 5
FREE = 64
BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup | mem_flags::mem_device);"


@dataclass
class Chapter:
    """A chapter of the specification.

    Attributes:
        title: Its title.
        header: What its probes need before the kernel.
        runs: For each feature, pieces of Metal and what they must give.
        refused: For each feature, what the error says and a piece of Metal.
        missing: For each feature, a piece of Metal.
    """

    title: str
    header: str = ""
    runs: dict[str, list[tuple[str, float]]] = field(default_factory=dict)
    refused: dict[str, tuple[str, str]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def source(self) -> str:
        """One kernel of all probes that run, each in a block of its own."""
        probes = [code for group in self.runs.values() for code, _ in group]
        blocks = []
        for k, code in enumerate(probes):
            text = code if code.endswith((";", "}")) else f"out = float({code});"
            blocks.append(f"{{ float out = 0;\n{text}\nif (i == {LANE}) o[{k}] = out; }}\n")
        return re.sub(r"\bB\b", BARRIER, "".join(blocks)).replace("END", str(len(probes)))

    def numbers(self) -> list[tuple[str, float]]:
        """The probes of the kernel and what they must give."""
        return [probe for group in self.runs.values() for probe in group]


def _chapter(text: str) -> Chapter:
    beginning, *features = re.split(r"^--- ", text, flags=re.MULTILINE)
    title, header = beginning.split("\n", 1)
    chapter = Chapter(title.strip(), header.strip("\n") + "\n")
    for feature in features:
        kind, name, body = re.match(r"(\w+): ([^\n]*)\n(.*)", feature, re.DOTALL).groups()
        # a line that is indented belongs to the one before
        pieces = [piece.strip() for piece in re.split(r"\n(?=\S)", body.strip("\n"))]
        if kind == "runs":
            chapter.runs[name] = [probe for piece in pieces for probe in _probes(piece)]
        elif kind == "refused":
            chapter.refused[name] = tuple(re.split(r":\s+", pieces[0], maxsplit=1))
        else:
            chapter.missing[name] = pieces[0]
    return chapter


def _probes(piece: str) -> list[tuple[str, float]]:
    number, types, code = re.match(
        r"(\S+?)(?: for T in ([\w ]+))?:\s(.*)", piece, re.DOTALL
    ).groups()
    if types is None:
        return [(code, float(number))]
    return [(re.sub(r"\bT\b", name, code), float(number)) for name in types.split()]


CHAPTERS = [
    _chapter(text)
    for text in re.split(
        r"^=== ", (Path(__file__).parent / "probes.txt").read_text(), flags=re.MULTILINE
    )[1:]
]
