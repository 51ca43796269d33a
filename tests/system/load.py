"""Clients that dispatch in a loop, and their results."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import httpx


@dataclass
class LoadResults:
    """The results of all dispatches of a load.

    latencies: seconds per dispatch, in the order in which the dispatches ended.
    addresses: how often each address was returned. "" stands for dispatches without a worker.
    last_sent: by address, when the latest request that returned it was sent, on the clock of time.perf_counter().
    degraded: responses from replicas in degraded mode.
    failed: one description per failed dispatch.
    """

    latencies: list[float] = field(default_factory=list)
    addresses: Counter[str] = field(default_factory=Counter)
    last_sent: dict[str, float] = field(default_factory=dict)
    degraded: int = 0
    failed: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return len(self.latencies)

    def percentile(self, share: float) -> float:
        return sorted(self.latencies)[min(self.total - 1, int(self.total * share))]

    def __str__(self) -> str:
        figures = ", ".join(f"p{share * 100:g} {1000 * self.percentile(share):.0f} ms" for share in (0.5, 0.99, 0.999))
        return (
            f"{self.total} dispatches, {len(self.failed)} failed, {self.degraded} from a snapshot; "
            f"{figures}, max {1000 * max(self.latencies):.0f} ms"
        )


@contextlib.asynccontextmanager
async def load(
    urls: Sequence[str], model: str = "m", clients: int = 8, pause: float = 0.002
) -> AsyncIterator[LoadResults]:
    """Dispatch from concurrent clients until the block ends. Each client keeps one connection alive."""
    results = LoadResults()
    stop = asyncio.Event()

    async def dispatch(http: httpx.AsyncClient, url: str) -> None:
        while not stop.is_set():
            sent_at = time.perf_counter()
            try:
                response = await http.post(f"{url}/get_worker_address", json={"model": model})
                address = response.json()["address"] if response.status_code == 200 else ""
            except (httpx.HTTPError, ValueError, KeyError) as error:
                results.failed.append(f"{type(error).__name__}: {error}")
            else:
                results.addresses[address] += 1
                results.last_sent[address] = max(sent_at, results.last_sent.get(address, sent_at))
                results.degraded += "x-controller-degraded" in response.headers
                if not address:
                    results.failed.append(f"{response.status_code} {response.text} {dict(response.headers)}")
            results.latencies.append(time.perf_counter() - sent_at)
            await asyncio.sleep(pause)

    async with httpx.AsyncClient(timeout=60.0, limits=httpx.Limits(max_connections=None)) as http:
        tasks = [asyncio.create_task(dispatch(http, urls[i % len(urls)])) for i in range(clients)]
        try:
            yield results
        finally:
            stop.set()
            await asyncio.gather(*tasks)
