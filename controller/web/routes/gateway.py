"""The address of the cluster for OpenAI's clients."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Final
from urllib.parse import quote

from starlette.responses import Response

from controller.domain.errors import (
    ControllerError,
    InvalidInput,
    LimitReached,
    LoopDetected,
    ModelNotFound,
    NoWorker,
    StoreError,
    StreamBroken,
    TooManyForwards,
    WorkerError,
    WorkerNotAllowed,
    WorkerRedirected,
    WorkerRefused,
    WorkerRejectsKey,
    WorkerSilent,
    WorkerUnreachable,
    WrongProtocol,
)
from controller.domain.headers import for_engine, without_length
from controller.proxy.forwarded import Forwarded
from controller.proxy.gateway_request import GatewayRequest, Served
from controller.proxy.model_field import read_model
from controller.tasks import in_thread_if_large
from controller.web.asgi.endpoint import Answer, degraded
from controller.web.asgi.gateway import GatewayCall
from controller.web.errors import retry_after, status_of
from controller.web.routes.forwarded import ForwardedResponse, with_headers
from controller.web.schemas import openai
from controller.web.services import Services

_SERVED_MODEL: Final = b"x-served-model"
# The HTTP server adds `date` and `server` to all responses. The locations may have the address of the engine in them.
_NOT_PASSED: Final = frozenset({_SERVED_MODEL, b"date", b"server", b"location", b"content-location", b"refresh"})
_RETRY_AFTER: Final = ((b"retry-after", b"5"),)  # seconds: the time of a poll or two
_PRINTABLE: Final = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")  # of the name of a model
_URL: Final = "".join(map(chr, range(0x21, 0x7F)))  # of a query, which is encoded already
_STATUS: Final[Mapping[type[ControllerError], int]] = {
    WorkerSilent: 504,
    StreamBroken: 502,
    WorkerRejectsKey: 502,
    WorkerRedirected: 502,
    WorkerNotAllowed: 502,  # the fault is not the client's
}
_FAILED: Final = "Each engine that was tried has failed. Send the request again."
_SUMMARIES: Final[Mapping[type[ControllerError], str]] = {
    WorkerSilent: "The engine sent no complete answer within its time limit. Send the request again.",
    WorkerUnreachable: "No engine of the model can be reached. Send the request again.",
    WorkerRejectsKey: "The engine rejects the controller's key for it. The key of the client is not at fault.",
    WorkerRedirected: "The engine answered with a redirect, which is not passed on. Check the path of the request.",
}
_LAST_EVENT: Final = openai.error_event(
    StreamBroken.code, "The engine ended the response early, so the rest of it is missing. Send the request again."
)


async def forward(services: Services, call: GatewayCall) -> Response:
    """Forward a request for a path of `--forward-paths` to an engine that serves the model in its body.

    The body is a JSON object or a form with a field `model`. Body, query and headers reach the engine as they are, and
    so does its response reach the client. If only workers of FastChat's protocol serve the model, one of them gets the
    request, without the query and most headers.

    An error of the controller has OpenAI's form: `{"error": {"message", "type", "param", "code"}}`. The status is 404
    if the model is unknown, or if the path is not forwarded. It is 503 with `Retry-After` if the model is known, but no
    worker serves it now. It is 502 if an engine rejects the controller's key for it, or answers with a redirect.
    """
    if not services.forward_paths.allows(call.path):
        body = openai.error_body(404, "not_found", f"There is no route {call.path}.")
        return Response(body, 404, media_type="application/json")
    hops = call.hops
    try:
        request = await _request(call)
        del call  # sending a response takes long, and thousands of bodies would stay in memory
        return _response(await services.gateway.forward(request))
    except InvalidInput as error:
        return _error(error, 400, "model" if error.field == "model" else None)
    except (ModelNotFound, NoWorker, WrongProtocol) as error:
        # A parent has forwarded the request because this cluster had such a worker. It then tries another one.
        return _error(error, 503 if hops else status_of(error), "model")
    except (StoreError, TooManyForwards, WorkerError, LoopDetected) as error:
        return _error(error, _STATUS.get(type(error), status_of(error)))


async def _request(call: GatewayCall) -> GatewayRequest:
    headers = for_engine(call.headers)
    content_type = headers.setdefault("content-type", "application/json")
    body = call.body
    field = await in_thread_if_large(len(body), lambda: read_model(body, content_type))
    return GatewayRequest(
        call.path,
        quote(call.query, safe=_URL),
        field,
        {**headers, **call.passed},
        call.passed,
        call.hops,
    )


def _response(served: Served) -> Response:
    """Return the response of an engine as it is, with the name of the model that was used."""
    response = served.response
    headers = (
        *(header for header in response.headers if header[0] not in _NOT_PASSED),
        (_SERVED_MODEL, _printable(served.model)),
        *degraded(served.snapshot_age),
    )
    if isinstance(response, WorkerRefused):
        return with_headers(without_length(headers), Response(response.body, response.status))
    is_open = not response.is_whole and _is_open_stream(response)
    return ForwardedResponse(response, headers, _LAST_EVENT if is_open else None)


@lru_cache(maxsize=256)
def _printable(model: str) -> bytes:
    return quote(model, safe=_PRINTABLE).encode()


def _is_open_stream(response: Forwarded) -> bool:
    """Return True if an event can be appended to a response."""
    types = [value.partition(b";")[0].strip().lower() for name, value in response.headers if name == b"content-type"]
    has_length = any(name == b"content-length" for name, _ in response.headers)
    return types == [b"text/event-stream"] and not has_length and not response.encoded


def _error(error: ControllerError, status: int, param: str | None = None) -> Response:
    """Return an error in OpenAI's form. The addresses of engines are in the log only."""
    message = str(error)
    if isinstance(error, WorkerError):
        message = f"{_SUMMARIES.get(type(error), _FAILED)} The log of the controller has the details."
    response = Response(openai.error_body(status, error.code, message, param), status, media_type="application/json")
    is_over_soon = status == 503 and not isinstance(error, LimitReached)
    return with_headers(_RETRY_AFTER if is_over_soon else retry_after(error), response)


async def models(services: Services, _: str, hops: str) -> Answer:
    """List the models that live engines serve, in OpenAI's form.

    Models that only workers of FastChat's protocol serve are not in the list, because most of these workers have no
    route of OpenAI's kind. POST `/list_models` lists them.

    A controller that asks, as its hop list says, does not get the models that this cluster has only through it. It gets
    508 if it belongs to this cluster.
    """
    found, snapshot_age = await services.gateway.list_models(hops)
    return Answer(openai.models_body(found), headers=degraded(snapshot_age))


async def model(services: Services, name: str, hops: str) -> Answer:
    """Describe one model of the list. Its name may have slashes in it.

    A model that is not in the list gets a 503 if engines have served it recently, or if it is known and no worker
    serves it now. Otherwise it gets a 404.
    """
    found, snapshot_age = await services.gateway.list_models(hops)
    described = next((each for each in found if each.name == name), None)
    if described is None:
        error = await services.gateway.missing(name)
        status = status_of(error)
        return Answer(
            openai.error_body(status, error.code, str(error), "model"), status, _RETRY_AFTER if status == 503 else ()
        )
    return Answer(openai.model_body(described), headers=degraded(snapshot_age))
