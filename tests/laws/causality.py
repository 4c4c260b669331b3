"""Law 4: changing the future changes nothing before it."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from cases import Case, Code, routed, same_bits, scan, tiny_model, tokens
from mutant import Mutant


def future_changes_nothing(code: Code, position: int, form: str = "factored") -> None:
    """Outputs before `position` keep their bits, whatever comes from there on."""
    case = routed((2, 50, 4, 6), 2)
    future = [np.array(x) for x in (case.theta, case.phi, case.values)]
    for x, other in zip(future, (1.0, 1.0, 1e12), strict=True):
        x[:, position:] = other
    with code.form(form):
        before, _ = scan(code, case, chunk_size=16)
        after, _ = scan(code, Case(*future, case.state), chunk_size=16)
    same_bits(after[:, :position], before[:, :position], "outputs before the change")
    assert not np.array_equal(after[:, position:], before[:, position:])


def future_tokens_change_nothing(code: Code, position: int) -> None:
    model = tiny_model(code)
    ids = tokens((1, 80))
    other = mx.where(mx.arange(80) < position, ids, (ids + 1) % 50)
    before, after = model(ids), model(other)
    same_bits(after[:, :position], before[:, :position], "logits before the change")
    assert not np.array_equal(np.array(after[:, position:]), np.array(before[:, position:]))


MUTANTS = [
    Mutant(
        "law 4",
        "tokens read what comes after them in the chunk",
        lambda code: future_changes_nothing(code, 17),
        "ops.chunk_map",
        "_block",
        "mx.tril(read @ weight.swapaxes(-1, -2))",
        "read @ weight.swapaxes(-1, -2)",
    ),
    Mutant(
        "law 4",
        "norms know what comes after them in the chunk",
        lambda code: future_changes_nothing(code, 17),
        "ops.chunk_map",
        "_block",
        "mx.tril(gram, -1) @ weight",
        "gram @ weight",
    ),
    Mutant(
        "law 4",
        "no triangle in the weights (portable)",
        lambda code: future_changes_nothing(code, 17, "portable"),
        "ops.chunk_map",
        "_portable_forward",
        "mx.tril(mx.ones((chunk, chunk), dtype=mx.bool_))",
        "mx.ones((chunk, chunk), dtype=mx.bool_)",
    ),
]
