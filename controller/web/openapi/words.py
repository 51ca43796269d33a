"""Says in words what values a schema allows, for the page and for the documentation."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from controller.web.schemas.fields import COMPONENTS


def kind_of(schema: Mapping[str, Any], name_of: Callable[[str], str] | None = None) -> str:
    """Return the type of a value with its bounds, in Markdown.

    name_of: returns what stands for a named type, such as a link to it. By default, these are objects.
    """
    if "$ref" in schema:
        return name_of(schema["$ref"].removeprefix(COMPONENTS)) if name_of else "object"
    if "allOf" in schema:
        return kind_of(schema["allOf"][0], name_of)
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(kind_of(each, name_of) for each in schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return " or ".join(f"`{json.dumps(value)}`" for value in values)
    if schema.get("maxProperties") == 0:
        return "`{}`"
    kinds = schema.get("type", "any JSON")
    if kinds == "array":
        items = schema.get("items", {})
        kind = kind_of({**items, "maxLength": None}, name_of)
        most = f"at most {schema['maxItems']:,} " if "maxItems" in schema else ""
        return f"list of {most}{kind}{'s' if kind in ('string', 'object') else ''}"
    return " or ".join([kinds] if isinstance(kinds, str) else kinds) + _bounds(schema)


def meaning_of(schema: Mapping[str, Any]) -> str:
    """Return the description of a value, and what it is if it is left out."""
    default = schema.get("default")
    text: str = schema.get("description", "")
    return text if default in (None, "", []) else f"{text} Default: `{json.dumps(default)}`."


def _bounds(schema: Mapping[str, Any]) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        return f", {_number(low)} to {_number(high)}"
    longest = schema.get("maxLength")
    return f", at most {longest:,} characters" if longest else ""


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:g}"
