"""A small model with the packaged tokenizer, that reads long texts fast."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten

import fm_mlx
from fm_mlx.loading import PRETRAINED

CONFIG = {
    "model_type": "factorization_memory",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "vocab_size": 2048,
    "memory_size": 32,
    "num_memory_states": 16,
    "num_active_states": 4,
}


def write_reader(folder: Path) -> Path:
    """A folder with the model; its weights are always the same."""
    folder.mkdir()
    mx.random.seed(3)
    model = fm_mlx.Model(fm_mlx.ModelArgs.from_dict(CONFIG))
    weights = dict(tree_flatten(model.parameters()))
    # what is read changes what is said: the memory is as large as the token itself
    weights = {
        name: 5 * weight if name.endswith("out_proj.weight") else weight
        for name, weight in weights.items()
    }
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(CONFIG))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(PRETRAINED / name, folder / name)
    return folder
