"""``fm-mlx fuse``: a model with an adapter becomes a model without one."""

from __future__ import annotations

import argparse
from pathlib import Path

from mlx_lm.utils import save, upload_to_hub

from fm_mlx.finite import is_finite
from fm_mlx.loading import find_model, load
from fm_mlx.lora.fuse import fuse
from fm_mlx.support.arrays import named_arrays
from fm_mlx.support.files import folder_at


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options, by mlx-lm's names."""
    parser.add_argument("--model", help="the model that was tuned (default: the packaged model)")
    parser.add_argument("--adapter-path", default="adapters", help="its adapter (adapters)")
    parser.add_argument("--save-path", default="fused_model", help="folder to write (fused_model)")
    parser.add_argument(
        "--dequantize", action="store_true", help="write a quantised model in floating point"
    )
    parser.add_argument("--upload-repo", help="Hugging Face repository to upload the result to")


def run(args: argparse.Namespace) -> int:
    """Write the folder of the fused model."""
    source = find_model(args.model)
    model, tokenizer, config = load(source, adapter_path=args.adapter_path, return_config=True)
    path = Path(args.save_path)
    with folder_at(path) as folder:
        fuse(model, dequantize=args.dequantize)
        if args.dequantize:
            config.pop("quantization", None)
            config.pop("quantization_config", None)
        weights = named_arrays(model.parameters())
        bad = [name for name, x in weights.items() if not is_finite(x)]
        if bad:
            raise ValueError(f"{bad[0]} has NaN or infinite numbers after fusing")
        save(folder, source, model, tokenizer, config, donate_model=False)
    print(f"{path}: {source} with the adapter of {args.adapter_path}")
    if args.upload_repo:
        upload_to_hub(str(path), args.upload_repo)
    return 0
