"""Canonical worker names, and the validation of names and statuses."""

import math
from dataclasses import replace
from typing import Any

import pytest

from controller.domain.errors import InvalidInput
from controller.domain.worker import Worker, WorkerStatus, WorkerStatusTotal, total_status, worker_name


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("http://localhost:21002", "http://localhost:21002"),
        ("http://localhost:21002/", "http://localhost:21002"),
        ("HTTP://LocalHost:21002/Path/", "http://localhost:21002/Path"),
        ("https://gpu-7.example.com", "https://gpu-7.example.com"),
        ("http://10.0.0.5:80", "http://10.0.0.5"),
        ("http://10.0.0.5:443", "http://10.0.0.5:443"),
        ("https://h:443/x", "https://h/x"),
        ("https://h:80", "https://h:80"),
        ("http://h:", "http://h"),
        ("http://h:65535", "http://h:65535"),
        ("http://h.", "http://h"),
        ("http://a.Example.:21002", "http://a.example:21002"),
        ("http://h//", "http://h"),
        ("http://" + "a" * 63 + ".b", "http://" + "a" * 63 + ".b"),
        ("http://h/" + "x" * 1015, "http://h/" + "x" * 1015),
        ("http://[2001:DB8::1]:21002", "http://[2001:db8::1]:21002"),
        ("http://[2001:0db8:0:0:0:0:0:1]:80", "http://[2001:db8::1]"),
        ("http://[0:0:0:0:0:0:0:1]:21002", "http://[::1]:21002"),
        ("http://[::FFFF:7f00:1]:21002", "http://[::ffff:127.0.0.1]:21002"),
        # tests/security says whether these are contacted.
        ("http://169.254.1.5:21002", "http://169.254.1.5:21002"),
        ("http://[FE80::1]", "http://[fe80::1]"),
        ("http://[64:ff9b::169.254.1.5]", "http://[64:ff9b::a9fe:105]"),
        ("http://a_b.c/d%20e;f=1,2!$&'()*+@:", "http://a_b.c/d%20e;f=1,2!$&'()*+@:"),
        ("http://h/gpu/../gpu/a", "http://h/gpu/a"),
        ("http://h/gpu/%2E%2e/gpu/./%2E/a/", "http://h/gpu/a"),
        ("http://h/a/b/..", "http://h/a"),
        ("http://h/..", "http://h"),
        ("http://h/../../a", "http://h/a"),
        ("http://h/./", "http://h"),
        ("http://h/a//../b", "http://h/a/b"),
        ("http://h/a//b", "http://h/a//b"),
        ("http://h/...", "http://h/..."),
        ("http://h/.a/..b/c.", "http://h/.a/..b/c."),
        ("http://h/%41%7e%2D%5f%30", "http://h/A~-_0"),
        ("http://h/%e9%2f%2F%21%00", "http://h/%E9%2F%2F%21%00"),
        ("http://h/%2541%252e%252E/x", "http://h/%2541%252e%252E/x"),
        ("http://h/%2e%2E%2f", "http://h/..%2F"),
    ],
)
def test_worker_name_returns_the_canonical_form(written: str, canonical: str) -> None:
    assert worker_name(written) == canonical
    assert worker_name(canonical) == canonical


@pytest.mark.parametrize(
    "text",
    [
        "",
        "localhost:21002",
        "//localhost",
        "ftp://h",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "http://",
        "http:///path",
        "http://:80",
        "http://h:0",
        "http://h:65536",
        "http://h:x",
        "http://user@h",
        "http://user:password@h",
        "http://@h",
        "http://h?x=1",
        "http://h/?",
        "http://h/%",
        "http://h/%4",
        "http://h/%zz",
        "http://h/a%%20",
        "http://h#f",
        "http://h/#",
        "http://h\r\nHost: evil",
        "http://h\n",
        "http://h\t",
        "http://h\0",
        "http://h h",
        "http://{h}",
        "http://h}:models",
        "http://h\\x",
        "http://h/<b>",
        'http://h/"',
        "http://bücher.example",
        "http://h/ü",
        "http://a,b",
        "http://a..b:1",
        "http://.",
        "http://.a",
        "http://" + "a" * 64,
        "http://" + "a." * 127 + "b",
        "http://[::1]evil:80",
        "http://[::1][::1]",
        "http://h:1:2",
        "http://h:+1",
        "http://h:080",
        "http://-",
        "http://a.-b",
        "http://[v1.x]:1",
        "http://[::1",
        "http://[x]",
        "http://[fe80::1%25eth0]",
        "http://[fe80::1%eth0]",
        "http://2852039166",
        "http://0xa9fea9fe",
        "http://169.254.0251.0376",
        "http://1.2.3.4.5",
        "http://h/" + "x" * 1016,
    ],
)
def test_worker_name_rejects_invalid_text(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"^worker_name: "):
        worker_name(text)


