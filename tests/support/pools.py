"""Reference model of the pools of models: see lua/include/pools/pools_of.lua."""

from collections.abc import Sequence

import pytest

from controller.store import scripts
from controller.store.registry import digest_of

OVERFLOW = "\x1f"
_LINE = "local MAX_SETS = 24\n"


def allow_sets(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Limit the pools of several models that a model can have, for registries that are opened from now on."""
    source = scripts.source
    assert _LINE in source("register")
    monkeypatch.setattr(scripts, "source", lambda name: source(name).replace(_LINE, f"local MAX_SETS = {number}\n"))


class Pools:
    """The pools of all models, in the order in which they were joined."""

    def __init__(self, max_sets: int = 24) -> None:
        self.members: dict[str, list[str]] = {}  # names of workers, by pool
        self.models: dict[str, tuple[str, ...]] = {}  # by pool
        self._max_sets = max_sets

    def of(self, model: str) -> list[str]:
        """Return the pools of a model."""
        return [pool for pool, models in self.models.items() if model in models]

    def assign(self, models: Sequence[str]) -> list[str]:
        """Return the pools of a worker with these models."""
        if len(models) < 2:
            return list(models)
        pool = f"\x1e{digest_of(tuple(models))}"
        if pool not in self.members and any(self._sets_of(model) >= self._max_sets for model in models):
            return [OVERFLOW + model for model in models]
        return [pool]

    def _sets_of(self, model: str) -> int:
        return sum(pool.startswith("\x1e") for pool in self.of(model))

    def move(self, name: str, models: Sequence[str]) -> list[str]:
        """Move a worker to the pools of its models."""
        return self.put(name, self.assign(models), models)

    def put(self, name: str, pools: Sequence[str], models: Sequence[str]) -> list[str]:
        """Move a worker to pools."""
        for pool in [pool for pool, members in self.members.items() if name in members and pool not in pools]:
            self.members[pool].remove(name)
            if not self.members[pool]:
                del self.members[pool], self.models[pool]
        for pool in pools:
            if pool not in self.members:
                self.members[pool] = []
                self.models[pool] = tuple(models) if pool.startswith("\x1e") else (pool.removeprefix(OVERFLOW),)
            if name not in self.members[pool]:
                self.members[pool].append(name)
        return list(pools)
