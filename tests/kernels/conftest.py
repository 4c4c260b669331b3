"""Every test here runs Metal source: in the simulator, and on the GPU where there is one."""

from __future__ import annotations

import mlx.core as mx
import pytest

from fm_mlx.metal_kernels import launch, simulator


@pytest.fixture(autouse=True)
def on_the_simulator():
    """Kernels run simulated; whatever the simulator finds, a warning too, is an error."""
    if reason := simulator.unavailable():
        pytest.skip(reason)
    with launch.using("simulator"), simulator.options(fatal=simulator.KINDS):
        yield


@pytest.fixture(params=["forward", "reverse", "random", "metal"])
def schedule(request: pytest.FixtureRequest):
    """The order in which threads and SIMD-groups get their turns; or the hardware."""
    if request.param != "metal":
        with simulator.options(order=request.param, seed=1):
            yield
    elif not mx.metal.is_available():
        pytest.skip("MLX has no Metal back-end here: the kernel is not run on hardware")
    else:
        mx.set_default_device(mx.gpu)
        try:
            with launch.using("metal"):
                yield
        finally:
            mx.set_default_device(mx.cpu)
