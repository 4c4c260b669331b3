"""Traffic and other counts of a report, where they can be counted by hand."""

from __future__ import annotations

import mlx.core as mx
from launches import INDEX, X, launch

from fm_mlx.metal_kernels.simulator import Traffic


def test_traffic_of_loads():
    """64 threads in 2 threadgroups each load the same 64 floats."""
    source = INDEX + "float a = 0; for (uint j = 0; j < 64; ++j) a += x[j]; o[i] = a;"
    _, report = launch(source, group=32)
    assert report.buffers["x"].loads == Traffic(
        count=4096, bytes=16384, sector_bytes=512, threadgroup_bytes=512, unique_bytes=256
    )
    assert report.buffers["o"].stores == Traffic(64, 256, 256, 256, 256)
    assert report.buffers["o"].loads == Traffic()


def test_sectors_tell_coalesced_from_strided():
    """32 floats in a row lie in 4 sectors, at a stride of 8 in 32."""
    coalesced, strided = (
        launch(INDEX + f"o[i] = x[{index}];", threads=32, group=32, count=32)[1]
        for index in ("i", "i * 8")
    )
    assert coalesced.buffers["x"].loads.sector_bytes == 4 * 32
    assert strided.buffers["x"].loads.sector_bytes == 32 * 32
    assert coalesced.buffers["x"].loads.bytes == strided.buffers["x"].loads.bytes == 128


def test_vector_loads_are_one_access():
    source = INDEX + "auto v = ((const device float4*)x)[i]; o[i] = v.x + v.w;"
    _, report = launch(source, threads=32, group=32, count=32)
    assert (report.buffers["x"].loads.count, report.buffers["x"].loads.bytes) == (32, 512)


def test_bfloat_counts_two_bytes():
    x = X.astype(mx.bfloat16)
    _, report = launch(INDEX + "o[i] = float(x[i]);", inputs={"x": x})
    assert report.buffers["x"].loads.bytes == 128


def test_threadgroup_variables_and_synchronisations():
    source = (
        "threadgroup float s[64]; " + INDEX + "s[i] = simd_sum(x[i]);"
        "threadgroup_barrier(mem_flags::mem_threadgroup); o[i] = s[63 - i];"
    )
    _, report = launch(source)
    assert report.buffers["s"].kind == "threadgroup"
    assert report.buffers["s"].size == report.threadgroup_memory == 256
    assert report.buffers["s"].stores.bytes == report.buffers["s"].loads.bytes == 256
    assert (report.barriers, report.simd_operations) == (1, 64)


def test_report_reads_well():
    _, report = launch(INDEX + "if (i < 10) o[i] = x[i];", fatal=())
    text = str(report)
    assert "64 threads in 1 threadgroups" in text
    assert (
        "unwritten-output: nobody writes 216 of 256 bytes, the first at byte 40 (element 10) in o"
        in text
    )
    assert text.splitlines()[-1].split() == ["o", "output", "256", "0", "0", "40", "64"]
