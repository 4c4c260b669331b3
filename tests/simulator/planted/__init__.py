"""Kernels with one planted mistake each, and the correct ones that they are made of."""

from . import (
    arithmetic,
    atomics,
    attention,
    conditions,
    convolutions,
    elementwise,
    language,
    norms,
    quantised,
    reductions,
    scans,
    sorts,
    tiles,
    vectors,
)
from .cases import SCHEDULES, Case, Mistake, Outcome, difference, run, telling

_MODULES = (
    *(elementwise, vectors, arithmetic, quantised),
    *(reductions, norms, sorts, scans),
    *(tiles, convolutions, attention),
    *(conditions, atomics, language),
)
CASES: list[Case] = [case for module in _MODULES for case in module.CASES]

__all__ = ["CASES", "SCHEDULES", "Case", "Mistake", "Outcome", "difference", "run", "telling"]
