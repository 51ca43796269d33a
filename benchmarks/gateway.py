"""Compare gateways for OpenAI's protocol in one run: ours, a bare reverse proxy, and others that are installed.

    python benchmarks/gateway.py --install        # once: the others, in environments of their own
    python benchmarks/gateway.py --rounds 3

Each gateway runs on one core, and ours shares this core with its store. The engine and the clients run on another one.
The engine is benchmarks/gateway_engine.py: it sends prepared responses, so that the gateway is what is measured. Each
round measures all gateways in turn. The figures are:

- Requests per second: chat completions of 1 KiB, with 32 clients, each of which sends its next request at once.
- Added latency at half of this rate: the difference to requests that go to the engine directly, at the same rate and in
  the same round. A request counts from the time at which it is due, even if it has to wait for a connection.
- Events per second of 100 streams at the same time.
- Processor time of the gateway, with all of its processes, for 1,000 of the requests.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import urllib.request
import venv
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import uvloop
from dispatch import on_core, post
from gateway_engine import MODEL, PATH, Load, serve_engine
from ports import free_port
from processes import Child, Processes, responds
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

DIRECT = "the engine itself"
BARE = "bare aiohttp proxy"
OURS = "ours"
LITELLM = "LiteLLM"
VLLM_ROUTER = "vLLM router"
SGLANG_ROUTER = "SGLang router"
CLIENTS, STREAMS, FRAMES = 32, 100, 200
START_TIMEOUT = 180.0  # seconds: LiteLLM imports hundreds of modules
# The newest versions that could be installed in November 2026.
PACKAGES = {
    LITELLM: "litellm[proxy]==1.108.7",
    VLLM_ROUTER: "vllm-router==0.1.17",
    SGLANG_ROUTER: "sglang-router==0.3.2",
}
# It would load its list of prices from another machine, and require keys of its clients.
LITELLM_ENVIRONMENT = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
}
LITELLM_CONFIG = """\
model_list:
  - model_name: {model}
    litellm_params: {{model: openai/{model}, api_base: {engine}/v1, api_key: none}}
"""


@dataclass
class Figures:
    """The figures of one gateway in one round. Latencies are in seconds, and less those of the engine itself."""

    rate: float
    added_p50: float
    added_p99: float
    events: float
    cpu: float
    errors: int


def bare_proxy(port: int, engine: str) -> None:
    """Run a reverse proxy that does nothing else: the least that a gateway in Python with aiohttp costs."""
    import aiohttp
    from aiohttp import web

    async def forward(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        async with sessions[0].post(engine + request.path_qs, data=body, headers=JSON) as answer:
            response = web.StreamResponse(status=answer.status)
            response.content_type = answer.content_type
            response.content_length = answer.content_length
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                await response.write(piece)
            return response

    async def session(_: web.Application) -> AsyncIterator[None]:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as opened:
            sessions.append(opened)
            yield

    JSON = {"Content-Type": "application/json"}  # noqa: N806 - a constant
    sessions: list[aiohttp.ClientSession] = []
    app = web.Application()
    app.cleanup_ctx.append(session)
    app.router.add_route("*", "/{path:.*}", forward)
    web.run_app(app, host="127.0.0.1", port=port, access_log=None, print=None, loop=uvloop.new_event_loop())


def command(name: str, port: int, engine: str, environments: Path, directory: Path) -> list[str]:
    """Return the command of a gateway. Its first word is a file that is missing if the gateway is not installed."""
    address = ["--host", "127.0.0.1", "--port", str(port)]
    if name == BARE:
        return [sys.executable, __file__, "--proxy", engine, "--port", str(port)]
    if name == OURS:
        return [sys.executable, "-m", "controller", "serve", *address, "--data-dir", str(directory / "data")]
    if name == LITELLM:
        config = directory / "litellm.yaml"
        config.write_text(LITELLM_CONFIG.format(model=MODEL, engine=engine))
        return [str(environments / LITELLM / "bin/litellm"), *address, "--config", str(config), "--num_workers", "1"]
    program = {VLLM_ROUTER: "vllm-router", SGLANG_ROUTER: "sglang-router"}[name]
    launch = ["launch"] if name == SGLANG_ROUTER else []
    options = ["--worker-urls", engine, "--policy", "round_robin", "--log-level", "error"]
    metrics = ["--prometheus-port", str(free_port())]
    return [str(environments / name / "bin" / program), *launch, *address, *options, *metrics]


def install(environments: Path) -> None:
    """Install the other gateways, each in an environment of its own. What has no wheel here is left out."""
    for name, package in PACKAGES.items():
        venv.create(environments / name, with_pip=True, clear=True)
        pip = [str(environments / name / "bin/python"), "-m", "pip", "install", "--quiet", "--only-binary", ":all:"]
        done = subprocess.run([*pip, package], check=False)
        print(f"{name}: {'installed' if done.returncode == 0 else 'not installed'}")


@contextlib.contextmanager
def running(name: str, engine: str, environments: Path, processes: Processes, directory: Path) -> Iterator[Any]:
    """Start a gateway. Yield its URL and its process."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    child = processes.start(*on_core(0), *command(name, port, engine, environments, directory))
    child.wait_until(lambda: answers(url, name, engine), START_TIMEOUT)
    try:
        yield url, psutil.Process(child.process.pid)
    finally:
        child.process.terminate()
        child.process.wait()


