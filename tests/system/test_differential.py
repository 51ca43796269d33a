"""The stock controller and ours give the same answers to one history of calls, except for intended differences."""

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

pytestmark = pytest.mark.system

SPEEDS = [1, 1.37, 2.11, 3.73]  # no two workers have the same load, except at queue length 0
MODELS = ["m", "n", "o"]
NAMES = [f"http://127.0.0.1:{port}" for port in (1, 2, 3, 4)]


def send(url: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Send a request, with GET if the body is Ellipsis. Return the status and the decoded body."""
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
        answer["models"].sort()  # the stock controller lists a set, so its order varies
    return status_code, answer


def registration(name: str, models: list[str], speed: float, queue_length: int, multimodal: bool) -> dict[str, Any]:
    worker_status = {"model_names": models, "speed": speed, "queue_length": queue_length}
    return {"worker_name": name, "check_heart_beat": True, "worker_status": worker_status, "multimodal": multimodal}


def history(seed: int, length: int) -> list[tuple[str, Any]]:
    """Return random calls of workers and clients."""
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


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_both_controllers_give_the_same_answers(serve: Serve, work_dir: Path, seed: int) -> None:
    steps = history(seed, 400)
    ours = serve()
    with fastchat(work_dir, "controller") as stock:
        theirs = [send(stock.url, *step) for step in steps]
    answered = [send(ours.url, *step) for step in steps]
    assert [(s, a) for s, *a in zip(steps, answered, strict=True)] == [
        (s, a) for s, *a in zip(steps, theirs, strict=True)
    ]
    addresses = {answer["address"] for _, answer in theirs if isinstance(answer, dict) and "address" in answer}
    assert len(addresses) >= 4, "the history dispatches to all workers"


@pytest.mark.slow
def test_the_number_of_replicas_does_not_change_the_answers(serve: Serve) -> None:
    steps = history(seed=4, length=200)
    answers = []
    for replicas in (1, 4):
        controller = serve("--replicas", str(replicas), data=f"replicas-{replicas}")
        answers.append([send(controller.url, *step) for step in steps])
        controller.stop()
    assert answers[0] == answers[1]


@dataclass
class Difference:
    """Calls that the two controllers answer differently on purpose.

    reason: the intended behaviour, as a sentence that names the test. A second sentence may explain it.
    theirs and ours: the last answers of the stock controller and of ours, as status and body, or as the status alone.
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
        "equal workers are chosen alternately. The stock controller chooses the first one after each heartbeat",
        [*EQUAL, DISPATCH, *HEARTBEATS, DISPATCH],
        [(200, {"address": A})],
        [(200, {"address": B})],
    ),
    Difference(
        "a malformed body is a client error. The stock controller reports a server error",
        [("/get_worker_address", {"modell": "m"}), ("/receive_heart_beat", []), ("/register_worker", "x")],
        [500, 500, 500],
        [400, 400, 400],
    ),
    Difference(
        "a malformed registration is rejected. The stock controller accepts it, and later calls fail",
        [
            ("/register_worker", {**registration(A, [], 1, 0, False), "worker_status": {"model_names": ["m"]}}),
            ("/register_worker", registration(B, ["m"], 0, 1, False)),
            DISPATCH,
        ],
        [500, 200, 500],
        [400, 400, (200, {"address": ""})],
    ),
    Difference(
        "a registration fails if the worker does not return its status. The stock controller reports success",
        [("/register_worker", {"worker_name": A, "check_heart_beat": True})],
        [(200, None)],
        [502],
    ),
    Difference(
        "different spellings of a name are one worker",
        [EQUAL[0], ("/receive_heart_beat", {"worker_name": A.upper() + "/", "queue_length": 0})],
        [(200, {"exist": False})],
        [(200, {"exist": True})],
    ),
    Difference(
        "a stream without a worker is one error frame. The stock controller then posts to an empty address",
        [("/worker_generate_stream", {"model": "m"})],
        [(200, f"{FRAME % 50005}\0{FRAME % 50006}\0".encode())],
        [(200, f"{FRAME % 50005}\0".replace(": ", ":").replace(", ", ",").encode())],
    ),
    Difference(
        "workers stay registered if all probes fail, as the fault is likely ours. The stock controller removes them",
        [*EQUAL, ("/refresh_all_workers", None), ("/list_models", None)],
        [(200, {"models": []})],
        [(200, {"models": ["m"]})],
    ),
    Difference(
        "the total status comes from the registry. The stock controller polls every worker",
        [*EQUAL, ("/worker_get_status", None)],
        [(200, {"model_names": [], "speed": 0, "queue_length": 0})],
        [(200, {"model_names": ["m"], "speed": 2, "queue_length": 0})],
    ),
]


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda d: d.reason.split(".")[0].replace(" ", "-"))
def test_intended_differences(serve: Serve, work_dir: Path, difference: Difference) -> None:
    def outcome(url: str, expected: list[Any]) -> list[Any]:
        answers = [send(url, *step) for step in difference.steps][-len(expected) :]
        return [answer if isinstance(e, tuple) else answer[0] for answer, e in zip(answers, expected, strict=True)]

    with fastchat(work_dir, "controller") as stock:
        theirs = outcome(stock.url, difference.theirs)
    assert theirs == difference.theirs, "the stock controller behaves as described here"
    assert outcome(serve().url, difference.ours) == difference.ours, difference.reason
    assert difference.theirs != difference.ours


async def test_routes_that_call_workers_give_the_same_answers(serve: Serve, work_dir: Path) -> None:
    """Compare registration with a probe, refresh, the total status and a stream, with the same two real workers."""

    def run(url: str, workers: list[BadWorker]) -> list[tuple[int, Any]]:
        steps: list[tuple[str, Any]] = []
        for worker in workers:
            body = {"worker_name": worker.address, "check_heart_beat": True, "worker_status": None}
            steps.append(("/register_worker", body))
        address = workers[0].address
        steps += [
            ("/list_models", None),
            ("/worker_get_status", None),
            ("/receive_heart_beat", {"worker_name": address, "queue_length": 50}),
            ("/refresh_all_workers", None),
            ("/get_worker_address", {"model": "both"}),
            ("/worker_generate_stream", {"model": "n"}),
        ]
        return [send(url, *step) for step in steps]

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
