"""Texts that share a row with resets between them are the texts alone."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from cases import Code, routed
from mutant import Mutant

# Resets by row: in and at the ends of chunks, one after the other, at the first and the last
# token; from 77 on there is none.
LENGTH = 77
STARTS = [[5, 37, 64, 77], [0, 32, 33, 76], [77, 77, 77, 77]]


def packed_is_separate(code: Code, form: str = "factored", chunk_size: int | None = None) -> None:
    """Outputs, last states, and gradients of every input, against one scan for each text."""
    rows, width = 5, 8
    theta, phi, values, state = routed((len(STARTS), LENGTH, rows, width), 2).arrays()[:4]
    mx.random.seed(1)
    restart = mx.random.normal((rows, width))
    weight, last_weight = mx.random.normal(values.shape), mx.random.normal(state.shape)
    starts = mx.array(STARTS)

    def packed(theta, phi, values, state, restart):
        y, last = code.ops.memory_scan(
            theta,
            phi,
            values,
            state,
            chunk_size=chunk_size,
            reset_positions=starts,
            reset_state=restart,
        )
        return (y * weight).sum() + (last * last_weight).sum(), y, last

    def separate(theta, phi, values, state, restart):
        texts, lasts = [], []
        for row, cuts in enumerate(STARTS):
            begin = [cut for cut in cuts if cut < LENGTH]
            parts = []
            last = state[row : row + 1]
            for start, stop in zip([0, *begin], [*begin, LENGTH], strict=True):
                last = restart[None] if start in begin else last
                if start < stop:
                    part = slice(start, stop)
                    of_row = (x[row : row + 1, part] for x in (theta, phi, values))
                    y, last = code.ops.memory_scan(*of_row, last, chunk_size=chunk_size)
                    parts.append(y)
            texts.append(mx.concatenate(parts, axis=1))
            lasts.append(last)
        y, last = mx.concatenate(texts), mx.concatenate(lasts)
        return (y * weight).sum() + (last * last_weight).sum(), y, last

    inputs = theta, phi, values, state, restart
    with code.form(form):
        (_, *got), gradients = mx.value_and_grad(packed, argnums=range(5))(*inputs)
        (_, *wanted), wanted_gradients = mx.value_and_grad(separate, argnums=range(5))(*inputs)
    for name, x, y in zip(("y", "last"), got, wanted, strict=True):
        _agree(name, x, y, 1e-6)
    names = ("theta", "phi", "values", "state", "restart")
    for name, x, y in zip(names, gradients, wanted_gradients, strict=True):
        _agree(f"gradient of {name}", x, y, 5e-6)


def _agree(name: str, got: mx.array, wanted: mx.array, tolerance: float) -> None:
    got, wanted = np.array(got), np.array(wanted)
    error = np.abs(got - wanted).max() / np.abs(wanted).max()
    assert error < tolerance, f"{name} is off by {error:.1e} of the largest"


def nothing_leaks(code: Code) -> None:
    """What stands before a reset changes nothing after it, to the last bit."""
    theta, phi, values, state = routed((1, 70, 4, 6), 2).arrays()[:4]
    starts = mx.array([[41]])
    y, last = code.ops.memory_scan(theta, phi, values, state, reset_positions=starts)
    values[:, :41] = 1e3 * values[:, :41]
    others = code.ops.memory_scan(theta, phi, values, 7 * state, reset_positions=starts)
    assert mx.array_equal(y[:, 41:], others[0][:, 41:]), "outputs after a reset feel what was"
    assert mx.array_equal(last, others[1]), "the state after a reset feels what was before it"


MUTANTS = [
    Mutant(
        "resets",
        "the memory decays as ever where it is reset",
        packed_is_separate,
        "ops.resets",
        "Segments.reset",
        "mx.where(next_begins[..., None], 0, decay)",
        "decay",
    ),
    Mutant(
        "resets",
        "a reset leaves what the chunk wrote",
        nothing_leaks,
        "ops.resets",
        "Segments.reset",
        "mx.where(next_begins[..., None, None], fresh[:, None], increment)",
        "increment",
    ),
    Mutant(
        "resets",
        "a reset at the first token is forgotten",
        packed_is_separate,
        "ops.resets",
        "Segments.reset",
        "mx.where(begins[:, :1, None], fresh, state)",
        "state",
    ),
    Mutant(
        "resets",
        "a text begins one token late",
        nothing_leaks,
        "ops.resets",
        "Segments.__init__",
        "(token[None, :, None] >= first[:, None, 1:])",
        "(token[None, :, None] > first[:, None, 1:])",
    ),
    Mutant(
        "resets",
        "resets that are none reset",
        packed_is_separate,
        "ops.resets",
        "Segments.__init__",
        "chunks[:, None, 1:] > 0",
        "chunks[:, None, 1:] >= 0",
    ),
]