def answers(url: str, name: str, engine: str) -> bool:
    """Return True if a gateway answers a chat. Register the engine at ours."""
    with contextlib.suppress(OSError):
        if name == OURS:
            if not responds(f"{url}/readyz"):
                return False
            post(f"{url}/register_engine", json.dumps({"worker_name": engine, "engine": "generic"}).encode())
        chat = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}
        request = urllib.request.Request(url + PATH, json.dumps(chat).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=10) as response:
            return bool(response.status == 200)
    return False


def cpu(process: psutil.Process) -> float:
    """Return the processor time of a process and of all its child processes, in seconds."""
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def generate(url: str, **load: Any) -> dict[str, Any]:
    """Run the load generator in a process of its own, on the core of the engine."""
    run = [*on_core(1), sys.executable, __file__, "--generate", json.dumps({"url": url, **load})]
    result: dict[str, Any] = json.loads(subprocess.run(run, capture_output=True, text=True, check=True).stdout)
    return result


def generator(options: str) -> None:
    arguments = json.loads(options)
    load = Load(arguments.pop("url"))
    took = uvloop.run(load.run(**arguments))
    ordered = sorted(load.latencies) or [0.0]
    p50, p99 = (ordered[int(share * (len(ordered) - 1))] for share in (0.5, 0.99))
    print(json.dumps({"count": len(load.latencies), "took": took, "p50": p50, "p99": p99, "events": load.marks / took,
                      "errors": load.errors, "missing": STREAMS * FRAMES - load.marks}))  # fmt: skip


def measure(url: str, engine: str, process: psutil.Process | None, seconds: float) -> Figures:
    generate(url, connections=CLIENTS, seconds=seconds / 4)  # to warm up
    before = cpu(process) if process else 0.0
    full = generate(url, connections=CLIENTS, seconds=seconds)
    spent = cpu(process) - before if process else 0.0
    rate = full["count"] / full["took"]
    half = generate(url, connections=4 * CLIENTS, seconds=seconds, rate=rate / 2)
    direct = half if url == engine else generate(engine, connections=4 * CLIENTS, seconds=seconds, rate=rate / 2)
    streams = generate(url, connections=STREAMS, frames=FRAMES)
    return Figures(
        rate,
        half["p50"] - direct["p50"],
        half["p99"] - direct["p99"],
        streams["events"],
        spent / (full["count"] / 1000),
        full["errors"] + half["errors"] + streams["errors"] + abs(streams["missing"]),
    )


