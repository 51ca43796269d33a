"""The ids of requests."""

import re

import pytest

from controller.domain.request_ids import given_id, new_id

VALID = [b"a", b"7", b"f81d4fae-7dec-11d0-a765-00a0c91e6bf6", b"req/1:2;a=b", b"[x]", b"x" * 128, b"<script>"]
INVALID = [
    b"",
    b"a b",
    b" a",
    b'a"b',
    b"a'b",
    b"a`b",
    b"a\\b",
    b"a\nb",
    b"a\n",
    b"a\x1b[2J",
    b"a\x7f",
    b"\xc3\xa9",
    b"x" * 129,
]


@pytest.mark.parametrize("value", VALID)
def test_a_valid_id_is_taken(value: bytes) -> None:
    assert given_id([(b"host", b"x"), (b"x-request-id", value), (b"accept", b"*/*")]) == value.decode()


@pytest.mark.parametrize("value", INVALID)
def test_an_invalid_id_counts_as_none(value: bytes) -> None:
    assert given_id([(b"x-request-id", value)]) == ""


def test_two_ids_count_as_none() -> None:
    assert given_id([(b"x-request-id", b"a"), (b"x-request-id", b"a")]) == ""
    assert given_id([]) == ""


def test_new_ids_are_valid_and_differ() -> None:
    ids = {new_id() for _ in range(1_000)}
    assert len(ids) == 1_000
    assert all(re.fullmatch("[0-9a-f]{32}", each) and given_id([(b"x-request-id", each.encode())]) for each in ids)
