"""The contents of the wheel and the sdist."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from controller.store import scripts

ROOT = Path(__file__).parents[1]
SERVE = "from controller.web.routes import page; print(len(page._FILES), len(page._FILES['/'].body))"
LOAD = "from controller.store import scripts; print(scripts.folder()); print(scripts.source('register'))"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist, and the wheel from it. Return their directory."""
    directory = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", directory], cwd=ROOT, check=True)
    return directory


def test_wheel_contains_the_scripts_and_loads_them(built: Path, tmp_path: Path) -> None:
    [wheel] = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path)  # noqa: S202 - this test built the archive
    assert {f"controller/{path.relative_to(ROOT)}" for path in (ROOT / "lua").rglob("*.lua")} <= set(names)
    assert "controller/py.typed" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    static = [path for path in (ROOT / "controller" / "web" / "static").rglob("*") if path.is_file()]
    assert {str(path.relative_to(ROOT)) for path in static} <= set(names)
    assert not [name for name in names if name.startswith(("tests", "lua", "examples"))]
    for example in ("worker", "load", "demo"):
        command = [sys.executable, "-m", f"controller.examples.{example}", "--help"]
        help_text = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        assert "usage: " in help_text
    loaded = subprocess.run(
        [sys.executable, "-c", LOAD], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert loaded.splitlines()[0] == str(tmp_path / "controller" / "lua")
    assert scripts.source("register") in loaded


def test_wheel_loads_the_scripts_as_a_zip_on_the_path(built: Path, tmp_path: Path) -> None:
    [wheel] = built.glob("*.whl")
    code = f"import sys; sys.path.insert(0, {str(wheel)!r}); {LOAD}; {SERVE}"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert str(wheel) in loaded.splitlines()[0]
    files, length = map(int, loaded.splitlines()[-1].split())
    assert (files > 10, length > 100) == (True, True)
    assert scripts.source("register") in loaded


def test_sdist_contains_the_files_that_the_tests_need(built: Path) -> None:
    [sdist] = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in (
        "lua/workers/register.lua",
        "lua/include/key.lua",
        "tests/conftest.py",
        "Makefile",
        "constraints.txt",
        "README.md",
    ):
        assert name in names
