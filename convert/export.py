"""``fm-mlx export``: an MLX model as a checkpoint of the PyTorch reference."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from fm_mlx.convert.key_map import Weight
from fm_mlx.convert.writing import write_config, write_tokenizer, write_weights
from fm_mlx.files import folder_at
from fm_mlx.loading import find_model, load
from fm_mlx.model import Model

# Our names, and those of fm_mlx.convert.torch_reference; the router stands apart.
_NAMES = (
    (r"^model\.embed_tokens\.", "embedding."),
    (r"^model\.layers\.(\d+)\.memory_norm\.", r"blocks.\1.norm1."),
    (r"^model\.layers\.(\d+)\.mlp_norm\.", r"blocks.\1.norm2."),
    (r"^model\.layers\.(\d+)\.", r"blocks.\1."),
    (r"\.memory\.in_proj\.", ".memory.w_in."),
    (r"\.memory\.out_proj\.", ".memory.w_out."),
    (r"\.mlp\.(gate|up|down)_proj\.", r".mlp.\1."),
    (r"^model\.norm\.", "norm."),
    (r"^lm_head\.", "head."),
)


def to_reference(weights: Mapping[str, Weight]) -> dict[str, Callable[[], mx.array]]:
    """Weights under our names as those of the reference; nothing is read."""
    return {name: weight.read for name, weight in reference_weights(weights).items()}


def reference_weights(weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """Weights under our names, renamed; the router in three."""
    renamed = {}
    for name, weight in weights.items():
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, name)
        if not name.endswith(".memory.router.weight"):
            renamed[name] = weight
            continue
        memory = name.removesuffix("router.weight")
        rows = weight.shape[0] - 2
        for part, start, count in (("alpha", 0, rows), ("eta", rows, 1), ("mu", rows + 1, 1)):
            renamed[f"{memory}w_{part}.weight"] = weight.rows(start, count)
    return renamed


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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``fm-mlx export``."""
    parser.add_argument(
        "--model", help="a model folder or Hugging Face repository; default: the packaged model"
    )
    parser.add_argument("--to", choices=["torch"], default="torch", help="the kind (default torch)")
    parser.add_argument(
        "--torch-path", default="torch_model", help="folder to write (default torch_model)"
    )
    parser.add_argument(
        "--format",
        choices=["safetensors", "pt"],
        default="safetensors",
        help="of the weights; pt needs PyTorch (default safetensors)",
    )


def run(args: argparse.Namespace) -> int:
    """Write a folder: weights, config.json, tokenizer."""
    source = find_model(args.model)
    model, _ = load(source, lazy=True)
    weights = reference_weights(model_weights(model))
    path = Path(args.torch_path)
    with folder_at(path) as folder:
        if args.format == "pt":
            _write_pt(folder / "model.pt", weights)
        else:
            write_weights(folder, weights, lambda _: None, lambda *_: None)
        write_tokenizer(source, folder)
        write_config(folder, model.args)
    print(f"{path}: {len(weights)} tensors by the names of fm_mlx.convert.torch_reference")
    return 0


def _write_pt(file: Path, weights: Mapping[str, Weight]) -> None:
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
