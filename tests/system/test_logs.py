"""The log of real processes: JSON in files, text on a terminal, no secrets, and ids that stay with their request."""

import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
from base64 import b64encode
from pathlib import Path
from typing import Any

import psutil
import pytest
from ports import free_port

from tests.support.waiting import wait_until
from tests.system import servers
from tests.system.conftest import Serve
from tests.system.processes import ControllerProcess, serves
from tests.system.test_serve import A

pytestmark = pytest.mark.system

SECRETS = {plane: f"{plane}-0123456789abcdef" for plane in ("worker", "client", "admin")}
TOKENS = {f"CONTROLLER_{plane.upper()}_TOKENS": f"{plane}={secret}" for plane, secret in SECRETS.items()}
WRONG = "wrong-0123456789abcdef"
PASSWORD = "sesame-of-redis"
WITH_SECRET = f"http://name:{WRONG}@127.0.0.1:1"
ENCODED = b64encode(f"name:{WRONG}".encode()).decode()
CREDENTIALS = (
    f"Authorization: Bearer {WRONG}",
    f"Authorization: Basic {ENCODED}",
    f"Authorization: {WRONG}",
    f"X-Request-Id: {WITH_SECRET}",
    f"X-Forwarded-For: {WRONG}",
    f"Cookie: token={WRONG}",
)
PATHS = (
    *("/register_worker", "/list_models", "/drain_worker", "/worker_generate", "/workers?token=" + WRONG),
    *(f"/{WITH_SECRET}/x", f"{WITH_SECRET}/list_models"),
)
EVENT = re.compile(r"[0-9-]{10} [0-9:]{8},[0-9]{3} (INFO|WARNING|ERROR) \[[0-9]+\] [a-z.]+( request_id=\S+)?: .")


def events(log: str) -> list[dict[str, Any]]:
    """Return the events of a log. Fails if a line is no event."""
    found = [json.loads(line) for line in log.splitlines()]
    assert all({"time", "level", "logger", "message", "process"} <= event.keys() for event in found)
    return found


def exchange(controller: ControllerProcess, *requests: bytes) -> bytes:
    """Send requests at once on one connection, and return all that is received until the controller closes it."""
    with socket.create_connection(("127.0.0.1", controller.port), timeout=60) as connection:
        connection.sendall(b"".join(requests))
        received = b""
        while part := connection.recv(65536):
            received += part
    return received


def request(path: str, body: object = None, *headers: str, method: str = "POST") -> bytes:
    content = json.dumps(body or {}).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: x", f"Content-Length: {len(content)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


async def test_all_processes_write_json(serve: Serve) -> None:
    controller = serve("--replicas", "2", "--access-log")
    await wait_until(lambda: controller.log.count("startup complete") == 2, "both replicas run")
    supervisor = controller.popen.pid
    replicas = {event["process"] for event in events(controller.log)} - {supervisor}
    assert len(replicas) == 2
    psutil.Process(replicas.pop()).kill()
    await wait_until(lambda: "crashed" in controller.log, "the crash is logged")
    await wait_until(lambda: controller.log.count("startup complete") == 3, "the replica is replaced")
    assert controller.stop() == 0
    found = events(controller.log)
    [crash] = [event for event in found if "crashed" in event["message"]]
    assert (crash["level"], crash["logger"], crash["process"]) == ("error", "controller.server", supervisor)
    assert {crash["successor"], crash["pid"]} <= {event["process"] for event in found}
    assert {"uvicorn", "controller.server", "controller.access"} <= {event["logger"] for event in found}


async def test_a_terminal_shows_text(work_dir: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "controller", "serve", "--port", str(port), "--data-dir", str(work_dir / "data")]
    ours, theirs = pty.openpty()
    shown = b""
    with subprocess.Popen([*command, "--access-log"], stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        await wait_until(lambda: serves(f"http://localhost:{port}"), "the controller serves")
        with socket.create_connection(("localhost", port)) as connection:
            connection.sendall(b"GET /a%0a2026-01-01%20forged%1b[2J HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            while connection.recv(65536):
                pass
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and select.select([ours], [], [], 60)[0]:
            try:
                shown += os.read(ours, 65536)
            except OSError:  # Linux reports the end of the output this way
                break
    os.close(ours)
    lines = [line for line in shown.decode().replace("\r\n", "\n").split("\n") if line]
    assert [line for line in lines if not EVENT.match(line)] == []
    assert all(line.isprintable() for line in lines)
    [line] = [line for line in lines if "forged" in line]
    assert '"GET /a%0a2026-01-01%20forged%1b[2J" 404' in line


@pytest.mark.parametrize("log_format", ["json", "text"])
async def test_no_secret_is_logged(serve: Serve, log_format: str, work_dir: Path) -> None:
    store = servers.Server(work_dir, "--save", "", "--requirepass", PASSWORD)
    try:
        url = f"redis://default:{PASSWORD}@127.0.0.1:{store.port}/0"
        parent = f"http://parent:{WRONG}@127.0.0.1:{free_port()}"
        flags = ("--redis-url", url, "--parent", parent, "--advertise", "http://127.0.0.1:1")
        controller = serve(*flags, "--access-log", "--log-level", "debug", "--log-format", log_format, **TOKENS)
        await wait_until(lambda: "Heartbeat to parent" in controller.log, "the parent is missing")
        store.kill()
        await wait_until(lambda: "Redis is unavailable" in controller.log, "the outage is logged")
        before = len(controller.log.splitlines())
        for path in PATHS:
            for header in (*CREDENTIALS, *(f"Authorization: Bearer {secret}" for secret in SECRETS.values())):
                exchange(controller, request(path, {"worker_name": WITH_SECRET}, header, "Connection: close"))
        requests = len(PATHS) * (len(CREDENTIALS) + len(SECRETS))
        await wait_until(lambda: len(controller.log.splitlines()) >= before + requests, "the requests are logged")
    finally:
        store.kill()
    for secret in (*SECRETS.values(), PASSWORD, WRONG, ENCODED):
        assert secret not in controller.log


async def test_pipelined_requests_do_not_share_an_id(serve: Serve) -> None:
    controller = serve("--access-log", "--poll-interval", "0")
    controller.register(A)
    dispatch = {"model": "m"}
    received = exchange(
        controller,
        request("/list_models", {}, "X-Request-Id: first"),
        request("/get_worker_address", dispatch),
        request("/get_worker_address", dispatch, "X-Request-Id: third"),
        request("/receive_heart_beat", {"worker_name": A, "queue_length": 0}),
        request("/list_models", {}, "Connection: close"),
    )
    heads = [part.partition(b"\r\n\r\n")[0].decode() for part in received.split(b"HTTP/1.1 ")[1:]]
    returned = [re.findall(r"x-request-id: (\S+)", head) for head in heads]
    [made] = returned.pop()
    assert re.fullmatch("[0-9a-f]{32}", made)
    assert returned == [["first"], [], ["third"], []]
    await wait_until(lambda: made in controller.log, "the last request is logged")
    logged = [event.get("request_id") for event in events(controller.log) if event["logger"] == "controller.access"]
    assert logged[-5:] == ["first", None, "third", None, made]


def test_the_access_log_is_off_unless_it_is_switched_on(serve: Serve) -> None:
    controller = serve("--poll-interval", "0")
    controller.register(A)
    before = controller.log
    for _ in range(5):
        assert controller.dispatch() == A
        controller.post("/receive_heart_beat", {"worker_name": A, "queue_length": 0})
    assert controller.log == before, "no line for a dispatch or a heartbeat"
    assert {event["logger"] for event in events(before)} <= {"controller", "controller.server", "uvicorn"}
