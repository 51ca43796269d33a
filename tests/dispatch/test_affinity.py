"""The affinity of requests by the settings, and what the dispatcher makes of it."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from controller.dispatch.affinity_rules import AffinityRules
from controller.domain.affinity import Affinity, prefix_keys, prompt_of, session_keys
from controller.domain.engine import Engine, Protocol
from controller.domain.errors import SettingsError
from controller.settings import Settings
from controller.store.registry import Registry
from tests.conftest import Open
from tests.support.outage import Link
from tests.support.samples import A, B, worker

BODY: dict[str, object] = {
    "model": "m",
    "user": "u",
    "messages": [{"role": "user", "content": "What is the weather like? " * 20}],
}
PREFIX = prefix_keys("m", prompt_of(BODY))


def find(text: str, headers: Mapping[str, str], body: object = BODY, **settings: object) -> tuple[str, ...]:
    found = AffinityRules.of(Settings(affinity=text, **settings)).find("m", headers, body)  # type: ignore[arg-type]
    return found.keys if found else ()


def test_kinds_of_models() -> None:
    assert len(PREFIX) == 2
    assert AffinityRules.of(Settings()).find("m", {"x-session-id": "s"}, BODY) is None
    assert find("session", {"x-session-id": "s"}) == session_keys("m", "s")
    assert find("session", {}) == session_keys("m", "u")
    assert find("session", {}, {**BODY, "prompt_cache_key": "k"}) == session_keys("m", "k")
    assert find("prefix", {"x-session-id": "s"}) == PREFIX
    assert find("both", {"x-session-id": "s"}) == session_keys("m", "s") + PREFIX
    assert find("off,m=prefix", {}) == find("m=prefix", {}) == PREFIX
    assert find("prefix, m=off", {}) == find("n=prefix", {}) == ()


def test_names_of_the_header_and_of_the_fields() -> None:
    assert find("session", {"x-chat": "s"}, affinity_header="X-Chat") == session_keys("m", "s")
    assert find("session", {}, {"thread": "t"}, affinity_fields="thread") == session_keys("m", "t")
    assert find("session", {}, affinity_fields="") == ()


@pytest.mark.parametrize("body", [None, 5, [], "text", {}, {"messages": 5}, {"user": 5}])
def test_other_bodies_have_no_affinity_except_by_the_header(body: object) -> None:
    assert find("both", {}, body) == ()
    assert find("both", {"x-session-id": "s"}, body) == session_keys("m", "s")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"affinity": "on"}, "'on'"),
        ({"affinity": ""}, "''"),
        ({"affinity": "prefix,off"}, "two values for 'all models'"),
        ({"affinity": "m=off,m=both"}, "two values for 'm'"),
        ({"affinity": "m=on"}, "'m=on'"),
        ({"affinity": "m\x01=off"}, "This part is wrong"),
        ({"affinity_header": "X Session"}, "--affinity-header"),
        ({"affinity_fields": "a,b c"}, "--affinity-fields"),
        ({"affinity_ttl": 0.5}, "--affinity-ttl"),
        ({"affinity_ttl": 86_401}, "--affinity-ttl"),
        ({"max_affinity_keys": 999}, "--max-affinity-keys"),
        ({"max_affinity_keys": 10_000_001}, "--max-affinity-keys"),
    ],
)
def test_wrong_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Settings(**settings)  # type: ignore[arg-type]


async def test_requests_with_the_same_keys_go_to_one_worker_and_are_counted(registry: Registry, replica: Open) -> None:
    opened = replica(registry)
    for name in (A, B):
        await registry.register(replace(worker(name), engine=Engine("vllm")))
    dispatcher = opened.dispatcher
    affinity = Affinity(("session",))
    chosen = [
        (await dispatcher.dispatch_with_lease("m", 60.0, "", Protocol.OPENAI, affinity)).value.address for _ in range(3)
    ]
    assert chosen == [A, A, A]
    assert (await dispatcher.dispatch_with_lease("m", 60.0, "", Protocol.OPENAI)).value.address == B
    text = opened.metrics.render().decode()
    assert 'controller_dispatch_affinity_total{model="m",outcome="new"} 1.0' in text
    assert 'controller_dispatch_affinity_total{model="m",outcome="hit"} 2.0' in text
    assert 'controller_dispatches_total{method="shortest_queue",model="m",outcome="chosen"} 4.0' in text


async def test_degraded_mode_ignores_affinity(registry: Registry, replica: Open, link: Link) -> None:
    opened = replica(registry)
    for name in (A, B):
        await registry.register(worker(name))
    await opened.snapshots.take_now()
    dispatcher = opened.dispatcher
    affinity = Affinity(("session",))
    assert (await dispatcher.dispatch_with_lease("m", affinity=affinity)).value.address == A
    with link.broken():
        chosen = {(await dispatcher.dispatch_with_lease("m", affinity=affinity)).value.address for _ in range(4)}
    assert chosen == {A, B}


@pytest.mark.parametrize("piece", [b"[],", b"{},", b"1,"])
def test_body_of_millions_of_values_is_not_decoded(piece: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding it would block the process for seconds, and take many times the memory of the body."""
    rules = AffinityRules.of(Settings(affinity="both"))
    body = b'{"model":"m","user":"u","messages":[' + piece * 1_000_000 + b"0]}"
    monkeypatch.setattr("msgspec.json.decode", None)  # calling it fails
    assert rules.find_in("m", {}, body) is None
    session = {"x-session-id": "s"}
    assert rules.find_in("m", session, body) == Affinity(session_keys("m", "s"))
    assert rules.find_in("m", session, b'"' + b"x" * 9_000_000 + b'"') == Affinity(session_keys("m", "s"))
