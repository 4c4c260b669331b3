"""Mistakes that a launch shows by its arguments, not by what its threads do."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..kinds import STRIDES_IGNORED, TOO_LARGE
from ..language.source import KernelSource
from ..report import Finding, Report
from .arrays import HostArray

_MOST_THREADS = 1024

# Entries of a compute function's table of buffers (Metal Feature Set Tables, all Apple GPUs).
_MOST_BUFFERS = 31


def check_sizes(
    name: str, grid: Sequence[int], threadgroup: Sequence[int], outputs: Sequence[Sequence[int]]
) -> None:
    """Refuse a launch that no GPU takes.

    Args:
        name: the name of the kernel.
        grid, threadgroup: three numbers each.
        outputs: the shapes of the outputs; a grid may be empty if all of them are.

    Raises:
        ValueError: if a size is less than 1, or a threadgroup has too many threads.
    """
    empty = all(math.prod(shape) == 0 for shape in outputs)
    for what, sizes, least in (("grid", grid, 0 if empty else 1), ("threadgroup", threadgroup, 1)):
        if min(sizes) < least:
            raise ValueError(
                f"{what} {tuple(sizes)} of kernel {name!r}: allowed are sizes of at least {least}"
            )
    if (threads := math.prod(threadgroup)) > _MOST_THREADS:
        raise ValueError(
            f"threadgroup {tuple(threadgroup)} of kernel {name!r} has {threads} threads; "
            f"allowed are {_MOST_THREADS}"
        )


def too_large(source: KernelSource) -> list[Finding]:
    """A finding if the kernel has more buffers than a GPU has places for."""
    buffers = [p for p in source.parameters if p.attribute == "buffer"]
    if len(buffers) <= _MOST_BUFFERS:
        return []
    message = (
        f"{len(buffers)} buffers, the shapes, strides and dimensions of inputs among them; "
        f"a GPU takes {_MOST_BUFFERS}"
    )
    return [Finding(TOO_LARGE, message, buffer=buffers[_MOST_BUFFERS].name)]


def strides_ignored(definition: dict[str, Any], inputs: Sequence[HostArray]) -> list[Finding]:
    """Findings for inputs in another layout than by rows that the kernel takes for rows.

    A kernel whose text speaks of strides at all is taken at its word.
    """
    if definition["ensure_row_contiguous"]:
        return []
    if re.search("stride", definition["source"] + definition["header"], re.IGNORECASE):
        return []
    return [
        Finding(
            STRIDES_IGNORED,
            f"{name} of shape {host.numbers.shape} is not contiguous by rows, "
            f"ensure_row_contiguous=False hands it over as it is, and the source never uses "
            f"{name}_strides",
            *_first_use(name, definition["source"]),
            buffer=name,
        )
        for name, host in zip(definition["input_names"], inputs, strict=True)
        if not host.numbers.flags.c_contiguous
    ]


def _first_use(name: str, source: str) -> tuple[str, int]:
    """The file and the line where a source first reads an input, if it does."""
    for number, line in enumerate(source.split("\n"), 1):
        if re.search(rf"(?<![.\w]){re.escape(name)}\b", line):
            return "source", number
    return "", 0


def add_advice(report: Report, grid: Sequence[int], threadgroup: Sequence[int]) -> None:
    """Say that a grid counts threads where one smaller than a threadgroup leaves bytes out."""
    if math.prod(grid) >= math.prod(threadgroup):
        return
    advice = (
        f"; the grid counts threads: {tuple(grid)} launched 1 threadgroup of {math.prod(grid)}, "
        f"not of {math.prod(threadgroup)}"
    )
    report.findings[:] = [
        replace(f, message=f.message + advice) if f.kind == "unwritten-output" else f
        for f in report.findings
    ]
