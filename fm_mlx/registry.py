"""Makes mlx-lm find this package's model under ``factorization_memory``.

mlx-lm imports ``mlx_lm.models.<model_type>`` and has no entry points. A finder at the end
of ``sys.meta_path``, asked only for names that nothing else knows, answers for that one
module, so that the classes are the same objects however they are reached.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_NAME = "mlx_lm.models.factorization_memory"


class _Finder(MetaPathFinder, Loader):
    def find_spec(self, fullname, path=None, target=None) -> ModuleSpec | None:
        return importlib.util.spec_from_loader(fullname, self) if fullname == _NAME else None

    def exec_module(self, module: ModuleType) -> None:
        from fm_mlx.model import Model, ModelArgs

        module.__dict__.update(Model=Model, ModelArgs=ModelArgs)
        _name_to_transformers()


def _name_to_transformers() -> None:
    """Let transformers know the model type: it reads ``config.json`` to load a tokenizer, and
    prints a warning about a type it does not know."""
    from transformers import AutoConfig, PreTrainedConfig

    class Config(PreTrainedConfig):
        model_type = "factorization_memory"

    AutoConfig.register(Config.model_type, Config, exist_ok=True)


def register() -> None:
    """Register the model type with mlx-lm; calling it again changes nothing."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())


@contextmanager
def watched() -> Iterator[None]:
    """Let mlx-lm make models inside a ``with`` block that stop where they compute NaN."""
    from fm_mlx.finite import WatchedModel

    names = importlib.import_module(_NAME).__dict__
    plain, names["Model"] = names["Model"], WatchedModel
    try:
        yield
    finally:
        names["Model"] = plain
