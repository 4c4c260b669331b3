"""``fm-mlx export``: an MLX model as a checkpoint of the PyTorch reference."""

from __future__ import annotations

import argparse
from pathlib import Path

from fm_mlx.convert.export import model_weights, to_reference, write_pt
from fm_mlx.convert.writing import write_config, write_tokenizer, write_weights
from fm_mlx.loading import find_model, load
from fm_mlx.support.files import folder_at


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
    weights = to_reference(model_weights(model))
    path = Path(args.torch_path)
    with folder_at(path) as folder:
        if args.format == "pt":
            write_pt(folder / "model.pt", weights)
        else:
            write_weights(folder, weights, lambda _: None, lambda *_: None)
        write_tokenizer(source, folder)
        write_config(folder, model.args)
    print(f"{path}: {len(weights)} tensors by the names of fm_mlx.convert.torch_reference")
    return 0
