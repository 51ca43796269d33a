"""Everything that can go wrong, as one tree.

    ControllerError
    ├── InvalidInput            somebody sent something that we cannot accept; nothing was written
    ├── BodyTooLarge            somebody sent more than we are willing to read
    ├── SettingsError           the process cannot start with these settings
    ├── StoreError              the store did not do what it was asked
    │   ├── StoreUnavailable    no answer, or an answer that says "not now"; the call may be repeated
    │   │   └── StoreIncompatible   another version of this program keeps its registry there
    │   ├── ReplicaBusy         the call was not sent: this replica makes as many calls as it may; the store is well
    │   ├── StoreRejection      the store will not have a call, now or ever: a mistake of ours, or foreign data
    │   └── EmbeddedStoreError  the embedded server cannot be started
    │       ├── ServerDoesNotStart  the embedded server exited or timed out while starting
    │       └── DirectoryInUse      another controller has the data directory
    ├── ShuttingDown            this replica is about to end; another will serve
    ├── ControllerUnreachable   there is no controller of ours at an address
    ├── ParentUnreachable       a controller above this one does not take what it is told
    ├── LoopDetected            a request goes in a circle of controllers, or through too many
    ├── NoWorker                no live worker serves the model that was asked for
    └── WorkerError             a worker did not do what it was asked
        ├── WorkerUnreachable   no usable answer from the worker in time
        ├── WorkerRefused       a worker answered with a status that says no
        ├── WorkerSilent        a worker said nothing for too long
        └── StreamBroken        a worker's answer ended before its end

Each carries `code`, a stable word for programs, and a message for people: what happened, what it means, what
to do.
"""

from typing import ClassVar


class ControllerError(Exception):
    """The base of all errors that this package raises on purpose."""

    code: ClassVar[str] = "controller_error"


class InvalidInput(ControllerError):
    """A value from outside is not acceptable. The message begins with the name of the field."""

    code = "invalid_input"

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem

    def within(self, parent: str) -> "InvalidInput":
        """The same error, told of a field inside `parent`."""
        return InvalidInput(f"{parent}.{self.field}", self.problem)


class BodyTooLarge(ControllerError):
    """A body is longer than its route takes."""

    code = "body_too_large"


class SettingsError(ControllerError):
    """Settings that contradict each other or cannot work. The message says what to change."""

    code = "invalid_settings"


class StoreError(ControllerError):
    """The store did not do what it was asked."""

    code = "store_error"


class StoreUnavailable(StoreError):
    """The store does not answer, or answers that it cannot serve now. Whether the call ran is unknown."""

    code = "store_unavailable"


class StoreIncompatible(StoreUnavailable):
    """The store holds the registry of a version of this program that lays out its keys in another way."""

    code = "store_incompatible"


class ReplicaBusy(StoreError):
    """A call was not sent, because this replica has as many calls under way as it may. The store is well."""

    code = "replica_busy"


class StoreRejection(StoreError):
    """The store does not accept a call: a mistake in this program, or keys that hold what is not ours."""

    code = "store_rejection"


class EmbeddedStoreError(StoreError):
    """The embedded server cannot be started, or not on this data directory."""

    code = "embedded_store"


class ServerDoesNotStart(EmbeddedStoreError):
    """The embedded server exited or timed out while starting.

    summary: the message without the end of the server's log, which differs at each attempt.
    exited: the server exited by itself; it was neither killed nor too slow.
    """

    def __init__(self, summary: str, log: str, *, exited: bool) -> None:
        super().__init__(f"{summary}\n{log}")
        self.summary = summary
        self.exited = exited


class DirectoryInUse(EmbeddedStoreError):
    """Another controller has locked the data directory of the embedded store."""


class ShuttingDown(ControllerError):
    """This replica is about to end, and says so before it does."""

    code = "shutting_down"


class ControllerUnreachable(ControllerError):
    """There is no controller of ours at an address."""

    code = "controller_unreachable"


class ParentUnreachable(ControllerError):
    """A controller above this one does not take what it is told, or not in time."""

    code = "parent_unreachable"


class LoopDetected(ControllerError):
    """A request goes in a circle of controllers, or through too many of them."""

    code = "loop_detected"


class NoWorker(ControllerError):
    """No live worker serves the model that was asked for."""

    code = "no_worker"


class WorkerError(ControllerError):
    """A worker did not do what it was asked."""

    code = "worker_error"


class WorkerUnreachable(WorkerError):
    """A worker gave no usable answer: refused, too late, too large, not the right shape."""

    code = "worker_unreachable"


class WorkerRefused(WorkerError):
    """A worker answered, with a status that says no. Its headers and body are kept, a long body only in part."""

    code = "worker_refused"

    def __init__(self, message: str, status: int, headers: tuple[tuple[bytes, bytes], ...], body: bytes) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers
        self.body = body


class WorkerSilent(WorkerError):
    """A worker said nothing for too long, in the middle of an answer or before it."""

    code = "worker_silent"


class StreamBroken(WorkerError):
    """A worker's answer ended before its end."""

    code = "stream_broken"
