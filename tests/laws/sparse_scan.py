"""The laws of the scan on the active rows, as functions of the code under test."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from cases import SCAN_TOLERANCE, Case, Code, close, loop, routed, same_bits
from mutant import Mutant

from laws.gradients import GRADIENT_TOLERANCE
from laws.padding import ragged
from laws.rows import routing_is_the_affinity


def active_rows(case: Case, num_active: int) -> mx.array:
    """The rows (B, T, k) that the tokens of a case write, in rising order."""
    best = np.argsort(-case.theta, axis=-1, kind="stable")[..., :num_active]
    return mx.array(np.sort(best).astype(np.int32))


def sparse_scan(code: Code, case: Case, num_active: int, chunk_size: int | None = None):
    """`sparse_memory_scan` of a case as a function of theta, phi (B, T, m), values and state."""
    indices = active_rows(case, num_active)
    mask = case.arrays()[-1]

    def run(theta, phi, values, state):
        weights = (mx.take_along_axis(x, indices, axis=-1) for x in (theta, phi))
        routing = code.ops.SparseRouting(indices, *weights)
        return code.ops.sparse_memory_scan(routing, values, state, mask, chunk_size=chunk_size)

    return run


def sparse_scan_is_the_loop(
    code: Code, case: Case, num_active: int, chunk_size: int | None = None
) -> None:
    """sparse_memory_scan = the float64 loop; rows that no token touches keep their bits."""
    *inputs, _ = case.arrays()
    y, state = sparse_scan(code, case, num_active, chunk_size)(*inputs)
    assert state.dtype == mx.float32
    wanted, last = loop(case)
    close(y, wanted, SCAN_TOLERANCE, "y")
    close(state, last, SCAN_TOLERANCE, "state")
    untouched = ~(case.theta > 0).any(axis=1)
    same_bits(np.array(state)[untouched], case.state[untouched], "untouched rows")


def sparse_gradients_are_the_scans(
    code: Code, case: Case, num_active: int, chunk_size: int | None = None
) -> None:
    """Gradients of all inputs, of y and of the last state = those of `memory_scan`."""
    *inputs, mask = case.arrays()
    rng = np.random.default_rng(9)
    wy, ws = (mx.array(rng.normal(size=x.shape), mx.float32) for x in (case.values, case.state))

    def gradients(scan):
        def loss(*inputs):
            y, state = scan(*inputs)
            return (y * wy).sum() + (state * ws).sum()

        return mx.grad(loss, argnums=(0, 1, 2, 3))(*inputs)

    wanted = gradients(lambda *inputs: code.ops.memory_scan(*inputs, mask))
    got = gradients(sparse_scan(code, case, num_active, chunk_size))
    # the dense scan has gradients of rows that are not active, too
    own = np.zeros(case.theta.shape)
    np.put_along_axis(own, np.array(active_rows(case, num_active)), 1, axis=-1)
    for name, a, b in zip(("theta", "phi", "values", "state"), got, wanted, strict=True):
        kept = own if name in ("theta", "phi") else 1
        close(a, np.array(b) * kept, GRADIENT_TOLERANCE, f"gradient of {name}")


def many_groups(code: Code) -> None:
    """Chunks enough for groups of groups, on few rows and on many."""
    for rows in (9, 500):
        sparse_scan_is_the_loop(code, routed((2, 70, rows, 3), 2), 2, chunk_size=2)


def gradients_of_many_groups(code: Code) -> None:
    sparse_gradients_are_the_scans(code, routed((2, 40, 150, 3), 2), 2, chunk_size=2)


def masked(code: Code) -> None:
    case = ragged([30, 8, 1, 17], "right", 1.0)
    *inputs, _ = case.arrays()
    y, state = sparse_scan(code, case, 4)(*inputs)
    wanted, last = loop(case)
    close(y, wanted, SCAN_TOLERANCE, "y")
    close(state, last, SCAN_TOLERANCE, "state")


def routing_by_blocks(code: Code, logits: np.ndarray, num_active: int) -> None:
    """The rows that are chosen by blocks are those of a stable sort."""
    few = code.ops.routing._MANY_LOGITS
    assert logits.size >= few and logits.shape[-1] > 64 * num_active
    routing_is_the_affinity(code, logits, num_active)


def few_values(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Logits with many ties."""
    return np.random.default_rng(seed).integers(-3, 3, shape).astype(np.float32)


MUTANTS = [
    Mutant(
        "law 1",
        "slots that repeat a row hold what it held before",
        many_groups,
        "ops.sparse_scan",
        "_Slots.of",
        "mx.where(number <= slot[..., -1:], number, 0)",
        "mx.broadcast_to(number, slot.shape)",
    ),
    Mutant(
        "law 1",
        "a group of chunks brings back what slots held before",
        many_groups,
        "ops.sparse_scan",
        "_pass",
        "written(state, Write(own_rows, _rows_of(own, source)))",
        "written(state, Write(own_rows, own))",
    ),
    Mutant(
        "law 3",
        "the sparse scan ignores the mask",
        masked,
        "ops.sparse_scan",
        "sparse_memory_scan",
        "split_into_chunks(x, chunk, mask)",
        "split_into_chunks(x, chunk, None)",
    ),
    Mutant(
        "law 5",
        "blocks of rows are taken in the order of their logits",
        lambda code: routing_by_blocks(code, few_values((40, 700)), 3),
        "ops.routing",
        "_by_blocks",
        "mx.sort(choose(largest, num_active).astype(mx.int32), axis=-1)",
        "choose(largest, num_active).astype(mx.int32)[..., ::-1]",
    ),
    Mutant(
        "law 6",
        "groups of chunks are passed over forwards for the gradient",
        gradients_of_many_groups,
        "ops.sparse_scan",
        "_pass",
        "_pass(places, *inputs, _rows_of(state, own_rows), reverse)",
        "_pass(places, *inputs, _rows_of(state, own_rows))",
    ),
]
