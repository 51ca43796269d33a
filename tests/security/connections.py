"""Connections that send what a test wants, to controllers that run as real processes."""

import asyncio
import contextlib
import json
import re
import socket
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil

from tests.system.conftest import Serve
from tests.system.processes import ControllerProcess, call

__all__ = ["Serve"]

MIB = 1024 * 1024
POST = b"POST /get_worker_address HTTP/1.1\r\nHost: x\r\n"
STREAM = b"POST /worker_generate_stream HTTP/1.1\r\nHost: x\r\n"
DISPATCH = POST + b'Content-Length: 13\r\n\r\n{"model":"m"}'


class Connection:
    """A connection to a controller that sends what the test wants."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def response(self) -> tuple[int, dict[str, str], bytes]:
        """Read one response: its status, headers and body."""
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 60)
        lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:-2])}
        body = await asyncio.wait_for(self.reader.readexactly(int(headers.get("content-length", "0"))), 60)
        return int(lines[0].split(" ")[1]), headers, body

    async def error(self) -> tuple[int, str]:
        """Read one response that is an error: its status and code. Check that the connection is closed after it."""
        status, headers, body = await self.response()
        assert headers["connection"] == "close"
        assert await self.rest() == b""
        return status, json.loads(body)["error"]["code"]

    async def rest(self, timeout: float = 60.0) -> bytes:
        """Read until the controller closes the connection."""
        received = b""
        with contextlib.suppress(ConnectionError):
            while data := await asyncio.wait_for(self.reader.read(65536), timeout):
                received += data
        return received

    def abort(self) -> None:
        self.writer.transport.abort()


@contextlib.asynccontextmanager
async def connect(controller: ControllerProcess, receive_buffer: int = 0) -> AsyncIterator[Connection]:
    """Connect to a controller. receive_buffer: of the kernel, in bytes. 0 leaves it to the kernel."""
    opened = socket.socket()
    if receive_buffer:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    opened.setblocking(False)
    await asyncio.get_running_loop().sock_connect(opened, ("127.0.0.1", controller.port))
    connection = Connection(*await asyncio.open_connection(sock=opened))
    try:
        yield connection
    finally:
        connection.abort()


def process(controller: ControllerProcess) -> psutil.Process:
    return psutil.Process(controller.popen.pid)


def files(controller: ControllerProcess) -> int:
    """Return how many files and sockets a controller has open."""
    return int(process(controller).num_fds())


def clients(controller: ControllerProcess) -> int:
    """Return how many connections of clients a controller has open."""
    connections = process(controller).net_connections("tcp")
    return sum(each.laddr.port == controller.port and each.status != psutil.CONN_LISTEN for each in connections)


def peak_memory(controller: ControllerProcess) -> int:
    """Return the largest amount of memory that a controller has occupied, in bytes."""
    status = Path(f"/proc/{controller.popen.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return 1024 * int(found[1])


def refusals(controller: ControllerProcess) -> dict[str, float]:
    """Return what GET /metrics counts for each limit that refused something."""
    text = metrics(controller)
    found = re.findall(r'(?m)^controller_refusals_total\{limit="(\w+)"\} (\S+)$', text)
    return {limit: float(number) for limit, number in found if float(number)}


def metrics(controller: ControllerProcess) -> str:
    with urllib.request.urlopen(f"{controller.url}/metrics", timeout=60) as response:
        return str(response.read().decode())


def register(controller: ControllerProcess, name: str, *models: str) -> Any:
    status = {"model_names": models or ("m",), "speed": 1, "queue_length": 0}
    body = {"worker_name": name, "check_heart_beat": True, "worker_status": status}
    return call(f"{controller.url}/register_worker", body)
