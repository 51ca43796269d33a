"""The documentation agrees with the code: generated pages are current, links lead somewhere, commands exist."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from controller.cli.main import main
from controller.domain import errors
from controller.web.errors import status_of
from controller.web.routes.table import FALLBACK, ROUTES
from docs.scripts import http_reference, pictures, reference
from docs.scripts.http_examples import EXAMPLES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text()
# The metadata of an editable installation may be older.
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *ROOT.glob("deploy/**/*.md")])
SENDS_NO_RESPONSE = {
    "invalid_settings",
    "embedded_store",
    "controller_unreachable",
    "controller_refused",
    "parent_unreachable",
}
OF_USERS = {"deploy/.env"}  # files that users write
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(text: str) -> str:
    """The text without blocks of code."""
    return re.sub(r"(?m)^(?: {4}|\t).*$", "", FENCE.sub("", text))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as the site and GitHub make them."""
    headings = re.findall(r"(?m)^#+ (.*)$", FENCE.sub("", page.read_text()))
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


@pytest.mark.parametrize("page", reference.pages(), ids=name)
def test_generated_tables_are_current(page: Path) -> None:
    text = page.read_text()
    assert reference.generated(text) == text, "run make docs-reference"


def test_pictures_are_current() -> None:
    for file, text in pictures.pictures():
        assert (pictures.IMAGES / file).read_text() == text, f"run python docs/scripts/pictures.py: {file} is stale"


def test_each_route_is_described_by_an_example() -> None:
    """tests/system/test_http_examples.py sends the requests of the examples."""
    page = (reference.REFERENCE / "http-api.md").read_text()
    assert len(ROUTES) > 12
    for route in (*ROUTES, FALLBACK):
        assert f"\n### `{http_reference.title(route)}`\n" in page, f"add a marker for {route.path}: make docs-reference"
        assert any(example.path == route.path for example in EXAMPLES), f"add an example of {route.path}"


def test_declared_keys_are_found_in_a_header() -> None:
    header = """--[[
  Do something.

  Keys:
    model:<pool>         ZSET         rw  a reason
    '{<ns>}:leases'      ZSET with a TTL  r
    sequence STRING rw, heartbeat:<worker name> STRING r
    draining:<worker>  w  it is a note
  Input:
    ARGV[1] SET r
]]
"""
    assert list(reference.declared_keys(header)) == [
        ("model", "rw"), ("leases", "r"), ("sequence", "rw"), ("heartbeat", "r"), ("draining", "w"),
    ]  # fmt: skip
    assert list(reference.declared_keys("--[[\n  Keys: sweep STRING w\n]]\n")) == [("sweep", "w")]
    assert list(reference.declared_keys("--[[\n  Input:\n    KEYS[1]\n]]\n")) == []


def error_classes(
    parent: type[errors.ControllerError] = errors.ControllerError,
) -> Iterator[type[errors.ControllerError]]:
    for child in parent.__subclasses__():
        yield child
        yield from error_classes(child)


def test_each_error_is_listed_with_its_status() -> None:
    page = (reference.REFERENCE / "errors.md").read_text()
    responses = page[page.index("## Responses\n") : page.index("## Responses with status 200")]
    for error in error_classes():
        if error.__subclasses__() or error.code in SENDS_NO_RESPONSE or issubclass(error, errors.WorkerRefused):
            continue
        statuses = re.findall(rf"(?m)^\| (\d+) \|.*`{error.code}`", responses)
        assert statuses, error.code
        status = status_of(error.__new__(error))
        assert status == 500 or str(status) in statuses, error.code


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_named_tests_exist(page: Path) -> None:
    """A page names a test as `file::test`, below tests/."""
    for file, test in re.findall(r"`([\w./]+\.py)::(\w+)`", page.read_text()):
        path = ROOT / "tests" / file
        assert path.exists(), file
        assert re.search(rf"(?m)^\s*(?:async )?def {test}\(", path.read_text()), f"{file}::{test}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_and_files_exist(page: Path) -> None:
    text = prose(page.read_text())
    links = re.findall(r"\]\((?!https?:)([^)\s]+)\)", text) + re.findall(r'(?:src|srcset)="(?!https?:)([^"]+)"', text)
    for link in links:
        target, _, anchor = link.partition("#")
        linked = (page.parent / target) if target else page
        assert linked.exists(), link
        if anchor and linked.suffix == ".md":
            assert anchor in anchors(linked), link
    for path in re.findall(r"`((?:benchmarks|examples|controller|deploy|lua|tests|docs)/[\w./-]+)`", text):
        assert (ROOT / path).exists() or path in OF_USERS, path


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_make_targets_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"(?m)(?:`|^    |\$ )make ([a-z-]+)", page.read_text())):
        assert f"\n{target}:" in makefile, target


