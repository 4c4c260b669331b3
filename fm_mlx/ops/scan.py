"""The recurrence over a sequence, as matrix products over chunks."""

from __future__ import annotations

import mlx.core as mx

from fm_mlx.metal_kernels.chunk_scan import MAX_CHUNK
from fm_mlx.ops.chunk_map import chunk_map
from fm_mlx.ops.resets import Segments
from fm_mlx.ops.state_pass import state_pass


def memory_scan(
    theta: mx.array,
    phi: mx.array,
    values: mx.array,
    state: mx.array | None = None,
    mask: mx.array | None = None,
    *,
    eps: float = 1e-6,
    chunk_size: int | None = None,
    reset_positions: mx.array | None = None,
    reset_state: mx.array | None = None,
) -> tuple[mx.array, mx.array]:
    """Write and read T tokens: the same result as T calls of `memory_step`.

    The recurrence of arXiv:2511.00315, computed exactly by chunks:

        h_t = (1 - theta_t) * h_{t-1} + theta_t (outer) v_t
        y_t = sum_i phi_t[i] h_t[i] / rms(h_t[i])

    Differentiable in every argument but the mask and the positions, the states included; memory
    grows with T like that of the inputs, the graph with log T.

    Args:
        theta: write weights, (B, T, m), in [0, 1]. Zero rows are left untouched.
        phi: merge weights, (B, T, m).
        values: (B, T, d), any float dtype; computed in float32.
        state: h_0, (B, m, d) float32; zeros if None.
        mask: (B, T) bool; where False the token neither writes nor reads, y is 0.
        eps: added to the mean square of a row.
        chunk_size: C, 1 to 32 tokens; None chooses.
        reset_positions: (B, R) integers, rising in a row: tokens before which the memory is
            reset, so that nothing of what stands before them reaches them. A position from T
            on resets nothing. Each of the R costs one chunk more.
        reset_state: the state that a reset leaves, (m, d) or (B, m, d); zeros if None.

    Returns:
        y (B, T, d) in the dtype of ``values``, and the last state (B, m, d) float32.

    Raises:
        ValueError: if shapes do not fit or chunk_size is out of range.
    """
    _check(theta, phi, values, state, mask, chunk_size, reset_positions, reset_state)
    batch, length, rows = theta.shape
    width = values.shape[-1]
    chunk = min(chunk_size or MAX_CHUNK, length)
    segments = None if reset_positions is None else Segments(reset_positions, length, chunk)
    theta, phi, v = (split_into_chunks(x, chunk, mask, segments) for x in (theta, phi, values))
    if state is None:
        state = mx.zeros((batch, rows, width))
    decay, increment = writes_of_chunks(theta, v)
    state = state.astype(mx.float32)
    if segments is not None:
        decay, increment, state = segments.reset(decay, increment, state, reset_state)
    start, last = state_pass(decay, increment, state)
    y = read_chunks(theta, phi, v, start, eps).reshape(batch, -1, width)
    y = y[:, :length] if segments is None else segments.gather(y)
    return y.astype(values.dtype), last


def split_into_chunks(
    x: mx.array, chunk: int, mask: mx.array | None, segments: Segments | None = None
) -> mx.array:
    """(B, T, .) -> (B, N, C, .) in float32; zeros, which change nothing, fill the tail.

    Args:
        x: numbers of tokens.
        chunk: C.
        mask: (B, T) bool; zeros are put where it is False.
        segments: parts of a row that begin a chunk each, so that zeros fill their tails.
    """
    x = x.astype(mx.float32)
    if mask is not None:
        x = mx.where(mask[..., None], x, 0)
    if segments is not None:
        x = segments.spread(x)
    elif x.shape[1] % chunk:
        x = mx.pad(x, [(0, 0), (0, -x.shape[1] % chunk), (0, 0)])
    return x.reshape(len(x), -1, chunk, x.shape[-1])


def writes_of_chunks(theta: mx.array, v: mx.array) -> tuple[mx.array, mx.array]:
    """What is left after a chunk of a row before it, (B, N, m), and what it adds, (B, N, m, d)."""
    keep = 1 - theta
    to_end = theta * mx.cumprod(keep, axis=2, reverse=True, inclusive=False)
    return keep.prod(axis=2), to_end.swapaxes(-1, -2) @ v


def read_chunks(
    theta: mx.array, phi: mx.array, v: mx.array, start: mx.array, eps: float
) -> mx.array:
    """y (B, N, C, d) of chunks that begin with the rows ``start`` (B, N, m, d)."""
    gram = v @ v.swapaxes(-1, -2)
    projection = v @ start.swapaxes(-1, -2)
    norm0 = start.square().sum(axis=-1)
    read, inside = chunk_map(theta, phi, gram, projection, norm0, v.shape[-1], eps)
    return read @ start + inside @ v


def _check(theta, phi, values, state, mask, chunk_size, reset_positions, reset_state) -> None:
    if theta.ndim != 3 or theta.shape[1] < 1:
        raise ValueError(f"theta has shape {theta.shape}; wanted is (B, T, m) with T >= 1")
    batch, length, rows = theta.shape
    if values.ndim != 3:
        raise ValueError(f"values have shape {values.shape}; wanted is (B, T, d)")
    wanted = {
        "phi": (phi, theta.shape),
        "values": (values, (batch, length, values.shape[-1])),
        "state": (state, (batch, rows, values.shape[-1])),
        "mask": (mask, (batch, length)),
    }
    for name, (array, shape) in wanted.items():
        if array is not None and array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}; wanted is {shape}")
    if reset_positions is not None:
        shape = reset_positions.shape
        if len(shape) != 2 or shape[0] != batch or not shape[1]:
            raise ValueError(
                f"reset_positions have shape {shape}; wanted is ({batch}, R) with R >= 1"
            )
    allowed = [(rows, values.shape[-1]), (batch, rows, values.shape[-1])]
    if reset_state is not None and reset_state.shape not in allowed:
        raise ValueError(f"reset_state has shape {reset_state.shape}; allowed are {allowed}")
    check_chunk_size(chunk_size)


def check_chunk_size(chunk_size: int | None) -> None:
    """Raise a ValueError unless chunks of so many tokens can be scanned; None is any."""
    if chunk_size is not None and not 1 <= chunk_size <= MAX_CHUNK:
        raise ValueError(f"chunk_size is {chunk_size}; allowed are 1 to {MAX_CHUNK}")
