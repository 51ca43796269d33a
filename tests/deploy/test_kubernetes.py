"""The Kubernetes manifests: what Kubernetes takes, what the controller takes, and in agreement with one another.

They are checked against the schemas that kubernetes-validate brings along, so no cluster is needed; where kubectl is on
PATH, what it makes of the kustomization is checked too.
"""

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
from controller.settings import Settings, all_settings, environment_variables
from controller.store_url import parse_store_url
from controller.web.routes.table import ROUTES

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
KUSTOMIZATION = "kustomization.yaml"
VERSIONS = ("1.27", ".".join(kubernetes_validate.latest_version().split(".")[:2]))  # from the one that README.md names
LABELS = {"app.kubernetes.io/name": "controller-cluster"}
KUBECTL = shutil.which("kubectl")

Document = dict[str, Any]


def files(folder: Path = FOLDER) -> list[Path]:
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
    """Raise ValidationError, or SchemaNotFoundError, unless all is known to this version of Kubernetes."""
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
    """The variables of a replica: those of the ConfigMap that it names, and its own."""
    [source] = container["envFrom"]
    [generator] = [
        made for made in kustomization()["configMapGenerator"] if made["name"] == source["configMapRef"]["name"]
    ]
    shared = dict(literal.split("=", 1) for literal in generator["literals"])
    own = {variable["name"]: variable["value"] for variable in container["env"]}
    assert len(own) == len(container["env"])
    assert not shared.keys() & own.keys()
    return shared | own


@pytest.fixture
def settings(environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """What `controller` makes of the container's arguments and variables."""
    seen: list[Settings] = []
    monkeypatch.setattr(server, "serve", seen.append)
    password = tmp_path / "password"
    password.write_text("secret\n")
    there = environment | {"CONTROLLER_REDIS_PASSWORD_FILE": str(password)}
    [container] = manifest("Deployment")["spec"]["template"]["spec"]["containers"]
    result = CliRunner().invoke(main, container["args"], env=there)
    assert result.exit_code == 0, result.output
    return seen[0]


# The schemas


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", files(), ids=lambda path: path.name)
def test_kubernetes_knows_every_field(path: Path, version: str) -> None:
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
def test_a_broken_copy_is_found(tmp_path: Path, name: str, good: str, bad: str, message: str | None) -> None:
    copy = shutil.copytree(FOLDER, tmp_path / "copy") / name
    check(copy.read_text(), VERSIONS[-1])
    assert good in copy.read_text()
    copy.write_text(copy.read_text().replace(good, bad, 1))
    wrong = kubernetes_validate.ValidationError if message else kubernetes_validate.SchemaNotFoundError
    with pytest.raises(wrong, match=message):
        check(copy.read_text(), VERSIONS[-1])


# The kustomization


def test_the_kustomization_lists_the_files_there_are() -> None:
    assert kustomization()["resources"] == [path.name for path in files()]
    assert {path.name for path in FOLDER.iterdir()} == {*kustomization()["resources"], KUSTOMIZATION, "README.md"}


def test_the_image_is_this_version_and_can_be_replaced(container: Document) -> None:
    assert kustomization()["images"] == [{"name": "controller-cluster", "newTag": __version__}]
    assert container["image"] == f"controller-cluster:{__version__}"


@pytest.mark.skipif(KUBECTL is None, reason="NOT TESTED, what kubectl makes of the kustomization: it is not on PATH")
def test_kubectl_renders_all_of_it() -> None:
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
    source["configMapRef"]["name"] = "controller"  # the name before it got its hash
    assert by_kind == {kind: manifest(kind) for kind in by_kind}
    assert len(by_kind) == len(files())


# One with another


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


def test_every_port_is_the_one_that_is_listened_on(settings: Settings, pod: Document, container: Document) -> None:
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


def test_autoscaler_and_disruption_budget_are_the_deployments() -> None:
    deployment, autoscaler = manifest("Deployment"), manifest("HorizontalPodAutoscaler")["spec"]
    assert autoscaler["scaleTargetRef"] == {
        "apiVersion": deployment["apiVersion"],
        "kind": deployment["kind"],
        "name": deployment["metadata"]["name"],
    }
    assert (autoscaler["minReplicas"], autoscaler["maxReplicas"]) == (3, 12)
    assert "replicas" not in deployment["spec"], "applying it again would undo what the autoscaler decided"
    [metric] = autoscaler["metrics"]
    assert metric["resource"] == {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}}
    assert manifest("PodDisruptionBudget")["spec"]["maxUnavailable"] == 1 < autoscaler["minReplicas"]


