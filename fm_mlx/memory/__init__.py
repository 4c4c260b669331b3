"""Memories as things to keep: what a model has read, saved, branched, rewound and asked."""

from fm_mlx.memory.memory import Memory, remember
from fm_mlx.memory.prefixes import PrefixStore
from fm_mlx.memory.records import Snapshot, Text

__all__ = ["Memory", "PrefixStore", "Snapshot", "Text", "remember"]
