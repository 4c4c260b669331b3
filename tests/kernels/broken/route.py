"""Broken copies of route.metal."""

from __future__ import annotations

import checks
import mlx.core as mx
from checks import rounded
from kernel_mutant import Mutant


def route() -> None:
    """Three levels of logits, cut within the first, the second and the third 32 rows."""
    for num_active in (3, 20, 40):
        checks.route(rounded(checks.logits_with_ties(3, 70), mx.float32), num_active)


def route_large_logits() -> None:
    checks.route(rounded(checks.logits_with_ties(3, 70) * 100, mx.float32), 3)


MUTANTS = [
    Mutant(
        "route_dense",
        "ties go to the highest index",
        route,
        "equals_before = metal::simd_prefix_exclusive_sum(equal)",
        "equals_before = metal::simd_sum(equal) - 1 - metal::simd_prefix_exclusive_sum(equal)",
    ),
    Mutant(
        "route_dense",
        "of equal rows one too many is active",
        route,
        "equals_before < equals_wanted",
        "equals_before <= equals_wanted",
    ),
    Mutant(
        "route_dense",
        "ties are counted anew for every 32 rows",
        route,
        "equals_wanted -= metal::simd_sum(equal);",
        "",
    ),
    Mutant(
        "route_dense",
        "off-by-one tail: a row past the last one is read",
        route,
        "logit[j] = row < num_rows ?",
        "logit[j] = row <= num_rows + 2 ?",
    ),
    Mutant(
        "route_dense",
        "off-by-one tail: the last row is not written",
        route,
        "if (row < num_rows) {",
        "if (row < num_rows - 1) {",
    ),
    Mutant(
        "route_dense",
        "negative logits order like positive ones",
        route,
        "? ~bits : bits | 0x80000000u",
        "? bits : bits | 0x80000000u",
    ),
    Mutant(
        "route_dense",
        "the k best are not renormalised",
        route,
        "alpha[j] /= total;",
        "",
    ),
    Mutant(
        "route_dense",
        "the softmax does not subtract the largest logit",
        route_large_logits,
        "metal::exp((logit[j] - largest) / temperature)",
        "metal::exp(logit[j] / temperature)",
    ),
    Mutant(
        "route_dense",
        "temperature is forgotten",
        route,
        "(logit[j] - largest) / temperature",
        "(logit[j] - largest)",
    ),
]
