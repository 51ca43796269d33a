"""Mutates Lua scripts, token by token.

Strings and comments stay as they are, and with them the names of keys and the headers of the scripts.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Final

from pygments.lexers.scripting import LuaLexer
from pygments.token import Comment, Number, Punctuation, String, Token, Whitespace

from tests.mutants.mutant import Mutant

_SWAPPED: Final = {
    "<": ("<=", ">="),
    "<=": ("<", ">"),
    ">": (">=", "<="),
    ">=": (">", "<"),
    "==": ("~=",),
    "~=": ("==",),
    "and": ("or",),
    "or": ("and",),
    "+": ("-",),
    "-": ("+",),
    "*": ("/",),
    "/": ("*",),
    "true": ("false",),
    "false": ("true",),
    "math.min": ("math.max",),
    "math.max": ("math.min",),
    "math.ceil": ("math.floor",),
    "math.floor": ("math.ceil",),
}
_BLOCKS: Final = frozenset(["function", "if", "do", "repeat"])
_CONSTANTS: Final = frozenset(["true", "false", "nil"])
_OPERATORS: Final = frozenset(["and", "or", "not"])
_OTHERS: Final = frozenset(["break", "else", "elseif", "end", "for", "goto", "in", "local", "return", "then", "until"])
_KEYWORDS: Final = _BLOCKS | _CONSTANTS | _OPERATORS | _OTHERS | {"while"}
_OPENS_STATEMENT: Final = frozenset(["then", "do", "else", "end", "repeat", ";"])
_CLOSING: Final = {"(": ")", "{": "}", "[": "]"}
_ENDS_BLOCK: Final = frozenset(["end", "else", "elseif", "until"])


@dataclass(frozen=True)
class _Token:
    start: int
    text: str
    type: object

    @property
    def end(self) -> int:
        return self.start + len(self.text)

    @property
    def is_name(self) -> bool:
        return (self.text[0].isalpha() or self.text[0] == "_") and self.text not in _KEYWORDS

    @property
    def is_operand(self) -> bool:
        """Return True if an expression can end here."""
        return self.is_name or self.type in (Number, String) or self.text in {")", "]", "}"} | _CONSTANTS


def mutants(path: PurePosixPath, text: str) -> Iterator[Mutant]:
    """Return all mutants of a script."""
    for start, end, kind, replacement in _Rules(text).edits():
        line = text.count("\n", 0, start) + 1
        column = start - (text.rfind("\n", 0, start) + 1) + 1
        yield Mutant(path, line, column, kind, partial(_replace, start, end, replacement))


def _replace(start: int, end: int, replacement: str, text: str) -> str:
    return text[:start] + replacement + text[end:]


def _tokens(text: str) -> list[_Token]:
    """Split a text into tokens, without spaces and comments. A string is one token."""
    found: list[_Token] = []
    for start, kind, value in LuaLexer(ensurenl=False, stripnl=False).get_tokens_unprocessed(text):
        last = found[-1] if found else None
        if kind in Comment or kind in Whitespace or not value.strip():
            continue
        if kind in String and last and last.type is String and last.end == start:
            found[-1] = _Token(last.start, last.text + value, String)
        elif value == "=" and last and last.text in {"<", ">"} and last.end == start:  # Pygments splits some `<=`
            found[-1] = _Token(last.start, last.text + value, Token)
        elif kind in Punctuation:
            found += [_Token(start + i, character, Punctuation) for i, character in enumerate(value)]
        else:
            found.append(_Token(start, value, Number if kind in Number else String if kind in String else Token))
    return found


_Edit = tuple[int, int, str, str]  # start, end, kind, replacement


class _Rules:
    """The rules by which one script is mutated."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = _tokens(text)
        self.partners = dict(self._pairs())

    def edits(self) -> Iterator[_Edit]:
        for i, token in enumerate(self.tokens):
            yield from self._operator(i, token)
            if token.type is Number:
                yield from self._number(token)
            if token.text in {"if", "elseif", "while"}:
                yield from self._condition(i)
            if token.text == "(" and self._is_call(i):
                yield from self._arguments(i)
            if token.is_name and self._starts_statement(i):
                yield from self._statement(i)
        yield from self._early_exits()

    def _pairs(self) -> Iterator[tuple[int, int]]:
        """Return the index of each opening bracket with that of its closing one."""
        opened: list[int] = []
        for i, token in enumerate(self.tokens):
            if token.text in _CLOSING:
                opened.append(i)
            elif token.text in _CLOSING.values():
                yield opened.pop(), i

    def _operator(self, i: int, token: _Token) -> Iterator[_Edit]:
        before = self.tokens[i - 1] if i else None
        if token.type is String:
            return
        if token.text == "not":
            yield token.start, self.tokens[i + 1].start, "not removed", ""
        elif token.text in _SWAPPED and not (token.text == "-" and not (before and before.is_operand)):
            for replacement in _SWAPPED[token.text]:
                yield token.start, token.end, f"{token.text} to {replacement}", replacement

    def _number(self, token: _Token) -> Iterator[_Edit]:
        value = float(token.text) if "." in token.text or "e" in token.text else int(token.text, 0)
        for changed in dict.fromkeys([value + 1, value - 1, type(value)(0)]):
            if changed != value:
                yield token.start, token.end, f"{token.text} to {changed}", str(changed)

    def _condition(self, i: int) -> Iterator[_Edit]:
        end = "do" if self.tokens[i].text == "while" else "then"
        last = next(j for j in range(i, len(self.tokens)) if self.tokens[j].text == end) - 1
        start, stop = self.tokens[i + 1].start, self.tokens[last].end
        yield start, stop, "condition negated", f"not ({self.text[start:stop]})"

    def _is_call(self, i: int) -> bool:
        if not i or not (self.tokens[i - 1].is_name or self.tokens[i - 1].text in {")", "]"}):
            return False
        return not (i > 1 and self.tokens[i - 2].text == "function")

    def _arguments(self, i: int) -> Iterator[_Edit]:
        """Swap neighboring arguments of a call. The names of commands and of kinds of keys stay where they are."""
        parts: list[tuple[int, int]] = []
        close = self.partners[i]
        j = first = i + 1
        while j < close:
            if self.tokens[j].text == "function":  # a function literal may contain commas
                return
            if self.tokens[j].text in _CLOSING:
                j = self.partners[j]
            elif self.tokens[j].text == ",":
                parts.append((self.tokens[first].start, self.tokens[j - 1].end))
                first = j + 1
            j += 1
        if first < close:
            parts.append((self.tokens[first].start, self.tokens[close - 1].end))
        function = self.tokens[i - 1].text
        skipped = 1 if function in {"call", "key"} else 0
        for (start, end), (next_start, next_end) in zip(parts[skipped:], parts[skipped + 1 :], strict=False):
            one, other = self.text[start:end], self.text[next_start:next_end]
            if one != other:
                yield start, next_end, "arguments swapped", other + self.text[end:next_start] + one

    def _starts_statement(self, i: int) -> bool:
        if not i:
            return True
        before = self.tokens[i - 1]
        return before.text in _OPENS_STATEMENT or before.is_operand

    def _statement(self, i: int) -> Iterator[_Edit]:
        """Drop a call whose result is not used, or an assignment that stands on one line."""
        j = i + 1
        while j < len(self.tokens) and self.tokens[j].text in {".", ":", "(", "["}:
            j = self.partners.get(j, j + 1) + 1
        start = self.tokens[i].start
        after = self.tokens[j].text if j < len(self.tokens) else ""
        if after in {"=", ","}:
            line = self._line(i)
            texts = {token.text for token in line}
            opened, closed = (sum(token.text in brackets for token in line) for brackets in ("([{", ")]}"))
            if opened == closed and not {"function", "then", "do", "end"} & texts and not self._goes_on(i + len(line)):
                yield start, line[-1].end, "assignment dropped", ""
        elif self.tokens[j - 1].text == ")":
            kind = "command dropped" if self.text.startswith("redis.call", start) else "call dropped"
            yield start, self.tokens[j - 1].end, kind, ""

    def _line(self, i: int) -> list[_Token]:
        """Return a token and those after it on its line."""
        end = self.text.find("\n", self.tokens[i].start)
        return [token for token in self.tokens[i:] if end < 0 or token.start < end]

    def _goes_on(self, i: int) -> bool:
        """Return True if the expression before a token continues with it."""
        if not self.tokens[i - 1].is_operand:
            return True
        return i < len(self.tokens) and self.tokens[i].text in {*_SWAPPED, "..", ".", ":"} - _CONSTANTS

    def _early_exits(self) -> Iterator[_Edit]:
        """Drop each `return` or `break` that is in a block of its function."""
        blocks: list[str] = []
        for i, token in enumerate(self.tokens):
            if token.text in _BLOCKS:
                blocks.append(token.text)
            elif token.text in {"end", "until"}:
                blocks.pop()
            elif token.text == "break":
                yield token.start, token.end, "break dropped", ""
            elif token.text == "return" and blocks and blocks[-1] != "function":
                last = self._end_of_block(i) - 1
                yield token.start, self.tokens[last].end, "return dropped", ""

    def _end_of_block(self, i: int) -> int:
        depth = 0
        for j in range(i, len(self.tokens)):
            text = self.tokens[j].text
            if depth == 0 and text in _ENDS_BLOCK:
                return j
            depth += (text in _BLOCKS) - (text in {"end", "until"})
        return len(self.tokens)
