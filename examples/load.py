"""Clients for a FastChat controller: they ask which worker to use, use it, and tell every second how it went.

python examples/load.py --controller-address http://localhost:21001
"""

import argparse
import asyncio
import time
from collections import Counter

import aiohttp

parser = argparse.ArgumentParser()
parser.add_argument("--controller-address", default="http://localhost:21001")
parser.add_argument("--model", default="echo")
parser.add_argument("--prompt", default="every worker takes its share")
parser.add_argument("--clients", type=int, default=3, help="how many ask at once")
parser.add_argument("--seconds", type=float, default=float("inf"), help="how long  [default: until it is stopped]")
args = parser.parse_args()

done = Counter()  # since the last line: by worker, "no worker", or what failed
slowest = 0.0  # answer to a dispatch, in seconds


async def request(http):
    global slowest
    began = time.monotonic()
    async with http.post(f"{args.controller_address}/get_worker_address", json={"model": args.model}) as response:
        address = (await response.json())["address"]
    slowest = max(slowest, time.monotonic() - began)
    if not address:
        done["no worker"] += 1
        await asyncio.sleep(1)
        return
    prompt = {"model": args.model, "prompt": args.prompt}
    async with http.post(f"{address}/worker_generate_stream", json=prompt) as response:
        async for _ in response.content.iter_any():
            pass
    done[address] += 1


async def client(http):
    while True:
        try:
            await request(http)
        except (aiohttp.ClientError, TimeoutError) as error:
            done[type(error).__name__] += 1
            await asyncio.sleep(1)


async def report():
    global slowest
    while True:
        await asyncio.sleep(1)
        told = ", ".join(f"{number} {what}" for what, number in sorted(done.items())) or "nothing yet"
        print(f"{told}; slowest dispatch {1000 * slowest:.0f} ms", flush=True)
        done.clear()
        slowest = 0.0


async def main():
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(timeout=timeout) as http:
        tasks = [asyncio.create_task(client(http)) for _ in range(args.clients)]
        tasks.append(asyncio.create_task(report()))
        await asyncio.wait(tasks, timeout=None if args.seconds == float("inf") else args.seconds)
        for task in tasks:
            task.cancel()


asyncio.run(main())
