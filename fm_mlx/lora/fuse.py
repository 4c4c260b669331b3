"""Adapters put into the weights of the model that they were tuned for."""

from __future__ import annotations

import mlx.core as mx
from mlx.utils import tree_unflatten
from mlx_lm.utils import dequantize_model

from fm_mlx.model import Model


def fuse(model: Model, *, dequantize: bool = False) -> None:
    """Put the adapters on a model's layers into their weights.

    Args:
        model: changed; quantised layers are quantised anew, as they were.
        dequantize: leave no layer quantised.
    """
    fused = [
        (name, module.fuse(dequantize=dequantize))
        for name, module in model.named_modules()
        if hasattr(module, "fuse")
    ]
    model.update_modules(tree_unflatten(fused))
    if dequantize:
        dequantize_model(model)
    mx.eval(model.parameters())
