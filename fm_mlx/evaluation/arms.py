"""Small models that learn a task side by side: FM and mlx-lm's llama, mamba2 and gated delta."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from fm_mlx.layer import PRODUCT, FactorizationMemory
from fm_mlx.model import Model, ModelArgs
from fm_mlx.perf.bench import MAMBA2_CONFIG

# what mamba2 and gated delta begin with, by the code of their papers (arXiv:2405.21060, 2412.06464)
_TIME_STEPS = (1e-3, 1e-1)
_DECAYS = (1.0, 16.0)


def draw_time_steps(model: nn.Module) -> nn.Module:
    """Draw the time steps and decays of a new mamba2 or gated delta as their papers' code does.

    mlx-lm runs models whose weights it loads: made anew, its layers have time steps of 1.3, with
    which most heads forget within two tokens, and hardly learn to remember. Decays are those of
    mamba2 for both; gated delta's code draws them from 0 on. Models without time steps stay as
    they are.
    """
    for module in model.modules():
        if "dt_bias" in module:
            heads = module.dt_bias.shape
            least, most = map(math.log, _TIME_STEPS)
            steps = mx.exp(mx.random.uniform(least, most, heads))
            module.dt_bias = steps + mx.log(-mx.expm1(-steps))  # the inverse of softplus
            module.A_log = mx.log(mx.random.uniform(*_DECAYS, heads))
    return model


def scale_routers(model: nn.Module, scale: float) -> nn.Module:
    """Multiply the weights that score the rows of a new FM, so that its affinities are sharper.

    The logits of a new router have a deviation of 1 / sqrt(3), with which each row has much the
    same affinity to every token. The rates stay as they are, and so do models without routers.
    """
    for memory in model.modules():
        if isinstance(memory, FactorizationMemory):
            rows, rates = mx.split(memory.router.weight, [-2])
            memory.router.weight = mx.concatenate([scale * rows, rates])
    return model


def fm(vocab_size: int, hidden_size: int, layers: int, **changes: Any) -> Model:
    """Factorization Memory; changes are keys of its config (`ModelArgs`)."""
    config = dict(
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        intermediate_size=2 * hidden_size,
        vocab_size=vocab_size,
    )
    return Model(ModelArgs.from_dict(config | changes))


class ConvolvedMemory(FactorizationMemory):
    """A memory layer behind a short causal convolution, such as mamba2 and gated delta have.

    For training alone: there is no cache for the convolution.
    """

    def __init__(self, *args: Any, width: int = 4):
        super().__init__(*args)
        hidden_size = self.in_proj.weight.shape[1]
        self.width = width
        self.convolution = nn.Conv1d(hidden_size, hidden_size, width, groups=hidden_size)

    def __call__(self, x: mx.array, *args: Any) -> mx.array:
        padded = mx.pad(x, [(0, 0), (self.width - 1, 0), (0, 0)])
        return super().__call__(x + self.convolution(padded), *args)


def convolve(model: Model) -> Model:
    """Put a short convolution before each memory of a new model: not the paper's model any more."""
    args = model.args
    for block in model.layers:
        block.memory = ConvolvedMemory(
            args.hidden_size,
            args.memory_size,
            args.num_memory_states,
            args.num_active_states,
            args.affinity_temperature,
            args.memory_norm_eps,
            args.router,
        )
    return model


def fm_convolved(vocab_size: int, hidden_size: int, layers: int, **changes: Any) -> Model:
    """`fm` with a short convolution before each memory."""
    return convolve(fm(vocab_size, hidden_size, layers, **changes))


def fm_product(vocab_size: int, hidden_size: int, layers: int, **changes: Any) -> Model:
    """`fm_convolved` whose rows are chosen by product keys."""
    return fm_convolved(vocab_size, hidden_size, layers, router=PRODUCT, **changes)


def llama(vocab_size: int, hidden_size: int, layers: int, **changes: Any) -> nn.Module:
    """Attention; changes are keys of mlx-lm's llama config."""
    from mlx_lm.models import llama

    config = dict(
        model_type="llama",
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        intermediate_size=2 * hidden_size,
        num_attention_heads=2,
        rms_norm_eps=1e-6,
        vocab_size=vocab_size,
        tie_word_embeddings=True,
    )
    return llama.Model(llama.ModelArgs.from_dict(config | changes))


def mamba2(vocab_size: int, hidden_size: int, layers: int, **changes: Any) -> nn.Module:
    """Mamba-2; changes are keys of mlx-lm's mamba2 config. Two of its blocks stand for one."""
    from mlx_lm.models import mamba2

    config = MAMBA2_CONFIG | dict(
        hidden_size=hidden_size,
        num_hidden_layers=2 * layers,
        intermediate_size=2 * hidden_size,
        num_heads=4,
        head_dim=hidden_size // 2,
        state_size=64,
        vocab_size=vocab_size,
    )
    return mamba2.Model(mamba2.ModelArgs.from_dict(config | changes))


def gated_delta(vocab_size: int, hidden_size: int, layers: int, **changes: Any) -> nn.Module:
    """Gated DeltaNet: mlx-lm's qwen3_next with linear layers alone, and dense SwiGLUs."""
    from mlx_lm.models import qwen3_next

    config = dict(
        model_type="qwen3_next",
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        intermediate_size=2 * hidden_size,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=hidden_size // 2,
        linear_num_value_heads=2,
        linear_num_key_heads=2,
        linear_key_head_dim=hidden_size // 2,
        linear_value_head_dim=hidden_size // 2,
        linear_conv_kernel_dim=4,
        num_experts=0,
        num_experts_per_tok=0,
        decoder_sparse_step=1,
        shared_expert_intermediate_size=0,
        mlp_only_layers=[],
        moe_intermediate_size=0,
        rms_norm_eps=1e-6,
        vocab_size=vocab_size,
        rope_theta=10_000.0,
        partial_rotary_factor=1.0,
        max_position_embeddings=1 << 20,
        tie_word_embeddings=True,
        full_attention_interval=layers + 1,
    )
    model = qwen3_next.Model(qwen3_next.ModelArgs.from_dict(config | changes))
    model.model.fa_idx = None  # it would look for an attention layer to take a mask from
    return model


ARMS: dict[str, Callable[..., nn.Module]] = {
    "fm": fm,
    "fm_convolved": fm_convolved,
    "fm_product": fm_product,
    "llama": llama,
    "mamba2": mamba2,
    "gated_delta": gated_delta,
}


def build(
    arm: str,
    vocab_size: int,
    hidden_size: int,
    layers: int,
    seed: int,
    router_scale: float = 1.0,
    **changes: Any,
) -> nn.Module:
    """A new model of an arm, its weights drawn by a seed.

    Args:
        arm: a name of `ARMS`.
        vocab_size, hidden_size, layers, changes: as for the arm.
        seed: of the weights.
        router_scale: of an FM's routers (`scale_routers`); 1 is the paper's.

    Raises:
        ValueError: There is no such arm.
    """
    if arm not in ARMS:
        raise ValueError(f"no arm {arm!r}; allowed are {', '.join(ARMS)}")
    mx.random.seed(seed)
    model = draw_time_steps(ARMS[arm](vocab_size, hidden_size, layers, **changes))
    return scale_routers(model, router_scale)
