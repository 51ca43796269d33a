"""Compare dispatches per second over HTTP: FastChat's controller, ours, and a bare Starlette echo, in one run.

    make bench                      or      python benchmarks/dispatch.py --seconds 5 --rounds 3

Each server is one process on one core. Ours shares this core with its store. The load generator runs on another core.
Each round measures all servers, and the table has medians. The load generator is wrk, or a small one of our own if wrk
is not installed. Needs the package fschat.
"""

import argparse
import asyncio
import contextlib
import json
import os
import platform
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from ports import free_port
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

CONNECTIONS = 64
BODY = b'{"model": "m"}'
WRK_SCRIPT = 'wrk.method = "POST"\nwrk.body = \'{"model": "m"}\'\nwrk.headers["Content-Type"] = "application/json"\n%s'
CLOSE = 'wrk.headers["Connection"] = "close"\n'

STOCK = "stock FastChat, as pip installs it"
BOOSTED = "stock FastChat, with uvloop and httptools"
OURS = "ours"
ROUTED = "ours, through Starlette's router"
ECHO = "bare Starlette echo"
# FastChat does not depend on uvloop and httptools. We do, and uvicorn uses them if they are installed.
AS_PIP_INSTALLS_IT = """
import runpy, sys
sys.modules.update(uvloop=None, httptools=None)
runpy.run_module("fastchat.serve.controller", run_name="__main__")
"""


def on_core(core: int) -> list[str]:
    """Return a prefix that pins a command to a core. Empty with one core, or without `taskset`."""
    if (os.cpu_count() or 1) > 1 and shutil.which("taskset"):
        return ["taskset", "--cpu-list", str(core)]
    return []


def post(url: str, body: bytes) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url, body), timeout=30) as response:
        return bytes(response.read())


@contextlib.contextmanager
def server(name: str, directory: Path, workers: int) -> Iterator[str]:
    """Run a server with registered workers. Yield the URL of the route to measure."""
    port = free_port()
    address = ["--host", "127.0.0.1", "--port", str(port)]
    command = {
        STOCK: ["-c", AS_PIP_INSTALLS_IT, *address],
        BOOSTED: ["-m", "fastchat.serve.controller", *address],
        OURS: ["-m", "controller", "serve", *address, "--data-dir", str(directory / "data")],
        ROUTED: [__file__, "--serve", "routed", "--port", str(port), "--data-dir", str(directory / "routed")],
        ECHO: [__file__, "--serve", "echo", "--port", str(port)],
    }[name]
    url = f"http://127.0.0.1:{port}"
    with (directory / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [*on_core(0), sys.executable, *command],
            stdout=log,
            stderr=log,
            cwd=directory,
            env={**os.environ, "LOGDIR": str(directory)},
        )
    try:
        for _ in range(500):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.02)
        if name != ECHO:
            for i in range(workers):
                status = {"model_names": ["m"], "speed": 1, "queue_length": 0}
                registration = {
                    "worker_name": f"http://127.1.{i // 250}.{i % 250}:21002",
                    "check_heart_beat": False,
                    "worker_status": status,
                }
                post(f"{url}/register_worker", json.dumps(registration).encode())
            address_json = json.loads(post(f"{url}/get_worker_address", BODY))
            assert address_json["address"].startswith("http://127.1."), address_json
        yield f"{url}/get_worker_address"
    finally:
        process.terminate()
        process.wait()


def load_wrk(url: str, seconds: float, keep_alive: bool) -> float:
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(WRK_SCRIPT % ("" if keep_alive else CLOSE))
        script.flush()
        command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{max(1, round(seconds))}s", "-s", script.name, url]
        output = subprocess.run([*on_core(1), *command], capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in output:
        raise SystemExit(f"{url} returned errors:\n{output}")
    [rate] = re.findall(r"Requests/sec:\s*([\d.]+)", output)
    return float(rate)


def load_own(url: str, seconds: float, keep_alive: bool) -> float:
    flags = [] if keep_alive else ["--close"]
    command = [sys.executable, __file__, "--generate", url, "--seconds", str(seconds), *flags]
    return float(subprocess.run([*on_core(1), *command], capture_output=True, text=True, check=True).stdout)


async def generate(url: str, seconds: float, keep_alive: bool) -> float:
    """Return the number of successful requests per second, over as many connections as wrk has."""
    [(host, port, path)] = re.findall(r"^http://([^:]+):(\d+)(/.*)$", url)
    connection_header = "" if keep_alive else "Connection: close\r\n"
    request = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\n{connection_header}Content-Length: {len(BODY)}\r\n\r\n"
    ).encode()
    done = 0
    deadline = time.perf_counter() + seconds

    async def client() -> None:
        nonlocal done
        while time.perf_counter() < deadline:
            reader, writer = await asyncio.open_connection(host, int(port))
            while time.perf_counter() < deadline:
                writer.write(request + BODY)
                head = await reader.readuntil(b"\r\n\r\n")
                assert b" 200 " in head.split(b"\r\n")[0]
                length = re.search(rb"(?i)content-length: (\d+)", head)
                assert length is not None
                await reader.readexactly(int(length[1]))
                done += 1
                if not keep_alive:
                    break
            writer.close()

    await asyncio.gather(*(client() for _ in range(CONNECTIONS)))
    return done / seconds


