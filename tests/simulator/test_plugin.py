"""`pytest --metal=simulator` on a small library: what fails, what is told, where it points."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from importlib.metadata import entry_points

import pytest

# pytester forgets the modules that a run imports, but these know what MLX's own functions are.
from fm_mlx.metal_kernels.simulator.mac import redirection as mac  # noqa: F401
from fm_mlx.metal_kernels.simulator.testing import annotations, record  # noqa: F401

pytest_plugins = ["pytester"]

MODULE = "fm_mlx.metal_kernels.simulator.testing.pytest_plugin"

# Loaded by its entry point where the package is installed as it is now.
INSTALLED = any(each.value == MODULE for each in entry_points(group="pytest11"))
OPTIONS = [
    *([] if INSTALLED else ["-p", MODULE]),
    "-p",
    "no:cacheprovider",
    "-p",
    "no:hypothesispytest",
]

LIBRARY = '''
import mlx.core as mx
from mlx.core.fast import metal_kernel

REVERSE = """
    threadgroup float shared[64];
    uint i = thread_position_in_threadgroup.x;
    shared[i] = x[i];{}
    y[i] = shared[63 - i];
"""


def run(kernel, n=64):
    return kernel(
        inputs=[mx.arange(n).astype(mx.float32)], grid=(n, 1, 1), threadgroup=(n, 1, 1),
        output_shapes=[(n,)], output_dtypes=[mx.float32],
    )[0]


def make(name, source, **kwargs):
    return metal_kernel(name=name, input_names=["x"], output_names=["y"], source=source, **kwargs)


good = make("good", REVERSE.format(" threadgroup_barrier(mem_flags::mem_threadgroup);"))
bad = make("bad", REVERSE.format(""))
'''

TESTS = """
import mlx.core as mx
import pytest
from library import bad, good, make, run

def test_good():
    assert mx.default_device() == mx.gpu and mx.device_info()["device_name"] == "Apple M2 Ultra"
    assert run(good).tolist() == list(range(63, -1, -1))

def test_swallowed():
    try:
        run(bad)
    except Exception:
        pass

@pytest.fixture
def made():
    run(bad)

def test_fixture(made):
    pass

def test_not_compiled():
    try:
        run(make("broken", "y[0] = x[0]"))
    except Exception:
        pass

def test_assertion():
    run(bad)
    assert False

@pytest.mark.xfail
def test_expected():
    run(bad)

def test_not_on_the_cpu():
    a = mx.zeros((2, 4, 4), mx.float16)
    mx.eval(mx.gather_mm(a, a, mx.array([0]), mx.array([1])))

def test_nothing():
    pass
