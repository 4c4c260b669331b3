"""The SwiGLU of a block."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
from mlx.nn.utils import checkpoint

from fm_mlx import ops


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x)), without biases; (..., hidden) -> (..., hidden)."""

    def __init__(self, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)
        self._joint: _Joint | None = None

    def __call__(self, x: mx.array) -> mx.array:
        if self._joint is not None and not self._joint.is_of(self.gate_proj, self.up_proj):
            self._joint = None
        if self._joint is None:
            gate, up = self.gate_proj(x), self.up_proj(x)
        else:
            gate, up = mx.split(self._joint.projection(x), 2, axis=-1)
        # in training the product of the two is computed again for the gradient instead of kept
        down = checkpoint(self.down_proj, self._down) if self.training else self._down
        return down(gate, up)

    def _down(self, gate: mx.array, up: mx.array) -> mx.array:
        return self.down_proj(ops.swiglu(gate, up))

    def join(self) -> None:
        """Compute gate and up by one product, until one of their weights is replaced.

        Their weights become views of one array, so that they are there once and keep their names.
        Nothing happens if the two differ in more than their numbers, or are no plain layers.
        """
        self._joint = _Joint.of(self.gate_proj, self.up_proj)


@dataclass(frozen=True)
class _Joint:
    """Two projections as one.

    Attributes:
        projection: Gives the outputs of the first, then those of the second.
        weights: The weights of the two, views of the projection's.
    """

    projection: nn.Module
    weights: tuple[mx.array, mx.array]

    @classmethod
    def of(cls, first: nn.Module, second: nn.Module) -> _Joint | None:
        if _kind(first) is None or _kind(first) != _kind(second):
            return None
        joint = copy.copy(first)
        for name, array in first.items():
            joint[name] = mx.concatenate([array, second[name]])
            first[name], second[name] = mx.split(joint[name], 2)
        return cls(joint, (first["weight"], second["weight"]))

    def is_of(self, *projections: nn.Module) -> bool:
        return all(p.get("weight") is w for p, w in zip(projections, self.weights, strict=True))


def _kind(projection: nn.Module) -> tuple | None:
    """What two projections must share to be joined; None if they are of another kind."""
    if type(projection) not in (nn.Linear, nn.QuantizedLinear):
        return None
    arrays = {name: (array.shape, array.dtype) for name, array in projection.items()}
    settings = {name: getattr(projection, name, None) for name in ("bits", "group_size", "mode")}
    return type(projection), arrays, settings
