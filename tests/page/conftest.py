"""Controllers, and pages in Debian's Chromium. Each page must end without an error and without a refused script."""

import re
import shutil
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from tests.system.conftest import controller, module_dir, serve, shared_process, work_dir

__all__ = ["controller", "module_dir", "serve", "shared_process", "work_dir"]

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--no-sandbox",  # the tests may run as root
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
# Chromium reports each lost connection and each refused request, which some tests cause.
EXPECTED = re.compile(r"Failed to load resource: (net::ERR_|the server responded with a status of (401|403|503))")
NOTE_VIOLATIONS = """
addEventListener("securitypolicyviolation", (event) => console.error("violation: " + event.violatedDirective));
"""
TIMEOUT = 60_000  # milliseconds

Open = Callable[..., Page]
expect.set_options(timeout=TIMEOUT)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("NOT TESTED, the page in a browser: chromium is not on PATH")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """Return a function that opens a page.

    It takes the URL, a pattern of errors that the test expects, and options of the browser's context such as viewport.
    """
    errors: list[str] = []

    def note(message: ConsoleMessage, expected: str) -> None:
        known = EXPECTED.match(message.text) or (expected and re.match(expected, message.text))
        if message.type == "error" and not known:
            errors.append(message.text)

    def open_(url: str, expected: str = "", **options: object) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})  # type: ignore[arg-type]
        context.add_init_script(NOTE_VIOLATIONS)
        page = context.new_page()
        page.set_default_timeout(TIMEOUT)
        page.on("console", lambda message: note(message, expected))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("dialog", lambda dialog: errors.append(f"a script has opened a dialog: {dialog.message}"))
        page.goto(url)
        return page

    yield open_
    for context in browser.contexts:
        context.close()
    assert errors == []
