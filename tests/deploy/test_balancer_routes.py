"""The files for load balancers list the controller's own routes. Balancers retry only requests to these routes."""

import re

import pytest

from controller.web.asgi.endpoint import ForwardEndpoint
from controller.web.routes.table import ROUTES
from tests.deploy.compose import ROOT

pytestmark = pytest.mark.deploy

HAPROXY = [(ROOT / "deploy/haproxy" / name).read_text() for name in ("haproxy.cfg", "fixed-addresses.cfg")]
WAITS = {"/register_worker", "/refresh_all_workers"}


def own_routes() -> set[str]:
    return {route.path for route in ROUTES if route.endpoint is not ForwardEndpoint}


@pytest.mark.parametrize(
    "backend",
    [backend for config in HAPROXY for backend in config.split("\nbackend ")[1:]],
    ids=lambda text: text.split()[0],
)
def test_haproxy_lists_quick_and_waiting_routes(backend: str) -> None:
    acls: dict[str, set[str]] = {"quick": set(), "waits": set()}
    for words in (line.split() for line in backend.split("\nfrontend ")[0].splitlines()):
        if words[:1] == ["acl"]:
            assert words[2] == "path"
            acls[words[1]] |= set(words[3:])
    assert acls["waits"] == WAITS
    assert acls["quick"] == own_routes() - WAITS
    assert "http-request disable-l7-retry unless quick or waits" in backend
    assert "http-request set-timeout server 2s if quick" in backend


@pytest.mark.parametrize("file", ["nginx/nginx.conf", "caddy/Caddyfile"])
def test_nginx_and_caddy_list_quick_and_waiting_routes(file: str) -> None:
    quick, waits = re.findall(r"\^/\((?:\?<own>)?([a-z_|]+)\)\$", (ROOT / "deploy" / file).read_text())
    assert {f"/{route}" for route in waits.split("|")} == WAITS
    assert {f"/{route}" for route in quick.split("|")} == own_routes() - WAITS


@pytest.mark.parametrize(
    ("file", "option"),
    [
        ("haproxy/haproxy.cfg", "option http-no-delay"),  # otherwise HAProxy waits up to 0.2 s for more frames
        ("haproxy/fixed-addresses.cfg", "option http-no-delay"),
        ("nginx/nginx.conf", "proxy_buffering off;"),
    ],
)
def test_frames_are_not_buffered(file: str, option: str) -> None:
    assert option in (ROOT / "deploy" / file).read_text()
