"""Each test asserts something, or its docstring says where the check is made."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
# Functions that raise an error if a condition is not met. Those of Playwright begin with `to_` and `not_to_`.
CHECKS = ("assert_", "check_", "wait_for", "wait_until", "to_", "not_to_")


def is_check(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return isinstance(node, ast.Assert)
    name = ast.unparse(node.func).rpartition(".")[2]
    return name in ("raises", "fail") or name.startswith(CHECKS)


def without_check(source: str) -> list[str]:
    """Return the names of the tests in a file that neither check anything nor have a docstring."""
    return [
        node.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not any(is_check(each) for each in ast.walk(node))
        and not ast.get_docstring(node)
    ]


@pytest.mark.parametrize("path", sorted(TESTS.rglob("test_*.py")), ids=lambda path: path.stem)
def test_each_test_checks_something_or_says_where(path: Path) -> None:
    assert without_check(path.read_text()) == []


def test_a_test_without_checks_is_found() -> None:
    reason = 'async def test_b():\n  "The reason."\n  run()\n'
    source = f"def test_a(): run()\n{reason}def test_c(): assert run()\ndef test_d(): check_it()\n"
    assert without_check(source) == ["test_a"]
