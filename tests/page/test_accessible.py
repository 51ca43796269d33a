"""axe-core finds nothing to improve for people who use a keyboard, a screen reader, or much contrast."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import axe_playwright_python
import pytest
from playwright.sync_api import Page, expect

from tests.page.conftest import Open
from tests.system.conftest import Serve

pytestmark = [pytest.mark.system, pytest.mark.smoke]

AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()
A = "http://127.0.0.1:1/a"


def findings(page: Page, applied: Sequence[str] = ("color-contrast", "button-name")) -> list[Any]:
    """Return the rules that the page breaks, each with the elements. applied: rules that must have been checked."""
    page.evaluate(AXE)
    checked, found = page.evaluate(
        """async () => {
            const { passes, violations } = await axe.run(document);
            const of = (each) => [each.id, each.nodes.map((node) => node.html + node.failureSummary)];
            return [passes.map((each) => each.id), violations.map(of)];
        }"""
    )
    assert set(applied) <= set(checked)
    return list(found)


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (1280, "light"),
        pytest.param(360, "dark", marks=pytest.mark.slow),
        pytest.param(1280, "dark", marks=pytest.mark.slow),
        pytest.param(360, "light", marks=pytest.mark.slow),
    ],
)
def test_axe_finds_nothing(serve: Serve, open_page: Open, width: int, scheme: str) -> None:
    controller = serve("--poll-interval", "0", "--heartbeat-expiration", "3600")
    for number, name in enumerate("abcdef"):
        controller.register(f"http://127.0.0.1:1/{name}", f"model-{number}", "all", queue_length=4 * number)
    controller.post("/drain_worker", {"worker_name": "http://127.0.0.1:1/b"})
    controller.post("/drain_worker", {"worker_name": "http://127.0.0.1:1/a"})
    controller.post("/report_failure", {"worker_name": "http://127.0.0.1:1/c"})
    for model in ("all", "model-3"):
        controller.post("/set_capacity", {"model": model, "capacity": 5})
    # axe-core evaluates text as code, which the page's own policy forbids.
    options = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme, "bypass_csp": True}
    page = open_page(controller.url, **options)
    expect(page.locator("#workers tbody tr")).to_have_count(6)
    expect(page.locator("#problems")).to_contain_text("saturated")
    assert findings(page) == []
    page.goto(f"{controller.url}/#worker={A}")
    expect(page.locator("#details h2")).to_be_visible()
    assert findings(page) == []
    page.get_by_role("button", name="Remove…").click()
    expect(page.locator("#ask h2")).to_be_visible()
    assert findings(page) == []
    page.get_by_role("button", name="Cancel").click()
    page.goto(f"{controller.url}/#model=all")
    expect(page.locator("#details .candidates")).to_be_visible()
    assert findings(page) == []
    page.goto(f"{controller.url}/#worker=http://127.0.0.1:1/gone")
    expect(page.locator("#details")).to_contain_text("not live")
    assert findings(page) == []
    page.goto(f"{controller.url}/#")
    controller.stop()
    expect(page.locator(".banner")).to_be_visible()
    assert findings(page) == []


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_the_form_for_a_token(serve: Serve, open_page: Open, scheme: str) -> None:
    controller = serve(CONTROLLER_ADMIN_TOKENS="ops=a-token-of-this-test")
    page = open_page(controller.url, color_scheme=scheme, bypass_csp=True)
    page.get_by_label("Admin token").fill("wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_be_visible()
    assert findings(page) == []
