"""mlx-lm's own kernels run here, against its operations; its known race is found.

A kernel or module that mlx-lm no longer has is skipped with its name.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from types import ModuleType

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
    *("tuner.losses", "kernels.norm_add_norm", "kernels.rms_norm_sigmoid_gate"),
    *("kernels.expert_routing", "kernels.qk_norm", "kernels.post_expert_norm_combine"),
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
