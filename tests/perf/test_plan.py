"""fm-mlx plan: its figures by hand, and its command."""

from __future__ import annotations

import pytest
from mlx.utils import tree_flatten

import fm_mlx
from fm_mlx.commands import cli
from fm_mlx.metal_kernels.chunk_scan import chunk_scan_cost
from fm_mlx.model import ModelArgs
from fm_mlx.perf import chips, launches
from fm_mlx.perf.chips import find_chips
from fm_mlx.perf.plan import PAPER_1B, Plan, seconds

M4_MAX = find_chips("m4-max-546")[0]

# 16 layers of W_i, W_o (2048 x 2048) and a SwiGLU of 8192; the head; routers and norms
BLOCKS = 16 * (2 * 2048**2 + 3 * 2048 * 8192)
HEAD = 32_000 * 2048
PRECISE = 16 * (66 * 2048 + 2 * 2048) + 2048


class TestFiguresByHand:
    def test_parameters_and_memory(self):
        plan = Plan(PAPER_1B)
        assert plan.parameters == BLOCKS + HEAD + PRECISE == 1_007_290_368
        assert plan.weight_bytes == 2 * (BLOCKS + HEAD) + 4 * PRECISE == 2_019_041_280
        assert plan.state_bytes == 16 * 64 * 2048 * 4 == 8_388_608

    def test_parameters_are_the_models(self):
        model, _ = fm_mlx.load()
        counted = sum(weight.size for _, weight in tree_flatten(model.parameters()))
        assert Plan(model.args).parameters == counted

    def test_four_bits(self):
        """4 bits, and 16-bit scale and bias for 64 weights: 4.5 bits a weight."""
        assert Plan(PAPER_1B, dtype="4bit").weight_bytes == round(
            (BLOCKS + HEAD) * 0.5625 + 4 * PRECISE
        )

    def test_decode(self):
        weights = 2 * (BLOCKS + HEAD) + 4 * PRECISE
        # k rows of the state and k that wait: read, written, and once more into the state
        rows = 8 * 2048 * 4
        sparse = weights + 16 * (8 * rows + 2 * 2048 * 4 + 66 * 4 + 8 * 8 * 4)
        dense = weights + 16 * 2 * 64 * 2048 * 4
        plan = Plan(PAPER_1B)
        assert plan.decode(sparse=True).least_bytes == sparse
        assert plan.decode(sparse=False).least_bytes == dense
        assert round(1 / seconds(plan.decode(sparse=True), M4_MAX)) == round(546e9 / sparse) == 269
        assert round(1 / seconds(plan.decode(sparse=False), M4_MAX)) == 268

    def test_batch_shares_the_weights(self):
        one, many = (Plan(PAPER_1B, batch).decode(sparse=True).least_bytes for batch in (1, 32))
        weights = Plan(PAPER_1B).weight_bytes
        assert many - weights == 32 * (one - weights)

    def test_prefill_is_bound_by_arithmetic(self):
        """2 operations a weight, 6 m d + 4 C d a layer, and 0.04 % for the kernels."""
        products = 2 * (BLOCKS + PRECISE) + 16 * (6 * 64 * 2048 + 4 * 32 * 2048)
        tokens = 8192
        got = seconds(Plan(PAPER_1B).prefill(tokens), M4_MAX)
        assert got == pytest.approx(tokens * products / 18.4e12, rel=5e-4)
        assert round(tokens / got) == 9_678

    def test_training(self):
        """3 times a prompt's products with the head's, and the kernels'."""
        plan, tokens = Plan(PAPER_1B), 8192
        products = 2 * (BLOCKS + PRECISE + HEAD) + 16 * (6 * 64 * 2048 + 4 * 32 * 2048)
        got = plan.training(tokens)
        assert got.flops == pytest.approx(3 * tokens * products, rel=2e-3)
        assert got.least_bytes > 10 * plan.weight_bytes
        assert round(tokens / seconds(got, M4_MAX)) == 3_018


