"""The manifests of Kubernetes, and the settings that a replica gets from them."""

import shutil
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from click.testing import CliRunner

from controller.cli.main import main
from controller.server import run as server
from controller.settings import Settings

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
