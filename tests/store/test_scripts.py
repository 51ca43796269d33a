"""The Lua folder: each header is a contract that its body and its Python caller keep."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.store import scripts
from controller.store.reconciliation import split
from controller.store.registry import Registry
from tests.conftest import Store
from tests.support.samples import A, asks, reports, worker

FOLDER = Path(str(scripts.folder()))
SCRIPTS = sorted(FOLDER.glob("*.lua"))
INCLUDES = sorted((FOLDER / "include").glob("*.lua"))


def parts(path: Path) -> tuple[str, str]:
    """Header and body of a script."""
    match = re.match(r"--\[\[\n(.*?)\]\]\n(.*)", path.read_text(), re.DOTALL)
    assert match, f"{path.name} does not begin with a header"
    return match[1], match[2]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_header_tells_purpose_input_and_output(path: Path) -> None:
    header, _ = parts(path)
    purpose, _, rest = header.partition("\n  Input:\n")
    inputs, _, outputs = rest.partition("\n  Output:\n")
    assert len(purpose.split()) >= 3
    assert "KEYS[1]" in inputs
    assert outputs.strip()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_header_and_body_name_the_same_arguments(path: Path) -> None:
    header, body = parts(path)
    inputs = header.partition("\n  Input:\n")[2].partition("\n  Output:\n")[0]
    listed = re.findall(r"^    (KEYS|ARGV)\[(\d+)(…?)\]", inputs, re.MULTILINE)
    fixed = {int(number) for kind, number, more in listed if kind == "ARGV" and not more}
    open_ended = [int(number) for kind, number, more in listed if kind == "ARGV" and more]
    assert [kind for kind, *_ in listed].count("KEYS") == 1
    assert fixed | set(open_ended) == set(range(1, len(fixed) + len(open_ended) + 1)), "numbered without a gap"
    literal = {int(number) for number in re.findall(r"ARGV\[(\d+)\]", body)}
    assert fixed <= literal <= fixed | set(open_ended)
    assert bool(re.search(r"#ARGV", body)) == bool(open_ended)
    assert ("INVALID" in header) == ("INVALID" in body)


@pytest.mark.parametrize("path", [*SCRIPTS, *INCLUDES], ids=lambda p: p.stem)
def test_a_file_includes_what_it_uses_and_no_more(path: Path) -> None:
    _, body = parts(path)
    for block in re.findall(r'(?:^ *--- @include "\w+"\n)+', body, re.MULTILINE):
        names = re.findall(r'"(\w+)"', block)
        assert names == sorted(set(names))
    included = re.findall(r'^ *--- @include "(\w+)"$', body, re.MULTILINE)
    code = re.sub(r'--.*$|"[^"]*"', "", body, flags=re.MULTILINE)
    functions = {include.stem for include in INCLUDES} - {path.stem}
    assert set(included) == {name for name in functions if re.search(rf"\b{name}\(", code)}


@pytest.mark.parametrize("path", INCLUDES, ids=lambda p: p.stem)
def test_an_include_is_one_function_named_as_its_file(path: Path) -> None:
    header, body = parts(path)
    assert re.findall(r"^local function (\w+)\(", body, re.MULTILINE) == [path.stem]
    assert len(header.strip()) > 20


@pytest.mark.parametrize("path", [*SCRIPTS, *INCLUDES], ids=lambda p: p.stem)
def test_scripts_are_plain(path: Path) -> None:
    """Nothing that fakeredis, Redis Cluster or a second clock would stumble over."""
    text = path.read_text()
    assert '"KEYS"' not in text
    assert "SCAN" not in text.replace("ZSCAN", "").replace("SSCAN", "")
    assert not text.startswith("#!")
    assert ("TIME" in text.replace("TIMEOUT", "")) == (path.stem == "now")
    assert "math.random" not in text
    assert all(len(line) <= 120 for line in text.splitlines())
    for line in text.splitlines():
        assert not re.match(r"^\s*function ", line), f"a global function: {line}"
        assert not re.match(r"^[a-z_]+ = ", line), f"a global variable: {line}"


def test_one_script_a_method_with_the_same_name() -> None:
    assert scripts.names() == [path.stem for path in SCRIPTS]
    for name in scripts.names():
        assert callable(getattr(Registry, name))
        assert f'"{name}"' in inspect.getsource(Registry)


async def test_callers_pass_the_arguments_that_the_headers_name(
    store: Store, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: dict[str, int] = {}
    run = Registry._run

    async def counting(self: Registry, script: str, *arguments: str | int) -> object:
        calls[script] = len(arguments)
        return await run(self, script, *arguments)

    monkeypatch.setattr(Registry, "_run", counting)
    await registry.register(worker(A))
    await registry.heartbeat(reports([(A, 0)]))
    await registry.dispatch_shortest_queue(asks(["m"]))
    await registry.dispatch_lottery(asks(["m"]))
    (await registry.list_workers()).workers
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
    await registry.join_replicas("replica", 1.0)
    await registry.acquire_job("duty", "replica", 1.0)
    await registry.complete_job("duty", "replica", 1.0, "told", 1.0)
    for settlement in split({A: 1}, [], 0):
        await registry.reconcile(settlement)
    await registry.remove(A)
    tails = {
        "heartbeat": 3,
        "dispatch_shortest_queue": 2,
        "dispatch_lottery": 3,
        "reconcile": 2,
        "remove": 2,
        "drain": 2,
        "report_failure": 2,
        "register": 14,
        "list_models": 0,
        "correct_heartbeats": 2,
    }  # what a repeated part holds, where it is not one
    for path in SCRIPTS:
        inputs = parts(path)[0].partition("\n  Input:\n")[2].partition("\n  Output:\n")[0]
        listed = re.findall(r"^    ARGV\[\d+(…?)\]", inputs, re.MULTILINE)
        assert calls[path.stem] == listed.count("") + listed.count("…") * tails.get(path.stem, 1)
    assert store.client is not None


def test_a_source_has_each_include_once_and_before_its_use() -> None:
    source = scripts.source("register")
    for name in ("key", "member", "leave_pools", "forget", "finite"):
        assert source.count(f"local function {name}(") == 1
        definition = source.index(f"local function {name}(")
        assert definition < source.index(f"{name}(", definition + 20)
    assert "@include" not in source


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder that the scripts are read from."""
    (tmp_path / "include").mkdir()
    monkeypatch.setattr(scripts, "folder", lambda: tmp_path)
    for read in (scripts.source, scripts._included):
        read.cache_clear()
    yield tmp_path
    for read in (scripts.source, scripts._included):
        read.cache_clear()


