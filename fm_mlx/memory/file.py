"""Memories as files: safetensors that hold numbers and a description, and nothing that runs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save as safetensors_of

from fm_mlx.memory.identity import Identity
from fm_mlx.memory.records import Snapshot, Text
from fm_mlx.support.files import brief, file_at
from fm_mlx.support.safetensors_file import tensors_of

FORMAT = "fm-mlx memory"
VERSION = 1

# Bits of a number of a state in a file: float32, or integers with a float32 scale for each row.
BITS = (32, 8)
_LARGEST = 127

# What errors a description raises that is not what it should be.
_BAD = (AttributeError, KeyError, TypeError, ValueError)


@dataclass(frozen=True)
class Content:
    """What a file holds; the fields are those of `Memory`."""

    identity: Identity
    state: mx.array
    texts: list[Text]
    snapshots: list[Snapshot]


def write(path: str | Path, content: Content, bits: int = 32) -> None:
    """Write a memory to a file, which appears whole or not at all.

    The tensors are ``state``, and ``log_kept`` of each text and the same of each snapshot under
    their numbers (``texts.0.log_kept``, ``snapshots.0.state``); of 8 bits there is a ``scale``
    beside each ``state``. The metadata holds the format, its version, a JSON description of the
    identity and the texts, and the sha256 of all that.

    Raises:
        ValueError: bits is neither 32 nor 8.
    """
    if bits not in BITS:
        raise ValueError(f"bits is {bits}; allowed are 32 and 8")
    tensors: dict[str, np.ndarray] = {}
    for prefix, one in (("", content), *_numbered("snapshots", content.snapshots)):
        numbers = np.array(one.state)
        if bits == 8:
            tensors[f"{prefix}scale"] = scale = abs(numbers).max(-1, keepdims=True) / _LARGEST
            numbers = np.rint(numbers / np.where(scale, scale, 1)).astype(np.int8)
        tensors[f"{prefix}state"] = numbers
    for prefix, text in _numbered("texts", content.texts):
        tensors[f"{prefix}log_kept"] = text.log_kept
    for prefix, snapshot in _numbered("snapshots", content.snapshots):
        tensors[f"{prefix}log_kept"] = snapshot.text.log_kept
    description = json.dumps(
        {
            "identity": dataclasses.asdict(content.identity),
            "texts": [_described(text) for text in content.texts],
            "snapshots": [
                {"texts": one.texts, "text": _described(one.text), "tokens": one.tokens}
                for one in content.snapshots
            ],
        }
    )
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "description": description,
        "sha256": _digest(description, tensors),
    }
    with file_at(Path(path)) as scratch:
        # `save_file` would let nobody else read it
        scratch.write_bytes(safetensors_of(tensors, metadata))


def read(path: str | Path) -> Content:
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


def _built(description: dict[str, Any], tensors: dict[str, np.ndarray]) -> Content:
    content = Content(
        Identity(**description["identity"]),
        _state("", tensors),
        [
            _text(text, tensors[f"{prefix}log_kept"])
            for prefix, text in _numbered("texts", description["texts"])
        ],
        [
            Snapshot(
                _state(prefix, tensors),
                _count("texts", one["texts"]),
                _text(one["text"], tensors[f"{prefix}log_kept"]),
                _count("tokens", one["tokens"]),
            )
            for prefix, one in _numbered("snapshots", description["snapshots"])
        ],
    )
    shapes = {content.state.shape, *(one.state.shape for one in content.snapshots)}
    kept = [*content.texts, *(one.text for one in content.snapshots)]
    if (
        len(shapes) > 1
        or content.state.ndim != 3
        or any(text.log_kept.shape != content.state.shape[:2] for text in kept)
    ):
        raise ValueError("the shapes of its states differ")
    return content


def _state(prefix: str, tensors: dict[str, np.ndarray]) -> mx.array:
    state = tensors[f"{prefix}state"]
    scale = tensors.get(f"{prefix}scale")
    return mx.array(state if scale is None else state * scale)


def _described(text: Text) -> dict[str, Any]:
    described = dataclasses.asdict(text)
    del described["log_kept"]
    return described


def _text(description: dict[str, Any], log_kept: np.ndarray) -> Text:
    text = Text(**description, log_kept=log_kept)
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


def _numbered(name: str, items: list[Any]) -> list[tuple[str, Any]]:
    """The items with the beginnings of the names of their tensors."""
    return [(f"{name}.{i}.", item) for i, item in enumerate(items)]


def _digest(description: str, tensors: dict[str, np.ndarray]) -> str:
    sha256 = hashlib.sha256(description.encode())
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name])
        sha256.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        sha256.update(cast(Any, tensor.view(np.uint8)))
    return sha256.hexdigest()