def test_the_account_is_there_and_has_no_token(pod: Document) -> None:
    account = manifest("ServiceAccount")
    assert pod["spec"]["serviceAccountName"] == account["metadata"]["name"]
    assert pod["spec"]["automountServiceAccountToken"] is account["automountServiceAccountToken"] is False


# With the controller


def test_every_variable_is_a_setting(environment: dict[str, str], settings: Settings) -> None:
    known = {variable for setting in all_settings() for variable in environment_variables(setting)}
    assert environment.keys() <= known
    assert {"CONTROLLER_HOST", "CONTROLLER_REDIS_URL", "CONTROLLER_REDIS_PASSWORD_FILE"} < environment.keys()
    assert settings.host == "0.0.0.0"
    assert settings.replicas == 1  # Kubernetes counts them


def test_the_service_does_not_change_the_settings(pod: Document) -> None:
    """A Service called controller gives the pods of its namespace CONTROLLER_PORT=tcp://..., unless they say no."""
    name = manifest("Service")["metadata"]["name"].upper()
    assert any(f"{name}_PORT" in environment_variables(setting) for setting in all_settings())
    assert pod["spec"]["enableServiceLinks"] is False


def test_the_password_is_where_the_setting_looks_for_it(
    environment: dict[str, str], pod: Document, container: Document
) -> None:
    [mount] = [mount for mount in container["volumeMounts"] if mount["name"] == "redis"]
    [volume] = [volume for volume in pod["spec"]["volumes"] if volume["name"] == "redis"]
    [item] = volume["secret"]["items"]
    assert environment["CONTROLLER_REDIS_PASSWORD_FILE"] == f"{mount['mountPath']}/{item['path']}"
    assert mount["readOnly"] is True
    assert volume["secret"]["defaultMode"] == 0o440  # for the group, which is fsGroup
    command = f"kubectl create secret generic {volume['secret']['secretName']} --from-file={item['key']}="
    assert command in (FOLDER / "README.md").read_text()


def test_there_is_time_to_shut_down(settings: Settings, pod: Document, container: Document) -> None:
    last_frames = 1
    longest = settings.shutdown_delay + settings.shutdown_timeout + last_frames
    assert pod["spec"]["terminationGracePeriodSeconds"] > longest
    readiness = container["readinessProbe"]
    seen_after = readiness["periodSeconds"] * readiness["failureThreshold"] + readiness["timeoutSeconds"]
    assert seen_after < settings.shutdown_delay


def test_the_network_lets_through_what_a_replica_needs(settings: Settings) -> None:
    def peers(*labels: dict[str, str]) -> list[Document]:
        return [{"podSelector": {"matchLabels": found}} for found in labels]

    policy = manifest("NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    clients, workers = {"controller-client": "true"}, {"controller-worker": "true"}
    [ingress] = policy["ingress"]
    assert ingress["from"] == peers(clients, workers, {"app.kubernetes.io/name": "prometheus"})
    redis, names, to_workers = policy["egress"]
    [(host, port)] = parse_store_url(settings.redis_url or "").hosts
    assert redis == {
        "to": peers({"app.kubernetes.io/name": host}),
        "ports": [{"protocol": "TCP", "port": port}],
    }
    assert names == {"ports": [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]}
    assert to_workers == {"to": peers(workers), "ports": [{"protocol": "TCP"}]}


# Safety


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


def test_a_rollout_takes_no_replica_away() -> None:
    rollout = {"maxSurge": 1, "maxUnavailable": 0}
    assert manifest("Deployment")["spec"]["strategy"] == {"type": "RollingUpdate", "rollingUpdate": rollout}


def test_memory_is_limited_and_cpu_is_not(container: Document) -> None:
    resources = container["resources"]
    assert resources["requests"].keys() == {"cpu", "memory"}
    assert resources["limits"].keys() == {"memory"}


@pytest.mark.parametrize("path", sorted(FOLDER.iterdir()), ids=lambda path: path.name)
def test_lines_are_short(path: Path) -> None:
    assert max(map(len, path.read_text().splitlines())) <= 120
