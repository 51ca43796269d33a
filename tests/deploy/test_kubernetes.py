"""The Kubernetes manifests are valid for Kubernetes and for the controller, and consistent with one another.

The tests use the schemas of kubernetes-validate, so they need no cluster. If kubectl is on PATH, they also check the
output of `kubectl kustomize`.
"""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from controller import __version__
from controller.settings import Settings
from controller.web.routes.table import ROUTES
from tests.deploy.manifests import (
    FOLDER,
    KUBECTL,
    KUSTOMIZATION,
    LABELS,
    VERSIONS,
    Document,
    check,
    documents,
    files,
    kustomization,
    manifest,
)

pytestmark = pytest.mark.deploy

# The schemas


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", files(), ids=lambda path: path.name)
def test_kubernetes_knows_every_field(path: Path, version: str) -> None:
    """check() fails for a file that does not match the schema. The next test shows that it does."""
    check(path.read_text(), version)


@pytest.mark.parametrize(
    ("name", "good", "bad", "message"),
    [
        ("deployment.yaml", "readinessProbe:", "readynessProbe:", "'readynessProbe' was unexpected"),
        ("deployment.yaml", "\nspec:\n", "\nspec:\n  maxSurge: 1\n", "'maxSurge' was unexpected"),
        ("horizontal-pod-autoscaler.yaml", "minReplicas: 3", "minReplicas: three", "'three' is not of type 'integer'"),
        ("deployment.yaml", "          image:", "          # image:\n          imgae:", "'imgae' was unexpected"),
        ("service.yaml", "targetPort:", "targetport:", "'targetport' was unexpected"),
        ("network-policy.yaml", "- podSelector:", "- podSelektor:", "'podSelektor' was unexpected"),
        ("horizontal-pod-autoscaler.yaml", "  maxReplicas: 12\n", "", "'maxReplicas' is a required property"),
        ("disruption-budget.yaml", "policy/v1", "policy/v0", None),
    ],
)
def test_an_error_in_a_manifest_is_found(tmp_path: Path, name: str, good: str, bad: str, message: str | None) -> None:
    copy = shutil.copytree(FOLDER, tmp_path / "copy") / name
    check(copy.read_text(), VERSIONS[-1])
    assert good in copy.read_text()
    copy.write_text(copy.read_text().replace(good, bad, 1))
    error = kubernetes_validate.ValidationError if message else kubernetes_validate.SchemaNotFoundError
    with pytest.raises(error, match=message):
        check(copy.read_text(), VERSIONS[-1])


# The kustomization


def test_the_kustomization_lists_all_files() -> None:
    assert kustomization()["resources"] == [path.name for path in files()]
    assert {path.name for path in FOLDER.iterdir() if path.is_file()} == {
        *kustomization()["resources"],
        KUSTOMIZATION,
        "README.md",
    }


def test_the_image_is_this_version_and_can_be_replaced(container: Document) -> None:
    assert kustomization()["images"] == [{"name": "controller-cluster", "newTag": __version__}]
    assert container["image"] == f"controller-cluster:{__version__}"


@pytest.mark.skipif(KUBECTL is None, reason="NOT TESTED, kubectl kustomize: kubectl is not on PATH")
def test_kubectl_renders_all_manifests() -> None:
    rendered = subprocess.run(
        [str(KUBECTL), "kustomize", str(FOLDER)], capture_output=True, text=True, check=True
    ).stdout
    check(rendered, VERSIONS[-1])
    by_kind = {document["kind"]: document for document in documents(rendered)}
    assert len(by_kind) == len(documents(rendered))
    config = by_kind.pop("ConfigMap")
    assert config["data"].keys() == {"CONTROLLER_REDIS_URL"}
    [container] = by_kind["Deployment"]["spec"]["template"]["spec"]["containers"]
    [source] = container["envFrom"]
    assert source["configMapRef"]["name"] == config["metadata"]["name"]
    source["configMapRef"]["name"] = "controller"  # the name without the hash
    assert len(by_kind) == len(files())
    for kind, document in by_kind.items():
        assert document["metadata"].pop("labels") == LABELS | COMMON_LABELS, kind
        assert without_instance(document) == without_labels(manifest(kind)), kind


COMMON_LABELS = {
    "app.kubernetes.io/instance": "controller",
    "app.kubernetes.io/component": "controller",
    "app.kubernetes.io/part-of": "controller-cluster",
    "app.kubernetes.io/version": __version__,
}


