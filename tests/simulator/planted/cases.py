"""What a case is: a correct kernel with its launch, and the mistakes that can be planted in it.

A mistake is an edit of the kernel or of its launch, so that the wrong kernel differs from a
correct one in that alone. Where it must be seen is marked in the text of the edit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.core as mx
import numpy as np

from fm_mlx.metal_kernels import simulator
from fm_mlx.metal_kernels.simulator import Finding

# A line that ends so is one where the mistake must be seen.
MARK = "// <- here"

SCHEDULES = ("forward", "random")

# How a kernel ends that never runs: the simulator raises instead of reporting a finding.
REFUSED = "refused"

RACES = frozenset(
    {"race-read-after-write", "race-write-after-read", "race-write-after-write", "race-same-value"}
)

# Relative and absolute error of results; integers and bools are exact.
_TOLERANCE = {mx.float32: 2e-5, mx.float16: 2e-3, mx.bfloat16: 1.6e-2}


@dataclass(frozen=True)
class Mistake:
    """One change that makes a kernel wrong.

    Attributes:
        name: What is wrong, in words.
        kinds: The kinds of findings of which any tells it; the first one says best what it is.
        edits: Pieces of the source or the header, and what stands there instead. White space
            is not compared; a piece must occur exactly once.
        changes: Fields of the case that change: those of the launch.
    """

    name: str
    kinds: tuple[str, ...]
    edits: Mapping[str, str] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """A correct kernel as MLX developers write it.

    Attributes:
        name: The name of the kernel.
        about: What it does, and what a checker might wrongly say of it.
        source: The body of the kernel, in Metal.
        inputs: Its inputs by name.
        outputs: Shape and dtype of its outputs by name.
        grid: The number of threads.
        threadgroup: The number of threads in a threadgroup.
        computes: What it must compute: NumPy arrays of the inputs in order to the output, or a
            tuple of them.
        header: What stands before the kernel.
        template: Its template arguments.
        init_value: What outputs hold before the launch.
        make: Further arguments of `metal_kernel`.
        timeout: Seconds for a launch.
        orders: How many orders every launch has.
        nan: Whether NaN is watched.
        mistakes: Those to plant in it.
    """

    name: str
    about: str
    source: str
    inputs: Mapping[str, mx.array]
    outputs: Mapping[str, tuple[tuple[int, ...], mx.Dtype]]
    grid: tuple[int, int, int]
    threadgroup: tuple[int, int, int]
    computes: Callable[..., Any]
    header: str = ""
    template: tuple[tuple[str, Any], ...] = ()
    init_value: float | None = None
    make: Mapping[str, Any] = field(default_factory=dict)
    timeout: float = 60
    orders: int = 1
    nan: bool = False
    mistakes: tuple[Mistake, ...] = ()

    def planted(self, mistake: Mistake) -> Case:
        """The case with a mistake in it."""
        texts = {"header": self.header, "source": self.source}
        for old, new in mistake.edits.items():
            texts = _edited(texts, old, new, self.name)
        return replace(self, **{**texts, **mistake.changes})

    def marked(self) -> set[tuple[str, int]]:
        """Files and lines that bear the mark."""
        return {
            (file, number)
            for file, text in (("header", self.header), ("source", self.source))
            for number, line in enumerate(text.split("\n"), 1)
            if line.rstrip().endswith(MARK)
        }


@dataclass(frozen=True)
class Outcome:
    """What a launch gave: findings, and the outputs unless it never ran."""

    findings: tuple[Finding, ...]
    outputs: tuple[mx.array, ...] = ()


def mistake(name: str, kinds: str, edits: Mapping[str, str] | None = None, **changes) -> Mistake:
    """A mistake of which any of several kinds, with blanks between them, tells."""
    return Mistake(name, tuple(kinds.split()), edits or {}, changes)


def run(case: Case, order: str) -> Outcome:
    """Launch the kernel of a case; no finding raises."""
    kernel = simulator.metal_kernel(
        name=case.name,
        input_names=list(case.inputs),
        output_names=list(case.outputs),
        source=case.source,
        header=case.header,
        **case.make,
    )
    try:
        chosen = {"timeout": case.timeout, "orders": case.orders, "nan": case.nan}
        with simulator.options(order=order, seed=1, fatal=(), **chosen):
            outputs = kernel(
                inputs=list(case.inputs.values()),
                output_shapes=[shape for shape, _ in case.outputs.values()],
                output_dtypes=[dtype for _, dtype in case.outputs.values()],
                grid=case.grid,
                threadgroup=case.threadgroup,
                template=list(case.template) or None,
                init_value=case.init_value,
            )
    except simulator.CompileError:
        assert kernel.report
        return Outcome(tuple(kernel.report.findings))
    except ValueError as error:
        return Outcome((Finding(REFUSED, str(error)),))
    assert kernel.report
    return Outcome(tuple(kernel.report.findings), tuple(outputs))


def telling(case: Case, mistake: Mistake, findings: Iterable[Finding]) -> Finding | None:
    """The finding that tells a mistake planted in a case: of the right kind, at the right place.

    A race has two places, and the schedule decides which of the two accesses comes second.
    Where no line is marked there is none to tell.
    """
    places = case.planted(mistake).marked()
    for finding in findings:
        lines = {finding.line, finding.other_line} if finding.kind in RACES else {finding.line}
        if finding.kind in mistake.kinds and (
            not places or places & {(finding.file, line) for line in lines}
        ):
            return finding
    return None


def difference(case: Case, outputs: Iterable[mx.array]) -> str | None:
    """How the outputs differ from what the kernel must compute; None if they do not."""
    wanted = case.computes(*map(as_numpy, case.inputs.values()))
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    for (name, (shape, dtype)), got, value in zip(
        case.outputs.items(), outputs, wanted, strict=True
    ):
        got, value = as_numpy(got), np.broadcast_to(value, shape)
        tolerance = _TOLERANCE.get(dtype, 0)
        close = np.isclose(got, value, rtol=tolerance, atol=tolerance, equal_nan=True)
        if not close.all():
            at = tuple(map(int, np.argwhere(~close)[0]))
            return f"{name}{list(at)} is {got[at]}, not {value[at]}"
    return None


def as_numpy(array: mx.array) -> np.ndarray:
    """An MLX array in NumPy, which has no bfloat16."""
    return np.array(array.astype(mx.float32) if array.dtype == mx.bfloat16 else array)


def normal(*shape: int, seed: int = 0, dtype: mx.Dtype = mx.float32) -> mx.array:
    """Normally distributed numbers."""
    return mx.array(np.random.default_rng(seed).standard_normal(shape, np.float32)).astype(dtype)


def integers(
    low: int, high: int, *shape: int, seed: int = 0, dtype: mx.Dtype = mx.int32
) -> mx.array:
    """Integers from `low` up to and without `high`."""
    return mx.array(np.random.default_rng(seed).integers(low, high, shape)).astype(dtype)


def _edited(texts: dict[str, str], old: str, new: str, name: str) -> dict[str, str]:
    """The texts with a piece that occurs once replaced."""
    pattern = re.compile(r"\s+".join(map(re.escape, old.split())))
    places = [(file, m) for file, text in texts.items() for m in pattern.finditer(text)]
    if len(places) != 1:
        raise ValueError(f"{name}: {old!r} occurs {len(places)} times; once is allowed")
    ((file, match),) = places
    text = texts[file]
    return {**texts, file: text[: match.start()] + new + text[match.end() :]}
