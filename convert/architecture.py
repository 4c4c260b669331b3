"""Which model the weights make: what shapes tell, what a config or an option must."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from fm_mlx.convert.key_map import KeyMap, Weight
from fm_mlx.layer import LINEAR
from fm_mlx.model import MODEL_TYPE, ModelArgs, shown
from fm_mlx.weights import TELLING, layer_numbers, sizes_told_by, weight_shapes

# What no shape tells, with the option that gives it. The router is the paper's if nothing is said.
UNSEEN = {
    "num_active_states": "--num-active-states",
    "affinity_temperature": "--affinity-temperature",
    "rms_norm_eps": "--rms-norm-eps",
    "memory_norm_eps": "--memory-norm-eps",
    "router": "--router",
}


def model_args(
    weights: Mapping[str, Weight], config: Mapping[str, Any], given: Mapping[str, Any]
) -> tuple[ModelArgs, list[str]]:
    """The model that weights under our names make, and notes on what was wrong in the config.

    Args:
        weights: mapped.
        config: the config of the checkpoint, which may be empty; where shapes contradict it
            they are right.
        given: values of the keys of UNSEEN from options; None is absent.

    Raises:
        ValueError: if something is missing or makes no sense.
    """
    unseen = {"router": LINEAR} | {key: config[key] for key in UNSEEN if key in config}
    unseen |= {key: value for key, value in given.items() if value is not None}
    shapes = {name: weight.shape for name, weight in weights.items()}
    told = sizes_told_by(shapes, unseen["router"])
    notes = [
        f"config.json says {key} = {shown(config[key])}; the weights say {value!r}"
        for key, value in told.items()
        if key in config and config[key] != value
    ]
    ours = config.get("model_type") == MODEL_TYPE
    missing = [option for key, option in UNSEEN.items() if key not in unseen]
    # a config of ours may leave out what the paper chose; another one says nothing by that
    if missing and not ours:
        keys = ", ".join(key for key in UNSEEN if key not in unseen)
        raise ValueError(f"no shape tells {keys}: give {' '.join(f'{o} X' for o in missing)}")
    if lacking := [name for name in TELLING if name not in weights]:
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
    layers = max(len(layer_numbers(weights)), 1)
    probe = ModelArgs(
        hidden_size=1, num_hidden_layers=layers, intermediate_size=1, vocab_size=1,
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
