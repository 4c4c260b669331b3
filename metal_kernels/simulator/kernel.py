"""Kernels with the interface of `mx.fast.metal_kernel`, executed by the simulator."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import mlx.core as mx

from .compilation import disk_cache
from .compilation.clang import CompileError, find_compiler
from .compilation.instrument import Mode
from .compilation.libraries import Library, kernel_library
from .execution import checks, schedules
from .execution.arrays import HostArray, as_mlx
from .execution.launch import Launch, hosts
from .kinds import COMPILE_ERROR, NOT_METAL
from .language.linter import fast_math_lint, lint
from .language.source import KernelSource, read_source
from .listeners import tell
from .mac import transforms
from .mac.mlx_calls import MlxKernel, Trace, definition_of, mlx_kernel, trace
from .report import Finding, Report
from .settings import current

# How many calls of a kernel with other shapes or dtypes it remembers.
_MOST_LAUNCHES = 1024


class SimulationError(RuntimeError):
    """A launch had a fatal finding; ``report`` tells everything about it."""

    def __init__(self, report: Report):
        super().__init__(f"\n{report}")
        self.report = report


class Kernel:
    """A kernel as `metal_kernel` gives it.

    Attributes:
        mlx: The kernel as MLX makes it, which runs where there is a GPU.
        definition: The arguments of `metal_kernel`.
        report: The report of the last launch; None before the first one.
        made_at: The file and the line that made the kernel.
        raises: Whether fatal findings raise; otherwise `listen` tells of them.
    """

    def __init__(
        self,
        mlx: MlxKernel,
        definition: dict[str, Any] | None,
        made_at: tuple[str, int] = ("", 0),
        raises: bool = True,
    ):
        self.mlx = mlx
        self.definition = definition or {}
        self.report: Report | None = None
        self.made_at = made_at
        self.raises = raises
        self._launches: dict[Any, Launch] = {}

    def __call__(
        self,
        *,
        inputs: Sequence[Any],
        output_shapes: Sequence[Sequence[int]],
        output_dtypes: Sequence[mx.Dtype],
        grid: tuple[int, int, int],
        threadgroup: tuple[int, int, int],
        template: Sequence[tuple[str, Any]] | None = None,
        init_value: float | None = None,
        verbose: bool = False,
        stream: Any = None,
    ) -> list[mx.array]:
        """Execute the kernel now; the arguments are those of MLX's kernels.

        Raises:
            SimulationError: if there is a finding of a fatal kind.
            CompileError: if the source does not compile.
            SimulatorUnavailable: if there is no compiler here.
            ValueError: for arguments that MLX refuses, and where MLX has no rule for a kernel
                inside of `mx.vmap` or a gradient.
        """
        arrays = [as_mlx(x) for x in inputs]
        call = {
            "inputs": arrays,
            "output_shapes": output_shapes,
            "output_dtypes": output_dtypes,
            "grid": grid,
            "threadgroup": threadgroup,
            **({"template": template} if template else {}),
            **({} if init_value is None else {"init_value": init_value}),
        }
        if transforms.are_placeholders(arrays):
            return self._traced(call)
        if not self.definition:
            self.definition.update(definition_of(trace(self.mlx, call), arrays))
        numbers = hosts(self.definition, arrays)
        try:
            launch = self._launch(call, numbers)
            outputs, report = self._run(launch, call, numbers)
        except CompileError as error:
            if verbose:
                self._print(trace(self.mlx, call))
            self._report(Report(self.definition["name"], [_compile_finding(error)], {}))
            raise
        if verbose:
            self._print(launch.trace)
        for note in report.logged:
            print(f"{self.definition['name']} {note}", file=sys.stderr)
        self._report(report)
        if self.raises and report.kinds & current().fatal:
            raise SimulationError(report)
        return transforms.without_rules(outputs, arrays)

    def _traced(self, call: dict[str, Any]) -> list[mx.array]:
        """The kernel in a function that MLX traces, so that there are no values to run it on."""
        try:
            return self.mlx(**call)  # an export records it; a Mac compiles it
        except RuntimeError:
            if transforms.compiles():
                raise ValueError(
                    f"kernel {self.definition.get('name')!r} is called inside of mx.compile or "
                    f"mx.vmap: custom kernels have no vmap, and a simulated one is compiled "
                    f"inside of simulator.redirected() only"
                ) from None
            raise transforms.missing("vmap") from None

    def _launch(self, call: dict[str, Any], inputs: list[HostArray]) -> Launch:
        """What this call has in common with others of the same shapes, dtypes and layouts."""
        layout = [
            (x.shape, x.dtype, host.numbers.strides)
            for x, host in zip(call["inputs"], inputs, strict=False)
        ]
        rest = {name: value for name, value in call.items() if name != "inputs"}
        key = (repr((layout, rest)), current().mode, find_compiler(), disk_cache.folder())
        launch = self._launches.get(key)
        if launch is None:
            mlx_call = trace(self.mlx, call)
            name, shapes = self.definition["name"], call["output_shapes"]
            checks.check_sizes(name, call["grid"], call["threadgroup"], shapes)
            source, library = _built(mlx_call, name, *key[1:])
            outputs = zip(
                self.definition["output_names"],
                map(tuple, shapes),
                call["output_dtypes"],
                strict=True,
            )
            launch = Launch(mlx_call, source, library, self.definition, list(outputs))
            if len(self._launches) >= _MOST_LAUNCHES:
                self._launches.clear()
            self._launches[key] = launch
        return launch

    def _run(
        self, launch: Launch, call: dict[str, Any], inputs: list[HostArray]
    ) -> tuple[list[mx.array], Report]:
        """Execute the kernel in as many orders as is asked for."""
        chosen = current()
        size = (call["grid"], call["threadgroup"])

        def run(options) -> tuple[list[mx.array], Report]:
            return launch.run(inputs, *size, call.get("init_value"), options)

        outputs, report = run(chosen)
        for options in schedules.further(chosen):
            others, other = run(options)
            schedules.merge(report, other)
            names, compared = self.definition["output_names"], (chosen.order, options.order)
            report.findings.extend(schedules.differences(names, outputs, others, compared))
        report.findings[:0] = [
            *self._lint(launch),
            *checks.too_large(launch.source),
            *checks.strides_ignored(self.definition, inputs),
        ]
        checks.add_advice(report, *size)
        return outputs, report

    def _lint(self, launch: Launch) -> list[Finding]:
        texts = self.definition["source"], self.definition["header"]
        rejected = launch.library.rejected
        return [
            *lint(*texts),
            *(fast_math_lint(*texts) if launch.trace.fast_math else ()),
            *(Finding(NOT_METAL, message, file, line) for file, line, message in rejected),
        ]

    def _print(self, traced: Trace) -> None:
        """What MLX prints for ``verbose=True``."""
        print(f"Generated source code for `{self.definition['name']}`:\n```\n{traced.text}\n```")

    def _report(self, report: Report) -> None:
        self.report = report
        tell(self, report)


@functools.cache
def _built(mlx_call: Trace, name: str, mode: Mode, *_: object) -> tuple[KernelSource, Library]:
    """A source and its library. What else the library depends on is given to tell them apart."""
    source = read_source(mlx_call.text)
    # the body begins with the line break that MLX puts before the user's source
    texts = {"header": source.header, "source": source.body.removeprefix("\n")}
    fast_math = mlx_call.fast_math
    return source, kernel_library(source, name, fast_math=fast_math, mode=mode, texts=texts)


def _compile_finding(error: CompileError) -> Finding:
    """The first error of the compiler, with its place."""
    lines = str(error).splitlines()
    for line in lines:
        file, *place = line.split(":", 4)
        if file in ("source", "header") and len(place) == 4 and place[0].isdigit():
            return Finding(COMPILE_ERROR, place[3].strip(), file, int(place[0]), int(place[1]))
    return Finding(COMPILE_ERROR, " ".join(lines[:2]))


def metal_kernel(
    name: str,
    input_names: Iterable[str],
    output_names: Iterable[str],
    source: str,
    header: str = "",
    ensure_row_contiguous: bool = True,
    atomic_outputs: bool = False,
    compile_options: dict[str, Any] | None = None,
) -> Kernel:
    """`mx.fast.metal_kernel` on the CPU: same arguments, same way to call what it gives.

    Raises:
        ValueError: what MLX raises for arguments that it refuses.
        TypeError: likewise.
    """
    definition = {
        "name": name,
        "input_names": list(input_names),
        "output_names": list(output_names),
        "source": source,
        "header": header,
        "ensure_row_contiguous": ensure_row_contiguous,
        "atomic_outputs": atomic_outputs,
        "compile_options": compile_options,
    }
    return Kernel(mlx_kernel(definition), definition, caller())


def caller() -> tuple[str, int]:
    """The file and the line outside of this package that called into it."""
    package = __name__.rpartition(".")[0]
    frame = sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").startswith(package):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno
