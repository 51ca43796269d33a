"""The tokens in Redis that operators have created at runtime."""

from controller.domain.errors import InvalidInput
from controller.security.tokens import MAX_STORED, Token, TokenList, decode_token, encode_token
from controller.store.runner import ScriptRunner


class TokenStore(ScriptRunner):
    """The tokens of one namespace."""

    async def set_token(self, name: str, token: Token | None) -> bool:
        """Create a token, or revoke the one with this name with None.

        Return False if there is a token with this name already, or none to revoke. Raises InvalidInput if there are too
        many tokens.
        """
        record = "" if token is None else encode_token(token)
        result = await self._run("set_token", *self._repeatable(), MAX_STORED, name, record)
        if result == -1:
            raise InvalidInput(
                "name", f"{MAX_STORED} tokens were created already, which is the limit. Revoke one, and try again"
            )
        return bool(result)

    async def list_tokens(self, known: TokenList) -> TokenList:
        """Return the tokens. `known` itself is returned if they are still the same.

        A token that another program wrote and that is unreadable is left out, so it opens nothing.
        """
        version, change, *listed = await self._run("list_tokens", known.version, known.change)
        if not listed:
            return known
        tokens = []
        for name, record in zip(listed[0][::2], listed[0][1::2], strict=True):
            try:
                tokens.append(decode_token(name, record))
            except InvalidInput:
                continue
        return TokenList(version, change, tuple(tokens))

    async def restore_tokens(self, tokens: TokenList) -> bool:
        """Restore tokens that Redis lost. Return False if others there are as new."""
        items = [argument for token in tokens.tokens for argument in (token.name, encode_token(token))]
        return bool(await self._run("restore_tokens", tokens.version, tokens.change, *items))
