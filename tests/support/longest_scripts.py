"""Finds the longest run of a script on a server, from the SLOWLOG of the server.

Scripts that a test has changed are left out, such as those with another clock or a smaller budget.
"""

from collections.abc import Iterator, Sequence
from hashlib import sha1
from typing import Any, Final, NamedTuple

import pytest
from redis import Redis

from controller.store import scripts

# Redis logs the commands of a script, too. If it logged the short ones, each run would take several times as long.
_RECORD_SLOW: Final = {"slowlog-log-slower-than": 500, "slowlog-max-len": 10_000}  # microseconds
# The name of each script by the hash with which a replica calls it. It is computed before a test changes a script.
_NAMES: Final = {
    sha1(scripts.source(name).encode(), usedforsecurity=False).hexdigest().encode(): name for name in scripts.names()
}
RUNS: Final = "longest_scripts"  # the key of what a process of pytest-xdist sends to the main one


class ScriptRun(NamedTuple):
    """One run of a script. server: the kind of server."""

    milliseconds: float
    script: str
    server: str


_found: Final = pytest.StashKey[list[ScriptRun]]()


def script_runs(slowlog: Sequence[Any], server: str) -> Iterator[ScriptRun]:
    """Yield the runs of our scripts in a reply to SLOWLOG GET, which is not decoded: it has arguments of any bytes."""
    for _, _, microseconds, command, *_ in slowlog:
        if command[0].upper() == b"EVALSHA" and command[1] in _NAMES:
            yield ScriptRun(microseconds / 1000, _NAMES[command[1]], server)


def record(url: str) -> None:
    """Let a server record slow scripts."""
    with Redis.from_url(url) as client:
        client.config_set(*(part for setting in _RECORD_SLOW.items() for part in setting))


def collect(config: pytest.Config, url: str, server: str) -> None:
    """Keep the longest run of a script on a server for the summary."""
    with Redis.from_url(url) as client:
        runs = list(script_runs(client.execute_command("SLOWLOG", "GET", -1), server))
    if not runs:
        return
    longest = max(runs)
    if hasattr(config, "workeroutput"):
        config.workeroutput.setdefault(RUNS, []).append(tuple(longest))
    else:
        config.stash.setdefault(_found, []).append(longest)


def collect_from(node: Any) -> None:
    """Keep what a process of pytest-xdist has found. node: its xdist.workermanage.WorkerController."""
    found = getattr(node, "workeroutput", {}).get(RUNS, [])  # a process that crashed has no output
    node.config.stash.setdefault(_found, []).extend(ScriptRun(*run) for run in found)


def summary(config: pytest.Config) -> list[str]:
    """Describe the longest run of a script during the tests."""
    found = config.stash.get(_found, [])
    if not found:
        return []
    longest = max(found)
    return [f"longest script: {longest.script}, {longest.milliseconds:.1f} ms, on {longest.server}"]
