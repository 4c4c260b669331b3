"""What the PyTorch model of the tests is, and what it reads."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pydoc_data.topics import topics

import torch

from fm_mlx.convert.torch_reference import Config, LanguageModel

CONFIG = Config(
    hidden_size=48,
    num_hidden_layers=2,
    intermediate_size=96,
    vocab_size=256,
    memory_size=32,
    num_memory_states=10,
    num_active_states=3,
    affinity_temperature=0.5,
    memory_norm_eps=1e-5,
    tie_word_embeddings=False,
)
UNSEEN = ["--num-active-states", "3", "--affinity-temperature", "0.5", "--rms-norm-eps", "1e-6"]
UNSEEN += ["--memory-norm-eps", "1e-5"]
STEPS, BATCH, LENGTH = 300, 4, 48


@dataclass
class Trained:
    """The reference after training, and its losses."""

    model: LanguageModel
    losses: list[float]

    @property
    def state(self) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def config(self) -> dict:
        return {"model_type": "factorization_memory", **asdict(self.model.config)}


def real_text() -> torch.Tensor:
    """The documentation of Python's language, as bytes."""
    return torch.frombuffer(bytearray("\n".join(topics.values()).encode()), dtype=torch.uint8)