def without_labels(document: Document) -> Document:
    del document["metadata"]["labels"]
    return document


def without_instance(document: Any) -> Any:
    """Return a rendered document without the labels that the kustomization adds to selectors and pods."""
    if isinstance(document, list):
        return [without_instance(each) for each in document]
    if not isinstance(document, dict):
        return document
    return {key: without_instance(value) for key, value in document.items() if key not in COMMON_LABELS}


def test_the_kustomization_adds_the_usual_labels() -> None:
    """The instance is in the selectors too. The version is not, because selectors cannot change."""
    in_selectors, others = kustomization()["labels"]
    assert in_selectors["includeSelectors"] is others["includeTemplates"] is True
    assert "includeSelectors" not in others
    assert in_selectors["pairs"].keys() == {"app.kubernetes.io/instance"}
    assert in_selectors["pairs"] | others["pairs"] == COMMON_LABELS


# Consistency of the manifests


def selectors() -> Iterator[tuple[str, Document]]:
    deployment = manifest("Deployment")["spec"]
    yield "deployment", deployment["selector"]
    yield "disruption budget", manifest("PodDisruptionBudget")["spec"]["selector"]
    yield "network policy", manifest("NetworkPolicy")["spec"]["podSelector"]
    yield "service", {"matchLabels": manifest("Service")["spec"]["selector"]}
    for constraint in deployment["template"]["spec"]["topologySpreadConstraints"]:
        yield constraint["topologyKey"], constraint["labelSelector"]


def test_every_selector_finds_the_pods(pod: Document) -> None:
    assert pod["metadata"]["labels"] == LABELS
    found = dict(selectors())
    assert found == {name: {"matchLabels": LABELS} for name in found}
    assert {"kubernetes.io/hostname", "topology.kubernetes.io/zone"} < found.keys()


def test_every_port_is_the_port_of_the_controller(settings: Settings, pod: Document, container: Document) -> None:
    [port] = container["ports"]
    assert port["containerPort"] == settings.port == Settings().port
    [service_port] = manifest("Service")["spec"]["ports"]
    assert (service_port["port"], service_port["targetPort"]) == (settings.port, port["name"])
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["port"] == port["name"]
    [ingress] = manifest("NetworkPolicy")["spec"]["ingress"]
    assert ingress["ports"] == [{"protocol": "TCP", "port": settings.port}]
    assert pod["metadata"]["annotations"]["prometheus.io/port"] == str(settings.port)


def test_every_path_is_a_route(pod: Document, container: Document) -> None:
    routes = {route.path for route in ROUTES if route.method == "GET"}
    paths = {probe: container[probe]["httpGet"]["path"] for probe in container if probe.endswith("Probe")}
    assert paths == {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}
    for path in (*paths.values(), pod["metadata"]["annotations"]["prometheus.io/path"]):
        assert path in routes


def test_the_autoscaler_and_the_disruption_budget_match_the_deployment() -> None:
    deployment, autoscaler = manifest("Deployment"), manifest("HorizontalPodAutoscaler")["spec"]
    assert autoscaler["scaleTargetRef"] == {
        "apiVersion": deployment["apiVersion"],
        "kind": deployment["kind"],
        "name": deployment["metadata"]["name"],
    }
    assert (autoscaler["minReplicas"], autoscaler["maxReplicas"]) == (3, 12)
    assert "replicas" not in deployment["spec"], "applying the manifest would undo the autoscaler's decision"
    [metric] = autoscaler["metrics"]
    assert metric["resource"] == {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}}
    assert manifest("PodDisruptionBudget")["spec"]["maxUnavailable"] == 1 < autoscaler["minReplicas"]


def test_the_service_account_has_no_token(pod: Document) -> None:
    account = manifest("ServiceAccount")
    assert pod["spec"]["serviceAccountName"] == account["metadata"]["name"]
    assert pod["spec"]["automountServiceAccountToken"] is account["automountServiceAccountToken"] is False


def test_a_rollout_keeps_the_number_of_replicas() -> None:
    rollout = {"maxSurge": 1, "maxUnavailable": 0}
    assert manifest("Deployment")["spec"]["strategy"] == {"type": "RollingUpdate", "rollingUpdate": rollout}


@pytest.mark.parametrize("path", sorted(filter(Path.is_file, FOLDER.rglob("*"))), ids=lambda path: path.name)
def test_lines_are_short(path: Path) -> None:
    assert max(map(len, path.read_text().splitlines())) <= 120
