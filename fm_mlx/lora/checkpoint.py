"""Saves of a run: adapters for others, and all that it takes to go on to the same losses."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.optimizers import Optimizer
from mlx.utils import tree_flatten, tree_unflatten

from fm_mlx.files import file_at
from fm_mlx.lora.loss import set_carried
from fm_mlx.lora.tuned import trainable
from fm_mlx.model import Model

ADAPTERS = "adapters.safetensors"
_CHECKPOINT = "checkpoint.safetensors"


@dataclass
class Checkpoint:
    """Where a run stood.

    Attributes:
        step: steps done.
        trained_tokens: targets that counted in them.
        course: of its `Options`.
        arrays: by the prefixes adapter, optimizer, random, carried.
    """

    step: int
    trained_tokens: int
    course: dict[str, Any]
    arrays: dict[str, mx.array]

    def restore(self, model: Model, optimizer: Optimizer, own: slice) -> None:
        """Put a model and an optimizer where they stood.

        Args:
            model: prepared as the run's was.
            optimizer: of the run's kind.
            own: the rows of this process, of those whose memories are carried.

        Raises:
            ValueError: if the model is of another make.
        """
        adapter = self._under("adapter")
        wanted = {name: value.shape for name, value in trainable(model).items()}
        if {name: value.shape for name, value in adapter} != wanted:
            raise ValueError("the checkpoint is of a run that tuned something else")
        model.load_weights(adapter, strict=False)
        optimizer.init(model.trainable_parameters())
        optimizer.state = tree_unflatten(self._under("optimizer"))
        # a key is the two halves of the seed that makes it, and cannot be set otherwise
        high, low = self._under("random")[0][1].tolist()
        mx.random.seed(high << 32 | low)
        if states := self._under("carried"):
            set_carried(model, [value[own] for _, value in states])

    def _under(self, prefix: str) -> list[tuple[str, mx.array]]:
        prefix += "."
        return [
            (name.removeprefix(prefix), value)
            for name, value in sorted(self.arrays.items())
            if name.startswith(prefix)
        ]


def snapshot(
    model: Model, optimizer: Optimizer, states: list[mx.array] | None
) -> dict[str, mx.array]:
    """The arrays of a `Checkpoint`; ``states`` are the memories all rows carry."""
    trees = {
        "adapter": model.trainable_parameters(),
        "optimizer": optimizer.state,
        "random": list(mx.random.state),
        "carried": {f"{i:04d}": state for i, state in enumerate(states or [])},
    }
    return {
        f"{kind}.{name}": value
        for kind, tree in trees.items()
        for name, value in tree_flatten(tree)
    }


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Write adapters, numbered adapters and the checkpoint, each whole or not at all."""
    adapter = dict(checkpoint._under("adapter"))
    for name in (f"{checkpoint.step:07d}_{ADAPTERS}", ADAPTERS):
        with file_at(folder / name) as scratch:
            mx.save_safetensors(str(scratch), adapter)
    about = {"step": checkpoint.step, "trained_tokens": checkpoint.trained_tokens}
    metadata = {"about": json.dumps(about | {"course": checkpoint.course})}
    with file_at(folder / _CHECKPOINT) as scratch:
        mx.save_safetensors(str(scratch), checkpoint.arrays, metadata=metadata)


def sweep(folder: Path) -> None:
    """Remove what a killed run left of files it had not finished."""
    for path in folder.glob(".*.safetensors"):
        path.unlink()


def find(folder: Path) -> bool:
    """Whether a folder has a run's checkpoint."""
    return (folder / _CHECKPOINT).is_file()


def read(folder: Path) -> Checkpoint:
    """The last checkpoint of the run in a folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it cannot be read.
    """
    path = folder / _CHECKPOINT
    if not path.is_file():
        raise FileNotFoundError(f"no run to resume in {folder}: no {_CHECKPOINT}")
    try:
        arrays, metadata = mx.load(str(path), return_metadata=True)
        mx.eval(arrays)  # the file is replaced while they are in use
        about = json.loads(metadata["about"])
        return Checkpoint(about["step"], about["trained_tokens"], about["course"], arrays)
    except (RuntimeError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path} is not a checkpoint of a run: {error}") from error
