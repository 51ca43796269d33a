"""The names of all keys. Nothing else in Python makes one; in Lua, `lua/include/key.lua` alone does.

The namespace in braces is a hash tag: all keys of a namespace are in one slot of a Redis Cluster. Only the first
pair of braces counts, so nothing that follows, be it a worker's or a model's name, can move a key.

A pool is named as its model, where its workers serve no other; "\\x1e" and a digest, where they serve the same set of
several models; "\\x1f" and the name of the model: the rest (lua/include/pools_of.lua).
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
    """SET: the models that have a pool with workers."""
    return f"{{{name}}}:models"


def pools(name: str, model_name: str) -> str:
    """STRING: the pools of a model, each followed by a line break; without it, the pool is named as the model."""
    return f"{{{name}}}:pools:{model_name}"


def rest(name: str) -> str:
    """SET: the workers that are indexed for each of their models, because these have too many pools."""
    return f"{{{name}}}:rest"


def model(name: str, pool: str) -> str:
    """ZSET: the first index of a pool for shortest_queue, `<turn in 16 digits><worker's name>` by what stays."""
    return f"{{{name}}}:model:{pool}"


def fading(name: str, pool: str) -> str:
    """ZSET: the second index of a pool for shortest_queue, worker's name by the logarithm of what fades."""
    return f"{{{name}}}:fading:{pool}"


def fronts_model(name: str) -> str:
    """HASH: what stands in front of the first index, by pool: score and turn."""
    return f"{{{name}}}:fronts_model"


def fronts_fading(name: str) -> str:
    """HASH: what stands in front of the second index, by pool: the score."""
    return f"{{{name}}}:fronts_fading"


def fade(name: str, pool: str) -> str:
    """STRING: how the bookings of a pool fade, and what was learned of it. With a TTL, if no worker is in it."""
    return f"{{{name}}}:fade:{pool}"


def lottery(name: str, pool: str) -> str:
    """ZSET: the workers of a pool that the lottery draws from, by speed: those that serve."""
    return f"{{{name}}}:lottery:{pool}"


def lottery_failing(name: str, pool: str) -> str:
    """ZSET: the workers of a pool that the lottery draws from if no other is alive, by speed: those that fail."""
    return f"{{{name}}}:lottery_failing:{pool}"


def odds(name: str, pool: str) -> str:
    """STRING: the speed bands of a pool's lottery, cached until its workers change."""
    return f"{{{name}}}:odds:{pool}"


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
