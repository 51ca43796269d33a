"""The checks of the packages that the controller installs: licences, pins and vulnerabilities."""

import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, PathDistribution
from pathlib import Path

import pytest

from supply import audit, dependencies

ROOT = Path(__file__).parents[1]
ALLOWED = {"MIT": "MIT", "MIT License": "MIT", "Apache-2.0": "Apache-2.0"}


@pytest.fixture
def package(tmp_path: Path) -> "type[Package]":
    Package.folder = tmp_path
    return Package


class Package:
    """Writes the metadata of invented packages."""

    folder: Path

    @classmethod
    def of(cls, *metadata: str, name: str = "invented") -> Distribution:
        folder = cls.folder / f"{name}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            "\n".join(["Metadata-Version: 2.4", f"Name: {name}", "Version: 1.2", *metadata])
        )
        return PathDistribution(folder)


def test_installed_packages_pass() -> None:
    done = subprocess.run([sys.executable, "supply/dependencies.py"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    listed = set(re.findall(r"[\w-]+", " ".join(line.partition(": ")[2] for line in done.stdout.splitlines())))
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {re.split(r"[>\[;]", each)[0] for each in declared} < listed
    assert {"yarl", "h11", "mdurl"} < listed  # needed by other packages only
    assert not {"pytest", "fschat", "ruff", "hatchling"} & listed


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (["License-Expression: MIT"], None),
        (["License-Expression: (MIT AND Apache-2.0)"], None),
        (["License-Expression: MIT AND GPL-3.0-only"], "GPL-3.0-only"),
        (["License-Expression: MIT OR SSPL-1.0"], "SSPL-1.0"),
        (["License-Expression: Apache-2.0 WITH LLVM-exception"], "Apache-2.0 WITH LLVM-exception"),
        (["Classifier: License :: OSI Approved :: MIT License", "License: a text of many words"], None),
        (["Classifier: License :: OSI Approved :: GNU Affero General Public License v3"], "Affero"),
        (["License: MIT"], None),
        (["License: proprietary"], "proprietary"),
        ([], "none in its metadata"),
    ],
)
def test_a_licence_that_is_not_allowed_is_found(
    package: type[Package], metadata: list[str], message: str | None
) -> None:
    found = dependencies.faults([package.of(*metadata)], ALLOWED, {"invented": "1.2"})
    assert len(found) == bool(message)
    assert message is None or (message in found[0] and "invented 1.2" in found[0])


def test_a_package_with_another_version_than_its_pin_is_found(package: type[Package]) -> None:
    mit = package.of("License: MIT")
    [differs] = dependencies.faults([mit], ALLOWED, {"invented": "1.3"})
    assert "constraints.txt has 1.3" in differs
    [unpinned] = dependencies.faults([mit], ALLOWED, {})
    assert "constraints.txt has no version" in unpinned


def test_packages_of_packages_and_extras_are_found(package: type[Package]) -> None:
    packages = {
        "a": package.of("Requires-Dist: b[fast]>=1", 'Requires-Dist: never; python_version < "3"', name="a"),
        "b": package.of('Requires-Dist: c; extra == "fast"', 'Requires-Dist: d; extra == "other"', name="b"),
        "c": package.of("Requires-Dist: A", name="c"),
    }
    found = dependencies.installed("a", lambda name: packages[name.lower()])
    assert list(found) == ["a", "b", "c"]
    with pytest.raises(PackageNotFoundError):
        dependencies.installed("not-installed-anywhere")


def test_copied_files_are_those_of_their_package(tmp_path: Path) -> None:
    projects = dependencies.vendored()
    assert dependencies.vendored_faults(projects, dependencies.allowed()) == []
    shutil.copytree(ROOT / projects["lit-html"]["folder"], tmp_path / projects["lit-html"]["folder"])
    folder = tmp_path / projects["lit-html"]["folder"]
    (folder / "lit-html.js").write_text("export const html = eval")
    (folder / "directive.js").unlink()
    (folder / "another.js").touch()
    changed = dependencies.vendored_faults(projects, {}, tmp_path)
    assert [re.split(r"[ :]", each.rpartition("/lit-html/")[2])[0] for each in changed] == [
        "lit-html", "another.js", "directive.js", "lit-html.js",
    ]  # fmt: skip


def test_all_packages_of_pyproject_are_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = [
        project["project"]["dependencies"],
        *project["dependency-groups"].values(),
        project["build-system"]["requires"],
    ]
    named = {re.split(r"[>=\[;]", each)[0].replace("_", "-").lower() for group in groups for each in group}
    assert named <= dependencies.pins().keys()


def test_a_report_with_skipped_packages_does_not_count_them_as_audited() -> None:
    found = [{"id": "CVE-1", "fix_versions": ["2"]}, {"id": "CVE-2", "fix_versions": []}]
    packages = [
        {"name": "good", "version": "1", "vulns": []},
        {"name": "bad", "version": "1", "vulns": found},
        {"name": "unknown", "skip_reason": "not found"},
    ]
    vulnerable, audited, skipped = audit.verdict({"dependencies": packages})
    assert vulnerable == ["bad 1 has CVE-1. Fixed in: 2.", "bad 1 has CVE-2. Fixed in: no version yet."]
    assert (audited, skipped) == (2, ["unknown"])


@pytest.mark.parametrize(
    ("reports", "status", "output"),
    [
        (["no network", "no network"], 0, "NOT AUDITED: no service could be asked"),
        ([{"dependencies": [{"name": "a", "skip_reason": ""}]}, "no network"], 0, "has none of the 1 packages"),
        (
            ["no network", {"dependencies": [{"name": "a", "version": "1", "vulns": []}]}],
            0,
            "1 packages looked up at osv",
        ),
        (
            [{"dependencies": [{"name": "a", "version": "1", "vulns": [{"id": "X", "fix_versions": []}]}]}],
            1,
            "a 1 has X",
        ),
    ],
)
def test_an_audit_without_a_service_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], reports: list[object], status: int, output: str
) -> None:
    answers = iter(reports)
    monkeypatch.setattr(audit, "report", lambda _: next(answers))
    assert audit.main() == status
    assert output in "".join(capsys.readouterr())
