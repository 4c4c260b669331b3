"""Memories as things to keep: what a model has read, saved, branched, rewound and asked."""

from fm_mlx.memory.file import load, save
from fm_mlx.memory.memory import Memory, Snapshot, Text
from fm_mlx.memory.reading import read, remember, rewind

__all__ = ["Memory", "Snapshot", "Text", "load", "read", "remember", "rewind", "save"]
