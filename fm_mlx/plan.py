"""``fm-mlx plan``: what a model needs, and how fast a chip could be at most.

All speeds are bounds: bytes over the memory's bandwidth, and where it is known operations
over the arithmetic's speed. What a program reaches lies below.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from fm_mlx.chips import Chip, find_chips
from fm_mlx.cli_types import number, whole
from fm_mlx.loading import load_args
from fm_mlx.metal_kernels.cost import Cost
from fm_mlx.model import ModelArgs
from fm_mlx.tables import aligned
from fm_mlx.work import scan_work, update_work

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

# Tokens that one pass over the weights reads in; mlx-lm's default.
PREFILL_STEP = 2048

_FLOAT = 4


@dataclass(frozen=True)
class Plan:
    """What a model costs at a batch size and a dtype of weights.

    Attributes:
        args: of the model.
        batch: sequences that are decoded together.
        dtype: one of WEIGHT_BITS.
    """

    args: ModelArgs
    batch: int = 1
    dtype: str = "bfloat16"

    @property
    def precise(self) -> int:
        """Numbers that stay float32: routers and norms."""
        args = self.args
        router = (args.num_memory_states + 2) * args.hidden_size
        return args.num_hidden_layers * (router + 2 * args.hidden_size) + args.hidden_size

    @property
    def block_weights(self) -> int:
        """Weights of all blocks' projections and SwiGLUs."""
        args = self.args
        projections = 2 * args.hidden_size * args.memory_size
        return args.num_hidden_layers * (
            projections + 3 * args.hidden_size * args.intermediate_size
        )

    @property
    def head_weights(self) -> int:
        return self.args.vocab_size * self.args.hidden_size

    @property
    def parameters(self) -> int:
        tables = 1 if self.args.tie_word_embeddings else 2
        return self.precise + self.block_weights + tables * self.head_weights

    def _weight_bytes(self, weights: int) -> int:
        return round(weights * WEIGHT_BITS[self.dtype] / 8) + self.precise * _FLOAT

    @property
    def weight_bytes(self) -> int:
        """Of the whole model in memory."""
        return self._weight_bytes(self.parameters - self.precise)

    @property
    def state_bytes(self) -> int:
        """Of one sequence's memory, all layers, float32. It does not grow with the context."""
        args = self.args
        return args.num_hidden_layers * args.num_memory_states * args.memory_size * _FLOAT

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


def seconds(work: Cost, chip: Chip) -> float:
    """The least time a chip needs: of its memory, and of its arithmetic if that is known."""
    memory = work.least_bytes / (chip.bandwidth * 1e9)
    arithmetic = work.flops / (chip.teraflops * 1e12) if chip.teraflops else 0.0
    return max(memory, arithmetic)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``fm-mlx plan``."""
    parser.add_argument(
        "--model",
        help="a model folder or Hugging Face repository, or paper-1b, the paper's shape of a "
        "billion parameters; default: the packaged model",
    )
    parser.add_argument(
        "--chip", default="all", help="m1 to m5, m4-pro, m4-max, ..., or all (default)"
    )
    parser.add_argument(
        "--context", type=whole(1), default=8192, help="tokens of the prompt (default 8192)"
    )
    parser.add_argument(
        "--batch-size",
        type=whole(1),
        nargs="+",
        default=[1, 32],
        help="sequences decoded together (default 1 32)",
    )
    parser.add_argument(
        "--dtype",
        choices=WEIGHT_BITS,
        default="bfloat16",
        help="of the weights; router, norms and state stay float32 (default bfloat16)",
    )
    parser.add_argument(
        "--memory", type=number(0), metavar="GB", help="memory of the Mac, to say what fits in it"
    )


def run(args: argparse.Namespace) -> int:
    """Print the plan."""
    chips = find_chips(args.chip)
    model = PAPER_1B if args.model == "paper-1b" else load_args(args.model)
    plans = [Plan(model, batch, args.dtype) for batch in args.batch_size]
    print("\n".join(_needs(plans, args.memory)))
    print()
    print("\n".join(aligned(_bounds(plans, chips, args.context))))
    print()
    print(
        "Bounds in tokens/s: bytes over bandwidth and, for chips with *, operations over float32\n"
        f"speed. Sparse: the {model.num_active_states} active rows of a token; dense: all "
        f"{model.num_memory_states}. Prefill: {args.context:,} tokens, batch 1."
    )
    return 0


def _needs(plans: list[Plan], memory: float | None) -> list[str]:
    """What is kept in memory, and what of it fits."""
    plan = plans[0]
    lines = [
        f"parameters       {plan.parameters:,}",
        f"weights          {plan.weight_bytes / 1e9:.3f} GB ({plan.dtype})",
        f"state            {plan.state_bytes / 1e6:.3f} MB a sequence, whatever the context",
    ]
    for plan in plans:
        # two buffers of the state take turns
        total = plan.weight_bytes + 2 * plan.batch * plan.state_bytes
        fits = "" if memory is None else ", fits" if total <= memory * 1e9 else ", does not fit"
        lines.append(f"decode, batch {plan.batch:<3}{total / 1e9:.3f} GB{fits}")
    if memory is not None:
        rest = memory * 1e9 - plan.weight_bytes
        lines.append(f"largest batch    {max(0, int(rest // (2 * plan.state_bytes))):,}")
    return lines


def _bounds(plans: list[Plan], chips: tuple[Chip, ...], context: int) -> list[list[str]]:
    """Rows of the table of bounds."""
    head = ["chip", "GB/s"]
    for plan in plans:
        head += [f"decode x{plan.batch} sparse", "dense"]
    rows = [[*head, "prefill"]]
    for chip in chips:
        row = [chip.name + ("*" if chip.teraflops else ""), str(chip.bandwidth)]
        for plan in plans:
            for sparse in (True, False):
                row.append(f"{plan.batch / seconds(plan.decode(sparse=sparse), chip):,.0f}")
        # prefill is bound by arithmetic: bandwidth alone would promise the impossible
        prefill = context / seconds(plans[0].prefill(context), chip)
        row.append(f"{prefill:,.0f}" if chip.teraflops else "-")
        rows.append(row)
    return rows
