"""Small models of every kind whose text depends on what they read."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models import llama, mamba2

import fm_mlx
from fm_mlx.perf.bench import MAMBA2_CONFIG

VOCAB = 512
_SHAPE = dict(hidden_size=32, num_hidden_layers=2, vocab_size=VOCAB, intermediate_size=64)
CONFIGS = {
    "fm": dict(model_type="factorization_memory", memory_size=16, num_memory_states=8, **_SHAPE),
    # two buffers that take turns
    "wide fm": dict(
        model_type="factorization_memory",
        memory_size=64,
        num_memory_states=1024,
        num_active_states=4,
        **_SHAPE,
    ),
    "llama": dict(model_type="llama", num_attention_heads=2, rms_norm_eps=1e-6, **_SHAPE),
    "mamba2": MAMBA2_CONFIG | dict(num_heads=4, head_dim=16, state_size=8) | _SHAPE,
}
CLASSES = {
    "llama": (llama.Model, llama.ModelArgs),
    "mamba2": (mamba2.Model, mamba2.ModelArgs),
    "factorization_memory": (fm_mlx.Model, fm_mlx.ModelArgs),
}


def build(name: str) -> nn.Module:
    mx.random.seed(5)
    config = CONFIGS[name]
    model_class, args_class = CLASSES[config["model_type"]]
    model = model_class(args_class.from_dict(config))
    # what was read changes what is said, by more than the tolerances here
    weights = dict(tree_flatten(model.parameters()))
    for name, weight in weights.items():
        if name.endswith(("out_proj.weight", "o_proj.weight")):
            weights[name] = 20 * weight
        if name.endswith("A_log"):  # mamba2's decay, as it is made, forgets within a few tokens
            weights[name] = mx.full(weight.shape, -6.0)
    model.load_weights(list(weights.items()))
    mx.eval(model.parameters())
    return model
