"""A worker for a FastChat controller, to copy: it echoes its prompt, one word at a time.

    python examples/worker.py --port 21002 --controller-address http://localhost:21001

To make it yours, replace `generate`; everything else is the protocol.
"""

import argparse
import asyncio
import contextlib
import json

import aiohttp
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse

parser = argparse.ArgumentParser()
parser.add_argument("--host", default="localhost", help="address to listen on")
parser.add_argument("--port", type=int, default=21002)
parser.add_argument("--worker-address", help="where clients reach it  [default: http://localhost:PORT]")
parser.add_argument("--controller-address", default="http://localhost:21001")
parser.add_argument("--model", default="echo", help="its name; several with commas between them")
parser.add_argument("--speed", type=float, default=1, help="relative to other workers")
parser.add_argument("--heartbeat-interval", type=float, default=45, help="seconds")
args = parser.parse_args()
name = args.worker_address or f"http://localhost:{args.port}"
slot = asyncio.Semaphore(1)  # one request runs, the others wait
queue_length = 0  # how many run or wait


async def generate(prompt):
    words = prompt.split()
    for i in range(len(words)):
        await asyncio.sleep(0.1 / args.speed)
        yield {"text": " ".join(words[: i + 1]), "error_code": 0}


async def frames(params):
    global queue_length
    queue_length += 1
    try:
        async with slot:
            async for answer in generate(params["prompt"]):
                yield json.dumps(answer).encode() + b"\0"
    finally:
        queue_length -= 1


async def worker_generate_stream(request):
    return StreamingResponse(frames(await request.json()))


async def worker_get_status(_):
    return JSONResponse(status())


def status():
    return {"model_names": args.model.split(","), "speed": args.speed, "queue_length": queue_length}


async def keep_registered():
    exist = False
    async with aiohttp.ClientSession(args.controller_address, raise_for_status=True) as controller:
        while True:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):  # it is away: try again in a second
                if not exist:
                    registration = {"worker_name": name, "check_heart_beat": True, "worker_status": status()}
                    await controller.post("/register_worker", json=registration)
                heartbeat = {"worker_name": name, "queue_length": queue_length}
                answer = await controller.post("/receive_heart_beat", json=heartbeat)
                exist = (await answer.json())["exist"]
            await asyncio.sleep(args.heartbeat_interval if exist else 1)


@contextlib.asynccontextmanager
async def lifespan(_):
    task = asyncio.create_task(keep_registered())
    yield
    task.cancel()


app = Starlette(lifespan=lifespan)
app.add_route("/worker_generate_stream", worker_generate_stream, ["POST"])
app.add_route("/worker_get_status", worker_get_status, ["POST"])
uvicorn.run(app, host=args.host, port=args.port, log_level="warning")
