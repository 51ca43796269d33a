"""`controller dispatch`: how requests spread over the workers, and that their leases are released."""

import itertools
import json

from tests.cli.conftest import FakeController

A, B = "http://10.0.0.5:21002", "http://10.0.0.6:21002"


def test_dispatch_shows_the_spread_and_releases_its_leases(fake: FakeController) -> None:
    addresses, numbers = itertools.cycle((A, A, A, B)), itertools.count()
    fake.responses = {
        "/get_worker_address": lambda: {"address": next(addresses), "lease": f"lease-{next(numbers)}"},
        "/release_worker": {"released": True},
    }
    ran = fake.run("dispatch", "m", "--repeat", "8", "--json")
    assert ran.exit_code == 0
    assert len(fake.sent("/get_worker_address")) == 8
    assert fake.sent("/get_worker_address")[0] == {"model": "m", "lease": 300}
    assert sorted(body["lease"] for body in fake.sent("/release_worker")) == sorted(
        f"lease-{number}" for number in range(8)
    )
    value = json.loads(ran.stdout)
    assert (value["requests"], value["without_worker"]) == (8, 0)
    assert value["workers"] == [{"worker_name": A, "requests": 6}, {"worker_name": B, "requests": 2}]
    assert "Released 3 leases: nothing stays booked." in fake.run("dispatch", "m", "--repeat", "3").stdout


def test_dispatch_without_leases_says_what_stays_booked(fake: FakeController) -> None:
    fake.responses = {"/get_worker_address": {"address": A}}
    ran = fake.run("dispatch", "m", "--repeat", "3", "--no-lease")
    assert (ran.exit_code, fake.sent("/get_worker_address")) == (0, [{"model": "m"}] * 3)
    assert "They count less as they age" in ran.stdout
    assert fake.sent("/release_worker") == []


def test_dispatch_that_fails_in_the_middle_releases_what_it_has(fake: FakeController) -> None:
    answers = iter([{"address": A, "lease": "first"}, {"address": B, "lease": "second"}])
    fake.responses = {
        "/get_worker_address": lambda: next(answers, (429, {"error": {"message": "Too many leases."}})),
        "/release_worker": {"released": True},
    }
    ran = fake.run("dispatch", "m", "--repeat", "9")
    assert ran.exit_code == 1
    assert "Too many leases." in ran.stderr
    assert {body["lease"] for body in fake.sent("/release_worker")} == {"first", "second"}


def test_dispatch_of_a_model_without_workers_fails(fake: FakeController) -> None:
    fake.responses = {"/get_worker_address": {"address": "", "lease": ""}}
    ran = fake.run("dispatch", "m", "--repeat", "2")
    assert (ran.exit_code, ran.stdout) == (
        1,
        "2 of 2 requests found no worker. `controller explain m` says why.\n",
    )
