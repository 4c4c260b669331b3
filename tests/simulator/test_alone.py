"""The simulator by itself, under another name: it needs nothing of the package around it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from fm_mlx.metal_kernels import simulator

SCRIPT = """
import sys
import mlx.core as mx
import metal_simulator

kernel = metal_simulator.metal_kernel("twice", ["x"], ["y"], "y[0] = 2 * x[0];")
launch = dict(grid=(1, 1, 1), threadgroup=(1, 1, 1), output_shapes=[(1,)])
(y,) = kernel(inputs=[mx.array([1.5])], output_dtypes=[mx.float32], **launch)
print(y.item(), [name for name in sys.modules if name.startswith("fm_mlx")])
"""


def test_in_a_package_of_its_own(tmp_path):
    folder = Path(simulator.__file__).parent
    shutil.copytree(folder, tmp_path / "metal_simulator")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "3.0 []\n", done.stderr
