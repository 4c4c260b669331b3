"""A tiny checkpoint, made here, so that no test needs the packaged model or a network."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from readers import write_reader
from tiny import CONFIG, train_tokenizer

import fm_mlx

# The oracles are float64, which no GPU has; tests/kernels goes to the GPU where there is one.
mx.set_default_device(mx.cpu)


def pytest_configure(config: pytest.Config) -> None:
    """Processes that tests start find children/sitecustomize.py; those of xdist do not."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        children = str(Path(__file__).parent / "children")
        sys.path.append(children)
        os.environ["PYTHONPATH"] = os.pathsep.join(
            filter(None, [children, os.environ.get("PYTHONPATH")])
        )


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with random weights; not to be changed."""
    folder = tmp_path_factory.mktemp("checkpoint")
    train_tokenizer().save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer_config = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    mx.random.seed(7)
    model = fm_mlx.Model(fm_mlx.ModelArgs.from_dict(CONFIG))
    weights = dict(tree_flatten(model.parameters()))
    # far apart enough that rounding does not change which token is the likeliest
    weights["lm_head.weight"] = mx.random.normal((CONFIG["vocab_size"], 64))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    return folder


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a small model that reads long texts fast; not to be changed."""
    return write_reader(tmp_path_factory.mktemp("readers") / "reader")


@pytest.fixture(scope="session")
def loaded(checkpoint: Path):
    """(model, tokenizer) of the checkpoint."""
    return fm_mlx.load(checkpoint)


@pytest.fixture
def changed(checkpoint: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copies of the checkpoint with changes: config keys, weights, missing files."""

    def copy(
        config: dict | None = None,
        weights: dict[str, mx.array | None] | None = None,
        without: tuple[str, ...] = (),
    ) -> Path:
        folder = tmp_path / "changed"
        shutil.copytree(checkpoint, folder)
        if config is not None:
            (folder / "config.json").write_text(json.dumps(CONFIG | config))
        if weights is not None:
            path = str(folder / "model.safetensors")
            content = mx.load(path) | weights
            mx.save_safetensors(path, {k: w for k, w in content.items() if w is not None})
        for name in without:
            (folder / name).unlink()
        return folder

    return copy
