"""Memories as files: safetensors that hold numbers and a description, and nothing that runs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save as safetensors_of

from fm_mlx.memory.identity import Identity
from fm_mlx.memory.memory import Memory, Snapshot, Text
from fm_mlx.support.files import brief, file_at
from fm_mlx.support.safetensors_file import tensors_of

FORMAT = "fm-mlx memory"
VERSION = 1

# What errors a description raises that is not what it should be.
_BAD = (AttributeError, KeyError, TypeError, ValueError)


def save(memory: Memory, path: str | Path) -> None:
    """Write a memory to a file, which appears whole or not at all.

    The tensors are ``state`` and ``log_kept``, and the same of each snapshot under its number
    (``snapshots.0.state``). The metadata holds the format, its version, a JSON description of the
    identity and the texts, and the sha256 of all that.
    """
    tensors: dict[str, np.ndarray] = {}
    for prefix, one in (("", memory), *_numbered(memory.snapshots)):
        tensors[f"{prefix}state"] = np.array(one.state)
        tensors[f"{prefix}log_kept"] = one.log_kept
    content = {
        "identity": dataclasses.asdict(memory.identity),
        "texts": [dataclasses.asdict(text) for text in memory.texts],
        "snapshots": [
            {"texts": one.texts, "text": dataclasses.asdict(one.text), "tokens": one.tokens}
            for one in memory.snapshots
        ],
    }
    description = json.dumps(content)
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "description": description,
        "sha256": _digest(description, tensors),
    }
    with file_at(Path(path)) as scratch:
        # `save_file` would let nobody else read it
        scratch.write_bytes(safetensors_of(tensors, metadata))


def load(path: str | Path) -> Memory:
    """Read a memory from a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no memory, of a newer format, cut short or altered.
    """
    path = Path(path)
    names = list(tensors_of(path))
    with safe_open(path, framework="np") as opened:
        metadata = opened.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path} is no memory: its format is {metadata.get('format')!r}")
        version = metadata.get("version", "")
        if version != str(VERSION):
            raise ValueError(f"{path} is of version {version!r:.20}; this is read: {VERSION}")
        tensors = {name: opened.get_tensor(name) for name in names}
    description = metadata.get("description", "")
    if metadata.get("sha256") != _digest(description, tensors):
        raise ValueError(f"{path} was altered or damaged: its sha256 is another")
    try:
        return _built(json.loads(description), tensors)
    except (*_BAD, RecursionError) as error:
        raise ValueError(f"the description in {path} cannot be used: {brief(error)}") from error


def _built(content: dict[str, Any], tensors: dict[str, np.ndarray]) -> Memory:
    snapshots = [
        Snapshot(
            mx.array(tensors[f"snapshots.{i}.state"]),
            tensors[f"snapshots.{i}.log_kept"],
            _count("texts", one["texts"]),
            _text(one["text"]),
            _count("tokens", one["tokens"]),
        )
        for i, one in enumerate(content["snapshots"])
    ]
    memory = Memory(
        Identity(**content["identity"]),
        mx.array(tensors["state"]),
        tensors["log_kept"],
        [_text(text) for text in content["texts"]],
        snapshots,
    )
    shapes = {(one.state.shape, one.log_kept.shape) for one in (memory, *snapshots)}
    if shapes != {(memory.state.shape, memory.state.shape[:2])} or memory.state.ndim != 3:
        raise ValueError("the shapes of its states differ")
    return memory


def _text(content: dict[str, Any]) -> Text:
    text = Text(**content)
    for name in ("name", "sha256", "read_at"):
        if not isinstance(getattr(text, name), str):
            raise ValueError(f"{name} is no text")
    for name in ("bytes", "beyond", "tokens"):
        _count(name, getattr(text, name))
    if not isinstance(text.complete, bool):
        raise ValueError("complete is neither true nor false")
    return text


def _count(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{name} is no whole number from 0")
    return value


def _numbered(snapshots: list[Snapshot]) -> list[tuple[str, Snapshot]]:
    return [(f"snapshots.{i}.", snapshot) for i, snapshot in enumerate(snapshots)]


def _digest(description: str, tensors: dict[str, np.ndarray]) -> str:
    sha256 = hashlib.sha256(description.encode())
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name])
        sha256.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        sha256.update(cast(Any, tensor.view(np.uint8)))
    return sha256.hexdigest()
