"""Measure the cost of polling: the processor time of a replica with and without polls, on the embedded store.

python benchmarks/polls.py [--workers 1000] [--interval 5] [--seconds 15]
"""

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import aiohttp
from aiohttp import web

PORT, WORKER_PORT = 21902, 21901
STATUS = {"model_names": ["m"], "speed": 1, "queue_length": 1}


async def status(_: web.Request) -> web.Response:
    return web.json_response(STATUS)


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def share(names: Sequence[str], interval: float, seconds: float, directory: str) -> float:
    """Return the processor time of a replica with registered workers, as a share of one core."""
    flags = ["--port", str(PORT), "--data-dir", directory, "--poll-interval", str(interval), "--log-level", "error"]
    replica = await asyncio.create_subprocess_exec(sys.executable, "-m", "controller", "serve", *flags)
    try:
        async with aiohttp.ClientSession(f"http://localhost:{PORT}") as session:
            for name in names:
                body = {"worker_name": name, "check_heart_beat": False, "worker_status": STATUS}
                while True:
                    try:
                        async with session.post("/register_worker", json=body) as response:
                            assert response.status == 200
                        break
                    except aiohttp.ClientConnectionError:  # the replica has not started yet
                        await asyncio.sleep(0.1)
        await asyncio.sleep(interval + 3)
        before = processor_seconds(replica.pid)
        await asyncio.sleep(seconds)
        return (processor_seconds(replica.pid) - before) / seconds
    finally:
        replica.terminate()
        await replica.wait()


async def measure(workers: int, interval: float, seconds: float) -> None:
    addresses = [f"127.0.{1 + i // 200}.{1 + i % 200}" for i in range(workers)]
    names = [f"http://{address}:{WORKER_PORT}" for address in addresses]
    app = web.Application()
    app.router.add_post("/worker_get_status", status)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    for address in addresses:
        await web.TCPSite(runner, address, WORKER_PORT).start()
    for poll_interval in (0.0, interval):
        with tempfile.TemporaryDirectory(prefix="cb-") as directory:
            used = await share(names, poll_interval, seconds, directory)
        polls = f"polled every {poll_interval:g} s" if poll_interval else "not polled"
        print(f"{workers} workers, {polls}: {100 * used:.1f} % of a core")
    await runner.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--interval", type=float, default=5.0)
    parser.add_argument("--seconds", type=float, default=15.0)
    arguments = parser.parse_args()
    asyncio.run(measure(arguments.workers, arguments.interval, arguments.seconds))


if __name__ == "__main__":
    main()
