"""The client of an agent for the controllers of a cluster."""

import pytest

from controller.domain.errors import ControllerBusy, ControllerRefused, ControllerUnreachable
from controller.security.parent_addresses import parse_parent
from controller.upstream.controllers import Controllers
from tests.support.engines import DISCONNECTS, HANGS, Answer, answer_server

SECRET = "s3cret-t0ken"
OK = Answer(b'{"exist":true}')


@pytest.mark.parametrize("failure", [DISCONNECTS, HANGS, Answer(b"", 503), Answer(b"", 429), Answer(b"<html>")])
async def test_the_next_controller_is_used_and_stays_in_use(failure: Answer) -> None:
    async with answer_server({"/x": failure}) as first, answer_server({"/x": OK}) as second:
        controllers = Controllers([parse_parent(first.address), parse_parent(second.address)], 1.0)
        assert [await controllers.post("/x", {}) for _ in range(3)] == [{"exist": True}] * 3
        assert (set(first.requests), len(second.requests)) == ({"/x"}, 3)
        asked = len(first.requests)
        first.answers["/x"], second.answers["/x"] = OK, failure
        assert await controllers.post("/x", {}) == {"exist": True}
        assert len(first.requests) > asked
        await controllers.close()


async def test_a_refusal_is_final_and_has_no_credentials() -> None:
    refusal = Answer(b'{"error":{"code":"forbidden","message":"no ' + SECRET.encode() + b'\\n"}}', 403)
    async with answer_server({"/x": refusal}) as first, answer_server({"/x": OK}) as second:
        address = parse_parent(first.address.replace("//", f"//gpu1:{SECRET}@"), "--controller")
        controllers = Controllers([address, parse_parent(second.address)], 60.0)
        with pytest.raises(ControllerRefused) as caught:
            await controllers.post("/x", {})
        assert str(caught.value) == f"{first.address}/x returned status 403: no ***"
        assert b"Authorization: Basic " in first.heads[0]
        assert second.requests == []
        await controllers.close()


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (Answer(b'{"error":{"code":"store_unavailable","message":"Redis is away."}}', 503), ControllerBusy),
        (Answer(b"store_unavailable: Redis is away.", 503, ("X-Controller-Error: store_unavailable",)), ControllerBusy),
        (Answer(b"<html>No server is available.</html>", 503), ControllerUnreachable),
        (Answer(b'{"error":{"code":503,"message":"no healthy upstream"}}', 503), ControllerUnreachable),
        (Answer(b'{"error":{"code":"internal_error","message":"a bug"}}', 500), ControllerUnreachable),
    ],
)
async def test_a_controller_that_cannot_serve_now_differs_from_a_load_balancer_without_one(
    answer: Answer, kind: type[Exception]
) -> None:
    async with answer_server({"/x": answer}) as first:
        controllers = Controllers([parse_parent(first.address), parse_parent("http://127.0.0.1:1")], 60.0)
        with pytest.raises(ControllerUnreachable, match=r"returned status 50.* cannot be reached") as caught:
            await controllers.post("/x", {})
        assert type(caught.value) is kind
        await controllers.close()


async def test_no_controller_responds() -> None:
    controllers = Controllers([parse_parent("http://127.0.0.1:1"), parse_parent("http://127.0.0.2:1")], 60.0)
    with pytest.raises(ControllerUnreachable, match=r"127.0.0.1:1/x cannot be reached.* http://127.0.0.2:1/x cannot"):
        await controllers.post("/x", {})
    await controllers.close()
