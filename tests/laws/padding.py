"""Law 3: a ragged batch equals its rows alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import mlx.core as mx
import numpy as np
from cases import (
    LOGITS_TOLERANCE,
    SCAN_TOLERANCE,
    Case,
    Code,
    close,
    loop,
    routed,
    same_bits,
    scan,
    steps,
    tiny_model,
    tokens,
)
from mlx_lm.models.cache import ArraysCache
from mutant import Mutant


def ragged(lengths: Sequence[int], side: str, garbage: float, seed: int = 0) -> Case:
    """A batch whose rows are padded to the longest with garbage, from a carried state."""
    case = routed((len(lengths), max(lengths), 4, 6), 2, seed)
    position = np.arange(case.length)[None]
    length = np.array(lengths)[:, None]
    mask = position < length if side == "right" else position >= case.length - length
    filled = (np.where(mask[..., None], x, garbage) for x in (case.theta, case.phi, case.values))
    return Case(*(x.astype(np.float32) for x in filled), case.state, mask)


def scan_of_ragged_rows(code: Code, case: Case, form: str = "factored") -> None:
    """memory_scan with a mask = each row's tokens alone; y of a pad is 0."""
    with code.form(form):
        y, state = scan(code, case, chunk_size=8)
        for b in range(len(y)):
            row, real = case.row(b), case.mask[b]
            alone = Case(row.theta[:, real], row.phi[:, real], row.values[:, real], row.state)
            wanted, last = scan(code, alone, chunk_size=8)
            close(y[b : b + 1, real], wanted, SCAN_TOLERANCE, "y")
            close(state[b : b + 1], last, SCAN_TOLERANCE, "state")
            same_bits(y[b, ~real], np.zeros_like(y[b, ~real]), "y of the pads")


def steps_of_ragged_rows(code: Code, case: Case) -> None:
    """memory_step with a mask = the unmasked loop; a masked step keeps the state's bits."""
    close(steps(code, case)[0], loop(case)[0], SCAN_TOLERANCE, "y")
    pads = replace(case, mask=np.zeros_like(case.mask))
    same_bits(steps(code, pads)[1], case.state, "state after pads only")


def model_of_right_padded_rows(code: Code, lengths: Sequence[int] = (40, 3, 75), **config) -> None:
    """A right-padded prompt in two pieces, then decoding = every row alone."""
    model = tiny_model(code, **config)
    longest, cut, more = max(lengths), 35, 3
    ids = tokens((len(lengths), longest + more))
    cache = model.make_cache()
    for layer in cache:
        layer.prepare(lengths=list(lengths))
    prompt = [model(ids[:, :cut], cache), model(ids[:, cut:longest], cache)]
    for layer in cache:
        layer.finalize()
    logits = mx.concatenate(prompt, axis=1)
    decoded = [model(ids[:, t : t + 1], cache) for t in range(longest, longest + more)]
    for b, length in enumerate(lengths):
        alone = model.make_cache()
        wanted = model(ids[b : b + 1, :length], alone)
        close(logits[b : b + 1, :length], wanted, LOGITS_TOLERANCE, f"prompt of row {b}")
        for i, got in enumerate(decoded):
            wanted = model(ids[b : b + 1, longest + i : longest + i + 1], alone)
            close(got[b : b + 1], wanted, LOGITS_TOLERANCE, f"token {i} of row {b}")


def model_of_left_padded_rows(code: Code, lengths: Sequence[int] = (40, 1, 75), **config) -> None:
    """A left-padded prompt in two pieces, then decoding = every row alone."""
    model = tiny_model(code, **config)
    longest, cut, more = max(lengths), 35, 3
    ids = tokens((len(lengths), longest + more))
    padding = [longest - length for length in lengths]
    cache = [ArraysCache(size=1, left_padding=padding) for _ in model.layers]
    pieces = [slice(0, cut), slice(cut, longest)]
    pieces += [slice(t, t + 1) for t in range(longest, longest + more)]
    logits = mx.concatenate([model(ids[:, piece], cache) for piece in pieces], axis=1)
    for b, pads in enumerate(padding):
        wanted = model(ids[b : b + 1, pads:])
        close(logits[b : b + 1, pads:], wanted, LOGITS_TOLERANCE, f"row {b}")


def ragged_scan(code):
    scan_of_ragged_rows(code, ragged([30, 8, 1, 17], "right", 1.0))


def ragged_steps(code):
    steps_of_ragged_rows(code, ragged([12, 5, 1], "right", 1.0))


A_MASK_FOR_WRITES = """
if mask is not None:
    theta, values = (mx.where(mask[..., None], x, 0) for x in (theta, values))
    mask = None
"""


MUTANTS = [
    Mutant(
        "law 3",
        "the scan ignores the mask",
        ragged_scan,
        "ops.scan",
        "split_into_chunks",
        "mx.where(mask[..., None], x, 0)",
        "x",
    ),
    Mutant(
        "law 3",
        "the step ignores the mask",
        ragged_steps,
        "ops.step",
        "_masked",
        "mask is None",
        "True",
    ),
    Mutant(
        "law 3",
        "pads are read, not written",
        ragged_scan,
        "ops.scan",
        "memory_scan",
        None,
        A_MASK_FOR_WRITES,
    ),
    Mutant(
        "law 3",
        "the model asks the cache for no mask (right padding)",
        model_of_right_padded_rows,
        "model",
        "Backbone.__call__",
        "create_ssm_mask(x, cache)",
        "None",
    ),
    Mutant(
        "law 3",
        "the model asks the cache for no mask (left padding)",
        model_of_left_padded_rows,
        "model",
        "Backbone.__call__",
        "create_ssm_mask(x, cache)",
        "None",
    ),
    Mutant(
        "law 3",
        "the cache is not told how far the batch is",
        model_of_right_padded_rows,
        "layer",
        "FactorizationMemory.recurrence",
        "cache.advance(length)",
        "cache.advance(0)",
    ),
]
