"""The page of a controller with tokens."""

import json
import urllib.request

import pytest
from playwright.sync_api import Page, expect

from tests.page.conftest import Open
from tests.system.conftest import Serve
from tests.system.processes import ControllerProcess, call

pytestmark = [pytest.mark.system]

A = "http://127.0.0.1:1/a"
SECRETS = {plane: f"{plane}-secret-of-this-test" for plane in ("worker", "client", "admin")}
ENVIRONMENT = {f"CONTROLLER_{plane.upper()}_TOKENS": f"{plane}={secret}" for plane, secret in SECRETS.items()}


def send(controller: ControllerProcess, path: str, body: object, secret: str) -> object:
    request = urllib.request.Request(
        controller.url + path, json.dumps(body).encode(), {"Authorization": f"Bearer {secret}"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.loads(response.read())


def sign_in(page: Page, secret: str) -> None:
    page.get_by_label("Admin token").fill(secret)
    page.get_by_role("button", name="Sign in").click()


def test_the_page_asks_for_an_admin_token(serve: Serve, open_page: Open) -> None:
    controller = serve("--poll-interval", "0", **ENVIRONMENT)
    registration = {
        "worker_name": A,
        "check_heart_beat": True,
        "worker_status": {"model_names": ["m"], "speed": 1, "queue_length": 0},
    }
    send(controller, "/register_worker", registration, SECRETS["worker"])
    page = open_page(controller.url)
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url))
    expect(page.get_by_label("Admin token")).to_be_visible()
    expect(page.locator("main")).not_to_contain_text(A)
    sign_in(page, "a-wrong-token")
    expect(page.get_by_role("alert")).to_have_text("The controller does not accept this token.")
    sign_in(page, SECRETS["client"])
    expect(page.get_by_role("alert")).to_contain_text(
        "is of the plane client, and this route needs one of the plane admin"
    )
    sign_in(page, SECRETS["admin"])
    expect(page.locator("#workers tbody tr")).to_have_count(1)
    page.goto(f"{controller.url}/#worker={A}")
    page.get_by_role("button", name="Drain…").click()
    page.locator("#ask").get_by_label("Reason").fill("new driver")
    page.locator("#ask").get_by_role("button", name="Drain").click()
    expect(page.locator("#details .lead")).to_contain_text("Reason: new driver")
    expect(page.locator("#details .events")).to_contain_text("drains by token admin from 127.0.0.1: new driver")
    stored = page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie, location.href])")
    assert SECRETS["admin"] not in stored + page.content() + " ".join(sent)
    page.get_by_role("button", name="Close").click()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Admin token")).to_be_visible()
    expect(page.locator("#page")).not_to_contain_text("/a")
    page.reload()
    expect(page.get_by_label("Admin token")).to_be_visible()
    assert SECRETS["admin"] not in controller.log


def test_a_revoked_token_ends_the_page(serve: Serve, open_page: Open) -> None:
    controller = serve("--poll-interval", "0", **ENVIRONMENT)
    created = send(controller, "/create_token", {"plane": "admin", "name": "guest"}, SECRETS["admin"])
    assert isinstance(created, dict)
    page = open_page(controller.url)
    sign_in(page, created["token"])
    expect(page.locator("#workers")).to_be_visible()
    send(controller, "/revoke_token", {"name": "guest"}, SECRETS["admin"])
    expect(page.get_by_role("alert")).to_have_text("The controller does not accept this token.")
    expect(page.locator("#workers")).to_have_count(0)


@pytest.mark.slow
def test_a_token_that_is_no_header_is_not_sent(serve: Serve, open_page: Open) -> None:
    controller = serve(**ENVIRONMENT)
    page = open_page(controller.url)
    for secret in ("two words", "schlüssel", "\u202e"):
        sign_in(page, secret)
        assert page.get_by_label("Admin token").evaluate("element => element.validity.patternMismatch")
    expect(page.get_by_role("alert")).to_have_count(0)


@pytest.mark.slow
def test_an_address_without_tokens_sees_the_page(serve: Serve, open_page: Open) -> None:
    controller = serve(
        "--admin-networks", "127.0.0.0/8", CONTROLLER_CLIENT_TOKENS=ENVIRONMENT["CONTROLLER_CLIENT_TOKENS"]
    )
    page = open_page(controller.url)
    expect(page.locator("#workers")).to_be_visible()
    assert call(f"{controller.url}/overview", method="GET")["workers"] == []
