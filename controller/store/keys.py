"""The names of all keys. No other Python module makes key names; in Lua only `lua/include/key.lua` does.

The namespace in braces is a hash tag: all keys of a namespace are in one slot of a Redis Cluster. Only the first
pair of braces counts, so what follows, such as the name of a worker or of a model, cannot move a key.

A pool is a set of workers with indexes of its own, see `lua/include/pools/pools_of.lua`. Its name is that of its model,
or "\\x1e" and the digest of a set of models, or "\\x1f" and a model for the overflow pool of a model.

Each docstring begins with the type of the key, which the tests compare with the headers of the scripts.
"""


def namespace(name: str) -> str:
    """Return the prefix of all keys, which is the KEYS[1] of every script."""
    return f"{{{name}}}"


def workers(name: str) -> str:
    """ZSET: the names of the registered workers, by the time in ms at which their heartbeat expires."""
    return f"{{{name}}}:workers"


def worker(name: str, worker_name: str) -> str:
    """HASH: the state of a worker."""
    return f"{{{name}}}:worker:{worker_name}"


def checkpoints(name: str, worker_name: str) -> str:
    """STRING: checkpoints, the numbers of requests dispatched to a worker since its last report, at several times."""
    return f"{{{name}}}:checkpoints:{worker_name}"


def heartbeat(name: str, worker_name: str) -> str:
    """STRING: exists while the worker is alive. Its TTL is the heartbeat expiration."""
    return f"{{{name}}}:heartbeat:{worker_name}"


def removed(name: str, worker_name: str) -> str:
    """STRING with a TTL: the worker was removed, so no replica restores it from its snapshot."""
    return f"{{{name}}}:removed:{worker_name}"


def draining(name: str, worker_name: str) -> str:
    """STRING with a TTL: the worker was purged while it was draining, so it still drains when it registers again."""
    return f"{{{name}}}:draining:{worker_name}"


def capacities(name: str) -> str:
    """HASH: the capacities that were set, by `worker:<worker name>` and `model:<model name>`, and their `version`."""
    return f"{{{name}}}:capacities"


def tokens(name: str) -> str:
    """HASH: the tokens that were created, by `entry:<name>`, their `version` and their latest `change`."""
    return f"{{{name}}}:tokens"


def engines(name: str) -> str:
    """HASH: the engines that were registered to be polled, by `entry:<name>`, and the rest as in `tokens`."""
    return f"{{{name}}}:engines"


def routes(name: str) -> str:
    """HASH: the routes of models, by `entry:<model>`, and the rest as in `tokens`."""
    return f"{{{name}}}:routes"


def models(name: str) -> str:
    """SET: the models that have a pool with workers."""
    return f"{{{name}}}:models"


def pools(name: str, model_name: str) -> str:
    """STRING: the pools of a model, each followed by a line break. Without it, the model has one pool, its own."""
    return f"{{{name}}}:pools:{model_name}"


def overflow(name: str) -> str:
    """SET: the workers in overflow pools, which are indexed for each of their models."""
    return f"{{{name}}}:overflow"


def cost_index(name: str, pool: str) -> str:
    """ZSET: `<sequence number><name>` of a pool's workers, by the part of their cost that time does not change."""
    return f"{{{name}}}:cost_index:{pool}"


def decay_index(name: str, pool: str) -> str:
    """ZSET: the names of a pool's workers, by the logarithm of their untracked load."""
    return f"{{{name}}}:decay_index:{pool}"


def cost_heads(name: str) -> str:
    """HASH: score and sequence number of the first worker in the cost index, by pool."""
    return f"{{{name}}}:cost_heads"


def decay_heads(name: str) -> str:
    """HASH: score of the first worker in the decay index, by pool."""
    return f"{{{name}}}:decay_heads"


def decay(name: str, pool: str) -> str:
    """STRING: the decay clock of a pool, and the observations behind it. It has a TTL while no worker is in the pool.

    Pools of engines have none.
    """
    return f"{{{name}}}:decay:{pool}"


def lottery(name: str, pool: str) -> str:
    """ZSET: the names of a pool's workers that are not failing, by speed."""
    return f"{{{name}}}:lottery:{pool}"


def lottery_failing(name: str, pool: str) -> str:
    """ZSET: the names of a pool's failing workers, by speed. The lottery draws from them if all are failing."""
    return f"{{{name}}}:lottery_failing:{pool}"


def odds(name: str, pool: str) -> str:
    """STRING: the speed bands of a pool's lottery, cached until its workers change."""
    return f"{{{name}}}:odds:{pool}"


def leases(name: str) -> str:
    """ZSET with a TTL: the active leases, by the time in ms at which they expire."""
    return f"{{{name}}}:leases"


def token_leases(name: str) -> str:
    """HASH: the number of active leases by token, of tokens whose leases are limited."""
    return f"{{{name}}}:token_leases"


def token_workers(name: str) -> str:
    """HASH: the number of registered workers by the token that registered them."""
    return f"{{{name}}}:token_workers"


def replicas(name: str) -> str:
    """ZSET: the ids of the live replicas, by the time in ms at which their membership expires."""
    return f"{{{name}}}:replicas"


def replica_descriptions(name: str) -> str:
    """HASH: what the live replicas are, as JSON, by id."""
    return f"{{{name}}}:replica_descriptions"


def listings(name: str) -> str:
    """HASH: the number of the last listing of each replica, by its id. At most 1,000 belong to expired replicas."""
    return f"{{{name}}}:listings"


def sequence(name: str) -> str:
    """STRING: counter that numbers registrations, requested dispatches, drains and removals."""
    return f"{{{name}}}:sequence"


def reply(name: str, request_id: str) -> str:
    """STRING with a TTL: the reply to a call that changes something, in case the call is repeated."""
    return f"{{{name}}}:reply:{request_id}"


def job(name: str, job_name: str) -> str:
    """STRING with a TTL: the lock of a singleton job: the replica that has it, or "" until the job is due again."""
    return f"{{{name}}}:job:{job_name}"


def job_result(name: str, job_name: str) -> str:
    """STRING with a TTL: the result of the last run of a singleton job."""
    return f"{{{name}}}:job_result:{job_name}"


def affinity(name: str, generation: str) -> str:
    """HASH with a TTL: the worker that was remembered for each key of an affinity, by key. See `--affinity-ttl`."""
    return f"{{{name}}}:affinity:{generation}"


def events(name: str) -> str:
    """STREAM: about the last 10,000 events: what happened to workers, models, replicas and the store."""
    return f"{{{name}}}:events"


def sweep(name: str) -> str:
    """STRING with a TTL: exists after the sweep of the current interval."""
    return f"{{{name}}}:sweep"


def check(name: str) -> str:
    """STRING with a TTL: written to check that Redis accepts writes."""
    return f"{{{name}}}:check"


def schema(name: str) -> str:
    """STRING: the version of this key layout. Replicas with another version do not serve."""
    return f"{{{name}}}:schema"


def epoch(name: str) -> str:
    """STRING: a random id of the data in Redis. A different one means that Redis lost data."""
    return f"{{{name}}}:epoch"


def refresh(name: str) -> str:
    """STRING with a TTL: the lock of the replica that probes all workers."""
    return f"{{{name}}}:refresh"
