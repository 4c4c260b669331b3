"""What runs a kernel: decided at every call, by device, environment or `using`."""

from __future__ import annotations

import mlx.core as mx
import pytest
from cases import REAL, routed, tiny_model, tokens

from fm_mlx import ops
from fm_mlx.metal_kernels import launch, simulator
from fm_mlx.metal_kernels.catalogue import KERNELS
from fm_mlx.metal_kernels.launch import VARIABLE, Backend, backend
from fm_mlx.metal_kernels.sources import metal_source


@pytest.fixture(autouse=True)
def nothing_forced(monkeypatch, on_the_simulator):
    monkeypatch.delenv(VARIABLE, raising=False)
    token = launch._forced.set(None)
    yield
    launch._forced.reset(token)


@pytest.fixture
def on_a_gpu(monkeypatch):
    """MLX says that its default device is a Metal GPU."""
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)


@pytest.fixture
def launched(on_a_gpu, monkeypatch) -> list[str]:
    """Names of the kernels that were launched; stand-ins that give zeros."""
    names: list[str] = []

    def launch_nothing(self, *, output_shapes, output_dtypes, **_):
        names.append(self.name)
        return [mx.zeros(s, d) for s, d in zip(output_shapes, output_dtypes, strict=True)]

    monkeypatch.setattr(launch.MetalKernel, "__call__", launch_nothing)
    return names


class TestBackend:
    def test_ops_without_a_gpu(self):
        assert backend() is Backend.OPS

    def test_metal_on_a_gpu(self, on_a_gpu):
        assert backend() is Backend.METAL

    def test_ops_on_a_gpu_that_is_not_metal(self, on_a_gpu, monkeypatch):
        monkeypatch.setattr(mx.metal, "is_available", lambda: False)
        assert backend() is Backend.OPS

    @pytest.mark.parametrize("name", ["simulator", "ops"])
    def test_environment(self, monkeypatch, name, on_a_gpu):
        monkeypatch.setenv(VARIABLE, name)
        assert backend() == name
        with launch.using("metal"):
            assert backend() is Backend.METAL

    def test_nonsense_in_the_environment(self, monkeypatch):
        monkeypatch.setenv(VARIABLE, "cuda")
        with pytest.raises(ValueError, match="FM_MLX_KERNELS is 'cuda'; allowed are metal, sim"):
            backend()

    def test_nonsense_from_python(self):
        allowed = pytest.raises(ValueError, match="the backend is 'fast'; allowed are")
        with allowed, launch.using("fast"):
            pass

    def test_simulator_where_there_is_no_compiler(self, monkeypatch):
        monkeypatch.setattr(simulator, "unavailable", lambda: "no compiler here")
        with launch.using("simulator"), pytest.raises(ValueError, match="no compiler here"):
            ops.route_dense(mx.zeros((1, 5)), 2)

    def test_metal_where_there_is_none(self):
        if mx.metal.is_available():
            pytest.skip("this machine has Metal")
        with launch.using("metal"), pytest.raises(ValueError, match=r"MLX runs on Device\(cpu"):
            ops.route_dense(mx.zeros((1, 5)), 2)


class TestEveryKernelIsUsed:
    """On a Metal GPU the kernels are launched, and not their reference ops."""

    def test_scan(self, launched):
        ops.memory_scan(*routed((1, 70, 4, 8), 2).arrays())
        assert launched == ["state_pass", "chunk_scan"]

    def test_gradient_of_the_scan(self, launched):
        def loss(*inputs):
            y, last = ops.memory_scan(*inputs)
            return y.sum() + last.sum()

        mx.grad(loss, argnums=(0, 1, 2, 3))(*routed((1, 70, 4, 8), 2).arrays()[:4])
        assert launched == ["state_pass", "chunk_scan", "chunk_scan_vjp", "state_pass"]

    def test_routing(self, launched):
        ops.route_dense(mx.zeros((2, 3, 7)), 2)
        assert launched == ["route_dense"]

    @pytest.mark.parametrize("mask", [None, [True]])
    def test_sparse_step(self, launched, mask):
        write = ops.Write(mx.array([[0, 2]], mx.int32), mx.ones((1, 2, 4)))
        scores, values, state = mx.zeros((1, 1, 7)), mx.ones((1, 1, 4)), mx.ones((1, 5, 4))
        keep = None if mask is None else mx.array([mask])
        ops.buffered_memory_step(write, write, scores, values, state, keep)
        assert launched == ["sparse_update" if mask is None else "sparse_update_masked"]

    def test_model(self, launched):
        """Prefill of a two-layer model. The first norm has no sum before it."""
        tiny_model(REAL)(tokens((1, 40)))
        scan = ["route_dense", "state_pass", "chunk_scan", "add_rms_norm"]
        assert launched == [*scan, "add_rms_norm"] * 2


def test_names_tell_the_source_apart():
    """MLX may run stale code of the same name (ml-explore/mlx#3832)."""
    names = {kernel.simulated.definition["name"] for kernel in KERNELS.values()}
    assert len(names) == len(KERNELS)
    kernel = launch.MetalKernel("state_pass", [], ["o"], "a")
    other = launch.MetalKernel("state_pass", [], ["o"], "b")
    assert kernel.simulated.definition["name"] != other.simulated.definition["name"]


@pytest.mark.parametrize("name", ["chunk_scan", "chunk_scan_vjp", "route", "state_pass"])
def test_sources_include_each_file_once(name):
    text = metal_source(f"{name}.metal")
    assert '#include "' not in text
    assert text.count("constexpr int LANES") <= 1
    assert text.isascii()
