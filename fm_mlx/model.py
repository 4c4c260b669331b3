"""The Factorization Memory language model, to mlx-lm's contract for models."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.nn.utils import checkpoint
from mlx_lm.models.base import BaseModelArgs, create_ssm_mask
from mlx_lm.models.cache import ArraysCache

from fm_mlx import cache as caches
from fm_mlx import initial_memory, ops
from fm_mlx.initial_memory import InitialMemory
from fm_mlx.layer import LINEAR, PRODUCT, FactorizationMemory
from fm_mlx.metal_kernels.launch import on_cpu
from fm_mlx.mlp import MLP
from fm_mlx.precision import may_be_quantised, stays_float32
from fm_mlx.token_step import TokenStep, suits

MODEL_TYPE = "factorization_memory"

# Sizes beyond this are no sizes of an array of MLX.
_LARGEST = 2**31 - 1

# Finite float32 logits divided by tau stay finite, and eps keeps a row of zeros apart from 0.
_RANGES = {
    "affinity_temperature": (1e-6, 1e6),
    "rms_norm_eps": (1e-30, 1.0),
    "memory_norm_eps": (1e-30, 1.0),
}


@dataclass
class ModelArgs(BaseModelArgs):
    """The keys of ``config.json``; the defaults are the paper's choices (arXiv:2511.00315).

    Attributes:
        hidden_size: The width of the residual stream.
        num_hidden_layers: The number of blocks.
        intermediate_size: The width of the SwiGLU.
        vocab_size: The number of tokens of the vocabulary.
        memory_size: The width d of a row of the memory; hidden_size if absent.
        num_memory_states: The number m of rows of the memory.
        num_active_states: The number k of rows that a token writes and reads; a quarter of m if
            absent. k = m is the dense model.
        affinity_temperature: The temperature tau, by which the routing logits are divided.
        router: Where the logits of the rows come from. "linear", the paper's: each row has its
            own weights. "product": sqrt(m) weights in each of two halves, whose sums are the
            logits of the m rows (product keys, arXiv:1907.05242), so that the cost of choosing
            among m rows is that of 2 sqrt(m).
        rms_norm_eps: Added to the mean square in the norms of the residual stream.
        memory_norm_eps: Added to the mean square in the row norm inside the memory.
        tie_word_embeddings: Whether the head is the embedding.

    Raises:
        ValueError: The text names the key, its value and what is allowed.
    """

    hidden_size: int
    num_hidden_layers: int
    intermediate_size: int
    vocab_size: int
    model_type: str = MODEL_TYPE
    # None, until __post_init__ puts a number there
    memory_size: int = cast(int, None)
    num_memory_states: int = 64
    num_active_states: int = cast(int, None)
    affinity_temperature: float = 1.0
    router: str = LINEAR
    rms_norm_eps: float = 1e-6
    memory_norm_eps: float = 1e-6
    tie_word_embeddings: bool = True

    def __post_init__(self):
        if self.model_type != MODEL_TYPE:
            raise ValueError(f"model_type is {shown(self.model_type)}; allowed is {MODEL_TYPE!r}")
        if self.memory_size is None:
            self.memory_size = self.hidden_size
        for key in (
            "hidden_size",
            "num_hidden_layers",
            "intermediate_size",
            "vocab_size",
            "memory_size",
            "num_memory_states",
        ):
            self._check_integer(key)
        if self.num_active_states is None:
            self.num_active_states = max(1, self.num_memory_states // 4)
        self._check_integer("num_active_states", self.num_memory_states, " (num_memory_states)")
        for key, (least, most) in _RANGES.items():
            value = getattr(self, key)
            if not _is_number(value) or not least <= value <= most:
                raise ValueError(
                    f"{key} is {shown(value)}; allowed are numbers from {least:g} to {most:g}"
                )
        if self.router not in (LINEAR, PRODUCT):
            raise ValueError(
                f"router is {shown(self.router)}; allowed are {LINEAR!r} and {PRODUCT!r}"
            )
        if (
            self.router == PRODUCT
            and math.isqrt(self.num_memory_states) ** 2 != self.num_memory_states
        ):
            raise ValueError(
                f"num_memory_states is {self.num_memory_states}; with router {PRODUCT!r} "
                "allowed are the squares of integers"
            )
        if not isinstance(self.tie_word_embeddings, bool):
            raise ValueError(
                f"tie_word_embeddings is {shown(self.tie_word_embeddings)}; "
                "allowed are true and false"
            )

    @property
    def num_logits(self) -> int:
        """The routing logits of a layer: m, or those of the two halves of product keys."""
        return ops.num_logits(self.num_memory_states, self.router == PRODUCT)

    def _check_integer(self, key: str, most: int = _LARGEST, why: str = "") -> None:
        value = getattr(self, key)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise ValueError(f"{key} is {shown(value)}; allowed are 1 to {most}{why}")

    @classmethod
    def from_dict(cls, params: dict[str, Any]) -> ModelArgs:
        """The arguments of a parsed ``config.json``; other keys are ignored."""
        required = ("hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size")
        missing = [key for key in required if key not in params]
        if missing:
            raise ValueError(f"the config has no {', '.join(missing)}")
        return super().from_dict(params)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def shown(value: object) -> str:
    """A value for a one-line message, whatever its size."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print an integer of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


