"""The Factorization Memory language model, to mlx-lm's contract for models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.base import BaseModelArgs, create_ssm_mask
from mlx_lm.models.cache import ArraysCache

from fm_mlx import initial_memory, memory, ops
from fm_mlx.initial_memory import InitialMemory
from fm_mlx.layer import FactorizationMemory

MODEL_TYPE = "factorization_memory"


@dataclass
class ModelArgs(BaseModelArgs):
    """The keys of ``config.json``; the defaults are the paper's choices (arXiv:2511.00315).

    Attributes:
        hidden_size: width of the residual stream.
        num_hidden_layers: blocks.
        intermediate_size: width of the SwiGLU.
        vocab_size: tokens.
        memory_size: d, width of a row of the memory; None: hidden_size.
        num_memory_states: m, rows of the memory.
        num_active_states: k, rows a token writes and reads; None: a quarter of m.
            k = m is the dense model.
        affinity_temperature: tau of the routing softmax.
        rms_norm_eps: of the norms in the residual stream.
        memory_norm_eps: of the row norm inside the memory.
        tie_word_embeddings: the head is the embedding.

    Raises:
        ValueError: names the key, its value and what is allowed.
    """

    hidden_size: int
    num_hidden_layers: int
    intermediate_size: int
    vocab_size: int
    model_type: str = MODEL_TYPE
    memory_size: int | None = None
    num_memory_states: int = 64
    num_active_states: int | None = None
    affinity_temperature: float = 1.0
    rms_norm_eps: float = 1e-6
    memory_norm_eps: float = 1e-6
    tie_word_embeddings: bool = True

    def __post_init__(self):
        if self.model_type != MODEL_TYPE:
            raise ValueError(f"model_type is {self.model_type!r}; allowed is {MODEL_TYPE!r}")
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
            self._check_integer(key, most=None)
        if self.num_active_states is None:
            self.num_active_states = max(1, self.num_memory_states // 4)
        self._check_integer("num_active_states", most=self.num_memory_states)
        for key in ("affinity_temperature", "rms_norm_eps", "memory_norm_eps"):
            value = getattr(self, key)
            if not _is_number(value) or not 0 < value < float("inf"):
                raise ValueError(f"{key} is {value!r}; allowed are finite numbers above 0")
        if not isinstance(self.tie_word_embeddings, bool):
            raise ValueError(
                f"tie_word_embeddings is {self.tie_word_embeddings!r}; allowed are true and false"
            )

    def _check_integer(self, key: str, most: int | None) -> None:
        value = getattr(self, key)
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or value < 1 or (most is not None and value > most):
            allowed = f"1 to {most} (num_memory_states)" if most else "whole numbers from 1"
            raise ValueError(f"{key} is {value!r}; allowed are {allowed}")

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


class RMSNorm(nn.RMSNorm):
    """RMS norm with a float32 weight, in one launch with the sum that it norms."""

    def __call__(self, x: mx.array, update: mx.array | None = None) -> tuple[mx.array, mx.array]:
        """x + update and its norm, both in the dtype of x; no update is one of zeros."""
        if update is None:
            return x, super().__call__(x).astype(x.dtype)
        return ops.add_rms_norm(x, update, self.weight, self.eps)


class MLP(nn.Module):
    def __init__(self, args: ModelArgs):
        super().__init__()
        self.gate_proj = nn.Linear(args.hidden_size, args.intermediate_size, bias=False)
        self.up_proj = nn.Linear(args.hidden_size, args.intermediate_size, bias=False)
        self.down_proj = nn.Linear(args.intermediate_size, args.hidden_size, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(ops.swiglu(self.gate_proj(x), self.up_proj(x)))


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
        )
        self.mlp_norm = RMSNorm(args.hidden_size, eps=args.rms_norm_eps)
        self.mlp = MLP(args)

    def __call__(
        self,
        x: mx.array,
        update: mx.array | None = None,
        mask: mx.array | None = None,
        cache: ArraysCache | None = None,
        initial: mx.array | None = None,
        starts: mx.array | None = None,
    ) -> tuple[mx.array, mx.array]:
        x, normed = self.memory_norm(x, update)
        x, normed = self.mlp_norm(x, self.memory(normed, mask, cache, initial, starts))
        return x, self.mlp(normed)


class Backbone(nn.Module):
    """Embedding, blocks and the last norm: tokens (B, T) -> (B, T, hidden)."""

    def __init__(self, args: ModelArgs):
        super().__init__()
        self.embed_tokens = nn.Embedding(args.vocab_size, args.hidden_size)
        self.layers = [Block(args) for _ in range(args.num_hidden_layers)]
        self.norm = RMSNorm(args.hidden_size, eps=args.rms_norm_eps)

    def __call__(
        self,
        inputs: mx.array,
        cache: list[ArraysCache] | None = None,
        input_embeddings: mx.array | None = None,
        initial: list[mx.array | None] | None = None,
        starts: mx.array | None = None,
    ) -> mx.array:
        x = self.embed_tokens(inputs) if input_embeddings is None else input_embeddings
        nothing = [None] * len(self.layers)
        cache, initial = cache or nothing, initial or nothing
        mask = create_ssm_mask(x, cache[0])
        update = None
        for layer, layer_cache, begin in zip(self.layers, cache, initial, strict=True):
            x, update = layer(x, update, mask, layer_cache, begin, starts)
        return self.norm(x, update)[1]


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
        starts: mx.array | None = None,
    ) -> mx.array:
        """Logits (B, T, vocab) of tokens (B, T), in the dtype of the weights.

        Args:
            inputs: token ids.
            cache: of `make_cache`; read and updated.
            input_embeddings: (B, T, hidden), used instead of the embedded ids.
            starts: (B, R) integers, rising in a row: tokens at which another text begins, with
                a memory of its own; from T on: none (`ops.memory_scan`).
        """
        initial = self.initial_memory.states()
        return self.logits(self.model(inputs, cache, input_embeddings, initial, starts))

    def logits(self, x: mx.array) -> mx.array:
        """The head: (..., hidden) after the last norm -> (..., vocab)."""
        if self.args.tie_word_embeddings:
            return self.model.embed_tokens.as_linear(x)
        return self.lm_head(x)

    @property
    def layers(self) -> list[Block]:
        return self.model.layers

    def make_cache(self) -> list[ArraysCache]:
        """One cache per layer, for one state or for two that take turns (`fm_mlx.memory`)."""
        args = self.args
        entries = memory.cache_entries(
            args.num_memory_states, args.num_active_states, args.memory_size
        )
        caches = [ArraysCache(size=entries) for _ in self.layers]
        # what was learned stands in the caches from the start: to mlx-lm, which joins caches
        # into batches, one without a state is one of zeros
        for cache, state in zip(caches, self.initial_memory.states(), strict=True):
            if state is not None:
                memory.set_state(cache, state[None], args.num_active_states)
        return caches

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Weights as this model wants them: no second head if tied, float32 where it counts.

        A checkpoint that brings an initial memory is given a place for it.
        """
        if any(name.startswith(f"{initial_memory.PREFIX}.") for name in weights):
            self.initial_memory = self.initial_memory.to_lora()
        kept = {
            name: weight if self.cast_predicate(name) else weight.astype(mx.float32)
            for name, weight in weights.items()
        }
        if self.args.tie_word_embeddings:
            kept.pop("lm_head.weight", None)
        return kept

    @property
    def quant_predicate(self):
        """What mlx-lm may quantise: everything but the router."""
        return lambda path, _: not path.endswith("router")

    @property
    def cast_predicate(self):
        """What mlx-lm may cast to a lower precision: not router, norms and initial memory."""
        return lambda path: (
            not (
                path.endswith(("router.weight", "norm.weight"))
                or path.startswith(f"{initial_memory.PREFIX}.")
            )
        )
