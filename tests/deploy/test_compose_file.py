"""The Compose files have the settings of the controller, and give few rights. These tests need no containers."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from controller.cli.main import main
from controller.domain.errors import SettingsError
from controller.server import run as server
from controller.settings import Settings, all_settings
from controller.settings.declaration import environment_variables
from tests.deploy.compose import ROOT

pytestmark = pytest.mark.deploy


def service(**variables: str) -> dict[str, object]:
    """Return the service `controller` as Compose reads it with these variables."""
    text = (ROOT / "deploy/docker-compose.yml").read_text()
    text = re.sub(r"\$\{(\w+):-([^}]*)\}", lambda match: variables.get(match[1]) or match[2], text)
    text = re.sub(r"\$\{(\w+):\+([^}]*)\}", lambda match: match[2] if variables.get(match[1]) else "", text)
    found: dict[str, object] = yaml.safe_load(text)["services"]["controller"]
    return found


class Loader(yaml.SafeLoader):
    """Reads Compose files. `!override` says how Compose merges a value, and does not change the value."""


Loader.add_constructor(
    "!override",
    lambda loader, node: (
        loader.construct_mapping(node, deep=True)
        if isinstance(node, yaml.MappingNode)
        else loader.construct_sequence(node)
    ),
)


def services(*files: str) -> dict[str, dict[str, Any]]:
    """Return the services of Compose files, merged by the keys that these tests look at."""
    merged: dict[str, dict[str, Any]] = {}
    for file in files:
        for name, values in yaml.load((ROOT / file).read_text(), Loader)["services"].items():  # noqa: S506 - a safe one
            merged[name] = merged.get(name, {}) | values
    return merged


BASE = "deploy/docker-compose.yml"
MIB = 1024 * 1024
OPEN_FILES = 16_384
TOPOLOGIES = [(BASE,), (BASE, "deploy/docker-compose.sentinel.yml"), (BASE, "deploy/docker-compose.cluster.yml")]


@pytest.mark.parametrize("files", TOPOLOGIES, ids=lambda files: files[-1])
def test_all_services_have_few_rights(files: tuple[str, ...]) -> None:
    found = services(*files)
    assert len(found) > 4
    for name, each in found.items():
        assert each["read_only"] is True, name
        assert each["cap_drop"] == ["ALL"], name
        assert each["security_opt"] == ["no-new-privileges:true"], name
        assert each.get("user") != "root", name
        assert "privileged" not in each, name
        added = set(each.get("cap_add", []))
        assert added <= {"CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID"}, name
        assert not added or each["networks"] == ["store"], name


@pytest.mark.parametrize("files", TOPOLOGIES, ids=lambda files: files[-1])
def test_all_services_have_limits(files: tuple[str, ...]) -> None:
    for name, each in services(*files).items():
        assert {"mem_limit", "cpus", "pids_limit"} <= each.keys(), name
        assert each["ulimits"]["nofile"] >= OPEN_FILES, name
        assert each["logging"] == {"driver": "json-file", "options": {"max-size": "10m", "max-file": "5"}}, name


def test_the_limits_fit_the_programs() -> None:
    """A replica may open what its settings need, and its memory is more than that for bodies."""
    found, settings = services(BASE), Settings()
    assert settings.max_connections + settings.max_forwards + 512 <= OPEN_FILES  # as in controller/server/open_files.py
    assert memory(found["controller"]) >= 2 * settings.max_body_memory * MIB
    [maxmemory] = re.findall(r"(?m)^maxmemory (\d+)mb$", (ROOT / "deploy/redis/redis.conf").read_text())
    assert memory(found["redis"]) >= 2 * int(maxmemory) * MIB
    [files] = re.findall(r"fd-hard-limit (\d+)", (ROOT / "deploy/haproxy/haproxy.cfg").read_text())
    assert int(files) <= OPEN_FILES
    assert found["loadbalancer"]["environment"]["HAPROXY_THREADS"] == found["loadbalancer"]["cpus"]


def memory(each: dict[str, Any]) -> int:
    """Return the default limit of memory in bytes."""
    match = re.search(r"(\d+)([mg])}?$", each["mem_limit"])
    assert match, each
    return int(match[1]) * (MIB if match[2] == "m" else 1024 * MIB)


def test_images_have_full_versions_and_can_be_replaced() -> None:
    files = [ROOT / file for topology in TOPOLOGIES for file in topology]
    files += [
        ROOT / "deploy/Dockerfile",
        ROOT / "deploy/llamacpp/Dockerfile",
        ROOT / "examples/regions/docker-compose.yml",
    ]
    defaults: dict[str, set[str]] = {}
    for file in files:
        text = re.sub(r"(?m)^ *#.*", "", file.read_text())
        for name, image in re.findall(r"(?:\$\{|ARG )(\w+_IMAGE)(?::-|=)([^}\s]+)", text):
            defaults.setdefault(name, set()).add(image)
    assert defaults.pop("CONTROLLER_IMAGE") == {"controller-cluster"}
    assert defaults.pop("LLAMACPP_IMAGE") == {"controller-llamacpp"}
    assert defaults.keys() == {f"{name}_IMAGE" for name in ("PYTHON", "REDIS", "HAPROXY", "PROMETHEUS", "GRAFANA")}
    for name, images in defaults.items():
        [image] = images  # the same in all files
        assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+\.\d+(-slim)?", image), name
    for name, each in services(*TOPOLOGIES[1], *TOPOLOGIES[2]).items():
        assert each.get("image", "${").startswith("${"), name


@pytest.mark.parametrize("files", TOPOLOGIES, ids=lambda files: files[-1])
def test_redis_is_on_a_network_without_workers_clients_and_monitoring(files: tuple[str, ...]) -> None:
    found = {name: set(each["networks"]) for name, each in services(*files).items()}
    assert {name: networks for name, networks in found.items() if networks != {"store"}} == {
        "controller": {"store", "workers", "monitoring"},
        "loadbalancer": {"workers", "clients", "monitoring"},
        "demo-worker": {"workers"},
        "demo-load": {"workers", "clients"},
        "llamacpp": {"workers"},
        "llamacpp-register": {"workers"},
        "prometheus": {"monitoring"},
        "grafana": {"monitoring"},
    }
    assert yaml.safe_load((ROOT / BASE).read_text())["networks"]["store"] == {"internal": True}


def test_ports_are_published_on_loopback_only() -> None:
    text = (ROOT / BASE).read_text()
    defaults = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)
    published = {name: each["ports"] for name, each in yaml.safe_load(defaults)["services"].items() if "ports" in each}
    assert published == {
        "loadbalancer": ["127.0.0.1:21001:21001"],
        "prometheus": ["127.0.0.1:9090:9090"],
        "grafana": ["127.0.0.1:3000:3000"],
    }


def test_only_a_profile_starts_what_is_not_the_cluster() -> None:
    found = {name: each.get("profiles") for name, each in services(BASE).items()}
    assert [name for name, profiles in found.items() if not profiles] == ["controller", "redis", "loadbalancer"]
    assert {name for name, profiles in found.items() if profiles == ["engines"]} == {"llamacpp", "llamacpp-register"}
    assert {name for name, profiles in found.items() if profiles == ["monitoring"]} == {"prometheus", "grafana"}


def test_files_of_the_monitoring_exist() -> None:
    for name in ("prometheus", "grafana"):
        for volume in services(BASE)[name]["volumes"]:
            source, _, _ = volume.partition(":")
            assert source == "prometheus" or (ROOT / "deploy" / source).exists(), volume


def parse(environment: object, monkeypatch: pytest.MonkeyPatch, tokens: Path | None = None) -> Settings:
    """Return the settings that `controller serve` reads from the environment."""
    assert isinstance(environment, dict)
    known = {variable for setting in all_settings() for variable in environment_variables(setting)}
    assert environment.keys() <= known
    parsed: list[Settings] = []
    monkeypatch.setattr(server, "serve", lambda settings, _: parsed.append(settings))
    variables = {name: "" if value is None else str(value) for name, value in environment.items()}
    del variables["CONTROLLER_REDIS_PASSWORD_FILE"]  # the file is in a volume
    if variables["CONTROLLER_TOKENS_FILE"]:
        assert variables["CONTROLLER_TOKENS_FILE"] == "/run/secrets/tokens"  # where Compose puts the secret `tokens`
        variables["CONTROLLER_TOKENS_FILE"] = str(tokens)
    result = CliRunner().invoke(main, ["serve"], env=variables)
    assert result.exit_code == 0, result.output
    return parsed[0]


def test_all_variables_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    controller = service()
    settings = parse(controller["environment"], monkeypatch)
    assert (settings.by_way, settings.advertise, settings.parent) == (False, None, None)
    assert controller["stop_grace_period"] == "40s"
    assert settings.shutdown_delay + settings.shutdown_timeout < 40


def test_port_for_other_machines_needs_tokens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The check is that of `controller serve`, which compares the published address."""
    file = tmp_path / "tokens"
    file.write_text(f"worker rack {'s' * 32}\n")
    loopback = parse(service()["environment"], monkeypatch)
    server.check_exposure(loopback, ["0.0.0.0"])
    for port in ("0.0.0.0:21001", "21001", "10.0.0.1:21001", "[::]:21001"):
        exposed = parse(service(CONTROLLER_PORT=port)["environment"], monkeypatch)
        with pytest.raises(SettingsError, match="--insecure"):
            server.check_exposure(exposed, ["0.0.0.0"])
        wanted = {"CONTROLLER_PORT": port, "CONTROLLER_INSECURE": "true"}
        server.check_exposure(parse(service(**wanted)["environment"], monkeypatch), ["0.0.0.0"])
        closed = service(CONTROLLER_PORT=port, CONTROLLER_TOKENS_FILE=str(file))
        settings = parse(closed["environment"], monkeypatch, file)
        server.check_exposure(settings, ["0.0.0.0"])
        assert settings.access_rules.is_closed
        assert closed["secrets"] == ["tokens"]


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
