"""The body of GET `/overview`, as the API document describes it. controller/fleet/overview.py builds it."""

from typing import Annotated, Literal

from msgspec import Struct

from controller.domain.dispatch import DispatchMethod
from controller.json_bodies import described
from controller.web.schemas.fields import KnownWorker, ModelName


class OverviewWorker(Struct):
    """A live worker. Times are in seconds since 1970."""

    worker_name: KnownWorker
    model_names: Annotated[list[str], described("As registered, without duplicates.")]
    speed: Annotated[int | float, described("As registered.")]
    queue_length: Annotated[int, described("The estimate of running and waiting requests.")]
    reported: Annotated[int, described("The queue length in its last report.")]
    leased: Annotated[int, described("The number of active leases.")]
    capacity: Annotated[int | None, described("How many requests it runs at once. `null` if that is unknown.")]
    capacity_source: Annotated[str | None, described("Where the capacity comes from. `null` if it is unknown.")]
    draining: Annotated[bool, described("It gets no more requests.")]
    drained: Annotated[bool, described("It is draining and has finished its requests.")]
    failing: Annotated[str | None, described("What has failed: `request` or `polls`. `null` if nothing has.")]
    polled: Annotated[bool, described("It has answered a poll.")]
    multimodal: Annotated[bool, described("As registered.")]
    engine: Annotated[str | None, described("The kind of inference engine. `null` if it speaks FastChat's protocol.")]
    registered_by: Annotated[str | None, described("The name of the token that registered it, or `null`.")]
    heartbeat_at: Annotated[float | None, described("The time of its last heartbeat. `null` if it sends none.")]
    expires_at: Annotated[float | None, described("When the heartbeat expires. `null` means never.")]
    stalled_since: Annotated[
        float | None,
        described(
            "Since when none of its requests has finished. `null` if its last report was 0, if it reports nothing, or "
            "if it is an engine with requests of other clients only."
        ),
    ]


class ThisReplica(Struct):
    """The replica that answers."""

    id: Annotated[str, described("Identifies the replica.")]
    name: Annotated[str, described("Its host name, port and process id.")]
    version: Annotated[str, described("The version of the controller.")]


class OtherReplica(Struct):
    """A live replica."""

    id: Annotated[str, described("Identifies the replica.")]
    name: Annotated[str, described("Its host name, port and process id.")]
    version: Annotated[str, described("The version of the controller.")]
    started_at: Annotated[float | None, described("In seconds since 1970. `null` if it is unknown.")]


class DispatchRates(Struct):
    """The dispatch rate in the last minute."""

    scope: Annotated[Literal["cluster", "controller"], described("Whose dispatches are counted.")]
    per_second: Annotated[list[float | None], described("One rate for each second. `null` if it is unknown.")]


class ParentCluster(Struct):
    """A parent of this cluster."""

    address: Annotated[str, described("Its URL.")]
    sent_at: Annotated[float | None, described("When this replica sent its last heartbeat. `null` if it sent none.")]
    is_failing: Annotated[bool, described("The parent did not accept the last heartbeat.")]


class MissingModel(Struct):
    """A model that had a live worker in the last 12 hours and has none now."""

    model: ModelName
    since: Annotated[
        float, described("When its last worker was gone, or began to drain, in seconds since 1970.", 1764200000.5)
    ]


class Overview(Struct):
    """The state of the cluster as one replica knows it."""

    time: Annotated[float, described("The time of the response, in seconds since 1970.")]
    seen_at: Annotated[float | None, described("The time of the snapshot of the workers. `null` before the first.")]
    replica: ThisReplica
    degraded: Annotated[str | None, described("Why Redis is not used. `null` if Redis is used.")]
    can_dispatch: Annotated[
        bool,
        described(
            "`false`: without Redis, the snapshot of this replica has become too old, so requests get no worker."
        ),
    ]
    dispatch_method: Annotated[str, described("How a worker is chosen.", enum=list(map(str, DispatchMethod)))]
    stalled_after: Annotated[
        float,
        described("The page calls a worker stalled after this time without a finished request, in seconds."),
    ]
    dispatches: DispatchRates
    replicas: list[OtherReplica]
    missing_engines: Annotated[
        list[str], described("The engines that are registered and not alive. At most the first 100 are listed.")
    ]
    missing_models: Annotated[
        list[MissingModel],
        described("The models that had a live worker in the last 12 hours and have none now. At most 100 are listed."),
    ]
    parents: list[ParentCluster]
    workers: list[OverviewWorker]
