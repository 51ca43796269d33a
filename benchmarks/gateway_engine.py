"""The engine and the load generator of benchmarks/gateway.py, both written for speed.

The engine is one process with one thread. It sends prepared responses: a chat completion of 1 KiB, or a number of
events if the body asks for a stream. Each event is a separate write, and the streams take turns. An engine that
generates one token for every request in a step does the same.
"""

import asyncio
import json
import random
import re
from collections import deque
from dataclasses import dataclass, field
from typing import cast

import uvloop

PATH = "/v1/chat/completions"
MODEL = "m"
ANSWER_SIZE = 1024  # bytes
MARK = b"~"  # occurs once in each event with content, and nowhere else
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_FRAMES = re.compile(rb'"max_(?:completion_)?tokens": *(\d+)')  # the SGLang router renames max_tokens
_END = b"0\r\n\r\n"


def _answer(size: int) -> bytes:
    answer = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": MODEL,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": ""}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
    answer["choices"][0]["message"]["content"] = "x" * (size - len(json.dumps(answer)))  # type: ignore[index]
    return json.dumps(answer).encode()


def _event(content: str, finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": content} if content else {}, "finish_reason": finish_reason}
    event = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": MODEL, "choices": [choice]}
    return _chunk(b"data: " + json.dumps(event).encode() + b"\n\n")


def _chunk(part: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(part), part)


def _plain(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


_COMPLETION = _plain(_answer(ANSWER_SIZE))
_STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
# The events differ, because LiteLLM aborts a stream that repeats one event.
_EVENTS = [_event(f"{MARK.decode()}word {number} ") for number in range(97)]
_LAST = _event("", "stop") + _chunk(b"data: [DONE]\n\n") + _END
# Routers ask for these before they send requests.
_MODELS = {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "benchmark", "created": 1}]}
_OTHERS = {b"/v1/models": _plain(json.dumps(_MODELS).encode())}
_OTHER = _plain(json.dumps({"model_path": MODEL, "served_model_name": MODEL, "status": "ok"}).encode())


class EngineConnection(asyncio.Protocol):
    """The engine's side of a connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._received = b""
        self._left = -1  # events of the stream that are still to be sent. -1 if no stream runs
        self._paused = False
        self._loop = asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(self._received, 0, end + 2)
            total = end + 4 + (int(length[1]) if length else 0)
            if len(self._received) < total:
                return
            head, body = self._received[:end], self._received[end + 4 : total]
            self._received = self._received[total:]
            self._serve(head.split(b" ", 2)[1], body)

    def _serve(self, path: bytes, body: bytes) -> None:
        if not path.endswith(PATH.encode()):
            self._transport.write(_OTHERS.get(path, _OTHER))
        elif frames := _FRAMES.search(body):
            self._transport.write(_STREAM)
            self._left = int(frames[1])
            self._loop.call_soon(self._send_event)
        else:
            self._transport.write(_COMPLETION)

    def _send_event(self) -> None:
        if self._left < 0 or self._paused or self._transport.is_closing():
            return
        self._left -= 1
        if self._left >= 0:
            self._transport.write(_EVENTS[self._left % len(_EVENTS)])
            self._loop.call_soon(self._send_event)
        else:
            self._transport.write(_LAST)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._send_event()


async def _listen(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(EngineConnection, "127.0.0.1", port, backlog=2000)
    await server.serve_forever()


def serve_engine(port: int) -> None:
    uvloop.run(_listen(port))


def request(frames: int = 0) -> bytes:
    """Return a chat request. frames: number of events to stream, or 0 for a response in one piece."""
    chat: dict[str, object] = {"model": MODEL, "messages": [{"role": "user", "content": "Hello " * 40}]}
    if frames:
        chat |= {"stream": True, "max_tokens": frames}
    body = json.dumps(chat).encode()
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n".encode() + body


class Client(asyncio.Protocol):
    """A connection of the load generator. It has one request at a time."""

    def __init__(self, load: "Load") -> None:
        self._load = load
        self.due = 0.0  # when its request was due, on the loop's clock
        self._head = b""
        self._missing = -1  # bytes of the body still to arrive. -1 if the body is chunked

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def send(self, sent: bytes, due: float) -> None:
        self.due = due
        self._head, self._tail = b"", b""
        self._transport.write(sent)

    def data_received(self, data: bytes) -> None:
        if self._tail == b"":  # in the head
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            head, data = self._head[: end + 2], self._head[end + 4 :]
            self._load.errors += not head.startswith(b"HTTP/1.1 200 ")
            length = _LENGTH.search(head)
            self._missing = int(length[1]) if length else -1
        self._load.marks += data.count(MARK)
        self._tail = (self._tail + data)[-len(_END) :] or b"\n"
        if self._missing >= 0:
            self._missing -= len(data)
            is_complete = self._missing <= 0
        else:
            is_complete = self._tail == _END
        if is_complete:
            self._load.on_answer(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._load.on_lost()


@dataclass
class Load:
    """Sends requests and records the results.

    latencies: seconds from the time at which a request was due until its answer was complete.
    marks: number of events that were received.
    errors: responses with a status other than 200, and connections that the server closed.
    """

    url: str
    latencies: list[float] = field(default_factory=list)
    marks: int = 0
    errors: int = 0
    _idle: list[Client] = field(default_factory=list)
    _due: deque[float] = field(default_factory=deque)
    _ended: bool = False

    async def run(self, connections: int, *, seconds: float = 0.0, rate: float = 0.0, frames: int = 0) -> float:
        """Send requests, and return the seconds that they took.

        With `rate`, requests are due at random times, on average `rate` per second. With `frames`, each connection
        sends one request for a stream. Otherwise, each connection sends its next request when it has an answer.
        """
        loop = asyncio.get_running_loop()
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        self._loop, self._request, self._repeats = loop, request(frames), not (rate or frames)
        self._connections, self._all_idle = connections, asyncio.Event()
        for _ in range(connections):
            _, client = await loop.create_connection(lambda: Client(self), host, int(port))
            self._idle.append(client)
        began = loop.time()
        if rate:
            await self._send_at(rate, began, seconds)
        else:
            clients, self._idle = self._idle, []
            for client in clients:
                client.send(self._request, loop.time())
            if self._repeats:
                await asyncio.sleep(seconds)
                took = loop.time() - began
                self._ended = True
                return took
        if len(self._idle) < connections and not self.errors:
            self._all_idle.clear()
            await self._all_idle.wait()
        self._ended = True
        return loop.time() - began

    async def _send_at(self, rate: float, began: float, seconds: float) -> None:
        draw, due = random.Random(1), began
        while due < began + seconds:
            await asyncio.sleep(due - self._loop.time())
            while due <= self._loop.time():
                if self._idle:
                    self._idle.pop().send(self._request, due)
                else:
                    self._due.append(due)
                due += draw.expovariate(rate)

    def on_answer(self, client: Client) -> None:
        now = self._loop.time()
        self.latencies.append(now - client.due)
        if self._repeats and not self._ended:
            client.send(self._request, now)
        elif self._due:
            client.send(self._request, self._due.popleft())
        else:
            self._idle.append(client)
            if len(self._idle) == self._connections:
                self._all_idle.set()

    def on_lost(self) -> None:
        self.errors += not self._ended
        self._all_idle.set()
