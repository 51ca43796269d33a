"""Builds the OpenAPI document from the route table, the contracts and the types of bodies."""

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from controller import __version__
from controller.domain.errors import (
    BodyTooLarge,
    ControllerError,
    Forbidden,
    LimitReached,
    TooManyBodies,
    TooManyRegistrations,
    Unauthorized,
)
from controller.domain.hops import HEADER, MAX_HOPS
from controller.security.tokens import Plane
from controller.web.asgi.endpoint import (
    ForwardEndpoint,
    HeartbeatEndpoint,
    HopEndpoint,
    RegistrationEndpoint,
)
from controller.web.asgi.gateway import GatewayEndpoint, ModelEndpoint
from controller.web.errors import status_of_kind
from controller.web.openapi.contracts import CONTRACTS, DEGRADED, ERROR, Contract, Parameter
from controller.web.openapi.types import Types, summary_of, summary_of_struct
from controller.web.routes.table import FALLBACK, ROUTES, Route
from controller.web.schemas.openai import OpenAiError, is_openai_path
from controller.web.schemas.responses import Error, WorkerFailure

JSON: Final = "application/json"
_TEXT: Final = "text/plain"
_PATH: Final = Parameter(
    "-".join(part.capitalize() for part in HEADER.split("-")),
    "The ids of the clusters that the request has passed. Only controllers send it.",
    {"type": "string", "pattern": rf"^([A-Za-z0-9_-]{{1,64}}(,[A-Za-z0-9_-]{{1,64}}){{0,{MAX_HOPS - 2}}})?$"},
    "header",
)
_SCHEMES: Final = ("bearer", "basic")
_TAGS: Final = {
    "Workers": "Routes that workers call. They need a token of the plane worker.",
    "Clients": "Routes that clients call. They need a token of the plane client.",
    "Forwarded requests": "Requests of clients that the controller forwards to a worker of their model.",
    "Operators": "Routes that operators and monitoring call. They need a token of the plane admin.",
    "Everybody": "Routes that need no token.",
}
_TAG_OF: Final = {
    Plane.WORKER: "Workers",
    Plane.CLIENT: "Clients",
    Plane.ADMIN: "Operators",
    Plane.PUBLIC: "Everybody",
}
# The errors of the HTTP protocol, and of bugs: status, and what the code means.
_OTHER_ERRORS: Final[Mapping[str, tuple[int, str]]] = {
    "invalid_http": (400, "The request is not HTTP. The connection is closed."),
    "head_timeout": (408, "The head of the request was not complete in time. The connection is closed."),
    "body_timeout": (408, "The body of the request was not complete in time. The connection is closed."),
    "head_too_large": (431, "The headers of the request are too long."),
    "internal_error": (500, "A bug. The log of the controller has the details."),
    "too_many_connections": (503, "This replica has reached its limit of connections."),
}
_HEADERS: Final[Mapping[str, tuple[str, Mapping[str, Any]]]] = {
    DEGRADED: (
        "The response comes from a snapshot, because Redis is unavailable. The value is its age in seconds.",
        {"type": "number", "minimum": 0},
    ),
    ERROR: ("The code of the error.", {"type": "string", "pattern": "^[a-z_]+$"}),
    "ETag": ("Identifies the content, for the header `If-None-Match`.", {"type": "string"}),
    "Retry-After": ("Seconds after which to try again.", {"type": "integer", "minimum": 1}),
    "WWW-Authenticate": ("Tells a browser to ask for a name, which may be any, and a token.", {"type": "string"}),
}
_TEXT_ERROR: Final = "The code, a colon and the message in one line. Workers would take a JSON object for a success."
_INTRODUCTION: Final = """\
The HTTP API of controller-cluster. It has all routes of FastChat's controller, and more.

Bodies are JSON. The header `Content-Type` of a request is ignored, and so are fields that a route does not need.

A route belongs to a *plane*: workers, clients, operators (`admin`) or everybody. Send a token of the plane as
`Authorization: Bearer TOKEN`, or as the password of `Authorization: Basic`. An admin token opens all planes. A
controller without access control needs no tokens, and one with allow-lists accepts requests from listed addresses.

An error is a JSON object with a stable code and a message. FastChat's clients read only the bodies of responses, so
some errors have the status 200: their code is in the header `X-Controller-Error`, or in the field `error_code`. An
unknown path gets a 404 with the code `not_found`, and another method a 405 with the code `method_not_allowed`.

## POST to any other path

"""


