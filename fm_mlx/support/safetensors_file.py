"""What a safetensors file holds, read from its header and held against its size."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from fm_mlx.support.files import check_regular


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of a file.

    Attributes:
        shape: The shape of the tensor.
        dtype: Its dtype by the name of safetensors: "F32", "BF16", "U32", ...
    """

    shape: tuple[int, ...]
    dtype: str


def tensors_of(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file by name; none of them is read.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not whole: cut short, with tensors that overlap, leave a gap or
            share a name, or no safetensors file at all.
    """
    check_regular(path)
    try:
        with safe_open(path, framework="np") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            found = {
                name: TensorInfo(tuple(part.get_shape()), part.get_dtype())
                for name, part in slices.items()
            }
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    with path.open("rb") as file:
        header = file.read(int.from_bytes(file.read(8), "little"))

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content: dict[str, Any] = {}
        for name, value in pairs:
            if name in content:
                raise ValueError(f"{path} names {name!r} twice")
            content[name] = value
        return content

    if len(found) < header.count(b'"data_offsets"'):
        json.loads(header, object_pairs_hook=once)
    return found
