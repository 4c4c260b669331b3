"""What the memory of one layer must move and compute, decoding a token or reading many."""

from __future__ import annotations

from fm_mlx.metal_kernels.chunk_scan import MAX_CHUNK, chunk_scan_cost
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
        rows, active, width = args.num_memory_states, args.num_active_states, args.memory_size
        update = sparse_update_cost(batch, rows, active, width)
        # written back into the state: the rows of two tokens read from the update, and written
        back = 4 * batch * active * width * FLOAT_BYTES
        return update + Cost(back, back, 0)
    numbers = batch * args.num_memory_states * args.memory_size
    return Cost(2 * numbers * FLOAT_BYTES, 2 * numbers * FLOAT_BYTES, 7 * numbers)


def scan_work(args: ModelArgs, tokens: int) -> Cost:
    """One sequence of tokens: its matrix products, and the kernels with what they move."""
    rows, width, chunk = args.num_memory_states, args.memory_size, MAX_CHUNK
    if sparse_scan_is_faster(rows, args.num_active_states):
        chunk = sparse_chunk_size(args.num_active_states)
        rows = chunk * args.num_active_states
    chunks = -(-tokens // chunk)
    products = Cost(0, 0, tokens * (6 * rows * width + 4 * chunk * width))
    kernels = chunk_scan_cost(chunks, chunk, rows) + state_pass_cost(1, chunks, rows, width)
    return products + kernels
