"""Shows an OpenAPI document as one HTML page, without scripts.

The page covers what controller/web/openapi/document.py writes, which is a part of OpenAPI.
"""

import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, Final

from controller.web.html import Html, element, joined
from controller.web.openapi.words import kind_of, meaning_of

STYLE: Final = files("controller.web.openapi").joinpath("page.css").read_text(encoding="utf-8")
_CONTROLLER: Final = "http://localhost:21001"
_JSON: Final = "application/json"
_HEAD: Final = Html(
    '<meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    '<meta name="color-scheme" content="light dark">'
    '<link rel="icon" href="page/icon.svg">'
)


def render(document: Mapping[str, Any]) -> str:
    """Return the page."""
    return "<!DOCTYPE html>" + _Page(document).html()


class _Operation:
    """One operation of the document."""

    def __init__(self, method: str, path: str, content: Mapping[str, Any]) -> None:
        self.method = method.upper()
        self.path = path
        self.content = content
        self.id: str = content["operationId"]

    @property
    def body(self) -> Mapping[str, Any]:
        """The schema of the body. Empty if there is no body."""
        content = self.content.get("requestBody", {}).get("content", {})
        schema: Mapping[str, Any] = content.get(_JSON, {}).get("schema", {})
        return schema

    @property
    def heading(self) -> Html:
        """The method and the path."""
        return joined([element("span", self.method, class_=self.method.lower()), " ", element("code", self.path)])


