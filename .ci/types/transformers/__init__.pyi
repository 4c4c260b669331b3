"""Stands in for transformers' own types, of which pyright takes half a minute to read."""

from typing import Any

def __getattr__(name: str) -> Any: ...
