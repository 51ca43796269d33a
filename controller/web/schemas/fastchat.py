"""FastChat's wire format: parsed and checked request bodies, and response bodies.

Field names and shapes follow `fastchat/serve/controller.py`.
"""

from typing import Any, Final

import msgspec

from controller.domain.errors import InvalidInput
from controller.domain.lease import LEASE, MAX_LEASE_TIME
from controller.domain.worker import Worker, WorkerStatus, WorkerStatusTotal, whole_queue_length, worker_name
from controller.json_bodies import Fields, JsonBody, read_status

# FastChat's error codes and text (fastchat/constants.py). Its web server shows the text to users.
ENGINE_OVERLOADED: Final = 42903
INTERNAL_ERROR: Final = 50001
NO_WORKER: Final = 50005
WORKER_TIMEOUT: Final = 50006
SERVER_ERROR_MSG: Final = "**NETWORK ERROR DUE TO HIGH TRAFFIC. PLEASE REGENERATE OR REFRESH THIS PAGE.**"

encode: Final = msgspec.json.Encoder().encode

_MAX_REASON: Final = 500  # characters


class _ModelBody(msgspec.Struct):
    model: str


class _DispatchBody(msgspec.Struct):
    model: str
    lease: bool | int | float | None = None


class _LeaseBody(msgspec.Struct):
    lease: str


class _NameBody(msgspec.Struct):
    worker_name: str


class _OperationBody(msgspec.Struct):
    worker_name: str
    reason: str = ""


class _HeartbeatBody(msgspec.Struct):
    worker_name: str
    queue_length: int | float


class _RegisterBody(msgspec.Struct):
    worker_name: str
    check_heart_beat: bool
    worker_status: msgspec.Raw = msgspec.Raw(b"null")
    multimodal: bool | None = False


class RegisterRequest(msgspec.Struct):
    """A checked registration. If `status` is None, the controller requests the status from the worker."""

    name: str
    check_heart_beat: bool
    status: WorkerStatus | None
    multimodal: bool


def _body(fields: type[Fields]) -> JsonBody[Fields]:
    return JsonBody(fields, "body", "Send the JSON object that this route takes.")


_model: Final = _body(_ModelBody)
_dispatch: Final = _body(_DispatchBody)
_lease: Final = _body(_LeaseBody)
_name: Final = _body(_NameBody)
_operation: Final = _body(_OperationBody)
_heartbeat: Final = _body(_HeartbeatBody)
_register: Final = _body(_RegisterBody)


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
    if len(operation.reason) > _MAX_REASON:
        raise InvalidInput("reason", f"has {len(operation.reason)} characters, but at most {_MAX_REASON} are allowed")
    return worker_name(operation.worker_name), operation.reason


def parse_heartbeat(body: bytes) -> tuple[str, int]:
    """Return the worker's name and the queue length of a heartbeat."""
    heartbeat = _heartbeat.read(body)
    return worker_name(heartbeat.worker_name), whole_queue_length(heartbeat.queue_length)


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


def status_body(status: WorkerStatusTotal) -> dict[str, Any]:
    """Return the response body of `/worker_get_status`."""
    body = {"model_names": status.model_names, "speed": status.speed, "queue_length": status.queue_length}
    return body if status.capacity is None else {**body, "capacity": status.capacity}


def worker_body(worker: Worker, stalled_for: float | None = None) -> dict[str, Any]:
    """Return one worker as GET `/workers` lists it. Times and ages are in seconds. stalled_for: as in Stalls."""
    return {
        "worker_name": worker.name,
        "model_names": worker.status.model_names,
        "speed": worker.status.speed,
        "queue_length": worker.status.queue_length,
        "leased": worker.leased,
        "capacity": worker.status.capacity,
        "capacity_source": worker.capacity_source or None,
        "draining": worker.draining,
        "drained": worker.drained,
        "failing": worker.failing or None,
        "polled": worker.polled,
        "multimodal": worker.multimodal,
        "check_heart_beat": worker.check_heart_beat,
        "heartbeat_age": worker.heartbeat_age,
        "expires_in": worker.expires_in,
        "stalled_for": None if stalled_for is None else round(stalled_for, 1),
        "registered_by": worker.registered_by or None,
    }


def error_frame(error_code: int, text: str = SERVER_ERROR_MSG) -> bytes:
    """Return the final frame of a stream that failed."""
    return encode({"text": text, "error_code": error_code}) + b"\0"


def worker_error(code: str, message: str, error_code: int) -> bytes:
    """Return the body of an error response to a forwarded request, with our fields and FastChat's."""
    return encode({"error": {"code": code, "message": message}, "text": message, "error_code": error_code})
