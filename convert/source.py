"""A checkpoint that is understood: which model it is, and its weights under our names."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
from tqdm import tqdm

from fm_mlx.convert import writing
from fm_mlx.convert.architecture import choose_map, differences, model_args
from fm_mlx.convert.builtin_maps import BUILTIN
from fm_mlx.convert.checkpoint import DTYPES, Checkpoint, open_checkpoint, shared
from fm_mlx.convert.key_map import KeyMap, Weight
from fm_mlx.finite import is_finite
from fm_mlx.model import ModelArgs
from fm_mlx.precision import stays_float32
from fm_mlx.support.arrays import dtype_name
from fm_mlx.weights import EMBEDDING, HEAD, weight_shapes

_SHOWN = 6  # of a list of differences, in one line


@dataclass
class Source:
    """A checkpoint that is understood; none of its weights is read yet.

    Attributes:
        checkpoint: Its tensors under their own names, and its config.
        weights: The model's weights under our names, in the order of the model.
        args: The model that they make.
        notes: What a user should know of it, one line each.
    """

    checkpoint: Checkpoint
    weights: dict[str, Weight]
    args: ModelArgs
    notes: list[str] = field(default_factory=list)

    @property
    def dtype(self) -> str:
        """The dtype of most of the numbers, by MLX's name."""
        count: dict[str, int] = {}
        for tensor in self.checkpoint.tensors.values():
            name = dtype_name(DTYPES[tensor.dtype])
            count[name] = count.get(name, 0) + math.prod(tensor.shape)
        return max(count, key=count.__getitem__)


def understand(
    path: Path, *, ema: bool = False, map: KeyMap | None = None, given: dict[str, Any] | None = None
) -> Source:
    """Open a checkpoint and find the model in it.

    Args:
        path: file or folder.
        ema: take the moving average.
        map: the map of names; None tries the built-in ones.
        given: values of what shapes do not tell (`architecture.UNSEEN`).

    Raises:
        FileNotFoundError, ValueError: in one line, what is wrong and what would be right.
    """
    checkpoint = open_checkpoint(path, ema=ema)
    map = map or choose_map(checkpoint.tensors, BUILTIN)
    # what a built-in map offers for other names is no mistake of the user's
    idle = [] if map in BUILTIN else map.idle_patterns(checkpoint.tensors)
    try:
        weights = map.apply(checkpoint.tensors)
        notes = [f"names: {map.name}", *idle, *checkpoint.notes, *_tie(weights, checkpoint)]
        args, wrong = model_args(weights, checkpoint.config, given or {})
        shapes = weight_shapes(args)
        if found := differences(weights, shapes):
            raise ValueError(f"{path} by the names of {map.name}: {_some(found)}")
    except ValueError as error:
        if not idle:
            raise
        raise ValueError(f"{error}; {_some(idle)}") from None
    ordered = {name: weights[name] for name in shapes}
    return Source(checkpoint, ordered, args, notes + wrong)


def _tie(weights: dict[str, Weight], checkpoint: Checkpoint) -> list[str]:
    """Drop a head that is the embedding."""
    notes = [f"{first} and {second} are one tensor" for first, second in shared(checkpoint.tensors)]
    head, embedding = weights.get(HEAD), weights.get(EMBEDDING)
    if head is None or embedding is None or head.shape != embedding.shape:
        return notes
    if mx.array_equal(head.read(), embedding.read()):
        del weights[HEAD]
        notes.append("the head is the embedding: tied")
    return notes


def write(source: Source, folder: Path, dtype: str | None, more: dict[str, Any]) -> None:
    """Write an unquantised model to an empty folder.

    Raises:
        ValueError: names the weights that are not finite, or not in `dtype`.
    """
    bad: list[str] = []

    def check(name: str, read: mx.array, written: mx.array) -> None:
        if not is_finite(read):
            bad.append(f"{', '.join(source.weights[name].sources)} has NaN or infinite numbers")
        elif written.dtype != read.dtype and not is_finite(written):
            bad.append(f"{', '.join(source.weights[name].sources)} has numbers beyond {dtype}")

    def dtype_of(name: str) -> mx.Dtype | None:
        if stays_float32(name):
            return mx.float32
        return None if dtype is None else getattr(mx, dtype)

    # as many weights to a shard as in the checkpoint: no more are in memory at once
    tensors = source.checkpoint.tensors.values()
    largest = max(tensor.where.stat().st_size for tensor in tensors)
    before = sum(weight.nbytes() for weight in source.weights.values())
    after = sum(weight.nbytes(dtype_of(name)) for name, weight in source.weights.items())
    shard = min(writing.LARGEST_SHARD, int(largest * min(1, after / before)))
    quiet = not sys.stderr.isatty()
    with tqdm(total=len(source.weights), disable=quiet, unit="tensor") as bar:

        def progress(count: int) -> None:
            bar.update(count)

        writing.write_weights(folder, source.weights, dtype_of, check, shard, progress)
    if bad:
        raise ValueError(_some(bad))
    source.notes.append(writing.write_tokenizer(source.checkpoint.folder, folder))
    writing.write_config(folder, source.args, more)


def _some(lines: list[str]) -> str:
    """The first of many lines, in one."""
    more = f"; and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return "; ".join(lines[:_SHOWN]) + more
