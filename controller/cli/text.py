"""Text from the network that is safe on a terminal, and quantities in words."""

from typing import Final

_UNITS: Final = ((86_400, "d"), (3_600, "h"), (60, "m"))


def printable(text: str) -> str:
    """Return text with a question mark for each character that could change the terminal, or the order of the text.

    Names, reasons and messages come from the network. Line breaks, escape sequences and marks that reverse the
    direction of writing are not printable.
    """
    return "".join(character if character.isprintable() else "?" for character in text)


def duration(seconds: float) -> str:
    """Return a time as the two largest units at most: 4.2 s, 75 s, 12 m, 3 h 20 m."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    left, parts = round(seconds), []
    for size, unit in _UNITS:
        number, left = divmod(left, size)
        if number:
            parts.append(f"{number} {unit}")
    return " ".join(parts[:2])


def count(number: int, noun: str) -> str:
    """Return a number and its noun: 1 worker, 1,000 workers."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
