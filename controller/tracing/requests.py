"""The span of a client's request. It can be a part of the client's own trace."""

from collections.abc import Iterable
from typing import Any, Final

from opentelemetry import propagate
from opentelemetry.context import Context
from opentelemetry.semconv.attributes.client_attributes import CLIENT_ADDRESS
from opentelemetry.semconv.attributes.error_attributes import ERROR_TYPE
from opentelemetry.semconv.attributes.http_attributes import (
    HTTP_REQUEST_METHOD,
    HTTP_RESPONSE_STATUS_CODE,
    HTTP_ROUTE,
)
from opentelemetry.semconv.attributes.url_attributes import URL_PATH, URL_SCHEME
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from controller.security.access import Access
from controller.security.forward_paths import ForwardPaths
from controller.security.tokens import Plane
from controller.web.routes.table import ROUTES

_REQUEST_ID: Final = "controller.request_id"
_CLIENT_ROUTES: Final = {(route.method, route.path) for route in ROUTES if route.plane is Plane.CLIENT}
_OTHER_PATHS: Final = {route.path for route in ROUTES if route.plane is not Plane.CLIENT}
# The routes whose paths have parameters, with patterns that match their paths.
_WITH_PARAMETERS: Final = [(route, compile_path(route.path)[0]) for route in ROUTES if "{" in route.path]
_MAX_TEXT: Final = 200  # characters of a path


class TracedRequests:
    """Traces the requests of clients: to the routes of their plane, and to paths that are forwarded.

    The requests of workers, operators and monitoring are not traced: they are many, and alike.
    """

    def __init__(self, app: ASGIApp, tracer: Tracer, access: Access, paths: ForwardPaths) -> None:
        self._app = app
        self._tracer = tracer
        self._access = access
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or not _is_traced(scope["method"], scope["path"]):
            return await self._app(scope, receive, send)
        parent = propagate.extract(_joined(scope["headers"]), Context())
        attributes = self._attributes(scope)
        route = attributes.get(HTTP_ROUTE)
        name = f"{scope['method']} {route}" if route else scope["method"]
        with self._tracer.start_as_current_span(name, parent, SpanKind.SERVER, attributes) as span:

            async def observed(message: Message) -> None:
                if message["type"] == "http.response.start":
                    status = message["status"]
                    span.set_attribute(HTTP_RESPONSE_STATUS_CODE, status)
                    if status >= 500:
                        span.set_attribute(ERROR_TYPE, str(status))
                        span.set_status(Status(StatusCode.ERROR))
                await send(message)

            try:
                await self._app(scope, receive, observed)
            finally:
                if request_id := scope.get("request_id"):
                    span.set_attribute(_REQUEST_ID, request_id)
        return None

    def _attributes(self, scope: Scope) -> dict[str, Any]:
        method, path = scope["method"], scope["path"]
        attributes = {HTTP_REQUEST_METHOD: method, URL_PATH: path[:_MAX_TEXT], URL_SCHEME: scope["scheme"]}
        if address := self._access.address(scope):
            attributes[CLIENT_ADDRESS] = address
        # Span names come from lists, so that they are few.
        route = _client_route(method, path) or (path if self._paths.lists(path) else None)
        if route:
            attributes[HTTP_ROUTE] = route
        return attributes


def _joined(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return the headers of a request as text. The values of a repeated one are joined, as HTTP says."""
    joined: dict[str, str] = {}
    for name, value in headers:
        key, text = name.decode("latin-1"), value.decode("latin-1")
        joined[key] = f"{joined[key]},{text}" if key in joined else text
    return joined


def _is_traced(method: str, path: str) -> bool:
    return _client_route(method, path) is not None or (method == "POST" and not _is_of_another_plane(path))


def _client_route(method: str, path: str) -> str | None:
    """Return the path in the route table if it is a route of clients, otherwise None."""
    if (method, path) in _CLIENT_ROUTES:
        return path
    for route, pattern in _WITH_PARAMETERS:
        if route.method == method and route.plane is Plane.CLIENT and pattern.match(path):
            return route.path
    return None


def _is_of_another_plane(path: str) -> bool:
    return path in _OTHER_PATHS or any(
        route.plane is not Plane.CLIENT and pattern.match(path) for route, pattern in _WITH_PARAMETERS
    )
