"""Which of a model's numbers are tuned, and what an adapter's folder says of them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import mlx.core as mx
from mlx_lm.tuner.utils import linear_to_lora_layers

from fm_mlx.lora.options import Options
from fm_mlx.model import Model
from fm_mlx.support.arrays import named_arrays


def prepare(model: Model, options: Options) -> None:
    """Freeze a model but for what is to be tuned, which is added where it is not there yet.

    Raises:
        ValueError: if the model has not what is to be tuned.
    """
    layers = len(model.layers)
    if options.num_layers > layers:
        raise ValueError(f"num_layers is {options.num_layers}; allowed are -1 (all) to {layers}")
    chosen = range(layers)[-max(options.num_layers, 0) :]
    model.freeze()
    if options.fine_tune_type == "full":
        _unfreeze(model, chosen)
    elif options.fine_tune_type == "memory":
        _learn_memory(model, options.memory_layers or list(chosen))
    else:
        parameters = options.lora_parameters
        if missing := [key for key in ("rank", "scale", "dropout") if key not in parameters]:
            raise ValueError(f"lora_parameters has no {', '.join(missing)}")
        linear_to_lora_layers(
            model, options.num_layers, parameters, use_dora=options.fine_tune_type == "dora"
        )
    if options.train_router:
        for i in chosen:
            model.layers[i].memory.router.unfreeze()
    if not trainable(model):
        raise ValueError(f"nothing to tune: no layer is called {options.lora_parameters['keys']}")


def _unfreeze(model: Model, chosen: range) -> None:
    if any(hasattr(module, "scales") for _, module in model.named_modules()):
        raise ValueError("a quantised model cannot be tuned in full: use lora, dora or memory")
    for i in chosen:
        model.layers[i].unfreeze()
        model.layers[i].memory.router.freeze()


def _learn_memory(model: Model, chosen: list[int]) -> None:
    layers = len(model.layers)
    if outside := [i for i in chosen if not 0 <= i < layers]:
        raise ValueError(f"memory_layers has {outside[0]}; allowed are 0 to {layers - 1}")
    if not model.initial_memory.is_learned:
        model.initial_memory = model.initial_memory.to_lora()
    model.initial_memory.freeze()
    for i in chosen:
        model.initial_memory.layers[i].unfreeze()


def trainable(model: Model) -> dict[str, mx.array]:
    """The numbers that are tuned, by name: the content of ``adapters.safetensors``."""
    return named_arrays(model.trainable_parameters())


def adapter_config(options: Options) -> dict[str, Any]:
    """The content of ``adapter_config.json``.

    To mlx-lm's loader a tuned memory is an adapter of the module that ``keys`` names.
    """
    config = asdict(options) | {"tuned": options.fine_tune_type}
    if options.fine_tune_type == "memory":
        config |= {"fine_tune_type": "lora", "num_layers": -1}
    if options.fine_tune_type == "full":
        config["lora_parameters"] = None
    return dict(sorted(config.items()))
