"""Writes HTML in which every text is escaped."""

import html
from collections.abc import Iterable


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def element(name: str, *children: str, **attributes: str) -> Html:
    """Return an element. Children that are no Html are escaped.

    attributes: an underscore at the end of a name is left out, and others become dashes.
    """
    written = "".join(
        f' {key.removesuffix("_").replace("_", "-")}="{html.escape(value)}"' for key, value in attributes.items()
    )
    return Html(f"<{name}{written}>{joined(children)}</{name}>")


def joined(children: Iterable[str]) -> Html:
    """Return texts and elements one after the other."""
    return Html("".join(child if isinstance(child, Html) else html.escape(child) for child in children))
