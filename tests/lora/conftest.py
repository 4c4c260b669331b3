"""A tiny model, texts, and runs that do not wait for a compiler."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest
from tiny import some_text

import fm_mlx
from fm_mlx.lora import Options


@pytest.fixture(autouse=True)
def not_compiled():
    """On the CPU every fused expression of a new step would be a run of the C++ compiler."""
    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.fixture
def model(checkpoint: Path):
    """A fresh one: to be changed."""
    return fm_mlx.load(checkpoint)[0]


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(some_text(12_000, seed=3))
    return path


@pytest.fixture
def options(checkpoint: Path, tmp_path: Path, text_file: Path) -> Callable[..., Options]:
    """Options of a short run on the text; keywords replace some."""

    def make(**changes) -> Options:
        chosen = dict(
            model=str(checkpoint), data=str(text_file), adapter_path=str(tmp_path / "adapters"),
            iters=8, batch_size=2, max_seq_length=32, val_batches=2, steps_per_report=1,
            save_every=4, learning_rate=1e-3,
        )  # fmt: skip
        return Options(**chosen | changes)

    return make
