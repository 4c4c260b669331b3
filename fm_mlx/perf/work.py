"""What the memory of one layer must move and compute, decoding a token or reading many."""

from __future__ import annotations

from fm_mlx.metal_kernels.chunk_scan import MAX_CHUNK, chunk_scan_cost, chunk_scan_vjp_cost
from fm_mlx.metal_kernels.cost import FLOAT_BYTES, Cost
from fm_mlx.metal_kernels.sparse_update import sparse_update_cost
from fm_mlx.metal_kernels.state_pass import state_pass_cost
from fm_mlx.model import ModelArgs
from fm_mlx.ops.sparse_scan import sparse_chunk_size, sparse_scan_is_faster


def update_work(args: ModelArgs, batch: int, *, sparse: bool) -> Cost:
    """One token of every sequence of a batch.

    Args:
        args: the model.
        batch: sequences.
        sparse: the k active rows; otherwise all m rows are read and written.
    """
    if sparse:
        active, width = args.num_active_states, args.memory_size
        return sparse_update_cost(batch, args.num_logits, active, width) + write_work(
            batch, active, width
        )
    numbers = batch * args.num_memory_states * args.memory_size
    return Cost(2 * numbers * FLOAT_BYTES, 2 * numbers * FLOAT_BYTES, 7 * numbers)


def write_work(batch: int, active: int, width: int) -> Cost:
    """The rows of two tokens, read from the update and written into the state."""
    moved = 4 * batch * active * width * FLOAT_BYTES
    return Cost(moved, moved, 0)


def chunks_of(args: ModelArgs, tokens: int) -> tuple[int, int, int]:
    """The number of chunks that a sequence is scanned in, their tokens, and their rows."""
    chunk, rows = MAX_CHUNK, args.num_memory_states
    if sparse_scan_is_faster(rows, args.num_active_states):
        chunk = sparse_chunk_size(args.num_active_states)
        rows = chunk * args.num_active_states
    return -(-tokens // chunk), chunk, rows


def scan_work(args: ModelArgs, tokens: int) -> Cost:
    """One sequence of tokens: its matrix products, and the kernels with what they move."""
    chunks, chunk, rows = chunks_of(args, tokens)
    width = args.memory_size
    products = Cost(0, 0, tokens * (6 * rows * width + 4 * chunk * width))
    return products + chunk_scan_cost(chunks, chunk, rows) + state_pass_cost(1, chunks, rows, width)


def scan_gradient_work(args: ModelArgs, tokens: int) -> Cost:
    """The gradient of `scan_work`: two products for each of its own, and the kernels."""
    chunks, chunk, rows = chunks_of(args, tokens)
    width = args.memory_size
    products = Cost(0, 0, 2 * tokens * (6 * rows * width + 4 * chunk * width))
    kernels = chunk_scan_vjp_cost(chunks, chunk, rows) + state_pass_cost(1, chunks, rows, width)
    return products + kernels
