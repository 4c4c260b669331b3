"""All mutants of the laws, law by law.

``python tests/mutants.py`` prints the table of mutants, laws and what was found.
"""

from __future__ import annotations

from laws import (
    causality,
    decoding,
    gradients,
    growth,
    padding,
    precision,
    product_keys,
    recurrence,
    resets,
    rows,
    sparse_scan,
    splits,
)

MUTANTS = [
    mutant
    for law in (
        recurrence,
        splits,
        padding,
        causality,
        rows,
        gradients,
        decoding,
        growth,
        precision,
        sparse_scan,
        product_keys,
        resets,
    )
    for mutant in law.MUTANTS
]


if __name__ == "__main__":
    for mutant in MUTANTS:
        print(f"{mutant!s:75} {mutant.found() or 'NOT FOUND'}")
