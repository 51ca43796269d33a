"""Test that the scripts and their Python callers match the script headers."""

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from controller.domain import checkpoints, cost
from controller.domain.capacity import CapacityTarget
from controller.domain.dispatch import DispatchMethod
from controller.domain.lease import MAX_LEASE_TIME
from controller.security.tokens import Plane, token_of
from controller.store import keys, scripts
from controller.store.entries import EntryList, ListName
from controller.store.reconciliation import split
from controller.store.registry import Find, NewEvent, Registry
from tests.conftest import Store
from tests.support.headers import Header, body_of, header_of
from tests.support.samples import A, asks, reports, worker

SCRIPTS = {name: Path(str(file)) for name, file in sorted(scripts.script_files().items())}
INCLUDES = {name: Path(str(file)) for name, file in sorted(scripts.include_files().items())}
CONSTANTS = dict(re.findall(r"^local ([A-Z_]+) = (\S+)$", INCLUDES["constants"].read_text(), re.MULTILINE))
ROOT = Path(str(scripts.folder())).parent
INCLUDE_LINE = re.compile(r'^--- @include "(\w+)"(?: when called)?$', re.MULTILINE)
GROUPS = re.compile(r"(argument_groups|read_requests|read_registrations)\((\d+), \{([^}]*)\}\)")
PARTS = {
    "worker_name": "name",
    "model_name": "model",
    "job_name": "job",
}  # parameter names of the key module, and their names in headers

every_script = pytest.mark.parametrize("name", SCRIPTS)
every_file = pytest.mark.parametrize("path", [*SCRIPTS.values(), *INCLUDES.values()], ids=lambda path: path.stem)


@dataclass
class Group:
    """The call that reads the arguments of the items, with the names of these arguments."""

    function: str
    first: int
    names: list[str]


def group_of(body: str) -> Group | None:
    found = GROUPS.search(body)
    return found and Group(found[1], int(found[2]), re.findall(r'"(\w+)"', found[3]))


def header(name: str) -> Header:
    return header_of(SCRIPTS[name])


def registration_arguments() -> list[str]:
    """Return the names of the arguments that describe a registration in all scripts."""
    names = re.search(r"local names = \{(.*?)unpack\(added\)", INCLUDES["read_registrations"].read_text(), re.DOTALL)
    assert names
    return re.findall(r'"(\w+)"', names[1])


@every_script
def test_header_describes_purpose_keys_input_and_output(name: str) -> None:
    assert len(header(name).purpose.split()) >= 5
    assert header(name).keys
    assert "{<namespace>}" in header(name).input
    assert header(name).output.strip()


@every_script
def test_header_keys_match_the_script_and_the_key_module(name: str) -> None:
    used = set(re.findall(r'\bkey\("(\w+)"', scripts.source(name)))
    in_order = [kind for kind in vars(keys) if kind in header(name).keys]
    assert list(header(name).keys) == in_order, "the header must list keys in the order of controller/store/keys.py"
    for kind, (part, key_type, _) in header(name).keys.items():
        function = getattr(keys, kind)
        _, *parts = inspect.signature(function).parameters
        assert part == "".join(PARTS.get(each, each) for each in parts)
        assert key_type == re.split(r"\W", function.__doc__)[0]
        assert kind in used


@every_script
def test_header_arguments_match_the_script(name: str) -> None:
    body = body_of(SCRIPTS[name])
    fixed, group = header(name).arguments, group_of(body)
    assert list(fixed) == list(range(1, len(fixed) + 1)), "argument numbers must have no gaps"
    for number, argument in fixed.items():
        lines = [line for line in body.splitlines() if f"ARGV[{number}]" in line]
        assert lines
        for line in lines:
            assert re.match(rf"local .*\b(is_)?{argument}\b.* = ", line), f"{argument} has no name in: {line}"
    assert set(map(int, re.findall(r"ARGV\[(\d+)\]", body))) == set(fixed)
    assert "ARGV" not in re.sub(r"ARGV\[\d+\]", "", re.sub(r"--.*", "", body))
    assert (header(name).first_of_group, header(name).group) == ((group.first, group.names) if group else (None, []))
    assert not group or group.first == len(fixed) + 1
    assert ("INVALID" in header(name).output) == ("INVALID" in body or "error_reply" in body)


