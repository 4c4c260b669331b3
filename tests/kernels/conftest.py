"""Every test here runs Metal source: in the simulator, and on the GPU where there is one."""

from __future__ import annotations

import mlx.core as mx
import pytest

from fm_mlx.metal_kernels import launch, simulator, verdicts
from fm_mlx.metal_kernels.catalogue import KERNELS


@pytest.fixture(autouse=True)
def on_the_simulator():
    """Kernels run simulated, whatever the doctor has found wrong on this machine.

    What the simulator finds, a warning too, is an error.
    """
    if reason := simulator.unavailable():
        pytest.skip(reason)
    with (
        launch.using("simulator"),
        simulator.options(fatal=simulator.KINDS),
        verdicts.disregarded(),
    ):
        yield


def launches() -> int:
    """Of all kernels, in this process."""
    return sum(kernel.launches for kernel in KERNELS.values())


@pytest.fixture(params=["forward", "reverse", "random", "metal"])
def schedule(request: pytest.FixtureRequest):
    """The order in which threads and SIMD-groups get their turns; or the hardware.

    A test that launches no kernel fails: a reference op would pass any check of a kernel.
    """
    before = launches()
    if request.param != "metal":
        with simulator.options(order=request.param, seed=1):
            yield request.param
    elif not mx.metal.is_available():
        pytest.skip("MLX has no Metal back-end here: the kernel is not run on hardware")
    else:
        mx.set_default_device(mx.gpu)
        try:
            with launch.using("metal"):
                yield request.param
        finally:
            mx.set_default_device(mx.cpu)
    assert launches() > before, "no kernel was launched"
