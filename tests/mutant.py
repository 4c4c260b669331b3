"""A broken copy of the package, which a law must catch.

A mutant is one expression replaced in one function, found by its structure (structural.py):
renamed variables and another layout do not break it. The package is imported anew with that
source; the one that is already imported stays as it is. A pattern that matches nothing, or
more than once, is an error: a mutant must not stop being applied unseen.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from pathlib import Path
from types import ModuleType

from cases import Code
from structural import prefixed, replaced

import fm_mlx

PACKAGE = "fm_mlx"


class _OneModule(MetaPathFinder, Loader):
    """Finds one module of the package, with other source."""

    def __init__(self, name: str, path: Path, source: str):
        self.name, self.path, self.source = name, path, source

    def find_spec(self, fullname, path=None, target=None):
        if fullname != self.name:
            return None
        return importlib.util.spec_from_file_location(fullname, self.path, loader=self)

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self.source, str(self.path), "exec"), vars(module))


def mutated(module: str, function: str, old: str | None, new: str) -> Code:
    """The package with `old` replaced by `new` in a function of ``fm_mlx.<module>``.

    Without `old`, the statements `new` are put before the function's first one.

    Raises:
        ValueError: if `old` does not match exactly once.
    """
    path = Path(fm_mlx.__path__[0], *module.split(".")).with_suffix(".py")
    source = path.read_text()
    if old is None:
        source = prefixed(source, function, new)
    else:
        source = replaced(source, function, old, new)
    ours = {n: m for n, m in sys.modules.items() if n.split(".")[0] == PACKAGE}
    for name in ours:
        del sys.modules[name]
    # the package without its __init__, which would register with mlx-lm a second time
    sys.modules[PACKAGE] = package = ModuleType(PACKAGE)
    package.__path__ = fm_mlx.__path__
    finder = _OneModule(f"{PACKAGE}.{module}", path, source)
    sys.meta_path.insert(0, finder)
    try:
        return Code.imported()
    finally:
        sys.meta_path.remove(finder)
        for name in [n for n in sys.modules if n.split(".")[0] == PACKAGE]:
            del sys.modules[name]
        sys.modules.update(ours)


@dataclass(frozen=True)
class Mutant:
    law: str
    name: str
    check: Callable[[Code], object]
    module: str
    function: str
    old: str | None
    new: str

    def __str__(self) -> str:
        return f"{self.law}: {self.name}"

    def found(self) -> str | None:
        """What the check says of the mutant, None if nothing."""
        try:
            self.check(mutated(self.module, self.function, self.old, self.new))
        except AssertionError as error:
            return (str(error) or "assertion failed").splitlines()[0]
        return None
