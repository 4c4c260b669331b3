"""A run's losses: lines of JSON as they come, and a picture at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mlx_lm.tuner.callbacks import TrainingCallback

from fm_mlx.files import file_at

LOG, PICTURE = "log.jsonl", "loss.png"


class Log(TrainingCallback):
    """Writes mlx-lm's reports to ``log.jsonl`` in a folder, numbered from a run's beginning.

    Args:
        folder: of the adapter; None writes nothing.
        steps, tokens: of the run before this process; later reports in the file are dropped.
        inner: is told as well: mlx-lm's wandb or swanlab.

    Attributes:
        first_val_loss: None until one is reported.
    """

    def __init__(
        self, folder: Path | None, steps: int, tokens: int, inner: TrainingCallback | None = None
    ):
        self.first_val_loss: float | None = None
        self._folder = folder
        self._before = {"iteration": steps, "trained_tokens": tokens}
        self._inner = inner or TrainingCallback()
        if folder is not None:
            kept = [line for line in read_log(folder) if steps and line["iteration"] <= steps]
            with file_at(folder / LOG) as scratch:
                scratch.write_text("".join(json.dumps(line) + "\n" for line in kept))

    def on_train_loss_report(self, train_info: dict[str, Any]) -> None:
        self._inner.on_train_loss_report(self._write(train_info))

    def on_val_loss_report(self, val_info: dict[str, Any]) -> None:
        if self.first_val_loss is None:
            self.first_val_loss = val_info["val_loss"]
        self._inner.on_val_loss_report(self._write(val_info))

    def last(self, step: int, val_loss: float) -> None:
        """Report the held-out loss after the last step."""
        step -= self._before["iteration"]
        self.on_val_loss_report({"iteration": step, "val_loss": val_loss})

    def _write(self, info: dict[str, Any]) -> dict[str, Any]:
        info = info | {key: info[key] + n for key, n in self._before.items() if key in info}
        if self._folder is not None:
            with (self._folder / LOG).open("a") as log:
                log.write(json.dumps(info) + "\n")
        return info


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The reports of a run; a last line that a killed run left unfinished does not count."""
    path = folder / LOG
    if not path.is_file():
        return []
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def draw(folder: Path) -> bool:
    """Draw the losses of a run to ``loss.png``; False without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss, nats per token")
    for key, label, style in (("train_loss", "training", "-"), ("val_loss", "held out", "o-")):
        points = [(line["iteration"], line[key]) for line in read_log(folder) if key in line]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label)
    axes.legend()
    axes.grid(alpha=0.3)
    with file_at(folder / PICTURE) as scratch:
        figure.savefig(scratch, dpi=120)
    return True
