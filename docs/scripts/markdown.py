"""Parts of Markdown pages."""

from collections.abc import Sequence


def table(header: str, rows: Sequence[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    columns = header.count("|") + 1
    lines = [f"| {header} |", "|" + "---|" * columns]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def code(text: str) -> str:
    """Return the text as code, or "" for an empty text."""
    return f"`{text}`" if text else ""
