"""Clients that ask for workers without a pause, and what they saw."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import httpx


@dataclass
class Seen:
    """What happened to the dispatches of a load. latencies are in seconds, in order of their end.

    last_asked tells of each address when the latest of the requests began that got it, as time.perf_counter() says.
    """

    latencies: list[float] = field(default_factory=list)
    addresses: Counter[str] = field(default_factory=Counter)
    last_asked: dict[str, float] = field(default_factory=dict)
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
async def load(urls: Sequence[str], model: str = "m", clients: int = 8, pause: float = 0.002) -> AsyncIterator[Seen]:
    """Dispatch from so many clients at once, each on a connection that it keeps, for as long as the block."""
    seen = Seen()
    stop = asyncio.Event()

    async def ask(http: httpx.AsyncClient, url: str) -> None:
        while not stop.is_set():
            began = time.perf_counter()
            try:
                response = await http.post(f"{url}/get_worker_address", json={"model": model})
                address = response.json()["address"] if response.status_code == 200 else ""
            except (httpx.HTTPError, ValueError, KeyError) as error:
                seen.failed.append(f"{type(error).__name__}: {error}")
            else:
                seen.addresses[address] += 1
                seen.last_asked[address] = max(began, seen.last_asked.get(address, began))
                seen.degraded += "x-controller-degraded" in response.headers
                if not address:
                    seen.failed.append(f"{response.status_code} {response.text} {dict(response.headers)}")
            seen.latencies.append(time.perf_counter() - began)
            await asyncio.sleep(pause)

    async with httpx.AsyncClient(timeout=60.0, limits=httpx.Limits(max_connections=None)) as http:
        tasks = [asyncio.create_task(ask(http, urls[i % len(urls)])) for i in range(clients)]
        try:
            yield seen
        finally:
            stop.set()
            await asyncio.gather(*tasks)
