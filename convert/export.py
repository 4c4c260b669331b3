"""A model as weights for the PyTorch reference: the way back of converting."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from fm_mlx.convert.builtin_maps import TO_REFERENCE
from fm_mlx.convert.key_map import Weight
from fm_mlx.model import Model


def to_reference(weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """Weights under our names as those of the PyTorch reference; nothing is read.

    Our router is three weights there: w_alpha, w_eta and w_mu.
    """
    renamed = {}
    for name, weight in weights.items():
        for part, rows in _parts(name, weight).items():
            for pattern, replacement in TO_REFERENCE.rename:
                part = pattern.sub(replacement, part)
            renamed[part] = rows
    return renamed


def _parts(name: str, weight: Weight) -> dict[str, Weight]:
    memory, router, rest = name.rpartition("router.weight")
    if not router or rest:
        return {name: weight}
    rows = weight.shape[0] - 2
    return {
        f"{memory}w_alpha.weight": weight.rows(0, rows),
        f"{memory}w_eta.weight": weight.rows(rows, 1),
        f"{memory}w_mu.weight": weight.rows(rows + 1, 1),
    }


def model_weights(model: Model) -> dict[str, Weight]:
    """The weights of a model, under our names.

    Raises:
        ValueError: if it is quantised, or begins with a learned memory.
    """
    if model.initial_memory.is_learned:
        raise ValueError(
            "the model begins with a learned memory, and the reference with an empty one: "
            "export the model it was tuned from"
        )
    parameters = dict(tree_flatten(model.parameters()))
    if packed := [name for name in parameters if name.endswith(".scales")]:
        raise ValueError(
            f"the model is quantised ({packed[0].removesuffix('.scales')} and others); "
            "PyTorch wants whole numbers: export the model it was made from"
        )
    return {
        name: Weight(array.shape, (name,), lambda array=array: array, array.dtype)
        for name, array in parameters.items()
    }


def write_pt(file: Path, weights: Mapping[str, Weight]) -> None:
    """Write weights as a file of `torch.save`.

    Raises:
        ValueError: if PyTorch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise ValueError("--format pt needs PyTorch: pip install 'fm-mlx[torch]'") from error

    def tensor(array: mx.array) -> torch.Tensor:
        if array.dtype == mx.bfloat16:
            bits = np.array(mx.contiguous(array).view(mx.int16))
            return torch.from_numpy(bits).view(torch.bfloat16)
        return torch.from_numpy(np.array(array))

    torch.save({name: tensor(weight.read()) for name, weight in weights.items()}, file)
