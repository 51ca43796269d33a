"""Chooses the tests that a mutant must fail: those of the subject of its file, the most specific first.

tests/store/test_scripts.py and tests/store/test_keys.py are left out. They compare texts, and not what the code does.
"""

from pathlib import PurePosixPath
from typing import Final

_STORE: Final = (
    "registry limits dispatch leases capacities pools lottery oracle find_workers sweep failing sequence_numbers"
)
_LATE: Final = "time_constant repeated_scripts registry_faults"
_OF_SCRIPTS: Final = "test_repeated_scripts"  # has tests of each script, and takes minutes

# Test files of tests/store stand without their folder and prefix. The first row whose prefix fits is taken.
_ROWS: Final = (
    ("lua/leases", f"leases web/leases failing sequence_numbers availability/clock_jumps {_LATE} oracle accessed_keys"),
    ("lua/capacities", f"capacities fleet/capacities web/capacities {_LATE} oracle accessed_keys"),
    (
        "lua/entries",
        "web/access web/tokens fleet/model_routes web/model_routes repeated_scripts registry_faults accessed_keys",
    ),
    ("lua/events", "web/events repeated_scripts registry_faults accessed_keys"),
    ("lua/include/events", "web/events accessed_keys"),
    (
        "lua/coordination/mark_listing",
        "fleet/replicas availability/listings repeated_scripts registry_faults accessed_keys",
    ),
    ("lua/coordination/join_replicas", "fleet/replicas repeated_scripts registry_faults accessed_keys"),
    (
        "lua/coordination",
        "jobs fleet/parents fleet/refresh availability/clock_jumps connection availability/recovery "
        "repeated_scripts registry_faults accessed_keys",
    ),
    ("lua/dispatch/rank_workers", "rank_workers repeated_scripts accessed_keys"),
    ("lua/dispatch/find_workers", "find_workers web/by_way repeated_scripts registry_faults accessed_keys"),
    (
        "lua/dispatch/reconcile",
        f"dispatch availability/reconciler sequence_numbers failing oracle {_LATE} accessed_keys",
    ),
    (
        "lua/dispatch/dispatch_lottery",
        f"lottery dispatch limits pools sequence_numbers oracle failing {_LATE} accessed_keys",
    ),
    (
        "lua/dispatch",
        f"dispatch lottery limits pools sequence_numbers oracle failing {_LATE} bands accessed_keys",
    ),
    ("lua/workers/correct_heartbeats", "availability/clock_jumps repeated_scripts registry_faults accessed_keys"),
    ("lua/workers/refresh", f"registry limits fleet/refresh capacities failing {_LATE} accessed_keys"),
    ("lua/workers/list_models", f"registry pools web/fastchat_wire {_LATE} oracle accessed_keys"),
    (
        "lua/workers",
        "registry limits failing sweep capacities pools lottery fleet/membership oracle availability/recovery "
        f"availability/clock_jumps {_LATE} accessed_keys",
    ),
    ("lua/include/capacities", f"capacities fleet/capacities {_LATE} oracle"),
    ("lua/include/affinity", "affinity oracle repeated_scripts registry_faults accessed_keys"),
    ("lua/include/arguments/parse_affinity", "affinity registry_faults"),
    ("lua/include/leases", f"leases {_STORE} {_LATE} oracle accessed_keys"),
    ("lua/include/dispatch", f"dispatch pools {_STORE} {_LATE} oracle bands accessed_keys"),
    ("lua/include/pools", f"pools {_STORE} {_LATE} oracle accessed_keys"),
    ("lua/include/load", f"engine_load {_STORE} {_LATE} oracle fleet/poller fleet/failed_polls accessed_keys"),
    ("lua/include", f"{_STORE} {_LATE} oracle fleet/poller fleet/failed_polls accessed_keys"),
    ("controller/security/forward_paths.py", "security/forward_paths security/forwarded_requests settings"),
    ("controller/security/parent_addresses.py", "security/parent_addresses fleet/parents settings"),
    ("controller/security/upstream_tokens.py", "security/upstream_tokens security/credentials settings"),
    (
        "controller/security/worker_",
        "security/worker_patterns security/worker_addresses security/url_parsers security/worker_connections "
        "security/rebinding security/tokens settings",
    ),
    (
        "controller/security",
        "security/tokens security/access security/networks security/audit web/access web/tokens web/limits "
        "web/heartbeat_errors settings web/route_table cli/cli",
    ),
    ("controller/domain/headers.py", "domain/headers web/forwarded_heads upstream/client proxy/forwarder"),
    ("controller/domain/hops.py", "domain/hops web/by_way web/forward proxy/forwarder"),
    ("controller/domain/clock.py", "domain/clock availability/clock_jumps"),
    ("controller/domain/errors.py", "domain settings security/tokens docs web/fastchat_wire web/heartbeat_errors"),
    ("controller/domain/capacity.py", "domain/capacity capacities fleet/capacities web/capacities settings"),
    ("controller/domain/model_route.py", "domain/model_route fleet/model_routes web/model_routes"),
    ("controller/domain/worker.py", "domain fleet/membership web/lenient_bodies web/fastchat_wire settings cli/cli"),
    ("controller/domain/dispatch.py", "settings availability/degraded"),
    ("controller/domain/events.py", "web/events docs"),
    ("controller/domain", "domain model availability/snapshot"),
    ("controller/store/embedded", "embedded embedded_files server store_url connection"),
    ("controller/store/connection.py", "connection client registry_faults embedded"),
    ("controller/store/client.py", "client connection registry_faults upstream/kept_connections"),
    ("controller/store/errors.py", "registry_faults connection client docs"),
    ("controller/store/runner.py", "connection client registry_faults dispatch repeated_scripts"),
    ("controller/store/scripts.py", "scripts registry package"),
    ("controller/store/refresh_lock.py", "fleet/refresh"),
    (
        "controller/store/coordination.py",
        "jobs fleet/parents fleet/poller fleet/failed_polls availability/clock_jumps repeated_scripts",
    ),
    ("controller/store/tokens.py", "web/access web/tokens repeated_scripts registry_faults"),
    ("controller/store/events.py", "web/events repeated_scripts"),
    ("controller/store/keys.py", "keys registry dispatch leases capacities"),
    ("controller/store/leases.py", "leases web/leases failing"),
    ("controller/store/capacities.py", "capacities web/capacities fleet/capacities registry_faults"),
    ("controller/store/dispatches.py", "dispatch lottery leases find_workers sequence_numbers failing registry_faults"),
    ("controller/store/reconciliation.py", "dispatch sequence_numbers availability/reconciler"),
    (
        "controller/store",
        "registry dispatch capacities failing sweep fleet/membership fleet/refresh fleet/poller fleet/failed_polls "
        "web/fastchat_wire availability/recovery registry_faults connection",
    ),
    ("controller/proxy/trials.py", "proxy/trials proxy/gateway_tries proxy/gateway_failures"),
    (
        "controller/dispatch",
        "dispatch/dispatcher web/limits availability/degraded availability/reconciler availability/recovery "
        "web/fastchat_wire web/leases web/by_way proxy/forwarder availability/clock_jumps metrics",
    ),
    (
        "controller/availability/circuit_breaker.py",
        "availability/circuit_breaker fleet/membership availability/degraded",
    ),
    ("controller/availability/listings.py", "availability/listings availability/recovery availability/data_loss"),
    ("controller/availability/known_models.py", "availability/known_models proxy/gateway"),
    ("controller/availability/snapshot.py", "availability/snapshot availability/degraded availability/recovery"),
    (
        "controller/availability",
        "availability/coalescer availability/degraded availability/reconciler availability/recovery "
        "availability/circuit_breaker availability/renaming availability/clock_jumps availability/degraded_faults "
        "web/leases web/fastchat_wire web/background availability/histories",
    ),
)
_TOP: Final = frozenset(["docs", "metrics", "network", "package", "settings", "simulation", "store_url"])
_HISTORIES: Final = "tests/store/test_oracle.py::test_random_histories_agree_with_the_reference_model"
_FOLDERS: Final = frozenset(["domain", "model", "server"])


def chosen_for(path: PurePosixPath) -> list[str]:
    """Return the test files for the mutants of a file, in the order in which they run."""
    names = next(names for prefix, names in _ROWS if str(path).startswith(prefix))
    return list(dict.fromkeys(_file(name) for name in names.split()))


def selection(path: PurePosixPath) -> str:
    """Return the expression for pytest's -k. Tests on fakeredis are left out, because they run on a server, too."""
    if path.is_relative_to("lua") and not path.is_relative_to("lua/include"):
        return f"not fakeredis and (not {_OF_SCRIPTS} or {path.stem})"
    return "not fakeredis" if path.suffix == ".py" else f"not fakeredis and not {_OF_SCRIPTS}"


def _file(name: str) -> str:
    if name in _FOLDERS:
        return f"tests/{name}"
    if name == "oracle":  # one of its four variants, because all of them take minutes
        return f"{_HISTORIES}[embedded-True-24]"
    folder, _, file = name.rpartition("/")
    folder = folder or ("" if name in _TOP else "store")
    return f"tests/{folder}/test_{file}.py".replace("//", "/")
