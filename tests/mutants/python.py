"""Mutates Python modules, with the operators of cosmic-ray and by dropping statements."""

import ast
import re
from collections.abc import Iterator
from functools import partial
from pathlib import PurePosixPath
from typing import Final

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

from tests.mutants.mutant import Mutant

# VariableReplacer and VariableInserter need names of variables. `is` instead of `>` or `==` is an unlikely mistake.
_LEFT_OUT: Final = re.compile(r"Variable(Replacer|Inserter)|ReplaceComparisonOperator_(?!Is).*_Is(Not)?$")


def mutants(path: PurePosixPath, text: str) -> Iterator[Mutant]:
    """Return all mutants of a module, except those of annotations."""
    tree = ast.parse(text)
    annotations = list(_annotations(tree))
    nodes = list(ast_nodes(get_ast(text)))
    for name in operator_names():
        kind = name.rpartition("/")[2]
        if _LEFT_OUT.match(kind):
            continue
        positions = [position for node in nodes for position in get_operator(name)().mutation_positions(node)]
        for occurrence, (start, _) in enumerate(positions):
            line, column = start
            if not any(first <= start < last for first, last in annotations):
                yield Mutant(path, line, column + 1, kind, partial(_apply, name, occurrence))
    for statement in _droppable(tree):
        kind = f"{type(statement).__name__} dropped"
        yield Mutant(path, statement.lineno, statement.col_offset + 1, kind, partial(_drop, statement))


def _apply(name: str, occurrence: int, text: str) -> str:
    mutated: str | None = mutate_code(text, get_operator(name)(), occurrence)
    if mutated is None:
        raise ValueError(f"{name} has no occurrence {occurrence}.")
    return mutated


def _annotations(tree: ast.AST) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Return where annotations begin and end. A mutated one fails when the module is imported, or has no effect."""
    for node in ast.walk(tree):
        found = getattr(node, "annotation", None) or getattr(node, "returns", None)
        if isinstance(found, ast.expr) and found.end_lineno is not None and found.end_col_offset is not None:
            yield (found.lineno, found.col_offset), (found.end_lineno, found.end_col_offset)


def _droppable(tree: ast.AST) -> Iterator[ast.stmt]:
    """Return the statements in functions to drop: calls, changes of existing values, and nested raises and returns."""
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(function):
                is_call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call | ast.Await)
                is_write = isinstance(node, ast.AugAssign | ast.Delete) or (
                    isinstance(node, ast.Assign) and not isinstance(node.targets[0], ast.Name | ast.Tuple)
                )
                is_exit = isinstance(node, ast.Raise | ast.Return) and node not in function.body
                if isinstance(node, ast.stmt) and (is_call or is_write or is_exit):
                    yield node


def _drop(statement: ast.stmt, text: str) -> str:
    lines = text.splitlines(keepends=True)
    assert statement.end_lineno is not None
    first, last = statement.lineno - 1, statement.end_lineno - 1
    head = lines[first].encode()[: statement.col_offset].decode()
    tail = lines[last].encode()[statement.end_col_offset :].decode()
    return "".join([*lines[:first], f"{head}pass{tail}", *lines[last + 1 :]])
