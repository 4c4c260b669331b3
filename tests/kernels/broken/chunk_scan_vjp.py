"""Broken copies of chunk_scan_vjp.metal."""

from __future__ import annotations

import checks
from kernel_mutant import BARRIER, Mutant


def scan_vjp() -> None:
    """Three blocks of rows on two SIMD-groups."""
    checks.chunk_scan_vjp((1, 2, 9, 70, 6), 20)


MUTANTS = [
    Mutant(
        "chunk_scan_vjp",
        "dropped barrier: G is used before all of it is there",
        scan_vjp,
        f"""  }}
  {BARRIER}

  for (int first = simdgroup * LANES; first < rows; first += threads) {{
    const int row = first + lane;
    const bool exists = row < rows;
    float write""",
        """  }

  for (int first = simdgroup * LANES; first < rows; first += threads) {
    const int row = first + lane;
    const bool exists = row < rows;
    float write""",
    ),
    Mutant(
        "chunk_scan_vjp",
        "dropped barrier: sums are added up before all are there",
        scan_vjp,
        f"""  {BARRIER}
  for (uint i = thread_index; i < uint(tokens * tokens); i += threads) {{
    const int slot = (i / tokens) * LANES + i % tokens;
    float sum = 0.0f;
    for (uint g = 0; g < simdgroups; ++g) {{
      sum += partial[g * LANES * LANES + slot];
    }}
    d_gram""",
        """  for (uint i = thread_index; i < uint(tokens * tokens); i += threads) {
    const int slot = (i / tokens) * LANES + i % tokens;
    float sum = 0.0f;
    for (uint g = 0; g < simdgroups; ++g) {
      sum += partial[g * LANES * LANES + slot];
    }
    d_gram""",
    ),
    Mutant(
        "chunk_scan_vjp",
        "off-by-one tail: the first token has no gradient",
        scan_vjp,
        "int t = tokens - 1; t >= 0; --t",
        "int t = tokens - 1; t > 0; --t",
    ),
    Mutant(
        "chunk_scan_vjp",
        "off-by-one tail: the weight before the token is read a token late",
        scan_vjp,
        "weight[s] = s < t ? write[s] * before : 0.0f;",
        "weight[s] = s <= t ? write[s] * before : 0.0f;",
    ),
    Mutant(
        "chunk_scan_vjp",
        "missing mask: threads past the last row write",
        scan_vjp,
        "if (exists) {\n      d_norm0",
        "if (true) {\n      d_norm0",
    ),
    Mutant(
        "chunk_scan_vjp",
        "no gradient through the decay of the chunk's start",
        scan_vjp,
        "d_keep += d_decay * before;",
        "",
    ),
    Mutant(
        "chunk_scan_vjp",
        "no gradient through the norms",
        scan_vjp,
        "d_norm += norm_now > 0.0f ?",
        "d_norm += norm_now < 0.0f ?",
    ),
    Mutant(
        "chunk_scan_vjp",
        "no gradient through later weights",
        scan_vjp,
        "d_keep += d_weight[s] * weight[s];",
        "",
    ),
    Mutant(
        "chunk_scan_vjp",
        "norms kept in bf16",
        scan_vjp,
        "norm_of[t * LANES + lane] = norm;",
        "norm_of[t * LANES + lane] = float(bfloat(norm));",
    ),
    Mutant(
        "chunk_scan_vjp",
        "the first block's sums only",
        scan_vjp,
        "own[t * LANES + lane] += sum_by_lane(terms, lane);\n      if (exists) {\n        d_theta",
        "own[t * LANES + lane] = sum_by_lane(terms, lane);\n      if (exists) {\n        d_theta",
    ),
]
