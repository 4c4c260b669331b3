"""Which model the weights make: what shapes tell, what a config or an option must."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from fm_mlx.convert.key_map import KeyMap, Weight
from fm_mlx.model import MODEL_TYPE, ModelArgs

# What no shape tells, with the option that gives it.
UNSEEN = {
    "num_active_states": "--num-active-states",
    "affinity_temperature": "--affinity-temperature",
    "rms_norm_eps": "--rms-norm-eps",
    "memory_norm_eps": "--memory-norm-eps",
}

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
# Weights without whose shapes there is no model.
_TELLING = (
    _EMBEDDING,
    "model.layers.0.memory.in_proj.weight",
    "model.layers.0.memory.router.weight",
    "model.layers.0.mlp.gate_proj.weight",
)
_LAYER = re.compile(r"^model\.layers\.(\d+)\.")


def weight_shapes(args: ModelArgs) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight of a model."""
    hidden, width, inner = args.hidden_size, args.memory_size, args.intermediate_size
    shapes = {_EMBEDDING: (args.vocab_size, hidden), "model.norm.weight": (hidden,)}
    for i in range(args.num_hidden_layers):
        block = {
            "memory_norm": (hidden,),
            "memory.in_proj": (width, hidden),
            "memory.router": (args.num_memory_states + 2, hidden),
            "memory.out_proj": (hidden, width),
            "mlp_norm": (hidden,),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in block.items()}
    if not args.tie_word_embeddings:
        shapes[_HEAD] = (args.vocab_size, hidden)
    return shapes


def shapes_tell(weights: Mapping[str, Weight]) -> dict[str, Any]:
    """The keys of config.json that weights under our names give away, as far as they do."""

    def size(name: str, axis: int) -> int | None:
        weight = weights.get(name)
        return weight.shape[axis] if weight is not None and len(weight.shape) == 2 else None

    layers = {int(found[1]) for name in weights if (found := _LAYER.match(name))}
    first = "model.layers.0."
    router = size(f"{first}memory.router.weight", 0)
    told = {
        "vocab_size": size(_EMBEDDING, 0),
        "hidden_size": size(_EMBEDDING, 1),
        "num_hidden_layers": max(layers) + 1 if layers else None,
        "memory_size": size(f"{first}memory.in_proj.weight", 0),
        "num_memory_states": None if router is None else router - 2,
        "intermediate_size": size(f"{first}mlp.gate_proj.weight", 0),
        "tie_word_embeddings": _HEAD not in weights,
    }
    return {key: value for key, value in told.items() if value is not None}


def model_args(
    weights: Mapping[str, Weight], config: Mapping[str, Any], given: Mapping[str, Any]
) -> tuple[ModelArgs, list[str]]:
    """The model that weights under our names make, and notes on what was wrong in the config.

    Args:
        weights: mapped.
        config: of the checkpoint; may be empty. Where shapes contradict it they are right.
        given: values of the keys of UNSEEN from options; None is absent.

    Raises:
        ValueError: if something is missing or makes no sense.
    """
    told = shapes_tell(weights)
    notes = [
        f"config.json says {key} = {config[key]!r}; the weights say {value!r}"
        for key, value in told.items()
        if key in config and config[key] != value
    ]
    ours = config.get("model_type") == MODEL_TYPE
    unseen = {key: config[key] for key in UNSEEN if key in config}
    unseen |= {key: value for key, value in given.items() if value is not None}
    missing = [option for key, option in UNSEEN.items() if key not in unseen]
    # a config of ours may leave out what the paper chose; another one says nothing by that
    if missing and not ours:
        keys = ", ".join(key for key in UNSEEN if key not in unseen)
        raise ValueError(f"no shape tells {keys}: give {' '.join(f'{o} X' for o in missing)}")
    if lacking := [name for name in _TELLING if name not in weights]:
        some = ", ".join(list(weights)[:4])
        raise ValueError(f"missing: {', '.join(lacking)}; there are {some}, ...")
    args = ModelArgs.from_dict({"model_type": MODEL_TYPE, **told, **unseen})
    return args, notes


def differences(weights: Mapping[str, Weight], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What keeps weights from being a model: missing, left over, of another shape."""
    missing = [name for name in shapes if name not in weights]
    extra = [name for name in weights if name not in shapes]
    lines = []
    for name in missing:
        near = get_close_matches(name, extra, n=3, cutoff=0.3)
        near += [other for other in extra if weights[other].shape == shapes[name]][:3]
        candidates = ", ".join(f"{n} {weights[n].shape}" for n in dict.fromkeys(near))
        lines.append(
            f"missing: {name} {shapes[name]}" + (f"; nearest: {candidates}" if near else "")
        )
    for name in extra:
        near = get_close_matches(name, missing or shapes, n=1, cutoff=0.3)
        hint = f"; nearest: {near[0]} {shapes[near[0]]}" if near else ""
        sources = ", ".join(weights[name].sources)
        called = name if sources == name else f"{sources} (as {name})"
        lines.append(f"left over: {called} {weights[name].shape}{hint}")
    for name, shape in shapes.items():
        if name in weights and weights[name].shape != shape:
            sources = ", ".join(weights[name].sources)
            lines.append(f"wrong shape: {sources} is {weights[name].shape}; {name} wants {shape}")
    return lines


def recognised(weights: Mapping[str, Weight]) -> int:
    """How many weights bear a name of ours: how well a key map fits."""
    count = max((int(f[1]) for n in weights if (f := _LAYER.match(n))), default=-1) + 1
    probe = ModelArgs(
        hidden_size=1, num_hidden_layers=max(count, 1), intermediate_size=1, vocab_size=1,
        num_memory_states=1, num_active_states=1, tie_word_embeddings=False,
    )  # fmt: skip
    return len(set(weights) & set(weight_shapes(probe)))


def choose_map(tensors: Mapping[str, Any], maps: tuple[KeyMap, ...]) -> KeyMap:
    """The first of the maps under which most tensors bear our names.

    Raises:
        ValueError: if none fits at all.
    """
    fits = []
    for candidate in maps:
        try:  # what is to be joined and is not complete is said when the map is applied
            fits.append(recognised(replace(candidate, split=(), concat=()).apply(tensors)))
        except ValueError:
            fits.append(0)
    if not max(fits):
        some = ", ".join(list(tensors)[:4])
        raise ValueError(
            f"no built-in key map knows these names ({some}, ...): give --key-map FILE"
        )
    return maps[fits.index(max(fits))]
