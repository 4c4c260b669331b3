"""Memories as things to keep: what a model has read, saved, branched, rewound and asked."""

from fm_mlx.memory.memory import Memory, cache_from, remember
from fm_mlx.memory.records import Snapshot, Text

__all__ = ["Memory", "Snapshot", "Text", "cache_from", "remember"]
