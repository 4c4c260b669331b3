"""What kernels compute: literals, vectors, SIMD functions, atomics, layouts, templates."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from launches import INDEX, X, launch

from fm_mlx.metal_kernels import simulator


def test_literals_and_vectors():
    o, _ = launch(
        INDEX
        + """
        float a = x[i] * 0.1; half h = 1.5h; bfloat b = 2.0bf;
        float4 v = float4(float2(1, 2), 3, 4); v.xy = v.wz;
        vec<float, 3> w = vec<float, 3>(a, float(h), float(b));
        o[i] = v.x * 1000 + v.y * 100 + dot(w, w) + (1 << 2);"""
    )
    a = np.array(X[:64]) * np.float32(0.1)
    np.testing.assert_allclose(np.array(o), 4300 + a * a + 1.5**2 + 4 + 4, rtol=1e-6)


def test_vector_aliases():
    o, _ = launch(
        INDEX
        + """using V = vec<float, 4>; typedef vec<half, 2> H;
        V v = V(1, 2, 3, x[i]); H h = H(1, 2); o[i] = v.w + float(h.y);"""
    )
    assert mx.array_equal(o, X[:64] + 2)


def test_float_literals_are_float():
    """x * 0.1 in double would differ."""
    o, _ = launch(INDEX + "o[i] = x[i] * 0.1 + 0.7;")
    wanted = np.array(X[:64]) * np.float32(0.1) + np.float32(0.7)
    assert np.array_equal(np.array(o), wanted)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
def test_half_precision_rounds_every_operation(dtype):
    x = mx.random.normal((64,), key=mx.random.key(0)).astype(dtype)
    source = INDEX + "T a = x[i] * x[i]; o[i] = a + x[i];"
    o, _ = launch(source, inputs={"x": x}, dtype=dtype, call={"template": [("T", dtype)]})
    assert mx.array_equal(o, x * x + x)


def test_simd_functions():
    values = """simd_sum(v), simd_max(v), simd_min(v), simd_prefix_inclusive_sum(v),
        simd_prefix_exclusive_sum(v), simd_shuffle_down(v, 3), simd_shuffle_up(v, 3),
        simd_shuffle_and_fill_up(v, -1.0f, 2), simd_broadcast(v, 5),
        simd_shuffle_rotate_down(v, 1), quad_shuffle_xor(v, 1),
        float(ulong(simd_ballot(l % 2 == 0)) & 7), float(simd_any(l == 3)),
        float(simd_all(l == 3)), simd_broadcast_first(v), simd_product(v > 30 ? v : 1.0f)"""
    source = (
        INDEX
        + f"""uint l = thread_index_in_simdgroup; float v = x[i];
    float a[16] = {{{values}}};
    for (int j = 0; j < 16; ++j) o[i * 16 + j] = a[j];"""
    )
    o, report = launch(source, threads=32, group=32, count=32 * 16)
    v, lane = np.arange(32, dtype=np.float32), np.arange(32)
    wanted = [
        np.full(32, v.sum()),
        np.full(32, 31),
        np.zeros(32),
        v.cumsum(),
        v.cumsum() - v,
        np.where(lane < 29, v[(lane + 3) % 32], v),
        np.where(lane >= 3, v[lane - 3], v),
        # a lane below the second is filled from its own side
        np.where(lane >= 2, v[lane - 2], -1),
        np.full(32, 5),
        v[(lane + 1) % 32],
        v[lane ^ 1],
        np.full(32, 5),
        np.ones(32),
        np.zeros(32),
        np.zeros(32),
        np.full(32, 31),
    ]
    assert np.array_equal(np.array(o).reshape(32, 16).T, wanted)
    assert not report.findings


@pytest.mark.parametrize("order", ["ascending", "descending", "sequential"])
def test_order_of_a_reduction(order):
    """The sum of float32 numbers depends on it."""
    x = mx.random.normal((32,), key=mx.random.key(1)) * 1000
    o, _ = launch(
        INDEX + "o[i] = simd_sum(x[i]);",
        threads=32, group=32, count=32, inputs={"x": x}, reduce_order=order,
    )  # fmt: skip
    values = np.array(x)
    if order == "sequential":
        wanted = np.float32(0)
        for number in values:
            wanted = np.float32(wanted + number)
    else:
        for bit in (1, 2, 4, 8, 16) if order == "ascending" else (16, 8, 4, 2, 1):
            lanes = np.arange(32)
            values = values[lanes & ~bit] + values[lanes | bit]
        wanted = values[0]
    assert np.array_equal(np.array(o), np.full(32, wanted))


@pytest.mark.parametrize(("kind", "tolerance"), [("float", 1e-4), ("half", 2e-2), ("bfloat", 0.1)])
def test_simdgroup_matrix(kind, tolerance):
    a, b = np.random.default_rng(0).normal(size=(2, 16, 16)).astype(np.float32)
    source = f"""
    simdgroup_matrix<float, 8, 8> sum = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    threadgroup {kind} sa[256]; threadgroup {kind} sb[256];
    for (uint e = thread_index_in_simdgroup; e < 256; e += 32) {{
      sa[e] = static_cast<{kind}>(a[e]); sb[e] = static_cast<{kind}>(b[e]);
    }}
    threadgroup_barrier(mem_flags::mem_threadgroup);
    uint g = threadgroup_position_in_grid.x;
    uint2 tile = uint2(g % 2, g / 2);
    for (int k = 0; k < 16; k += 8) {{
      simdgroup_matrix<{kind}, 8, 8> ma, mb;
      simdgroup_load(ma, sa + tile.y * 8 * 16 + k, 16);
      simdgroup_load(mb, sb + k * 16 + tile.x * 8, 16);
      simdgroup_multiply_accumulate(sum, ma, mb, sum);
    }}
    simdgroup_store(sum, o + tile.y * 8 * 16 + tile.x * 8, 16);"""
    o, report = launch(
        source, threads=128, group=32, count=256, inputs={"a": mx.array(a), "b": mx.array(b)}
    )
    np.testing.assert_allclose(np.array(o).reshape(16, 16), a @ b, atol=tolerance)
    assert report.threadgroup_memory == 512 * (4 if kind == "float" else 2)
    assert not report.findings


def test_atomics():
    o, report = launch(
        INDEX + "atomic_fetch_add_explicit(&o[0], x[i], memory_order_relaxed);",
        count=1, group=32, order="random",
        make={"atomic_outputs": True}, call={"init_value": 0},
    )  # fmt: skip
    assert o[0].item() == X[:64].sum().item()
    assert report.atomics == 64
    assert not report.findings


def test_threadgroups_at_the_edge_of_the_grid():
    """MLX dispatches threads: the last threadgroup is smaller."""
    o, report = launch(
        INDEX + "o[i] = threads_per_threadgroup.x * 100 + simdgroups_per_threadgroup * 10"
        " + dispatch_threads_per_threadgroup.x / 48;",
        group=48,
    )
    assert (np.array(o[:48]) == 4821).all()
    assert (np.array(o[48:]) == 1611).all()
    assert (report.threads, report.threadgroups) == (64, 2)


def test_thread_attributes():
    """Every position attribute in two dimensions, against their definitions."""
    kernel = simulator.metal_kernel(
        "k",
        ["x"],
        ["o"],
        """
        uint3 p = thread_position_in_grid;
        uint at = p.y * threads_per_grid.x + p.x;
        o[at * 4] = threadgroup_position_in_grid.y * threadgroups_per_grid.x
            + threadgroup_position_in_grid.x;
        o[at * 4 + 1] = thread_position_in_threadgroup.y * 100 + thread_position_in_threadgroup.x;
        o[at * 4 + 2] = thread_index_in_threadgroup;
        o[at * 4 + 3] = simdgroup_index_in_threadgroup * 100 + thread_index_in_simdgroup;""",
    )
    (o,) = kernel(
        inputs=[X],
        output_shapes=[(6, 16, 4)],
        output_dtypes=[mx.uint32],
        grid=(16, 6, 1),
        threadgroup=(8, 6, 1),
    )
    y, x = np.mgrid[:6, :16]
    index = y * 8 + x % 8
    wanted = np.stack([x // 8, y * 100 + x % 8, index, index // 32 * 100 + index % 32], axis=-1)
    assert np.array_equal(np.array(o), wanted)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
def test_inputs_that_are_not_contiguous_keep_their_strides(dtype):
    x = mx.arange(24).reshape(4, 6).astype(dtype).T
    source = INDEX + "o[i] = x[elem_to_loc(i, x_shape, x_strides, x_ndim)];"
    o, _ = launch(
        source,
        threads=24,
        group=8,
        count=24,
        inputs={"x": x},
        dtype=dtype,
        make={"ensure_row_contiguous": False},
    )
    assert mx.array_equal(o, x.reshape(-1))


def test_inputs_are_made_contiguous():
    o, _ = launch(INDEX + "o[i] = x[i];", inputs={"x": X.reshape(16, 16).T})
    assert mx.array_equal(o, X.reshape(16, 16).T.reshape(-1)[:64])


def test_scalars_numpy_and_small_arrays():
    """A Python number is a reference; fewer than 8 elements lie in constant memory."""
    inputs = {"a": 2.5, "n": 3, "b": np.arange(4, dtype=np.float32), "flag": True}
    o, _ = launch(INDEX + "o[i] = flag ? a * n + b[i % 4] : 0.0f;", inputs=inputs)
    assert np.array_equal(np.array(o), 7.5 + np.arange(64) % 4)


@pytest.mark.parametrize(
    "dtype",
    [mx.bool_, mx.uint8, mx.int8, mx.int16, mx.uint16, mx.int32, mx.uint32, mx.int64, mx.uint64],
    ids=str,
)
def test_integers(dtype):
    x = (mx.arange(64) % 2).astype(dtype)
    o, _ = launch(INDEX + "o[i] = x[i];", inputs={"x": x}, dtype=dtype)
    assert o.dtype == dtype
    assert mx.array_equal(o, x)


def test_flush_denormals():
    x = mx.full((64,), 1e-39)
    source = INDEX + "o[i] = x[i] * 2.0f;"
    assert launch(source, inputs={"x": x})[0][0].item() > 0
    assert launch(source, inputs={"x": x}, flush_denormals=True)[0][0].item() == 0


@pytest.mark.parametrize("seed", range(3))
def test_switching_threads_at_memory(seed):
    """A kernel without races gives the same; one with a race shows it in its numbers."""
    source = "threadgroup float s[64]; " + INDEX + "s[i] = x[i]; {} o[i] = s[63 - i];"
    barrier = "threadgroup_barrier(mem_flags::mem_threadgroup);"
    options = {"order": "random", "seed": seed, "yield_at_memory": True}
    o, _ = launch(source.replace("{}", barrier), **options)
    assert mx.array_equal(o, X[:64][::-1])
    o, _ = launch(source.replace("{}", ""), fatal=(), **options)
    assert not mx.array_equal(o, X[:64][::-1])


def test_nothing_to_do():
    """An empty output, as MLX has it for empty batches."""
    o, _ = launch("o[0] = x[0];", threads=0, group=1, count=0)
    assert o.shape == (0,)


def test_random_order_is_reproducible_and_does_vary():
    """Threads add their numbers to a list in the order in which they come."""
    source = (
        INDEX
        + """threadgroup atomic<uint> next;
    if (i == 0) atomic_store_explicit(&next, 0u, memory_order_relaxed);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    o[atomic_fetch_add_explicit(&next, 1u, memory_order_relaxed)] = i;"""
    )
    orders = [
        np.array(launch(source, dtype=mx.uint32, order="random", seed=seed)[0]).tolist()
        for seed in (1, 1, 2)
    ]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == list(range(64))
    forward, reverse = (launch(source, dtype=mx.uint32, order=o)[0] for o in ("forward", "reverse"))
    assert mx.array_equal(forward, mx.arange(64))
    assert mx.array_equal(reverse, mx.arange(63, -1, -1))


def test_bits_of_small_integers():
    """Those of the argument's type; C++ alone would promote it to int."""
    values = {
        "clz(ushort(1))": 15,
        "clz(ulong(1))": 63,
        "ctz(uchar(0))": 8,
        "popcount(char(-1))": 8,
        "reverse_bits(ushort(1))": 32768,
        "rotate(ushort(0x8001), ushort(1))": 3,
        "extract_bits(int(-1), 0u, 4u)": -1,
        "extract_bits(uint(0xabcd), 4u, 8u)": 0xBC,
        "insert_bits(uint(0xff), uint(0), 4u, 2u)": 0xCF,
        "mulhi(uint(0x80000000u), uint(4))": 2,
        "mulhi(int(-2147483647), int(4))": -2,
        "absdiff(3u, 7u)": 4,
        "abs(int2(-3, 2)).x": 3,
        "clz(int4(1)).w": 31,
    }
    source = " ".join(f"o[{k}] = {text};" for k, text in enumerate(values))
    o, report = launch(source, threads=1, group=1, count=len(values))
    assert o.tolist() == list(values.values())
    assert not report.findings


