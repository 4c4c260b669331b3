"""Bugs of public kernels are found, and a corrected kernel has no finding."""

from __future__ import annotations

import pytest
from planted import SCHEDULES, difference, run, telling
from public_bugs import BUGS, Bug


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.case.name)
def test_found_and_mended(bug: Bug):
    (mistake,) = bug.case.mistakes
    for order in SCHEDULES:
        wrong = run(bug.case.planted(mistake), order)
        assert telling(bug.case, mistake, wrong.findings), (order, *map(str, wrong.findings))
        mended = run(bug.case, order)
        assert not mended.findings, (order, *map(str, mended.findings))
        assert difference(bug.case, mended.outputs) is None