@every_script
def test_scripts_name_arguments_before_any_other_statement(name: str) -> None:
    body = body_of(SCRIPTS[name])
    starts = ("redis.call", "\nlocal function", "\nreturn run_once")
    first_action = min(body.find(text) for text in starts if text in body)
    assert body.rfind("ARGV[") < first_action


@every_file
def test_files_include_exactly_the_functions_they_use(path: Path) -> None:
    body = body_of(path)
    included = INCLUDE_LINE.findall(body)
    assert included == sorted(set(included))
    assert body.startswith("--- @include") or not included, "includes must be at the top"
    code = re.sub(r'--.*$|"[^"]*"', "", body, flags=re.MULTILINE)
    used = {name for name in set(INCLUDES) - {path.stem} if re.search(rf"\b{name}\b", code)}
    if path.stem != "constants" and any(re.search(rf"\b{constant}\b", code) for constant in CONSTANTS):
        used.add("constants")
    assert set(included) == used


@every_file
def test_shared_numbers_have_names(path: Path) -> None:
    code = re.sub(r"--.*", "", body_of(path))
    numbers = [number for number in re.findall(r"(?<![\w.])-?\d[\d.e+]*", code) if number in CONSTANTS.values()]
    assert numbers == (list(CONSTANTS.values()) if path.stem == "constants" else [])


def test_constants_are_those_of_the_domain_and_cost_nothing_in_a_script() -> None:
    costs = {name: float(CONSTANTS[name]) for name in ("FULL", "FAILING", "MAX_SERVING", "MAX_FULL")}
    assert costs == {name: getattr(cost, name) for name in costs}
    assert int(CONSTANTS["MAX_WHOLE_NUMBER"]) == 2**53
    assert int(CONSTANTS["FAILING_OFFSET"]) == 2**54
    recent_ms = checkpoints.RECENT_CHECKPOINTS * checkpoints.CHECKPOINT_MS
    assert (int(CONSTANTS["CHECKPOINT_MS"]), int(CONSTANTS["RECENT_MS"])) == (checkpoints.CHECKPOINT_MS, recent_ms)
    assert int(CONSTANTS["RECENT_SIZE"]) == checkpoints.RECENT_CHECKPOINTS * int(CONSTANTS["CHECKPOINT_SIZE"])
    assert int(CONSTANTS["LEASES_TTL"]) > 1000 * MAX_LEASE_TIME
    used = "".join(re.sub(r"--.*", "", scripts.source(name)) for name in SCRIPTS)
    for name, number in CONSTANTS.items():
        assert not re.search(rf"\b{name}\b", used)
        assert number in used


@pytest.mark.parametrize("name", [name for name in INCLUDES if name != "constants"])
def test_include_defines_one_function_named_like_its_file(name: str) -> None:
    [(function, parameters)] = re.findall(r"^local function (\w+)\(([^)]*)\)", body_of(INCLUDES[name]), re.MULTILINE)
    assert function == name
    text = INCLUDES[name].read_text().partition("]]")[0]
    for parameter in re.findall(r"\w+", parameters):
        assert re.search(rf"\b{parameter}\b", text), f"the header does not describe {parameter}"


@every_script
def test_include_with_state_is_created_once(name: str) -> None:
    """A lazy include could otherwise create a second copy of the function, with separate state."""
    assert scripts.source(name).count("local function spend(") <= 1
    if "local function learn_decay(" in scripts.source(name):  # learn_decay() deletes the cache of decay_clock()
        assert scripts.source(name).count("local function decay_clock(") == 1


