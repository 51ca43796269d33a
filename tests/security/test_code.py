"""The code has no functions that run what they read, or build objects from it."""

import ast
from pathlib import Path

import controller

PACKAGE = Path(controller.__file__).parent
MODULES = {"dill", "marshal", "pickle", "shelve", "yaml"}
# Reads a file that an operator names. The classes and functions that it may use build only plain values.
YAML_READER = "settings/workers_file.py"
SAFE_YAML = {
    *("AliasEvent", "CollectionEndEvent", "CollectionStartEvent", "MappingNode", "SequenceNode"),
    *("MarkedYAMLError", "YAMLError", "SafeLoader", "parse"),  # parse() builds nothing: it returns events
}
CALLS = {"eval", "exec", "compile", "__import__"}


def names(tree: ast.AST) -> set[str]:
    """Return the modules that code imports, and the built-in functions that it calls."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {each.name.partition(".")[0] for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found.add(node.func.id)
    return found


def test_no_code_unpickles_or_evaluates() -> None:
    files = list(PACKAGE.rglob("*.py"))
    assert len(files) > 80
    found = {str(path.relative_to(PACKAGE)): names(ast.parse(path.read_text())) & (MODULES | CALLS) for path in files}
    assert {path: used for path, used in found.items() if used} == {YAML_READER: {"yaml"}}


def test_yaml_builds_only_plain_values() -> None:
    tree = ast.parse((PACKAGE / YAML_READER).read_text())
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "yaml"
    }
    assert used <= SAFE_YAML
    loaders = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and "Loader" in str(node.value)}
    assert loaders == {"CSafeLoader"}


def test_each_of_them_would_be_found() -> None:
    assert names(ast.parse("import pickle.x\nfrom shelve import open\neval('1')")) >= {"pickle", "shelve", "eval"}
