"""All broken kernels.

``python tests/kernels/kernel_mutants.py`` prints the table of mutants and what was found.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from broken import add_rms_norm, chunk_scan, chunk_scan_vjp, route, sparse_update, state_pass

from fm_mlx.metal_kernels import launch, simulator

MUTANTS = [
    mutant
    for kernel in (route, sparse_update, add_rms_norm, state_pass, chunk_scan, chunk_scan_vjp)
    for mutant in kernel.MUTANTS
]


def table() -> str:
    """Every mutant with what was found, one line each."""
    lines = []
    for mutant in MUTANTS:
        lines.append(f"{mutant.kernel:22} {mutant.name:70} {mutant.found() or 'NOT CAUGHT'}")
    return "\n".join(lines)


if __name__ == "__main__":
    with launch.using("simulator"), simulator.options(fatal=simulator.KINDS):
        print(table())
