"""A decoded token of one memory layer: all m rows, the k active ones, or those in two buffers.

    python evidence/steps.py

By the texts of a batch, m, k and d. The layers, of which there are four, take turns in one
process; each chooses its rows by scores that are given. Figures are medians, in microseconds a
layer and text, each token computed one ahead. `ops.sparse_step_is_faster` is the rule by them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import product

import mlx.core as mx
from figures import record
from mlx_lm.models.cache import ArraysCache

from fm_mlx import cache as caches
from fm_mlx import ops
from fm_mlx.perf.timing import medians_in_turns, seconds_of
from fm_mlx.support.allocator import keep_freed_memory
from fm_mlx.token_step import TokenStep

LAYERS, TOKENS, EPS = 4, 16, 1e-6
ROWS, ACTIVE, WIDTHS, BATCHES = (32, 64, 128, 256), (2, 8, 32), (256, 1024), (1, 8, 32, 128)
LARGEST = 1 << 22  # numbers of a layer's states


def all_rows(scores, values, mask, cache, num_active):
    theta, phi = ops.route_dense(scores, num_active)
    y, cache[0] = ops.memory_step(theta, phi, values, cache[0], mask, eps=EPS)
    return y


def active_rows(scores, values, mask, cache, num_active):
    routing = ops.route(scores, num_active)
    y, cache[0] = ops.sparse_memory_step(*routing, values, cache[0], mask, eps=EPS)
    return y


def two_buffers(scores, values, mask, cache, num_active):
    return caches.step(cache, scores, values, mask, 1.0, EPS)


FORMS = {
    "all rows": (all_rows, 1),
    "active rows": (active_rows, 1),
    "two buffers": (two_buffers, 6),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="turns of each form (7)")
    args = parser.parse_args()
    keep_freed_memory()
    lines = []
    for width, num_active, batch in product(WIDTHS, ACTIVE, BATCHES):
        for rows in ROWS:
            if rows <= num_active or batch * rows * width > LARGEST:
                continue
            runs = {name: tokens_of(name, batch, rows, num_active, width) for name in FORMS}
            taken = medians_in_turns(runs, args.rounds)
            sizes = {"texts": batch, "m": rows, "k": num_active, "d": width}
            times = {name: round(1e6 * seconds / batch, 1) for name, seconds in taken.items()}
            by_rule = ops.sparse_step_is_faster(batch, rows, num_active, width)
            lines.append(sizes | times | {"rule": "active rows" if by_rule else "all rows"})
            print(lines[-1], flush=True)
    record("steps", {"rounds": args.rounds, "microseconds a layer and text": lines})


def tokens_of(form: str, batch: int, rows: int, num_active: int, width: int) -> Callable[[], float]:
    """Seconds of a token and layer, in which the rows change with the token."""
    mx.random.seed(0)
    run, entries = FORMS[form]
    layers = []
    for _ in range(LAYERS):
        cache = ArraysCache(size=entries)
        caches.set_state(cache, mx.random.normal((batch, rows, width)), num_active)
        mx.eval(cache.state)
        layers.append(cache)
    scores = mx.random.normal((TOKENS, batch, 1, rows + 2))
    values = mx.random.normal((batch, 1, width))
    mx.eval(scores, values)

    def forward(values, scores, layers, mask):
        return [run(scores, values, mask, layer, num_active) for layer in layers]

    step = TokenStep(forward)

    def decode() -> None:
        before = None
        for scores_of_token in scores:
            y = step(values, scores_of_token, layers)
            mx.async_eval(y)
            if before is not None:
                mx.eval(before)
            before = y
        mx.eval(before)

    decode()  # compiles
    return lambda: seconds_of(decode) / TOKENS / LAYERS


if __name__ == "__main__":
    main()
