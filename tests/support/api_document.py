"""Compares requests and responses with the API document."""

import json
import re
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator

from controller.web.openapi.document import build

# The headers whose presence the document describes.
DESCRIBED_HEADERS = ("x-controller-degraded", "x-controller-error", "retry-after", "www-authenticate")


@cache
def document() -> dict[str, Any]:
    return build()


def operation(method: str, path: str) -> dict[str, Any] | None:
    for template, methods in document()["paths"].items():
        if re.fullmatch(re.sub(r"\\\{\w+\\\}", ".+", re.escape(template)), path):
            found: dict[str, Any] | None = methods.get(method.lower())
            return found
    return None


def resolved(value: dict[str, Any]) -> dict[str, Any]:
    """Return what a reference refers to."""
    if "$ref" not in value:
        return value
    found: Any = document()
    for part in value["$ref"].removeprefix("#/").split("/"):
        found = found[part]
    return found


def check_value(value: Any, schema: dict[str, Any], *, is_response: bool = False) -> None:
    """Raise ValidationError if a value does not match a schema of the document.

    is_response: the value may have only the fields that the schema lists. Clients may send others, which are ignored.
    """
    _validator(json.dumps(schema), is_response).validate(value)


@cache
def _validator(schema: str, is_response: bool) -> Draft202012Validator:
    whole = {"components": document()["components"], **json.loads(schema)}
    return Draft202012Validator(_without_other_fields(whole) if is_response else whole)


def _without_other_fields(schema: Any) -> Any:
    """Return a copy of a schema that forbids all fields that it does not list.

    The parts of an `allOf` stay as they are: each lists only some of the fields.
    """
    if isinstance(schema, list):
        return [_without_other_fields(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {"additionalProperties": False} if isinstance(schema.get("properties"), dict) else {}
    return {**closed, **{key: part if key == "allOf" else _without_other_fields(part) for key, part in schema.items()}}


def check_request(method: str, path: str, body: Any) -> None:
    """Raise an error if the document does not allow the body of a request."""
    found = operation(method, path)
    assert found is not None
    if body is None:
        assert "requestBody" not in found, f"{path} needs a body"
    else:
        check_value(body, found["requestBody"]["content"]["application/json"]["schema"])


def check_response(method: str, path: str, status: int, headers: dict[str, str], body: bytes) -> None:
    """Raise an error if the document does not describe a response of a route. Unknown routes are ignored.

    headers: with names in lower case.
    """
    found = operation(method, path)
    if found is None:
        return
    where = f"{method} {path} {status}"
    responses = found["responses"]
    assert str(status) in responses or "default" in responses, f"{where}: the document lacks this status"
    described = resolved(responses.get(str(status)) or responses["default"])
    media = headers.get("content-type", "").partition(";")[0]
    content = described.get("content", {})
    assert media in content or "*/*" in content or not (content or body), f"{where}: the document lacks {media!r}"
    are_ours = "*/*" not in content  # otherwise the body and the headers may be a worker's
    if media == "application/json" and are_ours:
        check_value(json.loads(body), content[media]["schema"], is_response=True)
    described_headers = {name.lower(): value for name, value in described.get("headers", {}).items()}
    if are_ours:
        for name in DESCRIBED_HEADERS:
            assert name not in headers or name in described_headers, f"{where}: the document lacks the header {name}"
    for name, header in described_headers.items():
        if name in headers:
            schema = resolved(header)["schema"]
            value = headers[name]
            check_value(json.loads(value) if schema["type"] in ("integer", "number") else value, schema)
