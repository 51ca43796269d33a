// What needs attention, the worst first.

import { html, nothing } from "./vendor/lit-html/lit-html.js";
import { link } from "./address.js";
import { count, duration, number, time } from "./format.js";
import { badge, name } from "./widgets.js";

const SINGLY = 4; // more than these of one kind are one line
const RANKS = { bad: 0, warn: 1, idle: 2 };

/** Return problems as {level, label, text}. */
export function problems({ cluster, events, view }) {
  const workers = Map.groupBy(cluster.workers.values(), (worker) => cluster.state(worker).key);
  return [
    ...unserved(cluster, view),
    ...OF_WORKERS.flatMap((kind) => ofWorkers(workers.get(kind.state) ?? [], kind, cluster, view)),
    ...saturated(cluster, view),
    ...engines(cluster.head, events),
    ...versions(cluster.head),
    ...parents(cluster),
  ].sort((one, other) => RANKS[one.level] - RANKS[other.level]);
}

/** The states of workers that are problems: what is wrong with one, and with many. */
const OF_WORKERS = [
  {
    state: "failing", label: "failing", level: "bad",
    one: (worker) => (worker.failing === "polls" ? "does not answer polls." : "has failed a request."),
    many: "are failing.",
  },
  {
    state: "late", label: "heartbeat", level: "warn",
    one: (worker, cluster) => {
      const { age, left } = cluster.heartbeat(worker);
      return left > 0 ? `has sent no heartbeat for ${duration(age)}. It expires in ${duration(left)}.` : "is overdue.";
    },
    many: "have sent no heartbeat for long, and are about to expire.",
  },
  {
    state: "stalled", label: "stalled", level: "warn",
    one: (worker, cluster) =>
      `has reported ${count(worker.reported, "request")}, none of which has finished for ${duration(cluster.stalled(worker))}.`,
    many: "report requests, but none of their requests has finished for a while.",
  },
  {
    state: "drained", label: "drained", level: "idle",
    one: () => "has finished its requests. You can stop it.",
    many: "have finished their requests. You can stop them.",
  },
];

/** Return a problem for each worker, or one for all if they are many. */
function ofWorkers(workers, { state, label, level, one, many }, cluster, view) {
  if (workers.length > SINGLY) {
    const href = link(view, { state, q: "", serves: "", page: "" });
    return [{ level, label, text: html`<a href=${href}>${count(workers.length, "worker")}</a> ${many}` }];
  }
  return workers.map((worker) => {
    const href = link(view, { worker: worker.worker_name, model: "" });
    return { level, label, text: html`<a href=${href}>${name(worker.worker_name)}</a> ${one(worker, cluster)}` };
  });
}

/** Models that had a worker a while ago, and models whose workers all drain or fail. */
function unserved(cluster, view) {
  const { missing_models: missing = [] } = cluster.head; // an older replica does not send them
  const found = missing.map(({ model, since }) => ({ model, text: html`has no worker since ${time(since)}.` }));
  for (const model of cluster.canDispatch ? cluster.models.values() : []) { // otherwise no model is served
    if (!model.serving) found.push({ model: model.name, text: html`has ${count(model.workers, "worker")}, and none of them serves.` });
  }
  const shown = found.slice(0, SINGLY).map(({ model, text }) => ({
    level: "bad",
    label: "no worker",
    text: html`<a href=${link(view, { model })}>${name(model)}</a> ${text}`,
  }));
  const more = found.length - shown.length;
  return more ? [...shown, { level: "bad", label: "no worker", text: `${count(more, "other model")} without a worker that serves.` }] : shown;
}

function saturated(cluster, view) {
  const found = [...cluster.models.values()].filter((model) => model.capacity && model.sized > model.capacity);
  found.sort((one, other) => other.sized / other.capacity - one.sized / one.capacity);
  return found.slice(0, SINGLY).map((model) => ({
    level: "warn",
    label: "saturated",
    text: html`<a href=${link(view, { model: model.name })}>${name(model.name)}</a> has ${count(model.sized, "request")} for
      ${count(model.capacity, "slot")}. New requests wait.`,
  }));
}

/** Registered engines that are not alive, with the last reason that is known. */
function engines({ missing_engines: missing = [] }, events) {
  const reasons = new Map();
  for (const { kind, worker, reason } of events) {
    if (kind === "engine_unavailable") reasons.set(worker, reason);
  }
  const shown = missing.slice(0, SINGLY).map((engine) => ({
    level: "bad",
    label: "engine",
    text: html`${name(engine)} is registered, but gets no requests${reasons.has(engine) ? `: ${reasons.get(engine)}` : "."}`,
  }));
  const more = missing.length - shown.length;
  return more ? [...shown, { level: "bad", label: "engine", text: `${count(more, "other engine")} not alive. See controller engines.` }] : shown;
}

function versions({ replicas }) {
  const found = new Set(replicas.map((replica) => replica.version || "unknown"));
  if (found.size < 2) return [];
  return [{ level: "warn", label: "versions", text: `The replicas run different versions: ${[...found].sort().join(", ")}.` }];
}

function parents({ head }) {
  return head.parents.filter((parent) => parent.is_failing).map((parent) => ({
    level: "bad",
    label: "parent",
    text: html`${name(parent.address)} does not accept the heartbeats of this replica.`,
  }));
}

/** The section of the page. */
export function problemsView(app) {
  const found = problems(app);
  return html`<section aria-labelledby="problems-title" id="problems">
    <h2 id="problems-title">Needs attention ${found.length ? html`<span class="muted">${found.length}</span>` : nothing}</h2>
    ${found.length
      ? html`<ul class="problems">${found.map((problem) => html`<li>${badge(problem)}<span>${problem.text}</span></li>`)}</ul>`
      : html`<p class="calm">Nothing.</p>`}
  </section>`;
}
