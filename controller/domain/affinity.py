"""Affinity: which requests should go to the worker that got an earlier one.

Engines keep the state of the prompts that they have processed. They skip the work for a prompt that begins in the same
way. So a request has keys, and the dispatch remembers which worker got the last request with each of them.

- A session key is the hash of a value that all requests of a session send.
- Prefix keys are hashes of the beginnings of the prompt, so equal keys mean equal beginnings. They end at BOUNDARIES,
  where other prompts with the same beginning have them too, and at the ends of the last messages, where the next
  request of the same conversation finds them. docs/benchmarks/affinity.md compares other choices.

All keys contain the hash of the model's name, because the state of one model is of no use to another.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from itertools import accumulate
from typing import Final, NamedTuple

MAX_PREFIX_KEYS: Final = 12
BOUNDARIES: Final = (512, 1024, 2048, 4096, 8192, 16_384, 32_768)  # in characters
LAST_ENDS: Final = MAX_PREFIX_KEYS - len(BOUNDARIES)  # how many of the last messages have a key at their ends
MIN_SHARED: Final = 256  # characters. A shorter beginning saves an engine next to nothing.
MAX_LENGTH: Final = 1024 * 1024  # characters of a prompt that are hashed
MAX_ITEMS: Final = 4096  # messages of a prompt, parts of a message and token ids that are read
_KEY_LENGTH: Final = 18  # hexadecimal digits
_MAX_MEDIA: Final = 4096  # characters that are hashed of the beginning and of the end of an image


class AffinityKind(StrEnum):
    """The kind of keys that the requests of a model get."""

    OFF = "off"
    SESSION = "session"
    PREFIX = "prefix"
    BOTH = "both"


class Affinity(NamedTuple):
    """The keys of a request, the most specific one first: letters and digits, at least one key."""

    keys: tuple[str, ...]


def session_keys(model: str, value: str) -> tuple[str, ...]:
    """Return the key of a session. Return nothing if the value is empty."""
    return (_key(_hasher("session", model, value)),) if value else ()


def prefix_keys(model: str, pieces: Sequence[str]) -> tuple[str, ...]:
    """Return the keys of the beginnings of a prompt, the longest beginning first. There are at most MAX_PREFIX_KEYS.

    pieces: the prompt. Each piece is a message.
    """
    text = "".join(pieces)
    ends = list(accumulate(map(len, pieces)))[-LAST_ENDS:]
    length = min(len(text), MAX_LENGTH)
    positions = {end for end in ends if MIN_SHARED <= end <= length}
    positions.update(boundary for boundary in BOUNDARIES if boundary <= length)
    hasher = _hasher("prefix", model)
    keys: list[str] = []
    begin = 0
    for position in sorted(positions):
        hasher.update(_bytes(text[begin:position]))
        keys.append(_key(hasher))
        begin = position
    return tuple(reversed(keys))


def session_of(body: Mapping[str, object], fields: Iterable[str]) -> str:
    """Return the first of these fields of a request that is a text and not empty, otherwise ""."""
    for field in fields:
        value = body.get(field)
        if isinstance(value, str) and value:
            return value[:MAX_LENGTH]
    return ""


def prompt_of(body: Mapping[str, object]) -> list[str]:
    """Return the pieces of the prompt of a chat or of a completion. Return nothing for other requests.

    A chat has `messages`, with their contents as a text or as parts. It may have a `system` text, as Anthropic's has. A
    completion has a `prompt`: a text, token ids, or a list of prompts, of which the first one counts. Parts of another
    shape are left out, so this never raises an error for decoded JSON.
    """
    messages = body.get("messages")
    if isinstance(messages, list):
        system = [{"role": "system", "content": body["system"]}] if "system" in body else []
        return [_message(message) for message in (*system, *messages[:MAX_ITEMS])]
    prompt = body.get("prompt")
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        prompt = prompt[0]
    if isinstance(prompt, list) and prompt:
        return ["".join(f"{token:x}," for token in prompt[:MAX_ITEMS] if isinstance(token, int))]
    return [prompt] if isinstance(prompt, str) else []


def prompt_of_response(body: Mapping[str, object]) -> list[str]:
    """Return the pieces of the prompt of a request for `/v1/responses`, as prompt_of().

    It has `instructions`, and an `input`: a text, or a list of messages, calls of functions and their results.
    """
    given, start = body.get("input"), body.get("instructions")
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    items = given[:MAX_ITEMS] if isinstance(given, list) else []
    return [_item(item) for item in ([{"role": "system", "content": start}] if start else []) + items]


def _item(item: object) -> str:
    """Return what is hashed of an item of `input`: a message, a call of a function or its result."""
    if isinstance(item, dict) and item.get("content") is None:
        item = {"role": item.get("type"), "content": item.get("output") or item.get("arguments")}
    return _message(item)


def _message(message: object) -> str:
    """Return what is hashed of a message. The role and the zero characters separate it from other messages."""
    if not isinstance(message, dict):
        return "\0"
    role, content = message.get("role"), message.get("content")
    if isinstance(content, list):
        content = "\0".join(map(_part, content[:MAX_ITEMS]))
    return f"{role if isinstance(role, str) else ''}\0{content if isinstance(content, str) else ''}\0"


def _part(part: object) -> str:
    """Return what is hashed of a part of a message: its text, or a hash of the URL or of the data of its image."""
    if not isinstance(part, dict):
        return part if isinstance(part, str) else ""
    text = part.get("text")
    if isinstance(text, str):
        return text
    media = part.get("image_url") or part.get("source") or part.get("input_audio")
    if isinstance(media, dict):
        media = media.get("url") or media.get("data")
    if not isinstance(media, str):
        return ""
    # The length and both ends are enough to identify an image. Hashing all of it would take milliseconds.
    ends = media if len(media) <= 2 * _MAX_MEDIA else media[:_MAX_MEDIA] + media[-_MAX_MEDIA:]
    return _key(_hasher(str(len(media)), ends))


def _hasher(*texts: str) -> "hashlib._Hash":
    # Most processors have instructions for SHA-256. With them, it takes half the time of BLAKE2b.
    return hashlib.sha256(_bytes("\0".join(texts) + "\0"), usedforsecurity=False)


def _key(hasher: "hashlib._Hash") -> str:
    return hasher.hexdigest()[:_KEY_LENGTH]  # this does not change the hasher


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # JSON may contain half of a surrogate pair
