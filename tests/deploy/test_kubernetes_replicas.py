"""A replica gets from the manifests of Kubernetes: settings, Secrets, connections, rights and resources."""

import re
from pathlib import Path

import pytest

from controller.settings import Settings, all_settings
from controller.settings.declaration import environment_variables
from controller.store_url import parse_store_url
from tests.deploy.manifests import (
    FOLDER,
    KUSTOMIZATION,
    Document,
    manifest,
    parse,
)

pytestmark = pytest.mark.deploy


# Consistency with the controller


def test_every_variable_is_a_setting(environment: dict[str, str], settings: Settings) -> None:
    known = {variable for setting in all_settings() for variable in environment_variables(setting)}
    assert environment.keys() <= known
    assert {"CONTROLLER_HOST", "CONTROLLER_REDIS_URL", "CONTROLLER_REDIS_PASSWORD_FILE"} < environment.keys()
    assert settings.host == "0.0.0.0"
    assert settings.replicas == 1  # Kubernetes manages the replicas


def test_requests_by_way_are_turned_on_by_the_commented_variables(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commented = dict(re.findall(r"# - (CONTROLLER_\w+)=(\S+)", (FOLDER / KUSTOMIZATION).read_text()))
    assert commented.keys() == {"CONTROLLER_BY_WAY", "CONTROLLER_ADVERTISE"}
    settings = parse(environment | commented, tmp_path, monkeypatch)
    service = manifest("Service")
    assert settings.by_way
    assert settings.advertise == f"http://{service['metadata']['name']}:{settings.port}"


def test_the_service_does_not_override_settings(pod: Document) -> None:
    """Without enableServiceLinks: false, the Service "controller" would set CONTROLLER_PORT=tcp://... in each pod."""
    name = manifest("Service")["metadata"]["name"].upper()
    assert any(f"{name}_PORT" in environment_variables(setting) for setting in all_settings())
    assert pod["spec"]["enableServiceLinks"] is False


@pytest.mark.parametrize(
    ("name", "variable"),
    [("redis", "CONTROLLER_REDIS_PASSWORD_FILE"), ("tokens", "CONTROLLER_TOKENS_FILE")],
)
def test_secrets_are_mounted_at_the_paths_of_the_settings(
    environment: dict[str, str], pod: Document, container: Document, name: str, variable: str
) -> None:
    [mount] = [mount for mount in container["volumeMounts"] if mount["name"] == name]
    [volume] = [volume for volume in pod["spec"]["volumes"] if volume["name"] == name]
    [item] = volume["secret"]["items"]
    assert environment[variable] == f"{mount['mountPath']}/{item['path']}"
    assert "subPath" not in mount, "a changed Secret would not reach the pods"
    assert mount["readOnly"] is True
    assert volume["secret"]["defaultMode"] == 0o440  # readable for the group, which is fsGroup
    command = f"kubectl create secret generic {volume['secret']['secretName']} --from-file={item['key']}="
    assert command in (FOLDER / "README.md").read_text()


def test_the_grace_period_is_longer_than_the_shutdown(settings: Settings, pod: Document, container: Document) -> None:
    final_frames = 1  # seconds
    longest = settings.shutdown_delay + settings.shutdown_timeout + final_frames
    assert pod["spec"]["terminationGracePeriodSeconds"] > longest
    readiness = container["readinessProbe"]
    unready_after = readiness["periodSeconds"] * readiness["failureThreshold"] + readiness["timeoutSeconds"]
    assert unready_after < settings.shutdown_delay


def test_the_network_policy_allows_the_connections_of_a_replica(settings: Settings) -> None:
    def peers(*labels: dict[str, str]) -> list[Document]:
        """Return selectors that kustomize does not change."""
        return [
            {"podSelector": {"matchExpressions": [{"key": key, "operator": "In", "values": [value]}]}}
            for found in labels
            for key, value in found.items()
        ]

    policy = manifest("NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    clients, workers = {"controller-client": "true"}, {"controller-worker": "true"}
    [ingress] = policy["ingress"]
    assert ingress["from"] == peers(clients, workers, {"app.kubernetes.io/name": "prometheus"})
    redis, dns, to_workers = policy["egress"]
    [(host, port)] = parse_store_url(settings.redis_url or "").hosts
    assert redis == {
        "to": peers({"app.kubernetes.io/name": host}),
        "ports": [{"protocol": "TCP", "port": port}],
    }
    assert dns == {"ports": [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]}
    assert to_workers == {"to": peers(workers), "ports": [{"protocol": "TCP"}]}


# Security and resources


def test_pods_start_with_tokens_only(settings: Settings) -> None:
    assert settings.access_rules.is_closed
    assert not settings.insecure
    assert settings.published_host is None


def test_the_pod_meets_the_restricted_standard(pod: Document, container: Document) -> None:
    assert pod["spec"]["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 10001,
        "runAsGroup": 10001,
        "fsGroup": 10001,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")} == {"/tmp"}  # noqa: S108
    assert "hostPath" not in str(pod)


def test_the_image_runs_as_the_pods_user(pod: Document) -> None:
    user = f"USER {pod['spec']['securityContext']['runAsUser']}:{pod['spec']['securityContext']['runAsGroup']}\n"
    assert user in (FOLDER.parent / "Dockerfile").read_text()


def test_memory_is_limited_and_cpu_is_not(container: Document) -> None:
    resources = container["resources"]
    assert resources["requests"].keys() == {"cpu", "memory"}
    assert resources["limits"].keys() == {"memory"}
