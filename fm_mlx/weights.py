"""Names and shapes of a model's weights: what they must be, and what they tell of the model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from fm_mlx.layer import LINEAR, PRODUCT
from fm_mlx.model import Model, ModelArgs
from fm_mlx.support.arrays import named_arrays
from fm_mlx.support.random_state import preserved

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"

# Weights without whose shapes there is no model.
TELLING = (
    EMBEDDING,
    "model.layers.0.memory.in_proj.weight",
    "model.layers.0.memory.router.weight",
    "model.layers.0.mlp.gate_proj.weight",
)

Shape = tuple[int, ...]

_LAYER = re.compile(r"^model\.layers\.(\d{1,9})\.")


def weight_shapes(args: ModelArgs) -> dict[str, Shape]:
    """The name and shape of every weight of a model, in floating point; nothing is computed."""
    with preserved():
        parameters = named_arrays(Model(args).parameters())
    return {name: tuple(array.shape) for name, array in parameters.items()}


def layer_numbers(names: Iterable[str]) -> set[int]:
    """The numbers of the layers that names of weights speak of."""
    return {int(found[1]) for name in names if (found := _LAYER.match(name))}


def sizes_told_by(shapes: Mapping[str, Shape], router: str = LINEAR) -> dict[str, int | bool]:
    """The keys of config.json that the shapes of weights give away, as far as they do.

    Holds for quantised weights as well: it looks only at rows, and at weights that are never
    quantised.

    Args:
        shapes: of the weights, by name.
        router: that of the config, which no shape tells.

    Raises:
        ValueError: if there are weights of a layer, and none of one before it.
    """

    def size(name: str, axis: int) -> int | None:
        shape = shapes.get(name)
        return shape[axis] if shape is not None and len(shape) == 2 else None

    layers = layer_numbers(shapes)
    gap = next((i for i in range(len(layers)) if i not in layers), None)
    if gap is not None:
        raise ValueError(f"there are weights of layer {max(layers)} and none of layer {gap}")
    first = "model.layers.0."
    weights_of_router = f"{first}memory.router.weight"
    scores = size(weights_of_router, 0)
    rows = None if scores is None else scores - 2
    if rows is not None and router == PRODUCT:
        rows = (rows // 2) ** 2
    told = {
        "vocab_size": size(EMBEDDING, 0),
        "hidden_size": size(weights_of_router, 1),
        "num_hidden_layers": len(layers) or None,
        "memory_size": size(f"{first}memory.in_proj.weight", 0),
        "num_memory_states": rows,
        "intermediate_size": size(f"{first}mlp.gate_proj.weight", 0),
        "tie_word_embeddings": HEAD not in shapes,
    }
    return {key: value for key, value in told.items() if value is not None}


def check_sizes(shapes: Mapping[str, Shape], args: ModelArgs) -> None:
    """Raise unless weights are those of a model of this make, as far as sizes tell.

    Nothing is built for it, so that a config that asks for the impossible is refused first.

    Raises:
        ValueError: names the key of the config, its value, and what the weights say.
    """
    if missing := [name for name in TELLING if name not in shapes]:
        raise ValueError(f"there is no {missing[0]} among the {len(shapes)} weights")
    told = sizes_told_by(shapes, args.router)
    # the head of a tied model may be there: it is left out
    told.pop("tie_word_embeddings")
    for key, value in told.items():
        if getattr(args, key) != value:
            raise ValueError(
                f"{key} is {getattr(args, key)} in the config; the weights say {value}"
            )
