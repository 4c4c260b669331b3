"""`fm-mlx doctor`, through the simulator: right kernels, wrong ones, and what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import doctor_children
import mlx.core as mx
import pytest
from signals import hear_interrupts

from fm_mlx import ops
from fm_mlx.commands import cli
from fm_mlx.commands import doctor as command
from fm_mlx.metal_kernels import launch, verdicts
from fm_mlx.metal_kernels.catalogue import KERNELS
from fm_mlx.metal_kernels.sources import sources
from fm_mlx.model import ModelArgs
from fm_mlx.perf import doctor
from fm_mlx.perf.beside_bounds import measure
from fm_mlx.perf.update_cost import update_cost


@pytest.fixture(autouse=True)
def apart(monkeypatch, tmp_path):
    """Verdicts of their own that count, and few rounds of what is timed."""
    monkeypatch.setattr(verdicts, "path", lambda: tmp_path / "doctor.json")
    monkeypatch.setattr(command, "update_cost", partial(update_cost, rounds=1))
    monkeypatch.setattr(command, "beside_bounds", partial(measure, rounds=1))
    monkeypatch.setattr(command, "_ON_THE_CPU", (ModelArgs(32, 1, 64, 50), mx.float32))
    token = verdicts._disregarded.set(False)
    verdicts.forget()
    yield
    verdicts.forget()
    verdicts._disregarded.reset(token)


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
    assert [len(rows(report, name)) for name in ("decode", "prefill", "training")] == [1, 1, 1]
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
    assert set(sources()) == {kernel.file for kernel in KERNELS.values()}


@pytest.fixture
def child(monkeypatch):
    """The process that checks kernels does something else, to one Metal file only."""

    def choose(what, file: str) -> None:
        monkeypatch.setattr(doctor, "checks", lambda: iter(doctor_children.checks_of(file)))
        monkeypatch.setattr(doctor, "examine_from", partial(what, file))

    return choose


UPDATE = (
    ops.Write(mx.array([[0, 2]], mx.int32), mx.ones((1, 2, 4))),
    mx.zeros((1, 1, 7)),
    mx.ones((1, 1, 4)),
    mx.ones((1, 5, 4)),
)


def test_a_wrong_kernel_is_switched_off(capsys, child):
    """Reported, replaced by its reference op from then on, status 1; given back once right."""
    child(doctor_children.wrong, "sparse_update")
    status, report = examined(capsys, "--simulator")
    assert status == 1
    assert "WRONG" in report
    assert "sparse_update is switched off" in report
    assert str(verdicts.path()) in report

    before = KERNELS["sparse_update"].launches
    with launch.using("simulator"):
        by_reference, _ = ops.sparse_update(*UPDATE, num_active=2)
        mx.eval(by_reference)
        assert KERNELS["sparse_update"].launches == before
        assert launch.runs("route")
    with launch.using("ops"):
        assert mx.array_equal(by_reference.rows, ops.sparse_update(*UPDATE, num_active=2)[0].rows)

    child(doctor_children.right, "sparse_update")
    assert examined(capsys, "--simulator")[0] == 0
    with launch.using("simulator"):
        mx.eval(ops.sparse_update(*UPDATE, num_active=2))
    assert KERNELS["sparse_update"].launches > before


def test_a_kernel_that_is_switched_off_is_said_once(capsys):
    """In every process that would have run it, on standard error."""
    verdicts.record("simulator", ["sparse_update"])
    capsys.readouterr()
    with launch.using("simulator"):
        for _ in range(3):
            mx.eval(ops.sparse_update(*UPDATE, num_active=2))
        mx.eval(ops.route_dense(mx.zeros((1, 5)), 2))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "the kernel sparse_update is switched off on this machine" in err
    assert str(verdicts.path()) in err


def test_a_kernel_that_does_not_compile(capsys, child):
    child(doctor_children.not_compiling, "route")
    status, report = examined(capsys, "--simulator")
    assert status == 1
    assert "FAILED" in report
    assert verdicts.switched_off("simulator") == {"route"}


def test_a_kernel_that_is_not_launched(capsys, child):
    """A reference op that runs in its place would agree with itself."""
    child(doctor_children.not_launched, "state_pass")
    status, report = examined(capsys, "--simulator")
    assert status == 1
    assert "was not launched" in report


def test_a_kernel_that_takes_the_process_down(capsys, child):
    """It is reported and switched off; the checks after it are made all the same."""
    child(doctor_children.crashing, "sparse_update")
    status, report = examined(capsys, "--simulator")
    assert status == 1
    verdict_of = [row.split("  ")[-1] for row in rows(report, "sparse_update")]
    failed = "FAILED: SIGABRT ended the process that launched it"
    assert verdict_of == ["ok", failed, "ok", "ok", "ok"]
    assert verdicts.switched_off("simulator") == {"sparse_update"}


def test_a_check_that_is_killed_changes_no_verdict(monkeypatch, capsys):
    verdicts.record("simulator", ["route"])
    before = verdicts.path().read_bytes()
    monkeypatch.setattr(doctor, "examine_from", doctor_children.killed)
    with launch.using(launch.Backend.OPS):
        assert cli.main(["doctor", "--simulator"]) == 2
    assert "the process that checks the kernels was ended" in capsys.readouterr().err
    assert verdicts.path().read_bytes() == before


@pytest.mark.parametrize("noted", [[], ["route"]])
def test_an_interrupt_changes_no_verdict(noted, tmp_path):
    """Ctrl-C reaches the doctor and the process that it has started."""
    verdicts.record("simulator", noted)
    before = verdicts.path().read_bytes()
    code = (
        "import sys, doctor_children\n"
        "from fm_mlx.perf import doctor\n"
        "from fm_mlx.commands.cli import main\n"
        "if __name__ == '__main__':\n"
        "    doctor.examine_from = doctor_children.waiting\n"
        "    sys.exit(main(['doctor', '--simulator']))\n"
    )
    script = tmp_path / "doctor.py"
    script.write_text(code)
    environment = os.environ | {
        "FM_MLX_CACHE": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(sys.path),
        "PYTHONUNBUFFERED": "1",
    }
    process = subprocess.Popen(
        [sys.executable, script], env=environment, start_new_session=True,
        preexec_fn=hear_interrupts,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline().startswith("fm-mlx")
    deadline = time.monotonic() + 60
    while not _children(process.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    assert verdicts.path().read_bytes() == before


def _children(pid: int) -> str:
    path = f"/proc/{pid}/task/{pid}/children"
    if not os.path.exists(path):
        pytest.skip("/proc does not tell of children here")
    with open(path) as children:
        return children.read()


@pytest.mark.parametrize("changed", ["MLX", "kernel", "backend"])
def test_a_verdict_is_about_one_text_and_one_mlx(monkeypatch, changed):
    verdicts.record("simulator", ["route"])
    assert verdicts.switched_off("simulator") == {"route"}
    verdicts.forget()
    if changed == "MLX":
        monkeypatch.setattr(verdicts, "mlx_version", lambda: "99")
    if changed == "kernel":
        monkeypatch.setattr(verdicts, "metal_source", lambda _: "another text")
    assert verdicts.switched_off("metal" if changed == "backend" else "simulator") == set()


@pytest.mark.parametrize("text", ["[", "[]", '{"simulator": 3}'])
def test_nonsense_in_the_file(text):
    verdicts.path().write_text(text)
    with launch.using("simulator"), pytest.raises(ValueError, match="remove it"):
        launch.runs("route")


def test_names_in_the_file_open_nothing():
    verdicts.path().write_text(json.dumps({"simulator": {"../../etc/passwd": "x"}}))
    assert verdicts.switched_off("simulator") == set()
