"""Law 5: a token touches its k best rows; k = m is the dense layer, and rows have no order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import mlx.core as mx
import numpy as np
from cases import LOGITS_TOLERANCE, SCAN_TOLERANCE, Code, close, double, routed, same_bits
from mlx_lm.models.cache import ArraysCache
from mutant import Mutant

from fm_mlx import reference

# Of weights that sum to 1, through a softmax and a division in float32.
AFFINITY_TOLERANCE = 1e-6


def sparse_step_is_the_step(code: Code, num_active: int, seed: int = 0) -> float:
    """sparse_memory_step = memory_step with scattered weights; other rows keep their bits."""
    batch, rows, width = 3, 7, 5
    case = routed((batch, 1, rows, width), num_active, seed)
    theta, phi, values, state, _ = case.arrays()
    active = np.argsort(-case.theta[:, 0], axis=-1, kind="stable")[:, :num_active]
    indices = mx.array(active.astype(np.int32))[:, None]
    weights = [mx.take_along_axis(x, indices, axis=-1) for x in (theta, phi)]
    got = code.ops.sparse_memory_step(indices, *weights, values, state)
    wanted = code.ops.memory_step(theta, phi, values, state)
    for row in range(batch):
        untouched = np.setdiff1d(np.arange(rows), active[row])
        same_bits(np.array(got[1])[row, untouched], case.state[row, untouched], "untouched rows")
    return max(map(close, got, wanted, [SCAN_TOLERANCE] * 2, ("y", "state")))


def scattered(indices: mx.array, weights: mx.array, rows: int) -> mx.array:
    """k weights as a dense (..., m): 0 where a row is not among the indices."""
    dense = mx.zeros((*weights.shape[:-1], rows))
    return mx.put_along_axis(dense, indices, weights, axis=-1)


def with_rates(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits with two rates behind them, as a router gives them; and the rates' sigmoids."""
    rates = np.random.default_rng(5).normal(size=(*logits.shape[:-1], 2)) * 2
    routing = np.concatenate([logits, rates], axis=-1).astype(np.float32)
    update, merge = np.moveaxis(reference.sigmoid(double(routing[..., -2:])), -1, 0)
    return routing, update[..., None], merge[..., None]


@contextmanager
def not_on_the_cpu(code: Code) -> Iterator[None]:
    """Choose the rows as on a GPU on which the kernel does not run."""
    with patch.object(code.ops.routing, "on_cpu", return_value=False):
        yield


def routing_is_the_affinity(
    code: Code, logits: np.ndarray, num_active: int, temperature: float = 1.0
) -> float:
    """route and route_dense = the float64 affinity; the rows are those of a stable sort."""
    rows = logits.shape[-1]
    routing, update, merge = with_rates(logits)
    indices, *sparse = code.ops.route(mx.array(routing), num_active, temperature)
    assert [x.dtype for x in (indices, *sparse)] == [mx.int32, mx.float32, mx.float32]
    best = np.argsort(-logits, axis=-1, kind="stable")[..., :num_active]
    assert np.array_equal(np.array(indices), np.sort(best)), "indices"
    dense = code.ops.route_dense(mx.array(routing), num_active, temperature)
    assert [x.dtype for x in dense] == [mx.float32, mx.float32]
    alpha = reference.affinity(double(logits), num_active, temperature)
    return max(
        close(got, rate * alpha, AFFINITY_TOLERANCE, what)
        for x, y, rate, name in zip(sparse, dense, (update, merge), ("theta", "phi"), strict=True)
        for got, what in ((scattered(indices, x, rows), f"sparse {name}"), (y, f"dense {name}"))
    )


def dense_is_sparse_with_all_rows(code: Code) -> None:
    """A layer with k = m = the paper's equations (4) to (8), where nothing is selected."""
    hidden, width, rows, length = 8, 6, 5, 40
    mx.random.seed(0)
    layer = code.layer.FactorizationMemory(hidden, width, rows, rows, 0.5)
    x = np.random.default_rng(0).normal(size=(length, hidden)).astype(np.float32)
    routing = double(x) @ double(np.array(layer.router.weight)).T
    alpha = reference.softmax(routing[:, :rows] / 0.5)
    update, merge = (reference.sigmoid(routing[:, [i]]) for i in (rows, rows + 1))
    values = double(x) @ double(np.array(layer.in_proj.weight)).T
    y, _ = reference.memory_loop(update * alpha, merge * alpha, values)
    wanted = y @ double(np.array(layer.out_proj.weight)).T
    close(layer(mx.array(x)[None])[0], wanted, LOGITS_TOLERANCE, "dense layer")


