"""The commands that show and change something, with a controller whose responses are chosen."""

import json
import threading
import time
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from controller import __version__
from controller.cli.models import models_of
from controller.cli.replicas import differing_settings
from controller.cli.text import count, duration
from controller.cli.workers import sort_workers
from tests.cli.conftest import FakeController
from tests.cli.samples import candidate, listed, replica

A, B = "http://10.0.0.5:21002", "http://10.0.0.6:21002"
ROUTE = {"model": "gpt-small", "targets": {"qwen-7b": 90, "next": 10}, "fallbacks": ["qwen-1b"], "unserved": ["next"]}


@pytest.mark.parametrize(
    "command", [["workers"], ["models"], ["capacity", "list"], ["token", "list"], ["route", "list"], ["replicas"]]
)
def test_lists_are_json_on_demand(fake: FakeController, command: list[str]) -> None:
    fake.responses = {
        "/workers": {"workers": [listed(A, "m")]},
        "/capacities": {"capacities": [{"model": "m", "capacity": 5}]},
        "/tokens": {"tokens": []},
        "/model_routes": {"model_routes": [ROUTE]},
        "/replicas": {"replicas": [replica("r")]},
    }
    ran = fake.run(*command, "--json")
    field = {"capacity": "capacities", "token": "tokens", "route": "model_routes"}.get(command[0], command[0])
    value = json.loads(ran.stdout)
    assert ran.exit_code == 0
    assert list(value) == [field]
    if field != "models":
        assert value == fake.responses[f"/{field}"], "with all fields of the HTTP API"


def test_workers_are_filtered_and_sorted(fake: FakeController) -> None:
    workers = [
        listed("http://a", "m", queue_length=1, heartbeat_age=5.0),
        listed("http://b", "n", queue_length=9, heartbeat_age=4.0, stalled_for=99.0),
        listed("http://c", "m", "n", queue_length=5, capacity=50, heartbeat_age=9.0, failing="polls"),
        listed("http://d", "m", queue_length=3, draining=True, heartbeat_age=1.0, stalled_for=10.0),
    ]
    orders = {
        sort: "".join(each["worker_name"][-1] for each in sort_workers(workers, sort))
        for sort in ("name", "state", "load", "queue", "stalled", "heartbeat")
    }
    assert orders == {
        "name": "abcd", "state": "cbda", "load": "bdac", "queue": "bcda", "stalled": "bdac", "heartbeat": "cabd",
    }  # fmt: skip
    fake.responses = {"/workers": {"workers": workers}}
    ran = fake.run("workers", "--model", "n", "--sort", "queue", "--json")
    assert [each["worker_name"] for each in json.loads(ran.stdout)["workers"]] == ["http://b", "http://c"]
    assert fake.run("workers", "--sort", "x").exit_code == 2


def test_a_model_without_workers_is_named(fake: FakeController) -> None:
    fake.responses = {"/workers": {"workers": [listed(A, "m")]}}
    ran = fake.run("workers", "--model", "no such")
    expected = "No live worker serves the model no such. `controller models` lists the served models.\n"
    assert (ran.exit_code, ran.stdout) == (1, expected)
    ran = fake.run("workers", "--model", "no such", "--json")
    assert (ran.exit_code, json.loads(ran.stdout)) == (1, {"workers": []})
    assert fake.run("workers", "--model", "m").exit_code == 0
    fake.responses = {"/workers": {"workers": []}}
    assert fake.run("workers").exit_code == 0


def test_models_are_the_sums_of_their_workers() -> None:
    workers = [
        listed(A, "m", "n", queue_length=4, leased=1, capacity=5),
        listed(B, "m", queue_length=2, leased=2, capacity=None, failing="request"),
        listed("http://c", "m", queue_length=1, leased=0, capacity=5, draining=True, stalled_for=61.0),
    ]
    m, n = models_of(workers)
    assert m == {
        "model": "m", "workers": 3, "serving": 1, "failing": 1, "stalled": 1, "draining": 1, "queue_length": 7,
        "leased": 3, "capacity": 5, "saturation": 0.8, "missing_since": None,
    }  # fmt: skip
    assert n == {
        "model": "n", "workers": 1, "serving": 1, "failing": 0, "stalled": 0, "draining": 0, "queue_length": 4,
        "leased": 1, "capacity": 5, "saturation": 0.8, "missing_since": None,
    }  # fmt: skip
    assert [each["model"] for each in models_of([*workers, listed("http://d", "n", queue_length=9)], "load")] == [
        "n",
        "m",
    ]
    assert models_of([listed(A, "m", capacity=None)])[0]["saturation"] is None


