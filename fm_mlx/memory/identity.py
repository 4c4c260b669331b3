"""By what a model and its tokenizer are known again: a memory is of use to no other."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx
import numpy as np

from fm_mlx.layer import LINEAR
from fm_mlx.model import Model
from fm_mlx.support.arrays import dtype_name, named_arrays


@dataclass(frozen=True)
class Identity:
    """What must be alike for a model to go on from a memory; sha256 in hexadecimal digits.

    Attributes:
        config: The digest of the arguments of the model.
        weights: The digest of all weights but those of adapters: names, shapes, dtypes, bits.
        adapter: The digest of the weights of LoRA adapters; "none" without them.
        tokenizer: The digest of the tokenizer; "unknown" if it was not given.
        dtype: The dtype of most weights, by MLX's name.
    """

    config: str
    weights: str
    adapter: str
    tokenizer: str
    dtype: str

    def check(self, other: Identity, name: str) -> None:
        """Raise unless two identities are one; an unknown tokenizer is any.

        Raises:
            ValueError: says what differs; `name` is what has this identity.
        """
        wrong = []
        for field in dataclasses.fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if mine != theirs and "unknown" not in (mine, theirs):
                wrong.append(f"{field.name} {mine[:12]}, not {theirs[:12]}")
        if wrong:
            raise ValueError(f"{name} is of another model: {'; '.join(wrong)}")


def identity_of(model: Model, tokenizer: Any = None) -> Identity:
    """The identity of a model and its tokenizer; the digests of all weights are computed."""
    weights = named_arrays(model.parameters())
    adapter = {name: weights.pop(name) for name in list(weights) if ".lora_" in name}
    arguments = dataclasses.asdict(model.args)
    if arguments["router"] == LINEAR:  # memories of before there was another one stay valid
        del arguments["router"]
    config = json.dumps(arguments, sort_keys=True)
    sizes: Counter[str] = Counter()
    for weight in weights.values():
        sizes[dtype_name(weight.dtype)] += weight.size
    return Identity(
        config=hashlib.sha256(config.encode()).hexdigest(),
        weights=_digest(weights),
        adapter=_digest(adapter) if adapter else "none",
        tokenizer="unknown" if tokenizer is None else _digest_of_tokenizer(tokenizer),
        dtype=sizes.most_common(1)[0][0],
    )


def _digest(weights: Mapping[str, mx.array]) -> str:
    """The digest of the digests of all weights, in the order of their names."""

    def of(name: str) -> bytes:
        weight = mx.contiguous(weights[name])
        head = f"{name} {weight.shape} {weight.dtype}".encode()
        bits = cast(Any, np.asarray(weight.view(mx.uint8)))
        return head + hashlib.sha256(bits).digest()

    mx.eval(list(weights.values()))
    names = sorted(weights)
    with ThreadPoolExecutor() as pool:  # hashing lets other threads run
        return hashlib.sha256(b"".join(pool.map(of, names))).hexdigest()


def _digest_of_tokenizer(tokenizer: Any) -> str:
    """Of all that a fast tokenizer does, or of the vocabulary of another."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = (
        json.dumps(sorted(tokenizer.get_vocab().items())) if backend is None else backend.to_str()
    )
    return hashlib.sha256(text.encode()).hexdigest()
