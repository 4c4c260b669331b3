"""mlx-lm's own kernels and one of MLX run here, against operations; the known race is found.

A kernel or module that mlx-lm no longer has is skipped with its name.
"""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path
from types import ModuleType

import mlx
import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import pytest

from fm_mlx.metal_kernels import simulator
from fm_mlx.metal_kernels.simulator import Kernel

F32, F16, BF16 = mx.float32, mx.float16, mx.bfloat16
TOLERANCE = {F32: 2e-5, BF16: 3e-2, F16: 4e-3}

MODULES = (
    *("models.ssm", "models.gated_delta", "models.rwkv7", "models.bitlinear_layers"),
    *("models.deepseek_v41", "models.kimi_k3", "tuner.losses"),
    *("kernels.norm_add_norm", "kernels.rms_norm_sigmoid_gate", "kernels.expert_routing"),
    *("kernels.qk_norm", "kernels.qk_norm_rope", "kernels.post_expert_norm_combine"),
)


@cache
def module(name: str) -> ModuleType:
    """A module of mlx-lm whose kernels are made by the simulator; a copy, not the imported one."""
    try:
        spec = importlib.util.find_spec(f"mlx_lm.{name}")
    except ModuleNotFoundError:
        spec = None
    if spec is None:
        pytest.skip(f"mlx_lm {mlx_lm.__version__} has no module {name}")
    copy = importlib.util.module_from_spec(spec)
    with simulator.redirected():
        spec.loader.exec_module(copy)
    return copy


def member(name: str, attribute: str):
    found = getattr(module(name), attribute, None)
    if found is None:
        pytest.skip(f"mlx_lm {mlx_lm.__version__} has no {name}.{attribute}")
    return found


def kernels(name: str) -> dict[str, Kernel]:
    return {n: v for n, v in vars(module(name)).items() if isinstance(v, Kernel)}


@pytest.fixture(autouse=True, params=["forward", "random"])
def schedule(request):
    mx.random.seed(0)
    order = "ascending" if request.param == "forward" else "descending"
    with simulator.options(order=request.param, seed=1, reduce_order=order):
        yield


def normal(*shape, dtype=F32, scale=1.0):
    return (mx.random.normal(shape) * scale).astype(dtype)


def close(got, wanted, dtype):
    got, wanted = got.astype(F32), wanted.astype(F32)
    assert got.shape == wanted.shape
    error = (mx.abs(got - wanted).max() / (1e-6 + mx.abs(wanted).max())).item()
    assert error < TOLERANCE[dtype], error


def wide(arrays):
    """Activations in float32, for the reference; masks and None as they are."""
    return [x if x is None or x.dtype == mx.bool_ else x.astype(F32) for x in arrays]


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("shape", [(2, 4, 16, 2, 64), (1, 3, 5, 1, 32)])
def test_ssm(shape, dtype):
    run, reference = member("models.ssm", "ssm_update_kernel"), member("models.ssm", "ssm_attn")
    batch, heads, width, groups, states = shape
    x = normal(batch, 1, heads, width, dtype=dtype)
    b, c = normal(2, batch, 1, groups, states, dtype=dtype)
    rest = [normal(heads), normal(heads), normal(batch, 1, heads), normal(heads)]
    state = normal(batch, heads, width, states)
    arguments = [x, rest[0], b, c, *rest[1:], state]
    y, last = run(*arguments, (0.001, 100.0))
    y_wanted, last_wanted = reference(*wide(arguments))
    close(y, y_wanted, dtype)
    close(last, last_wanted, dtype)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 2, 4, 32, 8), (1, 1, 1, 1, 64, 5)])
def test_gated_delta(shape, masked, per_channel, dtype):
    delta = module("models.gated_delta")
    run = member("models.gated_delta", "gated_delta_kernel")
    reference = member("models.gated_delta", "gated_delta_ops")
    batch, length, key_heads, heads, key_width, width = shape
    q, k = normal(2, batch, length, key_heads, key_width)
    q, k = delta.normalize_qk(q, k, inv_scale=key_width**-0.5, eps=1e-6)
    gate = (batch, length, heads, key_width) if per_channel else (batch, length, heads)
    mask = mx.random.uniform(shape=(batch, length)) > 0.3 if masked else None
    arguments = [
        q.astype(dtype),
        k.astype(dtype),
        normal(batch, length, heads, width, dtype=dtype),
        mx.sigmoid(normal(*gate)) * 0.3 + 0.7,
        mx.sigmoid(normal(batch, length, heads)).astype(dtype),
        normal(batch, heads, width, key_width),
        mask,
    ]
    y, state = run(*arguments)
    y_wanted, state_wanted = reference(*wide(arguments))
    if masked:  # the operations leave y as it is where a token is masked
        y_wanted = mx.where(mask[:, :, None, None], y_wanted, 0)
    close(y, y_wanted, dtype)
    close(state, state_wanted, dtype)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize(("tokens", "width"), [(2, 1024), (3, 200)])
