"""`fm-mlx profile`: its parts are the model's, its bytes are counted, its table adds up."""

from __future__ import annotations

import re

import mlx.core as mx
import mlx.nn as nn
import pytest
from cases import REAL, tiny_model

from fm_mlx.commands import cli
from fm_mlx.metal_kernels.cost import Cost
from fm_mlx.perf import profile
from fm_mlx.perf.speeds import Speeds

PARTS = ["norm", "projections", "router", "memory", "MLP", "head"]


@pytest.mark.parametrize("rows", [6, 4096])
def test_parts_and_what_they_move(rows):
    """Against a count by hand, for a token on the whole state and on two buffers."""
    width, hidden, inner, layers, k = 12, 32, 64, 2, 2
    model = tiny_model(REAL, num_memory_states=rows)
    found = {part.name: part.work for part in profile.parts(model, 1)}
    assert list(found) == PARTS
    assert found["MLP"].least_bytes == 4 * layers * (3 * hidden * inner + 2 * hidden)
    assert found["MLP"].flops == 2 * layers * 3 * hidden * inner
    assert found["projections"].flops == 2 * layers * 2 * hidden * width
    chosen = rows + 2 if rows == 4096 else 2 * rows
    router = (rows + 2) * hidden + hidden + chosen
    assert found["router"].least_bytes == 4 * layers * router
    assert found["head"].flops == 2 * 50 * hidden
    if rows == 4096:
        update = 4 * (8 * k * width + 2 * width + rows + 2 + 8 * k)
        assert found["memory"].least_bytes == layers * update
    else:
        assert found["memory"].least_bytes == layers * 4 * 2 * rows * width


def test_a_prompt_needs_no_head():
    assert [part.name for part in profile.parts(tiny_model(REAL), 40)] == PARTS[:-1]


def test_quantised_weights_are_counted_as_they_lie():
    model = tiny_model(REAL, hidden_size=64, memory_size=64, intermediate_size=128)
    whole = {part.name: part.work for part in profile.parts(model, 1)}
    nn.quantize(model, bits=4, class_predicate=lambda path, m: isinstance(m, nn.Linear))
    packed = {part.name: part.work for part in profile.parts(model, 1)}
    assert packed["MLP"].flops == whole["MLP"].flops
    weights = 2 * 3 * 64 * 128
    # 4 bits, and a float32 scale and bias for 64 weights
    assert whole["MLP"].least_bytes - packed["MLP"].least_bytes == weights * 4 - weights * 5 // 8


def test_bound_is_the_slower_of_both():
    speeds = Speeds(bandwidth=100, arithmetic=1000)
    assert speeds.bound(Cost(0, 500, 1000)) == 5
    assert speeds.bound(Cost(0, 50, 1000)) == 1


def test_command(capsys):
    """On the packaged model: the parts, and what is between them, make the whole."""
    assert cli.main(["profile", "--rounds", "1", "--prompt-tokens", "64"]) == 0
    out = capsys.readouterr().out
    assert "GB/s" in out
    _, prefill, decode = re.split(r"\n\n", out.strip())
    for table, parts in ((prefill, PARTS[:-1]), (decode, PARTS)):
        lines = [line.split() for line in table.splitlines()[2:]]
        assert [line[0] for line in lines] == [*parts, "between", "whole"]
        times = {line[0]: float(line[1].replace(",", "")) for line in lines}
        whole = times.pop("whole")
        assert sum(times.values()) == pytest.approx(whole, abs=0.1 * len(times))
        assert all(times[name] > 0 for name in parts)


def test_bad_input(capsys):
    assert cli.main(["profile", "--prompt-tokens", "1"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_parts_leave_the_model_as_it_was():
    model = tiny_model(REAL, num_memory_states=4096)
    before = model(mx.array([[1, 2, 3]]))
    profile.profile(model, 1, rounds=1)
    assert mx.array_equal(model(mx.array([[1, 2, 3]])), before)
