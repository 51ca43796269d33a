"""`controller doctor` judges what a controller reports."""

import json
import time
from typing import Any

import pytest

from controller import __version__
from controller.cli.checks.engines import check_engines
from controller.cli.checks.finding import Finding, Level
from controller.cli.checks.replicas import check_heartbeats, check_process, check_replicas
from controller.cli.checks.store import check_store
from controller.cli.checks.workers import check_workers
from tests.cli.conftest import FakeController
from tests.cli.samples import diagnosis, listed, replica

DEFAULTS = {"heartbeat_expiration": 90.0, "poll_interval": 5.0, "probe_timeout": 5.0, "max_workers": 100}
OK, UNKNOWN, WARNING, PROBLEM = Level


def notable(findings: Any) -> list[tuple[Level, str]]:
    """Return the level and the check of findings that are not ok. Each says what to do."""
    found: list[Finding] = [finding for finding in findings if finding.level is not OK]
    assert all(finding.advice for finding in found if finding.level in (WARNING, PROBLEM))
    return [(finding.level, finding.check) for finding in found]


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, []),
        ({"product": "valkey", "version": "8.0.0"}, []),
        ({"version": "6.2.14"}, [(PROBLEM, "Redis version")]),
        ({"role": "slave"}, [(PROBLEM, "Redis role")]),
        ({"eviction_policy": "allkeys-lru"}, [(PROBLEM, "Redis memory")]),
        ({"evicted_keys": 3}, [(WARNING, "Redis memory")]),
        ({"memory_used": 81 * 2**20}, [(WARNING, "Redis memory")]),
        ({"memory_used": 96 * 2**20}, [(PROBLEM, "Redis memory")]),
        ({"memory_used": 96 * 2**30, "memory_limit": 0}, []),
        ({"append_only": False}, [(WARNING, "Redis persistence")]),
        ({"append_only": False, "snapshots": "3600 1"}, []),
        ({"append_only": False, "snapshots": None}, []),
        ({"append_only_failed": True}, [(PROBLEM, "Redis persistence")]),
        ({"append_only": False, "append_only_failed": True, "snapshots": "3600 1"}, []),
        ({"snapshot_failed": True}, [(PROBLEM, "Redis persistence")]),
        ({"clock_offset": -1.5}, [(WARNING, "Redis clock")]),
        ({"round_trip": 0.07}, [(PROBLEM, "Redis latency")]),
        ({"fork_time": 0.2}, [(WARNING, "Redis latency")]),
        ({"clients": 9_000}, [(PROBLEM, "Redis connections")]),
        ({"rejected_connections": 1}, [(WARNING, "Redis connections")]),
        ({"cached_scripts": 5_000}, [(WARNING, "Redis script cache")]),
        ({"failed_event_writes": 1}, [(WARNING, "events")]),
    ],
    ids=str,
)
def test_redis(facts: dict[str, Any], expected: list[tuple[Level, str]]) -> None:
    assert notable(check_store(diagnosis(**facts)["store"])) == expected


def test_engines_that_are_not_ready_are_a_problem() -> None:
    ready = {"worker_name": "http://127.0.0.1:1", "alive": True, "problem": None}
    failing = {"worker_name": "http://127.0.0.1:2", "alive": True, "problem": "requests to it have failed"}
    away = {"worker_name": "http://127.0.0.1:3", "alive": False, "problem": "it is asleep"}
    assert [finding.level for finding in check_engines([ready])] == [OK]
    assert list(check_engines([])) == []
    found = list(check_engines([ready, failing, away]))
    assert notable(found) == [(PROBLEM, "engines"), (PROBLEM, "engines")]
    assert found[0].found == (
        "http://127.0.0.1:2 gets requests only if no other can serve them: requests to it have failed."
    )
    assert found[1].found == "http://127.0.0.1:3 gets no requests: it is asleep."


def test_redis_without_rights_is_unknown_and_no_problem() -> None:
    store = diagnosis()["store"]
    store["facts"] = {**dict.fromkeys(store["facts"]), "round_trip": 0.001, "clock_offset": 0.0}
    store["unknown"] = {"INFO": "not permitted", "CONFIG GET": "not permitted"}
    found = notable(check_store(store))
    assert {level for level, _ in found} == {UNKNOWN}
    assert [check for _, check in found][-2:] == ["Redis CONFIG GET", "Redis INFO"]


