"""Law 8: nothing grows with the context."""

from __future__ import annotations

import io
from collections.abc import Callable

import mlx.core as mx
from cases import Code, routed, tiny_model, tokens
from in_step import in_step
from mutant import Mutant

MEGABYTE = 2**20
# Short, so that how far evaluation runs ahead, which a busy machine changes, weighs little.
PIECE = 512


def streaming_is_flat(code: Code, length: int) -> int:
    """Feed `length` tokens in pieces: the peak after 4k tokens is the peak, to 1 MB."""
    model = tiny_model(
        code,
        hidden_size=8,
        num_hidden_layers=1,
        intermediate_size=8,
        vocab_size=8,
        memory_size=8,
        num_memory_states=4,
        num_active_states=1,
    )
    cache = model.make_cache()
    ids = tokens((1, PIECE)) % 8
    mx.clear_cache()
    mx.reset_peak_memory()
    with in_step():
        for fed in range(PIECE, length + 1, PIECE):
            mx.eval(model(ids, cache)[:, -1], [layer.state[0] for layer in cache])
            if fed == 8 * PIECE:
                early = mx.get_peak_memory()
    growth = mx.get_peak_memory() - early
    assert growth < MEGABYTE, f"peak memory grew by {growth / MEGABYTE:.2f} MB"
    return growth


def peak_memory(function: Callable, *args) -> int:
    """Bytes at the peak of evaluating function(*args), above what was there before."""
    mx.eval(function(*args))  # once before, for what compiling allocates
    peaks = []
    for _ in range(3):
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        with in_step():
            mx.eval(function(*args))
        peaks.append(mx.get_peak_memory() - before)
    # a task may be handed over a moment before the one before is done
    return min(peaks)


def primitives(*outputs: mx.array) -> int:
    """Nodes of the graph that has yet to be evaluated."""
    dot = io.StringIO()
    mx.export_to_dot(dot, *outputs)
    return dot.getvalue().count("shape=rectangle")


def graph_sizes(code: Code, length: int, form: str = "factored") -> tuple[int, int]:
    """Primitives of the forward, and of the gradients of all four inputs."""
    theta, phi, values, state, _ = routed((1, length, 3, 4), 2).arrays()

    def loss(*inputs):
        y, last = code.ops.memory_scan(*inputs)
        return y.sum() + last.sum()

    with code.form(form):
        forward = primitives(*code.ops.memory_scan(theta, phi, values, state))
        backward = primitives(*mx.grad(loss, argnums=(0, 1, 2, 3))(theta, phi, values, state))
    return forward, backward


def graph_does_not_grow(code: Code, form: str = "factored") -> tuple[int, int]:
    """16 times the tokens, at most twice the graph: log T, where a loop would be 16 times.

    From as many tokens on as have more than one group of chunks, which are passed over in a loop.
    """
    short, long = graph_sizes(code, 4096, form), graph_sizes(code, 65536, form)
    for what, a, b in zip(("forward", "backward"), short, long, strict=True):
        assert b <= 2 * a, f"{what} graph: {a} primitives at 4096 tokens, {b} at 65536"
    return long


A_LOOP_OVER_CHUNKS = """
states = [state]
for n in range(increment.shape[1]):
    states.append(decay[:, n, :, None] * states[-1] + increment[:, n])
return mx.stack(states[:-1], axis=1), states[-1]
"""


MUTANTS = [
    Mutant(
        "law 8",
        "the cache keeps what was read",
        lambda code: streaming_is_flat(code, 100_000),
        "layer",
        "FactorizationMemory.recurrence",
        "cache.advance(length)",
        "(cache.advance(length), cache.__dict__.setdefault('history', []).append(y))",
    ),
    Mutant(
        "law 8",
        "a loop over chunks in the graph",
        graph_does_not_grow,
        "ops.state_pass",
        "_pass",
        None,
        A_LOOP_OVER_CHUNKS,
    ),
]
