"""Tests of Project.run(), which reports whether a run passed, failed or timed out."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mutants.runs import Outcome, Project

CODE = "def double(a):\n    return a * 2\n"
TESTS = """
import pathlib, subprocess, time
from controller.code import double

def test_double():
    assert double(3) == 6

def test_process():
    if double(1) == -1:
        pathlib.Path("pid").write_text(str(subprocess.Popen(["sleep", "600"]).pid))
        time.sleep(600)

def test_not_reached():
    assert double(1) in (2, 3)
"""
# The real conftest.py defines `--part`, which Project.run() passes. This project needs the option, too.
CONFTEST = 'def pytest_addoption(parser):\n    parser.addoption("--part")\n'


@pytest.fixture
def project(tmp_path: Path) -> Project:
    root = tmp_path / "root"
    files = {
        "controller/__init__.py": "",
        "controller/code.py": CODE,
        "tests/__init__.py": "",
        "tests/conftest.py": CONFTEST,
        "tests/test_code.py": TESTS,
        "pyproject.toml": '[tool.pytest.ini_options]\naddopts = "-p no:schemathesis"\npythonpath = ["."]\n',
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return Project(root, tmp_path)


Run = Callable[..., Outcome]


@pytest.fixture
def run(project: Project) -> Run:
    def run(text: str = CODE, limit: float = 60.0, test_limit: float = 60.0) -> Outcome:
        with project.changed(Path("controller/code.py"), text):
            return project.run(["tests/test_code.py", "tests/test_missing.py"], limit, test_limit)

    return run


def test_outcome_names_the_first_test_that_fails(run: Run) -> None:
    assert run() == Outcome("passed")
    # This mutant may have the size and the time of the original. A stale .pyc file must not be used.
    assert run(CODE.replace("2", "3")) == Outcome("failed", "tests/test_code.py::test_double")
    assert run("def double(a):") == Outcome("failed", "tests/test_code.py")
    assert run() == Outcome("passed")


def test_slow_tests_are_killed_with_their_processes(run: Run, project: Project) -> None:
    slow = "def double(a):\n    return a * 2 if a > 1 else -1\n"
    assert run(slow, limit=3.0) == Outcome("timed out")
    pid = int((project.directory / "pid").read_text())
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split():
        assert time.monotonic() < deadline, f"process {pid} was not killed"
        time.sleep(0.05)
    assert run(slow, test_limit=1.0) == Outcome("timed out", "tests/test_code.py::test_process")


def test_pytest_that_cannot_start_is_an_error(project: Project) -> None:
    (project.directory / "tests/conftest.py").write_text("")
    with pytest.raises(RuntimeError, match="--part"):
        project.run(["tests/test_code.py"], 60.0, 60.0)
    assert Path.cwd() != project.directory