def test_norm_add_norm(tokens, width, dtype):
    run = member("kernels.norm_add_norm", "norm_add_norm")
    branch, stream = normal(tokens, width, dtype=dtype), normal(tokens, width)
    alpha, beta = normal(2, width)
    norm = nn.RMSNorm(width, 1e-5)
    norm.weight = normal(width)
    total, normed = run(
        branch, stream, alpha=alpha, beta=beta, post_weight=None, post_eps=1e-5, next_norm=norm
    )
    own = mx.fast.rms_norm(branch.astype(F32), None, 1e-5).astype(dtype).astype(F32)
    close(total, alpha * stream + beta * own, dtype)
    close(normed, mx.fast.rms_norm(alpha * stream + beta * own, norm.weight, 1e-5), dtype)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_rms_norm_sigmoid_gate(dtype):
    """Inputs with strides: the kernel takes them as they are."""
    run = member("kernels.rms_norm_sigmoid_gate", "rms_norm_sigmoid_gate")
    x = normal(1, 4, 3, 64, dtype=dtype).transpose(0, 2, 1, 3)
    gate = normal(1, 4, 2 * 3 * 64, dtype=dtype)[..., ::2]
    wanted = mx.fast.rms_norm(x.astype(F32), None, 1e-5).transpose(0, 2, 1, 3)
    wanted = wanted.reshape(1, 4, -1) * mx.sigmoid(gate.astype(F32))
    close(run(x, gate, eps=1e-5), wanted, dtype)


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize(("rows", "width", "outputs"), [(3, 256, 64), (1, 388, 8)])
def test_bitlinear(rows, width, outputs, inverted):
    """Weights -1, 0 and 1, four in a byte."""
    x, scale = normal(rows, width), mx.array([1.7])
    weight = mx.random.randint(0, 3, (outputs, width))
    parts = weight.reshape(4, outputs // 4, width)
    packed = sum(parts[n] << 2 * n for n in range(4)).astype(mx.uint8)
    layer = member("models.bitlinear_layers", "BitLinear")(
        width, outputs, bias=False, invert_weight_scales=inverted
    )
    layer.weight_scale = scale
    wanted = (x @ (weight.astype(F32) - 1).T) * (1 / scale if inverted else scale)
    close(layer.execute_matmul_kernel(x, packed), wanted, F32)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_wkv7(dtype):
    run, step = member("models.rwkv7", "wkv7_kernel"), member("models.rwkv7", "_wkv7_step_ops")
    r, w, k, v, a, b = normal(6, 2, 3, 1, 32, scale=0.3, dtype=dtype)
    activations = [r, mx.sigmoid(w), k, v, a, b]
    state = normal(2, 1, 32, 32, dtype=dtype)
    y, last = run(*activations, state)
    y_wanted, wanted = [], state.astype(F32)
    for t in range(3):
        step_y, wanted = step(*(x[:, t].astype(F32) for x in activations), wanted)
        y_wanted.append(step_y)
    close(y, mx.stack(y_wanted, axis=1).reshape(y.shape), dtype)
    close(last, wanted, dtype)


@pytest.mark.parametrize(("rows", "width"), [(5, 4), (300, 2), (1, 3)])
def test_sinkhorn(rows, width):
    """The function has a kernel where there is a GPU, and operations where there is none."""
    run = member("models.deepseek_v41", "_sinkhorn")
    x, eps = mx.softmax(normal(rows, width, width)), mx.array([1e-6])
    with simulator.redirected():
        got = run(x, iters=5, eps=eps)
    close(got, run(x, iters=5, eps=eps), F32)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize(("count", "rows", "width"), [(3, 4, 1000), (5, 1, 77)])
def test_residual_blocks(count, rows, width, dtype):
    run, reference = (
        member("models.kimi_k3", name) for name in ("_attn_res_mix", "_attn_res_combine")
    )
    blocks = member("models.kimi_k3", "ResidualBlocks")(1e-5)
    for _ in range(count):
        blocks.append(normal(rows, width, dtype=dtype))
    x, weight = normal(rows, width, dtype=dtype), normal(width, scale=0.1)
    with simulator.redirected():
        got = run(blocks, x, weight, 1e-5)
    close(got, reference(blocks.raw, blocks.inv_rms, x, weight, 1e-5), dtype)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_qk_norm(dtype):
    """Also with rotary embeddings, at an offset that is a number or an array."""
    norm = member("kernels.qk_norm", "qk_norm")
    norm_rope = member("kernels.qk_norm_rope", "qk_norm_rope")
    length, query_heads, heads, width = 3, 4, 2, 64
    x = normal(1, length, 2 * (query_heads + heads) * width, dtype=dtype)
    sizes = {"n_heads": query_heads, "n_kv_heads": heads, "head_dim": width, "eps": 1e-5}
    q, k = norm(x, query_scale=0.5, **sizes)
    rows = x[..., : (query_heads + heads) * width]
    wanted = mx.fast.rms_norm(rows.reshape(1, length, -1, width), None, 1e-5)
    close(q, wanted[..., :query_heads, :] * 0.5, dtype)
    close(k, wanted[..., query_heads:, :], dtype)
    for offset, given in ((7, 7), (3, mx.array([3]))):
        rotated = norm_rope(x, query_scale=0.5, rope_base=10000.0, offset=given, **sizes)
        for got, plain in zip(rotated, (q, k), strict=True):
            by_head = plain.transpose(0, 2, 1, 3)
            wanted = mx.fast.rope(
                by_head, width, traditional=True, base=10000.0, scale=1.0, offset=offset
            )
            close(got, wanted.transpose(0, 2, 1, 3), dtype)


@pytest.mark.parametrize(("tokens", "experts", "chosen"), [(3, 64, 4), (9, 100, 8), (1, 33, 1)])
def test_expert_routing(tokens, experts, chosen):
    run = member("kernels.expert_routing", "expert_routing")
    logits, bias = normal(tokens, experts), normal(experts, scale=0.1)
    indices, weights = run(
        logits, bias, top_k=chosen, multiplier=1.3, score_eps=1e-6, route_scale=2.0
    )
    scores = mx.sigmoid(logits * 1.3)
    wanted = mx.argsort(-(scores + bias), axis=-1)[..., :chosen]
    best = mx.take_along_axis(scores, wanted, axis=-1)
    assert mx.array_equal(indices.astype(mx.int32), wanted.astype(mx.int32))
    close(weights, best / (best.sum(axis=-1, keepdims=True) + 1e-6) * 2.0, F32)


@pytest.mark.parametrize(("tokens", "experts", "width"), [(2, 4, 1024), (1, 2, 300)])
def test_expert_combine(tokens, experts, width):
    run = member("kernels.post_expert_norm_combine", "post_expert_norm_combine")
    x, norm = normal(tokens, experts, width), normal(width)
    weights = mx.softmax(normal(tokens, experts))
    wanted = (mx.fast.rms_norm(x * norm, None, 1e-5) * weights[..., None]).sum(axis=1)
    close(run(x, weights, norm_weight=norm, eps=1e-5), wanted, F32)


@pytest.mark.parametrize("other", ["gated_delta_kernel_xtree", "gated_delta_kernel_unpacked"])
def test_forms_of_gated_delta_agree_bitwise(other):
    """As gated_delta.py says, where simd_sum adds as the hardware is seen to."""
    delta = module("models.gated_delta")
    runs = [member("models.gated_delta", name) for name in ("gated_delta_kernel", other)]
    q, k = delta.normalize_qk(*normal(2, 1, 6, 2, 128), inv_scale=128**-0.5, eps=1e-6)
    v, gate, beta = normal(1, 6, 4, 16), normal(1, 6, 4), normal(1, 6, 4)
    state = normal(1, 4, 16, 128)
    arguments = [q, k, v, mx.sigmoid(gate) * 0.3 + 0.7, mx.sigmoid(beta), state, None]
    with simulator.options(reduce_order="ascending"):
        first, second = (run(*arguments) for run in runs)
    assert all(mx.array_equal(x, y) for x, y in zip(first, second, strict=True))


CHUNKED = "mlx/backend/metal/kernels/gated_delta_update.h"


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("length", [3, 13])
def test_chunked_gated_delta_of_mlx(length, dtype):
    """A kernel of MLX itself, 100 lines on simdgroup_matrix, from the header in its wheel."""
    path = next((p for f in mlx.__path__ if (p := Path(f, "include", CHUNKED)).exists()), None)
    switch = "constant bool save_state [[function_constant(200)]];"
    if path is None or switch not in (text := path.read_text()):
        pytest.skip(f"mlx {mx.__version__} has another {CHUNKED}")
    header = text.replace(switch, "constant bool save_state = false;")
    header = re.sub(r"#(include|pragma once).*", "", header)
    # a kernel function cannot be called, a plain one can
    header = header.replace("[[kernel]]", "")
    arguments = "q, k, v, state_in, g, beta"
    place = "thread_position_in_grid, thread_position_in_threadgroup, thread_index_in_simdgroup"
    kernel = simulator.metal_kernel(
        name="chunked",
        input_names=[*arguments.split(", "), "T"],
        output_names=["y", "state_out"],
        header=header,
        source="gated_delta_fused_chunk<InT, Dk, Dv, Hk, Hv, 8>"
        f"({arguments}, y, state_out, T, {place});",
    )
    delta, reference = (
        module("models.gated_delta"),
        member("models.gated_delta", "gated_delta_ops"),
    )
    key_heads, heads, width = 2, 4, 32
    q, k = delta.normalize_qk(
        *normal(2, 1, length, key_heads, width), inv_scale=width**-0.5, eps=1e-6
    )
    gate, beta = mx.sigmoid(normal(2, 1, length, heads))
    inputs = [q, k, normal(1, length, heads, width), gate * 0.3 + 0.7, beta]
    q, k, v, gate, beta = (x.astype(dtype) for x in inputs)
    state = normal(1, heads, width, width)
    y, last = kernel(
        inputs=[q, k, v, state, gate, beta, length],
        template=[("InT", dtype), ("Dk", width), ("Dv", width), ("Hk", key_heads), ("Hv", heads)],
        grid=(32, width // 8, heads),
        threadgroup=(32, 4, 1),
        output_shapes=[v.shape, state.shape],
        output_dtypes=[dtype, F32],
    )
    y_wanted, wanted = reference(*wide([q, k, v, gate, beta, state]))
    close(y, y_wanted, dtype)
    close(last, wanted, dtype)
    # the next chunk reuses threadgroup memory after a SIMD function only
    assert kernel.report.kinds == ({"simd-lockstep"} if length > 8 else set())


def losses(rows: int, vocabulary: int):
    q, p = normal(2, rows, vocabulary, scale=2)
    launch = {
        "inputs": [q, p],
        "template": [("T", F32), ("V", vocabulary)],
        "grid": (1024, rows, 1),
        "threadgroup": (1024, 1, 1),
        "output_shapes": [(rows,)],
        "output_dtypes": [F32],
    }
    return q, p, launch


def test_race_of_the_kl_loss():
    """One SIMD-group may store its sum where another still reads the maximum (mlx-lm #1700)."""
    kernel = member("tuner.losses", "_kl_forward_kernel")
    if "shared[simd_lane_id * 2 + 1];" not in kernel.definition["source"]:
        pytest.skip(f"mlx_lm {mlx_lm.__version__} has another KL loss kernel")
    _, _, launch = losses(2, 5000)
    with pytest.raises(simulator.SimulationError) as error:
        kernel(**launch)
    races = [f for f in error.value.report.findings if f.kind.startswith("race-")]
    lines = kernel.definition["source"].split("\n")
    assert {f.buffer for f in races} == {"shared"}
    assert all("shared[" in lines[f.line - 1] for f in races)


@pytest.mark.parametrize("loss", ["kl", "js"])
def test_losses_race_in_both_directions(loss):
    forward, backward = (
        member("tuner.losses", f"_{loss}_{direction}_kernel")
        for direction in ("forward", "backward")
    )
    if "shared[simd_lane_id * 2 + 1];" not in forward.definition["source"]:
        pytest.skip(f"mlx_lm {mlx_lm.__version__} has another {loss} loss kernel")
    q, p, launch = losses(2, 1500)
    outputs = len(forward.definition["output_names"])
    with simulator.options(fatal=()):
        _, *rest = forward(
            **{**launch, "output_shapes": [(2,)] * outputs, "output_dtypes": [F32] * outputs}
        )
        backward(**{**launch, "inputs": [q, p, normal(2), *rest], "output_shapes": [q.shape]})
    for kernel in (forward, backward):
        assert "race-write-after-read" in kernel.report.kinds


def test_kl_loss_with_the_barriers_it_lacks():
    """No finding is left, and the value is that of the operations in every order."""
    make = dict(member("tuner.losses", "_kl_forward_kernel").definition)
    barrier = " threadgroup_barrier(mem_flags::mem_threadgroup);"
    for name in ("max_p", "sum_exp_p"):
        read = f"{name} = shared[simd_lane_id * 2 + 1];"
        if read not in make["source"]:
            pytest.skip(f"mlx_lm {mlx_lm.__version__} has another KL loss kernel")
        make["source"] = make["source"].replace(read, read + barrier)
    make["source"] = make["source"].replace("mem_flags::mem_none", "mem_flags::mem_threadgroup")
    q, p, launch = losses(2, 5000)
    (loss,) = simulator.metal_kernel(**{**make, "name": "kl_with_barriers"})(**launch)
    close(loss, member("tuner.losses", "kl_div_loss")(q, p), F32)


@pytest.mark.parametrize("name", MODULES)
def test_no_false_alarms_of_the_lint(name):
    found = kernels(name)
    assert found, f"no kernel in mlx_lm.{name}"
    for kernel in found.values():
        assert simulator.lint(kernel.definition["source"], kernel.definition["header"]) == ()