def test_models_that_have_lost_their_workers_are_shown(fake: FakeController) -> None:
    missing = [{"model": "vicuna-7b", "since": time.time() - 720}]
    fake.responses = {"/workers": {"workers": [listed(A, "m")], "missing_models": missing}, "/events": ""}
    for command in ("models", "top"):
        ran = fake.run(command)
        assert ran.exit_code == 0
        lines = [line.split() for line in ran.stdout.splitlines() if "vicuna-7b" in line]
        assert lines == [["vicuna-7b", "0", "0", "no", "worker", "for", "12", "m", "0"]]
    assert ran.stdout.index("vicuna-7b") < ran.stdout.index(" m "), "the worst first"
    models = json.loads(fake.run("models", "--json").stdout)["models"]
    assert [(each["model"], each["workers"], each["missing_since"]) for each in models] == [
        ("m", 1, None),
        ("vicuna-7b", 0, missing[0]["since"]),
    ]


def test_worker_shows_its_facts_and_its_own_events(fake: FakeController) -> None:
    events = [
        {
            "id": f"{number}-1",
            "time": 1_790_000_000.0 + number,
            "kind": "worker_draining",
            "worker": name,
            "reason": "r",
        }
        for number, name in enumerate((A, B, A))
    ]
    fake.responses = {
        "/workers": {"workers": [listed(A, "m", failing="polls", stalled_for=75.0), listed(B, "m")]},
        "/events": "".join(f"{json.dumps(event)}\n" for event in events),
    }
    ran = fake.run("worker", "10.0.0.5:*")
    assert ran.exit_code == 0
    facts = dict(line.rstrip().split(maxsplit=1) for line in ran.stdout.splitlines()[:3])
    assert facts == {"worker": A, "state": "failing 75 s", "models": "m"}
    assert "none of its requests for 75 s" in ran.stdout
    assert ran.stdout.count("worker draining") == 2
    shown = json.loads(fake.run("worker", A, "--json", "--last", "1").stdout)
    assert (shown["worker"]["worker_name"], [event["id"] for event in shown["events"]]) == (A, ["2-1"])
    ran = fake.run("worker", "10.0.0.*")
    assert (ran.exit_code, ran.stderr) == (1, f"Error: 10.0.0.* covers 2 workers: {A}, {B}. Name one of them.\n")
    assert "No live worker is named x." in fake.run("worker", "x").stderr
    fake.responses["/events"] = (503, {"error": {"message": "Redis cannot read the stream of events."}})
    ran = fake.run("worker", A)
    assert (ran.exit_code, "Its events are not available." in ran.stdout) == (0, True)


def test_replicas_that_differ_are_marked(fake: FakeController) -> None:
    replicas = [replica(name, "1.0", port=number, lease_time=600.0) for number, name in enumerate("ab")]
    assert differing_settings(replicas) == {}
    replicas.append(replica("c", "2.0", port=1, lease_time=60.0, parent_interval=None))
    assert differing_settings(replicas) == {"lease_time": {"600.0": ["a", "b"], "60.0": ["c"]}}
    fake.responses = {"/replicas": {"replicas": replicas}}
    lines = fake.run("replicas").stdout.splitlines()
    [row] = [line for line in lines if line.split()[:1] == ["c"]]
    assert "2.0 (differs)" in row
    assert "version, lease_time" in row
    assert any(line.split() == ["lease_time", "600.0", "a,", "b"] for line in lines)


