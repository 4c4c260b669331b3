"""Where a run stands: its adapter for others, and all that it takes to go on to the same losses."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.optimizers import Optimizer
from mlx.utils import tree_unflatten

from fm_mlx.lora.tuned import trainable
from fm_mlx.model import Model
from fm_mlx.support.arrays import load_arrays_and_metadata, named_arrays
from fm_mlx.support.files import file_at
from fm_mlx.support.random_state import random_key, set_random_key

ADAPTERS = "adapters.safetensors"
_CHECKPOINT = "checkpoint.safetensors"


@dataclass
class TrainingState:
    """Where a run stood when it was saved.

    Attributes:
        step: The number of steps that were done.
        trained_tokens: The number of targets that counted in them.
        course: What the losses of the run depend on: `Options.course`, and a digest of its
            examples.
        arrays: Arrays whose names begin with adapter, optimizer, random or carried.
    """

    step: int
    trained_tokens: int
    course: dict[str, Any]
    arrays: dict[str, mx.array]

    def restore(self, model: Model, optimizer: Optimizer) -> None:
        """Put the model, the optimizer and the random numbers where they stood.

        Args:
            model: prepared as the run's was.
            optimizer: an optimizer of the kind that the run has.

        Raises:
            ValueError: if the run tuned something else.
        """
        adapter = self._under("adapter")
        wanted = {name: value.shape for name, value in trainable(model).items()}
        if {name: value.shape for name, value in adapter} != wanted:
            raise ValueError("the checkpoint is of a run that tuned something else")
        model.load_weights(adapter, strict=False)
        optimizer.init(model.trainable_parameters())
        optimizer.state = tree_unflatten(self._under("optimizer"))
        set_random_key(self._under("random")[0][1])

    def carried(self, own: slice) -> list[mx.array]:
        """The states of this process's rows, of those that streams carry; empty without streams."""
        return [value[own] for _, value in self._under("carried")]

    def save(self, folder: Path) -> None:
        """Write adapters, numbered adapters and the checkpoint, each whole or not at all."""
        adapter = dict(self._under("adapter"))
        for name in (f"{self.step:07d}_{ADAPTERS}", ADAPTERS):
            with file_at(folder / name) as scratch:
                mx.save_safetensors(str(scratch), adapter)
        about = {"step": self.step, "trained_tokens": self.trained_tokens, "course": self.course}
        with file_at(folder / _CHECKPOINT) as scratch:
            mx.save_safetensors(str(scratch), self.arrays, {"about": json.dumps(about)})

    def _under(self, prefix: str) -> list[tuple[str, mx.array]]:
        prefix += "."
        return [
            (name.removeprefix(prefix), value)
            for name, value in sorted(self.arrays.items())
            if name.startswith(prefix)
        ]


def snapshot(model: Model, optimizer: Optimizer, carried: list[mx.array]) -> dict[str, mx.array]:
    """The arrays of a `TrainingState`; ``carried`` are the states of all rows of streams."""
    trees = {
        "adapter": model.trainable_parameters(),
        "optimizer": optimizer.state,
        "random": [random_key()],
        "carried": {f"{i:04d}": state for i, state in enumerate(carried)},
    }
    return {
        f"{kind}.{name}": value
        for kind, tree in trees.items()
        for name, value in named_arrays(tree).items()
    }


def sweep(folder: Path) -> None:
    """Remove what a killed run left of files it had not finished."""
    for path in folder.glob(".*.safetensors"):
        path.unlink()


def read(folder: Path) -> TrainingState:
    """The last saved state of the run in a folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it cannot be read.
    """
    path = folder / _CHECKPOINT
    if not path.is_file():
        raise FileNotFoundError(f"no run to resume in {folder}: no {_CHECKPOINT}")
    try:
        arrays, metadata = load_arrays_and_metadata(path)
        mx.eval(arrays)  # the file is replaced while they are in use
        about = json.loads(metadata["about"])
        return TrainingState(about["step"], about["trained_tokens"], about["course"], arrays)
    except (RuntimeError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path} is not a checkpoint of a run: {error}") from error