def build() -> dict[str, Any]:
    """Return the document. It depends on the version of the package only."""
    return _Builder(ROUTES, FALLBACK).document()


class _Builder:
    def __init__(self, routes: Sequence[Route], fallback: Route) -> None:
        self._routes = routes
        self._fallback = fallback
        self._types = Types()
        self._responses: dict[str, Any] = {}

    def document(self) -> dict[str, Any]:
        paths: dict[str, Any] = {}
        for route in self._routes:
            paths.setdefault(path_of(route), {})[route.method.lower()] = self._operation(route, CONTRACTS[route.path])
        self._types.reference(WorkerFailure)
        used = {operation["tags"][0] for path in paths.values() for operation in path.values()}
        return {
            "openapi": "3.1.0",
            "info": {
                "title": "controller-cluster",
                "version": __version__,
                "summary": "The HTTP API of the controller",
                "description": _INTRODUCTION + (inspect.getdoc(self._fallback.handler) or ""),
                "license": {"name": "Apache License 2.0", "identifier": "Apache-2.0"},
            },
            "servers": [{"url": "/", "description": "This controller"}],
            "tags": [{"name": name, "description": text} for name, text in _TAGS.items() if name in used],
            "paths": paths,
            "components": {
                "schemas": self._types.components(),
                "responses": dict(sorted(self._responses.items())),
                "headers": {
                    name: {"description": text, "schema": dict(schema)} for name, (text, schema) in _HEADERS.items()
                },
                "securitySchemes": {
                    "bearer": {"type": "http", "scheme": "bearer", "description": "A token."},
                    "basic": {
                        "type": "http",
                        "scheme": "basic",
                        "description": "A token as the password. The name may be any.",
                    },
                    "api_key": {
                        "type": "apiKey",
                        "in": "header",
                        "name": "X-Api-Key",
                        "description": "A token, as Anthropic's clients send it.",
                    },
                },
            },
        }

    def _operation(self, route: Route, contract: Contract) -> dict[str, Any]:
        description = inspect.getdoc(route.handler) or ""
        summary = contract.summary or first_sentence(" ".join(description.partition("\n\n")[0].split()))
        operation: dict[str, Any] = {
            "operationId": re.sub(r"\W+", "_", path_of(route)).strip("_") or "page",
            "tags": ["Forwarded requests" if route.endpoint is ForwardEndpoint else _TAG_OF[route.plane]],
            "summary": summary.removesuffix("."),
            "description": f"{contract.summary}\n\n{description}" if contract.summary else description,
            "security": _security(route),
        }
        if parameters := _parameters(route, contract):
            operation["parameters"] = [
                {
                    "name": each.name,
                    "in": each.location,
                    "required": each.required,
                    "description": each.description,
                    "schema": dict(each.schema),
                }
                for each in parameters
            ]
        if contract.body is not None:
            schema = self._types.reference(contract.body)
            operation["requestBody"] = {"required": True, "content": {JSON: {"schema": schema}}}
        operation["responses"] = self._all_responses(route, contract)
        return operation

    def _all_responses(self, route: Route, contract: Contract) -> dict[str, Any]:
        found = {"200": self._success(contract)}
        for status, errors in sorted(_errors(route, contract).items()):
            found[str(status)] = (
                self._forwarded_error(status, errors) if contract.forwards else self._error(status, errors, route)
            )
        found |= {str(status): {"description": text} for status, text in contract.without_body.items()}
        if contract.forwards:
            found["default"] = {
                "description": "The response of the worker, of any status.",
                "content": {"*/*": {}},
            }
        return found

    def _success(self, contract: Contract) -> dict[str, Any]:
        content: dict[str, Any] = {
            media: {"schema": {"description": text} if media == "*/*" else {"type": "string", "description": text}}
            for media, text in contract.media.items()
        }
        description = " ".join(contract.media.values())
        if contract.returns is not None or not content:
            schema = self._types.reference(contract.returns)
            content = {JSON: {"schema": schema}, **content}
            described = schema.get("description") or summary_of_struct(contract.returns)
            description = described or "The request was carried out."
        return _response(description, contract.headers, content)

    def _forwarded_error(self, status: int, errors: Mapping[str, str]) -> dict[str, Any]:
        """Return what _error() does, for a route whose workers may return the same status."""
        description = f"The response of the worker, or one of these errors.\n\n{_listed(errors)}"
        response = _response(description, _headers(errors), {JSON: {}, "*/*": {}})
        return self._shared([str(status), "or-worker", *errors], response)

    def _error(self, status: int, errors: Mapping[str, str], route: Route) -> dict[str, Any]:
        """Return a reference to the response with a status and some codes, which several routes share."""
        is_text, is_openai = route.endpoint is HeartbeatEndpoint, is_openai_path(route.path)
        as_json = [code for code in errors if not is_text or (code in _OTHER_ERRORS and code != "internal_error")]
        headers = _headers(errors)
        content: dict[str, Any] = {}
        if len(as_json) < len(errors):
            headers.append(ERROR)
            content[_TEXT] = {"schema": {"type": "string", "description": _TEXT_ERROR}}
        if as_json:
            only = {"properties": {"error": {"properties": {"code": {"enum": as_json}}}}}
            form = self._types.reference(OpenAiError if is_openai else Error)
            content[JSON] = {"schema": {"allOf": [form, only]}}
        name = [str(status), *(["text"] if is_text else []), *(["openai"] if is_openai else []), *errors]
        return self._shared(name, _response(_listed(errors), headers, content))

    def _shared(self, name: Sequence[str], response: dict[str, Any]) -> dict[str, Any]:
        self._responses["-".join(name)] = response
        return {"$ref": f"#/components/responses/{'-'.join(name)}"}


