"""`controller route`."""

import pytest

from tests.cli.conftest import FakeController


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing option '--to'"),
        (["--to", "a=x"], "'a=x' is not a model with a weight such as qwen-7b=90"),
        (["--to", "a=-1"], "'a=-1' is not a model with a weight"),
        (["--to", "a=0.5"], "'a=0.5' is not a model with a weight"),
        (["--to", "a="], "'a=' is not a model with a weight"),
        (["--to", "a=\u0663"], "is not a model with a weight"),
        (["--to", "a,,b"], "'' is not a model with a weight"),
        (["--to", "=5"], "'=5' is not a model with a weight"),
        (["--to", "a", "--to", "b,a=3"], "'a' is there twice"),
        (["--to", "a", "--fallback", "b,"], "A name is empty"),
    ],
)
def test_wrong_arguments_of_a_route_are_refused_before_the_call(
    fake: FakeController, arguments: list[str], message: str
) -> None:
    ran = fake.run("route", "set", "gpt", *arguments, COLUMNS="200")
    assert ran.exit_code == 2
    assert message in ran.stderr
    assert fake.requests == []


def test_route_is_sent_as_it_was_written(fake: FakeController) -> None:
    fake.responses = {"/set_model_route": {"unserved": []}}
    ran = fake.run("route", "set", "gpt", "--to", "b=2, a", "--to", "c=d=0", "--fallback", "f", "--fallback", "g,a")
    assert (ran.exit_code, ran.stderr) == (0, "")
    assert (
        ran.stdout
        == "Requests of gpt go to b=2, a=1, c=d=0, with the fallbacks f, g, a. All replicas use this route now.\n"
    )
    [body] = fake.sent("/set_model_route")
    assert body == {"model": "gpt", "targets": {"b": 2, "a": 1, "c=d": 0}, "fallbacks": ["f", "g", "a"]}
    assert list(body["targets"]) == ["b", "a", "c=d"]
