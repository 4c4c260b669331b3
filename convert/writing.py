"""A folder that mlx-lm loads, written whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
from mlx_lm.convert import mixed_quant_predicate_builder
from mlx_lm.utils import load_model, quantize_model, save_model

from fm_mlx.convert.key_map import Weight
from fm_mlx.loading import TOKENIZER_FILES
from fm_mlx.model import MODEL_TYPE, ModelArgs
from fm_mlx.support.files import write_json

# A shard of mlx-lm's; smaller ones for checkpoints in smaller shards.
LARGEST_SHARD = 5 << 30

# What goes with a tokenizer.
_TOKENIZER_COMPANIONS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
    "merges.txt",
)

_BUNDLED = '''"""Lets mlx-lm run this model with --trust-remote-code; wants `pip install fm-mlx`."""

from fm_mlx.model import Model, ModelArgs  # noqa: F401
'''


def write_weights(
    folder: Path,
    weights: Mapping[str, Weight],
    dtype_of: Callable[[str], mx.Dtype | None],
    check: Callable[[str, mx.array, mx.array], None],
    shard_bytes: int = LARGEST_SHARD,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Safetensors shards with an index, one shard in memory at a time.

    Args:
        folder: the folder to write to.
        weights: the weights by their final names.
        dtype_of: what a weight is cast to; None leaves it.
        check: is shown every weight as it was read and as it is written.
        shard_bytes: most bytes of a shard, unless a single weight has more.
        progress: called with the number of weights that were read.
    """
    shards = list(_shards(weights, dtype_of, shard_bytes))
    weight_map: dict[str, str] = {}
    total = 0
    for i, names in enumerate(shards, 1):
        file = "model.safetensors"
        if len(shards) > 1:
            file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        shard = {}
        for name in names:
            array, dtype = weights[name].read(), dtype_of(name)
            shard[name] = array if dtype is None else array.astype(dtype)
            mx.eval(array, shard[name])
            check(name, array, shard[name])
            del array
            total += shard[name].nbytes
            progress(1)
        mx.save_safetensors(str(folder / file), shard, metadata={"format": "mlx"})
        weight_map |= dict.fromkeys(names, file)
        del shard
        mx.clear_cache()
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(folder / "model.safetensors.index.json", index)


def _shards(
    weights: Mapping[str, Weight], dtype_of: Callable[[str], mx.Dtype | None], most: int
) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, weight in weights.items():
        bytes_ = weight.nbytes(dtype_of(name))
        if names and size + bytes_ > most:
            yield names
            names, size = [], 0
        names.append(name)
        size += bytes_
    yield names


def write_config(folder: Path, args: ModelArgs, more: Mapping[str, Any] | None = None) -> None:
    """config.json: the last file of a model, without which it does not load."""
    config = {key: value for key, value in vars(args).items() if not key.startswith("_")}
    write_json(folder / "config.json", config | dict(more or {}))


def write_tokenizer(source: Path, folder: Path) -> str:
    """Copy a tokenizer's files, or build them from ``tokenizer.model``; what was done.

    A checkpoint without a tokenizer is no error: it is said.
    """
    files = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    if not files:
        return "no tokenizer beside the weights: put tokenizer.json there before generating"
    files += [name for name in _TOKENIZER_COMPANIONS if (source / name).is_file()]
    for name in files:
        shutil.copyfile(source / name, folder / name)
    if files[0] == "tokenizer.model":
        return _build_tokenizer(source, folder)
    return f"tokenizer: {', '.join(files)}"


def _build_tokenizer(source: Path, folder: Path) -> str:
    """tokenizer.json from a SentencePiece model."""
    from transformers import LlamaTokenizer

    try:
        LlamaTokenizer.from_pretrained(source, local_files_only=True).save_pretrained(folder)
    except Exception as error:  # of transformers, sentencepiece or protobuf, each with its own
        return (
            "tokenizer.model was copied, but tokenizer.json could not be built from it: "
            f"{' '.join(str(error).split())[:120]}"
        )
    return "tokenizer: tokenizer.json, built from tokenizer.model"


def bundle_code(folder: Path) -> dict[str, str]:
    """Write the file that mlx-lm runs with --trust-remote-code; the config key that names it."""
    (folder / f"{MODEL_TYPE}.py").write_text(_BUNDLED)
    return {"model_file": f"{MODEL_TYPE}.py"}


def quantise(
    source: Path,
    folder: Path,
    *,
    group_size: int | None,
    bits: int | None,
    mode: str,
    recipe: str | None,
    more: Mapping[str, Any],
) -> None:
    """Write the model in `source` to `folder` with mlx-lm's quantisation.

    The router is no linear layer to any quantiser, and norms are none either: both stay
    float32, with a mixed recipe as well. ``more`` goes into the config.

    Raises:
        ValueError: if mlx-lm cannot quantise it so.
    """
    if recipe is not None and mode != "affine":
        raise ValueError(f"--quant-predicate {recipe} goes with --q-mode affine, not {mode}")
    model, config = load_model(source, lazy=True)
    width = config["hidden_size"]
    predicate = None
    if recipe is not None:
        predicate = mixed_quant_predicate_builder(recipe, model, group_size or 64)
    model, config = quantize_model(
        model, config, group_size, bits, mode=mode, quant_predicate=cast(Any, predicate)
    )
    if not any(hasattr(module, "scales") for _, module in model.named_modules()):
        raise ValueError(
            f"nothing can be quantised: no matrix has a multiple of {group_size or 64} columns "
            f"(hidden_size is {width}); give a smaller --q-group-size"
        )
    save_model(folder, model)
    for file in source.iterdir():
        if file.suffix != ".safetensors" and not file.name.endswith((".index.json", "config.json")):
            shutil.copyfile(file, folder / file.name)
    quantisation = {key: config[key] for key in ("quantization", "quantization_config")}
    write_config(folder, ModelArgs.from_dict(config), quantisation | dict(more))
