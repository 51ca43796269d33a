"""The files for load balancers list the controller's own routes. Balancers retry only requests to these routes."""

import re

import pytest

from controller.settings import Settings
from controller.web.asgi.endpoint import ForwardEndpoint
from controller.web.asgi.gateway import GatewayEndpoint
from controller.web.routes.table import FALLBACK, ROUTES, Resend
from tests.deploy.compose import ROOT

pytestmark = pytest.mark.deploy

HAPROXY = [(ROOT / "deploy/haproxy" / name).read_text() for name in ("haproxy.cfg", "fixed-addresses.cfg")]
QUICK, SLOW = ({route.path for route in ROUTES if route.resend is kind} for kind in (Resend.QUICK, Resend.SLOW))


def test_requests_that_a_worker_may_have_are_not_sent_again() -> None:
    forwarded = {route.path for route in (*ROUTES, FALLBACK) if route.endpoint in (ForwardEndpoint, GatewayEndpoint)}
    assert forwarded
    assert not forwarded & (QUICK | SLOW)


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
    assert acls["waits"] == SLOW
    assert acls["quick"] == QUICK
    assert "http-request disable-l7-retry unless quick or waits" in backend
    assert "http-request set-timeout server 2s if quick" in backend


@pytest.mark.parametrize("file", ["nginx/nginx.conf", "caddy/Caddyfile"])
def test_nginx_and_caddy_list_quick_and_waiting_routes(file: str) -> None:
    quick, waits = re.findall(r"\^/\((?:\?<own>)?([\w|\\./-]+)\)\$", (ROOT / "deploy" / file).read_text())
    assert {f"/{route}" for route in waits.split("|")} == SLOW
    assert {f"/{route}" for route in quick.replace("\\.", ".").split("|")} == QUICK


@pytest.mark.parametrize(
    ("file", "timeout", "times"),
    [
        ("haproxy/haproxy.cfg", r"(?m)^  timeout server (\d+)s", 1),
        ("haproxy/fixed-addresses.cfg", r"(?m)^  timeout server (\d+)s", 1),
        ("nginx/nginx.conf", r"proxy_read_timeout (\d+)s", 3),
        ("caddy/Caddyfile", r"response_header_timeout (\d+)s", 3),
    ],
)
def test_forwarded_requests_may_be_silent_for_longer_than_the_worker_timeout(
    file: str, timeout: str, times: int
) -> None:
    """A worker may be silent for --worker-timeout and then return a 5xx. The next worker has as much time."""
    settings = Settings()
    found = [int(seconds) for seconds in re.findall(timeout, (ROOT / "deploy" / file).read_text())]
    assert len(found) == times
    assert found[-1] >= settings.worker_timeout * settings.forward_tries
    assert found[-1] > settings.register_timeout


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