@every_file
def test_scripts_use_only_portable_commands(path: Path) -> None:
    """Scripts use only commands that fakeredis and Redis Cluster accept, and one clock for what they decide."""
    text = path.read_text()
    assert '"KEYS"' not in text
    assert "SCAN" not in re.sub("[HSZ]SCAN", "", text)
    assert not text.startswith("#!")
    assert ('"TIME"' in text) == (path.stem in {"now", "seconds"})
    assert "math.random" not in text
    assert all(len(line) <= 120 for line in text.splitlines())
    for line in text.splitlines():
        assert not re.match(r"^\s*function ", line), f"a global function: {line}"
        assert not re.match(r"^[a-z_]+ = ", line), f"a global variable: {line}"


def test_each_script_has_a_method_of_the_same_name_or_is_that_of_a_dispatch_method() -> None:
    """The scripts of the dispatch methods share Registry.dispatch_some(), which gets the method as an argument."""
    assert scripts.names() == list(SCRIPTS)
    methods = {name for name, member in inspect.getmembers(Registry) if callable(member)}
    dispatches = {f"dispatch_{method}" for method in DispatchMethod}
    assert set(SCRIPTS) - methods == dispatches
    for name in SCRIPTS:
        assert f'"{name}"' in "".join(inspect.getsource(each) for each in Registry.__mro__[:-1])


