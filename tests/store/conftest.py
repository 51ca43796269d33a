"""The tests of the store run on all stores.

On redis-server, they have only the rights that deploy/redis/users.acl gives to a replica.
"""

from collections.abc import AsyncIterator

import pytest

from tests.conftest import STORES_WITH_RIGHTS, Store, open_store


@pytest.fixture(params=STORES_WITH_RIGHTS)
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    async with open_store(request, request.param) as opened:
        yield opened
