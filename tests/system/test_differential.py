"""One recorded history of calls on the stock controller and on ours: the same answers, but where we mean it."""

import asyncio
import json
import random
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.workers import BadWorker, bad_worker, chunks, status
from tests.system.conftest import Serve
from tests.system.processes import fastchat

SPEEDS = [1, 1.37, 2.11, 3.73]  # so that no two workers are ever equally loaded, but at queue length 0
MODELS = ["m", "n", "o"]
NAMES = [f"http://127.0.0.1:{port}" for port in (1, 2, 3, 4)]


def ask(url: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Status and answer; GET where the body is Ellipsis."""
    data = None if body is ... else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            status_code, text = response.status, response.read()
    except urllib.error.HTTPError as error:
        status_code, text = error.code, error.read()
    try:
        answer = json.loads(text)
    except ValueError:
        answer = text
    if isinstance(answer, dict) and "models" in answer:
        answer["models"].sort()  # the stock controller's order is that of a set
    return status_code, answer


def registration(name: str, models: list[str], speed: float, queue_length: int, multimodal: bool) -> dict[str, Any]:
    told = {"model_names": models, "speed": speed, "queue_length": queue_length}
    return {"worker_name": name, "check_heart_beat": True, "worker_status": told, "multimodal": multimodal}


def history(seed: int, length: int) -> list[tuple[str, Any]]:
    """Calls as workers and clients make them, in any order."""
    draw = random.Random(seed)
    steps: list[tuple[str, Any]] = [("/test_connection", ...)]
    for _ in range(length):
        i = draw.randrange(len(NAMES))
        kind = draw.choices(["register", "heartbeat", "dispatch", "lists"], [2, 4, 12, 3])[0]
        if kind == "register":
            models = draw.sample(MODELS, draw.randint(1, 3))
            body = registration(NAMES[i], models, SPEEDS[i], draw.randint(1, 9), draw.random() < 0.3)
            steps.append(("/register_worker", body))
        elif kind == "heartbeat":
            name = draw.choice([*NAMES, "http://127.0.0.1:5"])
            steps.append(("/receive_heart_beat", {"worker_name": name, "queue_length": draw.randint(1, 9)}))
        elif kind == "dispatch":
            steps.append(("/get_worker_address", {"model": draw.choice([*MODELS, "absent", ""])}))
        else:
            steps.append((draw.choice(["/list_models", "/list_multimodal_models", "/list_language_models"]), None))
    return steps


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_same_history_gives_the_same_answers(serve: Serve, work_dir: Path, seed: int) -> None:
    steps = history(seed, 400)
    ours = serve()
    with fastchat(work_dir, "controller") as stock:
        theirs = [ask(stock.url, *step) for step in steps]
    answered = [ask(ours.url, *step) for step in steps]
    assert [(s, a) for s, *a in zip(steps, answered, strict=True)] == [
        (s, a) for s, *a in zip(steps, theirs, strict=True)
    ]
    addresses = {answer["address"] for _, answer in theirs if isinstance(answer, dict) and "address" in answer}
    assert len(addresses) >= 4, "the history is one in which something happens"


def test_any_number_of_replicas_give_the_answers_of_one(serve: Serve) -> None:
    steps = history(seed=4, length=400)
    answers = []
    for replicas in (1, 2, 4):
        controller = serve("--replicas", str(replicas), data=f"replicas-{replicas}")
        answers.append([ask(controller.url, *step) for step in steps])
        controller.stop()
    assert answers[0] == answers[1] == answers[2]


@dataclass
class Difference:
    """Calls on which we differ on purpose, and why.

    theirs and ours are the last answers: status and body, or the status alone.
    """

    reason: str
    steps: list[tuple[str, Any]]
    theirs: list[Any]
    ours: list[Any]


A, B, C = NAMES[:3]
EQUAL = [("/register_worker", registration(name, ["m"], 1, 0, False)) for name in (A, B)]
DISPATCH = ("/get_worker_address", {"model": "m"})
HEARTBEATS = [("/receive_heart_beat", {"worker_name": name, "queue_length": 0}) for name in (A, B)]
FRAME = '{"text": "**NETWORK ERROR DUE TO HIGH TRAFFIC. PLEASE REGENERATE OR REFRESH THIS PAGE.**", "error_code": %d}'

DIFFERENCES = [
    Difference(
        "equal workers take turns; the stock controller takes the first after each heartbeat",
        [*EQUAL, DISPATCH, *HEARTBEATS, DISPATCH],
        [(200, {"address": A})],
        [(200, {"address": B})],
    ),
    Difference(
        "a malformed body is the sender's mistake, not ours",
        [("/get_worker_address", {"modell": "m"}), ("/receive_heart_beat", []), ("/register_worker", "x")],
        [500, 500, 500],
        [400, 400, 400],
    ),
    Difference(
        "a malformed registration is refused; the stock controller takes it and fails at every later call",
        [
            ("/register_worker", {**registration(A, [], 1, 0, False), "worker_status": {"model_names": ["m"]}}),
            ("/register_worker", registration(B, ["m"], 0, 1, False)),
            DISPATCH,
        ],
        [500, 200, 500],
        [400, 400, (200, {"address": ""})],
    ),
    Difference(
        "a worker that cannot be asked for its status is told so",
        [("/register_worker", {"worker_name": A, "check_heart_beat": True})],
        [(200, None)],
        [502],
    ),
    Difference(
        "one worker under the ways to write its name",
        [EQUAL[0], ("/receive_heart_beat", {"worker_name": A.upper() + "/", "queue_length": 0})],
        [(200, {"exist": False})],
        [(200, {"exist": True})],
    ),
    Difference(
        "after no worker there is one frame; the stock controller then posts to an empty address (trap 6)",
        [("/worker_generate_stream", {"model": "m"})],
        [(200, f"{FRAME % 50005}\0{FRAME % 50006}\0".encode())],
        [(200, f"{FRAME % 50005}\0".replace(": ", ":").replace(", ", ",").encode())],
    ),
    Difference(
        "when every one of several probes fails, the fault is likelier ours (the stock controller forgets them all)",
        [*EQUAL, ("/refresh_all_workers", None), ("/list_models", None)],
        [(200, {"models": []})],
        [(200, {"models": ["m"]})],
    ),
    Difference(
        "the status of all is what the registry knows; the stock controller asks every worker anew",
        [*EQUAL, ("/worker_get_status", None)],
        [(200, {"model_names": [], "speed": 0, "queue_length": 0})],
        [(200, {"model_names": ["m"], "speed": 2, "queue_length": 0})],
    ),
]


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda d: d.reason.split(";")[0].replace(" ", "-"))
def test_differences_on_purpose(serve: Serve, work_dir: Path, difference: Difference) -> None:
    def outcome(url: str, expected: list[Any]) -> list[Any]:
        answers = [ask(url, *step) for step in difference.steps][-len(expected) :]
        return [answer if isinstance(e, tuple) else answer[0] for answer, e in zip(answers, expected, strict=True)]

    with fastchat(work_dir, "controller") as stock:
        theirs = outcome(stock.url, difference.theirs)
    assert theirs == difference.theirs, "the stock controller does as we say it does"
    assert outcome(serve().url, difference.ours) == difference.ours, difference.reason
    assert difference.theirs != difference.ours


async def test_the_routes_that_ask_workers_give_the_same_with_workers_that_answer(serve: Serve, work_dir: Path) -> None:
    """Probing on registration, refresh, the sum of all and a stream, with the same two real workers."""

    def run(url: str, workers: list[BadWorker]) -> list[tuple[int, Any]]:
        steps: list[tuple[str, Any]] = []
        for worker in workers:
            body = {"worker_name": worker.address, "check_heart_beat": True, "worker_status": None}
            steps.append(("/register_worker", body))
        one = workers[0].address
        steps += [
            ("/list_models", None),
            ("/worker_get_status", None),
            ("/receive_heart_beat", {"worker_name": one, "queue_length": 50}),
            ("/refresh_all_workers", None),
            ("/get_worker_address", {"model": "both"}),
            ("/worker_generate_stream", {"model": "n"}),
        ]
        return [ask(url, *step) for step in steps]

    stream = chunks(b'{"text":"a"}\0{"te', b'xt":"b"}\0')
    async with (
        bad_worker(worker_get_status=status("m", "both", speed=2, queue_length=1)) as first,
        bad_worker(
            worker_get_status=status("n", "both", speed=1, queue_length=9), worker_generate_stream=stream
        ) as second,
    ):
        ours = await asyncio.to_thread(lambda: run(serve().url, [first, second]))

        def stock() -> list[tuple[int, Any]]:
            with fastchat(work_dir, "controller") as controller:
                return run(controller.url, [first, second])

        theirs = await asyncio.to_thread(stock)
    assert ours == theirs
    assert ours[3] == (200, {"model_names": ["both", "m", "n"], "speed": 3, "queue_length": 10})
    assert ours[-1] == (200, b'{"text":"a"}\0{"text":"b"}\0')