async def test_callers_pass_the_arguments_listed_in_headers(
    store: Store, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: dict[str, int] = {}
    run = Registry._run

    async def counting(self: Registry, script: str, *arguments: str | int) -> object:
        calls[script] = len(arguments)
        return await run(self, script, *arguments)

    monkeypatch.setattr(Registry, "_run", counting)
    await registry.register(worker(A))
    await registry.refresh(worker(A), 1)
    await registry.restore(worker(A))
    await registry.heartbeat(reports([(A, 0)]))
    for method in DispatchMethod:
        await registry.dispatch_some(method, asks(["m"]))
    await registry.find_workers([Find("m")])
    await registry.rank_workers("m")
    await registry.list_workers()
    await registry.list_models()
    await registry.list_models(multimodal=True)
    await registry.correct_heartbeats({A: 1.0})
    await registry.shorten_leases()
    await registry.sweep(1.0)
    await registry.check()
    await registry.release(["no lease"])
    await registry.renew("no lease")
    await registry.drain(A)
    await registry.report_failure(A)
    await registry.set_capacity(CapacityTarget(model="m"), 1)
    await registry.apply_capacities((await registry.list_workers()).workers)
    await registry.restore_capacities(await registry.list_capacities())
    await registry.set_token("ops", token_of("ops", Plane.ADMIN, "0123456789abcdef"))
    await registry.list_entries(ListName.TOKENS)
    await registry.restore_entries(ListName.TOKENS, EntryList(9, "change", {"ops": "{}"}))
    await registry.join_replicas("replica", 1.0)
    await registry.list_replicas()
    await registry.mark_listing("replica", 0, 1)
    await registry.acquire_job("job", "replica", 1.0)
    await registry.complete_job("job", "replica", 1.0, "result", 1.0)
    await registry.record_events([NewEvent("store_recovered", {"reason": "a"})])
    await registry.list_events("", 1)
    for part in split({A: 1}, [], 0):
        await registry.reconcile(part)
    await registry.remove(A)
    for name, path in SCRIPTS.items():
        group = group_of(body_of(path))
        common = registration_arguments() if group and group.function == "read_registrations" else []
        in_group = (
            len(common) + len(group.names) if group and name != "list_models" else 0
        )  # the first call of list_models passes no models
        assert calls[name] == len(header(name).arguments) + in_group, name


def test_registration_header_lists_its_arguments() -> None:
    text = INCLUDES["read_registrations"].read_text().partition("  Input:")[0]
    listed = re.findall(r"^    (\w+)  ", text, re.MULTILINE)
    added = {argument for name in SCRIPTS for argument in header(name).group if "registration" in header(name).input}
    assert set(listed) >= {*registration_arguments(), *({"registration", "age", "draining", "polled"} & added)}


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return an empty folder from which the scripts are read."""
    for subject in ("subject", "include/subject"):
        (tmp_path / subject).mkdir(parents=True)
    monkeypatch.setattr(scripts, "folder", lambda: tmp_path)
    caches = (scripts.source, scripts.script_files, scripts.include_files, scripts._include)
    for read in caches:
        read.cache_clear()
    yield tmp_path
    for read in caches:
        read.cache_clear()


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / f"{name}.lua").write_text(text)


def test_names_of_constants_are_replaced_by_their_numbers(written: Path) -> None:
    write(written, {
        "subject/x": '--- @include "a"\n--- @include "constants"\nreturn a() + LOW + LOWER\n',
        "include/a": '--- @include "constants"\nlocal function a() return LOW end\n',
        "include/constants": "--[[\n  C.\n]]\n-- A number.\nlocal LOW = -1e9\nlocal HIGH = 2\n",
    })  # fmt: skip
    assert scripts.source("x") == "local function a() return -1e9 end\nreturn a() + -1e9 + LOWER\n"


def test_source_contains_each_include_once_and_before_its_use(written: Path) -> None:
    write(written, {
        "subject/x": '--[[\n  X.\n]]\n--- @include "a"\n--- @include "b"\na()\nb()\n',
        "include/subject/a": '--[[\n  A.\n]]\n--- @include "b"\nlocal function a() b() end\n',
        "include/b": "local function b() end\n",
    })  # fmt: skip
    assert scripts.names() == ["x"]
    assert scripts.source("x") == "local function b() end\nlocal function a() b() end\na()\nb()\n"


def test_lazy_include_creates_its_function_when_called(written: Path) -> None:
    a = '--- @include "b"\n--- @include "c" when called\nlocal function a() if b() then c() end end\n'
    write(written, {
        "subject/x": '--- @include "a"\na()\n',
        "include/a": a,
        "include/b": "local function b() end\n",
        "include/c": '--- @include "b"\n--- @include "d"\nlocal function c() b() d() end\n',
        "include/d": "local function d() end\n",
        "subject/y": '--- @include "a"\n--- @include "d"\na()\nd()\n',
    })  # fmt: skip
    b, d, c = "local function b() end\n", "local function d() end\n", "local function c() b() d() end\n"
    a = 'local function a() if b() then when_called("c")() end end\n'
    created = "local created = {}\nwhen_called = function(name)\nif created[name] then\nreturn created[name]\n"
    create_c = 'elseif name == "c" then\n'
    end = "created.c = c\nend\nreturn created[name]\nend\n"
    assert scripts.source("x") == "local when_called\n" + b + a + created + create_c + d + c + end + "a()\n"
    assert scripts.source("y") == "local when_called\n" + b + d + a + created + create_c + c + end + "a()\nd()\n"


def test_lazy_include_is_called_directly_if_another_include_needs_it_at_once(written: Path) -> None:
    write(written, {
        "subject/x": '--- @include "a"\n--- @include "b" when called\na()\nb()\n',
        "include/a": '--- @include "b"\nlocal function a() b() end\n',
        "include/b": "local function b() end\n",
    })  # fmt: skip
    assert scripts.source("x") == "local function b() end\nlocal function a() b() end\na()\nb()\n"


def test_recursive_include_is_rejected(written: Path) -> None:
    write(written, {
        "subject/x": '--- @include "a"\n',
        "include/a": '--- @include "b"\n',
        "include/b": '--- @include "a"\n',
    })  # fmt: skip
    with pytest.raises(ValueError, match="includes itself, by way of a and b"):
        scripts.source("x")


def test_two_files_with_one_name_are_rejected(written: Path) -> None:
    write(written, {"include/a": "", "include/subject/a": ""})
    with pytest.raises(ValueError, match=r"Two files .* are named a\.lua"):
        scripts.include_files()


@every_file
def test_paths_in_headers_exist(path: Path) -> None:
    header_text = path.read_text().partition("]]")[0]
    for named in re.findall(r"\b(?:docs|tests|controller|include|deploy)/[\w/.-]+\.\w+", header_text):
        assert (ROOT / named).exists() or (ROOT / "lua" / named).exists(), named
