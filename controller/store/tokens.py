"""Creating and revoking tokens in Redis at runtime."""

from typing import Final

from controller.domain.errors import InvalidInput
from controller.security.tokens import Token, encode_token
from controller.store.entries import EntryStore, ListName

MAX_STORED: Final = 500


class TokenStore(EntryStore):
    """The tokens of one namespace."""

    async def set_token(self, name: str, token: Token | None) -> bool:
        """Create a token, or revoke the one with this name with None.

        Return False if there is a token with this name already, or none to revoke. Raises InvalidInput if there are too
        many tokens.
        """
        record = "" if token is None else encode_token(token)
        is_done = await self.set_entry(ListName.TOKENS, name, record, limit=MAX_STORED, replaces=False)
        if is_done is None:
            raise InvalidInput(
                "name", f"{MAX_STORED} tokens were created already, which is the limit. Revoke one, and try again"
            )
        return is_done
