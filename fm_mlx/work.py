"""What the memory of one layer must move and compute, decoding a token or reading many."""

from __future__ import annotations

from fm_mlx.metal_kernels import cost
from fm_mlx.metal_kernels.cost import Cost
from fm_mlx.model import ModelArgs
from fm_mlx.ops.chunk_map import MAX_CHUNK

_FLOAT = 4


def update_work(args: ModelArgs, batch: int, *, sparse: bool) -> Cost:
    """One token of every sequence of a batch.

    Args:
        args: of the model.
        batch: sequences.
        sparse: the k active rows; otherwise all m rows are read and written.
    """
    if sparse:
        update = cost.sparse_update(batch, args.num_active_states, args.memory_size)
        # written back into the state: k rows read from the update, k rows written
        back = 2 * batch * args.num_active_states * args.memory_size * _FLOAT
        return update + Cost(back, back, 0)
    numbers = batch * args.num_memory_states * args.memory_size
    return Cost(2 * numbers * _FLOAT, 2 * numbers * _FLOAT, 7 * numbers)


def scan_work(args: ModelArgs, tokens: int) -> Cost:
    """One sequence of tokens: its matrix products, and the kernels with what they move."""
    rows, width = args.num_memory_states, args.memory_size
    chunks = -(-tokens // MAX_CHUNK)
    products = Cost(0, 0, tokens * (6 * rows * width + 4 * MAX_CHUNK * width))
    kernels = cost.chunk_scan(chunks, MAX_CHUNK, rows) + cost.state_pass(1, chunks, rows, width)
    return products + kernels
