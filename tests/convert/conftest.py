"""A model of the PyTorch reference, trained on real text, and ways to store it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from training import BATCH, CONFIG, LENGTH, STEPS, Trained, real_text

from fm_mlx.commands import cli
from fm_mlx.convert.torch_reference import LanguageModel


@pytest.fixture(scope="session")
def trained() -> Trained:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = LanguageModel(CONFIG)
    text = real_text().long()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    losses = []
    for _ in range(STEPS):
        starts = torch.randint(0, len(text) - LENGTH - 1, (BATCH,))
        windows = torch.stack([text[s : s + LENGTH + 1] for s in starts])
        logits = model(windows[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return Trained(model.eval(), losses)


@pytest.fixture
def source(trained, tmp_path) -> Callable[..., Path]:
    """Writes a checkpoint folder: a .pt of whatever is given, and config.json."""

    def write(content=None, config: dict | None = None, name: str = "model.pt") -> Path:
        folder = tmp_path / "source"
        folder.mkdir(exist_ok=True)
        torch.save(trained.state if content is None else content, folder / name)
        if config != {}:
            (folder / "config.json").write_text(json.dumps(config or trained.config()))
        return folder

    return write


@pytest.fixture
def convert(tmp_path, capsys) -> Callable[..., tuple[int, str, str, Path]]:
    """Runs the command; status, what it printed, its errors, and the folder it should make."""

    def run(path: Path, *options: str) -> tuple[int, str, str, Path]:
        out = tmp_path / "mlx"
        command = ["convert", "--hf-path", str(path), "--mlx-path", str(out), *map(str, options)]
        status = cli.main(command)
        printed = capsys.readouterr()
        return status, printed.out, printed.err, out

    return run
