"""The README tells of every setting, route, metric and key, and its own commands exist."""

import re
from pathlib import Path

import pytest

from controller.metrics import Metrics
from controller.settings import all_settings, environment_variables, flag
from controller.store import keys
from controller.web.routes.table import ROUTES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def routes() -> set[str]:
    return {route.path for route in ROUTES}


def test_settings() -> None:
    for setting in all_settings():
        assert f"`{flag(setting.name)}`" in README
        for variable in environment_variables(setting):
            assert f"`{variable}`" in README
        if setting.default is not None and setting.default is not False:
            [row] = [line for line in README.splitlines() if line.startswith(f"| `{flag(setting.name)}`")]
            default = f"{setting.default:g}" if isinstance(setting.default, float) else str(setting.default)
            assert f"`{default}`" in row


def test_routes() -> None:
    assert len(routes()) > 12
    for route in routes():
        assert f"`{route}`" in README, route


def test_metrics() -> None:
    names = set(re.findall(r"^# HELP (controller_\w+?)(?:_created)? ", Metrics().render().decode(), re.MULTILINE))
    assert len(names) > 5
    for name in names:
        assert f"`{name}" in README, name


def test_keys() -> None:
    for name, function in vars(keys).items():
        if callable(function) and name != "namespace":
            assert re.search(rf"`\{{<ns>\}}:{name}(:<[a-z ]+>)?`", README), name


@pytest.mark.parametrize(
    "name", ["README.md", "CHANGELOG.md", *(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/*.md"))]
)
def test_links_and_files_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / name).parent.joinpath(target).exists(), target
    for path in re.findall(r"`((?:benchmarks|examples|controller|lua|tests|docs)/[\w./]+)`", text):
        assert (ROOT / path).exists(), path


def test_make_targets() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"(?:`|    |\$ )make ([a-z]+)", README)):
        assert f"\n{target}:" in makefile, target
