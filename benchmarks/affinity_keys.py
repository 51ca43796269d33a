"""Compare positions at which the keys of a prompt may end, by the length of the shared beginnings that they find.

    python benchmarks/affinity_keys.py

For each prompt, the longest beginning that it shares with an earlier prompt is measured, in steps of 64 characters. A
dispatch sees only beginnings that end at a key. The table shows which share of the shared length the keys find, over
all prompts, and the mean number of keys. Below the table is how long a replica takes to compute the keys of a chat.
"""

import argparse
import hashlib
import json
import random
import timeit
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Final

from rich.console import Console
from rich.table import Table

from controller.domain.affinity import BOUNDARIES, LAST_ENDS, MIN_SHARED, prefix_keys, prompt_of

STEP: Final = 64


def doubling(first: int, number: int) -> list[int]:
    return [first * 2**i for i in range(number)]


# The boundaries, and how many of the last messages have a key at their ends.
SCHEMES: Final[dict[str, tuple[Sequence[int], int]]] = {
    "12 boundaries, doubling": (doubling(256, 12), 0),
    "12 boundaries, times 1.5": ([int(256 * 1.5**i) for i in range(12)], 0),
    "12 ends": ([], 12),
    "9 boundaries, 3 ends": (doubling(256, 9), 3),
    "8 boundaries, 4 ends": (doubling(512, 8), 4),
    "ours: 7 boundaries, 5 ends": (BOUNDARIES, LAST_ENDS),
    "5 boundaries, times 4, 7 ends": ([256 * 4**i for i in range(5)], 7),
}


def text(rng: random.Random, mean: float) -> str:
    return rng.randbytes(max(1, round(rng.lognormvariate(0, 0.8) * mean) // 2)).hex()


def chats(rng: random.Random, tools: bool = False) -> Iterator[list[str]]:
    """Conversations with one of 20 system prompts. With tools, an answer may be up to 3 calls, with a result each."""
    systems = [text(rng, 1800) for _ in range(20)]
    conversations: list[list[str]] = []
    while True:
        if conversations and rng.random() < 0.8:
            messages = rng.choice(conversations[-40:])
            if tools:
                messages += ["calls", *(text(rng, 400) for _ in range(rng.choice([1, 1, 2, 3])))]
            if not tools or rng.random() < 0.5:
                messages += [text(rng, 800), text(rng, 150)]
        else:
            messages = [rng.choice(systems), text(rng, 150)]
            conversations.append(messages)
        yield list(messages)


def documents(rng: random.Random) -> Iterator[list[str]]:
    """A question after one of 100 documents, in one message."""
    texts = [text(rng, 8000) for _ in range(100)]
    while True:
        yield ["x" * 800, rng.choice(texts) + text(rng, 100)]


def examples(rng: random.Random) -> Iterator[list[str]]:
    """A completion after one of 30 sets of examples."""
    heads = [text(rng, 4000) for _ in range(30)]
    while True:
        yield [rng.choice(heads) + text(rng, 150)]


WORKLOADS: Final[dict[str, Callable[[random.Random], Iterator[list[str]]]]] = {
    "chats": chats,
    "chats with tools": lambda rng: chats(rng, tools=True),
    "documents": documents,
    "examples": examples,
}


def hashes(prompt: str, positions: Sequence[int]) -> list[tuple[int, bytes]]:
    hasher = hashlib.sha256()
    found, begin = [], 0
    for position in sorted(set(positions)):
        hasher.update(prompt[begin:position].encode())
        found.append((position, hasher.digest()))
        begin = position
    return found


def positions_of(messages: Sequence[str], boundaries: Sequence[int], ends: int) -> list[int]:
    all_ends = list(accumulate(map(len, messages)))
    last = [end for end in all_ends[len(all_ends) - ends :] if end >= MIN_SHARED] if ends else []
    return [*last, *(boundary for boundary in boundaries if boundary <= all_ends[-1])]


def longest(found: Sequence[tuple[int, bytes]], seen: set[bytes]) -> int:
    """Return the length of the longest beginning that was seen before, and add all of them."""
    length = max((position for position, digest in found if digest in seen), default=0)
    seen.update(digest for _, digest in found)
    return length


def best_time(function: Callable[[], object]) -> float:
    """Return the shortest mean time of a call, in microseconds."""
    return min(timeit.repeat(function, number=1000, repeat=15)) * 1000


def print_times(messages: int, characters: int) -> None:
    body = {"messages": [{"role": "user", "content": f"{i:03}".ljust(characters, "x")} for i in range(messages)]}
    text = json.dumps(body)
    keys = best_time(lambda: prefix_keys("m", prompt_of(body)))
    decoding = best_time(lambda: json.loads(text))
    print(
        f"{messages} messages of {characters} characters: "
        f"{keys:.0f} us for the keys, {decoding:.0f} us to decode the JSON"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=3000)
    number = parser.parse_args().prompts
    table = Table("keys", *WORKLOADS, "mean number of keys")
    rows: dict[str, list[float]] = {scheme: [] for scheme in SCHEMES}
    counts: dict[str, int] = dict.fromkeys(SCHEMES, 0)
    for workload in WORKLOADS.values():
        source = workload(random.Random(0))
        prompts = [next(source) for _ in range(number)]
        seen: set[bytes] = set()
        whole = ["".join(messages) for messages in prompts]
        shared = sum(longest(hashes(prompt, range(STEP, len(prompt) + 1, STEP)), seen) for prompt in whole)
        for scheme, (boundaries, ends) in SCHEMES.items():
            seen = set()
            matched = 0
            for messages, prompt in zip(prompts, whole, strict=True):
                positions = positions_of(messages, boundaries, ends)
                matched += longest(hashes(prompt, positions), seen)
                counts[scheme] += len(set(positions))
            rows[scheme].append(matched / shared)
    for scheme, shares in rows.items():
        texts = [f"{100 * min(1, share):.0f} %" for share in shares]
        table.add_row(scheme, *texts, f"{counts[scheme] / number / len(WORKLOADS):.1f}")
    Console(width=120).print(table)
    print_times(10, 400)
    print_times(60, 800)


if __name__ == "__main__":
    main()
