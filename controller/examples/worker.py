"""An example worker for a FastChat controller, to try and to copy. It echoes its prompt, one word at a time.

    python -m controller.examples.worker --port 21002 --controller-address http://localhost:21001

It has the routes that FastChat's API server calls. To serve a model of your own, replace `generate`, `count_tokens`,
`embed`, `CONTEXT_LENGTH` and `CONVERSATION`. The rest is the protocol. The example needs starlette, uvicorn and
aiohttp.
"""

import argparse
import asyncio
import contextlib
import functools
import json
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

Json = dict[str, Any]
say = functools.partial(print, flush=True)
# The last three are raised for a response without "exist", from another server or a proxy. They must not end the
# heartbeats.
CALL_ERRORS = (aiohttp.ClientError, TimeoutError, ValueError, TypeError, KeyError)
RETRY = 1.0  # seconds between two attempts to reach the controller
CONTEXT_LENGTH = 2048
# How the API server turns a chat into a prompt (fastchat/conversation.py): one line for each message, without its role.
CONVERSATION = {
    "name": "lines",
    "system_template": "{system_message}\n",
    "system_message": "",
    "roles": ["", ""],
    "messages": [],
    "offset": 0,
    "sep_style": 4,  # SeparatorStyle.NO_COLON_SINGLE
    "sep": "\n",
    "sep2": None,
    "stop_str": None,
    "stop_token_ids": None,
}


async def generate(params: Json, speed: float) -> AsyncIterator[Json]:
    """Yield the frames of a response. Each frame has the whole text so far."""
    prompt = params.get("prompt", "").split()
    words = prompt[: params.get("max_new_tokens") or CONTEXT_LENGTH] or [""]
    finish_reason = "stop" if len(words) >= len(prompt) else "length"
    for i in range(1, len(words) + 1):
        await asyncio.sleep(0.1 / speed)
        yield {
            "text": " ".join(words[:i]),
            "error_code": 0,
            "usage": {"prompt_tokens": len(prompt), "completion_tokens": i, "total_tokens": len(prompt) + i},
            "finish_reason": finish_reason if i == len(words) else None,
        }


def count_tokens(text: str) -> int:
    """Return the number of words."""
    return len(text.split())


def embed(text: str) -> list[float]:
    """Return the share of each letter."""
    return [text.lower().count(letter) / max(1, len(text)) for letter in "abcdefghijklmnopqrstuvwxyz"]


class Rejected(aiohttp.ClientError):
    """The controller returned an error."""


