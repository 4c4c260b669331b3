"""Fine-tuning: LoRA, DoRA, whole weights, or what the memories hold at first.

Layers, losses, optimizers, schedules and adapter files are those of mlx-lm's tuner; here are
the loop, the batches of a recurrent model, tuning of its initial states, and saves that a run
goes on from.
"""

from fm_mlx.lora.data import Example
from fm_mlx.lora.loop import Diverged
from fm_mlx.lora.options import Options
from fm_mlx.lora.run import Result, evaluate, tune, tune_model

__all__ = ["Diverged", "Example", "Options", "Result", "evaluate", "tune", "tune_model"]
