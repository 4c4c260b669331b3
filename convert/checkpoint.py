"""Other people's checkpoints: found, opened without running anything, read one tensor at a time."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from safetensors import safe_open

from fm_mlx.support.arrays import load_arrays
from fm_mlx.support.files import read_json_object
from fm_mlx.support.safetensors_file import tensors_of

# What a weight may be, by the names of safetensors.
DTYPES = {
    "F32": mx.float32,
    "F16": mx.float16,
    "BF16": mx.bfloat16,
    "F64": mx.float32,
}
_TORCH_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}
_TORCH_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")

# Keys under which trainers put the weights, and those that hold a moving average of them.
_NESTS = ("state_dict", "model_state_dict", "model", "module", "weights", "params")
_EMA_NESTS = ("ema", "ema_model", "ema_state_dict", "model_ema", "ema_params", "shadow_params")

# What wrappers of modules put into names: DistributedDataParallel and DeepSpeed, compile,
# FSDP, activation checkpointing, averaged models; and Lightning in front of all.
_WRAPPERS = (
    "module.",
    "_orig_mod.",
    "_fsdp_wrapped_module.",
    "_checkpoint_wrapped_module.",
)
_EMA_PREFIX = re.compile(r"^(?:model_)?ema(?:_model)?\.")
_LIGHTNING = ("model.", "net.", "lm.", "network.")


@dataclass(frozen=True)
class Tensor:
    """A weight that is not read yet.

    Attributes:
        shape: The shape of the tensor.
        dtype: Its dtype, one of DTYPES.
        where: The file that it is in.
        read: Reads it, and gives it as an MLX array.
        storage: What is equal for two names of one tensor.
    """

    shape: tuple[int, ...]
    dtype: str
    where: Path
    read: Callable[[], mx.array]
    storage: object = None


@dataclass
class Checkpoint:
    """Tensors by name, with what was noticed on the way.

    Attributes:
        tensors: The tensors by the names of the checkpoint, wrappers stripped.
        notes: What was stripped, chosen or left, one line each.
        config: The content of a config.json beside the weights; empty if there is none.
        folder: Where config and tokenizer are.
    """

    tensors: dict[str, Tensor]
    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def open_checkpoint(path: Path, *, ema: bool = False) -> Checkpoint:
    """A checkpoint file, or a folder with one (in shards or whole).

    Args:
        path: .safetensors, .bin, .pt, .pth or .ckpt, an index of shards, or a folder.
        ema: take the moving average of the weights instead of the weights.

    Raises:
        FileNotFoundError: if there is nothing to read.
        ValueError: if a file is broken, is of a kind that is not read, or would run code.
    """
    files = _files(path)
    folder = path if path.is_dir() else path.parent
    opened = Checkpoint({}, folder, _config(folder))
    for file in files:
        tensors = _safetensors(file) if file.suffix == ".safetensors" else _torch(file, ema, opened)
        for name, tensor in tensors.items():
            if name in opened.tensors:
                first = opened.tensors[name].where.name
                raise ValueError(f"{name} is in {first} and again in {tensor.where.name}")
            opened.tensors[name] = tensor
    _check_index(path, opened)
    _strip(opened, ema)
    if not opened.tensors:
        raise ValueError(f"{path} holds no tensors")
    return opened


def _files(path: Path) -> list[Path]:
    """The files of a checkpoint, in order."""
    if path.is_file():
        if path.name.endswith(".index.json"):
            return _indexed(path)
        if path.suffix in (".safetensors", *_TORCH_SUFFIXES):
            return [path]
        suffixes = ", ".join((".safetensors", *_TORCH_SUFFIXES))
        raise ValueError(f"{path}: cannot tell what this is; read are {suffixes}")
    if not path.is_dir():
        raise FileNotFoundError(f"no checkpoint at {path}")
    for index in sorted(path.glob("*.index.json"), reverse=True):  # safetensors before bin
        return _indexed(index)
    for suffix in (".safetensors", *_TORCH_SUFFIXES):
        found = sorted(file for file in path.glob(f"*{suffix}") if _holds_weights(file))
        if found:
            return found
    raise FileNotFoundError(f"no weights in {path}: no .safetensors, .bin, .pt, .pth or .ckpt file")


def _holds_weights(file: Path) -> bool:
    """Not what trainers leave beside the weights."""
    others = ("optimizer", "scheduler", "training_args", "rng_state", "adapter", "random_states")
    return not file.name.startswith(others)


def _indexed(index: Path) -> list[Path]:
    """The shards that an index names, all of them files beside it."""
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index} has no weight_map")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name:
            raise ValueError(f"{index} names {name!r}; allowed are files beside it")
        if not (index.parent / name).is_file():
            raise FileNotFoundError(f"{index} names {name}, which is not there")
    return [index.parent / name for name in names]


def _check_index(path: Path, opened: Checkpoint) -> None:
    """Every tensor of an index must be in the shards."""
    indexes = [path] if path.is_file() else sorted(path.glob("*.index.json"), reverse=True)[:1]
    for index in indexes:
        if index.name.endswith(".index.json"):
            missing = sorted(set(read_json_object(index)["weight_map"]) - set(opened.tensors))
            if missing:
                raise ValueError(f"{index} names {_some(missing)}, which no shard holds")


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    return read_json_object(path) if path.is_file() else {}


def _safetensors(file: Path) -> dict[str, Tensor]:
    found = tensors_of(file)
    for name, tensor in found.items():
        _check_dtype(name, tensor.dtype, file)
    wide = {name for name, tensor in found.items() if tensor.dtype == "F64"}

    def read(name: str) -> mx.array:
        if name in wide:  # MLX has no float64 off the CPU
            with safe_open(file, framework="np") as opened:
                return mx.array(opened.get_tensor(name).astype(np.float32))
        return load_arrays(file)[name]  # lazily: only this one is read

    return {
        name: Tensor(tensor.shape, tensor.dtype, file, lambda name=name: read(name))
        for name, tensor in found.items()
    }


def _torch(file: Path, ema: bool, opened: Checkpoint) -> dict[str, Tensor]:
    """A pickle of PyTorch, of which nothing but tensors and plain containers is taken."""
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            f"{file} needs PyTorch to be read: pip install 'fm-mlx[torch]' (safetensors does not)"
        ) from error
    try:
        content = _torch_load(torch, file)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)|Unsupported (?:operand|class) (\S+)", str(error))
        what = f" ({next(filter(None, found.groups()))})" if found else ""
        raise ValueError(
            f"{file} is refused: its pickle wants more than tensors{what}, which could run code; "
            "save the state_dict alone, or as safetensors"
        ) from error
    except Exception as error:  # a broken zip or pickle raises what it likes
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{file} is not a whole PyTorch file: {reason}") from error
    tensors = _unnest(content, file, ema, opened.notes)
    found = {}
    for name, tensor in tensors.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        kind = _TORCH_DTYPES.get(dtype, dtype)
        if tensor.layout != torch.strided:
            raise ValueError(f"{name} in {file} is {tensor.layout}; allowed are dense tensors")
        if _is_bookkeeping(name, tensor):
            opened.notes.append(f"left out {name}, a {dtype} tensor of shape {tuple(tensor.shape)}")
            continue
        _check_dtype(name, kind, file)
        shape = tuple(tensor.shape)
        storage = (str(file), tensor.data_ptr(), shape, tensor.stride())
        read = partial(_from_torch, torch, tensor)
        found[name] = Tensor(shape, kind, file, read, storage)
    return found


def _torch_load(torch: Any, file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
    # files from before PyTorch 1.6 are no zip archives, and cannot be mapped
    return torch.load(file, map_location="cpu", weights_only=True)


def _from_torch(torch: Any, tensor: Any) -> mx.array:
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return mx.array(tensor.view(torch.int16).numpy()).view(mx.bfloat16)
    if tensor.dtype == torch.float64:
        tensor = tensor.float()
    return mx.array(tensor.numpy())


def _is_bookkeeping(name: str, tensor: Any) -> bool:
    """Counters that averaged models keep among their weights."""
    return tensor.ndim == 0 and not tensor.is_floating_point() and "n_averaged" in name


def _unnest(content: Any, file: Path, ema: bool, notes: list[str]) -> dict[str, Any]:
    """The dictionary of tensors inside what a trainer saved."""
    path: list[str] = []
    while isinstance(content, Mapping):
        tensors = {n: t for n, t in content.items() if isinstance(n, str) and _is_tensor(t)}
        averages = [key for key in _EMA_NESTS if isinstance(content.get(key), Mapping)]
        if averages and ema:
            key = averages[0]
        else:
            key = next((k for k in _NESTS if isinstance(content.get(k), Mapping)), None)
        if tensors and key is None:
            others = sorted(str(name) for name in content if name not in tensors)
            if others:
                notes.append(f"left out of {file.name}: {_some(others)}")
            if path:
                notes.append(f"took {'.'.join(path)} out of {file.name}")
            return tensors
        if key is None:
            break
        if averages and not ema:
            notes.append(f"{file.name} also holds a moving average, {averages[0]} (--ema takes it)")
        path.append(key)
        content = content[key]
    kind = type(content).__name__
    keys = f" with {_some(sorted(map(str, content)))}" if isinstance(content, Mapping) else ""
    raise ValueError(f"{file} holds no dictionary of tensors, but a {kind}{keys}")


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "layout") and hasattr(value, "data_ptr")


def _check_dtype(name: str, dtype: str, file: Path) -> None:
    if dtype not in DTYPES:
        raise ValueError(
            f"{name} in {file} is {dtype}; allowed are float32, float16, bfloat16 and float64"
            + (": dequantise it first" if "8" in dtype else "")
        )


def _strip(opened: Checkpoint, ema: bool) -> None:
    """Take the wrappers' marks out of the names, and the averages or the weights."""
    names = {name: name for name in opened.tensors}
    for mark in _WRAPPERS:
        marked = re.compile(rf"(?:^|(?<=\.)){re.escape(mark)}")
        if any(marked.search(name) for name in names.values()):
            names = {old: marked.sub("", name) for old, name in names.items()}
            opened.notes.append(f"stripped {mark} from the names")
    averages = {old for old, name in names.items() if _EMA_PREFIX.match(name)}
    if averages and averages != set(names):
        if ema:
            names = {old: _EMA_PREFIX.sub("", names[old]) for old in averages}
            opened.notes.append(f"took the moving average of {len(averages)} tensors")
        else:
            names = {old: name for old, name in names.items() if old not in averages}
            opened.notes.append(f"left out the moving average of {len(averages)} tensors (--ema)")
    elif averages:
        names = {old: _EMA_PREFIX.sub("", name) for old, name in names.items()}
        opened.notes.append("stripped ema. from the names: the file holds nothing else")
    for prefix in _LIGHTNING:
        inner = [name.removeprefix(prefix) for name in names.values()]
        if all(name.startswith(prefix) for name in names.values()) and _has_root(inner):
            names = dict(zip(names, inner, strict=True))
            opened.notes.append(f"stripped {prefix} from the names")
    stripped: dict[str, Tensor] = {}
    for old, name in names.items():
        if name in stripped:
            raise ValueError(f"two tensors are called {name} once their wrappers are stripped")
        stripped[name] = opened.tensors[old]
    opened.tensors = stripped


def _has_root(names: Iterable[str]) -> bool:
    """Whether names look like a whole model's: what is stripped was a wrapper, not `model.`

    In Hugging Face's way of naming, a model without a head of its own has nothing outside
    of ``model.``; there, that is no wrapper.
    """
    return any(name.startswith(("model.", "lm_head.", "head.", "blocks.")) for name in names)


def shared(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """Pairs of names of one and the same tensor, the first one first."""
    first: dict[object, str] = {}
    for name, tensor in tensors.items():
        if tensor.storage is None:
            continue
        if tensor.storage in first:
            yield first[tensor.storage], name
        else:
            first[tensor.storage] = name


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
