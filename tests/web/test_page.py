"""The files of the page at `/`, and GET /overview."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

import controller.web
from controller.web.routes.table import ROUTES
from tests.conftest import Store
from tests.support.samples import A, B
from tests.support.waiting import wait_until
from tests.web.conftest import Api, open_api

STATIC = Path(controller.web.__file__).parent / "static"
FILES = sorted(file.relative_to(STATIC).as_posix() for file in STATIC.rglob("*") if file.is_file())
SERVED = [name for name in FILES if not name.endswith("LICENSE")]
STREAM = {"accept": "text/event-stream"}
TOKEN = "an-admin-token-of-this-test"
WITHOUT_VERSION = ("start.js", "icon.svg")


async def version_of(api: Api) -> str:
    """Return the version in the paths of the page's files."""
    [version] = re.findall(r'<meta name="page-version" content="([0-9a-f]{16})">', (await api.http.get("/")).text)
    return version


async def path_of(api: Api, name: str) -> str:
    if name == "index.html":
        return "/"
    return f"/page/{name}" if name in WITHOUT_VERSION else f"/page/{await version_of(api)}/{name}"


@pytest.fixture
async def closed(store: Store, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    monkeypatch.setenv("CONTROLLER_ADMIN_TOKENS", f"ops={TOKEN}")
    async with open_api(store.registry(), admin_tokens=f"ops={TOKEN}") as opened:
        yield opened


async def test_the_page_is_strict(api: Api) -> None:
    response = await api.http.get("/")
    assert (response.status_code, response.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = dict(part.strip().split(" ", 1) for part in response.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["frame-ancestors"] == "'none'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert {policy[f"{kind}-src"] for kind in ("script", "style", "connect", "img")} == {"'self'"}
    assert "unsafe" not in response.headers["content-security-policy"]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("name", SERVED)
async def test_files_load_only_files_that_exist(api: Api, name: str) -> None:
    response = await api.http.get(await path_of(api, name))
    assert response.status_code == 200
    version = await version_of(api) if name == "index.html" else "VERSION"
    assert response.content == (STATIC / name).read_bytes().replace(b"VERSION", version.encode())
    linked = re.findall(r'(?:from ?|import ?\(?|href=|src=)"([^"#]+)"', response.text)
    for link in linked:
        url = response.url.join(link)
        assert url.host == "controller"
        assert (await api.http.get(url)).status_code == 200, link


def test_our_scripts_make_no_html_from_text() -> None:
    """Names are hostile. Trusted Types refuse it in a browser, and this test names the line."""
    forbidden = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|unsafeHTML|unsafeSVG|eval\(|Function\("
    )
    scripts = [name for name in SERVED if name.endswith(".js") and "vendor" not in name]
    assert len(scripts) > 5
    assert [name for name in scripts if forbidden.search((STATIC / name).read_text())] == []


@pytest.mark.parametrize("name", ["main.js", "start.js", "index.html"])
async def test_a_known_file_is_not_sent_again(api: Api, name: str) -> None:
    path = await path_of(api, name)
    first = await api.http.get(path)
    etag = first.headers["etag"]
    caching = "public, max-age=31536000, immutable" if name == "main.js" else "no-cache"
    assert first.headers["cache-control"] == caching
    for known in (etag, f"W/{etag}", f'"other", {etag}'):
        again = await api.http.get(path, headers={"if-none-match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
        assert again.headers["cache-control"] == caching
    assert (await api.http.get(await path_of(api, "page.css"), headers={"if-none-match": etag})).status_code == 200


async def test_files_of_another_version_are_missing_and_their_absence_is_not_cached(api: Api) -> None:
    """A load balancer may send the requests of one page to replicas of two versions."""
    version = await version_of(api)
    for other in ("0" * 16, version.upper(), version[:-1]):
        response = await api.http.get(f"/page/{other}/main.js")
        assert (response.status_code, response.headers["cache-control"]) == (404, "no-store")
    assert (await api.http.get("/page/main.js")).status_code == 404


@pytest.mark.parametrize(
    "path",
    [
        "nothing.js",
        "../page.py",
        "%2e%2e/page.py",
        "..%2fpage.py",
        "vendor",
        "",
        "index.html",
        "vendor/lit-html/LICENSE",
        "\u2028",
    ],
)
async def test_other_files_are_not_served(api: Api, path: str) -> None:
    response = await api.http.get(f"/page/{path}")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")


async def test_the_page_needs_no_token_but_its_data_do(closed: Api) -> None:
    assert (await closed.http.get("/")).status_code == 200
    assert (await closed.http.get(await path_of(closed, "main.js"))).status_code == 200
    for headers in ({}, STREAM, {**STREAM, "authorization": "Bearer wrong"}):
        refused = await closed.http.get("/overview", headers=headers)
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "unauthorized")
    closed.replica.overview.stop()
    allowed = {"authorization": f"Bearer {TOKEN}"}
    assert (await closed.http.get("/overview", headers=allowed)).json()["workers"] == []
    assert (await closed.http.get("/overview", headers={**STREAM, **allowed})).status_code == 200


async def test_the_overview_as_json(api: Api) -> None:
    await api.register(A, "m", "<img src=x onerror=alert(1)>")
    await api.replica.snapshots.take_now()
    response = await api.http.get("/overview")
    assert (response.headers["content-type"], response.headers["cache-control"]) == ("application/json", "no-store")
    assert [row["model_names"] for row in response.json()["workers"]] == [["m", "<img src=x onerror=alert(1)>"]]


async def test_the_stream_begins_with_the_state_and_ends_with_the_replica(api: Api) -> None:
    await api.register(A)
    await api.register(B, "line\u2028break")
    await api.replica.snapshots.take_now()
    opened = api.http.build_request("GET", "/overview", headers=STREAM)
    pending = asyncio.ensure_future(api.http.send(opened))
    await wait_until(lambda: api.replica.overview.viewers, "the stream is open")
    await api.replica.overview.tick()
    api.replica.overview.stop()
    response = await pending
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-accel-buffering"] == "no"
    blocks = response.text.removesuffix("\n\n").split("\n\n")
    assert [block.split("\n")[0] for block in blocks] == ["event: state", "event: changes"]
    state = json.loads(blocks[0].split("\n")[1].removeprefix("data: "))
    assert [row["worker_name"] for row in state["workers"]] == [A, B]
    assert api.replica.overview.viewers == 0


# Clients may be pages of other sites, behind a proxy that allows it. These routes change no workers.
OF_CLIENTS = {"/get_worker_address", "/release_worker", "/renew_lease", "/list_models", "/list_multimodal_models",
    "/list_language_models", "/worker_generate_stream", "/worker_generate", "/worker_get_embeddings", "/count_token",
    "/worker_get_conv_template", "/model_details", "/worker_get_status"}  # fmt: skip
CHANGES = sorted({route.path for route in ROUTES if route.method == "POST"} - OF_CLIENTS)
ORIGINS: tuple[tuple[dict[str, str], bool], ...] = (
    ({"sec-fetch-site": "cross-site"}, False),
    ({"sec-fetch-site": "same-site", "origin": "http://controller"}, False),
    ({"sec-fetch-site": "same-origin", "origin": "http://behind-a-proxy"}, True),
    ({"sec-fetch-site": "none"}, True),
    ({"origin": "http://evil.test"}, False),  # a browser that reaches the controller by plain HTTP
    ({"origin": "http://controller:81"}, False),
    ({"origin": "null"}, False),
    ({"origin": "HTTP://Controller"}, True),
    ({}, True),
)


@pytest.mark.parametrize("path", CHANGES)
async def test_pages_of_other_sites_cannot_change_anything(api: Api, path: str) -> None:
    """A browser sends such a form without asking, and with a password that it remembers."""
    await api.register(A)
    body = {"worker_name": A, "check_heart_beat": True, "worker_status": {"model_names": ["m"], "speed": 1,
            "queue_length": 0}, "capacity": 1, "plane": "worker", "name": "web"}  # fmt: skip
    for origin, is_own in sorted(ORIGINS, key=lambda each: each[1]):  # first those that change nothing
        headers = {"content-type": "text/plain", **origin}
        response = await api.http.post(path, content=json.dumps(body), headers=headers)
        assert (response.status_code != 403) is is_own, origin
        if not is_own:
            [known] = (await api.registry.list_workers()).workers
            assert (known.name, known.failing, known.draining) == (A, "", False)


@pytest.mark.parametrize("path", ["/overview", "/events"])
async def test_head_of_a_stream_ends_at_once(api: Api, path: str) -> None:
    response = await api.http.head(path, headers=STREAM)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.content == b""
    assert (api.replica.overview.viewers, api.replica.events.followers) == (0, 0)


@pytest.mark.parametrize(
    ("accept", "is_stream"),
    [
        ("TEXT/Event-Stream", True),
        ("application/json, text/event-stream;q=0.5", True),
        ("application/json, text/event-stream; q=0", False),
        ("text/event-stream-of-others", False),
        ("*/*", False),
    ],
)
async def test_the_accepted_type_decides(api: Api, accept: str, is_stream: bool) -> None:
    response = await api.http.head("/overview", headers={"accept": accept})
    assert response.headers["content-type"].startswith("text/event-stream") is is_stream


async def test_few_viewers_are_sent_a_state_at_once(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """A viewer that reads slowly keeps its state in memory. Others wait for their turn."""
    overview = api.replica.overview
    monkeypatch.setattr(overview, "_sending", asyncio.Semaphore(2))
    streams = [overview.follow() for _ in range(5)]
    firsts = [asyncio.ensure_future(anext(stream)) for stream in streams]
    await wait_until(lambda: sum(first.done() for first in firsts) == 2, "two viewers have a state")
    assert overview.viewers == 5
    for number, stream in enumerate(streams):
        await firsts[number]
        await stream.aclose()
    assert all(first.done() for first in firsts)
    assert overview.viewers == 0


async def test_a_large_state_is_sent_in_pieces(api: Api) -> None:
    """uvicorn would buffer a large piece, whether the client reads or not."""
    for i in range(100):
        await api.register(f"http://127.0.0.1:1/{i}", *(f"model-{j}-{'x' * 200}" for j in range(20)))
    await api.replica.snapshots.take_now()
    sizes: list[int] = []

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            sizes.append(len(message["body"]))
            if sum(sizes) > 300_000:
                raise OSError("the client has left")

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "method": "GET", "path": "/overview", "raw_path": b"/overview", "query_string": b"",
             "headers": [(b"accept", b"text/event-stream")], "client": ("127.0.0.1", 1), "scheme": "http",
             "asgi": {"spec_version": "2.4"}, "http_version": "1.1", "root_path": "", "server": ("c", 80)}  # fmt: skip
    with pytest.raises(ClientDisconnect):
        await api.replica.app()(scope, receive, send)
    assert 1 < len(sizes) <= 6
    assert max(sizes) == 65_536
    assert api.replica.overview.viewers == 0


async def test_viewers_are_limited(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.fleet.overview._MAX_VIEWERS", 0)
    response = await api.http.get("/overview", headers=STREAM)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "too_many_followers")
    assert (await api.http.get("/overview")).status_code == 200