def test_versions_of_this_program_and_of_the_replicas(fake: FakeController) -> None:
    ran = fake.run("version")
    assert (ran.exit_code, ran.stdout) == (0, f"controller {__version__}, this program\n")
    assert "The versions of the replicas are unknown." in ran.stderr
    fake.responses = {"/replicas": {"replicas": [replica("a", __version__), replica("b", "0.1")]}}
    ran = fake.run("version")
    assert ran.stdout.splitlines()[1:] == [
        f"controller {__version__}, replica a",
        "controller 0.1, replica b  (differs)",
    ]
    assert json.loads(fake.run("version", "--json").stdout)["replicas"][1] == {"name": "b", "version": "0.1"}


def explanation(**changed: Any) -> dict[str, Any]:
    answer = {"model": "m", "method": "shortest_queue", "chosen": A, "workers": 4}
    return {**answer, "candidates": [candidate(A), candidate(B, "full", cost=0.25)], "excluded": [], **changed}


def test_explain_names_the_models_of_a_route(fake: FakeController) -> None:
    fake.responses = {"/explain": explanation(model="name", served_model="m", routed_to=["absent", "m"])}
    ran = fake.run("explain", "name")
    assert "name is a route to absent, m." in ran.stdout
    assert f"The next request of m goes to {A}." in ran.stdout


def test_explain_says_which_worker_and_why(fake: FakeController) -> None:
    excluded = [{"worker_name": "http://c", "reason": "draining"}]
    fake.responses = {"/explain": explanation(excluded=excluded)}
    ran = fake.run("explain", "m/a b&c")
    assert ran.exit_code == 0
    [(_, path, _)] = fake.requests
    assert parse_qs(urlsplit(path).query) == {"model": ["m/a b&c"]}
    assert ran.stdout.startswith(f"The next request of m goes to {A}. Of the workers with a free slot")
    assert "2 candidates, the best first (1 other not shown)" in ran.stdout
    assert "http://c is excluded: draining." in ran.stdout
    drawn = [candidate(A, cost=None, odds=0.75), candidate(B, cost=None, odds=0.25)]
    fake.responses = {"/explain": explanation(method="lottery", chosen=None, candidates=drawn)}
    ran = fake.run("explain", "m")
    assert "at random, with these odds" in ran.stdout
    assert "75.0%" in ran.stdout
    for workers, text in ((2, "All 2 workers of the model m are draining."), (0, "No live worker serves the model m.")):
        fake.responses = {"/explain": explanation(chosen=None, candidates=[], workers=workers)}
        ran = fake.run("explain", "m")
        assert (ran.exit_code, text in ran.stdout) == (1, True)


def test_register_names_a_failure_of_the_controller_once(fake: FakeController) -> None:
    for response in ("no JSON", "{}", (502, "a load balancer has no replica")):
        fake.requests.clear()
        fake.responses = {"/register_engine": response, "/register_worker": "null"}
        ran = fake.run("register", A)
        assert (ran.exit_code, [path for _, path, _ in fake.requests]) == (1, ["/register_engine"]), response
    ran = fake.run("register", A, CONTROLLER_ADDRESS="http://127.0.0.1:1")
    assert ran.exit_code == 1
    assert ran.stderr.count("http://127.0.0.1:1/") == 1, ran.stderr
    assert "FastChat" not in ran.stderr
    fake.responses = {"/register_engine": (502, {"error": {"message": "It is no engine."}}), "/register_worker": "null"}
    fake.run("register", A)
    assert len(fake.sent("/register_worker")) == 1, "the controller has answered: it may be a worker of FastChat"


def test_register_sends_what_was_given(fake: FakeController) -> None:
    fake.responses = {"/register_worker": "null", "/workers": {"workers": [listed(A, "m")]}}
    ran = fake.run("register", f"{A.upper()}/", "--model", "m", "--model", "n", "--speed", "2", "--capacity", "7")
    assert ran.exit_code == 0, ran.output
    assert fake.sent("/register_worker") == [
        {
            "worker_name": A,
            "check_heart_beat": True,
            "multimodal": False,
            "worker_status": {"model_names": ["m", "n"], "speed": 2.0, "queue_length": 0, "capacity": 7},
        }
    ]
    assert "It expires in 78 s unless it sends heartbeats." in ran.stdout
    fake.responses["/workers"] = {"workers": [listed(A, "m", expires_in=None)]}
    ran = fake.run("register", A, "--no-heartbeats", "--multimodal")
    assert fake.sent("/register_worker")[1] == {"worker_name": A, "check_heart_beat": False, "multimodal": True}
    assert ran.stdout.endswith(f"Registered {A}.\n")