"""


@pytest.fixture
def library(pytester):
    pytester.makepyfile(library=LIBRARY, test_library=TESTS)
    return pytester


def line_of(text: str, file: str = LIBRARY) -> int:
    """Where a line stands in a file, which pytester writes without the first line break."""
    lines = file.strip().split("\n")
    return 1 + next(i for i, line in enumerate(lines) if text in line)


def test_a_run(library, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    result = library.runpytest_inprocess(
        *OPTIONS,
        *("--metal=simulator", "--metal-chip=m2-ultra", "-v", "--tb=short"),
        *("--junitxml=junit.xml", "--metal-sarif=made/findings.sarif"),
    )
    result.assert_outcomes(passed=2, failed=4, errors=1, xfailed=1)
    place = f"library.py:{line_of('y[i] =')}: uninitialised-read: loads memory"
    text = result.stdout.str()
    for expected in (
        f"{place} that nobody has written in shared",
        f"FAILED test_library.py::test_swallowed - MetalFindings: {place}"[:60],
        "ERROR test_library.py::test_fixture",
        "Metal findings",  # beside the assertion that fails by itself
        f"test_library.py:{line_of('broken', TESTS)}: compile-error: expected ';'",
        "MLX's CPU back-end has no such operation; a Mac's GPU does it",
        "failed: 4 by findings, 1 because MLX's CPU back-end lacks an operation, 0 otherwise",
        "simulated as on m2-ultra",
        "test_library.py::test_good: good x1\n",
        f"::error file=library.py,line={line_of('y[i] =')},title=uninitialised-read::loads",
    ):
        assert expected in text, expected
    rows = {row.split()[0]: row.split(maxsplit=2)[1:] for row in result.outlines if "  " in row}
    assert rows["good"] == ["1", "nothing"]
    assert rows["bad"][0] == "4" and "race-read-after-write x4" in rows["bad"][1]
    check_junit(library.path / "junit.xml", place)
    check_sarif(library.path / "made/findings.sarif")


def check_junit(path, place):
    cases = {case.get("name"): case for case in ElementTree.parse(path).iter("testcase")}
    of = {
        name: [(p.get("name"), p.get("value")) for p in case.iter("property")]
        for name, case in cases.items()
    }
    assert of["test_good"] == [("metal_launches", "1"), ("metal_kernels", "good")]
    assert any(n == "metal_finding" and v.startswith(place) for n, v in of["test_swallowed"])
    assert of["test_nothing"] == [("metal_launches", "0"), ("metal_kernels", "")]


def check_sarif(path):
    log = json.loads(path.read_text())
    (run,) = log["runs"]
    assert log["version"] == "2.1.0"
    for result in run["results"]:
        assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
    places = {
        (
            result["ruleId"],
            result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"],
            result["locations"][0]["physicalLocation"]["region"]["startLine"],
        )
        for result in run["results"]
    }
    assert ("race-read-after-write", "library.py", line_of("y[i] =")) in places
    assert ("race-write-after-read", "library.py", line_of("shared[i] =")) in places


def test_findings_that_only_warn(library):
    result = library.runpytest_inprocess(
        *OPTIONS, "--metal=simulator", "--metal-findings=warn", "-k", "swallowed or fixture"
    )
    result.assert_outcomes(passed=2, deselected=6)
    assert "uninitialised-read" in result.stdout.str()


def test_several_orders(library):
    """A kernel whose result depends on the order, without a race: atomics hand out the places."""
    library.makepyfile(
        test_orders="""
        import mlx.core as mx
        from library import make, run

        source = '''
            uint i = thread_position_in_grid.x;
            uint place = atomic_fetch_add_explicit(
                (device atomic_uint*)y, 1u, memory_order_relaxed);
            atomic_store_explicit((device atomic_float*)y + 1 + place % 63, x[i],
                memory_order_relaxed);
        '''
        kernel = make("places", source)

        def test_places():
            kernel(
                inputs=[mx.arange(63).astype(mx.float32)], grid=(63, 1, 1),
                threadgroup=(63, 1, 1), output_shapes=[(64,)], output_dtypes=[mx.float32],
                init_value=0,
            )
        """
    )
    once = library.runpytest_inprocess(*OPTIONS, "--metal=simulator", "test_orders.py")
    once.assert_outcomes(passed=1)
    result = library.runpytest_inprocess(
        *OPTIONS, "--metal=simulator", "--metal-orders=3", "test_orders.py"
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        "*schedule-dependent: 62 of 64 elements depend on the order of the threads: "
        "the first, ?1?, is 0.0 in forward order and 62.0 in reverse in y*"
    )


def test_launches_of_an_import(library):
    library.makepyfile(test_import="from library import bad, run\nrun(bad)\ndef test(): pass")
    result = library.runpytest_inprocess(*OPTIONS, "--metal=simulator", "test_import.py")
    result.assert_outcomes(errors=1)
    assert "library.py:" in result.stdout.str() and "uninitialised-read" in result.stdout.str()


def test_with_xdist(library):
    chosen = ["--metal=simulator", "--metal-chip=m2-ultra", "-k", "good or swallowed or cpu"]
    result = library.runpytest_subprocess(*OPTIONS, "-n", "1", *chosen)
    text = result.stdout.str()
    assert "failed: 1 by findings, 1 because MLX's CPU back-end lacks an operation" in text
    rows = [row.split(maxsplit=2) for row in result.outlines]
    assert ["good", "1", "nothing"] in rows


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--metal-chip=m9", "--metal-chip: no chip 'm9'; allowed are m1, m1-max"),
        ("--metal-orders=0", "'0' is not one of 1, 2, 3 and so on"),
    ],
)
def test_bad_options(library, option, message):
    result = library.runpytest_inprocess(*OPTIONS, "--metal=simulator", option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert message in result.stderr.str()


def test_without_the_option_nothing_is_imported():
    code = (
        f"import sys, pytest, {MODULE}\n"
        "print([m for m in ('mlx', 'numpy', 'mlx_lm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
