"""The scripts of `examples/` run on the packaged model, show what they say, and leave nothing."""

from __future__ import annotations

import re
import runpy
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from fm_mlx.convert.parity import torch_is_there
from fm_mlx.metal_kernels import simulator

EXAMPLES = Path(__file__).parents[1] / "examples"
README = (EXAMPLES / "README.md").read_text(encoding="utf-8")

Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path, monkeypatch, capsys) -> Run:
    """Run a script as from the command line, in an empty folder that stays so; what it prints."""
    scratch, here = tmp_path / "scratch", tmp_path / "here"
    scratch.mkdir()
    here.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.chdir(here)

    def run(script: str, *options: str) -> str:
        monkeypatch.setattr(sys, "argv", [script, *options])
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        assert not [*scratch.iterdir(), *here.iterdir()]
        return capsys.readouterr().out

    return run


def test_long_generation(run: Run, tmp_path: Path):
    text = tmp_path / "text.txt"
    text.write_text("And it came to pass in those days, that all the world should be read.\n" * 700)
    printed = run("long_generation.py", str(text), "--chars", "36000")
    lines = re.findall(r"([\d,]+) tokens read in .* peak memory ([\d.]+) MB", printed)
    tokens = [int(count.replace(",", "")) for count, _ in lines]
    peaks = [float(peak) for _, peak in lines]
    assert len(lines) == 3
    assert 3.5 < tokens[1] / tokens[0] < 4.5 and 3.5 < tokens[2] / tokens[1] < 4.5
    assert tokens[1] > 2048  # as many as are read at a time
    assert peaks[2] < 1.05 * peaks[1]


def test_memories(run: Run):
    printed = run("memories.py")
    read, size = re.search(r"Read ([\d,]+) tokens .* ([\d,]+) bytes", printed).groups()
    assert int(read.replace(",", "")) > 4096
    assert int(size.replace(",", "")) < 1_000_000
    assert "The same as before saving: True" in printed
    assert f"The first memory read ['book: {read}']" in printed
    assert f"The branch read ['book: {read}', 'letter: " in printed
    assert "Rewound to before the letter, bit for bit: True" in printed
    half = int(read.replace(",", "")) // 2
    assert f"Rewound to the middle of the book: {half:,} tokens" in printed


def test_convert(run: Run):
    printed = run("convert.py")
    assert "tower/0/fused" in printed
    assert "Largest difference of the logits, converted and original: 0.0e+00" in printed
    if torch_is_there():
        assert "agrees with the PyTorch reference" in printed
    else:
        assert "Not checked (PyTorch is not installed)" in printed


def test_lora(run: Run):
    printed = run("lora.py")
    before, after = re.search(
        r"Held-out loss: ([\d.]+) .* before, ([\d.]+) after", printed
    ).groups()
    assert float(after) < float(before) / 2
    without, tuned = re.search(r"^Before: (.*)\nAfter: (.*)$", printed, re.MULTILINE).groups()
    assert "went to the market" not in without
    assert "went to the market" in tuned


def test_kernel_in_simulator(run: Run):
    if reason := simulator.unavailable():
        pytest.skip(reason)
    right, wrong = run("kernel_in_simulator.py").split("One token too far:")
    assert float(re.search(r"difference from NumPy: (\S+)", right)[1]) < 1e-6
    assert "no findings" in right
    found = re.findall(r"out-of-bounds: (loads|stores) .* in (\w) .*\n  the line: (.*)", wrong)
    assert [(how, buffer) for how, buffer, _ in found] == [("loads", "x"), ("stores", "y")]
    assert found[0][2] == "h = (1.0f - theta) * h + theta * x[sequence * length + t];"
    assert found[1][2] == "y[sequence * length + t] = h;"
    assert "race-write-after-write" in wrong


@pytest.mark.parametrize("script", ["long_generation.py", "lora.py"])
def test_a_file_that_is_not_there_is_named(script: str, run: Run, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(script, "nowhere.txt")
    assert stopped.value.code == 2
    assert "no such file: nowhere.txt" in capsys.readouterr().err


def test_every_script_is_in_the_readme():
    scripts = {path.name for path in EXAMPLES.glob("*.py")}
    assert {name for name in scripts if f"`{name}`" not in README} == set()
