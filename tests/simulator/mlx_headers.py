"""MLX's own Metal headers, in the order in which MLX puts them together.

Not all of them include what they need, and some define what others do.
"""

FOLDER = "mlx/backend/metal/kernels/"

GROUPS = {
    "operations": (
        *("binary_ops", "ternary_ops", "unary_ops", "binary", "binary_two", "ternary", "unary"),
        *("copy", "arange", "indexing/indexing", "indexing/gather"),
    ),
    "reductions": (
        *("defines", "atomic", "reduction/ops", "reduce_utils", "reduce", "softmax", "logsumexp"),
        *("scan", "sort", "indexing/scatter", "searchsorted"),
    ),
    "quantized": ("steel/gemm/gemm", "quantized_utils", "fp_quantized", "gemv", "hadamard"),
    "matrices": (
        *("steel/gemm/gemm", "steel/gemm/kernels/steel_gemm_fused", "fft", "sdpa_vector"),
    ),
    "attention": ("steel/attn/attn", "steel/attn/kernels/steel_attention"),
}

# For the product of a quantized matrix.
PRODUCT = ("steel/gemm/gemm", "quantized_utils", "quantized")

TENSORS = ("gated_delta_nax_ops", "gated_delta_update_nax", "steel/gemm/nax", "steel/attn/nax")
