"""The imports of the package that import-linter cannot express."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

CONTROLLER = Path(__file__).parents[2] / "controller"


def imported(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield each imported top-level package or module, with the file that imports it."""
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in names:
                yield name.partition(".")[0], str(file.relative_to(CONTROLLER))


def test_the_domain_imports_only_the_standard_library_and_does_no_io() -> None:
    io = {"asyncio", "http", "select", "selectors", "ssl", "subprocess", "threading"}
    allowed = {"controller", *sys.stdlib_module_names} - io
    assert [found for found in imported(CONTROLLER / "domain") if found[0] not in allowed] == []


def test_the_package_imports_nothing_from_beside_it() -> None:
    beside = {"benchmarks", "deploy", "docs", "examples", "supply", "tests"}
    assert [found for found in imported(CONTROLLER) if found[0] in beside] == []
