"""`fm-mlx doctor`, through the simulator: right kernels, wrong ones, and what it leaves behind."""

from __future__ import annotations

import json
from functools import partial

import mlx.core as mx
import pytest
from kernel_mutants import MUTANTS

from fm_mlx import cli, doctor, ops, update_cost
from fm_mlx.metal_kernels import kernels, launch, verdicts
from fm_mlx.metal_kernels.sources import sources

WRONG = next(m for m in MUTANTS if m.kernel == "sparse_update" and "first SIMD-group" in m.name)


@pytest.fixture(autouse=True)
def apart(monkeypatch, tmp_path):
    """Verdicts of their own, and few rounds of what is timed."""
    monkeypatch.setattr(verdicts, "folder", lambda: tmp_path)
    verdicts._noted.cache_clear()
    quick = partial(update_cost.update_cost, rounds=1)
    monkeypatch.setattr(doctor, "update_cost", quick)
    yield
    verdicts._noted.cache_clear()


def examined(capsys, *options: str) -> tuple[int, str]:
    with launch.using(launch.Backend.OPS):
        status = cli.main(["doctor", *options])
    return status, capsys.readouterr().out


def rows(report: str, name: str) -> list[str]:
    return [line for line in report.splitlines() if line.startswith(f"{name} ") and "  " in line]


def test_without_a_gpu(capsys):
    """Says what it cannot check, offers the simulator, and times the update."""
    status, report = examined(capsys)
    assert status == 0
    assert "not checked" in report
    assert "fm-mlx doctor --simulator" in report
    assert rows(report, "64") and rows(report, "4,096")
    assert not verdicts.path().exists()


def test_right_kernels(capsys):
    status, report = examined(capsys, "--simulator")
    assert status == 0, report
    for name in sources():
        assert rows(report, name), name
        assert all(row.endswith("ok") for row in rows(report, name)), report
    assert "Every kernel agrees" in report
    assert verdicts.switched_off("simulator") == set()


def test_every_file_has_checks():
    assert {check.file for check in doctor.checks()} == set(sources())
    assert set(sources()) == {kernel.file for kernel in kernels.ALL.values()}


@pytest.fixture
def only(monkeypatch):
    """Check one file's kernels only, as the others take their time."""

    def choose(file: str) -> None:
        every = doctor.checks
        monkeypatch.setattr(doctor, "checks", lambda: (c for c in every() if c.file == file))

    return choose


def test_a_wrong_kernel_is_switched_off(capsys, only):
    """Reported, replaced by its twin from then on, status 1; and given back once it is right."""
    only("sparse_update")
    with WRONG.applied():
        status, report = examined(capsys, "--simulator")
    assert status == 1
    assert "WRONG" in report
    assert "sparse_update is switched off" in report
    assert str(verdicts.path()) in report

    inputs = (
        mx.array([[[0, 2]]], mx.int32),
        *[mx.ones((1, 1, 2))] * 2,
        mx.ones((1, 1, 4)),
        mx.ones((1, 5, 4)),
    )
    before = kernels.SPARSE_UPDATE.launches
    with launch.using("simulator"):
        rows_by_twin, _ = ops.sparse_update(*inputs)
        mx.eval(rows_by_twin)
        assert kernels.SPARSE_UPDATE.launches == before
        assert launch.runs("route")
    with launch.using("ops"):
        assert mx.array_equal(rows_by_twin, ops.sparse_update(*inputs)[0])

    assert examined(capsys, "--simulator")[0] == 0
    with launch.using("simulator"):
        mx.eval(ops.sparse_update(*inputs))
    assert kernels.SPARSE_UPDATE.launches > before


def test_a_kernel_that_does_not_compile(capsys, only):
    only("route")
    kernel = kernels.ROUTE_SPARSE
    text, kernel.header = kernel.header, "no Metal at all"
    vars(kernel).pop("simulated", None)
    try:
        status, report = examined(capsys, "--simulator")
    finally:
        kernel.header = text
        vars(kernel).pop("simulated", None)
    assert status == 1
    assert "FAILED" in report
    assert verdicts.switched_off("simulator") == {"route"}


def test_a_kernel_that_is_not_launched(capsys, only, monkeypatch):
    """A twin that runs in its place would agree with itself."""
    only("state_pass")
    monkeypatch.setattr("fm_mlx.ops.state_pass.runs", lambda _: False)
    status, report = examined(capsys, "--simulator")
    assert status == 1
    assert "was not launched" in report


def test_nothing_is_trusted_after_a_crash(monkeypatch, capsys):
    """Should a kernel take the process down, all are off the next time."""

    def crash(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "examine", crash)
    assert examined(capsys, "--simulator")[0] == 130
    assert verdicts.switched_off("simulator") == set(sources())


@pytest.mark.parametrize("changed", ["MLX", "kernel", "backend"])
def test_a_verdict_is_about_one_text_and_one_mlx(monkeypatch, changed):
    verdicts.record("simulator", ["route"])
    assert verdicts.switched_off("simulator") == {"route"}
    verdicts._noted.cache_clear()
    if changed == "MLX":
        monkeypatch.setattr(mx, "__version__", "99")
    if changed == "kernel":
        monkeypatch.setattr(verdicts, "metal_source", lambda _: "another text")
    assert verdicts.switched_off("metal" if changed == "backend" else "simulator") == set()


@pytest.mark.parametrize("text", ["[", "[]", '{"simulator": 3}'])
def test_nonsense_in_the_file(capsys, text):
    verdicts.path().write_text(text)
    with launch.using("simulator"), pytest.raises(ValueError, match="remove it"):
        launch.runs("route")


def test_names_in_the_file_open_nothing():
    verdicts.path().write_text(json.dumps({"simulator": {"../../etc/passwd": "x"}}))
    assert verdicts.switched_off("simulator") == set()
