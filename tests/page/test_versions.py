"""The page while replicas of two versions serve behind one address."""

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, Route, expect

from tests.page.conftest import Open
from tests.system.processes import ControllerProcess

pytestmark = pytest.mark.system

EXPECTED = r"Failed to load resource: .* 404|TypeError|Error: The style sheet is missing"
OTHER = "0123456789abcdef"


def mix(page: Page, changed: Callable[[str], str], times: int) -> None:
    """Let the first `times` loads of the page come from a replica of another version, and its files from this one."""
    left = [times]

    def answer(route: Route) -> None:
        response = route.fetch()
        left[0] -= 1
        text = response.text()
        route.fulfill(response=response, body=changed(text) if left[0] >= 0 else text)

    page.route(re.compile(r"http://[^/]+/$"), answer)


def other_scripts(text: str) -> str:
    """Return the page with scripts of another version."""
    return re.sub(r'(page-version" content=")\w+', rf"\g<1>{OTHER}", text)


def other_style(text: str) -> str:
    """Return the page with a style sheet of another version."""
    return re.sub(r"page/\w+/page.css", f"page/{OTHER}/page.css", text)


@pytest.mark.parametrize("changed", [other_scripts, other_style])
def test_a_page_of_two_versions_is_loaded_again_once(
    controller: ControllerProcess, open_page: Open, changed: Callable[[str], str]
) -> None:
    page = open_page(f"{controller.url}/healthz", EXPECTED)
    loads: list[str] = []
    page.on("request", lambda request: loads.append(request.url) if request.is_navigation_request() else None)
    mix(page, changed, times=1)
    page.goto(controller.url)
    expect(page.locator("#workers")).to_contain_text("No worker is registered.")
    assert len(loads) == 2
    page.unroute_all()
    mix(page, changed, times=9)
    page.goto(f"{controller.url}/healthz")
    loads.clear()
    page.goto(controller.url)
    expect(page.get_by_role("alert")).to_contain_text("Replicas of two versions run behind this address")
    assert len(loads) == 2, "it reloads only once"
    page.unroute_all()
    page.reload()
    expect(page.locator("#workers")).to_contain_text("No worker is registered.")
