"""Check the built site: everything that a page loads is part of the site, so it works without a network.

    python docs/scripts/check_site.py [site]

The strict build checks links and anchors between pages. It checks neither images nor the files that styles load.
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

# Attributes of any tag that load something, besides `href` of <link>.
_LOADING: Final = ("src", "srcset", "poster", "data")
_CSS_URL: Final = re.compile(r"""(?:url\(|@import\s)\s*["']?([^"')\s;]+)""")


class Page(HTMLParser):
    """Collects the addresses that a page loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Note the address in a tag that loads something."""
        values = dict(attributes)
        if tag == "link" and values.get("rel") not in ("canonical", "next", "prev", "edit", "alternate"):
            self.loads.append(values.get("href") or "")
        for name in _LOADING:
            value = values.get(name) or ""
            if name == "srcset":  # addresses with a width or a density, separated by commas
                self.loads += [part.split()[0] for part in value.split(",") if part.strip()]
            elif value:
                self.loads.append(value)


def problems(site: Path) -> list[str]:
    """Return a line for each file that a page or a style loads from another site, or that is missing."""
    found = []
    for page in sorted(site.rglob("*.html")):
        found += [f"{page}: {load}" for load in Page(page.read_text()).loads if not _is_part(load, page, site)]
    for style in sorted(site.rglob("*.css")):
        for load in _CSS_URL.findall(style.read_text()):
            if not _is_part(load, style, site):
                found.append(f"{style}: {load}")
    return found


def _is_part(load: str, page: Path, site: Path) -> bool:
    address = urlsplit(load)
    if address.scheme == "data":
        return True
    base = site if address.path.startswith("/") else page.parent
    return not address.scheme and not address.netloc and (base / unquote(address.path).lstrip("/")).exists()


def main() -> None:
    """Check the site that is named on the command line."""
    site = Path(sys.argv[1] if len(sys.argv) > 1 else "site")
    found, pages = problems(site), len(list(site.rglob("*.html")))
    print("\n".join([*found, f"{pages} pages, {len(found)} problems"]))
    sys.exit(bool(found) or not pages)


if __name__ == "__main__":
    main()
