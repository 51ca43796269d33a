"""Test that Python and Lua build the same key names."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from controller.store import keys, scripts
from tests.conftest import Store

NAMES: dict[Callable[..., str], tuple[str, ...]] = {
    keys.namespace: ("{ns}",),
    keys.workers: ("{ns}:workers",),
    keys.models: ("{ns}:models",),
    keys.sequence: ("{ns}:sequence",),
    keys.sweep: ("{ns}:sweep",),
    keys.events: ("{ns}:events",),
    keys.check: ("{ns}:check",),
    keys.schema: ("{ns}:schema",),
    keys.epoch: ("{ns}:epoch",),
    keys.refresh: ("{ns}:refresh",),
    keys.worker: ("{ns}:worker:http://a:1", "http://a:1"),
    keys.checkpoints: ("{ns}:checkpoints:http://a:1", "http://a:1"),
    keys.heartbeat: ("{ns}:heartbeat:http://a:1", "http://a:1"),
    keys.removed: ("{ns}:removed:http://a:1", "http://a:1"),
    keys.leases: ("{ns}:leases",),
    keys.token_leases: ("{ns}:token_leases",),
    keys.token_workers: ("{ns}:token_workers",),
    keys.replicas: ("{ns}:replicas",),
    keys.replica_descriptions: ("{ns}:replica_descriptions",),
    keys.listings: ("{ns}:listings",),
    keys.draining: ("{ns}:draining:http://a:1", "http://a:1"),
    keys.capacities: ("{ns}:capacities",),
    keys.affinity: ("{ns}:affinity:7", "7"),
    keys.tokens: ("{ns}:tokens",),
    keys.engines: ("{ns}:engines",),
    keys.routes: ("{ns}:routes",),
    keys.pools: ("{ns}:pools:m", "m"),
    keys.overflow: ("{ns}:overflow",),
    keys.cost_heads: ("{ns}:cost_heads",),
    keys.decay_heads: ("{ns}:decay_heads",),
    keys.cost_index: ("{ns}:cost_index:m", "m"),
    keys.decay_index: ("{ns}:decay_index:m", "m"),
    keys.decay: ("{ns}:decay:m", "m"),
    keys.lottery: ("{ns}:lottery:m", "m"),
    keys.lottery_failing: ("{ns}:lottery_failing:m", "m"),
    keys.odds: ("{ns}:odds:m", "m"),
    keys.reply: ("{ns}:reply:id", "id"),
    keys.job: ("{ns}:job:http://top:1", "http://top:1"),
    keys.job_result: ("{ns}:job_result:http://top:1", "http://top:1"),
}


def test_key_functions_return_literal_names() -> None:
    for function, (expected, *arguments) in NAMES.items():
        assert function("ns", *arguments) == expected


def test_table_lists_every_key_function() -> None:
    public = {name for name, value in vars(keys).items() if callable(value)}
    assert public == {function.__name__ for function in NAMES}


@pytest.mark.parametrize("function", [f for f in NAMES if f is not keys.namespace], ids=lambda f: f.__name__)
async def test_lua_and_python_return_the_same_names(store: Store, function: Callable[..., str]) -> None:
    include = (scripts.folder() / "include" / "key.lua").read_text()
    expected, *arguments = NAMES[function]
    rest = ', "' + arguments[0] + '"' if arguments else ""
    script = f'{include}\nreturn key("{function.__name__}"{rest})'
    assert await store.client.eval(script, 1, "{ns}") == expected


def test_lua_uses_only_key_kinds_that_python_defines() -> None:
    used = set()
    for name in scripts.names():
        used |= set(re.findall(r'\bkey\("(\w+)"', scripts.source(name)))
    assert used <= {function.__name__ for function in NAMES}
    assert len(used) > 5


def test_only_the_key_module_builds_keys() -> None:
    package = Path(keys.__file__).parents[1]
    key_like = re.compile(r'\{\{\{|"\}:|\}:(worker|model)')
    makers = [path.name for path in package.rglob("*.py") if key_like.search(path.read_text())]
    assert makers == ["keys.py"]
