"""The Kubernetes manifests are valid for Kubernetes and for the controller, and consistent with one another.

The tests use the schemas of kubernetes-validate, so they need no cluster. If kubectl is on PATH, they also check the
output of `kubectl kustomize`.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from click.testing import CliRunner

from controller import __version__
from controller.cli.main import main
from controller.server import run as server
from controller.settings import Settings, all_settings
from controller.settings.declaration import environment_variables
from controller.store_url import parse_store_url
from controller.web.routes.table import ROUTES

pytestmark = pytest.mark.deploy

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
KUSTOMIZATION = "kustomization.yaml"
# The oldest supported version, which README.md names, and the latest version.
VERSIONS = ("1.27", ".".join(kubernetes_validate.latest_version().split(".")[:2]))
LABELS = {"app.kubernetes.io/name": "controller-cluster"}
KUBECTL = shutil.which("kubectl")

Document = dict[str, Any]


def files(folder: Path = FOLDER) -> list[Path]:
    """Return the manifests of the controllers. test_kubernetes_parts.py is about the folders beside them."""
    return sorted(path for path in folder.glob("*.y*ml") if path.name != KUSTOMIZATION)


def documents(text: str) -> list[Document]:
    return [document for document in yaml.safe_load_all(text) if document is not None]


def kustomization() -> Document:
    [document] = documents((FOLDER / KUSTOMIZATION).read_text())
    return document


def manifest(kind: str) -> Document:
    [found] = [document for path in files() for document in documents(path.read_text()) if document["kind"] == kind]
    return found


def check(text: str, version: str) -> None:
    """Check documents against a version of Kubernetes. Raises ValidationError or SchemaNotFoundError."""
    found = documents(text)
    assert found
    for document in found:
        assert kubernetes_validate.validate(document, version, strict=True) == version


@pytest.fixture
def pod() -> Document:
    return manifest("Deployment")["spec"]["template"]


@pytest.fixture
def container(pod: Document) -> Document:
    [container] = pod["spec"]["containers"]
    return container


@pytest.fixture
def environment(container: Document) -> dict[str, str]:
    """Return the environment variables of a replica, from its ConfigMap and from its container."""
    [source] = container["envFrom"]
    name = source["configMapRef"]["name"]
    [generator] = [each for each in kustomization()["configMapGenerator"] if each["name"] == name]
    shared = dict(literal.split("=", 1) for literal in generator["literals"])
    own = {variable["name"]: variable["value"] for variable in container["env"]}
    assert len(own) == len(container["env"])
    assert not shared.keys() & own.keys()
    return shared | own


@pytest.fixture
def settings(environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Return the settings that `controller` reads from the arguments and variables of the container."""
    return parse(environment, tmp_path, monkeypatch)


def parse(environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    parsed: list[Settings] = []
    monkeypatch.setattr(server, "serve", lambda settings, _: parsed.append(settings))
    password = tmp_path / "password"
    password.write_text("secret\n")
    tokens = tmp_path / "tokens"
    tokens.write_text(f"worker rack {'s' * 32}\n")
    files = {"CONTROLLER_REDIS_PASSWORD_FILE": str(password), "CONTROLLER_TOKENS_FILE": str(tokens)}
    assert files.keys() <= environment.keys()
    variables = environment | files
    [container] = manifest("Deployment")["spec"]["template"]["spec"]["containers"]
    result = CliRunner().invoke(main, container["args"], env=variables)
    assert result.exit_code == 0, result.output
    return parsed[0]


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


def test_a_rollout_keeps_the_number_of_replicas() -> None:
    rollout = {"maxSurge": 1, "maxUnavailable": 0}
    assert manifest("Deployment")["spec"]["strategy"] == {"type": "RollingUpdate", "rollingUpdate": rollout}


def test_memory_is_limited_and_cpu_is_not(container: Document) -> None:
    resources = container["resources"]
    assert resources["requests"].keys() == {"cpu", "memory"}
    assert resources["limits"].keys() == {"memory"}


@pytest.mark.parametrize("path", sorted(filter(Path.is_file, FOLDER.rglob("*"))), ids=lambda path: path.name)
def test_lines_are_short(path: Path) -> None:
    assert max(map(len, path.read_text().splitlines())) <= 120
