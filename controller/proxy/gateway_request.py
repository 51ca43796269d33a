"""The gateway's view of a request in OpenAI's form, and the response to it."""

from collections.abc import Mapping
from typing import NamedTuple

from controller.domain.errors import WorkerRefused
from controller.proxy.forwarded import Forwarded
from controller.proxy.model_field import ModelField


class GatewayRequest(NamedTuple):
    """A request in OpenAI's form.

    query: encoded, without the question mark.
    field: the body, and the model that it names.
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
    """A response, and the model that returned it.

    response: WorkerRefused if it is an error whose body was read whole.
    snapshot_age: in seconds, of the snapshot that chose the worker. None if Redis chose it.
    """

    model: str
    response: Forwarded | WorkerRefused
    snapshot_age: float | None = None
