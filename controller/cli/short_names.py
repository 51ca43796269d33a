"""Names that are shortened for a column of a table, so that different names stay different."""

from collections import Counter
from collections.abc import Collection
from typing import Final

from rich.cells import cell_len

_CONTEXT: Final = 2  # characters shown before the first difference


def short_names(names: Collection[str], width: int, ellipsis: str) -> dict[str, str]:
    """Return a form of each name that has at most `width` cells of the terminal. No two names have the same form.

    The middle of a long name is left out. If two names then look the same, the part in which they differ is shown, and
    if they differ in distant parts, a number. `width` must have room for the ellipsis and some characters.
    """
    forms = {name: name for name in names if cell_len(name) <= width}
    long = sorted(set(names).difference(forms))
    middle = {name: _without_middle(name, width, ellipsis) for name in long}
    _add_distinct(forms, middle)
    alike: dict[str, list[str]] = {}
    for name in long:
        if name not in forms:
            alike.setdefault(middle[name], []).append(name)
    for group in alike.values():
        start = _first_difference(group[0], group[-1])
        _add_distinct(forms, {name: _from(name, start - _CONTEXT, width, ellipsis) for name in group})
    taken = set(forms.values())
    number = 0
    for name in long:
        while name not in forms:
            number += 1
            suffix = f"{ellipsis}{number}"
            form = f"{_begin(name, max(0, width - cell_len(suffix)))}{suffix}"
            if form not in taken:
                forms[name] = form
                taken.add(form)
    return forms


def _add_distinct(forms: dict[str, str], found: dict[str, str]) -> None:
    """Add those of the forms that no other name has."""
    counts = Counter([*forms.values(), *found.values()])
    forms.update((name, form) for name, form in found.items() if counts[form] == 1)


def _first_difference(one: str, other: str) -> int:
    """Return the place of the first character in which two names differ. Of a sorted list, take the first and last."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def _without_middle(name: str, width: int, ellipsis: str) -> str:
    kept = max(2, width - len(ellipsis))
    return f"{_begin(name, kept // 2)}{ellipsis}{_end(name, kept - kept // 2)}"


def _from(name: str, start: int, width: int, ellipsis: str) -> str:
    """Return a part of a name, from about the character `start` on."""
    room = width - len(ellipsis)
    rest = name[max(0, start) :]
    if cell_len(rest) <= room:
        return f"{ellipsis}{_end(name, room)}"
    return f"{ellipsis}{_begin(rest, max(1, room - len(ellipsis)))}{ellipsis}"


def _begin(text: str, width: int) -> str:
    while cell_len(text) > width:
        text = text[:-1]
    return text


def _end(text: str, width: int) -> str:
    while cell_len(text) > width:
        text = text[1:]
    return text
