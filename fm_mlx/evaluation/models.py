"""The models that are measured: Factorization Memory, or any that mlx-lm knows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlx.nn as nn
import mlx_lm

from fm_mlx.loading import BAD_FILES, find_model, load
from fm_mlx.model import MODEL_TYPE
from fm_mlx.support.files import brief, read_json_object

# Stands for the model in the package where models are named.
PACKAGED = "packaged"


class NamedModel(NamedTuple):
    """A model with its tokenizer, and what tables and pictures call it."""

    name: str
    model: nn.Module
    tokenizer: Any


def load_any(path_or_repo: str, trust_remote_code: bool = False) -> tuple[nn.Module, Any]:
    """Load a model of Factorization Memory or of mlx-lm, and its tokenizer.

    Args:
        path_or_repo: a model folder or a Hugging Face repository; "packaged": the model in the
            package.
        trust_remote_code: let the checkpoint bring Python code and run it.

    Raises:
        FileNotFoundError: no such model, or a file of it is missing.
        ValueError: a file of it is not what it should be.
    """
    folder = find_model(None if path_or_repo == PACKAGED else path_or_repo)
    if read_json_object(folder / "config.json").get("model_type") == MODEL_TYPE:
        return load(folder, trust_remote_code=trust_remote_code)
    try:
        model, tokenizer = mlx_lm.load(str(folder), trust_remote_code=trust_remote_code)[:2]
    except BAD_FILES as error:
        raise ValueError(f"the model in {folder} cannot be used: {brief(error)}") from error
    return model, tokenizer


def names_of(paths_or_repos: Sequence[str]) -> list[str]:
    """Short names of models, no two alike: the last part of a path where that is enough."""
    names = [Path(path).name or path for path in paths_or_repos]
    often = Counter(names)
    return [
        path if often[name] > 1 else name for path, name in zip(paths_or_repos, names, strict=True)
    ]
