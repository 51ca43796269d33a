"""All errors that the controller raises, as one tree.

    ControllerError
    ├── InvalidInput            a request has an invalid value
    ├── BodyTooLarge            a request has a body that is too large
    ├── Unauthorized            a request has no valid token, and its address is not listed
    ├── Forbidden               a request's token does not allow it
    ├── SettingsError           the controller cannot start with these settings
    ├── StoreError              a call to Redis failed
    │   ├── StoreUnavailable    Redis does not respond, or cannot serve now
    │   │   └── StoreIncompatible   Redis holds the registry of a version with another key layout
    │   ├── ReplicaBusy         the call was not sent, because too many calls of this replica are running
    │   ├── StoreRejection      Redis rejected the call for good
    │   └── EmbeddedStoreError  the embedded store cannot be started
    │       ├── ServerDoesNotStart  its server exited or timed out while starting
    │       └── DirectoryInUse      another controller uses its data directory
    ├── LimitReached            a limit that protects the cluster is reached
    │   ├── TooManyWorkers      a limit of live workers is reached
    │   ├── TooManyLeases       a limit of active leases is reached
    │   ├── TooManyRegistrations    one address sends registrations too fast
    │   ├── TooManyForwards     this replica has reached its limit of forwarded requests
    │   └── TooManyBodies       the bodies of requests fill the memory that this replica has for them
    ├── ShuttingDown            this replica is shutting down
    ├── TooManyFollowers        this replica has reached its limit of clients that follow events
    ├── ControllerUnreachable   an address does not belong to a controller of this project
    │   ├── ControllerBusy      a controller responded, but cannot serve the request now
    │   └── ControllerRefused   a controller refused a request, and would refuse it again
    ├── ParentUnreachable       a parent controller does not respond, or rejects a call
    │   └── ParentRefused       a parent controller does not accept the token in --parent
    ├── LoopDetected            a request was forwarded in a loop, or through too many clusters
    ├── NoWorker                no live worker serves the requested model
    ├── ModelNotFound           no worker has served the requested model recently
    ├── WrongProtocol           the workers of the model do not speak the protocol of the request
    └── WorkerError             a call to a worker failed
        ├── WorkerUnreachable   the connection failed, or the worker returned no valid status
        │   └── WorkerNotAllowed    the worker has an address that the controller does not connect to
        ├── WorkerRefused       the worker returned an error status
        │   └── WorkerBusy          the worker has no room for the request now
        ├── WorkerRejectsKey    an engine rejects the controller's key for it
        ├── WorkerRedirected    an engine answered a request with a redirect
        ├── WorkerSilent        the worker sent no data within the timeout
        └── StreamBroken        the worker's response ended early

Each error has a `code`, which is stable and meant for programs, and a message for people. The message says what
happened, what it means and what to do.
"""

from typing import ClassVar


class ControllerError(Exception):
    """Base of all errors that this package raises on purpose."""

    code: ClassVar[str] = "controller_error"


class InvalidInput(ControllerError):
    """A request has an invalid value. The message begins with the name of the field."""

    code = "invalid_input"

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem

    def within(self, parent: str) -> "InvalidInput":
        """Return the same error for a field inside the field `parent`."""
        return InvalidInput(f"{parent}.{self.field}", self.problem)


class BodyTooLarge(ControllerError):
    """A request has a longer body than its route accepts."""

    code = "body_too_large"


class Unauthorized(ControllerError):
    """A request has no valid token, and its address is not on the allow-list of the route."""

    code = "unauthorized"


class Forbidden(ControllerError):
    """The token of a request does not allow what the request asks for."""

    code = "forbidden"


class SettingsError(ControllerError):
    """Settings contradict each other or are invalid. The message says what to change."""

    code = "invalid_settings"


class StoreError(ControllerError):
    """A call to Redis failed."""

    code = "store_error"


class StoreUnavailable(StoreError):
    """Redis does not respond, or cannot serve the call now. The call may have run, and can be repeated."""

    code = "store_unavailable"


class StoreIncompatible(StoreUnavailable):
    """Redis holds the registry of a version with another key layout."""

    code = "store_incompatible"


class ReplicaBusy(StoreError):
    """Redis is available, but the call was not sent: too many other calls of this replica were running."""

    code = "replica_busy"


class EventsUnavailable(ControllerError):
    """Redis is available, but it cannot read the stream of events."""

    code = "events_unavailable"


class TooManyFollowers(ControllerError):
    """This replica has reached its limit of clients that follow its events or its page. Another one may have room."""

    code = "too_many_followers"


