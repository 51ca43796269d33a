"""The names of all keys. Nothing else in Python makes one; in Lua, `lua/include/key.lua` alone does.

The namespace in braces is a hash tag: all keys of a namespace are in one slot of a Redis Cluster. Only the first
pair of braces counts, so nothing that follows, be it a worker's or a model's name, can move a key.
"""


def namespace(name: str) -> str:
    """What every key begins with, and the KEYS[1] of every script."""
    return f"{{{name}}}"


def workers(name: str) -> str:
    """ZSET: the names of the registered workers, by the time in ms at which their heartbeat lapses."""
    return f"{{{name}}}:workers"


def worker(name: str, worker_name: str) -> str:
    """HASH: what is known of a worker."""
    return f"{{{name}}}:worker:{worker_name}"


def heartbeat(name: str, worker_name: str) -> str:
    """STRING: exists while the worker is alive; its TTL is the heartbeat expiration."""
    return f"{{{name}}}:heartbeat:{worker_name}"


def removed(name: str, worker_name: str) -> str:
    """STRING with a TTL: exists after a worker was removed, so that nobody restores it from old knowledge."""
    return f"{{{name}}}:removed:{worker_name}"


def draining(name: str, worker_name: str) -> str:
    """STRING with a TTL: exists after a worker that drained was forgotten, so that it still drains when it is back."""
    return f"{{{name}}}:draining:{worker_name}"


def models(name: str) -> str:
    """SET: the models that have an index."""
    return f"{{{name}}}:models"


def model(name: str, model_name: str) -> str:
    """ZSET: the first index of a model for shortest_queue, `<turn in 16 digits><worker's name>` by what stays."""
    return f"{{{name}}}:model:{model_name}"


def fading(name: str, model_name: str) -> str:
    """ZSET: the second index of a model for shortest_queue, worker's name by the logarithm of what fades."""
    return f"{{{name}}}:fading:{model_name}"


def fade(name: str, model_name: str) -> str:
    """STRING: how the bookings of a model fade, and what was learned of it. With a TTL, if no worker serves it."""
    return f"{{{name}}}:fade:{model_name}"


def lottery(name: str, model_name: str) -> str:
    """ZSET: the workers of a model that the lottery draws from, by speed: those that serve."""
    return f"{{{name}}}:lottery:{model_name}"


def lottery_failing(name: str, model_name: str) -> str:
    """ZSET: the workers of a model that the lottery draws from if no other is alive, by speed: those that fail."""
    return f"{{{name}}}:lottery_failing:{model_name}"


def odds(name: str, model_name: str) -> str:
    """STRING: the speed bands of a model's lottery, cached until its workers change."""
    return f"{{{name}}}:odds:{model_name}"


def leases(name: str) -> str:
    """ZSET with a TTL: the leases that are out, by the time in ms at which they end by themselves."""
    return f"{{{name}}}:leases"


def replicas(name: str) -> str:
    """ZSET with a TTL: the ids of the replicas, by the time in ms until which they are believed to be there."""
    return f"{{{name}}}:replicas"


def sequence(name: str) -> str:
    """STRING: the number of registrations, requested dispatches, drains and removals. Turns are taken from it."""
    return f"{{{name}}}:sequence"


def reply(name: str, request_id: str) -> str:
    """STRING with a TTL: the answer to a call that changes something, for the case that the call is repeated."""
    return f"{{{name}}}:reply:{request_id}"


def duty(name: str, what: str) -> str:
    """STRING with a TTL: the replica that does what one of all has to do now and then; "" until it is due again."""
    return f"{{{name}}}:duty:{what}"


def told(name: str, what: str) -> str:
    """STRING with a TTL: what was told when a duty was done last."""
    return f"{{{name}}}:told:{what}"


def sweep(name: str) -> str:
    """STRING with a TTL: exists while the sweep of the current interval is done."""
    return f"{{{name}}}:sweep"


def check(name: str) -> str:
    """STRING with a TTL: written to prove that the store takes writes."""
    return f"{{{name}}}:check"


def schema(name: str) -> str:
    """STRING: the version of this layout of keys; replicas that work with another do not serve."""
    return f"{{{name}}}:schema"


def epoch(name: str) -> str:
    """STRING: a random name for the memory of the store; another one means that it has been lost."""
    return f"{{{name}}}:epoch"


def refresh(name: str) -> str:
    """STRING with a TTL: the lock of the replica that is asking all workers for their status."""
    return f"{{{name}}}:refresh"
