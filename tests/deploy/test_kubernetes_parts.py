"""The parts beside the manifests of the controllers: Redis, routes, monitors, and a kustomization with all of them.

The schemas of the operators' kinds come from cloudcoil's models. There is no such model of HTTPRoute. If kubectl is on
PATH, the tests check what it renders: `kubectl kustomize` contains kustomize.
"""

import importlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from controller.settings import Settings
from tests.deploy.compose import ROOT, docker, docker_problem, images
from tests.deploy.manifests import FOLDER, KUBECTL, VERSIONS, Document, check, documents
from tests.deploy.test_image import RESTRICTED, running
from tests.support.waiting import wait_until

pytestmark = pytest.mark.deploy

EXAMPLE = ROOT / "examples/kubernetes"
COMPONENTS = FOLDER / "components"
REDIS = FOLDER / "redis"
MODELS = {
    "PodMonitor": "cloudcoil.models.prometheus_operator.v1",
    "ServiceMonitor": "cloudcoil.models.prometheus_operator.v1",
    "PrometheusRule": "cloudcoil.models.prometheus_operator.v1",
    "ScaledObject": "cloudcoil.models.keda.v1alpha1",
}
needs_kubectl = pytest.mark.skipif(KUBECTL is None, reason="NOT TESTED, kubectl kustomize: kubectl is not on PATH")


def manifest(path: Path) -> Document:
    [document] = documents(path.read_text())
    return document


def manifests(*folders: Path) -> list[Path]:
    found = [path for folder in folders for path in folder.rglob("*.yaml")]
    return sorted(path for path in found if path.name not in ("kustomization.yaml", "names.yaml"))


def check_model(document: Document) -> None:
    """Check a document. The model ignores unknown fields, so what it has read must be the whole document."""
    kind = document["kind"]
    model = getattr(importlib.import_module(MODELS[kind]), kind)  # takes seconds, so it is not at the top of this file
    assert model.model_validate(document).model_dump(mode="json", by_alias=True, exclude_unset=True) == document


@pytest.mark.parametrize(
    "path", [*manifests(COMPONENTS, REDIS), ROOT / "deploy/monitoring/scaled-object.yaml"], ids=lambda path: path.name
)
def test_every_field_is_known(path: Path) -> None:
    document = manifest(path)
    if document["kind"] in MODELS:
        check_model(document)
    elif document["kind"] != "HTTPRoute":
        for version in VERSIONS:
            check(path.read_text(), version)


def test_an_unknown_field_is_found() -> None:
    document = manifest(COMPONENTS / "pod-monitor/pod-monitor.yaml")
    document["spec"]["podMetricsEndpoints"][0]["interwal"] = "15s"
    with pytest.raises(AssertionError):
        check_model(document)


def test_the_command_of_the_guide_makes_a_rule_of_the_alerts() -> None:
    guide = (ROOT / "docs/guides/kubernetes.md").read_text()
    [command] = re.findall(r"(?s)    (\(printf .*?) \| kubectl apply", guide)
    rule = yaml.safe_load(subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, check=True).stdout)
    check_model(rule)
    assert rule["kind"] == "PrometheusRule"
    assert rule["spec"] == yaml.safe_load((ROOT / "deploy/monitoring/alerts.yaml").read_text())


def test_routes_allow_long_streams_and_large_bodies() -> None:
    settings = Settings()
    longest_silence = settings.worker_timeout * settings.forward_tries
    annotations = manifest(COMPONENTS / "ingress/ingress.yaml")["metadata"]["annotations"]
    timeouts = {name: int(value.removesuffix("s")) for name, value in annotations.items() if "timeout" in name}
    del timeouts[(nginx := "nginx.ingress.kubernetes.io/") + "proxy-send-timeout"]
    assert min(timeouts.values()) >= longest_silence
    assert len(timeouts) == 2
    assert annotations[f"{nginx}proxy-buffering"] == "off"
    assert annotations[f"{nginx}proxy-body-size"] == "32m"
    assert "non_idempotent" not in annotations[f"{nginx}proxy-next-upstream"]
    [rule] = manifest(COMPONENTS / "gateway/http-route.yaml")["spec"]["rules"]
    assert rule["timeouts"] == {"request": "0s", "backendRequest": "0s"}
    assert "retry" not in rule


# Redis


