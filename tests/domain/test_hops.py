"""The hop list of a request through controllers of controllers."""

import pytest

from controller.domain.errors import InvalidInput, LoopDetected
from controller.domain.hops import MAX_HOPS, append_hop


def test_each_cluster_appends_itself() -> None:
    assert append_hop("", "a") == "a"
    assert append_hop("a,b", "c") == "a,b,c"


def test_a_cluster_appears_once() -> None:
    with pytest.raises(LoopDetected, match="came back"):
        append_hop("a,b,c", "b")
    assert append_hop("ab", "a") == "ab,a", "names are compared as a whole"


def test_the_number_of_hops_is_limited() -> None:
    hops = ""
    for i in range(MAX_HOPS):
        hops = append_hop(hops, str(i))
    with pytest.raises(LoopDetected, match="8 clusters"):
        append_hop(hops, "one too many")


@pytest.mark.parametrize("hops", [",", "a,", "a b", "a\n", "ü", "a" * 65, ",".join("a" * 65)])
def test_invalid_hop_lists_are_rejected(hops: str) -> None:
    with pytest.raises(InvalidInput):
        append_hop(hops, "own")
