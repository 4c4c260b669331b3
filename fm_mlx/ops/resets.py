"""Sequences that follow each other in one row, with the memory reset between them."""

from __future__ import annotations

import mlx.core as mx


class Segments:
    """Rows (B, T) cut at their resets, and laid out so that every part begins a chunk.

    A reset is then a matter of the states between chunks, and the inside of a chunk
    knows nothing of it. Parts that do not fill their last chunk leave zeros there,
    which neither write nor read; R resets take at most R chunks more.

    Args:
        reset_positions: (B, R) integers, rising in a row; positions from T on reset nothing.
        length: T, the number of tokens of a row.
        chunk: C, the number of tokens of a chunk.

    Attributes:
        chunks: N, the number of chunks of a row in the new layout.
    """

    def __init__(self, reset_positions: mx.array, length: int, chunk: int):
        batch, resets = reset_positions.shape
        positions = mx.stop_gradient(reset_positions).astype(mx.int32)
        self.chunks = -(-length // chunk) + resets
        first = mx.concatenate([mx.zeros((batch, 1), mx.int32), positions], axis=1)
        first = mx.clip(first, 0, length)
        after = mx.concatenate([first[:, 1:], mx.full((batch, 1), length, mx.int32)], axis=1)
        chunks = (after - first + chunk - 1) // chunk
        first_chunk = mx.cumsum(chunks, axis=1) - chunks
        token = mx.arange(length)
        part = (token[None, :, None] >= first[:, None, 1:]).sum(axis=-1)
        shift = mx.take_along_axis(first_chunk * chunk - first, part, axis=1)
        # where each token goes, and which token comes to each place: T stands for zeros
        self._place = (token + shift)[..., None]
        self._token = mx.put_along_axis(
            mx.full((batch, self.chunks * chunk), length, mx.int32),
            self._place.squeeze(-1),
            mx.broadcast_to(token, (batch, length)).astype(mx.int32),
            axis=1,
        )[..., None]
        begins = (mx.arange(self.chunks)[None, :, None] == first_chunk[:, None, 1:]) & (
            chunks[:, None, 1:] > 0
        )
        self._begins = begins.any(axis=-1)

    def spread(self, x: mx.array) -> mx.array:
        """(B, T, .) -> (B, N C, .)"""
        return mx.take_along_axis(mx.pad(x, [(0, 0), (0, 1), (0, 0)]), self._token, axis=1)

    def gather(self, x: mx.array) -> mx.array:
        """(B, N C, .) -> (B, T, .)"""
        return mx.take_along_axis(x, self._place, axis=1)

    def reset(
        self, decay: mx.array, increment: mx.array, state: mx.array, reset_state: mx.array | None
    ) -> tuple[mx.array, mx.array, mx.array]:
        """The inputs of `state_pass` under which every part begins with ``reset_state``.

        Args:
            decay: (B, N, m) float32, of each chunk.
            increment: (B, N, m, d) float32, of each chunk.
            state: (B, m, d) float32, before the first chunk.
            reset_state: (m, d) or (B, m, d); None stands for zeros.

        Returns:
            decay, increment and state, of the same shapes.
        """
        fresh = mx.zeros(state.shape[1:]) if reset_state is None else reset_state
        fresh = mx.broadcast_to(fresh.astype(mx.float32), state.shape)
        # nothing of what a chunk began with is left after it if the next one begins a part
        next_begins = mx.pad(self._begins[:, 1:], [(0, 0), (0, 1)])
        decay = mx.where(next_begins[..., None], 0, decay)
        increment = mx.where(next_begins[..., None, None], fresh[:, None], increment)
        state = mx.where(self._begins[:, :1, None], fresh, state)
        return decay, increment, state
