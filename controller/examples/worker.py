"""A worker for a FastChat controller, to try one with and to copy: it echoes its prompt, one word at a time.

    python -m controller.examples.worker --port 21002 --controller-address http://localhost:21001

It has the routes that FastChat's API server calls. For a model of your own, replace `generate`, `count_tokens` and
`embed`. The rest is the protocol. It needs starlette, uvicorn and aiohttp.
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
# The last three: an answer without "exist", from another server or a proxy. It must not end the heartbeats.
NO_ANSWER = (aiohttp.ClientError, TimeoutError, ValueError, TypeError, KeyError)
RETRY = 1.0  # seconds between two attempts to reach the controller
CONTEXT_LENGTH = 2048
# How the API server makes a prompt of a chat (fastchat/conversation.py): a line for each message, without its role.
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
    """Answer a request. Each frame has the whole text so far."""
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


class Refused(aiohttp.ClientError):
    """The controller has answered a call with an error."""


class Worker:
    """Answers requests, one at a time, and keeps itself registered."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.name = args.worker_address or f"http://localhost:{args.port}"
        self.controller = args.controller_address.rstrip("/")
        self.models = args.model.split(",")
        self.speed = args.speed
        self.interval = args.heartbeat_interval
        self.slot = asyncio.Semaphore(1)
        self.queue_length = 0  # how many requests run or wait

    def status(self) -> Json:
        return {"model_names": self.models, "speed": self.speed, "queue_length": self.queue_length}

    async def answers(self, params: Json) -> AsyncIterator[Json]:
        self.queue_length += 1
        try:
            async with self.slot:
                async for answer in generate(params, self.speed):
                    yield answer
        finally:
            self.queue_length -= 1

    async def worker_generate_stream(self, request: Request) -> Response:
        params = await request.json()
        return StreamingResponse(json.dumps(answer).encode() + b"\0" async for answer in self.answers(params))

    async def worker_generate(self, request: Request) -> Response:
        async for answer in self.answers(await request.json()):
            last = answer
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
                *(Route(path, respond(answer), methods=["POST"]) for path, answer in simple.items()),
            ]
        )

    async def keep_registered(self) -> None:
        """Register and send heartbeats. Register again when the controller does not know this worker."""
        exist, registered, problem = False, "registered", ""
        while True:
            try:
                if not exist:
                    registration = {"worker_name": self.name, "check_heart_beat": True, "worker_status": self.status()}
                    await self.call("/register_worker", registration, seconds=120)  # it may wait for its Redis
                    say(f"{self.name} {registered} at {self.controller}")
                    registered, problem = "re-registered", ""  # which says that it answers again
                heartbeat = {"worker_name": self.name, "queue_length": self.queue_length}
                exist = (await self.call("/receive_heart_beat", heartbeat))["exist"]
                if problem:
                    say(f"the controller at {self.controller} answers again")
                problem = ""
            except NO_ANSWER as error:
                printed, problem = problem, str(error) if isinstance(error, Refused) else "no controller"
                if problem != printed:
                    say(f"{problem} at {self.controller}, trying again every {RETRY:g} s")
            await asyncio.sleep(RETRY if problem or not exist else self.interval)

    async def leave(self) -> None:
        """Ask the controller to send no more requests."""
        with contextlib.suppress(*NO_ANSWER):
            await self.call("/remove_worker", {"worker_name": self.name}, seconds=2)
            say(f"{self.name} removed from {self.controller}")

    async def call(self, path: str, body: Json, seconds: float = 5) -> Any:
        limit = aiohttp.ClientTimeout(total=seconds)
        async with aiohttp.request("POST", self.controller + path, json=body, timeout=limit) as answer:
            if answer.status != 200:
                raise Refused(f"{path} answered {answer.status}: {' '.join((await answer.text()).split())[:300]}")
            return await answer.json()


class Server(uvicorn.Server):
    """Registers the worker once it listens, and removes it before it stops listening."""

    worker: Worker

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.registering = asyncio.create_task(self.worker.keep_registered())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.registering.cancel()
        await self.worker.leave()
        await super().shutdown(sockets)  # waits for the requests that are under way


def respond(answer: Callable[[Json], Json]) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        params = json.loads(await request.body() or b"{}")
        return Response(json.dumps(answer(params)), media_type="application/json")

    return endpoint


def main() -> None:
    """Run a worker until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="localhost", help="address to listen on  [default: localhost]")
    parser.add_argument("--port", type=int, default=21002, help="port to listen on  [default: 21002]")
    parser.add_argument("--worker-address", help="where clients reach it  [default: http://localhost:PORT]")
    parser.add_argument(
        "--controller-address", default="http://localhost:21001", help="[default: http://localhost:21001]"
    )
    parser.add_argument("--model", default="echo", help="its model; several with commas between them  [default: echo]")
    parser.add_argument("--speed", type=float, default=1, help="relative to other workers, in 10 words/s  [default: 1]")
    parser.add_argument("--heartbeat-interval", type=float, default=45, help="in seconds  [default: 45]")
    args = parser.parse_args()
    worker = Worker(args)
    server = Server(uvicorn.Config(worker.app(), args.host, args.port, log_level="warning"))
    server.worker = worker
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # uvicorn raises it again at the end: exit status 0
    with contextlib.suppress(KeyboardInterrupt):
        server.run()


if __name__ == "__main__":
    main()