def test_math_at_the_edges():
    values = {
        "sign(x[0] / x[0])": 0,
        "fract(-1e-10f)": float(np.nextafter(np.float32(1), np.float32(0))),
        "sinpi(1.0f)": 0,
        "sinpi(-0.5f)": -1,
        "cospi(0.5f)": 0,
        "cospi(-3.0f)": -1,
        "fmedian3(3.0f, 1.0f, 2.0f)": 2,
        "abs(float2(-3, 1)).x": 3,
    }
    source = " ".join(f"o[{k}] = {text};" for k, text in enumerate(values))
    o, _ = launch(source, threads=1, group=1, count=len(values))
    assert o.tolist() == list(values.values())


def test_fill_in_runs_of_lanes():
    source = (
        INDEX
        + """
        float up = simd_shuffle_and_fill_up(x[i], -x[i], ushort(3), ushort(8));
        float down = simd_shuffle_and_fill_down(x[i], -x[i], ushort(3), ushort(8));
        o[i] = up; o[i + 32] = down; o[i + 64] = i > 4 ? simd_is_first() : false;"""
    )
    o, _ = launch(source, threads=32, group=32, count=96)
    lane, run = np.arange(32), np.arange(32) % 8
    up = np.where(run >= 3, lane - 3, -(lane - 3 + 8))
    down = np.where(run + 3 < 8, lane + 3, -(lane + 3 - 8))
    assert o.tolist() == [*up, *down, *(lane == 5)]


def test_simd_functions_of_bfloat_are_told_apart_by_the_users_lines():
    """MLX's own headers stand between the kernel and the SIMD function."""
    source = INDEX + "bfloat v = bfloat(1); if (i < 16)\nv = simd_sum(v); else\nv = simd_sum(v); "
    o, report = launch(source + "o[i] = v;", threads=32, group=32, count=32)
    assert o.tolist() == [16] * 32
    first = report.findings[0]
    assert (first.kind, first.file, first.line) == ("simd-divergent", "source", 2)


def test_quadgroups():
    source = (
        INDEX + "o[i] = dispatch_quadgroups_per_threadgroup * 100 + quadgroups_per_threadgroup;"
    )
    o, _ = launch(source, threads=48, group=48, count=48)
    assert o[0].item() == 1212