def test_redis_that_is_away_is_a_problem() -> None:
    store = diagnosis()["store"]
    assert notable(check_store({**store, "unavailable": "Redis is unavailable."})) == [(PROBLEM, "Redis")]
    nothing = {**store, "unavailable": "It is gone.", "facts": dict.fromkeys(store["facts"])}
    assert notable(check_store(nothing)) == [(PROBLEM, "Redis")]


def test_a_master_without_replicas_is_a_warning_where_something_should_take_over() -> None:
    store = diagnosis(connected_replicas=0)["store"]
    assert notable(check_store(store)) == []
    for kind in ("sentinel", "cluster"):
        assert notable(check_store({**store, "kind": kind})) == [(WARNING, "Redis role")]


def test_replicas_that_differ() -> None:
    same = [replica(name, __version__, lease_time=600.0, port=port) for name, port in (("a", 1), ("b", 2))]
    assert notable(check_replicas(same)) == []
    assert notable(check_replicas([*same, replica("c", "0.1", lease_time=600.0)])) == [(WARNING, "versions")]
    assert notable(check_replicas([*same, replica("c", __version__, lease_time=60.0)])) == [(PROBLEM, "settings")]
    limits = [replica(name, __version__, max_connections=number) for name, number in (("a", 1), ("b", 2))]
    assert notable(check_replicas(limits)) == [(WARNING, "settings")]
    assert notable(check_replicas([*same, replica("c", __version__, new=1)])) == [], "an older one lacks settings"
    assert notable(check_replicas([replica("a", "99.0")])) == [(WARNING, "versions")]


def test_open_files_and_the_clock() -> None:
    process = diagnosis()["replica"]
    assert notable(check_process(process)) == []
    assert notable(check_process({**process, "open_files": 900})) == [(PROBLEM, "open files")]
    assert notable(check_process({**process, "open_files": 900, "open_files_limit": None})) == []
    assert notable(check_process({**process, "open_files": None})) == [(UNKNOWN, "open files")]
    assert notable(check_process({**process, "clock_jump": -7.0})) == [(WARNING, "Redis clock")]


@pytest.mark.parametrize(
    ("settings", "ages", "expected"),
    [
        ({}, [10.0, 44.0], []),
        ({}, [10.0, 70.0], [(WARNING, "heartbeats")]),
        ({"heartbeat_expiration": 30.0}, [], [(PROBLEM, "heartbeats")]),
        ({"heartbeat_expiration": 60.0}, [], [(WARNING, "heartbeats")]),
        ({"poll_interval": 0.0}, [], [(WARNING, "polls")]),
        ({"poll_interval": 90.0}, [], [(WARNING, "polls")]),
        ({"probe_timeout": 60.0}, [], [(WARNING, "polls")]),
    ],
    ids=str,
)
def test_settings_of_heartbeats(
    settings: dict[str, float], ages: list[float], expected: list[tuple[Level, str]]
) -> None:
    workers = [listed(f"http://h:{number}", "m", heartbeat_age=age) for number, age in enumerate(ages, 1)]
    workers.append(listed("http://sends-none", "m", heartbeat_age=9999.0, check_heart_beat=False))
    assert notable(check_heartbeats({**DEFAULTS, **settings}, workers)) == expected


def test_without_settings_the_heartbeats_are_unknown() -> None:
    assert notable(check_heartbeats({}, []))[0][0] is UNKNOWN


WORKERS: list[tuple[list[dict[str, Any]], list[tuple[Level, str]]]] = [
    ([], [(WARNING, "workers")]),
    ([{}], []),
    ([{"failing": "polls"}, {}], [(PROBLEM, "failing workers")]),
    ([{"failing": "request"}, {}], [(PROBLEM, "failing workers")]),
    ([{"failing": "request"}], [(PROBLEM, "failing workers"), (WARNING, "models")]),
    ([{"stalled_for": 61.0}, {}], [(PROBLEM, "stalled workers")]),
    ([{"stalled_for": 59.0}, {}], []),
    ([{"stalled_for": 61.0, "draining": True}, {}], []),
    ([{"drained": True, "draining": True}, {}], [(WARNING, "drained workers")]),
    ([{"polled": False}], [(WARNING, "unreachable workers")]),
    ([{"draining": True}], [(PROBLEM, "models")]),
    ([{"queue_length": 5}], [(WARNING, "models")]),
    ([{"capacity": None}, {}], [(WARNING, "capacities")]),
    ([{}] * 90, [(WARNING, "workers")]),
]


