"""Folders with something wrong in them: one line, no traceback, no hang, no text from NaN."""

from __future__ import annotations

import random
import shutil
import signal
import warnings
from contextlib import contextmanager
from pathlib import Path

import fuzz
import pytest

from fm_mlx.commands import cli

SECONDS = 60  # far more than any of it takes

KINDS = {
    "config": fuzz.odd_config,
    "weights": fuzz.damaged_weights,
    "tokenizer": fuzz.odd_tokenizer,
}

# Kind, number of seeds by default, and under `slow`.
RUNS = [("config", 80, 2000), ("weights", 40, 200), ("tokenizer", 40, 200)]


@contextmanager
def no_hang():
    def hung(*_):
        raise TimeoutError(f"it took more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, hung)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def ends_well(argv: list[str], capsys, what: str) -> int:
    """The command ends in one line and a status that says so, or it does its work."""
    with no_hang(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        status = cli.main(argv)
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("fm-mlx")]
    assert "Traceback" not in err, (what, err)
    assert "<unk> <unk>" not in out, (what, out)
    if status == 0:
        assert lines == [], (what, err)
    else:
        assert status in (1, 2), (what, status)
        assert len(lines) == 1, (what, err)
        assert out == "" or status == 1, (what, out)
    return status


def seeds(many: bool):
    return [
        pytest.param(kind, first, min(20, count - first), id=f"{kind}-{first}")
        for kind, few, all_of_them in RUNS
        for count in [all_of_them if many else few]
        for first in range(0, count, 20)
    ]


def fuzzed(kind: str, first: int, count: int, checkpoint: Path, tmp_path: Path, capsys) -> None:
    statuses = set()
    for seed in range(first, first + count):
        folder = tmp_path / f"{kind}-{seed}"
        shutil.copytree(checkpoint, folder)
        what = f"{kind} {seed}: {KINDS[kind](folder, random.Random(f'{kind} {seed}'))}"
        argv = ["generate", "--model", str(folder), "-p", "the river", "-m", "3"]
        statuses.add(ends_well(argv, capsys, what))
        if kind != "tokenizer":
            out = str(tmp_path / "converted")
            ends_well(
                ["convert", "--hf-path", str(folder), "--mlx-path", out, "--no-parity"],
                capsys,
                what,
            )
            shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(folder)
    assert statuses <= {0, 1, 2}


@pytest.mark.parametrize(("kind", "first", "count"), seeds(many=False))
def test_short(kind, first, count, checkpoint, tmp_path, capsys):
    fuzzed(kind, first, count, checkpoint, tmp_path, capsys)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "first", "count"), seeds(many=True))
def test_long(kind, first, count, checkpoint, tmp_path, capsys):
    fuzzed(kind, first, count, checkpoint, tmp_path, capsys)
