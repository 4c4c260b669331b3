"""What stays in float32 whatever dtype the other weights have. Decided here and nowhere else.

The state sums writes of very different size, and which rows a token touches is a comparison
of nearly equal numbers: in 16 bits the one drifts and the other flips. So these are float32:

* the state, with the row norms and what both are computed from (`fm_mlx.ops` casts to it);
* the routers: weights, logits, theta and phi (`fm_mlx.layer.Router`);
* the weights of the norms;
* learned initial states.

Everything else has the dtype of the weights, or is quantised.
"""

from __future__ import annotations

from fm_mlx.initial_memory import PREFIX as INITIAL_MEMORY


def stays_float32(name: str) -> bool:
    """Whether the weight of this name (``model.layers.0.memory.router.weight``) is float32."""
    return name.endswith(("router.weight", "norm.weight")) or name.startswith(f"{INITIAL_MEMORY}.")


def may_be_quantised(path: str) -> bool:
    """Whether a quantiser may have the module at this path (``model.layers.0.mlp.up_proj``)."""
    return not stays_float32(f"{path}.weight")