@pytest.mark.parametrize(("changes", "expected"), WORKERS)
def test_workers(changes: list[dict[str, Any]], expected: list[tuple[Level, str]]) -> None:
    workers = [listed(f"http://h:{number}", "m", **change) for number, change in enumerate(changes, 1)]
    assert notable(check_workers(workers, DEFAULTS, 60.0)) == expected


@pytest.mark.parametrize("others", [[], [listed("http://h:1", "m")]])
def test_models_that_have_lost_their_workers_are_a_problem(fake: FakeController, others: list[dict[str, Any]]) -> None:
    missing = [{"model": "vicuna-7b", "since": time.time() - 720}]
    fake.responses = {**healthy(), "/workers": {"workers": others, "missing_models": missing}}
    ran = fake.run("doctor", "--json")
    found = {finding["check"]: finding for finding in json.loads(ran.stdout)["findings"]}
    assert (ran.exit_code, found["missing models"]["level"]) == (1, "problem")
    assert found["missing models"]["found"].startswith("No worker is alive for vicuna-7b, for up to 12 m.")
    assert ("workers" in found) is (not others)


def healthy() -> dict[str, Any]:
    return {
        "/workers": {"workers": [listed("http://h:1", "m")]},
        "/replicas": {"replicas": [replica("r", __version__, **DEFAULTS)]},
        "/diagnosis": diagnosis(),
        "/engines": {"engines": []},
    }


def test_the_exit_status_is_1_only_for_problems(fake: FakeController) -> None:
    fake.responses = healthy()
    ran = fake.run("doctor")
    assert (ran.exit_code, ran.stdout.splitlines()[-1]) == (0, "0 problems, 0 warnings, 15 ok.")
    fake.responses["/diagnosis"] = diagnosis(append_only=False)
    ran = fake.run("doctor")
    assert (ran.exit_code, ran.stdout.splitlines()[-1]) == (0, "0 problems, 1 warning, 14 ok.")
    fake.responses["/workers"] = {"workers": [listed("http://stuck", "m", stalled_for=300.0), listed("http://h", "m")]}
    ran = fake.run("doctor", "--json")
    found = {finding["check"]: finding for finding in json.loads(ran.stdout)["findings"]}
    assert ran.exit_code == 1
    assert found["stalled workers"]["level"] == "problem"
    assert (
        "http://stuck: the queue is reported, but no request has finished for 5 m" in found["stalled workers"]["found"]
    )
    assert fake.run("doctor", "--stalled-after", "6m").exit_code == 0


def test_an_older_controller_is_examined_as_far_as_possible(fake: FakeController) -> None:
    """It lacks routes and fields."""
    old = {name: value for name, value in listed("http://h:1", "m").items() if name != "stalled_for"}
    fake.responses = {"/workers": {"workers": [old]}}
    ran = fake.run("doctor", "--json")
    levels = {finding["check"]: finding["level"] for finding in json.loads(ran.stdout)["findings"]}
    assert ran.exit_code == 0
    assert (levels["replicas"], levels["Redis"], levels["workers"]) == ("unknown", "unknown", "ok")


def test_unknown_variables_are_reported(fake: FakeController) -> None:
    fake.responses = healthy()
    ran = fake.run("doctor", CONTROLLER_REDIS_ULR="redis://h")
    assert ran.exit_code == 0
    assert "Did you mean CONTROLLER_REDIS_URL?" in ran.stdout


def test_a_controller_that_cannot_be_reached_is_an_error(fake: FakeController) -> None:
    ran = fake.run("doctor", CONTROLLER_ADDRESS="http://127.0.0.1:1")
    assert (ran.exit_code, ran.stdout) == (1, "")
    assert "Is the controller running" in ran.stderr