class RMSNorm(nn.RMSNorm):
    """RMS norm with a float32 weight, in one launch with the sum that it norms."""

    def __call__(self, x: mx.array, update: mx.array | None = None) -> tuple[mx.array, mx.array]:
        """x + update and its norm, both in the dtype of x; no update is one of zeros."""
        if update is None:
            return x, super().__call__(x).astype(x.dtype)
        total, normed = ops.add_rms_norm(x, update, self.weight, self.eps)
        return total, normed

    def and_in_float(
        self, x: mx.array, update: mx.array | None = None
    ) -> tuple[mx.array, mx.array, mx.array]:
        """x + update, its norm, and the norm's numbers in float32."""
        if update is None:
            _, normed = self(x)
            return x, normed, normed.astype(mx.float32)
        total, normed, in_float = ops.add_rms_norm(x, update, self.weight, self.eps, in_float=True)
        return total, normed, in_float


class Block(nn.Module):
    """x + FM(norm(x)), then x + SwiGLU(norm(x)).

    The last sum is left to the next norm, which reads it anyway: what goes from block to
    block is (x, update), whose sum is the residual stream.
    """

    def __init__(self, args: ModelArgs):
        super().__init__()
        self.memory_norm = RMSNorm(args.hidden_size, eps=args.rms_norm_eps)
        self.memory = FactorizationMemory(
            args.hidden_size,
            args.memory_size,
            args.num_memory_states,
            args.num_active_states,
            args.affinity_temperature,
            args.memory_norm_eps,
            args.router,
        )
        self.mlp_norm = RMSNorm(args.hidden_size, eps=args.rms_norm_eps)
        self.mlp = MLP(args.hidden_size, args.intermediate_size)

    def __call__(
        self,
        x: mx.array,
        update: mx.array | None = None,
        mask: mx.array | None = None,
        cache: ArraysCache | None = None,
        initial_state: mx.array | None = None,
        reset_positions: mx.array | None = None,
    ) -> tuple[mx.array, mx.array]:
        x, normed, in_float = self.memory_norm.and_in_float(x, update)
        read = self.memory(normed, mask, cache, initial_state, reset_positions, in_float)
        x, normed = self.mlp_norm(x, read)
        return x, self.mlp(normed)


class Backbone(nn.Module):
    """Embedding, blocks and the last norm: tokens (B, T) -> (B, T, hidden).

    Attributes:
        gradient_checkpointing: Whether the blocks are computed anew in the backward pass, so
            that a training step keeps less.
    """

    def __init__(self, args: ModelArgs):
        super().__init__()
        self.embed_tokens = nn.Embedding(args.vocab_size, args.hidden_size)
        self.layers = [Block(args) for _ in range(args.num_hidden_layers)]
        self.norm = RMSNorm(args.hidden_size, eps=args.rms_norm_eps)
        self.gradient_checkpointing = False
        self._token_step = TokenStep(Backbone._token)

    def __call__(
        self,
        inputs: mx.array,
        cache: list[ArraysCache] | None = None,
        input_embeddings: mx.array | None = None,
        initial_states: Sequence[mx.array | None] | None = None,
        reset_positions: mx.array | None = None,
    ) -> mx.array:
        plain = input_embeddings is None and reset_positions is None and not self.training
        if plain and cache is not None and suits(inputs, cache):
            return self._token_step(self, inputs, cache)
        x = self.embed_tokens(inputs) if input_embeddings is None else input_embeddings
        mask = create_ssm_mask(x, cache[0]) if cache else None
        return self.blocks(x, mask, cache, initial_states, reset_positions)

    def _token(self, inputs: mx.array, cache: list[ArraysCache], mask: mx.array | None) -> mx.array:
        return self.blocks(self.embed_tokens(inputs), mask, cache)

    def blocks(
        self,
        x: mx.array,
        mask: mx.array | None = None,
        cache: Sequence[ArraysCache] | None = None,
        initial_states: Sequence[mx.array | None] | None = None,
        reset_positions: mx.array | None = None,
    ) -> mx.array:
        """The blocks and the last norm: (B, T, hidden) -> (B, T, hidden).

        Args:
            x: embedded tokens.
            mask: (B, T) bool; False marks padding.
            cache, initial_states, reset_positions: as for the model.
        """
        nothing = [None] * len(self.layers)
        update = None
        for layer, layer_cache, initial_state in zip(
            self.layers, cache or nothing, initial_states or nothing, strict=True
        ):
            block = checkpoint(layer) if self.gradient_checkpointing else layer
            x, update = block(x, update, mask, layer_cache, initial_state, reset_positions)
        return self.norm(x, update)[1]

    def residual_streams(
        self, inputs: mx.array, cache: list[ArraysCache] | None = None
    ) -> list[mx.array]:
        """The residual stream (B, T, hidden) after the embedding and after each block.

        Args:
            inputs: tokens (B, T).
            cache: the state to go on from, which is updated; None begins a text.
        """
        x, update = self.embed_tokens(inputs), None
        streams = [x]
        for layer, layer_cache in zip(self.layers, cache or [None] * len(self.layers), strict=True):
            x, update = layer(x, update, cache=layer_cache)
            streams.append(x + update)
        return streams


