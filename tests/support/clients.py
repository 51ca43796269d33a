"""The type of a client with which a test reads and writes the store."""

from typing import Any, TypeAlias

# redis-py types replies as `bytes | str`, because it does not know that the clients of the tests decode them.
Client: TypeAlias = Any
