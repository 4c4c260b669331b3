"""Broken copies of state_pass.metal."""

from __future__ import annotations

import checks
from kernel_mutant import Mutant

KEPT_IN_BF16 = "float(bfloat(carried))"


def state_pass() -> None:
    checks.state_pass((2, 4, 5, 7))


def state_pass_reverse() -> None:
    checks.state_pass((2, 4, 5, 7), reverse=True)


def long_state_pass() -> None:
    checks.state_over_many_chunks(1 - 2**-24, 2_000)


MUTANTS = [
    Mutant(
        "state_pass",
        "state written in bf16",
        state_pass,
        "starts[chunk * size + element] = carried;",
        f"carried = {KEPT_IN_BF16};\n    starts[chunk * size + element] = carried;",
    ),
    Mutant(
        "state_pass",
        "off-by-one tail: the last chunk is left out",
        state_pass,
        "i < chunks; ++i",
        "i < chunks - 1; ++i",
    ),
    Mutant(
        "state_pass",
        "a chunk's state is the one after it",
        state_pass,
        "    rest -= carried - sum;\n",
        "    rest -= carried - sum;\n    starts[chunk * size + element] = carried;\n",
    ),
    Mutant(
        "state_pass",
        "what rounding takes is not kept",
        long_state_pass,
        "carried = sum + rest;",
        "carried = sum;",
    ),
    Mutant(
        "state_pass",
        "in reverse, one chunk too far",
        state_pass_reverse,
        "chunks - 1 - i",
        "chunks - i",
    ),
    Mutant(
        "state_pass",
        "every batch row starts from the first one's state",
        state_pass,
        "float carried = state[place];",
        "float carried = state[element];",
    ),
]
