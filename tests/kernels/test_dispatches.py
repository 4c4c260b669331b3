"""What a decoded token launches on a Metal GPU, block by block, from the graph as exported.

MLX builds the graph of Metal kernels on any machine while a function is exported; nothing
is run. A block's share is what a model of three has more than one of two.
"""

from __future__ import annotations

import io
import re
from collections import Counter

import mlx.core as mx
import mlx.nn as nn
import pytest
from cases import REAL, tiny_model
from mlx.utils import tree_flatten, tree_map_with_path

from fm_mlx import ops
from fm_mlx.metal_kernels import launch
from fm_mlx.model import ModelArgs
from fm_mlx.perf import launches as launches_of
from fm_mlx.perf.plan import Plan
from fm_mlx.perf.timing import started_caches

# Primitives that give another view of their input, or their input itself, on Metal.
LAUNCH_NOTHING = {
    "Broadcast",
    "CustomTransforms",
    "ExpandDims",
    "Flatten",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "StopGradient",
    "Transpose",
    "Unflatten",
}
KERNELS = Counter(CustomKernel=3)  # two norms with the sums before them, sparse_update
WRITES = Counter(ScatterAxis=1)  # the rows of the last two tokens
SWIGLU = Counter(Sigmoid=1, Multiply=2)


@pytest.fixture
def on_a_gpu(monkeypatch):
    """MLX says that its default device is a Metal GPU."""
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    with launch.using("metal"):
        yield


class _Traced(Exception):
    pass


def primitives(function, *arrays: mx.array) -> Counter[str]:
    """Names in the graph of a function's outputs."""
    text = io.StringIO()

    def traced(*arrays):
        mx.export_to_dot(text, *function(*arrays))
        raise _Traced  # what follows would be written to a file, which kernels cannot be

    with pytest.raises(_Traced):
        mx.export_function(lambda _: None, traced, *arrays)
    return Counter(re.findall(r'label ="(\w+)", shape=rectangle', text.getvalue()))


def decoded_token(layers: int, dtype: mx.Dtype, bits: int | None = None) -> Counter[str]:
    """Of a model with a memory of two buffers."""
    model = tiny_model(
        REAL, num_hidden_layers=layers, num_memory_states=4096, hidden_size=64, memory_size=64
    )
    if bits:
        nn.quantize(
            model,
            bits=bits,
            class_predicate=lambda path, m: hasattr(m, "to_quantized") and "embed" not in path,
        )
    cast = model.cast_predicate
    model.update(
        tree_map_with_path(
            lambda name, x: (
                x.astype(dtype) if cast(name) and mx.issubdtype(x.dtype, mx.floating) else x
            ),
            model.parameters(),
        )
    )
    model.load_weights(tree_flatten(model.parameters()))
    mx.eval(model.parameters())
    caches = started_caches(model)
    assert len(caches[0].cache) == 6

    def step(token):
        logits = model(token, caches)
        return [logits, *(x for c in caches for x in c.cache)]

    return primitives(step, mx.array([[1]]))


def launches(graph: Counter[str]) -> Counter[str]:
    """By primitive. MLX unfolds mlx-lm's compiled SwiGLU in a trace; it is one launch."""
    counted = Counter({n: c for n, c in graph.items() if n not in LAUNCH_NOTHING})
    fused = counted["Sigmoid"]
    unfolded = Counter({name: fused * count for name, count in SWIGLU.items()})
    assert unfolded <= counted
    return counted - unfolded + Counter(SwiGLU=fused)


def block(dtype: mx.Dtype, bits: int | None = None) -> Counter[str]:
    three, two = (decoded_token(n, dtype, bits) for n in (3, 2))
    return launches(three - two)


def test_swiglu_alone():
    gate = mx.zeros((1, 1, 8), mx.bfloat16)
    graph = primitives(lambda x: [ops.swiglu(x, x)], gate)
    assert {n: c for n, c in graph.items() if n not in LAUNCH_NOTHING} == SWIGLU


@pytest.mark.parametrize(
    ("dtype", "bits", "products"),
    [
        (mx.float32, None, {"Matmul": 5}),  # W_i, router, W_o, gate with up, down
        (mx.bfloat16, None, {"Matmul": 5}),
        (mx.bfloat16, 4, {"QuantizedMatmul": 4, "Matmul": 1}),
    ],
    ids=["float32", "bfloat16", "4bit"],
)
def test_a_block_launches_at_most_10(on_a_gpu, capsys, dtype, bits, products):
    got = block(dtype, bits)
    with capsys.disabled():
        print(f"\n    {got.total()} launches a block and token: {dict(got)}")
    assert got == Counter(products) + KERNELS + WRITES + Counter(SwiGLU=1)
    assert got.total() <= 10


@pytest.mark.parametrize("layers", [2, 5])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "4bit"])
def test_plan_counts_the_same(layers, dtype):
    """What `fm-mlx plan` says of a token: 10 a block, and what stands beside the blocks."""
    args = ModelArgs(64, layers, 128, 50, num_memory_states=4096)
    plan = Plan(args, dtype=dtype)
    counted = {of_name.name: of_name.work.dispatches for of_name in launches_of.of_token(plan)}
    products = ("W_i", "router", "W_o", "gate with up", "down")
    assert {counted.pop(name) for name in products} == {layers}
    norm = 1 if dtype == "float32" else 4
    assert counted.pop("first norm") == norm
    assert counted.pop("add_rms_norm") == 2 * layers
    for name in ("sparse_update", "write of rows", "SwiGLU"):
        assert counted.pop(name) == layers
    assert counted == {"embedding": 1, "head": 1}
    assert launches_of.total(launches_of.of_token(plan)).dispatches == 10 * layers + 2 + norm


def test_outside_the_blocks(on_a_gpu):
    """Embedding, head, and the first norm, which has no sum before it; once a token."""
    rest = launches(decoded_token(2, mx.bfloat16)) - block(mx.bfloat16) - block(mx.bfloat16)
    # the CPU backend, whose graph this is, unfolds the norm; the router's copy of it is one AsType
    norm = Counter(AsType=3, Square=1, Sum=1, Multiply=3, Add=1, Rsqrt=1)
    assert rest == Counter(Gather=1, Matmul=1) + norm
