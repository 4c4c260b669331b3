"""What a simulated launch tells: findings, and the memory traffic of every buffer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Finding:
    """Something that is wrong, or worth knowing.

    Attributes:
        kind: What it is, one of `simulator.KINDS`.
        message: What it is, in words.
        file: Where it is: "source", "header", or the name of a Metal header.
        line: The line in that file, counted from 1; 0 if it is not known.
        column: The column in that line, counted from 1; 0 if it is not known.
        buffer: The buffer or threadgroup variable that it is about; empty if there is none.
        offset: How many bytes into the buffer it is.
        thread: The index of the thread in its threadgroup; None if none is at fault.
        threadgroup: The position of the threadgroup in the grid.
        other_thread: The thread that it conflicts with, by its index in its own threadgroup.
        other_line: The line of that thread's access; 0 if there is none.
        count: How often it happened.
    """

    kind: str
    message: str
    file: str = ""
    line: int = 0
    column: int = 0
    buffer: str = ""
    offset: int = 0
    thread: int | None = None
    threadgroup: tuple[int, int, int] = (0, 0, 0)
    other_thread: int | None = None
    other_line: int = 0
    count: int = 1

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}" if self.file else "launch"
        words = [f"{where}: {self.kind}: {self.message}"]
        if self.buffer:
            words.append(f"in {self.buffer}")
        if self.thread is not None:
            words.append(f"by thread {self.thread} of threadgroup {self.threadgroup}")
        if self.other_thread is not None:
            words.append(f"against thread {self.other_thread}")
        if self.other_line:
            words.append(f"(line {self.other_line})")
        if self.count > 1:
            words.append(f"x{self.count}")
        return " ".join(words)


@dataclass(frozen=True)
class Note:
    """What a thread logged, or a step of one that was traced.

    Attributes:
        thread: The position of the thread in the grid.
        file: Where it is: "source" or "header".
        line: The line in that file, counted from 1.
        text: What was logged, or what the step did: ``sum = 1.5``, ``x[3] is 2``, ``o[3] = 4``.
    """

    thread: tuple[int, int, int]
    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.thread} {self.file}:{self.line}: {self.text}"


@dataclass(frozen=True)
class Traffic:
    """Loads, or stores, of a buffer.

    Attributes:
        count: How many accesses single lanes made.
        bytes: How many bytes the lanes asked for.
        sector_bytes: The bytes of 32-byte sectors, counted once per SIMD-group between two
            synchronisations: how well neighbouring lanes share a transaction.
        threadgroup_bytes: Distinct bytes, counted once per threadgroup: as with a perfect cache in
            each.
        unique_bytes: Distinct bytes of the whole launch: the least possible.
    """

    count: int = 0
    bytes: int = 0
    sector_bytes: int = 0
    threadgroup_bytes: int = 0
    unique_bytes: int = 0


@dataclass(frozen=True)
class Buffer:
    """A buffer of a launch.

    Attributes:
        kind: Either "input", "output", "threadgroup" or "constant".
        size: Its bytes.
        loads, stores: What was moved.
        unwritten_bytes: Of an output: bytes that nobody wrote.
        map: With ``options(maps=True)``, bytes moved: (2, 64, 256), loads and stores, by
            threadgroups that follow one another and by parts of the buffer.
    """

    kind: str
    size: int
    loads: Traffic = field(default_factory=Traffic)
    stores: Traffic = field(default_factory=Traffic)
    unwritten_bytes: int = 0
    map: np.ndarray | None = None


@dataclass(frozen=True)
class Report:
    """What the last launch of a kernel did.

    Attributes:
        name: The name of the kernel.
        findings: What was found, in the order in which it came up, once per kind and place.
        buffers: The buffers of the signature and the threadgroup variables, by name.
        threads: How many threads ran.
        threadgroups: How many threadgroups ran.
        barriers: How many threadgroup barriers were passed, counted once per threadgroup.
        simd_operations: How many SIMD-group functions were called, counted once per lane.
        atomics: How many atomic operations were made.
        threadgroup_memory: The bytes of threadgroup memory of a threadgroup.
        logged: What the kernel logged with ``os_log_default.log`` and its like, in order.
        steps: The steps of the thread that was traced (`trace`), in order.
    """

    name: str
    findings: list[Finding]
    buffers: dict[str, Buffer]
    threads: int = 0
    threadgroups: int = 0
    barriers: int = 0
    simd_operations: int = 0
    atomics: int = 0
    threadgroup_memory: int = 0
    logged: list[Note] = field(default_factory=list)
    steps: list[Note] = field(default_factory=list)

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of all findings."""
        return frozenset(finding.kind for finding in self.findings)

    def __str__(self) -> str:
        lines = [
            f"{self.name}: {self.threads} threads in {self.threadgroups} threadgroups, "
            f"{self.barriers} barriers, {self.threadgroup_memory} bytes of threadgroup memory",
            *(f"  {finding}" for finding in self.findings or ["no findings"]),
        ]
        rows = [("buffer", "kind", "size", "loaded", "sectors", "stored", "sectors")]
        rows += [
            (
                name,
                buffer.kind,
                buffer.size,
                buffer.loads.bytes,
                buffer.loads.sector_bytes,
                buffer.stores.bytes,
                buffer.stores.sector_bytes,
            )
            for name, buffer in self.buffers.items()
        ]
        return "\n".join([*lines, *_aligned(rows)])


def _aligned(rows: Sequence[Sequence[object]]) -> list[str]:
    """Rows of a table as lines; all but the first two cells of a row are aligned to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        padded = [
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  " + "  ".join(padded))
    return lines