def serve_app(kind: str, port: int, data_dir: Path | None) -> None:
    """Run a server for comparison, with the uvicorn options of `controller serve`."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse

    from controller.metrics import Metrics
    from controller.replica import create_replica
    from controller.server.run import uvicorn_options
    from controller.settings import Settings
    from controller.store.embedded.store import EmbeddedStore
    from controller.store_url import parse_store_url
    from controller.web.app import HotPath

    async def echo(request: Request) -> JSONResponse:
        return JSONResponse({"address": (await request.json())["model"]})

    settings = Settings()
    factory: Callable[[], object]
    with contextlib.ExitStack() as resources:
        if kind == "echo":
            app = Starlette()
            app.add_route("/get_worker_address", echo, ["POST"])

            def echo_app() -> Starlette:
                return app

            factory = echo_app
        else:
            store = resources.enter_context(EmbeddedStore(data_dir or Path("data")))

            def hot_path() -> HotPath:
                metrics = Metrics()
                replica = create_replica(settings, parse_store_url(store.url), metrics)
                routed = replica.app()
                assert isinstance(routed, HotPath)
                return HotPath({}, routed._app, replica.readiness)

            factory = hot_path
        uvicorn.run(factory, factory=True, host="127.0.0.1", port=port, **uvicorn_options(settings))


def measure(arguments: argparse.Namespace, console: Console) -> list[dict[str, object]]:
    load, generator = (load_wrk, "wrk") if shutil.which("wrk") and not arguments.own else (load_own, "own generator")
    cases = [(10, True), (1000, True), (10, False)]
    names = [STOCK, BOOSTED, OURS, ROUTED, ECHO]
    results: list[dict[str, object]] = []
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("", total=len(cases) * len(names) * arguments.rounds)
        for workers, keep_alive in cases:
            rates: dict[str, list[float]] = {name: [] for name in names}
            for _ in range(arguments.rounds):
                for name in names:
                    progress.update(task, description=f"{name}, {workers} workers")
                    with (
                        tempfile.TemporaryDirectory(prefix="cb-") as directory,
                        server(name, Path(directory), workers) as url,
                    ):
                        load(url, 1, keep_alive)  # to warm up
                        rates[name].append(load(url, arguments.seconds, keep_alive))
                    progress.advance(task)
            connection = "kept" if keep_alive else "one a request"
            results += [
                {
                    "workers": workers,
                    "connections": connection,
                    "server": name,
                    "median": statistics.median(values),
                    "low": min(values),
                    "high": max(values),
                    "ratio_to_stock": statistics.median(values) / statistics.median(rates[STOCK]),
                    "ratio_to_boosted": statistics.median(values) / statistics.median(rates[BOOSTED]),
                    "generator": generator,
                }
                for name, values in rates.items()
            ]
    return results


def show(results: list[dict[str, object]], console: Console) -> None:
    title = f"dispatches/s, {CONNECTIONS} connections, load by {results[0]['generator']}, {platform.machine()}"
    table = Table("workers", "connections", "server", title=f"{title}, {os.cpu_count()} cores", title_justify="left")
    for heading in ("median", "min to max", "x stock", "x boosted"):
        table.add_column(heading, justify="right")
    for row in results:
        table.add_row(
            f"{row['workers']:,}",
            str(row["connections"]),
            str(row["server"]),
            f"{row['median']:,.0f}",
            f"{row['low']:,.0f} to {row['high']:,.0f}",
            f"{row['ratio_to_stock']:.1f}",
            f"{row['ratio_to_boosted']:.1f}",
            end_section=row["server"] == ECHO,
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5, help="length of one measurement (default: 5)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each server (default: 3)")
    parser.add_argument("--own", action="store_true", help="use our own load generator even if wrk is installed")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    for internal in ("--serve", "--generate"):
        parser.add_argument(internal, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--data-dir", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--close", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve_app(arguments.serve, arguments.port, arguments.data_dir)
    elif arguments.generate:
        print(asyncio.run(generate(arguments.generate, arguments.seconds, not arguments.close)))
    else:
        console = Console(width=120)
        results = measure(arguments, console)
        show(results, console)
        if arguments.json:
            arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
