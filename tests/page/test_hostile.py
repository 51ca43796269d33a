"""Names that other machines have chosen stay text, and do not break the page."""

from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import Page, expect

from tests.page.conftest import Open
from tests.system.conftest import Serve
from tests.system.processes import ControllerProcess

pytestmark = [pytest.mark.system]

MODELS = (
    "<img src=x onerror=\"alert('model')\">",
    "</script><script>alert('model')</script>",
    "javascript:alert('model')",
    "${alert('model')}{{alert('model')}}",
    "__proto__",
    "constructor",
    "right\u202eleft\u2066and\u200b",
    "א" * 30,
    "x" * 500,
    "W" * 250 + " " + "i" * 249,
    "?model=a&worker=b#c%2e",
    " ",
)
WORKERS = (
    "http://127.0.0.1:1/'onmouseover=alert(1);'",
    "http://127.0.0.1:1/%3Cimg%20src=x%20onerror=alert(1)%3E",
    "http://127.0.0.1:1/" + "y" * 1_000,
    "http://127.0.0.1:1/a&amp;b;(c)!$*+,=@:~",
)


def fits(page: Page) -> bool:
    """Return True if nothing is wider than the window."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"))


def open_windows(page: Page, url: str, names: tuple[str, ...], kind: str) -> None:
    for name in names:
        page.goto(f"{url}/#{kind}={quote(name, safe='')}")
        dialog = page.locator("#details")
        expect(dialog).to_contain_text("What happened to it" if kind == "worker" else "The next request")
        spelled_out = name.replace("\u202e", "\\u{202E}").replace("\u2066", "\\u{2066}").replace("\u200b", "\\u{200B}")
        expect(dialog.locator("h2")).to_have_text(f"{kind.title()} {spelled_out}")
        assert fits(page), name
        assert dialog.evaluate("element => element.scrollWidth <= element.clientWidth"), name


@pytest.mark.parametrize("width", [360, pytest.param(1280, marks=pytest.mark.slow)])
def test_names_are_text(controller: ControllerProcess, open_page: Open, width: int) -> None:
    for name in WORKERS:
        controller.register(name, *MODELS)
    reason: dict[str, Any] = {"worker_name": WORKERS[0], "reason": "<b onclick=alert(1)>\u202e" + "z" * 400}
    controller.post("/drain_worker", reason)
    page = open_page(controller.url, viewport={"width": width, "height": 800})
    expect(page.locator("#workers tbody tr")).to_have_count(len(WORKERS))
    expect(page.locator("#models tbody tr")).to_have_count(len(MODELS))
    expect(page.locator("#events")).to_contain_text("<b onclick=alert(1)>")
    assert fits(page)
    open_windows(page, controller.url, WORKERS, "worker")
    open_windows(page, controller.url, MODELS, "model")
    assert (
        page.evaluate("document.querySelectorAll('img, script:not([src]), [onclick], [onerror], iframe').length") == 0
    )
    page.goto(f"{controller.url}/#worker={quote(WORKERS[0], safe='')}")
    expect(page.locator("#details .lead")).to_contain_text("<b onclick=alert(1)>")


def test_the_browser_refuses_html_from_text(serve: Serve, open_page: Open) -> None:
    """So a mistake in a script of ours could not run a name either."""
    page = open_page(serve().url, expected=r"violation: |.*(TrustedHTML|TrustedTypePolicy)")
    refused = """() => {
        const outcomes = [];
        for (const set of [
            () => (document.body.innerHTML = "<img>"),
            () => document.body.insertAdjacentHTML("beforeend", "<img>"),
            () => trustedTypes.createPolicy("mine", {}),
        ]) {
            try { set(); outcomes.push("allowed"); } catch { outcomes.push("refused"); }
        }
        return outcomes;
    }"""
    assert page.evaluate(refused) == ["refused"] * 3
