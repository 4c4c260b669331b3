"""Law 2: a sequence may be split anywhere."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
from cases import (
    LOGITS_TOLERANCE,
    SCAN_TOLERANCE,
    Case,
    Code,
    close,
    routed,
    scan,
    tiny_model,
    tokens,
)
from mutant import Mutant


def scan_may_be_split(
    code: Code, case: Case, pieces: Sequence[int], form: str = "factored", chunk_size: int = 8
) -> None:
    """Pieces of these lengths, the state carried = the whole."""
    with code.form(form):
        wanted, last = scan(code, case, chunk_size=chunk_size)
        start, state, ys = 0, case.state, []
        for length in pieces:
            piece = case.tokens(start, start + length, state)
            y, state = scan(code, piece, chunk_size=chunk_size)
            ys.append(y)
            start += length
    assert start == case.length
    close(np.concatenate(ys, axis=1), wanted, SCAN_TOLERANCE, "y")
    close(state, last, SCAN_TOLERANCE, "state")


def model_may_be_split(code: Code, pieces: Sequence[int], **config) -> None:
    """Prefill in pieces, the cache carried = one call."""
    model = tiny_model(code, **config)
    ids = tokens((2, sum(pieces)))
    whole, split = model.make_cache(), model.make_cache()
    wanted = model(ids, whole)
    start, logits = 0, []
    for length in pieces:
        logits.append(model(ids[:, start : start + length], split))
        start += length
    close(mx.concatenate(logits, axis=1), wanted, LOGITS_TOLERANCE, "logits")
    for a, b in zip(split, whole, strict=True):
        close(a[0], b[0], LOGITS_TOLERANCE, "state")


def split_scan(code):
    scan_may_be_split(code, routed((1, 60, 3, 4), 1), [25, 7, 28])


MUTANTS = [
    Mutant(
        "law 2",
        "the state given to the scan is ignored",
        split_scan,
        "ops.scan",
        "memory_scan",
        "state.astype(mx.float32)",
        "mx.zeros_like(state)",
    ),
    Mutant(
        "law 2",
        "the state returned is that before the last chunk",
        split_scan,
        "ops.scan",
        "memory_scan",
        "(y.astype(values.dtype), last)",
        "(y.astype(values.dtype), start[:, -1])",
    ),
    Mutant(
        "law 2",
        "the cache is not written",
        lambda code: model_may_be_split(code, [33, 1, 5]),
        "cache",
        "set_state",
        None,
        "return",
    ),
]
