"""Clients for a FastChat controller. They request a worker, use it, and print every second which workers responded.

python -m controller.examples.load --controller-address http://localhost:21001
"""

import argparse
import asyncio
import contextlib
import time
from collections import Counter

import aiohttp


class Load:
    """Runs the clients and counts their requests since the last printed line."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.done: Counter[str] = Counter()  # by worker, "no worker", or the kind of an error
        self.slowest = 0.0  # seconds of the slowest dispatch

    async def request(self, http: aiohttp.ClientSession) -> None:
        began = time.monotonic()
        dispatch = {"model": self.args.model}
        async with http.post(f"{self.args.controller_address}/get_worker_address", json=dispatch) as response:
            address = (await response.json())["address"]
        self.slowest = max(self.slowest, time.monotonic() - began)
        if not address:
            self.done["no worker"] += 1
            await asyncio.sleep(1)
            return
        prompt = {"model": self.args.model, "prompt": self.args.prompt}
        async with http.post(f"{address}/worker_generate_stream", json=prompt) as response:
            async for _ in response.content.iter_any():
                pass
        self.done[address] += 1

    async def client(self, http: aiohttp.ClientSession) -> None:
        while True:
            try:
                await self.request(http)
            except (aiohttp.ClientError, TimeoutError) as error:
                self.done[type(error).__name__] += 1
                await asyncio.sleep(1)

    async def report(self) -> None:
        while True:
            await asyncio.sleep(1)
            counts = ", ".join(f"{number} {name}" for name, number in sorted(self.done.items())) or "no requests yet"
            print(f"{counts}; slowest dispatch {1000 * self.slowest:.0f} ms", flush=True)
            self.done.clear()
            self.slowest = 0.0

    async def run(self) -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as http:
            tasks = [asyncio.create_task(self.client(http)) for _ in range(self.args.clients)]
            tasks.append(asyncio.create_task(self.report()))
            await asyncio.wait(tasks, timeout=self.args.seconds)
            for task in tasks:
                task.cancel()


def main() -> None:
    """Run clients until Ctrl-C, or for --seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--controller-address", default="http://localhost:21001", help="[default: http://localhost:21001]"
    )
    parser.add_argument("--model", default="echo", help="[default: echo]")
    parser.add_argument("--prompt", default="every worker takes its share", help="prompt of each request")
    parser.add_argument("--clients", type=int, default=3, help="number of concurrent clients  [default: 3]")
    parser.add_argument("--seconds", type=float, help="how long to run  [default: until Ctrl-C]")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(Load(parser.parse_args()).run())


if __name__ == "__main__":
    main()
