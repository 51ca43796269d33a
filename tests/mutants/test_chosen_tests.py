"""Test that tests are chosen for each file whose mutants are made by default."""

from pathlib import PurePosixPath

from tests.mutants.__main__ import DEFAULT, ROOT
from tests.mutants.chosen_tests import chosen_for


def test_chosen_tests_exist() -> None:
    files = [file for path in DEFAULT for pattern in ("*.lua", "*.py") for file in (ROOT / path).rglob(pattern)]
    assert len(files) > 100
    for file in files:
        chosen = chosen_for(PurePosixPath(file.relative_to(ROOT).as_posix()))
        assert chosen
        assert [test for test in chosen if not (ROOT / test.partition("::")[0]).exists()] == []
