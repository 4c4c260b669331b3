"""The structure that CONTRIBUTING.md describes: floors, sizes of files, and how far things go."""

from __future__ import annotations

import ast
import os
import re
import sys
from pathlib import Path

import mlx.core as mx
import pytest

import fm_mlx
from fm_mlx.commands import cli
from fm_mlx.lora import Options, loop, tune
from fm_mlx.metal_kernels import launch, simulator

ROOT = Path(__file__).parents[1]

# From the lowest floor up; a module belongs to the longest prefix that fits.
FLOORS = [
    ["support", "metal_kernels.simulator", "reference"],
    ["metal_kernels"],
    ["ops"],
    ["layer", "mlp", "cache", "initial_memory", "precision"],
    ["model", "token_step", "weights", "registry"],
    ["loading", "text", "chat", "finite"],
    ["prefill", "memory"],
    ["generation", "batch", "speculative", "drafting"],
    ["lora", "convert", "perf", "serving", "evaluation", "inspection"],
    ["commands"],
]
FLOOR_OF = {prefix: floor for floor, prefixes in enumerate(FLOORS) for prefix in prefixes}

# What is made of names on higher floors when it is first used, and not when it is imported.
LAZY = {("fm_mlx", "*"), ("registry", "model"), ("registry", "finite"), ("__main__", "commands")}


def modules() -> dict[str, Path]:
    """Every module of the package by its name without ``fm_mlx.``."""
    found = {}
    for folder in ("fm_mlx", "metal_kernels", "convert"):
        name = [] if folder == "fm_mlx" else [folder]
        for path in sorted((ROOT / folder).rglob("*.py")):
            inside = path.relative_to(ROOT / folder)
            if (ROOT / folder / inside.parts[0]).is_symlink():
                continue  # the link to another of these folders
            parts = [part for part in inside.with_suffix("").parts if part != "__init__"]
            found[".".join([*name, *parts]) or "fm_mlx"] = path
    return found


MODULES = modules()


def imported(name: str, path: Path) -> set[str]:
    """The modules of the package that a module imports, at its top or inside functions."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join(filter(None, ["fm_mlx", *above, base]))
            if base == "fm_mlx" or base.startswith("fm_mlx."):
                base = base.removeprefix("fm_mlx").lstrip(".")
                for alias in node.names:
                    inside = ".".join(filter(None, [base, alias.name]))
                    found.add(inside if inside in MODULES else base)
    return found - {"", name}


def floor(name: str) -> int | None:
    while name:
        if name in FLOOR_OF:
            return FLOOR_OF[name]
        name = name.rpartition(".")[0]
    return None


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"fm_mlx", "__main__"}))
def test_imports_point_downwards(name):
    own = floor(name)
    assert own is not None, f"{name} stands on no floor: see CONTRIBUTING.md"
    for other in imported(name, MODULES[name]):
        if (name, other) not in LAZY:
            assert floor(other) <= own, f"{name} imports {other}"


def test_no_circles():
    graph = {name: imported(name, path) for name, path in MODULES.items()}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"a circle: {' -> '.join([*path, name])}"
        if name not in done:
            for other in graph.get(name, ()):
                if (name, other) not in LAZY:
                    visit(other, (*path, name))
            done.add(name)

    for name in graph:
        if name != "fm_mlx":
            visit(name, ())


def test_the_simulator_stands_alone():
    folder = Path(simulator.__file__).parent
    for path in folder.rglob("*.py"):
        assert "fm_mlx" not in re.sub(
            r'"""[\s\S]*?"""|#.*|FM_MLX|"fm-mlx"', "", path.read_text()
        ), path


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_file_is_about_one_thing(name):
    assert len(MODULES[name].read_text().splitlines()) <= 400


def test_every_command_is_a_module_with_the_same_two_functions():
    for command in cli.COMMANDS:
        text = MODULES[f"commands.{command}"].read_text()
        names = {node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}
        assert {"add_arguments", "run"} <= names, command


def test_contributing_names_files_that_exist():
    table = (ROOT / "CONTRIBUTING.md").read_text().split("## Ten changes")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 10
    for row in rows:
        files = re.findall(r"`([\w/.]+\.(?:py|metal|h))`", row.split("|")[2])
        files = [file for file in files if "NAME" not in file]
        assert len(files) <= 5, row
        for file in files:
            assert (ROOT / file).exists() or (ROOT / "fm_mlx" / file).exists(), file


class Passed:
    """The files of ours that Python code is run of inside a ``with`` block."""

    def __enter__(self) -> set[str]:
        self.files: set[str] = set()
        places = (f"{ROOT}{os.sep}fm_mlx{os.sep}", f"{ROOT}{os.sep}metal_kernels{os.sep}")

        def called(frame, event, argument):
            path = os.path.realpath(frame.f_code.co_filename)
            if event == "call" and path.startswith(places) and "simulator" not in path:
                self.files.add(path.removeprefix(f"{ROOT}{os.sep}"))

        sys.setprofile(called)
        return self.files

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)


@pytest.mark.parametrize(("backend", "most"), [("ops", 8), ("simulator", 11)])
def test_files_that_a_decoded_token_passes(loaded, backend, most):
    """With the kernels' own modules on a GPU, and a memory on two buffers."""
    if backend == "simulator" and (reason := simulator.unavailable()):
        pytest.skip(reason)
    mx.random.seed(0)
    args = fm_mlx.ModelArgs(
        hidden_size=64, num_hidden_layers=2, intermediate_size=64, vocab_size=512,
        num_memory_states=1024, num_active_states=8,
    )  # fmt: skip
    with launch.using(backend):
        responses = fm_mlx.stream_generate(fm_mlx.Model(args), loaded[1], "the river", 9)
        for _ in range(4):
            next(responses)
        with Passed() as files:
            next(responses)
    assert len(files) <= most, sorted(files)


def test_files_that_a_training_batch_passes(checkpoint, tmp_path, monkeypatch):
    """Once its step is compiled."""
    text = tmp_path / "text.txt"
    text.write_text("the river writes a long row of stone and light\n" * 60)
    found: list[set[str]] = []
    left = loop.Loop._left

    def watched(self):
        for number, batch in enumerate(left(self)):
            if number == 4:
                passed = Passed()
                found.append(passed.__enter__())
            yield batch
            sys.setprofile(None)

    monkeypatch.setattr(loop.Loop, "_left", watched)
    options = Options(
        model=str(checkpoint), data=str(text), iters=6, batch_size=2, max_seq_length=32,
        adapter_path=str(tmp_path / "adapters"), batching="bucket",
    )  # fmt: skip
    tune(options)
    assert 2 <= len(found[0]) <= 8, sorted(found[0])
