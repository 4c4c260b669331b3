"""A checkpoint of another lab, by a key map, to MLX: the logits are those of the original.

    python examples/convert.py

There are no official weights of Factorization Memory, so every lab's names differ. The script
plays such a lab: it writes the packaged model as PyTorch would save it, under names of its own,
with the input projection and the router of a layer in one matrix. A key map of two rules says how
they become ours, and `fm-mlx convert` does the rest. What one sees: its report (with PyTorch
installed, a comparison with the reference in PyTorch), and how far the logits of the converted
model are from those of the original. Nothing is left behind.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from pathlib import Path

import mlx.core as mx

import fm_mlx
from fm_mlx.commands import cli
from fm_mlx.loading import PRETRAINED

KEY_MAP = {
    "rename": [[r"^tower/(\d+)/", r"model.layers.\1."]],
    "split": [{"match": "fused$", "into": ["memory.in_proj.weight", "memory.router.weight"]}],
}


def write_checkpoint(folder: Path) -> list[str]:
    """Write the packaged model as another lab's; return the names of the first layer."""
    weights = {
        re.sub(r"^model\.layers\.(\d+)\.", r"tower/\1/", name): weight
        for name, weight in mx.load(str(PRETRAINED / "model.safetensors")).items()
    }
    for name in [name for name in weights if name.endswith("memory.in_proj.weight")]:
        layer = name.removesuffix("memory.in_proj.weight")
        parts = [weights.pop(name), weights.pop(layer + "memory.router.weight")]
        weights[layer + "fused"] = mx.concatenate(parts)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "pt"})
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(PRETRAINED / name, folder / name)
    return sorted(name for name in weights if name.startswith("tower/0/"))


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        theirs, ours, rules = (Path(scratch) / name for name in ("theirs", "ours", "map.json"))
        theirs.mkdir()
        print("Their first layer:", *write_checkpoint(theirs))
        rules.write_text(json.dumps(KEY_MAP))
        command = ["--hf-path", theirs, "--mlx-path", ours, "--key-map", rules]
        if cli.main(["convert", *map(str, command)]):
            raise SystemExit("the conversion failed")
        original, tokenizer = fm_mlx.load()
        converted, _ = fm_mlx.load(ours)
        tokens = mx.array([tokenizer.encode("In the beginning God created the heaven")])
        difference = mx.abs(original(tokens) - converted(tokens)).max().item()
        print(f"Largest difference of the logits, converted and original: {difference:.1e}")


if __name__ == "__main__":
    main()
