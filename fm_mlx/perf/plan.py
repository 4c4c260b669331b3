"""What a model needs, and how fast a chip could be at most.

All speeds are bounds: bytes over the memory's bandwidth, and where it is known operations
over the arithmetic's speed. What a program reaches lies below.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from fm_mlx.metal_kernels.cost import FLOAT_BYTES, Cost
from fm_mlx.model import ModelArgs
from fm_mlx.perf.chips import Chip
from fm_mlx.perf.work import scan_gradient_work, scan_work, update_work
from fm_mlx.precision import stays_float32
from fm_mlx.weights import EMBEDDING, HEAD, weight_shapes

# The paper's model of a billion parameters (arXiv:2511.00315): 16 layers, hidden = d = 2048,
# m = 64, k = 8. The widths of its SwiGLU and vocabulary are ours, to reach the billion.
PAPER_1B = ModelArgs(
    hidden_size=2048,
    num_hidden_layers=16,
    intermediate_size=8192,
    vocab_size=32_000,
    num_memory_states=64,
    num_active_states=8,
)

# Bits of a weight. Quantised ones have a 16-bit scale and a 16-bit bias for 64 weights.
WEIGHT_BITS = {"float32": 32, "float16": 16, "bfloat16": 16, "8bit": 8.5, "4bit": 4.5}

# Activations are in the dtype of the weights, or in 16 bits beside quantised ones.
_ITEM_BYTES = {"float32": 4}

# The passes over the weights of a step of AdamW: read forwards and backwards, the gradient and
# both moments read and written, the weights read and written.
_PASSES_OF_A_STEP = 10

# Tokens that one pass over the weights reads in; mlx-lm's default.
PREFILL_STEP = 2048


@dataclass(frozen=True)
class Plan:
    """What a model costs at a batch size and a dtype of weights.

    Attributes:
        args: The model.
        batch: The number of sequences that are decoded together.
        dtype: The dtype of the weights, one of WEIGHT_BITS.
    """

    args: ModelArgs
    batch: int = 1
    dtype: str = "bfloat16"

    @cached_property
    def _sizes(self) -> dict[str, int]:
        """How many numbers each weight has."""
        return {name: math.prod(shape) for name, shape in weight_shapes(self.args).items()}

    @property
    def precise(self) -> int:
        """How many numbers stay float32 (`fm_mlx.precision`)."""
        return sum(size for name, size in self._sizes.items() if stays_float32(name))

    @property
    def head_weights(self) -> int:
        """How many numbers the head has, which may be the embedding."""
        return self._sizes.get(HEAD, self._sizes[EMBEDDING])

    @property
    def block_weights(self) -> int:
        """How many numbers the blocks' projections and SwiGLUs have."""
        tables = sum(self._sizes.get(name, 0) for name in (EMBEDDING, HEAD))
        return self.parameters - self.precise - tables

    @property
    def parameters(self) -> int:
        """How many numbers the model has."""
        return sum(self._sizes.values())

    @property
    def weight_bits(self) -> float:
        """Of a weight that does not stay float32."""
        return WEIGHT_BITS[self.dtype]

    @property
    def item_bytes(self) -> int:
        """Bytes of a number of the activations."""
        return _ITEM_BYTES.get(self.dtype, 2)

    def _weight_bytes(self, weights: int) -> int:
        return round(weights * self.weight_bits / 8) + self.precise * FLOAT_BYTES

    @property
    def weight_bytes(self) -> int:
        """Of the whole model in memory."""
        return self._weight_bytes(self.parameters - self.precise)

    @property
    def state_bytes(self) -> int:
        """Of one sequence's memory, all layers, float32. It does not grow with the context."""
        args = self.args
        return args.num_hidden_layers * args.num_memory_states * args.memory_size * FLOAT_BYTES

    def decode(self, *, sparse: bool) -> Cost:
        """One token of every sequence of the batch: all weights once, the memory of each.

        Args:
            sparse: the k active rows; otherwise all m rows are read and written.
        """
        args, batch = self.args, self.batch
        weights = self._weight_bytes(self.block_weights + self.head_weights)
        flops = 2 * batch * (self.block_weights + self.head_weights + self.precise)
        memory = update_work(args, batch, sparse=sparse)
        return Cost(weights, weights, flops) + memory * args.num_hidden_layers

    def prefill(self, tokens: int) -> Cost:
        """One sequence of `tokens`, in pieces of PREFILL_STEP: every piece reads the weights."""
        args = self.args
        pieces = -(-tokens // PREFILL_STEP)
        weights = self._weight_bytes(self.block_weights)
        flops = 2 * tokens * (self.block_weights + self.precise)
        scans = scan_work(args, tokens) * args.num_hidden_layers
        return Cost(weights * pieces, weights * pieces, flops) + scans

    def training(self, tokens: int) -> Cost:
        """One step of AdamW on all weights, on one sequence of `tokens`.

        A product's gradients are two more products.
        """
        args = self.args
        moved = _PASSES_OF_A_STEP * self.weight_bytes
        products = self.block_weights + self.head_weights + self.precise
        scan = scan_work(args, tokens) + scan_gradient_work(args, tokens)
        return Cost(moved, moved, 6 * tokens * products) + scan * args.num_hidden_layers


def seconds(work: Cost, chip: Chip) -> float:
    """The least time a chip needs: of its memory, and of its arithmetic if that is known."""
    memory = work.least_bytes / (chip.bandwidth * 1e9)
    arithmetic = work.flops / (chip.teraflops * 1e12) if chip.teraflops else 0.0
    return max(memory, arithmetic)
