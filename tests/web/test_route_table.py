"""Test that each route is unique, that each path has one plane, and that the hot path supports the hot routes."""

from collections import Counter

from controller.security.tokens import Plane
from controller.web.asgi.endpoint import ForwardEndpoint
from controller.web.routes.table import ROUTES


def test_each_method_and_path_appears_once() -> None:
    counts = Counter((route.method, route.path) for route in ROUTES)
    assert [key for key, count in counts.items() if count > 1] == []


def test_a_path_has_one_plane() -> None:
    """Otherwise a caller could reach a handler of another plane by another method."""
    planes: dict[str, set[Plane]] = {}
    for route in ROUTES:
        planes.setdefault(route.path, set()).add(route.plane)
    assert {path: found for path, found in planes.items() if len(found) > 1} == {}


def test_hot_routes_are_posts_and_forward_nothing() -> None:
    hot = [route for route in ROUTES if route.hot]
    assert hot
    assert all(route.method == "POST" and route.endpoint is not ForwardEndpoint for route in hot)


def test_forwarded_routes_belong_to_clients() -> None:
    assert {route.plane for route in ROUTES if route.endpoint is ForwardEndpoint} == {Plane.CLIENT}
