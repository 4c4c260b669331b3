"""``pytest --metal=simulator``: a test suite runs as on a Mac, its Metal kernels simulated.

pytest imports this module in every run, so the rest of the simulator, and MLX, are imported
only where the option is given.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Generator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .record import Record

_RECORD = "metal_record"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("metal", "Metal kernels of MLX")
    group.addoption(
        "--metal",
        choices=("simulator",),
        help="run as on a Mac, and simulate the kernels of mx.fast.metal_kernel on the CPU",
    )
    group.addoption(
        "--metal-chip",
        metavar="CHIP",
        default="m4-max",
        help="the Apple chip that MLX describes: m1, m2-ultra, m4-max (default) and so on",
    )
    group.addoption(
        "--metal-macos",
        action="store_true",
        help="say that this is macOS as well, for a library that refuses to be imported elsewhere",
    )
    group.addoption(
        "--metal-findings",
        choices=("fail", "warn"),
        default="fail",
        help="whether a finding fails the test that made it (default), or is only told",
    )
    group.addoption(
        "--metal-orders",
        metavar="N",
        type=_positive,
        default=1,
        help="execute every launch with its threads in N orders, and compare the outputs",
    )
    group.addoption(
        "--metal-nan",
        action="store_true",
        help="find operations that give NaN for numbers, and comparisons by size with a NaN",
    )
    group.addoption(
        "--metal-sarif", metavar="FILE", help="write the findings to a SARIF 2.1.0 file"
    )


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not one of 1, 2, 3 and so on")
    return int(text)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Begin before any file of the tests is imported."""
    if early_config.known_args_namespace.metal:
        early_config.pluginmanager.register(Simulation(early_config), "metal-simulation")


class MetalFindings(pytest.fail.Exception):
    """A test fails for what its kernels did; its body has passed."""

    __module__ = "builtins"  # as pytest names its own, in the lines that it prints


class Simulation:
    """The plugin of a run that simulates."""

    def __init__(self, config: pytest.Config):
        from .. import settings
        from ..compilation.clang import unavailable
        from ..mac import macos, redirection
        from .record import Record, recorded

        options = config.known_args_namespace
        if reason := unavailable():
            raise pytest.UsageError(f"--metal=simulator: {reason}")
        self.chip = options.metal_chip
        self.fails = options.metal_findings == "fail"
        self.sarif = options.metal_sarif
        self.tests: dict[str, dict[str, Any]] = {}
        self._open = ExitStack()
        self._record = Record()
        try:
            self._open.enter_context(redirection.redirected(chip=self.chip, raises=False))
        except ValueError as error:
            raise pytest.UsageError(f"--metal-chip: {error}") from None
        settings.set_defaults(orders=options.metal_orders, nan=options.metal_nan)
        self._open.enter_context(recorded(self._record))
        if options.metal_macos:
            self._open.enter_context(macos.pretended())
        redirection.adopt()

    def pytest_unconfigure(self) -> None:
        from .. import settings

        settings.set_defaults(orders=1, nan=False)
        self._open.close()

    # Where kernels are launched

    def _during(self) -> Generator[None, Any, Any]:
        """Run a phase of a test, and fail it for what its kernels did."""
        before = len(self._record.fatal)
        result = yield
        fatal = self._record.fatal[before:]
        if fatal and self.fails:
            raise MetalFindings("\n".join(map(str, fatal)), pytrace=False)
        return result

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self) -> Generator[None, Any, Any]:
        self._begin()
        return (yield)

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_setup(self) -> Generator[None, Any, Any]:
        return (yield from self._during())

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_call(self) -> Generator[None, Any, Any]:
        return (yield from self._during())

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_teardown(self) -> Generator[None, Any, Any]:
        return (yield from self._during())

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self) -> Generator[None, Any, pytest.CollectReport]:
        """Fail a module whose kernels are launched when it is imported, likewise."""
        self._begin()
        report: pytest.CollectReport = yield
        self._attach(report)
        if self._record.fatal and self.fails and report.passed:
            report.outcome = "failed"
            report.longrepr = "\n".join(map(str, self._record.fatal))
            report.result = []
        return report

    def _begin(self) -> None:
        self._record.launches.clear()
        self._record.found.clear()

    # What is told of it

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, call: pytest.CallInfo[None]
    ) -> Generator[None, Any, pytest.TestReport]:
        from .record import NOT_ON_THE_CPU, is_not_on_the_cpu

        report: pytest.TestReport = yield
        record = self._record
        error = call.excinfo.value if call.excinfo and report.failed else None
        if error and record.found and not isinstance(error, MetalFindings):
            report.sections.append(("Metal findings", "\n".join(map(str, record.found))))
        if error and is_not_on_the_cpu(error):
            report.sections.append(("Metal simulator", NOT_ON_THE_CPU))
            report.metal_not_on_the_cpu = True  # pyright: ignore[reportAttributeAccessIssue]
        if call.when == "teardown":
            self._attach(report)
            report.user_properties += [
                ("metal_launches", sum(record.launches.values())),
                ("metal_kernels", " ".join(sorted(record.launches))),
                *(("metal_finding", str(found)) for found in record.found),
            ]
        return report

    def _attach(self, report: Any) -> None:
        """Put the record where pytest-xdist takes it to the process that tells."""
        if self._record.launches or self._record.found:
            setattr(report, _RECORD, self._record.to_json())

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    def _note(self, report: Any) -> None:
        test = self.tests.setdefault(report.nodeid, {})
        if hasattr(report, _RECORD):
            test["record"] = getattr(report, _RECORD)
        if getattr(report, "metal_not_on_the_cpu", False):
            test["not_on_the_cpu"] = True
        if report.failed:
            test["failed"] = True

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        from .annotations import github, write_sarif
        from .record import Record, distinct, table

        records = {
            name: Record.from_json(test["record"])
            for name, test in self.tests.items()
            if "record" in test
        }
        found = distinct(records.values())
        terminalreporter.section(f"Metal kernels, simulated as on {self.chip}")
        for line in table(records.values()) if records else ["no kernel was launched"]:
            terminalreporter.line(line)
        if terminalreporter.verbosity > 0:
            for name, record in records.items():
                kinds = ", ".join(sorted({f.kind for f in record.found}))
                kernels = ", ".join(f"{k} x{n}" for k, n in sorted(record.launches.items()))
                terminalreporter.line(f"{name}: {kernels}" + (f": {kinds}" if kinds else ""))
        for each in found:
            tests = [name for name, record in records.items() if each in record.found]
            more = f" and {len(tests) - 1} more" if len(tests) > 1 else ""
            terminalreporter.line(f"{each}" + (f" in {tests[0]}{more}" if tests else ""))
        self._tell_failures(terminalreporter, records)
        if os.environ.get("GITHUB_ACTIONS"):
            for each in found:
                terminalreporter.line(github(each))
        if self.sarif:
            write_sarif(self.sarif, found)

    def _tell_failures(self, terminalreporter: Any, records: dict[str, Record]) -> None:
        """Tell apart why tests failed: their kernels, MLX's CPU back-end, or something else."""
        failed = {name: test for name, test in self.tests.items() if test.get("failed")}
        kernels = [n for n in failed if n in records and records[n].fatal]
        absent = [n for n in failed if n not in kernels and failed[n].get("not_on_the_cpu")]
        others = len(failed) - len(kernels) - len(absent)
        if failed:
            terminalreporter.line(
                f"failed: {len(kernels)} by findings, {len(absent)} because MLX's CPU back-end "
                f"lacks an operation, {others} otherwise"
            )
