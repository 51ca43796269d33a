"""Endpoints of OpenAI's kind: their own errors have OpenAI's form."""

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from starlette.responses import Response
from starlette.types import Receive, Scope

from controller.domain.headers import Headers, trace_context
from controller.domain.request_ids import HEADER as REQUEST_ID
from controller.web.asgi.endpoint import MAX_FORWARDED_BODY, Answer, BodyEndpoint, hops_of, while_connected
from controller.web.asgi.request_ids import identify
from controller.web.schemas import openai


class GatewayCall(NamedTuple):
    """A request of OpenAI's kind.

    query: encoded, without the question mark.
    headers: all of the request, with names in lower case.
    passed: the request id and the trace context.
    hops: hop list of the request.
    """

    path: str
    query: bytes
    headers: Headers
    body: bytes
    passed: dict[str, str]
    hops: str


class OpenAiEndpoint(BodyEndpoint):
    """Writes errors in OpenAI's form. Accepts tokens as Anthropic's clients send them, too."""

    reads_api_key = True

    def _error(self, _: Scope, code: str, message: str, status: int, headers: Headers = ()) -> Answer:
        return Answer(openai.error_body(status, code, message), status, headers)


class GatewayEndpoint(OpenAiEndpoint):
    """Passes a request to `handle`, which is cancelled when the client disconnects."""

    max_body = MAX_FORWARDED_BODY

    def __init__(self, handle: Callable[[GatewayCall], Awaitable[Response]]) -> None:
        self._handle = handle

    async def _answer(self, scope: Scope, receive: Receive, body: bytes) -> Response | None:
        passed = {REQUEST_ID: identify(scope), **trace_context(scope["headers"])}
        call = GatewayCall(scope["path"], scope["query_string"], tuple(scope["headers"]), body, passed, hops_of(scope))
        del body
        async with while_connected(receive):
            return await self._handle(call)
        return None


class ModelEndpoint(OpenAiEndpoint):
    """Passes the part `model` of the path ("" if it has none) and the hop list of a request to `handle`."""

    def __init__(self, handle: Callable[[str, str], Awaitable[Answer]]) -> None:
        self._handle = handle

    async def _answer(self, scope: Scope, _: Receive, __: bytes) -> Answer:
        return await self._handle(scope["path_params"].get("model", ""), hops_of(scope))
