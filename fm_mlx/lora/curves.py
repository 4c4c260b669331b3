"""A run's losses: lines of JSON as they come, and a picture at the end."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlx_lm.tuner.callbacks import TrainingCallback
from tqdm import tqdm

from fm_mlx.support.figures import new_figure, save
from fm_mlx.support.files import file_at

LOG, PICTURE = "log.jsonl", "loss.png"


class Log:
    """Tells of a run: lines on standard output, ``log.jsonl``, and what ``--report-to`` names.

    On a terminal a bar shows the steps.

    Args:
        folder: the folder of the adapter.
        done: the steps that were done before; later reports in the file are dropped.
        steps: the steps of the whole run.
        inner: is told as well: mlx-lm's wandb or swanlab.
    """

    def __init__(self, folder: Path, done: int, steps: int, inner: TrainingCallback | None = None):
        self._file = folder / LOG
        self._inner = inner or TrainingCallback()
        kept = [line for line in read_log(folder) if done and line["iteration"] <= done]
        with file_at(self._file) as scratch:
            scratch.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._bar = tqdm(
            total=steps,
            initial=done,
            disable=not sys.stderr.isatty(),
            file=sys.stderr,
            unit="step",
            leave=False,
        )

    def step(self) -> None:
        """A step is done."""
        self._bar.update()

    def training(self, step: int, report: dict[str, Any]) -> None:
        """Tell of the training loss up to a step, by mlx-lm's names of figures."""
        self._say(
            f"Iter {step}: Train loss {report['train_loss']:.3f}, "
            f"Learning Rate {report['learning_rate']:.3e}, "
            f"It/sec {report['iterations_per_second']:.3f}, "
            f"Tokens/sec {report['tokens_per_second']:,.0f}, "
            f"Trained Tokens {report['trained_tokens']:,}, "
            f"Peak mem {report['peak_memory']:.3f} GB"
        )
        self._write({"iteration": step, **report}, self._inner.on_train_loss_report)

    def held_out(self, step: int, loss: float, seconds: float) -> None:
        """Tell of the loss on held-out examples after a step."""
        self._say(f"Iter {step}: Val loss {loss:.3f}, Val took {seconds:.3f}s")
        report = {"iteration": step, "val_loss": loss, "val_time": seconds}
        self._write(report, self._inner.on_val_loss_report)

    def close(self) -> None:
        """Take the bar off the terminal."""
        self._bar.close()

    def _say(self, line: str) -> None:
        self._bar.write(line, file=sys.stdout)
        sys.stdout.flush()

    def _write(self, report: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
        with self._file.open("a") as log:
            log.write(json.dumps(report) + "\n")
        tell(report)


class Silence(Log):
    """Tells nobody: the log of all processes of a run but the first."""

    def __init__(self) -> None:
        pass

    def step(self) -> None:
        """Say nothing."""

    def training(self, step: int, report: dict[str, Any]) -> None:
        """Say nothing."""

    def held_out(self, step: int, loss: float, seconds: float) -> None:
        """Say nothing."""

    def close(self) -> None:
        """There is nothing to take off."""


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
        figure = new_figure(7, 4)
    except ValueError:
        return False
    axes = figure.add_subplot(xlabel="step", ylabel="loss, nats per token")
    for key, label, style in (("train_loss", "training", "-"), ("val_loss", "held out", "o-")):
        points = [(line["iteration"], line[key]) for line in read_log(folder) if key in line]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label)
    axes.legend()
    axes.grid(alpha=0.3)
    save(figure, folder / PICTURE)
    return True
