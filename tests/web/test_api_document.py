"""The API document describes each route as it is. Other tests of this directory compare responses with it."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from jsonschema import ValidationError
from openapi_spec_validator import OpenAPIV31SpecValidator

from controller import __version__
from controller.domain import errors
from controller.security.tokens import TOKEN_PLANES, Plane
from controller.web.openapi.contracts import CONTRACTS
from controller.web.openapi.document import path_of
from controller.web.routes.table import FALLBACK, ROUTES
from controller.web.schemas.openai import is_openai_path
from docs.scripts.http_examples import EXAMPLES, Example, Frames, Text
from tests.conftest import Store
from tests.support import api_document
from tests.support.api_document import check_request, check_value, document, resolved
from tests.web.conftest import Api, open_api

OPERATIONS = [(method, path) for path, methods in document()["paths"].items() for method in methods]


def test_the_document_is_valid() -> None:
    OpenAPIV31SpecValidator(document()).validate()
    assert document()["openapi"] == "3.1.0"
    assert document()["info"]["version"] == __version__


def test_the_document_is_the_same_in_each_process() -> None:
    """Replicas may be behind one load balancer. Python orders sets differently in each process."""
    command = """if True:
        import sys
        from controller.web.openapi.document import build
        from controller.web.openapi.pages import ApiPages

        sys.stdout.buffer.write(ApiPages(build).document)
    """
    first, second = (
        subprocess.run(
            [sys.executable, "-c", command], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    )
    assert first == second
    assert first.startswith(b"{")


def test_the_document_has_the_routes_of_the_table() -> None:
    assert sorted(OPERATIONS) == sorted((route.method.lower(), path_of(route)) for route in ROUTES)
    assert CONTRACTS.keys() == {route.path for route in ROUTES}, "controller/web/openapi/contracts.py"
    assert len(CONTRACTS) == len(ROUTES), "if a path has two methods, each needs its own contract"
    description = " ".join(document()["info"]["description"].split())
    assert " ".join((FALLBACK.handler.__doc__ or "").split()) in description


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_each_route_field_and_parameter_is_described(method: str, path: str) -> None:
    operation = document()["paths"][path][method]
    assert operation["summary"]
    assert operation["description"]
    assert all(parameter["description"] for parameter in operation.get("parameters", ()))
    assert all(resolved(response)["description"] for response in operation["responses"].values())


def test_each_field_of_a_type_is_described() -> None:
    def lacking(name: str, schema: Any) -> Iterator[str]:
        for field, each in schema.get("properties", {}).items():
            named = "$ref" in each or (each.get("type") == "array" and "$ref" in each["items"])  # see its type
            if not (named or each.get("description") or "enum" in each):
                yield f"{name}.{field}"

    schemas = document()["components"]["schemas"]
    assert [each for name, schema in schemas.items() for each in lacking(name, schema)] == []
    assert all(schema["description"] for schema in schemas.values())


def test_operations_have_different_ids() -> None:
    ids = [operation["operationId"] for path in document()["paths"].values() for operation in path.values()]
    assert len(set(ids)) == len(ids)


def test_each_documented_error_is_one_of_the_tree_or_of_the_protocol() -> None:
    def subclasses(kind: type[errors.ControllerError]) -> Iterator[type[errors.ControllerError]]:
        yield kind
        for child in kind.__subclasses__():
            yield from subclasses(child)

    ours = {kind.code for kind in subclasses(errors.ControllerError)}
    protocol = {"invalid_http", "head_timeout", "body_timeout", "head_too_large", "internal_error"}
    for response in document()["components"]["responses"].values():
        codes = {line.split("`")[1] for line in response["description"].splitlines() if line.startswith("- `")}
        assert codes
        assert codes <= ours | protocol | {"too_many_connections", "not_found"}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.url_path)
def test_the_examples_of_the_reference_match_the_document(example: Example) -> None:
    [method] = [route.method for route in (*ROUTES, FALLBACK) if route.path == example.path]
    if example.path == FALLBACK.path:
        check_value(example.response, {"$ref": "#/components/schemas/Error"})
        return
    if example.status in (200, 404):  # the document cannot say which models there are
        check_request(method, example.url_path.partition("?")[0], example.body)
    elif example.status == 400:
        with pytest.raises(ValidationError):
            check_request(method, example.url_path.partition("?")[0], example.body)
    operation = api_document.operation(method, example.url_path.partition("?")[0])
    assert operation is not None
    content = resolved(operation["responses"][str(example.status)])["content"]
    if isinstance(example.response, Frames):
        assert "application/octet-stream" in content
    elif not isinstance(example.response, Text):
        check_value(example.response, content["application/json"]["schema"])


def test_another_value_does_not_match_the_document() -> None:
    """The two tests of examples can fail."""
    with pytest.raises(ValidationError):
        check_request("POST", "/get_worker_address", {"model": 5})
    with pytest.raises(ValidationError):
        check_value({"address": None}, {"$ref": "#/components/schemas/Address"})
    with pytest.raises(AssertionError, match="lacks this status"):
        api_document.check_response("POST", "/list_models", 418, {"content-type": "application/json"}, b"null")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/get_worker_address", {"model": "m", "lease": 86_401}),
        ("/get_worker_address", {"model": "m", "lease": 0.0001}),
        ("/receive_heart_beat", {"worker_name": "ftp://127.0.0.1", "queue_length": 0}),
        ("/receive_heart_beat", {"worker_name": "http://127.0.0.1", "queue_length": -1}),
        ("/release_worker", {"lease": "x"}),
        ("/set_capacity", {"capacity": 1}),
        ("/set_capacity", {"capacity": 0, "model": "m"}),
        ("/set_capacity", {"capacity": 1, "model": "m", "worker_name": "http://127.0.0.1"}),
        ("/set_model_route", {"model": "m", "targets": {}}),
        ("/set_model_route", {"model": "m", "targets": {"n": 0, "o": 0}}),
        ("/set_model_route", {"model": "m", "targets": {"n": 1_000_001}}),
        ("/set_model_route", {"model": "m", "targets": {"n": 1}, "fallbacks": ["o", "o"]}),
        ("/set_model_route", {"model": "", "targets": {"n": 1}}),
        ("/remove_model_route", {"model": "a\nb"}),
        ("/create_token", {"plane": "public", "name": "a"}),
        ("/create_token", {"plane": "client", "name": "-"}),
        ("/drain_worker", {"worker_name": "http://127.0.0.1", "reason": "x" * 501}),
    ],
)
async def test_bounds_that_a_parser_checks_are_in_the_document(api: Api, path: str, body: dict[str, Any]) -> None:
    assert (await api.post(path, body)).status_code == 400
    with pytest.raises(ValidationError):
        check_request("POST", path, body)


@pytest.fixture
async def closed(store: Store) -> AsyncIterator[Api]:
    tokens = {f"{plane}_tokens": f"{plane}=token-of-the-plane-{plane}" for plane in TOKEN_PLANES}
    async with open_api(store.registry(), **tokens) as opened:
        yield opened


async def test_the_document_names_the_planes_that_open_a_route(closed: Api) -> None:
    for method, path in OPERATIONS:
        security = document()["paths"][path][method]["security"]
        opening = {plane for each in security for planes in each.values() for plane in planes}
        for plane in (*map(str, TOKEN_PLANES), "none"):
            headers = {"authorization": f"Bearer token-of-the-plane-{plane}"}
            response = await closed.http.request(method, path, headers=headers)
            is_open = plane in opening or not opening
            assert (response.status_code not in (401, 403)) is is_open, (path, plane, response.text)


async def test_both_schemes_carry_a_token(closed: Api) -> None:
    for authorization in ({"auth": ("any", "token-of-the-plane-admin")}, {"headers": {"authorization": "bearer x"}}):
        response = await closed.http.get("/workers", **authorization)
        assert response.status_code == (200 if "auth" in authorization else 401)
    schemes = document()["components"]["securitySchemes"]
    assert {name: scheme.get("scheme") for name, scheme in schemes.items()} == {
        "bearer": "bearer",
        "basic": "basic",
        "api_key": None,
    }
    assert schemes["api_key"]["name"] == "X-Api-Key"
    for path, operations in document()["paths"].items():
        for operation in operations.values():
            has_api_key = any("api_key" in each for each in operation["security"])
            assert has_api_key is is_openai_path(path), path


async def test_the_document_needs_no_token(closed: Api) -> None:
    response = await closed.http.get("/openapi.json")
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    assert response.json() == document()
    assert Plane.PUBLIC is next(route.plane for route in ROUTES if route.path == "/openapi.json")
