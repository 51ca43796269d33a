"""Writes the page about the HTTP API: from the route table, the API document and the examples."""

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from controller.security.tokens import TOKEN_PLANES, Plane
from controller.web.openapi.contracts import CONTRACTS
from controller.web.openapi.document import build, first_sentence, path_of
from controller.web.openapi.types import summary_of
from controller.web.openapi.words import kind_of, meaning_of
from controller.web.routes.table import FALLBACK, ROUTES, Route
from controller.web.schemas.fields import COMPONENTS
from docs.scripts.http_examples import EXAMPLES, as_console
from docs.scripts.markdown import code, table

# The routes of FastChat's controller and of its workers. The others are additions of this project.
_FASTCHAT_ROUTES: Final = frozenset(
    {
        "/register_worker",
        "/refresh_all_workers",
        "/list_models",
        "/list_multimodal_models",
        "/list_language_models",
        "/get_worker_address",
        "/receive_heart_beat",
        "/worker_generate_stream",
        "/worker_get_status",
        "/test_connection",
        "/worker_generate",
        "/worker_get_embeddings",
        "/count_token",
        "/worker_get_conv_template",
        "/model_details",
    }
)
_PLANES: Final = (*TOKEN_PLANES, Plane.PUBLIC)
_DOCUMENT: Final = build()


def title(route: Route) -> str:
    """Return the heading of a route."""
    return f"{route.method} {'any other path' if route is FALLBACK else route.path}"


def routes() -> str:
    """Return one row for each route of the table, in the order of the planes."""
    rows = []
    for route in sorted((*ROUTES, FALLBACK), key=lambda route: _PLANES.index(route.plane)):
        anchor = re.sub(r"[^a-z0-9_ -]", "", title(route).lower()).strip().replace(" ", "-")
        notes = [word for word, applies in (("hot", route.hot), ("new", route.path not in _FASTCHAT_ROUTES)) if applies]
        link = f"[`{title(route)}`](#{anchor})"
        summary = _shared_summary(route) or first_sentence(summary_of(route.handler))
        rows.append((link, route.plane.value, ", ".join(notes), summary))
    return table("Route | Plane | Notes | What it does", rows)


def _shared_summary(route: Route) -> str:
    """Return what a route does, if its handler has several routes. Otherwise ""."""
    return "" if route is FALLBACK else CONTRACTS[route.path].summary


def route(*paths: str) -> str:
    """Return the description of a route with its examples and fields.

    Several routes with one handler share the description. Each then has its own summary and examples, but no fields.
    """
    found = [next(route for route in (*ROUTES, FALLBACK) if route.path == path) for path in paths]
    description = (inspect.getdoc(found[0].handler) or "") + "\n"
    if len(found) == 1:
        return f"### `{title(found[0])}`\n\n{description}\n{_examples(found[0])}{_fields(found[0])}"
    sections = [f"### `{title(one)}`\n\n{_shared_summary(one)}\n\n{_examples(one)}" for one in found]
    return "\n".join([description, *sections])


def _examples(route: Route) -> str:
    parts = []
    for example in EXAMPLES:
        if example.path == route.path:
            note = f"{example.note}\n\n" if example.note else ""
            parts.append(f"{note}```console\n{as_console(example, route.method)}\n```\n")
    return "\n".join(parts)


def _fields(route: Route) -> str:
    """Return the tables of a route: its parameters, and the fields of its body and of its response."""
    if route is FALLBACK:
        return ""
    operation = _DOCUMENT["paths"][path_of(route)][route.method.lower()]
    parameters = [
        (
            code(each["name"]) + ("" if each["required"] else ", optional"),
            kind_of(each["schema"]),
            meaning_of({**each["schema"], "description": each["description"]}),
        )
        for each in operation.get("parameters", ())
        if each["in"] == "query" or not each["name"].startswith("X-")
    ]
    body = operation.get("requestBody", {"content": {}})["content"].get("application/json", {}).get("schema", {})
    returned = operation["responses"]["200"]["content"].get("application/json", {}).get("schema", {})
    tables = (
        ("Parameter | Type | Meaning", parameters),
        ("Field | Type | Meaning", list(_rows(body, is_request=True))),
        ("Field of the response | Type | Meaning", list(_rows(returned))),
    )
    return "".join(f"\n{table(header, rows)}" for header, rows in tables if rows)


def _rows(schema: Mapping[str, Any], within: str = "", *, is_request: bool = False) -> Iterator[tuple[str, str, str]]:
    """Yield a row for each field of a schema. The fields of an inner object follow it."""
    schema = _resolved(schema)
    required = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        optional = ", optional" if is_request and name not in required else ""
        described = field if "description" in field else _resolved(field.get("items", field))
        yield code(within + name) + optional, kind_of(field), meaning_of(described)
        items = field.get("items", {})
        inner = [each for each in (field, items, *field.get("anyOf", ())) if "$ref" in each]
        for each in inner:
            yield from _rows(each, f"{within}{name}{'[]' if each is items else ''}.", is_request=is_request)


def _resolved(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    if "$ref" not in schema:
        return schema
    found: Mapping[str, Any] = _DOCUMENT["components"]["schemas"][schema["$ref"].removeprefix(COMPONENTS)]
    return found
