"""What simulated kernels did and what was found, as a test run or a script tells it."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..kernel import Kernel
from ..listeners import listen
from ..report import Finding, Report
from ..settings import current
from .places import place

NOT_ON_THE_CPU = "MLX's CPU back-end has no such operation; a Mac's GPU does it"

# What MLX says of an operation that its CPU back-end does not have.
_MISSING = re.compile(r"\[[\w:]+::eval(_cpu)?\]|only supported on the GPU|^NYI$")


@dataclass(frozen=True)
class Found:
    """A finding, and where in the user's files.

    Attributes:
        kernel: The name of the kernel.
        kind: What it is, one of `simulator.KINDS`.
        text: It in words.
        path: The file that the Metal text stands in, from the working directory if inside.
        line: The line.
        fatal: Whether it fails what made it.
    """

    kernel: str
    kind: str
    text: str
    path: str
    line: int
    fatal: bool

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.kind}: {self.text} [{self.kernel}]"


@dataclass
class Record:
    """The launches of a test or a script by kernel, and what was found, each once."""

    launches: Counter[str] = field(default_factory=Counter)
    found: list[Found] = field(default_factory=list)

    @property
    def fatal(self) -> list[Found]:
        return [found for found in self.found if found.fatal]

    def add(self, kernel: Kernel, report: Report) -> None:
        """Note a launch."""
        self.launches[report.name] += 1
        for finding in report.findings:
            found = _found(kernel, report, finding)
            key = (found.kernel, found.kind, found.path, found.line)
            if key not in {(f.kernel, f.kind, f.path, f.line) for f in self.found}:
                self.found.append(found)

    def to_json(self) -> dict[str, Any]:
        return {"launches": dict(self.launches), "found": [asdict(f) for f in self.found]}

    @staticmethod
    def from_json(record: dict[str, Any]) -> Record:
        return Record(Counter(record["launches"]), [Found(**f) for f in record["found"]])


def _found(kernel: Kernel, report: Report, finding: Finding) -> Found:
    def place_of(line: int) -> tuple[str, int]:
        return place(kernel.definition, kernel.made_at, finding.file, line)

    path, line = place_of(finding.line)
    if finding.other_line:
        finding = replace(finding, other_line=place_of(finding.other_line)[1])
    relative = os.path.relpath(path)
    return Found(
        report.name,
        finding.kind,
        str(finding).partition(f"{finding.kind}: ")[2],
        path if relative.startswith("..") else relative,
        line,
        finding.kind in current().fatal,
    )


@contextmanager
def recorded(record: Record) -> Iterator[Record]:
    """Note in a record the launches of kernels that do not raise by themselves."""

    def note(kernel: Kernel, report: Report) -> None:
        if not kernel.raises:
            record.add(kernel, report)

    with listen(note):
        yield record


def table(records: Iterable[Record]) -> list[str]:
    """A line for every kernel: its launches, and how often which kind was found."""
    launches: Counter[str] = Counter()
    kinds: dict[str, Counter[str]] = {}
    for record in records:
        launches += record.launches
        for found in record.found:
            kinds.setdefault(found.kernel, Counter())[found.kind] += 1
    rows = [("kernel", "launches", "found")]
    for name, count in sorted(launches.items()):
        found = ", ".join(f"{kind} x{n}" for kind, n in sorted(kinds.get(name, {}).items()))
        rows.append((name, str(count), found or "nothing"))
    widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
    return [f"{name:<{widths[0]}}  {n:>{widths[1]}}  {found}" for name, n, found in rows]


def distinct(records: Iterable[Record]) -> list[Found]:
    """What was found in any of the records, each place once, the fatal ones first."""
    places = {(f.kernel, f.kind, f.path, f.line): f for record in records for f in record.found}
    return sorted(places.values(), key=lambda f: (not f.fatal, f.path, f.line, f.kind))


def is_not_on_the_cpu(error: BaseException) -> bool:
    """Whether an error, or one that caused it, is MLX's for an operation that a GPU must do."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, RuntimeError | ValueError) and _MISSING.search(str(seen)):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
