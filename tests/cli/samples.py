"""Responses of a controller to the commands."""

from typing import Any


def listed(name: str, *models: str, **changed: Any) -> dict[str, Any]:
    """Return a worker as GET /workers lists it."""
    return {
        "worker_name": name,
        "model_names": list(models),
        "speed": 1,
        "queue_length": 3,
        "leased": 2,
        "capacity": 5,
        "capacity_source": "configured",
        "draining": False,
        "drained": False,
        "failing": None,
        "polled": True,
        "multimodal": False,
        "check_heart_beat": True,
        "registered_by": None,
        "stalled_for": None,
        "heartbeat_age": 12.3,
        "expires_in": 77.7,
        **changed,
    }


def replica(name: str, version: str = "1.0", **settings: Any) -> dict[str, Any]:
    """Return a replica as GET /replicas lists it."""
    return {
        "id": f"id-of-{name}",
        "name": name,
        "version": version,
        "started_at": 1_790_000_000.5,
        "settings": settings,
    }


def candidate(name: str, state: str = "free", **changed: Any) -> dict[str, Any]:
    """Return a worker as GET /explain lists it."""
    return {
        "worker_name": name,
        "state": state,
        "cost": 1.5,
        "odds": None,
        "queue_length": 3.0,
        "leased": 1,
        "capacity": 5,
        "speed": 2,
        **changed,
    }


def diagnosis(**changed: Any) -> dict[str, Any]:
    """Return the response of GET /diagnosis of a healthy replica. changed: facts about Redis."""
    facts = {
        "product": "redis",
        "version": "7.2.4",
        "role": "master",
        "connected_replicas": 1,
        "memory_used": 10 * 2**20,
        "memory_limit": 100 * 2**20,
        "eviction_policy": "noeviction",
        "evicted_keys": 0,
        "append_only": True,
        "append_only_failed": False,
        "snapshots": "",
        "snapshot_failed": False,
        "fork_time": 0.001,
        "clients": 10,
        "max_clients": 10_000,
        "rejected_connections": 0,
        "cached_scripts": 40,
        "failed_event_writes": 0,
        "clock_offset": 0.001,
        "round_trip": 0.0004,
        **changed,
    }
    return {
        "replica": {
            "id": "id-of-r",
            "name": "r",
            "version": "1.0",
            "snapshot_age": 0.5,
            "open_files": 30,
            "open_files_limit": 1_000,
            "clock_jump": None,
        },
        "store": {"kind": "single", "timeout": 0.25, "unavailable": None, "facts": facts, "unknown": {}},
    }
