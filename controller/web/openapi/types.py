"""Turns the types of bodies into JSON Schema."""

import inspect
import re
from typing import Any

import msgspec

from controller.json_bodies import BOUNDS, ReportedStatus
from controller.web.schemas.fields import COMPONENTS


class Types:
    """The types that a document refers to."""

    def __init__(self) -> None:
        self._used: list[Any] = [ReportedStatus]  # a field of the type Raw has it

    def reference(self, used: Any) -> Any:
        """Return the schema of a type. If it is a struct, the schema refers to a component."""
        self._used.append(used)
        [schema], _ = msgspec.json.schema_components([used], ref_template=COMPONENTS + "{name}")
        return _finished(schema)

    def components(self) -> dict[str, Any]:
        """Return the schemas of all structs so far, by name."""
        _, components = msgspec.json.schema_components(self._used, ref_template=COMPONENTS + "{name}")
        return {name: _with_fields(_finished(components[name])) for name in sorted(components)}


def _with_fields(component: Any) -> Any:
    """Return the schema of a dataclass with the descriptions of its fields, which are in its docstring."""
    paragraphs = re.split(r"\n\s*\n", component.get("description", ""))
    for line in "\n".join(paragraphs[1:]).splitlines():
        names, separator, text = line.strip().partition(": ")
        for name in names.split(", ") if separator else ():
            if field := component.get("properties", {}).get(name):
                field.setdefault("description", text[:1].upper() + text[1:])
    return {**component, **({"description": paragraphs[0]} if paragraphs[0] else {})}


def summary_of(thing: Any) -> str:
    """Return the first paragraph of a docstring in one line."""
    return " ".join((inspect.getdoc(thing) or "").partition("\n\n")[0].split())


def summary_of_struct(used: Any) -> str:
    """Return the summary of a type, or "" if it is no struct."""
    return summary_of(used) if isinstance(used, type) and issubclass(used, msgspec.Struct) else ""


def _finished(schema: Any) -> Any:
    """Return a schema of msgspec with our bounds, and in fewer words."""
    if isinstance(schema, list):
        return [_finished(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {name: _part(name, value) for name, value in schema.items() if name != "title"}
    bounds = schema.pop(BOUNDS, {})
    if "type" in bounds or "anyOf" in bounds:
        schema.pop("anyOf", None)
    if alternatives := schema.pop("anyOf", None):
        schema |= _merged(alternatives)
    return schema | bounds


def _part(keyword: str, value: Any) -> Any:
    if keyword == "properties":
        return {name: _finished(schema) for name, schema in value.items()}
    return value if keyword in ("examples", "default") else _finished(value)


def _merged(alternatives: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a schema that allows each of the alternatives."""
    if {"type": "number"} in alternatives:
        alternatives = [each for each in alternatives if each != {"type": "integer"}]
    if len(alternatives) == 1:
        return alternatives[0]
    if all(each.keys() == {"type"} for each in alternatives):
        return {"type": [each["type"] for each in alternatives]}
    if {"type": "null"} in alternatives:
        alternatives = [each for each in alternatives if each != {"type": "null"}]
        if len(alternatives) == 1 and "enum" in alternatives[0]:
            return {"enum": [*alternatives[0]["enum"], None]}
        alternatives.append({"type": "null"})
    return {"anyOf": alternatives}
