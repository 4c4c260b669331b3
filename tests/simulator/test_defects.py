"""Every class of defect, each in a kernel that has it, and next to it one that has not."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from launches import INDEX, X, fails, launch

from fm_mlx.metal_kernels import simulator

BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup); "
SHARED = "threadgroup float s[64]; " + INDEX


def found(report, kind):
    return next(f for f in report.findings if f.kind == kind)


def test_nothing_to_find():
    o, report = launch(INDEX + "o[i] = x[i];")
    assert mx.array_equal(o, X[:64])
    assert not report.findings
    assert report.buffers["o"].unwritten_bytes == 0


class TestOutOfBounds:
    def test_load(self):
        report = fails("out-of-bounds", INDEX + "\no[i] = x[i + 200];")
        finding = found(report, "out-of-bounds")
        assert (finding.file, finding.line, finding.buffer) == ("source", 2, "x")
        assert (finding.offset, finding.thread, finding.count) == (1024, 56, 8)

    @pytest.mark.parametrize(
        "source", ["o[i + 1] = x[i];", "o[i] = x[int(i) - 1];", "o[i] = x[i * 4096];"]
    )
    def test_others(self, source):
        fails("out-of-bounds", INDEX + source)

    def test_grid_larger_than_the_data(self):
        fails("out-of-bounds", INDEX + "o[i] = x[i];", threads=65)

    def test_threadgroup_variable(self):
        report = fails(
            "out-of-bounds",
            "threadgroup float s[32]; " + INDEX + "s[i] = x[i]; " + BARRIER + "o[i] = s[i % 32];",
        )
        assert found(report, "out-of-bounds").buffer == "s"

    def test_array_of_a_thread(self):
        fails(
            "undefined-behaviour",
            INDEX + "float a[4]; for (int j = 0; j <= 4; ++j) a[j] = x[j]; o[i] = a[i % 4];",
        )

    def test_pointer_from_nowhere(self):
        """The launch ends there, and Python goes on."""
        fails("wild-pointer", INDEX + "o[i] = x[long(i) * 100000000000];")
        launch(INDEX + "o[i] = x[i];")

    def test_stack_overflow(self):
        fails(
            "memory-fault",
            INDEX + "volatile float a[100000];"
            "for (int j = 0; j < 100000; ++j) a[j] = x[0]; o[i] = a[i];",
        )


class TestRaces:
    def test_missing_barrier(self):
        report = fails("race-read-after-write", SHARED + "s[i] = x[i];\n o[i] = s[63 - i];")
        finding = found(report, "race-read-after-write")
        assert (finding.buffer, finding.line, finding.other_line) == ("s", 2, 1)
        assert finding.other_thread is not None
        launch(SHARED + "s[i] = x[i]; " + BARRIER + "o[i] = s[63 - i];", fatal=simulator.KINDS)

    @pytest.mark.parametrize("order", ["forward", "reverse", "random"])
    def test_whatever_the_schedule(self, order):
        """From the history of accesses, not from the luck of an order (mlx-lm #1700)."""
        source = SHARED + "s[i] = x[i]; o[i] = s[63 - i];"
        with pytest.raises(simulator.SimulationError) as error:
            launch(source, order=order, seed=3)
        assert error.value.report.kinds & {"race-read-after-write", "race-write-after-read"}

    def test_within_a_simdgroup(self):
        source = "threadgroup float s[32]; " + INDEX + "s[i] = x[i]; {} o[i] = s[31 - i];"
        shape = {"threads": 32, "group": 32, "count": 32}
        fails("race-read-after-write", source.replace("{}", ""), **shape)
        barrier = "simdgroup_barrier(mem_flags::mem_threadgroup);"
        launch(source.replace("{}", barrier), fatal=simulator.KINDS, **shape)

    def test_lockstep(self):
        """Ordered by a SIMD function only: worth knowing, not fatal."""
        source = "s[i] = x[i]; float a = simd_sum(x[i]); o[i] = s[31 - i] + a;"
        _, report = launch(
            "threadgroup float s[32]; " + INDEX + source, threads=32, group=32, count=32
        )
        assert report.kinds == {"simd-lockstep"}

    def test_barrier_without_the_flag_of_the_memory(self):
        source = SHARED + "s[i] = x[i]; threadgroup_barrier(mem_flags::mem_none); o[i] = s[63 - i];"
        fails("race-read-after-write", source)

    def test_second_barrier_of_a_loop(self):
        source = (
            SHARED
            + "float a = 0; for (int j = 0; j < 3; ++j) { s[i] = x[i] + j; "
            + BARRIER
            + "a += s[63 - i]; {} } o[i] = a;"
        )
        fails("race-write-after-read", source.replace("{}", ""))
        o, report = launch(source.replace("{}", BARRIER))
        assert not report.findings
        assert report.barriers == 6
        assert mx.array_equal(o, 3 * X[:64][::-1] + 3)

    def test_between_threadgroups(self):
        grid = {"group": 32, "count": 32}
        report = fails("race-write-after-write", INDEX + "o[i % 32] = x[i];", **grid)
        assert "another threadgroup" in found(report, "race-write-after-write").message
        _, report = launch(INDEX + "o[i % 32] = 1;", **grid)
        assert report.kinds == {"race-same-value"}

    def test_plain_load_of_what_others_change_atomically(self):
        source = "threadgroup atomic<uint> c; " + INDEX
        source += "if (i == 0) atomic_store_explicit(&c, 0u, memory_order_relaxed); " + BARRIER
        source += "atomic_fetch_add_explicit(&c, 1u, memory_order_relaxed); {}"
        source += "o[i] = *(threadgroup uint*)&c;"
        fails("race-write-after-read", source.replace("{}", ""))
        launch(source.replace("{}", BARRIER), fatal=simulator.KINDS)

    def test_device_memory_is_not_ordered_by_a_threadgroup_barrier(self):
        source = INDEX + "o[i] = x[i]; threadgroup_barrier(mem_flags::{}); o[i] += o[63 - i];"
        fails("race-read-after-write", source.replace("{}", "mem_threadgroup"))


class TestSynchronisation:
    def test_barrier_in_a_branch(self):
        fails(
            "barrier-divergence",
            INDEX + f"if (i < 32) {BARRIER}\n else {BARRIER} o[i] = 0;",
        )

    def test_barrier_after_return(self):
        fails(
            "barrier-after-exit",
            INDEX + "if (i >= 40) { o[i] = 0; return; } " + BARRIER + "o[i] = x[i];",
        )

    def test_simdgroup_barrier_in_a_branch(self):
        barrier = "simdgroup_barrier(mem_flags::mem_none);"
        fails(
            "simdgroup-barrier-divergence",
            INDEX + f"if (i < 16) {barrier}\n else {barrier} o[i] = 0;",
        )

    def test_simd_function_of_some_lanes(self):
        source = INDEX + "float v = x[i]; if (i % 32 < 16) v = simd_sum(v);{} o[i] = v;"
        _, report = launch(source.replace("{}", ""))
        assert report.kinds == {"simd-partial"}
        _, report = launch(source.replace("{}", "\n else v = simd_max(v);"))
        assert "simd-divergent" in report.kinds

    def test_shuffle_from_a_lane_that_is_not_there(self):
        report = fails("bad-shuffle", INDEX + "o[i] = simd_shuffle(x[i], i == 9 ? 40 : 0);")
        assert found(report, "bad-shuffle").thread == 9
        source = INDEX + "o[i] = simd_shuffle_xor(x[i], 16);"
        fails("bad-shuffle", source, threads=8, group=8, count=8)

    def test_time_limit(self):
        source = INDEX + "volatile int a = 0; while (a == 0) { } o[i] = x[i];"
        fails("timeout", source, timeout=0.3)
        launch(INDEX + "o[i] = x[i];")


class TestMemory:
    def test_uninitialised_threadgroup_memory(self):
        source = SHARED + "if (i < 60) s[i] = x[i]; " + BARRIER + "o[i] = s[i];"
        assert found(fails("uninitialised-read", source), "uninitialised-read").buffer == "s"

    def test_threadgroup_memory_does_not_outlive_its_threadgroup(self):
        source = "threadgroup float s[32]; " + INDEX
        source += "if (i < 32) s[i] = x[i]; " + BARRIER + "o[i] = s[i % 32];"
        fails("uninitialised-read", source, group=32)

    def test_output_read_before_it_is_written(self):
        fails("uninitialised-read", INDEX + "o[i] += x[i];")
        o, _ = launch(INDEX + "o[i] += x[i];", call={"init_value": 2.5})
        assert mx.array_equal(o, X[:64] + 2.5)

    def test_output_that_nobody_writes(self):
        report = fails("unwritten-output", INDEX + "if (i < 10) o[i] = x[i];")
        assert report.buffers["o"].unwritten_bytes == 54 * 4
        assert found(report, "unwritten-output").offset == 40

    def test_threadgroup_memory_beyond_32_kb(self):
        source = "threadgroup float s[{}]; " + INDEX + "s[i] = x[i]; o[i] = s[i];"
        report = fails("threadgroup-memory", source.replace("{}", "8193"))
        assert report.threadgroup_memory == 32772
        launch(source.replace("{}", "8192"))

    def test_input_written(self):
        """By a cast that takes the const away; without one it does not compile."""
        fails("write-to-input", INDEX + "((device float*)x)[i] = 1; o[i] = 0;")


@pytest.mark.parametrize(
    "source",
    [
        "int a = 65536 + int(i); o[i] = x[0] + a * a;",
        "o[i] = x[0] + 5 / (int(i) - 3);",
        "o[i] = x[0] + (1 << (int(i) + 1));",
        "int a = 2147483647 - int(i); o[i] = x[0] + (a + 1);",
    ],
    ids=["product", "division by zero", "shift", "sum"],
)
def test_undefined_integers(source):
    fails("undefined-behaviour", INDEX + source)


def test_findings_can_be_allowed():
    source = INDEX + "if (i < 10) o[i] = x[i];"
    _, report = launch(source, fatal=())
    assert report.kinds == {"unwritten-output"}
    with pytest.raises(ValueError, match="no such kind of finding: races"):
        launch(source, fatal={"races"})
    with pytest.raises(ValueError, match="order is 'sideways'; allowed are forward"):
        launch(source, order="sideways")


def test_more_threads_than_a_threadgroup_may_have():
    with pytest.raises(ValueError, match="2048 threads; allowed are 1024"):
        launch(INDEX + "o[i] = 0;", threads=2048, group=2048, count=2048)


def test_outputs_are_poisoned():
    """What nobody wrote is NaN, not what an earlier launch left there."""
    o, _ = launch(INDEX + "if (i < 10) o[i] = x[i];", fatal=())
    assert np.isnan(np.array(o)[10:]).all()
