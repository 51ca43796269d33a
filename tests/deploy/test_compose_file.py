"""The environment in deploy/docker-compose.yml has settings of the controller. These tests need no containers."""

import re

import pytest
import yaml
from click.testing import CliRunner

from controller.cli.main import main
from controller.server import run as server
from controller.settings import Settings, all_settings, environment_variables
from tests.deploy.compose import ROOT

pytestmark = pytest.mark.deploy


def service(**variables: str) -> dict[str, object]:
    """Return the service `controller` as Compose reads it with these variables."""
    text = (ROOT / "deploy/docker-compose.yml").read_text()
    text = re.sub(r"\$\{(\w+):-([^}]*)\}", lambda match: variables.get(match[1]) or match[2], text)
    found: dict[str, object] = yaml.safe_load(text)["services"]["controller"]
    return found


def parse(environment: object, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Return the settings that `controller serve` reads from the environment."""
    assert isinstance(environment, dict)
    known = {variable for setting in all_settings() for variable in environment_variables(setting)}
    assert environment.keys() <= known
    parsed: list[Settings] = []
    monkeypatch.setattr(server, "serve", lambda settings, _: parsed.append(settings))
    variables = {name: "" if value is None else str(value) for name, value in environment.items()}
    del variables["CONTROLLER_REDIS_PASSWORD_FILE"]  # the file is in a volume
    result = CliRunner().invoke(main, ["serve"], env=variables)
    assert result.exit_code == 0, result.output
    return parsed[0]


def test_all_variables_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    controller = service()
    settings = parse(controller["environment"], monkeypatch)
    assert (settings.by_way, settings.advertise, settings.parent) == (False, None, None)
    assert controller["stop_grace_period"] == "40s"
    assert settings.shutdown_delay + settings.shutdown_timeout < 40


def test_requests_by_way_are_turned_on_by_two_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    address = "http://localhost:21001"
    controller = service(CONTROLLER_BY_WAY="true", CONTROLLER_ADVERTISE=address, STOP_GRACE_PERIOD="125s")
    settings = parse(controller["environment"], monkeypatch)
    assert (settings.by_way, settings.advertise) == (True, address)
    assert controller["stop_grace_period"] == "125s"


def test_capacities_are_set_by_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    controller = service(CONTROLLER_CAPACITY="m=5,n=3", CONTROLLER_DEFAULT_CAPACITY="4")
    defaults = parse(controller["environment"], monkeypatch).default_capacities
    assert [defaults.of([model]) for model in "mno"] == [5, 3, 4]
    unset = parse(service()["environment"], monkeypatch).default_capacities
    assert unset.of(["m"]) is None
