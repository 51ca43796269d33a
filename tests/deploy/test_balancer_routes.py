"""The files for load balancers list the controller's own routes. Balancers retry only requests to these routes."""

import re

import pytest

from controller.settings import Settings
from controller.web.asgi.endpoint import ForwardEndpoint
from controller.web.routes.table import ROUTES
from tests.deploy.compose import ROOT

pytestmark = pytest.mark.deploy

HAPROXY = [(ROOT / "deploy/haproxy" / name).read_text() for name in ("haproxy.cfg", "fixed-addresses.cfg")]
WAITS = {"/register_worker", "/register_engine", "/engines", "/refresh_all_workers", "/set_model_route"}
# The response of a repeated request says that there was nothing to do.
ONCE = {"/create_token", "/revoke_token", "/remove_model_route"}

ENDLESS = {"/events", "/overview"}  # the response may have no end, and may be silent for 15 s
FILES = {"/", "/page/{file:path}"}  # of the page. Its user can load them again
MODELS = {"/v1/models", "/v1/models/{model:path}"}  # OpenAI's clients retry them by themselves


def own_routes() -> set[str]:
    return {route.path for route in ROUTES if route.endpoint is not ForwardEndpoint} - ONCE - ENDLESS - FILES - MODELS


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
    quick, waits = re.findall(r"\^/\((?:\?<own>)?([a-z_|\\.]+)\)\$", (ROOT / "deploy" / file).read_text())
    assert {f"/{route}" for route in waits.split("|")} == WAITS
    assert {f"/{route}" for route in quick.replace("\\.", ".").split("|")} == own_routes() - WAITS


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
