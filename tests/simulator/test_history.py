"""What the history of accesses tells: who is ordered with whom, and what was written."""

from __future__ import annotations

import mlx.core as mx
import pytest
from launches import INDEX, X, fails, launch

from fm_mlx.metal_kernels import simulator

SIMDGROUP = {"threads": 32, "group": 32, "count": 32}
LANE = INDEX + "uint lane = thread_index_in_simdgroup; "
SIMDGROUP_BARRIER = "simdgroup_barrier(mem_flags::mem_threadgroup); "
BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup); "


def found(report, kind):
    return next(f for f in report.findings if f.kind == kind)


class TestReaders:
    """A store may race with any of the loads before it, by any thread."""

    SOURCE = (
        "threadgroup float s[1]; "
        + LANE
        + "if (lane == 0) s[0] = 5; "
        + SIMDGROUP_BARRIER
        + "float v = s[0]; {} if (lane == 5) s[0] = s[0] + 1; o[i] = v;"
    )

    def test_all_before_a_barrier(self):
        """The storing lane's own load, after the barrier, takes nothing from the others'."""
        launch(self.SOURCE.replace("{}", SIMDGROUP_BARRIER), fatal=simulator.KINDS, **SIMDGROUP)

    def test_no_barrier(self):
        report = fails("race-write-after-read", self.SOURCE.replace("{}", ""), **SIMDGROUP)
        assert found(report, "race-write-after-read").other_thread not in (None, 5)

    def test_a_simd_function(self):
        source = self.SOURCE.replace("{}", "v += simd_sum(v);")
        assert launch(source, **SIMDGROUP)[1].kinds == {"simd-lockstep"}

    def test_one_of_another_simdgroup(self):
        """Whatever lanes of the own SIMD-group read after it."""
        source = (
            "threadgroup float s[1]; "
            + LANE
            + "if (i == 0) s[0] = 5; "
            + BARRIER
            + "float v = i < 32 ? s[0] : 0; "
            + SIMDGROUP_BARRIER
            + "if (i >= 32) v = s[0]; "
            + SIMDGROUP_BARRIER
            + "if (i == 63) s[0] = 1; o[i] = v;"
        )
        report = fails("race-write-after-read", source)
        assert found(report, "race-write-after-read").other_thread < 32

    def test_one_of_another_threadgroup(self):
        source = INDEX + "float v = o[0]; threadgroup_barrier(mem_flags::mem_device); "
        source += "if (i == 63) o[0] = v + 1;"
        shape = {"group": 32, "count": 1, "call": {"init_value": 0}}
        report = fails("race-write-after-read", source, **shape)
        assert "another threadgroup" in found(report, "race-write-after-read").message


def test_simdgroup_barrier_without_the_flag_of_the_memory():
    """It orders what the lanes do, but not what they see."""
    source = "threadgroup float s[32]; " + INDEX + "s[i] = x[i]; {} o[i] = s[31 - i];"
    barrier = "simdgroup_barrier(mem_flags::mem_device);"
    _, report = launch(source.replace("{}", barrier), **SIMDGROUP)
    assert report.kinds == {"simd-lockstep"}


class TestAtomics:
    COUNTER = "threadgroup atomic<uint> c; " + INDEX
    STORE = "if (i == 0) atomic_store_explicit(&c, 7u, memory_order_relaxed); "
    ADD = "atomic_fetch_add_explicit(&c, 1u, memory_order_relaxed); "

    def test_plain_load(self):
        load = "o[i] = *(threadgroup uint*)&c;"
        fails("race-read-after-write", self.COUNTER + self.STORE + load)
        launch(self.COUNTER + self.STORE + BARRIER + load, fatal=simulator.KINDS)

    def test_plain_store(self):
        store = "if (i == 0) *(threadgroup uint*)&c = 0; "
        rest = self.ADD + "o[i] = 0;"
        fails("race-write-after-write", self.COUNTER + store + rest)
        launch(self.COUNTER + store + BARRIER + rest, fatal=simulator.KINDS)

    def test_never_initialised(self):
        fails("uninitialised-read", self.COUNTER + self.ADD + "o[i] = 0;")

    def test_output_without_init_value(self):
        source = INDEX + "atomic_fetch_add_explicit(&o[0], x[i], memory_order_relaxed);"
        shape = {"count": 1, "make": {"atomic_outputs": True}}
        fails("uninitialised-read", source, **shape)
        o, _ = launch(source, call={"init_value": 0}, fatal=simulator.KINDS, **shape)
        assert o.item() == X[:64].sum().item()


class TestStores:
    def test_fill_of_run_time_length(self):
        """A loop that the compiler would make one call of memset."""
        fill = "uint n = uint(x[{}]); for (uint j = 0; j < n; ++j) o[j] = 0; "
        alone = INDEX + "if (i == 0) { " + fill + "}"
        o, report = launch(alone.replace("{}", "64"), fatal=simulator.KINDS)
        assert mx.array_equal(o, mx.zeros(64))
        assert report.buffers["o"].stores.count == 64
        fails("out-of-bounds", alone.replace("{}", "65"))

    def test_fill_by_all_threads(self):
        source = INDEX + "for (uint j = 0; j < 64; ++j) o[j] = {};"
        assert launch(source.replace("{}", "0"))[1].kinds == {"race-same-value"}
        fails("race-write-after-write", source.replace("{}", "i"))

    def test_vector_that_overlaps_in_part(self):
        """Only the elements that two threads store decide whether the value is the same."""
        source = INDEX + "float4 v = float4(x[0]); {} ((device float4*)o)[i] = v; "
        source += "if (i == 1) o[3] = x[0];"
        shape = {"threads": 16, "group": 16}
        assert launch(source.replace("{}", "v.x = i;"), **shape)[1].kinds == {"race-same-value"}
        fails("race-write-after-write", source.replace("{}", "v.w = i + 1;"), **shape)


class TestUnwritten:
    @pytest.mark.parametrize("variable", ["float s[64]", "float s"])
    def test_variable_that_nobody_writes(self, variable):
        """The compiler must not replace it by a constant."""
        element = "s[i]" if "[" in variable else "s"
        o, _ = launch(f"threadgroup {variable}; {INDEX} o[i] = {element};", fatal=())
        assert mx.isnan(o).all().item()
        fails("uninitialised-read", f"threadgroup {variable}; {INDEX} o[i] = {element};")

    def test_variable_with_one_value(self):
        source = "threadgroup int flag; " + INDEX + "if (i == {}) flag = 7; " + BARRIER
        source += "o[i] = flag == 7 ? 1 : 0;"
        assert launch(source.replace("{}", "3"))[0].sum().item() == 64
        fails("uninitialised-read", source.replace("{}", "99"))


def test_traffic_of_a_threadgroup_across_barriers():
    """A threadgroup's distinct bytes count once, whoever read them before."""
    source = INDEX + "float a = x[i % 32]; threadgroup_barrier(mem_flags::mem_device); "
    source += "o[i] = a + x[i % 32];"
    _, report = launch(source, group=32)
    loads = report.buffers["x"].loads
    assert (loads.threadgroup_bytes, loads.unique_bytes) == (256, 128)
