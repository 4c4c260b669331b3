"""Launches that cannot go on: how they end, where it is said to be, what is left behind."""

from __future__ import annotations

import signal
import threading

import mlx.core as mx
import pytest
from launches import INDEX, fails, launch

from fm_mlx.metal_kernels import simulator

ENDLESS = INDEX + "volatile int a = 0; while (a == 0) { } o[i] = 0;"


def found(report, kind):
    return next(f for f in report.findings if f.kind == kind)


def test_time_limit_outside_the_main_thread():
    errors = []

    def run():
        with mx.stream(mx.new_stream(mx.cpu)):
            x = mx.zeros(64)
            try:
                launch(ENDLESS, inputs={"x": x}, timeout=0.3)
            except simulator.SimulationError as error:
                errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    assert [error.report.kinds for error in errors] == [{"timeout"}]


@pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(), reason="signals need it"
)
def test_alarms_of_the_user_are_left_alone():
    rang = threading.Event()
    before = signal.signal(signal.SIGALRM, lambda *_: rang.set())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        launch(INDEX + "o[i] = x[i];")
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0 or rang.is_set()
        assert rang.wait(10)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_loop_that_waits_for_memory():
    """Not one that the compiler may take for finite and leave out."""
    fails("timeout", INDEX + "while (x[0] == 0) { } o[i] = x[i];", timeout=0.3)


def test_time_limit_tells_what_was_last_seen():
    report = fails("timeout", INDEX + "\nwhile (x[i] >= 0)\no[i] = x[i];", timeout=0.3)
    assert found(report, "timeout").line in (2, 3)


def test_stack_overflow_says_so():
    source = INDEX + "volatile float a[100000]; for (int j = 0; j < 100000; ++j) a[j] = x[0]; "
    report = fails("memory-fault", source + "o[i] = a[i];")
    assert "stack" in found(report, "memory-fault").message


def test_null_pointer():
    report = fails("wild-pointer", INDEX + "o[i] = ((device float*)(ulong)x[0])[i];")
    assert "0x0" in found(report, "wild-pointer").message


def test_far_behind_a_small_input():
    """MLX puts inputs of less than 8 elements into the constant address space."""
    fails("out-of-bounds", INDEX + "o[i] = x[i * 100000 + 4];", inputs={"x": mx.zeros(3)})


def test_constant_tables_are_known():
    header = "constant float table[4] = {1, 2, 3, 4};\n"
    o, report = launch(INDEX + "o[i] = table[i % 4] * x[1];", make={"header": header})
    assert o[:4].tolist() == [1, 2, 3, 4]
    assert not report.findings
    fails("out-of-bounds", INDEX + "o[i] = table[i * 1000];", make={"header": header})
