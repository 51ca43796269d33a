"""`controller config`, and the warnings of unknown environment variables."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from controller.cli.configuration import without_passwords
from controller.cli.environment import unknown_variables
from controller.cli.main import main
from controller.server import run as server
from controller.settings import all_settings

SECRETS = {
    "CONTROLLER_ADMIN_TOKENS": "ops=a-secret-of-this-test",
    "CONTROLLER_REDIS_URL": "redis://user:a-secret@of/this@h:1/0",
    "CONTROLLER_PARENT": "http://gpu:a-secret-token@top:1,http://b:a-secret-token@top2:1",
}


def config(*arguments: str, **env: str) -> Result:
    return CliRunner().invoke(main, ["config", *arguments], env=env)


def settings(*arguments: str, **env: str) -> dict[str, tuple[Any, str]]:
    """Return the value and the source of each setting."""
    ran = config("--json", *arguments, **env)
    assert ran.exit_code == 0, ran.output
    return {each["name"]: (each["value"], each["source"]) for each in json.loads(ran.stdout)["settings"]}


def test_each_setting_has_its_value_and_its_source() -> None:
    found = settings("--port", "8000", CONTROLLER_REPLICAS="4", FASTCHAT_WORKER_API_TIMEOUT="20")
    assert set(found) == {setting.name for setting in all_settings()}
    assert found["port"] == (8000, "--port")
    assert found["replicas"] == (4, "CONTROLLER_REPLICAS")
    assert found["worker_timeout"] == (20.0, "FASTCHAT_WORKER_API_TIMEOUT")
    assert found["host"] == ("localhost", "default")
    assert found["redis_url"] == (None, "default")
    assert settings("--port", "1", CONTROLLER_PORT="2")["port"] == (1, "--port")


def test_deprecated_names_are_named() -> None:
    name = "register_timeout"
    assert settings("--register-patience", "5")[name] == (5.0, "--register-patience (deprecated)")
    assert settings(CONTROLLER_REGISTER_PATIENCE="5")[name] == (5.0, "CONTROLLER_REGISTER_PATIENCE")
    assert settings("--register-patience", "5", "--register-timeout", "6")[name] == (6.0, "--register-timeout")


def test_changed_leaves_out_the_defaults() -> None:
    assert list(settings("--changed", "--port", "21001", CONTROLLER_SSL="no")) == ["port", "ssl"]
    table = config("--changed", "--port", "1").stdout
    assert [line.split() for line in table.splitlines()[4:5]] == [["port", "1", "--port"]]


def test_secrets_are_hidden(tmp_path: Path) -> None:
    for flags in ([], ["--json"]):
        ran = config(*flags, "--advertise", "http://x:1", **SECRETS)
        assert "secret" not in ran.output
        assert "this@" not in ran.output
        assert "********" in ran.stdout
        assert "h:1/0" in ran.stdout
        assert "top2:1" in ran.stdout


@pytest.mark.parametrize(
    ("urls", "shown"),
    [
        ("redis://h:1", "redis://h:1"),
        ("redis://:p@h", "redis://********@h"),
        ("redis://u:p/x@y,z@h", "redis://********@h"),
        ("u:p@h", "********@h"),
        ("http://a:p@h1,http://h2,https://b@h3", "http://********@h1,http://h2,https://********@h3"),
        (
            "redis+sentinel://u:p@h1,h2/m?sentinel_password=x",
            "redis+sentinel://********@h1,h2/m?sentinel_password=********",
        ),
    ],
)
def test_passwords_in_urls(urls: str, shown: str) -> None:
    assert without_passwords(urls) == shown


def test_settings_with_which_serve_would_not_start_are_shown_with_the_reason() -> None:
    ran = config("--replicas", "0")
    assert ran.exit_code == 1
    assert "replicas" in ran.stdout
    assert ran.stderr == "Error: `controller serve` would not start: --replicas must be from 1 to 256, not 0.\n"
    ran = config("--json", "--ssl-keyfile", "x")
    assert (ran.exit_code, json.loads(ran.stdout)["problem"][:13]) == (1, "--ssl-keyfile")
    assert config("--port", "x").exit_code == 2


def test_config_takes_the_options_of_serve() -> None:
    commands = {name: main.commands[name] for name in ("serve", "config")}
    flags = {name: {flag for each in command.params for flag in each.opts} for name, command in commands.items()}
    assert flags["config"] - flags["serve"] == {"--json", "--changed", "--no-color"}
    assert flags["serve"] <= flags["config"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("CONTROLLER_PROT", "CONTROLLER_PORT"),
        ("CONTROLLER_REDIS_ULR", "CONTROLLER_REDIS_URL"),
        ("CONTROLLER_HEARTBEAT_EXPIRY", "CONTROLLER_HEARTBEAT_EXPIRATION"),
        ("CONTROLLER_ADDRESSES", "CONTROLLER_ADDRESS"),
        ("CONTROLLER_XYZZY", ""),
        ("CONTROLLER_", ""),
    ],
)
def test_unknown_variable_is_reported_with_a_similar_one(name: str, meant: str) -> None:
    assert unknown_variables([name, "CONTROLLER_PORT", "PATH", "MY_CONTROLLER_PROT"]) == [(name, meant)]


def test_known_variables_are_not_warned_of() -> None:
    ours = [name for setting in all_settings() for name in (f"CONTROLLER_{setting.name.upper()}",)]
    kubernetes = [
        "CONTROLLER_SERVICE_HOST", "CONTROLLER_SERVICE_PORT", "CONTROLLER_SERVICE_PORT_HTTP",
        "CONTROLLER_PORT_21001_TCP", "CONTROLLER_PORT_21001_TCP_ADDR", "CONTROLLER_REDIS_SERVICE_HOST",
    ]  # fmt: skip
    assert unknown_variables([*ours, *kubernetes, "CONTROLLER_REGISTER_PATIENCE", "CONTROLLER_TIMEOUT"]) == []


def test_serve_and_config_warn_of_unknown_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(server, "serve", lambda _, found: warnings.extend(found))
    assert CliRunner().invoke(main, ["serve"], env={"CONTROLLER_PROT": "1"}).exit_code == 0
    expected = "CONTROLLER_PROT is not a variable of the controller, so it has no effect. Did you mean CONTROLLER_PORT?"
    assert warnings == [expected]
    assert config(CONTROLLER_PROT="1").stderr == f"Warning: {expected}\n"
    assert json.loads(config("--json", CONTROLLER_PROT="1").stdout)["warnings"] == [expected]
