"""Inference engines as workers: the protocol that they speak, and what a replica has to know to send them requests."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Final

from controller.domain.errors import InvalidInput

# Stands before the name of a model that a worker serves by OpenAI's protocol. No name of a model has this character.
RESERVED: Final = "\x1d"


class Protocol(StrEnum):
    """The protocol of a request, and of the workers that it may go to."""

    FASTCHAT = "fastchat"
    OPENAI = "openai"


def indexed_name(model: str, protocol: Protocol) -> str:
    """Return the name under which Redis and snapshots index a model.

    A model may have workers of both protocols. They have indexes of their own, so that a request finds only workers
    that understand it, without a search.
    """
    return RESERVED + model if protocol is Protocol.OPENAI else model


def model_of(indexed: str) -> str:
    """Return the name of a model from its name in the indexes."""
    return indexed[1:] if indexed[:1] == RESERVED else indexed


def protocol_of(indexed: str) -> Protocol:
    """Return the protocol from the name of a model in the indexes."""
    return Protocol.OPENAI if indexed[:1] == RESERVED else Protocol.FASTCHAT


@dataclass(frozen=True, slots=True)
class Engine:
    """The facts that a replica needs about a worker that is an inference engine.

    kind: such as "vllm".
    aliases: the engine's own name of each model that has another name here.
    key: the key that the engine requires. "" if it requires none.
    capacity_learned: its capacity is neither known nor reported, but learned from its load.
    max_lengths: the largest number of tokens of a prompt and its completion, by model, as far as the engine says it.
    hops: if the engine is another cluster, its hop list for each model, as in EngineModel.
    """

    kind: str
    aliases: Mapping[str, str] = field(default_factory=dict)
    key: str = field(default="", repr=False)
    capacity_learned: bool = False
    max_lengths: Mapping[str, int] = field(default_factory=dict)
    hops: Mapping[str, str] = field(default_factory=dict)

    def encode(self) -> str:
        """Return the engine as Redis stores it."""
        return json.dumps(asdict(self), ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def decode(cls, text: str) -> "Engine":
        """Return the engine that encode() wrote. Raises InvalidInput if the text is something else."""
        try:
            fields = json.loads(text)
            kind, aliases, key = fields["kind"], fields["aliases"], fields["key"]
            lengths, hops = fields.get("max_lengths", {}), fields.get("hops", {})
            texts = (kind, key, *aliases, *aliases.values(), *hops.values())
            if all(isinstance(each, str) for each in texts) and all(type(length) is int for length in lengths.values()):
                return cls(kind, aliases, key, bool(fields.get("capacity_learned")), lengths, hops)
        except (ValueError, KeyError, TypeError, AttributeError):
            pass
        raise InvalidInput("engine", "has a form that the controller does not write")