class Model(nn.Module):
    """Factorization Memory language model; what mlx-lm loads for its ``model_type``."""

    def __init__(self, args: ModelArgs):
        super().__init__()
        self.args = args
        self.model_type = args.model_type
        self.model = Backbone(args)
        self.initial_memory = InitialMemory(
            args.num_hidden_layers, args.num_memory_states, args.memory_size
        )
        if not args.tie_word_embeddings:
            self.lm_head = nn.Linear(args.hidden_size, args.vocab_size, bias=False)

    def __call__(
        self,
        inputs: mx.array,
        cache: list[ArraysCache] | None = None,
        input_embeddings: mx.array | None = None,
        reset_positions: mx.array | None = None,
    ) -> mx.array:
        """Logits (B, T, vocab) of tokens (B, T), in the dtype of the weights.

        Args:
            inputs: token ids.
            cache: the state to go on from, from `make_cache`, which is updated; None begins a text.
            input_embeddings: (B, T, hidden), used instead of the embedded ids.
            reset_positions: (B, R) integers, rising in a row: tokens at which another text
                begins, with a memory of its own; a position from T on resets nothing
                (`ops.memory_scan`).
        """
        initial_states = None
        if cache is None or cache[0][0] is None or reset_positions is not None:
            initial_states = self.initial_memory.states()
        hidden = self.model(inputs, cache, input_embeddings, initial_states, reset_positions)
        return self.logits(hidden)

    def logits(self, x: mx.array) -> mx.array:
        """The head: (..., hidden) after the last norm -> (..., vocab)."""
        if self.args.tie_word_embeddings:
            return self.model.embed_tokens.as_linear(x)
        return self.lm_head(x)

    @property
    def layers(self) -> list[Block]:
        return self.model.layers

    def make_cache(self) -> list[ArraysCache]:
        """One cache per layer, for one state or for two that take turns (`fm_mlx.cache`)."""
        args = self.args
        entries = caches.cache_entries(
            args.num_memory_states, args.num_active_states, args.memory_size
        )
        made = [ArraysCache(size=entries) for _ in self.layers]
        # a learned state stands in the caches from the start: mlx-lm, which joins caches into
        # batches, takes one without a state for one of zeros
        for cache, state in zip(made, self.initial_memory.states(), strict=True):
            if state is not None:
                caches.set_state(cache, state[None], args.num_active_states)
        return made

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Weights as this model wants them: no second head if tied, float32 where it counts.

        A checkpoint that brings an initial memory is given a place for it.
        """
        if any(name.startswith(f"{initial_memory.PREFIX}.") for name in weights):
            self.initial_memory = self.initial_memory.to_lora()
        kept = {
            name: weight.astype(mx.float32) if stays_float32(name) else weight
            for name, weight in weights.items()
        }
        if self.args.tie_word_embeddings:
            kept.pop("lm_head.weight", None)
        return kept

    def load_weights(self, file_or_weights: Any, strict: bool = True) -> Model:
        """As `mlx.nn.Module.load_weights`; on a GPU it joins what decodes in fewer launches so."""
        super().load_weights(file_or_weights, strict)
        if not on_cpu():
            for layer in self.layers:
                layer.mlp.join()
        return self

    @property
    def quant_predicate(self) -> Callable[[str, nn.Module], bool]:
        """What mlx-lm may quantise (`fm_mlx.precision`)."""
        return lambda path, _: may_be_quantised(path)

    @property
    def cast_predicate(self) -> Callable[[str], bool]:
        """What mlx-lm may cast to a lower precision (`fm_mlx.precision`)."""
        return lambda name: not stays_float32(name)
