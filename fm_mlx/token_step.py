"""A decoded token as one compiled graph.

One token is little work, done by some hundred operations: on the CPU their hand-over to MLX, one
by one, takes longer than what they compute. `mx.compile` records them once, joins those that are
elementwise, and hands over the rest together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import ArraysCache

from fm_mlx import cache as caches
from fm_mlx.metal_kernels.launch import Backend, backend, on_cpu
from fm_mlx.support.arrays import compiled

# What comes behind the last norm, (B, 1, hidden), from tokens (B, 1), the caches of all layers,
# which are updated, and a mask (B, 1) or None. Or another tree of arrays, from another array:
# parts of a model are timed so.
Forward = Callable[[mx.array, list[ArraysCache], mx.array | None], Any]


class TokenStep:
    """A model's forward pass of one token, compiled at the first one of every batch size.

    It follows weights that are changed, and modules that are replaced by others of other shapes.
    Numbers that are no arrays, such as a temperature, are those of the first token.

    Args:
        forward: the pass as it is without compilation.
        weights: the model's arrays; what changes in this tree is seen.
    """

    def __init__(self, forward: Forward, weights: Any):
        def step(tokens: mx.array, entries: Sequence[list[Any]], mask: mx.array | None):
            made = []
            for arrays in entries:
                made.append(ArraysCache(size=len(arrays)))
                made[-1].cache = arrays
            return forward(tokens, made, mask), [cache.cache for cache in made]

        self._step = compiled(step, inputs=weights)

    def __call__(self, tokens: mx.array, cache: Sequence[ArraysCache]) -> Any:
        """What `forward` gives for tokens (B, 1); the caches are updated.

        The references to the old arrays are gone on return, so that they may be written in place.
        """
        entries, mask = [c.cache for c in cache], cache[0].make_mask(1)
        outputs, made = self._step(tokens, entries, mask)
        for layer_cache, arrays in zip(cache, made, strict=True):
            layer_cache.cache = arrays
            layer_cache.advance(1)
        return outputs


def suits(tokens: mx.array, cache: Sequence[ArraysCache]) -> bool:
    """Whether a `TokenStep` can take these tokens, and is faster.

    It cannot where something else than the state is kept of a token (`cache.WritesSeen`), or
    where there is no state yet.
    """
    return (
        tokens.shape[1] == 1
        and all(caches.has_state_alone(c) for c in cache)
        and on_cpu()
        and backend() is Backend.OPS
    )
