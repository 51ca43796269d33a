"""Engines on the page: how they are shown while they are ready, and after they have died."""

from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.page.conftest import Open
from tests.support.llamacpp import llama_server
from tests.system.conftest import Serve
from tests.system.processes import call

pytestmark = pytest.mark.system


@pytest.mark.slow
def test_a_dead_engine_needs_attention(serve: Serve, open_page: Open, work_dir: Path, tiny_model: Path) -> None:
    controller = serve("--engine-poll-interval", "0.2", "--engine-expiration", "1")
    page = open_page(controller.url)
    with llama_server(work_dir, tiny_model) as engine:
        assert call(f"{controller.url}/register_engine", {"worker_name": engine.address})["alive"]
        expect(page.locator("#workers tbody tr")).to_contain_text(engine.address.removeprefix("http://"))
        page.goto(f"{controller.url}/#worker={engine.address}")
        expect(page.locator("body")).to_contain_text("llamacpp")
    expect(page.locator("#problems")).to_contain_text("is registered, but gets no requests: ")
    expect(page.locator("#problems")).to_contain_text("cannot be reached")
    expect(page.locator("#events")).to_contain_text("is not ready")
