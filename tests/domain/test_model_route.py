"""Routes of model names: what is allowed, the order of the candidates, and the shares of the targets."""

import contextlib
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.domain.errors import InvalidInput
from controller.domain.model_route import MAX_FALLBACKS, MAX_TARGETS, MAX_WEIGHT, ModelRoute
from controller.domain.worker import MAX_MODEL_NAME_LENGTH

DRAWS = 10_000
names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=[*map(chr, range(32)), "\x7f"]), min_size=1)
weights = st.integers(0, MAX_WEIGHT)
targets = st.dictionaries(names, weights, min_size=1, max_size=MAX_TARGETS).filter(lambda found: any(found.values()))
routes = st.builds(ModelRoute, targets, st.lists(names, max_size=MAX_FALLBACKS, unique=True).map(tuple))
uniform = st.floats(0, 1, exclude_max=True)


@given(routes)
def test_route_is_the_same_after_a_round_trip(route: ModelRoute) -> None:
    decoded = ModelRoute.decode(route.encode())
    assert decoded == route
    assert list(decoded.targets) == list(route.targets), "in the same order"


@given(routes, st.lists(uniform, min_size=MAX_TARGETS, max_size=MAX_TARGETS))
def test_candidates_are_the_targets_with_a_weight_and_then_the_fallbacks(route: ModelRoute, drawn: list[float]) -> None:
    candidates = route.candidates(iter(drawn).__next__)
    positive = {name for name, weight in route.targets.items() if weight}
    assert set(candidates[: len(positive)]) == positive
    assert list(candidates[len(positive) :]) == [name for name in route.fallbacks if name not in positive]
    assert len(set(candidates)) == len(candidates)
    assert set(candidates) == set(route.models)


def shares(route: ModelRoute, place: int, dead: str = "") -> Counter[str]:
    """Return how often each model is at a place of the candidates, without `dead`. The generator has a fixed seed."""
    draw = random.Random(18).random
    lists = ([name for name in route.candidates(draw) if name != dead] for _ in range(DRAWS))
    return Counter(candidates[place] for candidates in lists)


def assert_split(found: Counter[str], expected: dict[str, float]) -> None:
    """Compare counts with probabilities. A count is 5 standard deviations off in one of two million tries."""
    for name, probability in expected.items():
        deviation = (DRAWS * probability * (1 - probability)) ** 0.5
        assert abs(found[name] - DRAWS * probability) <= 5 * deviation, (name, found)
    assert set(found) <= set(expected)


def test_requests_are_split_by_the_weights() -> None:
    route = ModelRoute({"a": 90, "b": 9, "c": 1, "off": 0}, ("f",))
    assert_split(shares(route, 0), {"a": 0.9, "b": 0.09, "c": 0.01})
    assert_split(shares(ModelRoute({"a": MAX_WEIGHT, "b": MAX_WEIGHT}), 0), {"a": 0.5, "b": 0.5})
    assert_split(shares(ModelRoute(dict.fromkeys("abcdefghijklmnop", 7)), 0), dict.fromkeys("abcdefghijklmnop", 1 / 16))


def test_share_of_a_target_without_workers_goes_to_the_others_by_their_weights() -> None:
    route = ModelRoute({"a": 60, "b": 30, "c": 10})
    assert_split(shares(route, 0, dead="a"), {"b": 0.75, "c": 0.25})
    assert_split(shares(route, 0, dead="c"), {"a": 2 / 3, "b": 1 / 3})


@given(uniform)
def test_target_without_a_weight_is_tried_only_as_a_fallback(drawn: float) -> None:
    assert ModelRoute({"a": 1, "off": 0}).candidates(lambda: drawn) == ("a",)
    assert ModelRoute({"a": 1, "off": 0}, ("off", "a")).candidates(lambda: drawn) == ("a", "off")


@pytest.mark.parametrize(
    ("targets", "fallbacks", "message"),
    [
        ({}, (), "targets: must name 1 to 16 models"),
        (dict.fromkeys(map(str, range(MAX_TARGETS + 1)), 1), (), "targets: must name 1 to 16 models"),
        ({"a": 0, "b": 0}, (), "targets: need a weight above 0"),
        ({"a": -1}, (), "targets: each weight must be a whole number from 0 to 1000000"),
        ({"a": MAX_WEIGHT + 1}, (), "targets: each weight"),
        ({"a": 1.0}, (), "targets: each weight"),
        ({"a": True}, (), "targets: each weight"),
        ({"a": "1"}, (), "targets: each weight"),
        ({"": 1}, (), "targets: each name must have 1 to 512 characters"),
        ({"a\n": 1}, (), "targets: each name"),
        ({"\x1da": 1}, (), "targets: each name"),
        ({"a": 1}, ("x" * (MAX_MODEL_NAME_LENGTH + 1),), "fallbacks: each name"),
        ({"a": 1}, ("\ud800",), "fallbacks: each name"),
        ({"a": 1}, ("b", "b"), "fallbacks: must be at most 16 different models"),
        ({"a": 1}, tuple(map(str, range(MAX_FALLBACKS + 1))), "fallbacks: must be at most 16 different models"),
    ],
)
def test_wrong_route_is_refused(targets: dict[str, int], fallbacks: tuple[str, ...], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        ModelRoute(targets, fallbacks)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{",
        "[" * 100_000,
        '{"targets": {"a": 1}}',
        '{"targets": ["a"], "fallbacks": []}',
        '{"targets": {"a": 1}, "fallbacks": "b"}',
        '{"targets": {"a": 1}, "fallbacks": [1]}',
        '{"targets": {"a": 1}, "fallbacks": [["b"]]}',
        '{"targets": {"a": null}, "fallbacks": []}',
        '{"targets": {"a": 0}, "fallbacks": []}',
        '{"targets": {"a": NaN}, "fallbacks": []}',
    ],
)
def test_text_that_is_no_route_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        ModelRoute.decode(text)


@given(st.text() | st.dictionaries(st.sampled_from(["targets", "fallbacks"]), st.integers() | st.text()).map(str))
def test_any_text_is_a_route_or_refused(text: str) -> None:
    with contextlib.suppress(InvalidInput):
        assert ModelRoute.decode(text).models


def test_fields_of_a_later_version_are_ignored() -> None:
    assert ModelRoute.decode('{"targets":{"a":1},"fallbacks":[],"sticky":true}') == ModelRoute({"a": 1})


def test_text_of_a_route_is_for_people() -> None:
    assert str(ModelRoute({"a": 90, "b": 10}, ("c", "d"))) == "targets a=90, b=10; fallbacks c, d"
    assert str(ModelRoute({"a": 1})) == "targets a=1"
