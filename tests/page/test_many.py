"""Many workers: the page stays small, and shows which of them is stuck."""

import asyncio
import re
import threading
from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from controller.domain.worker import Registration, WorkerStatus
from controller.store.connection import connect
from controller.store.registry import RegisterCall, Registry
from controller.store_url import parse_store_url
from tests.page.conftest import Open
from tests.system.conftest import Serve
from tests.system.processes import ControllerProcess

pytestmark = pytest.mark.system

STUCK = "http://127.0.0.1:1/w23"
NAMES = [f"http://127.0.0.1:1/w{number}" for number in range(50)]
COUNT_CHANGES = """() => new Promise((resolve) => {
    let changes = 0, frames = 0;
    const observer = new MutationObserver((records) => {
        changes += records.length;
        if (++frames === 3) { observer.disconnect(); resolve(changes); }
    });
    const all = { subtree: true, childList: true, characterData: true, attributes: true };
    observer.observe(document.getElementById("page"), all);
})"""


async def register_many(url: str, names: list[str]) -> None:
    registry = Registry(connect(parse_store_url(url), 60.0), "controller", 3600.0, 60.0, booking_decay=False)
    status = WorkerStatus(("a", "b", "c"), 1, 2, 8)
    calls = [RegisterCall(Registration(name, status, True, False)) for name in names]
    await registry.register_many(calls)
    await registry.close()


def test_1000_workers(serve: Serve, open_page: Open) -> None:
    controller = serve("--poll-interval", "0", "--heartbeat-expiration", "3600")
    names = [f"http://127.0.{number // 200}.{number % 200 + 1}:21002" for number in range(1_000)]
    thread = threading.Thread(target=lambda: asyncio.run(register_many(controller.store_url, names)))
    thread.start()
    thread.join()
    page = open_page(controller.url)
    expect(page.locator("#workers-title")).to_contain_text("1,000")
    expect(page.locator("#workers tbody tr")).to_have_count(50)
    assert page.evaluate("document.querySelectorAll('*').length") < 2_500
    assert page.evaluate(COUNT_CHANGES) < 1_000, "an update changes the ages in 50 rows, and little else"
    page.get_by_role("button", name="Next page").click()
    expect(page.locator(".pager")).to_contain_text("51 to 100 of 1,000")
    page.get_by_label("Search workers and models").fill("127.0.4.7:")
    expect(page.locator("#workers tbody tr")).to_have_count(1)
    expect(page.locator("#models tbody tr")).to_have_count(3)


@pytest.fixture
def fleet(serve: Serve) -> Iterator[ControllerProcess]:
    """A controller with 50 workers. All send heartbeats, and the queue of one never shrinks."""
    controller = serve("--poll-interval", "0")
    for name in NAMES:
        controller.register(name, "m", queue_length=8)
    stop = threading.Event()

    def beat() -> None:
        turn = 0
        while not stop.wait(0.5):
            turn += 1
            for number, name in enumerate(NAMES):
                queue = 8 + turn if name == STUCK else 8 + (turn + number) % 4
                controller.post("/receive_heart_beat", {"worker_name": name, "queue_length": queue})

    thread = threading.Thread(target=beat)
    thread.start()
    yield controller
    stop.set()
    thread.join()


def test_a_stuck_worker_is_found_and_drained(fleet: ControllerProcess, open_page: Open) -> None:
    page = open_page(fleet.url)
    page.locator("#workers").get_by_role("button", name="Stalled for").click()
    first = page.locator("#workers tbody tr").first
    expect(first.locator("a")).to_have_text(STUCK.removeprefix("http://"))
    expect(first.locator(".stalled")).to_have_text(re.compile("[2-9][0-9] s|min"))
    # The others stay below 10 s, which is shown as a dash.
    expect(page.locator("#workers .stalled", has_text=re.compile(r"\d"))).to_have_count(1)
    first.locator("a").click()
    page.locator("#details").get_by_role("button", name="Drain…").click()
    page.locator("#ask").get_by_label("Reason").fill("stuck")
    page.locator("#ask").get_by_role("button", name="Drain").click()
    expect(page.locator("#details .lead")).to_contain_text("draining It gets no new requests. Reason: stuck")
    expect(page.locator("#events")).to_contain_text(f"{STUCK} drains by no token from 127.0.0.1: stuck")
