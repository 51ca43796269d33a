// The state of the cluster, as the stream of GET /overview sends it, and what follows from it.

const HISTORY = 60; // messages, one a second
const LATE = 1 / 3; // of the time between a heartbeat and its expiration. FastChat's workers use half of it

export class Cluster {
  workers = new Map(); // by name
  head = null; // all other parts of the last message
  removed = 0; // how many workers have been removed, and added, so that lists notice it
  added = 0;
  #queues = new Map(); // the last queue lengths, by worker
  #offset = 0;
  #models = null;

  /** Apply a message of the stream. */
  apply(kind, { workers, removed = [], ...head }) {
    if (kind === "state") {
      const names = new Set(workers.map((row) => row.worker_name));
      removed = [...this.workers.keys()].filter((name) => !names.has(name));
    }
    for (const row of workers) {
      const known = this.workers.get(row.worker_name);
      this.added += known ? 0 : 1;
      if (row.model_names) row.models_key = JSON.stringify(row.model_names);
      this.workers.set(row.worker_name, known ? Object.assign(known, row) : row);
    }
    for (const name of removed) {
      this.workers.delete(name);
      this.#queues.delete(name);
      this.removed += 1;
    }
    for (const [name, worker] of this.workers) {
      const queues = this.#queues.get(name) ?? [];
      queues.push(worker.queue_length);
      if (queues.length > HISTORY) queues.shift();
      this.#queues.set(name, queues);
    }
    this.head = head;
    this.#offset = head.time - performance.now() / 1000;
    this.#models = null;
  }

  /** The time in seconds since 1970, by the clock of the replica. */
  get now() {
    return performance.now() / 1000 + this.#offset;
  }

  /** The age in seconds of what is shown of the workers. */
  get age() {
    return this.head?.seen_at == null ? null : this.now - this.head.seen_at;
  }

  /** Whether requests get a worker from the replica. One of an older version does not say it. */
  get canDispatch() {
    return this.head?.can_dispatch !== false;
  }

  queues(name) {
    return this.#queues.get(name) ?? [];
  }

  /** The models by name, each with its workers, and its load. Capacity and its queue are those of workers with one. */
  get models() {
    if (this.#models) return this.#models;
    const groups = new Map(); // many workers have the same models
    for (const worker of this.workers.values()) {
      if (!groups.has(worker.models_key)) groups.set(worker.models_key, []);
      groups.get(worker.models_key).push(worker);
    }
    this.#models = new Map();
    for (const workers of groups.values()) {
      const load = loadOf(workers);
      for (const name of workers[0].model_names) {
        const model = this.#models.get(name) ?? { name, workers: 0, serving: 0, queue: 0, leased: 0, capacity: 0, sized: 0 };
        for (const [part, value] of Object.entries(load)) model[part] += value;
        if (!this.canDispatch) model.serving = 0;
        this.#models.set(name, model);
      }
    }
    return this.#models;
  }

  /** The load of all workers. */
  get load() {
    return loadOf([...this.workers.values()]);
  }

  serves(worker, model) {
    return worker.model_names.includes(model);
  }

  /** Seconds until a worker expires, and their share of the whole time. null for a worker without heartbeats. */
  heartbeat(worker) {
    if (worker.expires_at === null) return null;
    const left = worker.expires_at - this.now;
    const whole = Math.max(0.1, worker.expires_at - (worker.heartbeat_at ?? this.now));
    return { age: this.now - worker.heartbeat_at, left, share: Math.max(0, Math.min(1, left / whole)) };
  }

  /** Seconds for which none of the requests of a worker has finished. null if it has none, or reports nothing. */
  stalled(worker) {
    if (worker.stalled_since === null) return null;
    return Math.max(0, Math.min(this.now, this.head.seen_at) - worker.stalled_since);
  }

  /** Return {key, label, level} of a worker. level: "bad", "warn", "idle" or "good". */
  state(worker) {
    if (worker.drained) return { key: "drained", label: "drained", level: "idle" };
    if (worker.draining) return { key: "draining", label: "draining", level: "idle" };
    if (worker.failing) return { key: "failing", label: "failing", level: "bad" };
    const heartbeat = this.heartbeat(worker);
    if (heartbeat && heartbeat.left <= 0) return { key: "late", label: "overdue", level: "bad" };
    // Before "late", which a stalled worker is from time to time: `controller workers` calls it stalled throughout.
    if (this.stalled(worker) >= this.head.stalled_after) return { key: "stalled", label: "stalled", level: "warn" };
    if (heartbeat && heartbeat.share < LATE) return { key: "late", label: "late", level: "warn" };
    const isFull = worker.capacity !== null && worker.queue_length >= worker.capacity;
    return isFull ? { key: "full", label: "full", level: "good" } : { key: "serving", label: "serving", level: "good" };
  }
}

function loadOf(workers) {
  const load = { workers: workers.length, serving: 0, queue: 0, leased: 0, capacity: 0, sized: 0 };
  for (const worker of workers) {
    load.queue += worker.queue_length;
    load.leased += worker.leased;
    if (worker.draining) continue; // it has requests, but no slot for new ones
    load.serving += worker.failing ? 0 : 1;
    if (worker.capacity !== null) {
      load.capacity += worker.capacity;
      load.sized += worker.queue_length;
    }
  }
  return load;
}
