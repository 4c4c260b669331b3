"""Broken copies of chunk_scan.metal."""

from __future__ import annotations

import checks
from kernel_mutant import BARRIER, Mutant


def scan() -> None:
    """Five blocks of rows on four SIMD-groups; the last block has 2 rows."""
    checks.chunk_scan((1, 2, 9, 130, 6), 40)


MUTANTS = [
    Mutant(
        "chunk_scan",
        "dropped barrier: G is used before all of it is there",
        scan,
        f"""  }}
  {BARRIER}

  for (int first""",
        """  }

  for (int first""",
    ),
    Mutant(
        "chunk_scan",
        "dropped barrier: sums are added up before all are there",
        scan,
        f"""  {BARRIER}
  for (uint i""",
        """  for (uint i""",
    ),
    Mutant(
        "chunk_scan",
        "barrier without its memory flag",
        scan,
        f"""  {BARRIER}
  for (uint i""",
        """  metal::threadgroup_barrier(metal::mem_flags::mem_none);
  for (uint i""",
    ),
    Mutant(
        "chunk_scan",
        "off-by-one tail: a row past the last one is read",
        scan,
        "const bool exists = row < rows;",
        "const bool exists = row <= rows;",
    ),
    Mutant(
        "chunk_scan",
        "off-by-one tail: the last row of G is left out",
        scan,
        "t < tokens && s <= t",
        "t < tokens - 1 && s <= t",
    ),
    Mutant(
        "chunk_scan",
        "missing mask: threads past the last row read and write",
        scan,
        "const bool exists = row < rows;",
        "const bool exists = true;",
    ),
    Mutant(
        "chunk_scan",
        "norms decay once, not twice",
        scan,
        "norm = keep * keep * norm +",
        "norm = keep * norm +",
    ),
    Mutant(
        "chunk_scan",
        "the sums of the first SIMD-group only",
        scan,
        "g < simdgroups; ++g",
        "g < 1; ++g",
    ),
    Mutant(
        "chunk_scan",
        "a token is read before it is written",
        scan,
        "read[item] = query * decay;",
        "read[item] = query * decay / keep;",
    ),
    Mutant(
        "chunk_scan",
        "state written in bf16",
        scan,
        "weight[s] = s == t ? write : keep * weight[s];",
        "weight[s] = float(bfloat(s == t ? write : keep * weight[s]));",
    ),
    Mutant(
        "chunk_scan",
        "lanes exchange with the wrong partner",
        scan,
        "metal::simd_shuffle_xor(give, half_lanes)",
        "metal::simd_shuffle_xor(give, 1)",
    ),
]
