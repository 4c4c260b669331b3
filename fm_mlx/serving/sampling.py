"""A sampler of each request, whose choices do not depend on what is generated beside it."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import count

import mlx.core as mx
from mlx_lm.sample_utils import greedy_sampler

Sampler = Callable[[mx.array], mx.array]

# Below it logits would overflow; the likeliest token is as good as certain long before.
_COLDEST = 1e-4


def sampler_for(temperature: float, top_p: float, top_k: int, min_p: float, seed: int) -> Sampler:
    """A sampler of log-probabilities (1, vocab), for one text.

    It samples as mlx-lm's does, whose filters are compiled anew for each value of an option:
    on a CPU that takes a compiler most of a second, in which all other requests would wait.

    Args:
        temperature: 0 takes the likeliest token.
        top_p: sample from the likeliest tokens of this total probability; 0 and 1: from all.
        top_k: sample from this many likeliest tokens; 0: from all.
        min_p: least probability, as a part of the likeliest token's; 0: none.
        seed: a whole number below 2^32. The n-th token is drawn with a key of its own, made of
            the seed and n.
    """
    if temperature < _COLDEST:
        return greedy_sampler
    numbers = count()

    def seeded(logprobs: mx.array) -> mx.array:
        key = mx.random.key(seed << 32 | next(numbers))
        least = _least(logprobs, top_p, top_k, min_p)
        if least is not None:
            logprobs = mx.where(logprobs < least, -math.inf, logprobs)
        return mx.random.categorical(logprobs / temperature, key=key)

    return seeded


def _least(logprobs: mx.array, top_p: float, top_k: int, min_p: float) -> mx.array | None:
    """The least log-probability (1, 1) that is sampled from; None: there is none."""
    bounds = []
    if min_p > 0:
        bounds.append(logprobs.max(axis=-1, keepdims=True) + math.log(min_p))
    if 0 < top_p < 1 or 0 < top_k < logprobs.shape[-1]:
        ordered = mx.sort(logprobs, axis=-1)[..., ::-1]
        if 0 < top_k < logprobs.shape[-1]:
            bounds.append(ordered[..., top_k - 1 : top_k])
        if 0 < top_p < 1:
            mass = mx.cumsum(mx.exp(ordered.astype(mx.float32)), axis=-1)
            # a token is taken if those before it have less than top_p
            before = (mass[..., :-1] < top_p * mass[..., -1:]).sum(axis=-1, keepdims=True)
            bounds.append(mx.take_along_axis(ordered, before, axis=-1))
    return mx.concatenate(bounds, axis=-1).max(axis=-1, keepdims=True) if bounds else None
