"""Every broken kernel is caught; `python tests/kernels/kernel_mutants.py` prints by what."""

from __future__ import annotations

import pytest
from kernel_mutants import MUTANTS

from fm_mlx.metal_kernels.catalogue import KERNELS

# What each kernel's list must have where the kernel has such a thing to break.
REQUIRED = {
    "dropped barrier": {"sparse_update", "add_rms_norm", "chunk_scan", "chunk_scan_vjp"},
    "off-by-one tail": {"route_dense", "sparse_update", "add_rms_norm", "state_pass", "chunk_scan"},
    "missing mask": {"sparse_update_masked", "chunk_scan", "chunk_scan_vjp"},
    "ties go to the highest index": {"route_dense"},
    "state written in bf16": {"sparse_update", "state_pass", "chunk_scan"},
}


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_mutant_is_caught(mutant):
    mutant.check()  # it is the mutation that is caught
    what = mutant.found()
    assert what, f"{mutant} is not caught"
    print(what)


@pytest.mark.parametrize("kind", REQUIRED)
def test_kinds_of_mutants(kind):
    assert REQUIRED[kind] <= {m.kernel for m in MUTANTS if m.name.startswith(kind)}


def test_every_kernel_has_mutants():
    assert {m.kernel for m in MUTANTS} == set(KERNELS)
