"""The names that FM checkpoints are likely to come with, as key maps; tried in this order."""

from __future__ import annotations

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

REFERENCE = key_map(
    "fm_mlx.convert.torch_reference",
    {
        "rename": [
            [r"^embedding\.", "model.embed_tokens."],
            [r"^blocks\.(\d+)\.norm1\.", r"model.layers.\1.memory_norm."],
            [r"^blocks\.(\d+)\.norm2\.", r"model.layers.\1.mlp_norm."],
            [r"^blocks\.(\d+)\.", r"model.layers.\1."],
            [r"\.mlp\.(gate|up|down)\.weight$", r".mlp.\1_proj.weight"],
            [r"\.memory\.w_in\.", ".memory.in_proj."],
            [r"\.memory\.w_out\.", ".memory.out_proj."],
            [r"^norm\.", "model.norm."],
            [r"^head\.", "lm_head."],
        ],
        "concat": [_ROUTER],
    },
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