class Worker:
    """Generates one response at a time, and keeps itself registered."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.name = args.worker_address or f"http://localhost:{args.port}"
        self.controller = args.controller_address.rstrip("/")
        self.models = args.model.split(",")
        self.speed = args.speed
        self.interval = args.heartbeat_interval
        self.slot = asyncio.Semaphore(1)
        self.queue_length = 0  # running and waiting requests

    def status(self) -> Json:
        return {"model_names": self.models, "speed": self.speed, "queue_length": self.queue_length}

    async def frames(self, params: Json) -> AsyncIterator[Json]:
        self.queue_length += 1
        try:
            async with self.slot:
                async for frame in generate(params, self.speed):
                    yield frame
        finally:
            self.queue_length -= 1

    async def worker_generate_stream(self, request: Request) -> Response:
        params = await request.json()
        return StreamingResponse(json.dumps(frame).encode() + b"\0" async for frame in self.frames(params))

    async def worker_generate(self, request: Request) -> Response:
        async for frame in self.frames(await request.json()):
            last = frame
        return Response(json.dumps(last), media_type="application/json")

    def app(self) -> Starlette:
        simple: dict[str, Callable[[Json], Json]] = {
            "/worker_get_status": lambda _: self.status(),
            "/worker_get_conv_template": lambda _: {"conv": CONVERSATION},
            "/model_details": lambda _: {"context_length": CONTEXT_LENGTH},
            "/count_token": lambda params: {"count": count_tokens(params["prompt"]), "error_code": 0},
            "/worker_get_embeddings": lambda params: {
                "embedding": [embed(text) for text in params["input"]],
                "token_num": sum(map(count_tokens, params["input"])),
            },
        }
        return Starlette(
            routes=[
                Route("/worker_generate_stream", self.worker_generate_stream, methods=["POST"]),
                Route("/worker_generate", self.worker_generate, methods=["POST"]),
                *(Route(path, respond(handle), methods=["POST"]) for path, handle in simple.items()),
            ]
        )

    async def keep_registered(self) -> None:
        """Register and send heartbeats. Register again if the controller returns `exist: false`."""
        exist, registered, problem = False, "registered", ""
        while True:
            try:
                if not exist:
                    registration = {"worker_name": self.name, "check_heart_beat": True, "worker_status": self.status()}
                    await self.call("/register_worker", registration, seconds=120)  # the controller may wait for Redis
                    say(f"{self.name} {registered} at {self.controller}")
                    registered, problem = "re-registered", ""  # this line also shows that the problem is over
                heartbeat = {"worker_name": self.name, "queue_length": self.queue_length}
                exist = (await self.call("/receive_heart_beat", heartbeat))["exist"]
                if problem:
                    say(f"the controller at {self.controller} responds again")
                problem = ""
            except CALL_ERRORS as error:
                printed, problem = problem, str(error) if isinstance(error, Rejected) else "no controller"
                if problem != printed:
                    say(f"{problem} at {self.controller}, trying again every {RETRY:g} s")
            await asyncio.sleep(RETRY if problem or not exist else self.interval)

    async def leave(self) -> None:
        """Remove this worker from the controller, so that it gets no more requests."""
        with contextlib.suppress(*CALL_ERRORS):
            await self.call("/remove_worker", {"worker_name": self.name}, seconds=2)
            say(f"{self.name} removed from {self.controller}")

    async def call(self, path: str, body: Json, seconds: float = 5) -> Any:
        limit = aiohttp.ClientTimeout(total=seconds)
        async with aiohttp.request("POST", self.controller + path, json=body, timeout=limit) as response:
            if response.status != 200:
                raise Rejected(f"{path} returned {response.status}: {' '.join((await response.text()).split())[:300]}")
            return await response.json()


class Server(uvicorn.Server):
    """Registers the worker once the server listens, and removes the worker before the server stops listening."""

    worker: Worker

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.registering = asyncio.create_task(self.worker.keep_registered())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.registering.cancel()
        await self.worker.leave()
        await super().shutdown(sockets)  # waits for running requests


def respond(handle: Callable[[Json], Json]) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        params = json.loads(await request.body() or b"{}")
        return Response(json.dumps(handle(params)), media_type="application/json")

    return endpoint


def main() -> None:
    """Run a worker until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="localhost", help="address to listen on  [default: localhost]")
    parser.add_argument("--port", type=int, default=21002, help="port to listen on  [default: 21002]")
    parser.add_argument(
        "--worker-address",
        help="URL at which clients and the controller reach this worker  [default: http://localhost:PORT]",
    )
    parser.add_argument(
        "--controller-address",
        default="http://localhost:21001",
        help="URL of the controller  [default: http://localhost:21001]",
    )
    parser.add_argument("--model", default="echo", help="models, separated by commas  [default: echo]")
    parser.add_argument("--speed", type=float, default=1, help="in units of 10 words/s  [default: 1]")
    parser.add_argument("--heartbeat-interval", type=float, default=45, help="in seconds  [default: 45]")
    args = parser.parse_args()
    worker = Worker(args)
    server = Server(uvicorn.Config(worker.app(), args.host, args.port, log_level="warning"))
    server.worker = worker
    # At the end, uvicorn raises SIGTERM again. This handler turns it into KeyboardInterrupt, so the exit status is 0.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        server.run()


if __name__ == "__main__":
    main()
