"""The laws fail where they should: each runs on a copy of the package with one line broken."""

from __future__ import annotations

import sys

import mlx.core as mx
import pytest
from cases import REAL, Code
from mutant import mutated
from mutants import MUTANTS
from structural import replaced


@pytest.fixture(autouse=True)
def not_compiled():
    """On the CPU every fused expression of every mutant would be a run of the C++ compiler."""
    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_law_fails_on(mutant):
    mutant.check(REAL)  # it is the mutation that fails the law, not the law itself
    finding = mutant.found()
    assert finding, f"{mutant.check} does not see it"
    print(finding)


def test_every_law_has_a_mutant():
    laws = {f"law {n}" for n in (1, 2, 3, 4, 5, 6, 7, 8, 10)}
    assert {m.law for m in MUTANTS} == laws | {"resets", "product keys"}


@pytest.mark.parametrize("pattern", ["mx.no_such_function(x)", "x"])
def test_a_pattern_that_does_not_match_once_is_an_error(pattern):
    with pytest.raises(ValueError, match="must be one"):
        mutated("ops.step", "_write_and_read", pattern, "0")


def test_renamed_variables_and_another_layout_do_not_matter():
    source = "def f(g, w):\n    return 1 + (mx.tril(g,\n        -1) @ w)\n"
    found = replaced(source, "f", "mx.tril(gram, -1) @ weight", "mx.tril(gram) @ weight")
    assert found == "def f(g, w):\n    return 1 + mx.tril(g) @ w"
    for pattern in ("mx.tril(x, -1) @ x", "mx.triu(x, -1) @ y", "mx.tril(x, 1) @ y"):
        with pytest.raises(ValueError, match="0 matches"):
            replaced(source, "f", pattern, "0")


def test_mutating_leaves_the_package_alone():
    before = {name: id(module) for name, module in sys.modules.items()}
    finders = list(sys.meta_path)
    code = mutated("ops.memory_norm", "inverse_rms", "squares / width", "squares")
    assert code.ops.memory_step is not REAL.ops.memory_step
    assert {name: id(sys.modules[name]) for name in before} == before
    assert sys.meta_path == finders
    assert Code.imported() == REAL
