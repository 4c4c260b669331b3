"""The law of product keys, as functions of the code under test."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from cases import Code, close, same_bits
from mutant import Mutant

from fm_mlx import ops, reference
from laws.rows import AFFINITY_TOLERANCE


def scores_of_halves(half: int, count: int = 40, seed: int = 0) -> np.ndarray:
    """(count, 2 n + 2) float32: logits whose sums are exact, many of them alike, and two rates."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(count, 2 * half + 2)).astype(np.float32)
    scores[::2, :-2] = np.round(scores[::2, :-2])
    scores[:, :-2] = np.round(scores[:, :-2] * 64) / 64
    return scores


def of_rows(scores: np.ndarray) -> np.ndarray:
    """The scores (count, m + 2) of a router with weights for every row."""
    return np.concatenate([reference.product_logits(scores[:, :-2]), scores[:, -2:]], axis=1)


def choice_is_that_among_all_rows(code: Code, half: int, num_active: int) -> None:
    """Indices bit for bit, ties to the lowest row; theta and phi to rounding."""
    scores = scores_of_halves(half)
    got = code.ops.route(mx.array(scores), num_active, 0.5, product_keys=True)
    wanted = ops.route(mx.array(of_rows(scores)), num_active, 0.5)
    same_bits(got.indices, wanted.indices, "rows")
    close(got.theta, wanted.theta, AFFINITY_TOLERANCE, "theta")
    close(got.phi, wanted.phi, AFFINITY_TOLERANCE, "phi")


MUTANTS = [
    Mutant(
        "product keys",
        "the best of a half are not put in order",
        lambda code: choice_is_that_among_all_rows(code, 40, 7),
        "ops.routing",
        "_route_by_product",
        "mx.sort(best.astype(mx.int32), axis=-1)",
        "best.astype(mx.int32)",
    ),
    Mutant(
        "product keys",
        "one row of a half is left out",
        lambda code: choice_is_that_among_all_rows(code, 40, 7),
        "ops.routing",
        "_route_by_product",
        "min(num_active, both // 2)",
        "min(num_active - 1, both // 2)",
    ),
]