def test_status_accepts_values_at_their_bounds() -> None:
    models = tuple(f"{i:0512d}" for i in range(512))
    for speed, queue_length, capacity in ((1e-6, 0, 1), (1e9, 10**9, 10**6)):
        status = WorkerStatus(models, speed, queue_length, capacity)
        assert (status.model_names, status.speed, status.queue_length) == (models, speed, queue_length)
        assert status.capacity == capacity


def test_status_without_models_may_have_speed_zero() -> None:
    assert WorkerStatus((), 0, 0).speed == 0
    assert WorkerStatus((), 0.0, 3).queue_length == 3


def test_status_removes_repeated_models_and_keeps_their_order() -> None:
    assert WorkerStatus(("b", "a", "b"), 1, 0).model_names == ("b", "a")


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        *(({"speed": speed}, "speed") for speed in (0, -1, 1e-7, 1e10, math.inf, math.nan, 10**400)),
        *(({"queue_length": queue_length}, "queue_length") for queue_length in (-1, 10**9 + 1)),
        *(({"capacity": capacity}, "capacity") for capacity in (0, -1, 10**6 + 1)),
        *(({"model_names": (name,)}, "model_names") for name in ("", "x" * 513, "a\nb", "\0", "\x7f")),
        ({"model_names": tuple(map(str, range(513)))}, "model_names"),
    ],
)
def test_status_rejects_values_out_of_bounds(changed: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput, match=f"^{field}: "):
        WorkerStatus(**{"model_names": ("m",), "speed": 1, "queue_length": 0, **changed})


def test_total_status_counts_only_the_queue_of_a_draining_worker() -> None:
    """A parent must not send more requests than the other workers can process."""
    draining_worker, serving_worker = (
        Worker(name, WorkerStatus((model,), speed, queue), True, False, 1, 0.0, 90.0, draining=draining)
        for name, model, speed, queue, draining in (("a", "m", 4, 3, True), ("b", "n", 1, 2, False))
    )
    assert total_status([draining_worker, serving_worker]) == WorkerStatusTotal(("n",), 1, 5)


def test_total_status_adds_up_the_workers() -> None:
    def worker(status: WorkerStatus) -> Worker:
        return Worker("http://w", status, True, False, 1, 0.0, 90.0)

    one, two = WorkerStatus(("b", "a"), 1, 2), WorkerStatus(("c", "a"), 2.5, 0)
    assert total_status([worker(one), worker(two)]) == WorkerStatusTotal(("a", "b", "c"), 3.5, 2)
    assert total_status([]) == WorkerStatusTotal((), 0, 0)


@pytest.mark.parametrize(
    ("draining", "reported", "booked", "leased", "drained"),
    [
        (True, 0, 0, 0, True),
        (True, 1, 0, 0, False),
        (True, 0, 1, 0, False),
        (True, 0, 0, 1, False),
        (False, 0, 0, 0, False),
    ],
)
def test_worker_is_drained_when_none_of_its_counts_shows_a_request(
    draining: bool, reported: int, booked: int, leased: int, drained: bool
) -> None:
    known = Worker("a", WorkerStatus(("m",), 1, 0), True, False, 1, 0.0, 90.0, draining=draining)
    assert replace(known, reported=reported, booked=booked, leased=leased).drained == drained
