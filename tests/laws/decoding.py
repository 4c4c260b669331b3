"""Law 7: the memory in its cache, which branches and continues; and a compiled token."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from unittest.mock import patch

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from cases import LOGITS_TOLERANCE, Code, close, same_bits, tiny_model, tokens
from mlx_lm.models.cache import ArraysCache
from mutant import Mutant


@contextmanager
def token_by_token(code: Code) -> Iterator[None]:
    """Decode without compiled tokens."""
    with patch.object(code.model, "suits", return_value=False):
        yield


def token_step_is_the_forward_pass(
    code: Code,
    batch: int = 1,
    change: Callable[[nn.Module], object] = lambda model: None,
    left_padding: list[int] | None = None,
    **config,
) -> None:
    """A compiled token has the logits of the plain one, and leaves the same states."""
    model = tiny_model(code, **config)
    change(model)
    ids = tokens((batch, 18))

    def decoded() -> tuple[list[mx.array], list[ArraysCache]]:
        cache = model.make_cache()
        for layer_cache in cache:
            layer_cache.left_padding = None if left_padding is None else mx.array(left_padding)
        logits = [model(ids[:, :12], cache)]
        logits += [model(ids[:, t : t + 1], cache) for t in range(12, 18)]
        return logits, cache

    got, cache = decoded()
    with token_by_token(code):
        wanted, other = decoded()
    for a, b in zip(got, wanted, strict=True):
        assert a.dtype == b.dtype
        close(a.astype(mx.float32), b.astype(mx.float32), LOGITS_TOLERANCE, "logits")
    for a, b in zip(cache, other, strict=True):
        close(code.cache.state_of(a), code.cache.state_of(b), LOGITS_TOLERANCE, "state")


# m x d beyond what the dense step serves: the model keeps two states that take turns.
BUFFERED = {"num_memory_states": 260, "memory_size": 160, "num_active_states": 3}


def buffered_decode_is_the_dense(
    code: Code, length: int = 40, masked: bool = False, **config
) -> None:
    """Prefill and decoding, in turns, on two buffers = the same on one state.

    Rows are chosen again within two steps and later: what waits must be found everywhere.
    """
    model = tiny_model(code, **BUFFERED | config)
    ids = tokens((2, length + 20))
    buffered, dense = model.make_cache(), [ArraysCache(size=1) for _ in model.layers]
    assert [len(layer.cache) for layer in buffered] == [6, 6]
    for layer in [*buffered, *dense] if masked else ():
        layer.prepare(lengths=[length + 20, 7])
    start = 0
    for piece in (1, 1, 5, *[1] * length, 10, 1, 1, 1):
        pieces = [model(ids[:, start : start + piece], c) for c in (buffered, dense)]
        close(*pieces, LOGITS_TOLERANCE, f"logits at {start}")
        start += piece
    for a, b in zip(buffered, dense, strict=True):
        close(code.cache.state_of(a), b[0], LOGITS_TOLERANCE, "state")


def writes_have_no_order(code: Code, count: int = 12) -> None:
    """What waits to be written gives the same state from the first to the last, and back."""
    rows, active, width = 6, 3, 5
    rng = np.random.default_rng(0)
    state = mx.array(rng.normal(size=(2, rows, width)).astype("f"))
    indices = mx.broadcast_to(mx.arange(active, dtype=mx.int32), (2, active))
    last = code.ops.Write(indices, state[:, :active])
    for _ in range(count):
        scores = mx.array(rng.normal(size=(2, 1, rows + 2)).astype("f"))
        values = mx.array(rng.normal(size=(2, 1, width)).astype("f"))
        both, _ = code.ops.sparse_update(last, scores, values, state, num_active=active)
        state = code.ops.step.written(state, both)
        back = code.ops.Write(*(x[:, ::-1] for x in both))
        same_bits(code.ops.step.written(state, back), state, "state")
        last = both


MUTANTS = [
    Mutant(
        "law 3",
        "a compiled token forgets the padding",
        partial(token_step_is_the_forward_pass, batch=3, left_padding=[0, 14, 13]),
        "token_step",
        "TokenStep.__call__",
        "self._step(model, tokens, entries, mask)",
        "self._step(model, tokens, entries, None)",
    ),
    Mutant(
        "law 3",
        "a compiled token does not count itself",
        partial(token_step_is_the_forward_pass, batch=3, left_padding=[0, 14, 13]),
        "token_step",
        "TokenStep.__call__",
        "layer_cache.advance(1)",
        "None",
    ),
    Mutant(
        "law 7",
        "a buffer misses the rows of the step before the last",
        buffered_decode_is_the_dense,
        "ops.step",
        "_compiled_buffered_step",
        "written(state, Write(*older), Write(*newer))",
        "written(state, Write(*newer))",
    ),
    Mutant(
        "law 7",
        "the rows that wait are not in the whole state",
        buffered_decode_is_the_dense,
        "cache",
        "state_of",
        "written(cache[behind], _write(cache[indices], cache[rows]))",
        "cache[behind]",
    ),
    Mutant(
        "law 7",
        "one buffer stays behind",
        buffered_decode_is_the_dense,
        "cache",
        "step",
        "[behind, state, *older, *newer]",
        "[state, behind, *older, *newer]",
    ),
    Mutant(
        "law 7",
        "a row that two tokens write is as the first one left it",
        writes_have_no_order,
        "ops.step",
        "_sparse_update",
        "mx.where(place > 0, as_now, last.rows)",
        "last.rows",
    ),
]
