"""`fm-mlx bench`: that it compares equals and prints what it measured; never how fast."""

from __future__ import annotations

import json

import mlx.core as mx
import pytest

from fm_mlx.commands.cli import main
from fm_mlx.perf import bench


def test_arms_are_of_equal_size():
    fm, *others = bench.build_arms(llama_heads=8)
    assert fm.name == "fm" and {arm.name for arm in others} == {"llama", "mamba2"}
    for arm in others:
        assert abs(arm.parameters / fm.parameters - 1) <= 0.02, arm.name


def test_peak_leaves_out_what_belongs_to_others():
    held = mx.zeros((1000, 1000))
    mx.eval(held)

    def run() -> float:
        mx.eval(mx.ones((500, 500)))
        return 1.0

    measured = bench.in_turns({"fm": run}, {"fm": 0}, rounds=2)["fm"]
    assert measured.seconds == 1.0
    assert 1e6 <= measured.peak < held.nbytes


@pytest.fixture
def tiny_arms(monkeypatch):
    """Two narrow layers each, and no run of the C++ compiler."""
    small = dict(hidden_size=32, num_hidden_layers=2)
    for name, more in {
        "FM_CONFIG": dict(intermediate_size=32, memory_size=16, num_memory_states=8),
        "WIDE_CONFIG": dict(intermediate_size=32, memory_size=16, num_memory_states=8),
        "LLAMA_CONFIG": dict(intermediate_size=32),
        "MAMBA2_CONFIG": dict(intermediate_size=32, num_heads=2, head_dim=16, state_size=8),
    }.items():
        monkeypatch.setattr(bench, name, getattr(bench, name) | small | more)
    monkeypatch.setattr(bench.gc, "collect", lambda: 0)  # of all that other tests have loaded
    monkeypatch.setattr(bench, "PREFILL_STEP", 64)
    monkeypatch.setattr(bench, "DECODED_TOKENS", 5)
    mx.disable_compile()
    yield
    mx.enable_compile()


def test_prints_every_figure_of_every_arm(tiny_arms, capsys, tmp_path):
    options = "--contexts 64 96 --train-lengths 8 --lora-lengths 9 --rounds 1 --llama-heads 2"
    kept = tmp_path / "runs.json"
    kept.write_text('{"runs": [3]}')
    assert main(["bench", *options.split(), "--json", str(kept)]) == 0
    out = capsys.readouterr().out
    rows = [line.split(" | ") for line in out.splitlines() if line.startswith("| ")]
    assert rows[0][1:4] == ["fm", "llama", "mamba2"]
    for label in ("prefill 64", "prefill 96", "decode after 96", "training T=8", "LoRA T=9"):
        assert sum(label in row[0] for row in rows) == 2, label  # time and peak memory
    assert all(len(row) == 6 for row in rows)
    assert "hidden 32: " in out
    ratios_above_one_favour_fm(out)
    earlier, this = json.loads(kept.read_text())["runs"]
    assert earlier == 3
    printed = {row[0].strip("| "): row[1:] for row in rows[2:]}
    assert {
        label: [f"{figure:g}" for figure in of_arms.values()]
        for label, of_arms in this["figures"].items()
    } == {
        label: [f"{float(cell.strip('x |').replace(',', '')):g}" for cell in cells]
        for label, cells in printed.items()
    }


def ratios_above_one_favour_fm(report: str) -> None:
    rows = [line.strip("| ").split(" | ") for line in report.splitlines()]
    table = {row[0]: row[1:] for row in rows if len(row) == 6}
    fm, llama, _, ratio, _ = table["prefill 64, tokens/s"]
    speeds = [float(figure.replace(",", "")) for figure in (fm, llama)]
    assert float(ratio[:-1]) == pytest.approx(speeds[0] / speeds[1], rel=0.05)
    fm, llama, _, ratio, _ = table["decode after 96, ms/token"]
    assert float(ratio[:-1]) == pytest.approx(float(llama) / float(fm), rel=0.1)


def test_a_file_of_something_else_is_left_alone(capsys, tmp_path):
    other = tmp_path / "other.json"
    other.write_text('{"figures": 1}')
    for path, said in ((other, "no list of runs"), (tmp_path / "no" / "x.json", "no folder")):
        assert main(["bench", "--json", str(path)]) == 2
        assert said in capsys.readouterr().err
    assert other.read_text() == '{"figures": 1}'


@pytest.mark.parametrize("option", ["--contexts", "--train-lengths", "--lora-lengths", "--rounds"])
def test_numbers_below_one_are_refused(option, capsys):
    assert main(["bench", option, "0"]) == 2
    assert option in capsys.readouterr().err
