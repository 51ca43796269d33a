"""The tests of outages run on redis-server, too."""

from collections.abc import AsyncIterator

import pytest

from tests.conftest import ALL_STORES, Store, open_store


@pytest.fixture(params=ALL_STORES)
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    async with open_store(request, request.param) as opened:
        yield opened