def rows_have_no_order(code: Code, num_active: int, length: int = 40) -> None:
    """Permuting the router's rows and the state's permutes the state and leaves y."""
    hidden, width, rows = 8, 6, 5
    mx.random.seed(1)
    layer = code.layer.FactorizationMemory(hidden, width, rows, num_active)
    layer.router.weight = layer.router.weight * 5
    x = mx.random.normal((2, length, hidden))
    state = mx.random.normal((2, rows, width))
    order = mx.array([3, 0, 4, 2, 1])
    results = []
    for rename in (mx.arange(rows), order):
        cache = ArraysCache(size=1)
        cache[0] = state[:, rename]
        renamed = code.layer.FactorizationMemory(hidden, width, rows, num_active)
        renamed.update(layer.parameters())
        scores, rates = layer.router.weight[:rows], layer.router.weight[rows:]
        renamed.router.weight = mx.concatenate([scores[rename], rates])
        results.append((renamed(x, cache=cache), cache[0]))
    (y, last), (permuted_y, permuted_last) = results
    close(permuted_y, y, LOGITS_TOLERANCE, "y")
    close(permuted_last, last[:, order], LOGITS_TOLERANCE, "state")


def routing(code):
    logits = mx.random.normal((50, 9), key=mx.random.key(0))
    for num_active in (3, 8, 9):
        routing_is_the_affinity(code, np.array(logits), num_active, 0.5)


def routing_of_ties(code):
    routing_is_the_affinity(code, np.zeros((2, 9), "float32"), 4)


def routing_by_keys(code):
    with not_on_the_cpu(code):
        routing(code)
        routing_of_ties(code)


MUTANTS = [
    *(
        Mutant(
            "law 5",
            f"the k best are not renormalised ({function})",
            routing,
            "ops.routing",
            function,
            "_softmax(mx.take_along_axis(logits, indices, axis=-1), temperature)",
            "mx.take_along_axis(_softmax(logits, temperature), indices, axis=-1)",
        )
        for function in ("_by_logits", "_route_dense")
    ),
    Mutant(
        "law 5",
        "the k best but one more, without the best",
        routing_by_keys,
        "ops.routing",
        "_by_unique_keys",
        "mx.partition(_unique_keys(logits), rest, axis=-1)[..., rest:]",
        "mx.partition(_unique_keys(logits), rest, axis=-1)[..., rest - 1 : -1]",
    ),
    Mutant(
        "law 5",
        "ties go to the highest index",
        routing_of_ties,
        "ops.routing",
        "_by_partition",
        "mx.argpartition(-logits, num_active - 1, axis=-1)[..., :num_active]",
        "mx.argpartition(logits, -num_active, axis=-1)[..., -num_active:]",
    ),
    Mutant(
        "law 5",
        "ties go to the highest index (keys)",
        routing_by_keys,
        "ops.routing",
        "_unique_keys",
        "mx.arange(logits.shape[-1] - 1, -1, -1)",
        "mx.arange(logits.shape[-1])",
    ),
    Mutant(
        "law 5",
        "k = m keeps one row fewer",
        dense_is_sparse_with_all_rows,
        "layer",
        "FactorizationMemory.route",
        "route(scores, self.num_active_states, self.affinity_temperature, self.product_keys)",
        "route(scores, self.num_active_states - 1, self.affinity_temperature, self.product_keys)",
    ),
    Mutant(
        "law 5",
        "rates are read from the first rows of the router",
        lambda code: rows_have_no_order(code, 2),
        "ops.routing",
        "_logits_and_rates",
        "routing[..., -2:]",
        "routing[..., :2]",
    ),
    Mutant(
        "law 5",
        "the sparse step adds where it should replace",
        lambda code: sparse_step_is_the_step(code, 2),
        "ops.step",
        "written",
        "mx.put_along_axis(state, own, rows, axis=1)",
        "state + mx.put_along_axis(mx.zeros_like(state), own, rows, axis=1)",
    ),
]
