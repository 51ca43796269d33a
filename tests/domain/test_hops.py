"""The hop list: the clusters that a request has passed."""

import pytest

from controller.domain.errors import InvalidInput, LoopDetected
from controller.domain.hops import MAX_HOPS, append_hop, is_hop_list


def test_append_hop_adds_the_cluster_at_the_end() -> None:
    assert append_hop("", "a") == "a"
    assert append_hop("a,b", "c") == "a,b,c"


def test_append_hop_detects_a_cluster_that_is_in_the_list_already() -> None:
    with pytest.raises(LoopDetected, match="came back"):
        append_hop("a,b,c", "b")
    assert append_hop("ab", "a") == "ab,a", "whole names are compared"


def test_append_hop_fails_after_the_maximum_number_of_hops() -> None:
    hops = ""
    for i in range(MAX_HOPS):
        hops = append_hop(hops, str(i))
    with pytest.raises(LoopDetected, match="8 clusters"):
        append_hop(hops, "one too many")


@pytest.mark.parametrize("hops", [",", "a,", "a b", "a\n", "ü", "a" * 65, ",".join("a" * 65)])
def test_append_hop_rejects_an_invalid_list(hops: str) -> None:
    with pytest.raises(InvalidInput):
        append_hop(hops, "own")
    assert not is_hop_list(hops)


def test_an_empty_list_is_not_that_of_a_cluster() -> None:
    assert not is_hop_list("")
    assert is_hop_list("a")
    assert is_hop_list("a,b-_")
