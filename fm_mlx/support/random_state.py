"""MLX's random numbers, which can be seeded but not set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import mlx.core as mx


def random_key() -> mx.array:
    """The key (2,) uint32 that the next random numbers come from."""
    return mx.array(cast(Any, mx.random.state)[0])


def set_random_key(key: mx.array) -> None:
    """Go on with the random numbers that come from a key of `random_key`."""
    # a key is the two halves of the seed that makes it
    high, low = cast(list[int], key.tolist())
    mx.random.seed(high << 32 | low)


@contextmanager
def preserved() -> Iterator[None]:
    """Random numbers that are drawn inside a ``with`` block do not change the later ones."""
    key = random_key()
    try:
        yield
    finally:
        set_random_key(key)


@contextmanager
def restored_after_errors() -> Iterator[None]:
    """After an error inside a ``with`` block, random numbers are those from before it.

    Samplers of mlx-lm that raise while MLX compiles them leave a state that gives none any more.
    """
    key = random_key()
    try:
        yield
    except Exception:
        set_random_key(key)
        raise
