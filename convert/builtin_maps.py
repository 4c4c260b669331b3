"""The names that FM checkpoints are likely to come with, as key maps; tried in this order."""

from __future__ import annotations

import re

from fm_mlx.convert.key_map import KeyMap, key_map

_ROUTER = {
    "match": [rf"\.memory\.w_{part}\.weight$" for part in ("alpha", "eta", "mu")],
    "into": ".memory.router.weight",
}

# What labs call the projections of the memory, wherever it stands.
_CALLED = {
    "in_proj": "i_proj|v_proj|value_proj|in|w_i|W_i|w_in|W_in",
    "out_proj": "o_proj|output_proj|out|w_o|W_o|w_out|W_out",
    "w_alpha": "alpha_proj|a_proj|affinity|affinity_proj|alpha|W_alpha",
    "w_eta": "eta_proj|e_proj|eta|update|update_proj",
    "w_mu": "mu_proj|m_proj|mu|merge|merge_proj",
}
_PROJECTIONS = [
    [rf"\.memory\.(?:{names})\.weight$", f".memory.{ours}.weight"]
    for ours, names in _CALLED.items()
]

# A mixer by any of its usual names.
_MIXER = r"\.(?:self_attn|attention|attn|mixer|fm|factorization_memory|memory)\."

OURS = key_map("fm-mlx", {})

# Modules of fm_mlx.convert.torch_reference beside ours; {i} is the number of a layer. What the
# reference holds in w_alpha, w_eta and w_mu are the rows of our router.
REFERENCE_MODULES = {
    "embedding": "model.embed_tokens",
    "blocks.{i}.norm1": "model.layers.{i}.memory_norm",
    "blocks.{i}.memory.w_in": "model.layers.{i}.memory.in_proj",
    "blocks.{i}.memory.w_alpha": "model.layers.{i}.memory.w_alpha",
    "blocks.{i}.memory.w_eta": "model.layers.{i}.memory.w_eta",
    "blocks.{i}.memory.w_mu": "model.layers.{i}.memory.w_mu",
    "blocks.{i}.memory.w_out": "model.layers.{i}.memory.out_proj",
    "blocks.{i}.norm2": "model.layers.{i}.mlp_norm",
    "blocks.{i}.mlp.gate": "model.layers.{i}.mlp.gate_proj",
    "blocks.{i}.mlp.up": "model.layers.{i}.mlp.up_proj",
    "blocks.{i}.mlp.down": "model.layers.{i}.mlp.down_proj",
    "norm": "model.norm",
    "head": "lm_head",
}


def renaming(old: str, new: str) -> list[str]:
    """A rename entry of a key map for the weights of a module; {i} is the number of a layer."""
    pattern = re.escape(old).replace(r"\{i\}", r"(\d+)")
    return [rf"^{pattern}\.weight$", new.replace("{i}", r"\1") + ".weight"]


REFERENCE = key_map(
    "fm_mlx.convert.torch_reference",
    {
        "rename": [
            *(renaming(theirs, ours) for theirs, ours in REFERENCE_MODULES.items()),
            # a misspelt name stands beside ours all the same
            [r"^blocks\.(\d+)\.", r"model.layers.\1."],
        ],
        "concat": [_ROUTER],
    },
)

# The way back; the router is split first (`fm_mlx.convert.export`).
TO_REFERENCE = key_map(
    "to fm_mlx.convert.torch_reference",
    {"rename": [renaming(ours, theirs) for theirs, ours in REFERENCE_MODULES.items()]},
)

HUGGING_FACE = key_map(
    "Hugging Face, as Llama",
    {
        "ignore": [r"rotary_emb\.inv_freq$"],
        "rename": [
            [r"^(?!model\.|lm_head\.)", "model."],
            [r"\.input_layernorm\.", ".memory_norm."],
            [r"\.(?:post_attention|pre_mlp|post_memory)_layernorm\.", ".mlp_norm."],
            [_MIXER, ".memory."],
            *_PROJECTIONS,
        ],
        "concat": [_ROUTER],
    },
)

FLASH_LINEAR_ATTENTION = key_map(
    "flash-linear-attention",
    {
        "rename": [
            [r"^(?!model\.|lm_head\.)", "model."],
            [r"^model\.embeddings\.", "model.embed_tokens."],
            [r"\.(?:attn_norm|mixer_norm)\.", ".memory_norm."],
            [_MIXER, ".memory."],
            *_PROJECTIONS,
        ],
        "concat": [_ROUTER],
    },
)

BUILTIN: tuple[KeyMap, ...] = (OURS, REFERENCE, HUGGING_FACE, FLASH_LINEAR_ATTENTION)
