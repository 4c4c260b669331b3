"""Search and replace in Python source by structure: names of variables do not matter.

A pattern is an expression. It matches an expression of the same shape in one function, in
which each variable of the pattern stands for some expression, the same one everywhere; what is
called, attributes, keywords and constants must be the same. So ``mx.tril(gram, -1) @ weight``
finds ``mx.tril(g, -1) @ (theta / decay)``, however either is laid out.
"""

from __future__ import annotations

import ast
import copy
from typing import Any

# Names that stand for themselves.
_FIXED = {"mx", "nn", "math", "self", "True", "False", "None"}


def replaced(source: str, function: str, old: str, new: str) -> str:
    """The source with the expression that `old` matches in a function replaced by `new`.

    Args:
        source: of a module.
        function: its name, after that of its class and a dot if it has one.
        old: a pattern.
        new: an expression; variables of `old` stand for what they matched.

    Raises:
        ValueError: if there is no such function, or not exactly one match in it.
    """
    tree = ast.parse(source)
    body = _function(tree, function)
    pattern, replacement = (ast.parse(text.strip(), mode="eval").body for text in (old, new))
    found = []
    for node in ast.walk(body):
        bound: dict[str, ast.expr] = {}
        if isinstance(node, ast.expr) and _matches(pattern, node, bound):
            found.append((node, bound))
    if len(found) != 1:
        raise ValueError(f"{len(found)} matches in {function}, must be one: {old!r}")
    target, bound = found[0]
    _Put(target, _Fill(bound).visit(copy.deepcopy(replacement))).visit(tree)
    return ast.unparse(ast.fix_missing_locations(tree))


def prefixed(source: str, function: str, statements: str) -> str:
    """The source with statements put at the beginning of a function.

    Raises:
        ValueError: if there is no such function.
    """
    tree = ast.parse(source)
    body = _function(tree, function)
    body.body[:0] = ast.parse(statements).body
    return ast.unparse(ast.fix_missing_locations(tree))


def _function(tree: ast.Module, name: str) -> ast.FunctionDef:
    where: Any = tree
    for part in name.split("."):
        inside = [node for node in ast.walk(where) if getattr(node, "name", None) == part]
        if len(inside) != 1:
            raise ValueError(f"{len(inside)} definitions of {part}, must be one: {name!r}")
        where = inside[0]
    return where


def _matches(pattern: Any, node: Any, bound: dict[str, ast.expr]) -> bool:
    if isinstance(pattern, ast.Name) and pattern.id not in _FIXED:
        if not isinstance(node, ast.expr):
            return False
        same = bound.setdefault(pattern.id, node)
        return ast.dump(same) == ast.dump(node)
    if isinstance(pattern, ast.Call) and isinstance(pattern.func, ast.Name):
        # a function is known by its name
        called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        return (
            called
            and node.func.id == pattern.func.id
            and _matches(pattern.args, node.args, bound)
            and _matches(pattern.keywords, node.keywords, bound)
        )
    if isinstance(pattern, list):
        return (
            isinstance(node, list)
            and len(pattern) == len(node)
            and all(_matches(a, b, bound) for a, b in zip(pattern, node, strict=True))
        )
    if not isinstance(pattern, ast.AST):
        return pattern == node
    return type(pattern) is type(node) and all(
        _matches(value, getattr(node, name, None), bound)
        for name, value in ast.iter_fields(pattern)
        if name != "ctx"
    )


class _Fill(ast.NodeTransformer):
    """Puts what was matched in the place of variables."""

    def __init__(self, bound: dict[str, ast.expr]):
        self._bound = bound

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return copy.deepcopy(self._bound.get(node.id, node))


class _Put(ast.NodeTransformer):
    """Puts one node in the place of another."""

    def __init__(self, old: ast.AST, new: ast.AST):
        self._old, self._new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return self._new if node is self._old else self.generic_visit(node)
