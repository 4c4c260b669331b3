"""Bugs of public kernels, each in a small kernel of ours that makes the same mistake.

No line of theirs is here: what a kernel computes is made as small as the mistake allows.
"""

from . import indices, outputs, tiles
from .bug import Bug

BUGS: list[Bug] = [
    tiles.LOOP_WITHOUT_LAST_BARRIER,
    indices.BATCH_COUNTED_TWICE,
    indices.NO_ROOM_FOR_SINGLE_ATOMS,
    outputs.THREADS_FOR_QUERIES,
    outputs.THREADS_FOR_HEADS,
    outputs.THREADS_FOR_TILES,
    tiles.PARTS_NOT_MERGED,
    outputs.CACHE_AS_AN_OUTPUT,
    indices.LOADED_BEFORE_TESTED,
]

__all__ = ["BUGS", "Bug"]