class StoreRejection(StoreError):
    """Redis rejected a call because of a bug in the controller, or because another program wrote to its keys."""

    code = "store_rejection"


class EmbeddedStoreError(StoreError):
    """The embedded store cannot be started on this data directory."""

    code = "embedded_store"


class ServerDoesNotStart(EmbeddedStoreError):
    """The server of the embedded store exited or timed out while starting.

    summary: the message without the end of the server's log, which differs at each attempt.
    exited: True if the server exited by itself. False if it was killed or timed out.
    """

    def __init__(self, summary: str, log: str, *, exited: bool) -> None:
        super().__init__(f"{summary}\n{log}")
        self.summary = summary
        self.exited = exited


class DirectoryInUse(EmbeddedStoreError):
    """Another controller has locked the data directory of the embedded store."""


class LimitReached(ControllerError):
    """A limit that protects the cluster is reached. Nothing was done.

    retry_after: seconds after which the client may try again.
    """

    code = "limit_reached"
    retry_after = 1


class TooManyWorkers(LimitReached):
    """A worker was not registered, because a limit of live workers is reached: of all, or of those of its token."""

    code = "too_many_workers"
    retry_after = 10  # until a heartbeat of another worker may have expired


class TooManyLeases(LimitReached):
    """A lease was not granted, because a limit of active leases is reached: of all, or of the client's token."""

    code = "too_many_leases"


class TooManyRegistrations(LimitReached):
    """An address sends registrations faster than --registration-rate allows, and too many of them wait already."""

    code = "too_many_registrations"

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class TooManyForwards(LimitReached):
    """A request was not forwarded, because this replica forwards as many as --max-forwards allows."""

    code = "too_many_forwards"


class TooManyBodies(LimitReached):
    """A body was not read, because those of other requests occupy as much memory as --max-body-memory allows."""

    code = "too_many_bodies"


class ShuttingDown(ControllerError):
    """This replica is shutting down."""

    code = "shutting_down"


class ControllerUnreachable(ControllerError):
    """An address does not respond, or does not belong to a controller of this project."""

    code = "controller_unreachable"


class ControllerSilent(ControllerUnreachable):
    """A controller did not respond, or the response is not that of a controller."""


class ControllerBusy(ControllerUnreachable):
    """A controller responded, but cannot serve the request now, for example because Redis is unavailable to it."""


class ControllerRefused(ControllerUnreachable):
    """A controller refused a request, and would refuse it again: a 4xx status."""

    code = "controller_refused"


class ParentUnreachable(ControllerError):
    """A parent controller does not respond in time, or does not accept a registration or a heartbeat."""

    code = "parent_unreachable"


class ParentRefused(ParentUnreachable):
    """A parent controller does not accept the token in --parent, or requires one."""


class LoopDetected(ControllerError):
    """A request was forwarded in a loop, or through too many clusters."""

    code = "loop_detected"


class NoWorker(ControllerError):
    """No live worker serves the requested model."""

    code = "no_worker"


class ModelNotFound(ControllerError):
    """No worker has served the requested model for some hours, and no list names it."""

    code = "model_not_found"


class WrongProtocol(ControllerError):
    """A model has only workers of FastChat's protocol, and they have no such route."""

    code = "wrong_protocol"


class WorkerError(ControllerError):
    """A call to a worker failed."""

    code = "worker_error"


class WorkerUnreachable(WorkerError):
    """The connection to a worker failed, or the worker returned no valid status in time."""

    code = "worker_unreachable"


class WorkerNotAllowed(WorkerUnreachable):
    """A worker has an address that --worker-allow, or the rule for link-local and metadata addresses, refuses."""

    code = "worker_not_allowed"


class WorkerRefused(WorkerError):
    """A worker returned an error status. The error keeps the headers and the first part of the body."""

    code = "worker_refused"

    def __init__(self, message: str, status: int, headers: tuple[tuple[bytes, bytes], ...], body: bytes) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers
        self.body = body


class WorkerBusy(WorkerRefused):
    """An engine has no room for a request now: status 429, or a 503 that says so."""

    code = "worker_busy"


class WorkerRejectsKey(WorkerError):
    """An engine rejects the controller's key for it, or requires one: status 401 or 403."""

    code = "worker_rejects_key"


class WorkerRedirected(WorkerError):
    """An engine answered a request with a redirect, which would lead the client past the controller."""

    code = "worker_redirected"


class WorkerSilent(WorkerError):
    """A worker sent no data within the timeout, before its response or during it."""

    code = "worker_silent"


class StreamBroken(WorkerError):
    """A worker's response ended early or was invalid."""

    code = "stream_broken"
