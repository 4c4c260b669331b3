"""Where the time of a model goes, part by part, on this device.

A part is timed alone, all its layers together, on inputs of the right shape, compiled where the
model's own token is. What they leave of the whole step is what lies between them. Beside each
stands a bound: the bytes and operations that it cannot do without, at the speeds of a copy and a
matrix product here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from fm_mlx.metal_kernels.cost import Cost
from fm_mlx.model import Model
from fm_mlx.perf.timing import decode, medians_in_turns, seconds_of, started_caches
from fm_mlx.perf.work import scan_work, update_work
from fm_mlx.support.arrays import nbytes
from fm_mlx.token_step import TokenStep, suits

_DECODED = 32
# Tokens of a part that are evaluated together in decode, so that handing them over does not
# count; in the whole step that happens while the token before is computed.
_TOGETHER = 8


@dataclass(frozen=True)
class Part:
    """A part of the model on some tokens: how to run it, and what it must do at least."""

    name: str
    run: Callable[..., Sequence[Any]]
    work: Cost


def parts(model: Model, tokens: int) -> list[Part]:
    """The parts of a model that reads `tokens` (prefill), or decodes one."""
    args, layers = model.args, model.layers
    caches = started_caches(model)
    hidden = mx.random.normal((1, tokens, args.hidden_size)).astype(activation_dtype(model))
    values = mx.random.normal((1, tokens, args.memory_size)).astype(hidden.dtype)
    routings = [block.memory.route(hidden, c) for block, c in zip(layers, caches, strict=True)]
    mx.eval(hidden, values, routings)
    item, norms = hidden.dtype.size, 2 * len(layers) + 1
    sparse = isinstance(routings[0], mx.array)
    held = model, values, routings

    def norm(held, hidden, cache, mask):
        model, _, _ = held
        of_blocks = [n(hidden, hidden) for b in model.layers for n in (b.memory_norm, b.mlp_norm)]
        return [*of_blocks, model.model.norm(hidden, hidden)]

    def projections(held, hidden, cache, mask):
        model, read, _ = held
        memories = [b.memory for b in model.layers]
        return [x for m in memories for x in (m.in_proj(hidden), m.out_proj(read))]

    def router(held, hidden, cache, mask):
        model, _, _ = held
        return [b.memory.route(hidden, c) for b, c in zip(model.layers, cache, strict=True)]

    def memory(held, hidden, cache, mask):
        model, written, routings = held
        together = zip(model.layers, routings, cache, strict=True)
        return [b.memory.recurrence(r, written, mask, c) for b, r, c in together]

    def mlp(held, hidden, cache, mask):
        model, _, _ = held
        return [b.mlp(hidden) for b in model.layers]

    def head(held, hidden, cache, mask):
        model, _, _ = held
        return [model.logits(hidden)]

    def as_in_the_model(part):
        # the head comes behind the compiled token
        if part.name != "head" and suits(hidden[..., 0], caches):
            return partial(TokenStep(part.run), held, hidden, caches)
        return partial(part.run, held, hidden, caches, None)

    wide, narrow = hidden.nbytes, values.nbytes
    chosen = nbytes(routings[0])
    work = update_work(args, 1, sparse=sparse) if tokens == 1 else scan_work(args, tokens)
    modules = [b.memory for b in layers]
    built = [
        Part("norm", norm, _moves(norms * 4 * wide) + Cost(0, 0, norms * 5 * hidden.size)),
        Part(
            "projections",
            projections,
            _products([p for m in modules for p in (m.in_proj, m.out_proj)], tokens)
            + _moves(2 * len(layers) * (wide + narrow)),
        ),
        Part(
            "router",
            router,
            _products([m.router for m in modules], tokens) + _moves(len(layers) * (wide + chosen)),
        ),
        Part("memory", memory, work * len(layers)),
        Part(
            "MLP", mlp, _products([b.mlp for b in layers], tokens) + _moves(2 * len(layers) * wide)
        ),
    ]
    if tokens == 1:
        tied = args.tie_word_embeddings
        table = model.model.embed_tokens if tied else model.lm_head
        built.append(Part("head", head, _products([table], 1) + _moves(item * args.vocab_size)))
    return [replace(part, run=as_in_the_model(part)) for part in built]


def _moves(size: int) -> Cost:
    return Cost(size, size, 0)


def _products(modules: list[nn.Module], tokens: int) -> Cost:
    """Reading the weights once, and two operations a weight and token."""
    size = sum(nbytes(module.parameters()) for module in modules)
    return Cost(size, size, 2 * tokens * sum(_weights(module) for module in modules))


def _weights(module: nn.Module) -> int:
    """Weights of all matrices, quantised or not."""
    total = 0
    for _, leaf in module.named_modules():
        weight = leaf.get("weight")
        if weight is not None:
            total += weight.size * 32 // leaf.bits if hasattr(leaf, "bits") else weight.size
    return total


def activation_dtype(model: Model) -> mx.Dtype:
    """The dtype of the activations."""
    return model.model.embed_tokens(mx.array([0])).dtype


def profile(model: Model, tokens: int, rounds: int) -> tuple[dict[str, float], float]:
    """Seconds of the parts and of the whole, for a prompt of `tokens` or one decoded token.

    The whole of a prompt is all blocks and the last norm: it needs no head.
    """
    together = _TOGETHER if tokens == 1 else 1
    runs = {
        part.name: partial(
            seconds_of, partial(lambda run: mx.eval([run() for _ in range(together)]), part.run)
        )
        for part in parts(model, tokens)
    }
    caches = started_caches(model)
    if tokens == 1:
        runs["whole"] = partial(decode, model, caches, _DECODED)
    else:
        prompt = mx.zeros((1, tokens), mx.int32)
        runs["whole"] = partial(
            seconds_of, lambda: mx.eval(model.model(prompt, caches), [c.state for c in caches])
        )
    for run in runs.values():
        run()  # compiles
    seconds = medians_in_turns(runs, rounds)
    whole_step = seconds.pop("whole")
    return {name: taken / together for name, taken in seconds.items()}, whole_step
