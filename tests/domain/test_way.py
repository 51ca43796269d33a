"""The way of a request through controllers of controllers."""

import pytest

from controller.domain.errors import InvalidInput, LoopDetected
from controller.domain.way import MAX_CLUSTERS, passed


def test_each_cluster_adds_itself() -> None:
    assert passed("", "a") == "a"
    assert passed("a,b", "c") == "a,b,c"


def test_nobody_is_passed_twice() -> None:
    with pytest.raises(LoopDetected, match="come back"):
        passed("a,b,c", "b")
    assert passed("ab", "a") == "ab,a", "names are compared as a whole"


def test_no_more_than_so_many_are_passed() -> None:
    way = ""
    for i in range(MAX_CLUSTERS):
        way = passed(way, str(i))
    with pytest.raises(LoopDetected, match="8 clusters"):
        passed(way, "one too many")


@pytest.mark.parametrize("way", [",", "a,", "a b", "a\n", "ü", "a" * 65, ",".join("a" * 65)])
def test_what_is_no_way(way: str) -> None:
    with pytest.raises(InvalidInput):
        passed(way, "own")
