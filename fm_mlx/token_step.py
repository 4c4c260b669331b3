"""A decoded token as one compiled graph.

One token is little work, done by some hundred operations: on the CPU their hand-over to MLX, one
by one, takes longer than what they compute. `mx.compile` records them once, joins those that are
elementwise, and hands over the rest together.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import ArraysCache

from fm_mlx import cache as caches
from fm_mlx.metal_kernels.launch import Backend, backend, on_cpu
from fm_mlx.support.arrays import compiled

# What comes behind the last norm, (B, 1, hidden), from a backbone, tokens (B, 1), the caches of all
# layers, which are updated, and a mask (B, 1) or None. Or another tree of arrays, from other
# arrays: parts of a model are timed so.
Forward = Callable[[Any, mx.array, list[ArraysCache], mx.array | None], Any]


class TokenStep:
    """A model's forward pass of one token, compiled at the first one of every batch size.

    It follows weights that are changed, and modules that are replaced by others of other shapes.
    Numbers that are no arrays, such as a temperature, are those of the first token.

    It does not hold the model: a model that holds it ends when nobody else refers to it.

    Args:
        forward: the pass as it is without compilation.
    """

    def __init__(self, forward: Forward):
        traced = threading.local()

        def step(weights: Any, tokens: mx.array, entries: Sequence[list[Any]], mask):
            made = []
            for arrays in entries:
                made.append(ArraysCache(size=len(arrays)))
                made[-1].cache = arrays
            model = _with_arrays(traced.model, weights)
            outputs = forward(model, tokens, made, mask)
            return outputs, [cache.cache for cache in made]

        self._forward = forward
        self._traced = traced
        self._step = compiled(step)

    def __reduce__(self):
        # what is compiled is neither copied nor saved
        return TokenStep, (self._forward,)

    def __call__(self, model: Any, tokens: mx.array, cache: Sequence[ArraysCache]) -> Any:
        """What `forward` gives for a model and tokens (B, 1); the caches are updated.

        The references to the old arrays are gone on return, so that they may be written in place.

        Args:
            model: a module, or a tree of modules and arrays. It is not changed, so that other
                threads may read it or decode with it while a token is compiled.
            tokens: (B, 1).
            cache: of all layers.
        """
        entries, mask = [c.cache for c in cache], cache[0].make_mask(1)
        self._traced.model = model
        try:
            outputs, made = self._step(model, tokens, entries, mask)
        finally:
            del self._traced.model
        for layer_cache, arrays in zip(cache, made, strict=True):
            layer_cache.cache = arrays
            layer_cache.advance(1)
        return outputs


def _with_arrays(tree: Any, arrays: Any) -> Any:
    """A copy of a tree of modules, with other arrays in it.

    Given modules as its `inputs`, `mx.compile` would put the arrays that it traces with into the
    modules themselves: another thread would find them there, and if it compiles too, they stay.
    """
    if isinstance(tree, nn.Module):
        module = copy.copy(tree)
        for name, entry in tree.items():
            module[name] = _with_arrays(entry, arrays[name])
        return module
    if isinstance(tree, dict):
        return {name: _with_arrays(entry, arrays[name]) for name, entry in tree.items()}
    if isinstance(tree, list | tuple):
        entries = [_with_arrays(entry, other) for entry, other in zip(tree, arrays, strict=True)]
        return type(tree)(*entries) if hasattr(tree, "_fields") else type(tree)(entries)
    return arrays


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
