"""Correct kernels have no finding and the right numbers; a mistake in one is told, and where."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from planted import CASES, SCHEDULES, Case, Mistake, difference, run, telling

from fm_mlx.metal_kernels import simulator
from fm_mlx.metal_kernels.simulator import Finding

RESULTS = Path(__file__).parents[2] / "evidence/results/planted_mistakes.json"

PLANTED = [(case, mistake) for case in CASES for mistake in case.mistakes]


def _first_of_each_kind() -> list:
    """The mistakes as parameters: one of every kind in each run, `pytest -m slow` has all."""
    seen: set[str] = set()
    parameters = []
    for case, mistake in PLANTED:
        marks = [pytest.mark.slow] if mistake.kinds[0] in seen else []
        seen.add(mistake.kinds[0])
        parameters.append(pytest.param(case, mistake, marks=marks))
    return parameters


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_correct(case: Case):
    outcomes = [run(case, order) for order in SCHEDULES]
    for outcome in outcomes:
        assert not outcome.findings, "\n".join(map(str, outcome.findings))
        assert difference(case, outcome.outputs) is None


@pytest.mark.parametrize(("case", "mistake"), _first_of_each_kind(), ids=lambda value: value.name)
def test_planted(case: Case, mistake: Mistake):
    outcomes = [run(case.planted(mistake), order) for order in SCHEDULES]
    told = [telling(case, mistake, outcome.findings) for outcome in outcomes]
    for order, outcome, finding in zip(SCHEDULES, outcomes, told, strict=True):
        assert finding, f"{order}: {'; '.join(map(str, outcome.findings)) or 'no finding'}"


def test_names_tell_cases_and_mistakes_apart():
    cases = [case.name for case in CASES]
    mistakes = [mistake.name for _, mistake in PLANTED]
    assert len(set(cases)) == len(cases) >= 60
    assert len(set(mistakes)) == len(mistakes) >= 60


def test_every_kind_of_finding_has_a_mistake():
    kinds = {kind for _, mistake in PLANTED for kind in mistake.kinds}
    # sums of float atomics round in their order, which is no mistake
    assert kinds >= simulator.KINDS - {"schedule-rounding"}


def test_results_are_those_of_these_kernels():
    """`python evidence/planted_mistakes.py` was run since kernels or what is told changed."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    told = {
        line["mistake"]: all(line[order]["told"] for order in SCHEDULES)
        for line in results["mistakes"]
    }
    clean = {
        line["kernel"]: not any(line[order]["findings"] for order in SCHEDULES)
        for line in results["correct kernels"]
    }
    assert told == {mistake.name: True for _, mistake in PLANTED}
    assert clean == {case.name: True for case in CASES}


def test_a_finding_tells_a_mistake_by_its_kind_and_its_line():
    case = next(case for case in CASES if case.name == "transpose")
    mistake = case.mistakes[0]
    ((file, line),) = case.planted(mistake).marked()
    kind = "race-read-after-write"

    def tells(*finding, **fields) -> bool:
        return telling(case, mistake, [Finding(*finding, **fields)]) is not None

    assert tells(kind, "", file, line)
    assert tells(kind, "", file, line - 4, other_line=line)
    assert not tells(kind, "", file, line - 1)
    assert not tells(kind, "", "header", line)
    assert not tells("out-of-bounds", "", file, line)


def test_an_edit_that_does_not_fit_is_refused():
    case = CASES[0]
    absent = Mistake("absent", (), {"z[i] = 1;": ""})
    with pytest.raises(ValueError, match=r"'z\[i\] = 1;' occurs 0 times; once is allowed"):
        case.planted(absent)
