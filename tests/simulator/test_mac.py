"""MLX as on a Mac: devices, streams, chips, and kernels that were made before."""

from __future__ import annotations

import threading

import mlx.core as mx
import pytest
from mlx.core import exp as early_exp
from mlx.core.fast import metal_kernel as early

from fm_mlx.metal_kernels import simulator
from fm_mlx.metal_kernels.simulator import Kernel
from fm_mlx.metal_kernels.simulator.mac import redirection as mac
from fm_mlx.metal_kernels.simulator.mac.chips import CHIPS

X = mx.arange(4).astype(mx.float32)

# Made by MLX itself, before anything is simulated.
made_before = mx.fast.metal_kernel(
    name="before",
    input_names=["x", "w"],
    output_names=["y"],
    header="// a header\n",
    source="uint i = thread_position_in_grid.x;\ny[i] = x[i] + w * x_shape[0];",
)
held = {"in a dictionary": [made_before]}


class Holder:
    plain = made_before


def call(kernel, x=X, **kwargs):
    (y,) = kernel(
        inputs=[x, mx.array(1.0)],
        grid=(x.size, 1, 1),
        threadgroup=(x.size, 1, 1),
        output_shapes=[(x.size,)],
        output_dtypes=[mx.float32],
        **kwargs,
    )
    return y


@pytest.fixture
def on_mac():
    with simulator.redirected():
        yield


def test_devices(on_mac):
    assert mx.default_device() == mx.gpu and mx.default_device() != mx.cpu
    assert mx.metal.is_available() and mx.is_available(mx.gpu) and mx.is_available(mx.cpu)
    assert mx.device_count(mx.gpu) == 1
    mx.set_default_device(mx.cpu)
    assert mx.default_device() == mx.cpu
    mx.set_default_device(mx.gpu)
    with mx.stream(mx.cpu):
        assert mx.default_device() == mx.cpu
        others = []
        thread = threading.Thread(target=lambda: others.append(mx.default_device()))
        thread.start()
        thread.join()
        assert others == [mx.gpu]
    assert mx.default_device() == mx.gpu


def test_streams(on_mac):
    stream, other = mx.new_stream(mx.gpu), mx.new_stream(mx.cpu)
    assert stream.device == mx.gpu and "Device(gpu, 0)" in repr(stream)
    assert other.device == mx.cpu and "Device(cpu, 0)" in repr(other)
    assert mx.default_stream(mx.gpu).device == mx.gpu
    assert mx.default_stream(mx.cpu).device == mx.cpu
    with mx.stream(stream):
        assert mx.default_stream(mx.default_device()) == stream
        assert mx.add(X, X).tolist() == [0, 2, 4, 6]
    assert mx.default_stream(mx.gpu) != stream
    mx.set_default_stream(stream)
    assert mx.default_stream(mx.gpu) == stream
    for place in (mx.gpu, mx.Device(mx.gpu), stream, mx.cpu, None):
        assert mx.add(X, X, stream=place).tolist() == [0, 2, 4, 6]
        assert X.sum(stream=place).item() == 6
        assert mx.random.normal((2,), stream=place).shape == (2,)
        assert mx.fft.fft(X, stream=place).shape == (4,)
    for place in ((), (stream,), (mx.gpu,), (mx.cpu,)):
        mx.synchronize(*place)
    local = mx.new_thread_local_stream(mx.gpu)
    with mx.stream(local):
        assert local.device == mx.gpu and mx.default_device() == mx.gpu
        assert mx.exp(mx.zeros(2)).tolist() == [1, 1]


def test_everything_is_put_back():
    before = (mx.add, mx.array.sum, mx.Stream.device, mx.default_device, mx.fast.metal_kernel)
    stream = mx.default_stream(mx.cpu)
    with simulator.redirected(), simulator.redirected(chip="m1"):
        assert mx.add is not before[0]
    assert (mx.add, mx.array.sum, mx.Stream.device, mx.default_device, mx.fast.metal_kernel) == (
        before
    )
    assert not mx.metal.is_available() and mx.default_device() == mx.cpu
    assert stream.device == mx.cpu


def test_names_imported_before():
    plain = early, early_exp
    with simulator.redirected():
        assert early is mx.fast.metal_kernel and early is not plain[0]
        assert isinstance(early("k", ["x"], ["y"], "y[0] = x[0];"), Kernel)
        assert early_exp(X, stream=mx.gpu).shape == (4,)
    assert (early, early_exp) == plain


def test_kernels_made_before(on_mac):
    def closed():
        return inner

    inner = made_before
    assert not isinstance(Holder.plain, Kernel)
    assert mac.adopt() >= 1
    for kernel in (made_before, held["in a dictionary"][0], closed(), Holder.plain):
        assert call(kernel).tolist() == [4, 5, 6, 7]
    definition = made_before.definition
    assert definition["input_names"] == ["x", "w"] and definition["output_names"] == ["y"]
    assert definition["source"].startswith("uint i") and definition["source"].endswith("[0];")
    assert definition["header"] == "// a header\n"
    assert not isinstance(made_before.mlx, Kernel)
    assert mac.adopt() == 0  # not the one that a simulated kernel asks for its source


def test_kernels_are_the_gpus(on_mac):
    kernel = mx.fast.metal_kernel("k", ["x", "w"], ["y"], "y[thread_position_in_grid.x] = w;")
    assert call(kernel, stream=mx.new_stream(mx.gpu)).tolist() == [1, 1, 1, 1]
    with pytest.raises(ValueError, match=r"\[metal_kernel\] Only supports the GPU\."):
        call(kernel, stream=mx.cpu)
    with mx.stream(mx.cpu), pytest.raises(ValueError, match="Only supports the GPU"):
        call(kernel)


@pytest.mark.parametrize("chip", CHIPS)
def test_chips(chip):
    with simulator.redirected(chip=chip):
        info = mx.device_info()
        assert info == mx.device_info(mx.gpu) == mx.metal.device_info()
        assert set(info) == {
            *("architecture", "device_name", "max_buffer_length", "memory_size"),
            *("max_recommended_working_set_size", "resource_limit"),
        }
    assert info["device_name"].lower() == f"apple {chip.replace('-', ' ')}"
    size, working_set = info["memory_size"], info["max_recommended_working_set_size"]
    assert 0.6 * size < working_set < 0.9 * size
    generation, tier = info["architecture"].removeprefix("applegpu_g")[:2], chip[3:]
    assert int(generation) == 12 + int(chip[1])
    assert info["architecture"][-1] == {"": "g", "pro": "s", "max": "s", "ultra": "d"}[tier]


def test_unknown_chip():
    with pytest.raises(ValueError, match="no chip 'm9'; allowed are m1, m1-max, m2"):
        simulator.redirected(chip="m9").__enter__()
    assert not mx.metal.is_available()
