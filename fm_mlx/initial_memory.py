"""h_0: what the memory of each layer holds before the first token."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

# Where the numbers of layer i stand among a model's parameters. mlx-lm loads adapters whose
# parameters are called lora_a, lora_b or m, and this one is the memory's m rows.
PREFIX = "initial_memory"


class LayerMemory(nn.Module):
    """The learned memory ``m`` (m, d) float32 of one layer."""

    def __init__(self, num_rows: int, width: int):
        super().__init__()
        self.m = mx.zeros((num_rows, width), mx.float32)


class InitialMemory(nn.Module):
    """The memories that the layers of a model begin with; nothing, and no parameter, if empty.

    It stands beside the layers and has `to_lora`: so default LoRA, which looks inside the
    layers, passes it by, and an adapter whose ``keys`` name it finds it, in mlx-lm as well.
    """

    def __init__(self, num_layers: int, num_rows: int, width: int, *, learned: bool = False):
        super().__init__()
        self._shape = num_layers, num_rows, width
        if learned:
            self.layers = [LayerMemory(num_rows, width) for _ in range(num_layers)]

    def to_lora(self, r: int = 0, scale: float = 0.0, dropout: float = 0.0) -> InitialMemory:
        """One whose numbers, zeros at first, can be learned; mlx-lm's signature."""
        return InitialMemory(*self._shape, learned=True)

    @property
    def is_learned(self) -> bool:
        """Whether there is a memory that may differ from zeros."""
        return "layers" in self

    def states(self) -> list[mx.array | None]:
        """(m, d) of every layer; None is zeros."""
        if not self.is_learned:
            return [None] * self._shape[0]
        return [layer.m for layer in self.layers]
