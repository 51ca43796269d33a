"""The page shows an operator the workers, and acts on them: with real workers and a real browser."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from ports import free_port

from tests.page.conftest import Open
from tests.system.conftest import Serve
from tests.system.processes import ControllerProcess, Server

pytestmark = [pytest.mark.system, pytest.mark.smoke]

A, B = "http://127.0.0.1:1/a", "http://127.0.0.1:1/b"


def open_worker(page: Page, name: str) -> None:
    page.locator("#workers").get_by_role("link", name=name.removeprefix("http://"), exact=True).click()


def state_of(controller: ControllerProcess, name: str) -> tuple[bool, bool]:
    [worker] = [worker for worker in controller.workers() if worker["worker_name"] == name]
    return worker["draining"], worker["drained"]


def test_a_worker_appears_and_expires(serve: Serve, open_page: Open, work_dir: Path) -> None:
    controller = serve("--heartbeat-expiration", "3", "--sweep-interval", "0.2", "--poll-interval", "0")
    page = open_page(controller.url)
    expect(page.locator("#workers")).to_contain_text("No worker is registered.")
    url = f"http://127.0.0.1:{free_port()}"
    port = url.rpartition(":")[2]
    flags = ["--host", "127.0.0.1", "--port", port, "--worker-address", url, "--controller-address", controller.url]
    flags += ["--heartbeat-interval", "0.5", "--model", "echo"]
    worker = Server(url, work_dir / "worker.log", "-m", "controller.examples.worker", *flags)
    try:
        expect(page.locator("#workers tbody tr")).to_contain_text(url.removeprefix("http://"))
        expect(page.locator("#models tbody tr")).to_contain_text("echo")
        expect(page.locator("#problems")).to_contain_text("Nothing.")
    finally:
        worker.kill()
    expect(page.locator("#workers")).to_contain_text("No worker is registered.")
    expect(page.locator("#events")).to_contain_text(f"{url} expired")
    expect(page.locator("#problems")).to_contain_text("echo has no worker since")
    controller.stop()
    again = serve("--poll-interval", "0", port=controller.port)
    for number in range(3):
        again.register(f"http://127.0.0.1:1/{number}", "m")
    expect(page.locator("#models")).to_contain_text("m")
    expect(page.locator("#problems")).to_contain_text("echo has no worker since")


def test_drain_resume_and_remove_by_click(controller: ControllerProcess, open_page: Open) -> None:
    controller.register(A, "m")
    controller.register(B, "m")
    page = open_page(controller.url)
    open_worker(page, A)
    details, ask = page.locator("#details"), page.locator("#ask")
    expect(details).to_contain_text(f"Worker {A}")
    details.get_by_role("button", name="Drain…").click()
    expect(ask).to_contain_text(A)
    ask.get_by_role("button", name="Cancel").click()
    expect(ask).to_be_hidden()
    assert state_of(controller, A) == (False, False)
    details.get_by_role("button", name="Drain…").click()
    ask.get_by_label("Reason").fill("new driver")
    ask.get_by_role("button", name="Drain").click()
    expect(details.locator(".lead")).to_contain_text("drained")
    expect(details.locator(".lead")).to_contain_text("Reason: new driver")
    expect(page.get_by_text("The worker is draining.")).to_be_visible()
    assert state_of(controller, A) == (True, True)
    assert controller.dispatch() == B
    details.get_by_role("button", name="Resume…").click()
    ask.get_by_role("button", name="Resume").click()
    expect(details.locator(".lead")).to_contain_text("serving")
    details.get_by_role("button", name="Remove…").click()
    ask.get_by_role("button", name="Remove").click()
    expect(details).to_contain_text("This worker is not live.")
    expect(details).to_contain_text("was removed by no token from 127.0.0.1")
    details.get_by_role("button", name="Close").click()
    expect(page.locator("#workers tbody tr")).to_have_count(1)
    assert controller.names() == [B]


@pytest.mark.slow
def test_refresh_asks_first(serve: Serve, open_page: Open) -> None:
    controller = serve("--poll-interval", "0", "--probe-timeout", "0.2")
    controller.register(A, "m")
    page = open_page(controller.url)
    page.get_by_role("button", name="Refresh…").click()
    page.locator("#ask").get_by_role("button", name="Refresh").click()
    expect(page.get_by_text("All workers were asked for their status.")).to_be_visible()
    expect(page.locator("#workers")).to_contain_text("No worker is registered.")


@pytest.mark.slow
def test_an_action_on_a_worker_that_is_gone_says_so(controller: ControllerProcess, open_page: Open) -> None:
    controller.register(A, "m")
    page = open_page(f"{controller.url}/#worker={A}")
    page.locator("#details").get_by_role("button", name="Drain…").click()
    controller.post("/remove_worker", {"worker_name": A})
    page.locator("#ask").get_by_role("button", name="Drain").click()
    expect(page.get_by_text("the worker is not registered any more")).to_be_visible()


def test_the_page_explains_the_next_request(controller: ControllerProcess, open_page: Open) -> None:
    controller.register(A, "m & n", queue_length=3)
    controller.register(B, "m & n", queue_length=1)
    controller.register("http://127.0.0.1:1/c", "m & n")
    controller.post("/drain_worker", {"worker_name": "http://127.0.0.1:1/c"})
    page = open_page(controller.url)
    page.locator("#models").get_by_role("link", name="m & n").click()
    details = page.locator("#details")
    expect(details).to_contain_text(f"It would go to {B}, which has the lowest cost.")
    expect(details.locator("tbody th")).to_have_text([B.removeprefix("http://"), A.removeprefix("http://")])
    expect(details).to_contain_text("http://127.0.0.1:1/c (draining)")
    controller.post("/receive_heart_beat", {"worker_name": B, "queue_length": 5})
    details.get_by_role("button", name="Ask again").click()
    expect(details).to_contain_text(f"It would go to {A}")
    details.get_by_role("link", name="Show its workers").click()
    expect(page.locator("#workers .chip")).to_contain_text("serves m & n")


@pytest.mark.parametrize(
    ("stalled_for", "heartbeat_age", "changes", "expected"),
    [
        (74, 62, {}, "stalled"),
        (74, 10, {}, "stalled"),
        (50, 62, {}, "late"),
        (74, 91, {}, "late"),
        (74, 62, {"failing": "polls"}, "failing"),
        (74, 62, {"draining": True}, "draining"),
        (None, 10, {}, "serving"),
    ],
)
def test_states_have_the_order_of_the_command_line(
    controller: ControllerProcess,
    open_page: Open,
    stalled_for: float | None,
    heartbeat_age: float,
    changes: dict[str, object],
    expected: str,
) -> None:
    """A heartbeat expires after 90 s, and is late after 60 s."""
    now = 1_790_000_000.0
    row = {
        "worker_name": A,
        "model_names": ["m"],
        "queue_length": 1,
        "leased": 0,
        "capacity": None,
        "drained": False,
        "draining": False,
        "failing": None,
        "heartbeat_at": now - heartbeat_age,
        "expires_at": now - heartbeat_age + 90,
        "stalled_since": None if stalled_for is None else now - stalled_for,
        **changes,
    }
    page = open_page(controller.url)
    expect(page.locator("header")).to_contain_text("live")
    script = """async (state) => {
        const loaded = performance.getEntriesByType("resource").map((entry) => entry.name);
        const { Cluster } = await import(loaded.find((name) => name.endsWith("/cluster.js")));
        const cluster = new Cluster();
        cluster.apply("state", state);
        return cluster.state(state.workers[0]).key;
    }"""
    state = {"time": now, "seen_at": now, "stalled_after": 60, "workers": [row]}
    assert page.evaluate(script, state) == expected


def test_search_sort_filter_and_permalink(controller: ControllerProcess, open_page: Open) -> None:
    for number in range(12):
        controller.register(f"http://127.0.0.1:1/w{number}", f"model-{number % 3}", queue_length=number)
    controller.post("/drain_worker", {"worker_name": "http://127.0.0.1:1/w4"})
    page = open_page(controller.url)
    rows = page.locator("#workers tbody tr")
    expect(rows).to_have_count(12)
    expect(rows.first).to_contain_text("/w0")
    expect(rows.last).to_contain_text("/w11")
    page.locator("#workers").get_by_role("button", name="Queue").click()
    expect(rows.first).to_contain_text("/w11")
    expect(page.locator("#workers th[aria-sort]")).to_have_text(re.compile("Queue"))
    page.get_by_label("Search workers and models").fill("MODEL-1")
    expect(rows).to_have_count(4)
    expect(page.locator("#models tbody tr")).to_have_count(1)
    page.get_by_label("State").select_option("drained")
    expect(rows).to_have_count(0)
    page.get_by_label("State").select_option("draining")
    expect(rows).to_have_text([re.compile("/w4")])
    again = open_page(page.url)
    expect(again.locator("#workers tbody tr")).to_have_text([re.compile("/w4")])
    expect(again.get_by_label("State")).to_have_value("draining")
    open_worker(page, "http://127.0.0.1:1/w4")
    expect(page.locator("#details")).to_contain_text("Worker http://127.0.0.1:1/w4")
    linked = open_page(page.url)
    expect(linked.locator("#details")).to_contain_text("Worker http://127.0.0.1:1/w4")
    page.go_back()
    expect(page.locator("#details")).to_be_hidden()
    nonsense = open_page(f"{controller.url}/#sort=constructor&page=-5&mpage=x&models=__proto__&state=toString&q=%zz")
    expect(nonsense.locator("#workers")).to_contain_text("No worker matches.")


def test_with_the_keyboard_only(controller: ControllerProcess, open_page: Open) -> None:
    controller.register(A, "m")
    page = open_page(controller.url)
    expect(page.locator("#workers tbody tr")).to_have_count(1)
    link = page.locator("#workers tbody a")
    for _ in range(60):
        page.keyboard.press("Tab")
        if link.evaluate("element => element === document.activeElement"):
            break
    expect(link).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#details").get_by_role("button", name="Close")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Reason")).to_be_focused()
    page.keyboard.type("by hand")
    page.keyboard.press("Enter")
    expect(page.locator("#details .lead")).to_contain_text("Reason: by hand")
    expect(page.locator("#ask")).to_be_hidden()
    page.keyboard.press("Escape")
    expect(page.locator("#details")).to_be_hidden()
    expect(link).to_be_focused()
    assert state_of(controller, A) == (True, True)
