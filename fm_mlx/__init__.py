"""Factorization Memory language models (arXiv:2511.00315) on MLX.

Importing the package registers the model type ``factorization_memory`` with mlx-lm, whose
functions then take these models like any other. The public names are imported when first used,
so that importing the package is cheap.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from fm_mlx.registry import register

if TYPE_CHECKING:
    from fm_mlx import ops
    from fm_mlx.batch import batch_generate
    from fm_mlx.generation import generate, stream_generate
    from fm_mlx.layer import FactorizationMemory
    from fm_mlx.loading import load
    from fm_mlx.memory import Memory, remember
    from fm_mlx.model import Model, ModelArgs

__all__ = [
    "FactorizationMemory",
    "Memory",
    "Model",
    "ModelArgs",
    "batch_generate",
    "generate",
    "load",
    "ops",
    "remember",
    "stream_generate",
]

try:
    __version__ = version("fm-mlx")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"

_HOME = {
    "FactorizationMemory": "fm_mlx.layer",
    "Memory": "fm_mlx.memory",
    "Model": "fm_mlx.model",
    "ModelArgs": "fm_mlx.model",
    "batch_generate": "fm_mlx.batch",
    "generate": "fm_mlx.generation",
    "load": "fm_mlx.loading",
    "remember": "fm_mlx.memory",
    "stream_generate": "fm_mlx.generation",
}

register()


def __getattr__(name: str) -> Any:
    if name == "ops":
        return importlib.import_module("fm_mlx.ops")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
