"""haproxy.cfg knows the controller's routes: what is none goes to workers, and is never asked twice."""

import pytest

from controller.web.app import build_app
from controller.web.forward_plane import WORKER_ROUTES
from tests.deploy.compose import ROOT

CONFIG = (ROOT / "deploy/haproxy/haproxy.cfg").read_text()


@pytest.mark.parametrize("backend", CONFIG.split("\nbackend ")[1:], ids=lambda text: text.split()[0])
def test_it_knows_which_routes_are_quick_and_which_wait(backend: str) -> None:
    acls: dict[str, set[str]] = {"quick": set(), "waits": set()}
    for words in (line.split() for line in backend.split("\nfrontend ")[0].splitlines()):
        if words[:1] == ["acl"]:
            assert words[2] == "path"
            acls[words[1]] |= set(words[3:])
    app = build_app(None, None)  # type: ignore[arg-type]  # nothing is asked of it but its routes
    own = {route.path for route in app._app.routes} - set(WORKER_ROUTES) - {"/worker_generate_stream"}  # type: ignore[attr-defined]
    assert acls["waits"] == {"/register_worker", "/refresh_all_workers"}
    assert acls["quick"] == own - acls["waits"]
    assert "http-request disable-l7-retry unless quick or waits" in backend
    assert "http-request set-timeout server 2s if quick" in backend