class _Page:
    def __init__(self, document: Mapping[str, Any]) -> None:
        self._info = document["info"]
        self._components = document["components"]
        self._tags = {tag["name"]: tag["description"] for tag in document["tags"]}
        self._operations: dict[str, list[_Operation]] = {tag: [] for tag in self._tags}
        for path, methods in document["paths"].items():
            for method, content in methods.items():
                self._operations[content["tags"][0]].append(_Operation(method, path, content))

    def html(self) -> Html:
        version = f"{self._info['title']} {self._info['version']}"
        title = element("title", f"HTTP API of {version}")
        link = element("a", "OpenAPI document", href="openapi.json")
        body = element(
            "body",
            element("a", "Skip to the content", class_="skip", href="#content"),
            element("header", element("h1", "HTTP API"), element("p", f"{version} · ", link)),
            self._contents(),
            element(
                "main",
                element("section", *_markdown(self._info["description"])),
                *(self._group(tag, text) for tag, text in self._tags.items()),
                self._types(),
                id="content",
                tabindex="-1",
            ),
        )
        return element("html", element("head", _HEAD, title, element("style", Html(STYLE))), body, lang="en")

    def _contents(self) -> Html:
        groups = [
            element(
                "li",
                element("a", tag, href=f"#{_anchor(tag)}"),
                element("ul", *(element("li", element("a", each.heading, href=f"#{each.id}")) for each in operations)),
            )
            for tag, operations in self._operations.items()
        ]
        groups.append(element("li", element("a", "Types", href="#types")))
        details = element("details", element("summary", "Routes"), element("ul", *groups), open="")
        return element("nav", details, aria_label="Routes")

    def _group(self, tag: str, text: str) -> Html:
        operations = map(self._operation, self._operations[tag])
        return element("section", element("h2", tag, id=_anchor(tag)), *_markdown(text), *operations)

    def _types(self) -> Html:
        types = (
            element(
                "article",
                element("h3", name, id=f"type-{name}"),
                *_markdown(schema.get("description", "")),
                *self._fields(schema),
            )
            for name, schema in self._components["schemas"].items()
        )
        return element("section", element("h2", "Types", id="types"), *types)

    def _operation(self, operation: _Operation) -> Html:
        content = operation.content
        return element(
            "article",
            element("h3", operation.heading, id=operation.id),
            *_markdown(content["description"]),
            element("p", _access(content["security"]), class_="faint"),
            *_parameters(content.get("parameters", ())),
            *([element("h4", "Body"), *self._fields(operation.body)] if operation.body else []),
            self._example(operation),
            element("h4", "Responses"),
            *self._responses(content["responses"]),
        )

    def _example(self, operation: _Operation) -> Html:
        command = f"curl {_CONTROLLER}{operation.path}"
        if operation.body:
            properties = self._resolved(operation.body)["properties"]
            values = {name: schema["examples"][0] for name, schema in properties.items() if "examples" in schema}
            command += f" -d '{json.dumps(values)}'"
        elif operation.method != "GET":
            command = command.replace("curl", f"curl -X {operation.method}", 1)
        return element("pre", element("code", command), tabindex="0")

    def _responses(self, responses: Mapping[str, Any]) -> list[Html]:
        """Return the response with status 200, and the others in a part that readers open."""
        success, *errors = (self._response(*each) for each in responses.items())
        schema = self._resolved(responses["200"]["content"].get(_JSON, {}).get("schema", {}))
        details = element("details", element("summary", "Errors"), element("dl", *errors))
        return [element("dl", success), *self._fields(schema), details]

    def _response(self, status: str, response: Mapping[str, Any]) -> Html:
        response = self._resolved(response)
        content = [
            joined([element("code", media), ": " if kind else "", kind])
            for media, value in response.get("content", {}).items()
            for kind in [_kind(value["schema"]) if media == _JSON and value else Html()]
        ]
        headers = [element("code", name) for name in response.get("headers", ())]
        media = [*_separated(content), *([" · headers: ", *_separated(headers)] if headers else [])]
        text = [*_markdown(response["description"]), element("p", *media, class_="faint")]
        return joined([element("dt", status), element("dd", *text)])

    def _fields(self, schema: Mapping[str, Any]) -> list[Html]:
        """Return a table of the fields of a schema. Nothing if it has none."""
        schema = self._resolved(schema)
        required = schema.get("required", ())
        rows = [
            (
                _name(name, is_optional=name not in required),
                _kind(each),
                _inline(meaning_of(each)),
            )
            for name, each in schema.get("properties", {}).items()
        ]
        return [_table(("Field", "Type", "Meaning"), rows)] if rows else []

    def _resolved(self, value: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what a reference refers to. All references of the document are to its components."""
        if "$ref" not in value:
            return value
        kind, name = value["$ref"].split("/")[2:]
        found: Mapping[str, Any] = self._components[kind][name]
        return found


def _access(security: Sequence[Mapping[str, Sequence[str]]]) -> str:
    planes = dict.fromkeys(plane for each in security for roles in each.values() for plane in roles)
    return f"Needs a token of the plane {' or '.join(planes)}." if planes else "Needs no token."


def _parameters(parameters: Sequence[Mapping[str, Any]]) -> list[Html]:
    rows = [
        (
            _name(each["name"], is_optional=not each["required"]),
            Html(each["in"]),
            _kind(each["schema"]),
            _inline(meaning_of({**each["schema"], "description": each["description"]})),
        )
        for each in parameters
    ]
    return [element("h4", "Parameters"), _table(("Name", "In", "Type", "Meaning"), rows)] if rows else []


def _name(name: str, *, is_optional: bool) -> Html:
    return joined([element("code", name), *([" ", element("em", "optional")] if is_optional else [])])


def _table(header: tuple[str, ...], rows: Sequence[tuple[Html, ...]]) -> Html:
    head = element("tr", *(element("th", name, scope="col") for name in header))
    body = (element("tr", *(element("td", cell) for cell in row)) for row in rows)
    return element("table", element("thead", head), element("tbody", *body))


def _separated(parts: Sequence[Html]) -> list[str]:
    return [each for part in parts for each in (", ", part)][1:]


def _anchor(tag: str) -> str:
    return "group-" + re.sub(r"\W", "-", tag.lower())


def _kind(schema: Mapping[str, Any]) -> Html:
    """Return a type, with links to named types."""
    return _inline(kind_of(schema, lambda name: f"[{name}](#type-{name})"))


_MARKS: Final = re.compile(r"`(?P<code>[^`]*)`|\*(?P<em>[^*]+)\*|\[(?P<a>[^\]]+)\]\((?P<href>#[\w-]+)\)")


def _inline(text: str) -> Html:
    """Return a line of Markdown: code, emphasis, and links within the page."""
    parts: list[str] = []
    end = 0
    for mark in _MARKS.finditer(text):
        parts.append(text[end : mark.start()])
        end = mark.end()
        name = str(mark.lastgroup) if mark["href"] is None else "a"
        parts.append(element(name, mark[name], **({"href": mark["href"]} if mark["href"] else {})))
    return joined([*parts, text[end:]])


def _markdown(text: str) -> list[Html]:
    """Return the blocks of a text in Markdown: paragraphs, headings and lists."""
    return [_block(block) for block in re.split(r"\n{2,}", text.strip()) if block]


def _block(text: str) -> Html:
    if text.startswith("## "):
        return element("h2", _inline(text[3:]))
    if text.startswith("- "):
        return element("ul", *(element("li", _inline(item)) for item in re.split(r"(?:^|\n)- ", text)[1:]))
    return element("p", _inline(" ".join(text.split())))
