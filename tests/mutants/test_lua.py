"""Test which changes are made to Lua scripts."""

from pathlib import PurePosixPath

import pytest
from lupa.lua51 import LuaRuntime

from controller.store import scripts
from tests.mutants import lua

PATH = PurePosixPath("lua/x.lua")


def changes(text: str, kind: str = "") -> list[str]:
    return [mutant.apply(text) for mutant in lua.mutants(PATH, text) if kind in mutant.kind]


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("return a < b", "<", ["return a <= b", "return a >= b"]),
        ("return a == b", "==", ["return a ~= b"]),
        ("return a and b", "and", ["return a or b"]),
        ("return not a", "not", ["return a"]),
        ("return a - -b", "- to", ["return a + -b"]),
        ("return 3", "3", ["return 4", "return 2", "return 0"]),
        ("return 1", "1", ["return 2", "return 0"]),
        ("return 0.5", "0.5", ["return 1.5", "return -0.5", "return 0.0"]),
        ("return true", "", ["return false"]),
        ("return math.max(a, a)", "", ["return math.min(a, a)"]),
        ("if a or b then c = 1 end", "negated", ["if not (a or b) then c = 1 end"]),
        ("while a do c = b end", "negated", ["while not (a) do c = b end"]),
        ("f(a, g(b, c))", "arguments", ["f(g(b, c), a)", "f(a, g(c, b))"]),
        ('redis.call("SET", a, b)', "arguments", ['redis.call("SET", b, a)']),
        ('key("worker", a)', "arguments", []),
        ("local function f(a, b) end", "arguments", []),
        ("f(a, function() return b, c end)", "arguments", []),
        ('a = b\nredis.call("DEL", a)\nreturn a', "dropped", ['\nredis.call("DEL", a)\nreturn a', "a = b\n\nreturn a"]),
        ('local a = redis.call("DEL", b)', "dropped", []),
        ("a.b[c] = {\n d\n}", "dropped", []),
        ("if a then\n return b, c\nend\nreturn d", "return", ["if a then\n \nend\nreturn d"]),
        ("for a in b do\n if a then break end\nend", "break", ["for a in b do\n if a then  end\nend"]),
        ("local f = function() return a end", "return", []),
        ("--[[ a < 1 ]]\n-- a == b\nreturn \"c < 2\", 'd or e'", "", []),
    ],
)
def test_rules(text: str, kind: str, expected: list[str]) -> None:
    assert changes(text, kind) == expected


@pytest.mark.parametrize("name", [*scripts.script_files(), *scripts.include_files()])
def test_mutants_compile(name: str) -> None:
    file = {**scripts.script_files(), **scripts.include_files()}[name]
    text = file.read_text(encoding="utf-8")
    for mutant in lua.mutants(PATH, text):
        assert mutant.apply(text) != text
        LuaRuntime().compile(mutant.apply(text))


def test_place_and_diff() -> None:
    text = "local a = b\nif a then\n  f()\nend\n"
    [mutant] = [mutant for mutant in lua.mutants(PATH, text) if mutant.kind == "call dropped"]
    assert str(mutant) == "lua/x.lua:3:3 call dropped"
    assert mutant.diff(text) == "    -  f()\n    +  "