def test_redis_has_the_configuration_and_the_image_of_compose() -> None:
    def settings(path: Path) -> set[str]:
        return {line for line in path.read_text().splitlines() if line and not line.startswith("#")}

    ours, theirs = settings(REDIS / "redis.conf"), settings(ROOT / "deploy/redis/redis.conf")
    assert ours ^ theirs == {"aclfile /run/redis-users/users.acl", "aclfile /tmp/redis/users.acl"}
    [container] = manifest(REDIS / "stateful-set.yaml")["spec"]["template"]["spec"]["containers"]
    assert f"${{REDIS_IMAGE:-{container['image']}}}" in (ROOT / "deploy/docker-compose.yml").read_text()


async def test_redis_runs_as_the_stateful_set_says(tmp_path: Path) -> None:
    """Without rights, with a read-only file system, and with the users that the guide's command writes."""
    if reason := docker_problem() or ("" if "REDIS_IMAGE" in images() else "no image of Redis is available"):
        pytest.skip(f"NOT TESTED, containers: {reason}")
    spec = manifest(REDIS / "stateful-set.yaml")["spec"]["template"]["spec"]
    [container] = spec["containers"]
    write_secrets(tmp_path)
    tmp_path.chmod(0o755)
    (tmp_path / "users.acl").chmod(0o444)
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    sources = {"config": f"{REDIS}:{mounts['config']}:ro", "users": f"{tmp_path}:{mounts['users']}:ro"}
    volumes = [word for source in sources.values() for word in ("--volume", source)]
    user, group = spec["securityContext"]["runAsUser"], spec["securityContext"]["runAsGroup"]
    data = ["--tmpfs", f"{mounts['data']}:uid={user},gid={group}"]
    ping = container["readinessProbe"]["exec"]["command"]
    arguments = [*RESTRICTED, "--user", f"{user}:{group}", *volumes, *data]
    with running(*arguments, images()["REDIS_IMAGE"], *container["command"]) as redis:
        await wait_until(lambda: succeeds("docker", "exec", redis, *ping), "the readiness probe succeeds")
        as_controller = ["redis-cli", "--user", "controller", "--pass", "secret", "--no-auth-warning"]
        assert docker("exec", redis, *as_controller, "get", "{controller}:x") == "\n"
        assert "NOPERM" in docker("exec", redis, *as_controller, "get", "x")
        as_admin = ["redis-cli", "--user", "admin", "--pass", "operator", "--no-auth-warning"]
        assert docker("exec", redis, *as_admin, "config", "get", "maxmemory-policy").split()[1] == "noeviction"


def succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True).returncode == 0


def write_secrets(folder: Path) -> None:
    """Write the files of the Secrets. README.md has the command for the users of Redis."""
    (folder / "redis-password.txt").write_text("secret")
    (folder / "operator-password.txt").write_text("operator")
    for name in ("tokens.txt", "metrics-token.txt"):
        (folder / name).touch()
    [command] = re.findall(r"(?s)    (sed .*?) > users.acl", (FOLDER / "README.md").read_text())
    command = command.replace("deploy/redis", str(ROOT / "deploy/redis"))
    users = subprocess.run(["sh", "-c", command], cwd=folder, capture_output=True, text=True, check=True).stdout
    (folder / "users.acl").write_text(users)
    assert "PASSWORD" not in users
    assert "OPERATOR" not in users


# The example, with a prefix


