"""The bodies of responses to workers, to clients and to callers without a token, and of errors.

The API document has the types and their descriptions. The hot routes write their bodies without these types.
"""

from typing import Annotated, Literal

from msgspec import UNSET, Struct, UnsetType

from controller.domain.worker import WorkerStatusTotal
from controller.json_bodies import described


class ErrorDescription(Struct):
    """The description of an error."""

    code: Annotated[str, described("A stable code for programs.", "invalid_input")]
    message: Annotated[str, described("What happened, what it means and what to do. The text may change.")]


class Error(Struct):
    """An error of the controller."""

    error: ErrorDescription


class WorkerFailure(Struct):
    """An error of the controller in response to a request that is forwarded, with FastChat's fields."""

    error: ErrorDescription
    text: Annotated[str, described("The message, where FastChat's clients look for it.")]
    error_code: Annotated[int, described("FastChat's code of the error.", 50005)]


class Address(Struct):
    """The worker that was chosen for a request."""

    address: Annotated[str, described("The address of the worker. Empty if there is none.", "http://localhost:21002")]
    lease: Annotated[
        str | UnsetType,
        described("The lease, if the request asked for one. Empty if none was granted, for example in degraded mode."),
    ] = UNSET


class Models(Struct):
    """Names of models."""

    models: Annotated[list[str], described("The names, sorted.", ["echo"])]


class Exists(Struct):
    """The result for a worker, route or token."""

    exist: Annotated[bool, described("`false`: there is no such worker, route or token, and nothing was done.", True)]


class Released(Struct):
    """The result of a release."""

    released: Annotated[bool, described("Whether the lease was active.", True)]


class Renewed(Struct):
    """The result of a renewal."""

    renewed: Annotated[
        bool, described("`false` means that the lease has ended, or that its worker is not alive.", True)
    ]


class TotalStatus(Struct):
    """The status of all live workers as one."""

    model_names: Annotated[tuple[str, ...], described("The models of all workers, sorted.", ["echo"])]
    speed: Annotated[int | float, described("The sum of their speeds. Draining workers are left out.", 1)]
    queue_length: Annotated[int, described("The sum of their queue lengths.", 0)]
    capacity: Annotated[int | UnsetType, described("The sum of their capacities, if those of all are known.")] = UNSET

    @classmethod
    def of(cls, status: WorkerStatusTotal) -> "TotalStatus":
        """Return the body of a total."""
        capacity = UNSET if status.capacity is None else status.capacity
        return cls(status.model_names, status.speed, status.queue_length, capacity)


class Health(Struct):
    """This process responds."""

    healthy: Annotated[Literal[True], described("Always `true`.")]


class Ready(Struct):
    """This replica can serve."""

    ready: Annotated[Literal[True], described("Always `true`. Otherwise the response is an error.")]
    degraded: Annotated[str | UnsetType, described("Why it is in degraded mode, if it is.")] = UNSET
    warning: Annotated[
        str | UnsetType, described("The last jump of Redis's clock, if it was within --heartbeat-expiration.")
    ] = UNSET