def test_pages_show_the_present_version() -> None:
    shown = [
        (name(page), version)
        for page in PAGES
        for version in re.findall(r"controller(?:-cluster:| )(\d+\.\d+\.\d+)", page.read_text())
    ]
    manifests = ROOT / "deploy" / "kubernetes"
    for file in manifests.glob("*.yaml"):
        shown += [
            (name(file), version)
            for version in re.findall(r"(?:controller-cluster|newTag): *(\d+\.\d+\.\d+)", file.read_text())
        ]
    assert len(shown) > 4
    assert [each for each in shown if each[1] != VERSION] == []


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 200


def test_the_commands_of_the_quickstart_are_those_of_the_tour() -> None:
    """tests/system/test_tour.py runs the tour."""
    tour = (DOCS / "getting-started.md").read_text()
    commands = re.findall(r"(?m)^\$ (.*)$", README)
    assert len(commands) == 3
    for command in commands:
        assert f"$ {command}\n" in tour, command


def test_each_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    for page in DOCS.rglob("*.md"):
        assert page.relative_to(DOCS).as_posix() in navigation, page


def test_the_newest_release_in_the_changelog_is_the_present_version() -> None:
    releases = re.findall(r"(?m)^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text())
    assert releases[0] == VERSION


def test_the_changelog_has_the_present_form() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(r"(?m)^## \[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d$", text)
    assert set(re.findall(r"(?m)^### (.*)$", text)) <= {
        "Added", "Changed", "Changed (breaking)", "Deprecated", "Removed", "Fixed", "Security",
    }  # fmt: skip


def test_docstrings_begin_with_a_verb_or_a_noun() -> None:
    """A reader would have to guess the noun of "What may be left over." or "As register(), for many workers."."""
    headless = re.compile(r'(?m)^ *"""(?:What|Whatever|Whether|How|That|Those|As|Who|Where|Which|Why) .*')
    folders = ("controller", "benchmarks", "deploy", "docs", "supply", "tests")
    files = (file for folder in folders for file in (ROOT / folder).rglob("*.py"))
    assert [(file.name, found) for file in files for found in headless.findall(file.read_text())] == []


def commands_in(page: str) -> Iterator[list[str]]:
    """Yield the words of each command `controller ...` in the code of a page."""
    lines = re.findall(r"(?m)^(?: {4,}|\$ )(?:\.venv/bin/)?controller ([a-z]+\b.*)", page.replace("\\\n", " "))
    for text in lines + re.findall(r"`(?:\.venv/bin/)?controller ([a-z]+\b[^`]*)`", page):
        yield re.split(r"[|&;#>]| {3,}", text)[0].split()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_and_their_flags_exist(page: Path) -> None:
    for words in commands_in(page.read_text()):
        command: click.Command | None = main
        arguments = words
        while isinstance(command, click.Group) and arguments and re.fullmatch("[a-z]+", arguments[0]):
            command, arguments = command.commands.get(arguments[0]), arguments[1:]
        assert command is not None, words
        known = {flag for option in command.params for flag in (*option.opts, *option.secondary_opts)} | {"--help"}
        flags = {word.partition("=")[0].strip("[],.") for word in arguments if word.startswith("--")}
        assert flags <= known, (words, flags - known)


def test_phrases_that_are_not_used_do_not_stand_across_two_lines() -> None:
    """codespell reads single lines."""
    phrases = [line.partition("->")[0] for line in (ROOT / "docs/words.txt").read_text().splitlines()]
    line_break = r"[ ]*\n[\s#*-]*"
    found = re.compile(
        rf"\b(?:{'|'.join(line_break.join(each.split()) for each in phrases if ' ' in each)})\b", re.IGNORECASE
    )
    folders = ("benchmarks", "controller", "deploy", "docs", "lua", "supply", "tests")
    files = [file for folder in folders for suffix in ("py", "lua") for file in (ROOT / folder).rglob(f"*.{suffix}")]
    texts = {file.name: found.findall(file.read_text()) for file in (*PAGES, *files)}
    assert {file: phrases for file, phrases in texts.items() if phrases} == {}