def test_an_include_within_a_function_is_put_there_unless_it_is_in_front(written: Path) -> None:
    files = {
        "x": '--- @include "a"\na()\n',
        "include/a": '--- @include "b"\nlocal function a()\n  if b() then\n    --- @include "c"\n    c()\n  end\nend\n',
        "include/b": "local function b() end\n",
        "include/c": '--- @include "b"\n--- @include "d"\nlocal function c() b() d() end\n',
        "include/d": "local function d() end\n",
        "y": '--- @include "a"\n--- @include "d"\na()\nd()\n',
    }
    for name, text in files.items():
        (written / f"{name}.lua").write_text(text)
    b, d = files["include/b"], files["include/d"]
    c = "local function c() b() d() end\n"
    before, after = "local function a()\n  if b() then\n", "    c()\n  end\nend\n"
    assert scripts.source("x") == b + before + d + c + after + "a()\n"
    assert scripts.source("y") == b + d + before + c + after + "a()\nd()\n"


def test_an_include_of_itself_is_refused(written: Path) -> None:
    (written / "x.lua").write_text('--- @include "a"\n')
    (written / "include" / "a.lua").write_text('--- @include "b"\n')
    (written / "include" / "b.lua").write_text('--- @include "a"\n')
    with pytest.raises(ValueError, match="includes itself, by way of a and b"):
        scripts.source("x")


def test_the_user_that_deploy_gives_to_the_replicas_may_do_all_that_the_scripts_do() -> None:
    rights = set(re.findall(r" \+([a-z]+)", (SCRIPTS[0].parent.parent / "deploy/redis/users.acl").read_text()))
    called = {
        name.lower()
        for path in [*SCRIPTS, *INCLUDES]
        for name in re.findall(r'redis\.p?call\("(\w+)', path.read_text())
    }
    assert len(called) > 15
    assert called <= rights
