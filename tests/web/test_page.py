"""The files of the page at `/`, and GET /overview."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import controller.web
from tests.conftest import Store
from tests.support.samples import A, B
from tests.support.waiting import wait_until
from tests.web.conftest import Api, open_api

STATIC = Path(controller.web.__file__).parent / "static"
FILES = sorted(file.relative_to(STATIC).as_posix() for file in STATIC.rglob("*") if file.is_file())
SERVED = [name for name in FILES if not name.endswith("LICENSE")]
STREAM = {"accept": "text/event-stream"}
TOKEN = "an-admin-token-of-this-test"


@pytest.fixture
async def closed(store: Store, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    monkeypatch.setenv("CONTROLLER_ADMIN_TOKENS", f"ops={TOKEN}")
    async for opened in open_api(store.registry(), admin_tokens=f"ops={TOKEN}"):
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
    response = await api.http.get("/" if name == "index.html" else f"/page/{name}")
    assert response.status_code == 200
    assert response.content == (STATIC / name).read_bytes()
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


async def test_a_known_file_is_not_sent_again(api: Api) -> None:
    first = await api.http.get("/page/main.js")
    etag = first.headers["etag"]
    assert first.headers["cache-control"] == "no-cache"
    for known in (etag, f"W/{etag}", f'"other", {etag}'):
        again = await api.http.get("/page/main.js", headers={"if-none-match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert (await api.http.get("/page/page.css", headers={"if-none-match": etag})).status_code == 200


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
    assert (await closed.http.get("/page/main.js")).status_code == 200
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


@pytest.mark.parametrize("path", ["/drain_worker", "/resume_worker", "/remove_worker", "/refresh_all_workers"])
async def test_pages_of_other_sites_cannot_act(api: Api, path: str) -> None:
    """A browser sends such a form without asking, and with a password that it remembers."""
    await api.register(A)
    for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)):
        headers = {"content-type": "text/plain", "sec-fetch-site": site}
        response = await api.http.post(path, content=json.dumps({"worker_name": A}), headers=headers)
        assert response.status_code == status, site


async def test_viewers_are_limited(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.fleet.overview._MAX_VIEWERS", 0)
    response = await api.http.get("/overview", headers=STREAM)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "too_many_followers")
    assert (await api.http.get("/overview")).status_code == 200
