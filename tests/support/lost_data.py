"""A store that loses its latest changes, as in a failover to a standby that lags behind."""

import pytest

from controller.store import keys
from tests.conftest import Store


async def save(store: Store) -> None:
    """Save all keys of the namespace, as a standby that lags behind has them."""
    if store.kind == "fakeredis":
        pytest.skip("in fakeredis, a copied key shares the value of its original")
    for name in await store.client.keys(f"{keys.namespace(store.namespace)}*"):
        await store.client.copy(name, f"saved:{name}")


async def restore(store: Store) -> None:
    """Replace the keys of the namespace by the saved ones."""
    await store.client.delete(*await store.client.keys(f"{keys.namespace(store.namespace)}*"))
    for name in await store.client.keys("saved:*"):
        await store.client.copy(name, name.removeprefix("saved:"))
        await store.client.delete(name)
