"""The facts that a replica reports about itself and its Redis, for `controller doctor`."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreFacts:
    """The Redis server that has the keys of the cluster. None stands for what is not known.

    product, version: of the server. The product is "redis" or "valkey".
    role: "master" or "slave".
    connected_replicas: replicas of this server that are connected.
    memory_used, memory_limit: in bytes. memory_limit: 0 if there is none.
    eviction_policy: its maxmemory-policy.
    evicted_keys: keys that it has evicted since its start.
    append_only: it writes an append-only file.
    append_only_failed: its last write to the append-only file has failed.
    snapshots: its rules for snapshots (RDB), such as "3600 1 300 100". "" if it takes none.
    snapshot_failed: its last snapshot has failed.
    fork_time: seconds for which its last fork, for a snapshot or a rewrite, blocked it.
    clients, max_clients: connections, and how many it accepts.
    rejected_connections: connections that it has refused since its start because of max_clients.
    cached_scripts: scripts in its cache, of all its users.
    failed_event_writes: XADD commands that failed or were not permitted since its start, of all its users.
    clock_offset: seconds by which its clock is ahead of the clock of the replica.
    round_trip: seconds that a PING takes: the median of some.
    """

    product: str | None = None
    version: str | None = None
    role: str | None = None
    connected_replicas: int | None = None
    memory_used: int | None = None
    memory_limit: int | None = None
    eviction_policy: str | None = None
    evicted_keys: int | None = None
    append_only: bool | None = None
    append_only_failed: bool | None = None
    snapshots: str | None = None
    snapshot_failed: bool | None = None
    fork_time: float | None = None
    clients: int | None = None
    max_clients: int | None = None
    rejected_connections: int | None = None
    cached_scripts: int | None = None
    failed_event_writes: int | None = None
    clock_offset: float | None = None
    round_trip: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreDiagnosis:
    """StoreFacts, and why some of them are not known.

    kind: "embedded", "single", "sentinel" or "cluster".
    unavailable: why Redis cannot be used. None if it can.
    timeout: the time limit for a call, in seconds.
    unknown: by command, why Redis did not answer it, such as "not permitted".
    """

    kind: str
    timeout: float
    unavailable: str | None = None
    facts: StoreFacts = StoreFacts()
    unknown: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaDiagnosis:
    """The replica that answers.

    id, name, version: as in GET /replicas.
    snapshot_age: age of its snapshot of the workers, in seconds.
    open_files, open_files_limit: of its process. None if it is not known, or if there is no limit.
    clock_jump: seconds by which the clock of Redis was set, not long ago. None if it was not.
    """

    id: str
    name: str
    version: str
    snapshot_age: float
    open_files: int | None
    open_files_limit: int | None
    clock_jump: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """The response of GET /diagnosis."""

    replica: ReplicaDiagnosis
    store: StoreDiagnosis