def test_register_refuses_contradictory_options(fake: FakeController) -> None:
    assert fake.run("register", A, "--engine", "fastchat", "--capacity", "7").exit_code == 2
    assert fake.run("register", A, "--engine", "vllm", "--no-heartbeats").exit_code == 2
    ran = fake.run("register", "10.0.0.5:21002")
    assert (ran.exit_code, fake.requests) == (1, [])
    fake.responses = {"/register_worker": (502, {"error": {"message": "It did not return its status."}})}
    ran = fake.run("register", A)
    assert (ran.exit_code, "It did not return its status." in ran.stderr) == (1, True)
    fake.responses = {"/register_worker": "null", "/workers": (403, {"error": {"message": "needs an admin"}})}
    ran = fake.run("register", A)
    assert (ran.exit_code, ran.stdout) == (0, f"Registered {A}.\n"), "a token for workers gives no right to list them"


def test_register_says_both_reasons_in_one_line(fake: FakeController) -> None:
    fake.responses = {
        "/register_engine": (502, {"error": {"message": "connection refused"}}),
        "/register_worker": (502, {"error": {"message": "It did not return its status."}}),
    }
    ran = fake.run("register", A)
    assert (ran.exit_code, ran.stderr.count("\n")) == (1, 1)
    assert "connection refused. It does not answer as a worker of FastChat either: " in ran.stderr


def test_top_prints_once_in_a_pipe(fake: FakeController) -> None:
    event = {"id": "1-1", "time": 1_790_000_000.0, "kind": "worker_registered", "worker": A}
    fake.responses = {
        "/workers": {"workers": [listed(A, "m", stalled_for=61.0), listed(B, "m")]},
        "/events": json.dumps(event),
    }
    ran = fake.run("top")
    assert ran.exit_code == 0
    assert "2 workers   1 serving   1 stalled" in ran.stdout
    assert "worker registered" in ran.stdout
    assert ran.stdout.index(A) < ran.stdout.index(B)
    assert "\x1b" not in ran.stdout
    fake.responses["/events"] = (503, {"error": {"message": "x"}})
    assert "Events are not available." in fake.run("top").stdout


@pytest.mark.parametrize("workers", [5, [5], [{}], ["x"], [{"worker_name": "http://h"}]])
def test_responses_of_other_versions_are_an_error_in_one_line(fake: FakeController, workers: Any) -> None:
    fake.responses = {"/workers": {"workers": workers}}
    for command in (["workers"], ["models"], ["top"], ["doctor"], ["worker", "http://h"]):
        ran = fake.run(*command)
        assert (ran.exit_code, ran.stderr.count("\n")) == (1, 1), command
        assert "may run another version" in ran.stderr or "No live worker is named" in ran.stderr


def test_timeout_limits_a_request(fake: FakeController) -> None:
    over = threading.Event()

    def hang() -> dict[str, Any]:
        over.wait(60)
        return {"workers": []}

    fake.responses = {"/workers": hang}
    try:
        for arguments, env in ((("--timeout", "0.2s"), {}), ((), {"CONTROLLER_TIMEOUT": "0.2"})):
            ran = fake.run("workers", *arguments, **env)
            assert (ran.exit_code, over.is_set()) == (1, False)
            assert "no response within 0.2 s" in ran.stderr
    finally:
        over.set()
    assert fake.run("workers", "--timeout", "soon").exit_code == 2


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (75, "75 s"),
        (120, "2 m"),
        (3_599, "59 m"),
        (7_260, "2 h 1 m"),
        (200_000, "2 d 7 h"),
    ],
)
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_counts() -> None:
    assert [count(number, "worker") for number in (0, 1, 1_000)] == ["0 workers", "1 worker", "1,000 workers"]
