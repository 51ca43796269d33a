"""No command prints control characters that it got from the network."""

import json
import re
from typing import Any

import pytest

from tests.cli.conftest import FakeController
from tests.cli.samples import candidate, diagnosis, listed, replica

# Clears the screen, sets the title, moves the cursor, rings, reverses the order of the text, adds a line.
EVIL = "\x1b[2J\x1b]0;title\x07\x9b1A\r\b\u202eevil\u2028\n\x00\U000e0041"
WORKER = f"http://h:1/{EVIL}"
NOT_PRINTABLE = re.compile(r"[^\n -\uffff\U00010000-\U000dffff]|[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")

COMMANDS = [
    ["workers"],
    ["workers", "--sort", "stalled", "--model", EVIL],
    ["worker", "h:1/*"],
    ["models"],
    ["replicas"],
    ["version"],
    ["top"],
    ["explain", "m"],
    ["dispatch", "m", "--repeat", "2"],
    ["dispatch", "m", "--no-lease"],
    ["doctor"],
    ["register", "http://h:1", "--model", "m"],
    ["drain", "h:1/*"],
    ["drain", "*", "--wait"],
    ["drain", "h:?/*", "*"],
    ["resume", "*"],
    ["remove", "*"],
    ["refresh"],
    ["capacity", "list"],
    ["route", "list"],
    ["route", "set", "n", "--to", "m=1,n=2", "--fallback", "o"],
    ["route", "remove", "n"],
    ["token", "list"],
    ["token", "create", "--plane", "admin", "--name", "n"],
]
WITHOUT_JSON = ("top", "register", "drain", "resume", "remove", "refresh", "route set", "route remove", "token create")
WITH_JSON = [command for command in COMMANDS if not " ".join(command).startswith(WITHOUT_JSON)]


def hostile() -> dict[str, Any]:
    """Return responses with EVIL in each text."""
    facts = diagnosis(product=EVIL, version=EVIL, role=EVIL, eviction_policy=EVIL, snapshots=EVIL)
    facts["store"].update(unavailable=EVIL, unknown={EVIL: EVIL})
    event = {"id": "1-1", "time": 1_790_000_000.5, "kind": EVIL, "worker": WORKER, "reason": EVIL, EVIL: EVIL}
    return {
        "/workers": {
            "workers": [
                listed(WORKER, EVIL, registered_by=EVIL, draining=True, drained=True),
                listed("http://h:1", EVIL, failing=EVIL, stalled_for=100.0),
            ],
            "missing_models": [{"model": f"{EVIL}2", "since": 1_790_000_000.5}],
        },
        "/replicas": {"replicas": [replica(EVIL, EVIL, **{EVIL: EVIL}), replica("b", "2", **{EVIL: 1})]},
        "/explain": {
            "model": EVIL,
            "method": EVIL,
            "chosen": WORKER,
            "workers": 2,
            "candidates": [candidate(WORKER, EVIL)],
            "excluded": [{"worker_name": WORKER, "reason": EVIL}],
        },
        "/diagnosis": facts,
        "/events": json.dumps(event) + "\n",
        "/capacities": {"capacities": [{"model": EVIL, "capacity": 1}, {"worker_name": WORKER, "capacity": 2}]},
        "/tokens": {"tokens": [{"plane": "worker", "name": EVIL, "source": EVIL, "workers": [EVIL], "models": [EVIL]}]},
        "/model_routes": {
            "model_routes": [
                {"model": EVIL, "targets": {EVIL: 1, WORKER: 2}, "fallbacks": [EVIL], "unserved": [EVIL]},
            ]
        },
        "/set_model_route": {"unserved": ["m", EVIL]},
        "/remove_model_route": {"exist": True},
        "/get_worker_address": {"address": WORKER, "lease": EVIL},
        "/release_worker": {"released": True},
        "/create_token": {"token": EVIL},
        "/register_worker": "null",
        "/refresh_all_workers": "null",
        "/drain_worker": {"exist": True},
        "/resume_worker": {"exist": False},
        "/remove_worker": {"exist": True},
    }


def check(output: str) -> None:
    found = NOT_PRINTABLE.search(output)
    assert found is None, output[max(0, found.start() - 60) : found.end() + 60].encode("unicode_escape")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_control_characters_are_not_printed(fake: FakeController, command: list[str]) -> None:
    fake.responses = hostile()
    for flags in ([], ["--yes"]) if command[0] in ("drain", "resume", "remove") else ([],):
        ran = fake.run(*command, *flags)
        assert ran.exception is None or isinstance(ran.exception, SystemExit), ran.exception
        check(ran.output)


@pytest.mark.parametrize("command", WITH_JSON, ids=" ".join)
def test_json_is_escaped(fake: FakeController, command: list[str]) -> None:
    fake.responses = hostile()
    ran = fake.run(*command, "--json")
    check(ran.output)
    assert json.loads(ran.stdout)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("status", [400, 404, 500])
def test_hostile_errors_are_one_line(fake: FakeController, command: list[str], status: int) -> None:
    error = {"error": {"code": EVIL, "message": f"no {EVIL}"}}
    fake.responses = dict.fromkeys(hostile(), (status, error))
    ran = fake.run(*command)
    assert ran.exit_code == (0 if command == ["version"] else 1)
    check(ran.output)
    assert ran.stderr.count("\n") == 1
