"""Broken copies of sparse_update.metal."""

from __future__ import annotations

import checks
from kernel_mutant import BARRIER, Mutant


def update() -> None:
    """Two blocks of rows, several SIMD-groups, a last thread without a column."""
    checks.sparse_update((2, 20, 70), 11)


def update_behind_another() -> None:
    """The last token's rows stand behind those of the token before."""
    checks.sparse_update((2, 20, 70), 11, seed=1)


def many_rows_update() -> None:
    checks.sparse_update((1, 70, 33), 40)


def product_update() -> None:
    checks.sparse_update((2, 1600, 33), 6, product_keys=True)


def masked_product_update() -> None:
    checks.sparse_update((3, 25, 33), 6, mask=[True, False, True], product_keys=True)


def masked_update() -> None:
    checks.sparse_update((3, 20, 70), 11, mask=[True, False, True])


def wide_update() -> None:
    """More than one column per thread."""
    checks.sparse_update((1, 5, 600), 2)


MUTANTS = [
    Mutant(
        "sparse_update",
        "slots start anew for every 32 rows",
        many_rows_update,
        "before += metal::simd_sum(active[j] ? 1 : 0);",
        "",
    ),
    Mutant(
        "sparse_update_product",
        "dropped barrier: the halves are read before they are chosen",
        product_update,
        "metal::simdgroup_barrier(metal::mem_flags::mem_threadgroup);",
        "",
    ),
    Mutant(
        "sparse_update_product",
        "the second half is the first",
        product_update,
        "logits + half_index * half_length",
        "logits",
    ),
    Mutant(
        "sparse_update_product",
        "off-by-one tail: a row is numbered as if a half were one shorter",
        product_update,
        "* half_length + best[kept",
        "* (half_length - 1) + best[kept",
    ),
    Mutant(
        "sparse_update_product_masked",
        "missing mask",
        masked_product_update,
        "mask[batch]",
        "true",
    ),
    Mutant(
        "sparse_update",
        "dropped barrier: rows are read before they are chosen",
        update,
        "metal::threadgroup_barrier(metal::mem_flags::mem_device);",
        "",
    ),
    Mutant(
        "sparse_update",
        "a row that two tokens write is as the first one left it",
        update,
        "again < num_active",
        "again < 0",
    ),
    Mutant(
        "sparse_update",
        "every text of a batch gets what the first one wrote",
        update,
        "last_rows += before * width;",
        "last_rows += size_t(last_count - num_active) * width;",
    ),
    Mutant(
        "sparse_update",
        "what the token before the last wrote is taken for what the last one wrote",
        update_behind_another,
        "size_t(batch) * last_count + (last_count - num_active);",
        "size_t(batch) * last_count;",
    ),
    Mutant(
        "sparse_update",
        "dropped barrier: norms are read before all SIMD-groups wrote them",
        update,
        f"""    {BARRIER}
    UNROLL""",
        """    UNROLL""",
    ),
    Mutant(
        "sparse_update",
        "dropped barrier: the next rows' norms overwrite the last ones",
        update,
        f"""{BARRIER}
  }}""",
        """  }""",
    ),
    Mutant(
        "sparse_update",
        "off-by-one tail: the column past the last one is read",
        update,
        "if (column < width) {\n            const",
        "if (column <= width) {\n            const",
    ),
    Mutant(
        "sparse_update",
        "off-by-one tail: the last column of y is not written",
        update,
        "if (column < width) {\n      y",
        "if (column < width - 1) {\n      y",
    ),
    Mutant(
        "sparse_update",
        "off-by-one tail: one row too many",
        update,
        "if (slot < num_active) {\n        float norm",
        "if (slot <= num_active) {\n        float norm",
    ),
    Mutant(
        "sparse_update_masked",
        "missing mask",
        masked_update,
        "mask[batch]",
        "true",
    ),
    Mutant(
        "sparse_update_masked",
        "a masked token is multiplied by 0, not left out",
        masked_update,
        "active && column < width ?",
        "column < width ?",
    ),
    Mutant(
        "sparse_update_masked",
        "a masked token is read",
        masked_update,
        "active ? float(phi[slot]) : 0.0f",
        "float(phi[slot])",
    ),
    Mutant(
        "sparse_update",
        "state written in bf16",
        update,
        "const float number = (1.0f - write) * state[row + column] + write * new_value[c];",
        "const float number = float(bfloat("
        "(1.0f - write) * state[row + column] + write * new_value[c]));",
    ),
    Mutant(
        "sparse_update",
        "the norm of the first SIMD-group's columns",
        update,
        "g < simdgroups; ++g",
        "g < 1; ++g",
    ),
    Mutant(
        "sparse_update",
        "every thread's second column is its first",
        wide_update,
        "const int column = thread_index + c * threads;\n    new_value",
        "const int column = thread_index;\n    new_value",
    ),
]
