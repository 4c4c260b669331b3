"""Fine-tuning: LoRA, DoRA, whole weights, or what the memories hold at first.

mlx-lm's tuner does the work (layers, trainer, evaluation, adapters); here are the batches of
a recurrent model, tuning of its memory, and saves that a run goes on from.
"""

from fm_mlx.lora.data import Example
from fm_mlx.lora.options import Options
from fm_mlx.lora.run import Diverged, Result, evaluate, tune, tune_model

__all__ = ["Diverged", "Example", "Options", "Result", "evaluate", "tune", "tune_model"]