class TestLaunches:
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "4bit"])
    def test_bytes_are_the_bounds_and_the_activations(self, dtype):
        plan = Plan(PAPER_1B, dtype=dtype)
        bound = plan.decode(sparse=True).least_bytes
        assert bound < launches.total(launches.of_token(plan)).least_bytes < 1.01 * bound

    def test_a_small_memory_is_decoded_dense(self):
        args = ModelArgs(64, 3, 128, 50, num_memory_states=4)
        names = {x.name: x.work.dispatches for x in launches.of_token(Plan(args))}
        assert names["route_dense"] == 3
        assert names["memory step"] == 15
        assert "sparse_update" not in names

    def test_a_prompt_reads_the_weights_in_every_piece(self):
        plan = Plan(PAPER_1B)
        one, two = (launches.total(launches.of_prompt(plan, n)) for n in (2048, 4096))
        assert two.dispatches == 2 * one.dispatches
        assert two.bytes == pytest.approx(2 * one.bytes, rel=1e-3)

    def test_many_rows_are_scanned_in_slots(self):
        """32 tokens of 2 rows each in a chunk."""
        args = ModelArgs(64, 1, 128, 50, num_memory_states=4096, num_active_states=2)
        work = {x.name: x.work for x in launches.of_prompt(Plan(args), 64)}
        assert work["chunk_scan"].flops == chunk_scan_cost(2, 32, 64).flops
        assert "state_pass" not in work


class TestChips:
    def test_names(self):
        assert find_chips("all") == chips.CHIPS
        assert [c.bandwidth for c in find_chips("m4-max")] == [410, 546]
        assert [c.name for c in find_chips("M4")] == ["m4"]
        assert [c.name for c in find_chips("Apple M1 Pro")] == ["m1-pro"]

    @pytest.mark.parametrize("name", ["m9", "", "max", "m4-ultra"])
    def test_no_such_chip(self, name):
        with pytest.raises(ValueError, match=f"no chip '{name}'; allowed are all, m1, m1-pro"):
            find_chips(name)


class TestCommand:
    def test_every_chip(self, capsys):
        assert cli.main(["plan", "--model", "paper-1b", "--memory", "16"]) == 0
        out = capsys.readouterr().out
        assert "weights          2.019 GB (bfloat16)" in out
        assert "decode, batch 32 2.556 GB, fits" in out
        rows = {line.split()[0].rstrip("*"): line.split() for line in out.splitlines() if line}
        assert all(chip.name in rows for chip in chips.CHIPS)
        assert rows["m4-max-546"][1:] == ["546", "269", "268", "7,609", "6,836", "9,678", "3,018"]
        assert rows["m5-max-614"][-2:] == ["-", "-"]  # its arithmetic is not known
        assert rows["sparse_update"][1:] == ["16", "4.36"]
        assert rows["together"][1:3] == ["166", "2,030.47"]

    def test_a_folder(self, checkpoint, capsys):
        arguments = ["--model", str(checkpoint), "--chip", "m1", "--batch-size", "4"]
        assert cli.main(["plan", *arguments, "--dtype", "4bit"]) == 0
        out = capsys.readouterr().out
        assert "(4bit)" in out
        assert "decode x4 sparse" in out

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--chip", "m9"], "no chip 'm9'"),
            (["--model", "/no/such/folder"], "no such"),
            (["--batch-size", "0"], "'0'; allowed are whole numbers from 1"),
            (["--context", "x"], "'x'; allowed are whole numbers from 1"),
            (["--memory", "-1"], "'-1'; allowed are numbers from 0"),
            (["--dtype", "int3"], "invalid choice: 'int3'"),
        ],
    )
    def test_bad_input(self, arguments, message, capsys):
        assert cli.main(["plan", *arguments]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert message in error

    def test_too_small_a_mac(self, capsys):
        assert cli.main(["plan", "--model", "paper-1b", "--memory", "2", "--chip", "m1"]) == 0
        out = capsys.readouterr().out
        assert "does not fit" in out
        assert "largest batch    0" in out
