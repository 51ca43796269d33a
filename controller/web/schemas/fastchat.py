"""FastChat's wire format: parsed and checked request bodies, and response bodies.

Field names and shapes follow `fastchat/serve/controller.py`.
"""

from typing import Annotated, Final

import msgspec

from controller.domain.errors import InvalidInput
from controller.domain.lease import LEASE, MAX_LEASE_TIME
from controller.domain.worker import WorkerStatus, whole_queue_length, worker_name
from controller.json_bodies import Fields, JsonBody, described, read_status
from controller.web.schemas.fields import (
    MAX_REASON,
    EngineAge,
    HeartbeatQueueLength,
    Lease,
    MayLease,
    ModelName,
    Reason,
    Status,
    WorkerName,
    check_age,
)

# FastChat's error codes and text (fastchat/constants.py). Its web server shows the text to users.
ENGINE_OVERLOADED: Final = 42903
INTERNAL_ERROR: Final = 50001
NO_WORKER: Final = 50005
WORKER_TIMEOUT: Final = 50006
SERVER_ERROR_MSG: Final = "**NETWORK ERROR DUE TO HIGH TRAFFIC. PLEASE REGENERATE OR REFRESH THIS PAGE.**"

encode: Final = msgspec.json.Encoder().encode


class ModelRequest(msgspec.Struct):
    """A request to forward. All other fields are for the worker, and are passed on as they are."""

    model: ModelName


class DispatchRequest(msgspec.Struct):
    """A request for a worker."""

    model: ModelName
    lease: MayLease = None


class LeaseRequest(msgspec.Struct):
    """A request about a lease."""

    lease: Lease


class WorkerRequest(msgspec.Struct):
    """A request about a worker."""

    worker_name: WorkerName


class OperationRequest(msgspec.Struct):
    """A request of an operator about a worker."""

    worker_name: WorkerName
    reason: Reason = ""


class Heartbeat(msgspec.Struct):
    """A heartbeat of a worker."""

    worker_name: WorkerName
    queue_length: HeartbeatQueueLength
    engine_age: EngineAge = None


class Registration(msgspec.Struct):
    """A registration of a worker."""

    worker_name: WorkerName
    check_heart_beat: Annotated[
        bool, described("If it is `false`, the worker sends no heartbeats and never expires.", True)
    ]
    # A factory, because msgspec cannot write a Raw as the default in a schema.
    worker_status: Status = msgspec.field(default_factory=lambda: msgspec.Raw(b"null"))
    multimodal: Annotated[bool | None, described("Whether the models take images.")] = False


class RegisterRequest(msgspec.Struct):
    """A checked registration. If `status` is None, the controller requests the status from the worker."""

    name: str
    check_heart_beat: bool
    status: WorkerStatus | None
    multimodal: bool


def _body(fields: type[Fields]) -> JsonBody[Fields]:
    return JsonBody(fields, "body", "Send the JSON object that this route takes.")


_model: Final = _body(ModelRequest)
_dispatch: Final = _body(DispatchRequest)
_lease: Final = _body(LeaseRequest)
_name: Final = _body(WorkerRequest)
_operation: Final = _body(OperationRequest)
_heartbeat: Final = _body(Heartbeat)
_register: Final = _body(Registration)


def parse_model(body: bytes) -> str:
    """Return the `model` of a dispatch request or of a request to forward."""
    return _model.read(body).model


def parse_dispatch(body: bytes) -> tuple[str, float | bool]:
    """Return the `model` and the `lease` of a dispatch request.

    `lease` is a number of seconds, True for a lease of the default duration, or False for no lease.
    """
    request = _dispatch.read(body)
    lease = request.lease or False
    if lease is not True and lease is not False and not 0.001 <= lease <= MAX_LEASE_TIME:
        raise InvalidInput("lease", f"must be true, or a number of seconds from 0.001 to {MAX_LEASE_TIME:g}")
    return request.model, lease


def parse_lease(body: bytes) -> str:
    """Return the `lease` of a request to release or renew it."""
    lease = _lease.read(body).lease
    if not LEASE.match(lease):
        raise InvalidInput("lease", "is not a lease of this controller")
    return lease


def parse_name(body: bytes) -> str:
    """Return the `worker_name` of a request about one worker."""
    return worker_name(_name.read(body).worker_name)


def parse_operation(body: bytes) -> tuple[str, str]:
    """Return the worker's name and the reason in a request of an operator about one worker. The reason may be ""."""
    operation = _operation.read(body)
    if len(operation.reason) > MAX_REASON:
        raise InvalidInput("reason", f"has {len(operation.reason)} characters, but at most {MAX_REASON} are allowed")
    return worker_name(operation.worker_name), operation.reason


def parse_heartbeat(body: bytes) -> tuple[str, int | None, float | None]:
    """Return the worker's name, the queue length and the engine's age of a heartbeat.

    The queue length is None if an engine does not say it. The age is None unless the agent of an engine has sent the
    heartbeat. It is that of the queue length, in seconds.
    """
    heartbeat = _heartbeat.read(body)
    name, queue_length, age = worker_name(heartbeat.worker_name), heartbeat.queue_length, heartbeat.engine_age
    if age is not None:
        check_age("engine_age", age)
    if queue_length is not None:
        return name, whole_queue_length(queue_length), age
    if age is None:
        raise InvalidInput("queue_length", "is null. Only the agent of an engine, which sends engine_age, may do so")
    return name, None, age


def parse_register(body: bytes) -> RegisterRequest:
    """Return a registration. A missing, null or empty status is None: the controller requests it, as FastChat does."""
    request = _register.read(body)
    return RegisterRequest(
        name=worker_name(request.worker_name),
        check_heart_beat=request.check_heart_beat,
        status=_status(bytes(request.worker_status)),
        multimodal=bool(request.multimodal),
    )


def _status(body: bytes) -> WorkerStatus | None:
    if body.translate(None, b" \t\r\n") in (b"null", b"{}"):
        return None
    try:
        return read_status(body)
    except InvalidInput as error:
        raise error.within("worker_status") from None


def error_frame(error_code: int, text: str = SERVER_ERROR_MSG) -> bytes:
    """Return the final frame of a stream that failed."""
    return encode({"text": text, "error_code": error_code}) + b"\0"


def worker_error(code: str, message: str, error_code: int) -> bytes:
    """Return the body of an error response to a forwarded request, with our fields and FastChat's."""
    return encode({"error": {"code": code, "message": message}, "text": message, "error_code": error_code})
