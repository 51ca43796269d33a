"""Finds the name of the model in the body of a request, and replaces it without a change of any other byte."""

import json
import logging
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from controller.domain.errors import InvalidInput
from controller.json_bodies import JsonBody

_FORM_TYPE: Final = "multipart/form-data"
_FORM: Final = _FORM_TYPE.encode()
_MAX_PARTS: Final = 1_000
_MAX_BOUNDARIES: Final = 10_000  # lines that begin with it, each of which the parser compares in Python
_MAX_NAMES: Final = 100  # that are replaced. More would multiply the memory of a body
_STRING: Final = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
# The key `model`, of which each letter may be written as an escape.
_MODEL: Final = re.compile(
    rb'"' + b"".join(rb"(?:%c|\\u00%x(?i:%x))" % (letter, letter >> 4, letter & 15) for letter in b"model") + rb'"'
)
_LONGEST_KEY: Final = len('""') + len("model") * len("\\u006d")
_VALUE: Final = re.compile(rb"[ \t\r\n]*:[ \t\r\n]*(" + _STRING + rb")", re.DOTALL)
_WINDOW: Final = 64 * 1024  # bytes that are searched at once. Meanwhile, no other thread runs

# The parser logs a warning for each damaged form, besides the error that the client gets.
logging.getLogger("python_multipart.multipart").setLevel(logging.CRITICAL)


class _Fields(msgspec.Struct):
    model: str


_json: Final = JsonBody(_Fields, "body", "Send a JSON object with the name of a model in `model`.")


class ModelField(NamedTuple):
    """The body of a request, and the model that it names.

    spans: start and end of each name in a form, as for a slice. None if the body is JSON.
    """

    body: bytes
    name: str
    spans: tuple[tuple[int, int], ...] | None = None

    def renamed(self, name: str) -> bytes:
        """Return the body with another name of the model. All other bytes stay as they are.

        Raises InvalidInput if the body is JSON in an encoding other than UTF-8, or has too many names to replace.
        """
        if name == self.name:
            return self.body
        new = name.encode() if self.spans is not None else json.dumps(name).encode()
        parts: list[bytes] = []
        end = 0
        for start, next_end in self.spans if self.spans is not None else _spans_in_json(self.body):
            if len(parts) == 2 * _MAX_NAMES:
                raise InvalidInput("model", f"is in the body more than {_MAX_NAMES} times. Send it once")
            parts += [self.body[end:start], new]
            end = next_end
        return b"".join([*parts, self.body[end:]])


def read_model(body: bytes, content_type: str = "") -> ModelField:
    """Return the model that a body names: in the field `model` of a JSON object or of a form with several parts.

    content_type: header of the request. A body is JSON, unless this says that it is a form. Raises InvalidInput.
    """
    try:
        kind, options = parse_options_header(content_type if _FORM_TYPE in content_type.lower() else "")
    except UnicodeEncodeError as error:
        raise InvalidInput("body", "is a form with a character outside Latin-1 in its Content-Type") from error
    if kind != _FORM:
        return ModelField(body, _json.read(body).model)
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise InvalidInput("body", "is a form without a boundary in its Content-Type")
    form = _Form(boundary)
    form.read(body)
    if not form.spans:
        raise InvalidInput("model", "is missing in the form")
    try:
        name = body[slice(*form.spans[-1])].decode()
    except UnicodeDecodeError as error:
        raise InvalidInput("model", "must be UTF-8") from error
    return ModelField(body, name, tuple(form.spans))


def _spans_in_json(body: bytes) -> Iterator[tuple[int, int]]:
    """Yield start and end of each value of `model` in a valid JSON object. A key may be repeated.

    The loop runs once for each key `model` and each window, because a body may have millions of values.
    """
    if json.detect_encoding(body) not in ("utf-8", "utf-8-sig"):
        raise InvalidInput("body", "must be in UTF-8, because the engine has another name for this model")
    # Without escaped quotes and backslashes, each quote begins or ends a string. All positions stay the same.
    plain = body.replace(b"\\\\", b"__").replace(b'\\"', b"__")
    depth = done = 0
    in_string = False
    while done < len(plain):
        key = _MODEL.search(plain, done, done + _WINDOW + _LONGEST_KEY)
        end = key.start() if key else done + _WINDOW
        parts = plain[done:end].split(b'"')
        outside = b"".join(parts[in_string::2])
        depth += outside.count(b"{") + outside.count(b"[") - outside.count(b"}") - outside.count(b"]")
        in_string ^= len(parts) % 2 == 0
        if key and depth == 1 and (value := _VALUE.match(body, key.end())):
            yield value.span(1)
        done = key.end() if key else end


class _Form:
    """Finds the fields `model` in a form. Other fields and files are passed over.

    spans: start and end of each value.
    """

    def __init__(self, boundary: bytes) -> None:
        self.spans: list[tuple[int, int]] = []
        self._boundary = boundary
        self._parts = 0
        self._header = b""
        self._value = b""
        self._is_model = False
        self._span: tuple[int, int] | None = None
        self._ended = False

    def read(self, body: bytes) -> None:
        """Read a form. Raises InvalidInput if it is damaged or has too many parts."""
        if body.count(b"\r\n--" + self._boundary) > _MAX_BOUNDARIES:
            raise InvalidInput("body", f"is a form that contains its boundary more than {_MAX_BOUNDARIES} times")
        try:
            # The parser gets the body as a whole, so the positions that it passes are positions in the body.
            parser = MultipartParser(
                self._boundary,
                {
                    "on_part_begin": self._begin_part,
                    "on_header_field": self._add_name,
                    "on_header_value": self._add_value,
                    "on_header_end": self._end_header,
                    "on_part_data": self._add_data,
                    "on_part_end": self._end_part,
                    "on_end": self._end,
                },
            )
            parser.write(body)
        except FormParserError as error:
            raise InvalidInput("body", f"is not a valid form: {error}") from error
        if not self._ended:
            raise InvalidInput("body", "is a form that breaks off before its last boundary")

    def _begin_part(self) -> None:
        self._parts += 1
        if self._parts > _MAX_PARTS:
            raise InvalidInput("body", f"is a form of more than {_MAX_PARTS} parts")
        self._is_model, self._span = False, None

    def _add_name(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            _, options = parse_options_header(self._value)
            self._is_model = options.get(b"name") == b"model" and b"filename" not in options
        self._header = self._value = b""

    def _add_data(self, _: bytes, start: int, end: int) -> None:
        self._span = (self._span[0] if self._span else start, end)

    def _end_part(self) -> None:
        if self._is_model and self._span:
            self.spans.append(self._span)

    def _end(self) -> None:
        self._ended = True
