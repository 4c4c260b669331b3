"""The page about CI: its files and commands, run as it says, print what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_plugin import OPTIONS

PAGE = (Path(__file__).parents[2] / "docs/metal-in-ci.md").read_text()
FILES = dict(re.findall(r"```python\n(# (\w+)\.py\n.*?)```", PAGE, re.DOTALL))
PRINTED = re.search(r"```\n(=+ Metal kernels.*?)```", PAGE, re.DOTALL)[1]
BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"

pytest_plugins = ["pytester"]


@pytest.fixture
def files(pytester):
    assert set(FILES.values()) == {"row_sum", "test_row_sum"}
    for text, name in FILES.items():
        (pytester.path / f"{name}.py").write_text(text)
    return pytester


def test_the_first_bug(files):
    assert "    pytest --metal=simulator\n" in PAGE
    result = files.runpytest_inprocess(*OPTIONS, "--metal=simulator")
    result.assert_outcomes(failed=1)
    assert PRINTED in result.stdout.str()


def test_the_first_bug_repaired(files):
    source = files.path / "row_sum.py"
    assert f"`{BARRIER}` before `if (i == 0)`" in PAGE
    source.write_text(source.read_text().replace("if (i == 0)", f"{BARRIER} if (i == 0)"))
    result = files.runpytest_inprocess(*OPTIONS, "--metal=simulator", "--metal-orders=3")
    result.assert_outcomes(passed=1)
    assert "row_sum         1  nothing" in result.stdout.str()


def test_every_option_is_there(files):
    options = set(re.findall(r"--metal[-\w]*", PAGE))
    told = files.runpytest_inprocess(*OPTIONS, "--help").stdout.str()
    assert options and {option for option in options if option not in told} == set()
    assert set(re.findall(r"--metal[-\w]*", told)) <= options
