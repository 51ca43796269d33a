"""The gateway's view of a request of OpenAI's kind, and the response to it."""

from collections.abc import Mapping
from typing import NamedTuple

from controller.domain.errors import WorkerRefused
from controller.proxy.forwarded import Forwarded
from controller.proxy.model_field import ModelField


class GatewayRequest(NamedTuple):
    """A request of OpenAI's kind.

    query: encoded, without the question mark.
    headers: sent to the engine.
    passed: those of `headers` that a worker of FastChat's protocol gets: the request id and the trace context.
    hops: hop list of the request.
    """

    path: str
    query: str
    field: ModelField
    headers: Mapping[str, str]
    passed: Mapping[str, str]
    hops: str = ""


class Served(NamedTuple):
    """A response, and the model that was asked for it.

    response: an error response that was read whole is a WorkerRefused.
    """

    model: str
    response: Forwarded | WorkerRefused
    snapshot_age: float | None = None
