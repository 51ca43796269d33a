"""The page that shows the API document: complete, without scripts, and safe under a strict Content-Security-Policy."""

import base64
import copy
import hashlib
import itertools
import re
from html.parser import HTMLParser
from typing import Any

from controller.web.html import Html, element, joined
from controller.web.openapi.document import path_of
from controller.web.openapi.page import render
from controller.web.routes.table import ROUTES
from tests.support.api_document import document
from tests.web.conftest import Api

VOID = {"meta", "link"}


class Page(HTMLParser):
    """Checks the nesting of elements, and collects them with their attributes and texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append((tag, ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if any(tag in ("h1", "h2", "h3", "h4") for tag in self.open):
            tag, text = self.headings[-1]
            self.headings[-1] = (tag, text + data)

    def values(self, attribute: str) -> list[str]:
        return [value for _, attributes in self.elements if (value := attributes.get(attribute)) is not None]


async def test_the_page_may_load_and_run_nothing(api: Api) -> None:
    response = await api.http.get("/docs")
    assert (response.status_code, response.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = dict(each.split(" ", 1) for each in response.headers["content-security-policy"].split("; "))
    [style] = re.findall(r"<style>(.*?)</style>", response.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == {
        "default-src": "'none'",
        "style-src": f"'sha256-{digest}'",
        "img-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "url(" not in style
    assert "@import" not in style
    page = Page(response.text)
    used = {tag for tag, _ in page.elements}
    assert used.isdisjoint({"script", "img", "iframe", "object", "embed", "form", "input", "base"})
    assert [attributes for tag, attributes in page.elements if tag == "link"] == [
        {"rel": "icon", "href": "page/icon.svg"}
    ]
    assert (await api.http.get("/page/icon.svg")).status_code == 200
    names = {name for _, attributes in page.elements for name in attributes}
    assert names <= {
        "charset",
        "name",
        "content",
        "lang",
        "rel",
        "id",
        "class",
        "href",
        "open",
        "scope",
        "tabindex",
        "aria-label",
    }


def test_the_page_shows_each_route_and_each_type() -> None:
    page = Page(render(document()))
    third = [text for tag, text in page.headings if tag == "h3"]
    assert sorted(third) == sorted(
        [*(f"{route.method} {path_of(route)}" for route in ROUTES), *document()["components"]["schemas"]]
    )


def test_each_link_of_the_page_leads_somewhere() -> None:
    page = Page(render(document()))
    ids = page.values("id")
    assert len(set(ids)) == len(ids)
    assert {href for href in page.values("href") if href not in ("openapi.json", "page/icon.svg")} <= {
        f"#{each}" for each in ids
    }


def test_the_page_has_an_outline_for_screen_readers() -> None:
    page = Page(render(document()))
    levels = [int(tag[1]) for tag, _ in page.headings]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    used = [tag for tag, _ in page.elements]
    assert [used.count(tag) for tag in ("header", "nav", "main", "title")] == [1, 1, 1, 1]


def test_texts_of_the_document_are_escaped() -> None:
    hostile = """<script>alert(1)</script> "><img src=x> `<b>` *<i>* [<u>](#x) &amp;"""

    def changed(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: hostile if key in ("description", "title", "version") and isinstance(each, str) else changed(each)
                for key, each in value.items()
            }
        return [changed(each) for each in value] if isinstance(value, list) else value

    text = render(changed(copy.deepcopy(document())))
    assert {tag for tag, _ in Page(text).elements}.isdisjoint({"script", "img", "b", "i", "u"})
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &quot;&gt;&lt;img src=x&gt;" in text
    assert "&amp;amp;" in text


def test_elements_escape_what_is_not_html() -> None:
    assert element("a", "<b>", element("i", "&"), aria_label='"', class_="c") == (
        '<a aria-label="&quot;" class="c">&lt;b&gt;<i>&amp;</i></a>'
    )
    assert joined(["<", Html("<br>")]) == "&lt;<br>"
