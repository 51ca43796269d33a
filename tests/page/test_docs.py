"""The page of the API document in a browser: readable, accessible, and without anything that its policy forbids."""

import pytest
from playwright.sync_api import expect

from controller.web.routes.table import ROUTES
from tests.page.conftest import Open
from tests.page.test_accessible import findings
from tests.system.processes import ControllerProcess

pytestmark = [pytest.mark.system]


def test_the_page_is_readable_on_screens_and_phones(controller: ControllerProcess, open_page: Open) -> None:
    requested: list[str] = []
    for width, scheme in ((1280, "light"), (360, "dark")):
        # axe-core evaluates text as code, which the policy forbids.
        options = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme, "bypass_csp": True}
        page = open_page(f"{controller.url}/docs", **options)
        expect(page.locator("article h3 code")).to_have_count(len(ROUTES))
        page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        assert page.evaluate("document.documentElement.scrollWidth") == width, "nothing is cut off"
        # All routes have the same parts, and axe-core takes minutes for all of them.
        page.evaluate("document.querySelectorAll('article:nth-of-type(n + 4)').forEach((each) => each.remove())")
        assert findings(page, ["color-contrast", "document-title", "link-name", "region"]) == []
    page = open_page(f"{controller.url}/docs")
    page.on("request", lambda request: requested.append(request.url))
    page.get_by_role("link", name="POST /register_worker").click()
    expect(page.locator("#register_worker")).to_be_in_viewport()
    expect(page.locator("body")).to_have_css("display", "grid")  # the policy lets the style sheet through
    assert set(requested) <= {f"{controller.url}/page/icon.svg"}
