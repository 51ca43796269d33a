"""Checks the packages that the controller installs: each has an allowed licence, and constraints.txt pins it.

Also checks the files of other projects that the package itself contains: supply/vendored.toml has their digests.

The packages are those that `pip install controller-cluster` installs into this environment. Test and build packages are
not among them, because they are not distributed. Lists the licences, and exits with status 1 if something is wrong.
"""

import hashlib
import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = "controller-cluster"
CLASSIFIER = "License ::"


def installed(project: str, find: Callable[[str], Distribution] = distribution) -> dict[str, Distribution]:
    """Return a project and all packages that it needs in this environment, by canonical name.

    Raises PackageNotFoundError if one of them is not installed.
    """
    found: dict[str, Distribution] = {}
    visited: set[tuple[str, tuple[str, ...]]] = set()
    waiting: list[tuple[str, tuple[str, ...]]] = [(project, ())]
    while waiting:
        name, extras = waiting.pop()
        if (canonicalize_name(name), extras) in visited:
            continue
        visited.add((canonicalize_name(name), extras))
        package = found[canonicalize_name(name)] = find(name)
        for requirement in map(Requirement, package.requires or ()):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                waiting.append((requirement.name, tuple(sorted(requirement.extras))))
    return dict(sorted(found.items()))


def licences(package: Distribution) -> list[str]:
    """Return the licences of a package as its metadata spells them. All of them apply, even if the package says OR."""
    metadata = package.metadata
    if expressions := metadata.get_all("License-Expression", []):
        return [part for part in re.split(r"\s+(?:AND|OR)\s+|[()]", expressions[0]) if part.strip()]
    classifiers = [each for each in metadata.get_all("Classifier", []) if each.startswith(CLASSIFIER)]
    if classifiers:
        return [each.rpartition(" :: ")[2] for each in classifiers]
    return metadata.get_all("License", ["none in its metadata"])


def allowed(path: Path = ROOT / "supply/licences.toml") -> dict[str, str]:
    """Return the SPDX identifier of each allowed spelling of a licence."""
    table: Mapping[str, list[str]] = tomllib.loads(path.read_text())["allowed"]
    return {spelling: name for name, others in table.items() for spelling in (name, *others)}


def pins(path: Path = ROOT / "constraints.txt") -> dict[str, str]:
    """Return the pinned version of each package, by canonical name."""
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines if line)}


def faults(packages: Iterable[Distribution], known: Mapping[str, str], pinned: Mapping[str, str]) -> list[str]:
    """Return a sentence for each package whose licence is unknown, or whose version is not the pinned one."""
    found = []
    for package in packages:
        unknown = [licence for licence in licences(package) if licence not in known]
        if unknown:
            found.append(
                f"{package.name} {package.version} has a licence that is not allowed: {', '.join(unknown)[:100]}. "
                "Add the licence to supply/licences.toml if it may be distributed with the controller. "
                "Otherwise use another package."
            )
        pin = pinned.get(canonicalize_name(package.name))
        if pin != package.version:
            found.append(
                f"{package.name} {package.version} is installed, and constraints.txt has {pin or 'no version'}. "
                "An image would contain a different version from the one that was tested. Correct constraints.txt."
            )
    return found


def vendored(path: Path = ROOT / "supply/vendored.toml") -> dict[str, dict[str, Any]]:
    """Return the projects whose files the package contains, by name."""
    return tomllib.loads(path.read_text())


def vendored_faults(
    projects: Mapping[str, Mapping[str, Any]], known: Mapping[str, str], root: Path = ROOT
) -> list[str]:
    """Return a sentence for each file that is missing, changed or not named, and for each unknown licence."""
    found = []
    for name, project in projects.items():
        folder = root / project["folder"]
        if project["licence"] not in known:
            found.append(f"{name} has a licence that is not allowed: {project['licence']}.")
        digests = {
            file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in folder.rglob("*")
            if file.is_file()
        }
        found += [
            f"{project['folder']}/{file} is not that of {name} {project['version']} in supply/vendored.toml. Copy the "
            "file from its package again, or correct its digest."
            for file in sorted({*digests, *project["files"]})
            if digests.get(file) != project["files"].get(file)
        ]
    return found


def main() -> int:
    """Print the packages by licence, and what is wrong. Return the exit status."""
    packages = installed(PROJECT)
    known = allowed()
    by_licence: dict[str, list[str]] = {}
    for name, package in packages.items():
        expression = " AND ".join(dict.fromkeys(known.get(licence, licence)[:100] for licence in licences(package)))
        by_licence.setdefault(expression, []).append(name)
    copied = vendored()
    for name, project in copied.items():
        by_licence.setdefault(project["licence"], []).append(f"{name} {project['version']} (its files are copied)")
    for expression, names in sorted(by_licence.items()):
        print(f"{expression}: {', '.join(names)}")
    own = packages.pop(PROJECT)
    wrong = (
        faults(packages.values(), known, pins())
        + faults([own], known, {PROJECT: own.version})
        + vendored_faults(copied, known)
    )
    for each in wrong:
        print(each, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
