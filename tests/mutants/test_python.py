"""Test which changes are made to Python modules."""

from pathlib import PurePosixPath

import pytest

pytest.importorskip("cosmic_ray", reason="`make mutants` installs cosmic-ray")

from tests.mutants import python

TEXT = '''\
def f(a: int | None, b: "int" = 1) -> int | str:
    """Return 1."""
    if a == b:
        raise ValueError
    g(a)
    a.b += 1
    return 2
'''


def changed_lines(kind: str) -> list[str]:
    found = []
    for mutant in python.mutants(PurePosixPath("x.py"), TEXT):
        if kind in mutant.kind:
            lines = mutant.apply(TEXT).splitlines()
            found += [line.strip() for line in lines if line not in TEXT.splitlines()]
    return found


def test_statements_are_dropped_and_annotations_kept() -> None:
    assert changed_lines("dropped") == ["pass"] * 3
    assert changed_lines("Number")[2:] == ["a.b += 2", "a.b += 0", "return 3", "return 1"]
    assert "if not a == b:" in changed_lines("AddNot")
    assert "if a != b:" in changed_lines("NotEq")
    assert changed_lines("BitOr") == []
