"""Checks of the replicas: their versions, their settings and their processes."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from controller import __version__
from controller.cli.checks.finding import Finding, ok, problem, some, unknown, warning
from controller.cli.replicas import Replica, differing_settings
from controller.cli.text import count
from controller.settings import settings_of
from controller.settings.declaration import Scope

_STOCK_INTERVAL: Final = 45.0  # seconds between two heartbeats of FastChat's workers
_ALMOST_FULL: Final = 0.8


def check_replicas(replicas: Sequence[Replica]) -> Iterator[Finding]:
    """Yield what is found in the response of GET `/replicas`."""
    versions = sorted({replica["version"] or "unknown" for replica in replicas})
    if len(versions) > 1:
        yield warning(
            "versions",
            f"The replicas run several versions: {', '.join(versions)}.",
            "This is normal during an upgrade. Otherwise, upgrade the older replicas: `controller replicas` lists "
            "them.",
        )
    elif versions and versions[0] != __version__:
        yield warning(
            "versions",
            f"The replicas run version {versions[0]}, and this program is {__version__}. This program may misread "
            "their responses.",
            "Use the `controller` command of their version.",
        )
    else:
        yield ok("versions", f"{count(len(replicas), 'replica')} of version {', '.join(versions) or '?'}")
    differing = differing_settings(replicas)
    local = settings_of(Scope.PROCESS)
    advice = "Start all replicas with the same settings. `controller replicas` lists the values."
    if decisive := [name for name in differing if name not in local]:
        found = f"The replicas have different settings: {', '.join(decisive)}. So they treat the same workers and "
        yield problem("settings", f"{found}requests differently.", advice)
    elif differing:
        found = f"The replicas have different settings: {', '.join(differing)}. Each replica uses its own values."
        yield warning("settings", found, advice)
    elif replicas:
        yield ok("settings", "the same on all replicas")


def check_process(replica: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what is found in the part `replica` of GET `/diagnosis`."""
    files, limit = replica["open_files"], replica["open_files_limit"]
    if files is None:
        yield unknown("open files", "The number of open files of the replica is not known.")
    elif limit and files > _ALMOST_FULL * limit:
        yield problem(
            "open files",
            f"The replica has {files:,} of {limit:,} files open. At the limit it refuses connections.",
            "Raise the limit (ulimit -n, or LimitNOFILE of systemd), or run more replicas.",
        )
    else:
        yield ok("open files", f"{files:,} of {f'{limit:,}' if limit else 'any number'}")
    if replica["clock_jump"]:
        jump = replica["clock_jump"]
        yield warning(
            "Redis clock",
            f"The clock of Redis was recently set {'forward' if jump > 0 else 'back'} by {abs(jump):.1f} s.",
            "Run chrony or ntpd on the machine of Redis, and let it adjust the clock gradually.",
        )


def check_heartbeats(settings: Mapping[str, Any], workers: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Check the heartbeat settings against each other, and against the heartbeats of the workers.

    settings: of one replica. workers: as GET `/workers` lists them.
    """
    expiration, poll_interval, probe_timeout = (
        settings.get(name) for name in ("heartbeat_expiration", "poll_interval", "probe_timeout")
    )
    if expiration is None or poll_interval is None:
        yield unknown("heartbeats", "The settings of the heartbeats are not known.")
        return
    found = list(_contradictions(expiration, poll_interval, probe_timeout or 0.0))
    aged = [worker for worker in workers if worker["check_heart_beat"]]
    late = [worker["worker_name"] for worker in aged if worker["heartbeat_age"] > 0.75 * expiration]
    if late:
        found.append(
            warning(
                "heartbeats",
                f"{count(len(late), 'worker')} sent no heartbeat for {0.75 * expiration:g} s, three quarters of "
                f"--heartbeat-expiration: {some(late)}.",
                "Check whether they are alive. If they are, they send heartbeats too rarely: raise "
                "--heartbeat-expiration.",
            )
        )
    oldest = max((worker["heartbeat_age"] for worker in aged), default=0.0)
    yield from found or [
        ok(
            "heartbeats",
            f"They expire after {expiration:g} s. The oldest is {oldest:.0f} s old. Workers are polled every "
            f"{poll_interval:g} s.",
        )
    ]


def _contradictions(expiration: float, poll_interval: float, probe_timeout: float) -> Iterator[Finding]:
    if expiration <= _STOCK_INTERVAL:
        yield problem(
            "heartbeats",
            f"--heartbeat-expiration is {expiration:g} s, but FastChat's workers send a heartbeat every 45 s. So a "
            "worker expires before its next heartbeat.",
            "Set it to 90 or more, or let all workers send heartbeats more often "
            "(FASTCHAT_WORKER_HEART_BEAT_INTERVAL).",
        )
    elif expiration < 2 * _STOCK_INTERVAL:
        yield warning(
            "heartbeats",
            f"--heartbeat-expiration is {expiration:g} s. A worker of FastChat, which sends a heartbeat every 45 s, "
            "expires if one is lost.",
            "Set it to 90 or more.",
        )
    if poll_interval and poll_interval >= expiration:
        yield warning(
            "polls",
            f"--poll-interval ({poll_interval:g} s) is not shorter than --heartbeat-expiration ({expiration:g} s), so "
            "polls add nothing to the heartbeats.",
            "Set --poll-interval to a few seconds.",
        )
    if not poll_interval:
        yield warning(
            "polls",
            "--poll-interval is 0. Between two heartbeats, the load of a worker is an estimate, and a worker that does "
            "not answer is not noticed.",
            "Set --poll-interval to a few seconds, if the replicas can reach the workers.",
        )
    elif probe_timeout > 4 * poll_interval:
        yield warning(
            "polls",
            f"--probe-timeout ({probe_timeout:g} s) is much longer than --poll-interval ({poll_interval:g} s), so a "
            "worker that hangs is noticed late.",
            "Lower --probe-timeout.",
        )
