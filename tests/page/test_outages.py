"""The page while Redis or the replica is away."""

from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.page.conftest import Open
from tests.system.conftest import Serve
from tests.system.servers import Server

pytestmark = [pytest.mark.system]

A = "http://127.0.0.1:1/a"


@pytest.mark.slow
def test_the_page_tells_that_redis_is_away(serve: Serve, open_page: Open, work_dir: Path) -> None:
    store = Server(work_dir / "redis", "--save", "", "--appendonly", "no")
    try:
        controller = serve("--redis-url", store.url, "--poll-interval", "0")
        controller.register(A, "m")
        page = open_page(controller.url)
        expect(page.locator("#workers tbody tr")).to_have_count(1)
        store.kill()
        controller.dispatch()
        banner = page.locator(".banner")
        expect(banner).to_contain_text("Redis is unavailable. Replicas dispatch from their snapshots.")
        expect(banner).to_contain_text("The page shows the workers of")
        expect(page.locator("#workers tbody tr")).to_contain_text("127.0.0.1:1/a")
        page.goto(f"{controller.url}/#worker={A}")
        page.get_by_role("button", name="Drain…").click()
        page.locator("#ask").get_by_role("button", name="Drain").click()
        expect(page.locator("#ask .error")).not_to_be_empty()
        page.get_by_role("button", name="Cancel").click()
        store.start()
        expect(banner).to_have_count(0)
        expect(page.locator("#workers tbody tr")).to_have_count(1)
        expect(page.locator("#events")).to_contain_text("uses Redis again")
    finally:
        store.kill()


@pytest.mark.slow
def test_the_page_tells_that_nothing_is_dispatched(serve: Serve, open_page: Open, work_dir: Path) -> None:
    store = Server(work_dir / "redis", "--save", "", "--appendonly", "no")
    try:
        controller = serve("--redis-url", store.url, "--poll-interval", "0", "--heartbeat-expiration", "5")
        controller.register(A, "m", check=False)
        page = open_page(controller.url)
        expect(page.locator("#models tbody tr td").first).to_have_text("1 / 1")
        store.kill()
        banner = page.locator(".banner")
        expect(banner).to_contain_text("No request gets a worker from this replica")
        expect(banner).not_to_contain_text("dispatch from their snapshots")
        expect(page.locator("#models tbody tr td").first).to_have_text("0 / 1")
        expect(page.locator("#problems")).not_to_contain_text("none of them serves")
    finally:
        store.kill()


@pytest.mark.slow
def test_the_page_shows_parents(serve: Serve, open_page: Open) -> None:
    parent = serve(data="parent")
    advertised = "http://127.0.0.1:1/child"
    flags = ["--parent", parent.url, "--advertise", advertised, "--parent-interval", "1", "--poll-interval", "0"]
    child = serve(*flags, data="child")
    child.register(A, "m")
    page = open_page(child.url)
    parents = page.locator("#replicas table").last
    expect(parents).to_contain_text(parent.url)
    expect(parents).to_contain_text("accepted")
    above = open_page(parent.url)
    expect(above.locator("#workers tbody tr")).to_contain_text("127.0.0.1:1/child")
    parent.stop()
    expect(parents).to_contain_text("failed")
    expect(page.locator("#problems")).to_contain_text("does not accept the heartbeats of this replica")


def test_the_page_connects_again(serve: Serve, open_page: Open) -> None:
    controller = serve("--poll-interval", "0")
    controller.register(A, "m")
    page = open_page(controller.url)
    expect(page.locator("#workers tbody tr")).to_have_count(1)
    controller.stop()
    banner = page.locator(".banner")
    expect(banner).to_contain_text("The page shows the state of")
    expect(page.locator("header")).to_contain_text("not connected")
    expect(page.locator("#workers tbody tr")).to_have_count(1)
    again = serve("--poll-interval", "0", port=controller.port)
    expect(page.locator("header")).to_contain_text("live")
    expect(banner).to_have_count(0)
    again.register("http://127.0.0.1:1/b", "m")
    expect(page.locator("#workers tbody tr", has_text="/b")).to_have_count(1)