def _response(description: str, headers: Sequence[str], content: dict[str, Any]) -> dict[str, Any]:
    references = {name: {"$ref": f"#/components/headers/{name}"} for name in headers}
    return {"description": description, **({"headers": references} if references else {}), "content": content}


def _headers(errors: Iterable[str]) -> list[str]:
    """Return the names of the headers that responses with these codes may have."""
    headers = ["WWW-Authenticate"] if Unauthorized.code in errors else []
    return [*headers, *(["Retry-After"] if _LIMITS.intersection(errors) else [])]


def _listed(errors: Mapping[str, str]) -> str:
    return "\n".join(f"- `{code}`: {meaning}" for code, meaning in errors.items())


def path_of(route: Route) -> str:
    """Return the path of a route as OpenAPI writes it, without the types of its parts."""
    return re.sub(r"\{(\w+):\w+\}", r"{\1}", route.path)


def first_sentence(text: str) -> str:
    """Return the first sentence of a text."""
    return re.split(r"(?<=\.) ", text)[0]


def _security(route: Route) -> list[dict[str, list[str]]]:
    """Return the alternatives. The roles in the lists are planes."""
    if route.plane is Plane.PUBLIC:
        return []
    planes = dict.fromkeys((route.plane, *route.other_planes, Plane.ADMIN))
    schemes = (*_SCHEMES, "api_key") if route.endpoint in (GatewayEndpoint, ModelEndpoint) else _SCHEMES
    return [{scheme: [str(plane)]} for plane in planes for scheme in schemes]


def _parameters(route: Route, contract: Contract) -> tuple[Parameter, ...]:
    takes_hops = route.endpoint in (ForwardEndpoint, HopEndpoint, ModelEndpoint, RegistrationEndpoint)
    return (*contract.parameters, _PATH) if takes_hops else contract.parameters


def _errors(route: Route, contract: Contract) -> dict[int, dict[str, str]]:
    """Return the meanings of the codes of a route's errors, by status and code."""
    found: dict[int, dict[str, str]] = {}
    for status, kinds in contract.errors.items():
        for kind in kinds:
            found.setdefault(status, {})[kind.code] = summary_of(kind)
    for status, codes in contract.codes.items():
        found.setdefault(status, {}).update(codes)
    for kind in _errors_of_endpoint(route):
        found.setdefault(status_of_kind(kind), {})[kind.code] = summary_of(kind)
    for code, (status, meaning) in _OTHER_ERRORS.items():
        found.setdefault(status, {})[code] = meaning
    return found


def _errors_of_endpoint(route: Route) -> Iterator[type[ControllerError]]:
    if route.plane is not Plane.PUBLIC:
        yield Unauthorized
        yield Forbidden
        yield TooManyBodies
    yield BodyTooLarge
    if route.endpoint is RegistrationEndpoint:
        yield TooManyRegistrations


def _limits(kind: type[ControllerError] = LimitReached) -> Iterator[str]:
    for child in kind.__subclasses__():
        yield child.code
        yield from _limits(child)


_LIMITS: Final = frozenset({*_limits(), "too_many_connections"})