def round_of(
    names: list[str], arguments: argparse.Namespace, results: dict[str, list[Figures]], advance: Callable[[str], None]
) -> None:
    for name in names:
        advance(name)
        with tempfile.TemporaryDirectory(prefix="cg-") as folder, Processes(Path(folder)) as processes:
            port = free_port()
            engine = f"http://127.0.0.1:{port}"
            child: Child = processes.start(*on_core(1), sys.executable, __file__, "--engine", "--port", str(port))
            child.wait_until(lambda engine=engine: responds(f"{engine}/health"))  # type: ignore[misc]
            if name == DIRECT:
                results[name].append(measure(engine, engine, None, arguments.seconds))
                continue
            with running(name, engine, arguments.environments, processes, Path(folder)) as (url, process):
                results[name].append(measure(url, engine, process, arguments.seconds))


def show(results: dict[str, list[Figures]], console: Console) -> None:
    rounds = max(map(len, results.values()))
    table = Table("gateway", title=f"Medians of {rounds} rounds", title_justify="left", padding=(0, 0, 0, 1))
    for heading in ("requests/s\n(range)", "x\nbare", "p50\n+ms", "p99\n+ms", "events\n/s", "CPU s /\n1,000", "errors"):
        table.add_column(heading, justify="right")
    for name, runs in results.items():
        if not runs:
            table.add_row(name, "not installed")
            continue
        middle = {key: statistics.median(asdict(run)[key] for run in runs) for key in asdict(runs[0])}
        rates = [run.rate for run in runs]
        ratios = [run.rate / bare.rate for run, bare in zip(runs, results[BARE], strict=False)]
        is_gateway = name != DIRECT
        table.add_row(
            name,
            f"{middle['rate']:,.0f}\n{min(rates):,.0f}-{max(rates):,.0f}",
            f"{statistics.median(ratios):.2f}" if ratios else "",
            f"{1000 * middle['added_p50']:.2f}" if is_gateway else "",
            f"{1000 * middle['added_p99']:.2f}" if is_gateway else "",
            f"{middle['events']:,.0f}",
            f"{middle['cpu']:.3f}" if is_gateway else "",
            f"{sum(run.errors for run in runs)}",
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [DIRECT, BARE, OURS, LITELLM, VLLM_ROUTER, SGLANG_ROUTER]
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each gateway (default: 3)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each of its loads (default: 3)")
    parser.add_argument("--only", nargs="*", choices=names, default=names, help="gateways to measure (default: all)")
    parser.add_argument("--install", action="store_true", help="install the other gateways, and measure nothing")
    environments = Path(".venv/gateways")
    parser.add_argument(
        "--environments", type=Path, default=environments, help=f"their folder (default: {environments})"
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    for internal in ("--proxy", "--generate"):
        parser.add_argument(internal, help=argparse.SUPPRESS)
    parser.add_argument("--engine", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.environments = arguments.environments.absolute()
    if arguments.engine:
        serve_engine(arguments.port)
    elif arguments.proxy:
        bare_proxy(arguments.port, arguments.proxy)
    elif arguments.generate:
        generator(arguments.generate)
    elif arguments.install:
        install(arguments.environments)
    else:
        os.environ |= LITELLM_ENVIRONMENT
        console = Console(width=80)
        results: dict[str, list[Figures]] = {name: [] for name in names if name in arguments.only}
        usable = [name for name in results if name not in PACKAGES or (arguments.environments / name / "bin").is_dir()]
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task("", total=arguments.rounds * len(usable))
            for _ in range(arguments.rounds):
                round_of(usable, arguments, results, lambda name: progress.update(task, description=name, advance=1))
        show(results, console)
        if arguments.json:
            found = {name: [asdict(run) for run in runs] for name, runs in results.items()}
            arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