def render(folder: Path) -> list[Document]:
    done = subprocess.run([str(KUBECTL), "kustomize", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return documents(done.stdout)


@pytest.fixture
def example(tmp_path: Path) -> list[Document]:
    """Return what the example renders, with all components."""
    shutil.copytree(FOLDER, tmp_path / "deploy/kubernetes")
    folder = shutil.copytree(EXAMPLE, tmp_path / "examples/kubernetes")
    write_secrets(folder)
    file = folder / "kustomization.yaml"
    used = yaml.safe_load(file.read_text())
    base = os.path.relpath(FOLDER, EXAMPLE)
    assert used["components"] == [f"{base}/components/{name}" for name in ("gateway", "pod-monitor")]
    used["components"] = [f"{base}/components/{path.name}" for path in sorted(COMPONENTS.iterdir())]
    used["labels"][0]["fields"].append({"path": "spec/selector/matchLabels", "kind": "ServiceMonitor", "create": True})
    file.write_text(yaml.safe_dump(used))
    return render(folder)


def named(document: Any) -> Iterator[tuple[str, str]]:
    """Yield the kind and the name of each object that a document refers to."""
    kinds = {"configMapRef": "ConfigMap", "configMap": "ConfigMap", "credentials": "Secret", "service": "Service"}
    if isinstance(document, list):
        for each in document:
            yield from named(each)
    elif isinstance(document, dict):
        for key, value in document.items():
            if key in kinds and "name" in value:
                yield kinds[key], value["name"]
            elif key == "secretName" and value != "controller-tls":  # the user's own certificate
                yield "Secret", value
            elif key == "serviceAccountName":
                yield "ServiceAccount", value
            elif key == "serviceName":
                yield "Service", value
            elif key == "scaleTargetRef":
                yield value["kind"], value["name"]
            elif key == "backendRefs":
                yield from (("Service", each["name"]) for each in value)
            else:
                yield from named(value)


@needs_kubectl
def test_all_names_of_the_example_have_the_prefix_and_exist(example: list[Document]) -> None:
    existing = {(document["kind"], document["metadata"]["name"]) for document in example}
    assert all(name.startswith("team-a-") for _, name in existing)
    found = {document["kind"]: set(named(document)) for document in example}
    assert set().union(*found.values()) <= existing
    for kind in ("Deployment", "StatefulSet", "HorizontalPodAutoscaler", "HTTPRoute", "Ingress", *list(MODELS)[:2]):
        assert found[kind], kind
    [url] = [each["data"]["CONTROLLER_REDIS_URL"] for each in example if "CONTROLLER_REDIS_URL" in each.get("data", {})]
    [host] = re.findall(r"@([\w-]+):6379", url)
    assert ("Service", host) in existing


def pods(rendered: list[Document]) -> dict[str, dict[str, str]]:
    """Return the labels of the pods, by the name of what starts them."""
    return {
        each["metadata"]["name"]: each["spec"]["template"]["metadata"]["labels"]
        for each in rendered
        if each["kind"] in ("Deployment", "StatefulSet")
    }


def selected(rendered: list[Document], every_pod: dict[str, dict[str, str]]) -> dict[tuple[str, str], set[str]]:
    """Return the pods that the selector of each document selects."""
    found = {}
    for each in rendered:
        spec = each.get("spec", {})
        selector = spec.get("selector") or spec.get("podSelector")
        if selector and each["kind"] != "ServiceMonitor":  # which selects Services
            labels = selector.get("matchLabels", selector).items()
            chosen = {name for name, pod in every_pod.items() if labels <= pod.items()}
            found[each["kind"], each["metadata"]["name"]] = chosen
    return found


@needs_kubectl
def test_clusters_in_one_namespace_select_their_own_pods(example: list[Document]) -> None:
    plain = [*render(FOLDER), *render(REDIS)]
    every_pod = pods(plain) | pods(example)
    assert set(every_pod) == {"controller", "redis", "team-a-controller", "team-a-redis"}
    found = selected(plain, every_pod) | selected(example, every_pod)
    assert found == {(kind, name): {name} for kind, name in found}
    assert len(found) == 15  # seven of each cluster, and the PodMonitor
    [monitor] = [each for each in example if each["kind"] == "ServiceMonitor"]
    [service] = [
        each for each in example if (each["kind"], each["metadata"]["name"]) == ("Service", "team-a-controller")
    ]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["spec"]["selector"]["matchLabels"]["app.kubernetes.io/instance"] == "team-a"


@needs_kubectl
def test_what_the_example_renders_is_valid(example: list[Document]) -> None:
    for document in example:
        if document["kind"] in MODELS:
            check_model(document)
        elif document["kind"] != "HTTPRoute":
            check(json.dumps(document), VERSIONS[-1])


@pytest.mark.parametrize("folder", [REDIS, *sorted(COMPONENTS.iterdir())], ids=lambda folder: folder.name)
def test_every_folder_lists_its_files(folder: Path) -> None:
    kustomization = manifest(folder / "kustomization.yaml")
    generated = [name for each in kustomization.get("configMapGenerator", []) for name in each["files"]]
    listed = [*kustomization["resources"], *kustomization.get("configurations", []), *generated]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*listed, "kustomization.yaml"])
