// The table of workers.

import { html, nothing } from "./vendor/lit-html/lit-html.js";
import { repeat } from "./vendor/lit-html/directives/repeat.js";
import { link } from "./address.js";
import { compare, duration, number, sorting, visible } from "./format.js";
import { badge, bar, name, pager, queue, shortName, sortable } from "./widgets.js";

const PAGE = 50; // rows: a page of thousands of workers has as many elements as one of 50
const RESORT = 3; // seconds for which rows stay where they are, so that a click meets the row that it was meant for
const STATES = ["serving", "full", "draining", "drained", "failing", "late", "stalled"];
const LABELS = { stalled: "no progress", late: "late heartbeat" };
const LEVELS = { bad: 0, warn: 1, idle: 2, good: 3 };

const KEYS = {
  name: () => (worker) => worker.worker_name,
  state: (cluster) => (worker) => LEVELS[cluster.state(worker).level],
  queue: () => (worker) => worker.queue_length,
  leased: () => (worker) => worker.leased,
  heartbeat: (cluster) => (worker) => cluster.heartbeat(worker)?.left ?? Number.MAX_VALUE,
  progress: (cluster) => (worker) => cluster.stalled(worker) ?? -1,
};

const order = { names: new Map(), sort: "", at: 0 }; // the last order of the rows

function chosen({ cluster, view }) {
  const wanted = view.q.toLowerCase();
  return [...cluster.workers.values()].filter((worker) =>
    (!view.serves || cluster.serves(worker, view.serves)) &&
    (!view.state || cluster.state(worker).key === view.state) &&
    (!wanted || worker.worker_name.toLowerCase().includes(wanted) || worker.models_key.toLowerCase().includes(wanted)));
}

/** Sort workers. While the pointer or the focus is in the rows, only new rows move. */
function sorted(workers, cluster, sort) {
  const isUsed = document.querySelector("#workers tbody:is(:hover, :focus-within)") !== null;
  const isStale = performance.now() - order.at > 1000 * RESORT && !isUsed;
  if (sort !== order.sort || isStale || !order.names.size) {
    const [keyOf, direction] = sorting(KEYS, sort);
    const key = keyOf(cluster);
    workers.sort((one, other) => direction * compare(key(one), key(other)) || compare(one.worker_name, other.worker_name));
    Object.assign(order, { sort, at: performance.now(), names: new Map(workers.map((worker, index) => [worker.worker_name, index])) });
    return workers;
  }
  const place = (worker) => order.names.get(worker.worker_name) ?? Number.MAX_VALUE;
  return workers.sort((one, other) => compare(place(one), place(other)) || compare(one.worker_name, other.worker_name));
}

/** The section of the page. */
export function workersView(app) {
  const { cluster, view } = app;
  const sort = view.sort || "name";
  const workers = sorted(chosen(app), cluster, sort);
  const pages = Math.ceil(workers.length / PAGE);
  const page = Math.min(Number(view.page) || 0, Math.max(0, pages - 1));
  const shown = workers.slice(page * PAGE, (page + 1) * PAGE);
  const column = (id, label, options = {}) =>
    sortable(id, label, { sort, onSort: (next) => app.show({ sort: next === "name" ? "" : next, page: "" }), ...options });
  return html`<section aria-labelledby="workers-title" id="workers">
    <div class="title">
      <h2 id="workers-title">Workers <span class="muted">${number(workers.length)}${workers.length < cluster.workers.size ? ` of ${number(cluster.workers.size)}` : ""}</span></h2>
      ${pager({ page, pages, total: workers.length, noun: "workers", shown: [page * PAGE + 1, page * PAGE + shown.length], onPage: (next) => app.show({ page: next ? String(next) : "" }) })}
    </div>
    ${filters(app)}
    ${shown.length ? html`<table>
      <caption class="hidden">Workers, their states, queues and heartbeats</caption>
      <thead><tr>
        ${column("name", "Worker", { className: "name" })}
        ${column("state", "State", { className: "state" })}
        ${column("queue", "Queue", { className: "queue", first: "-", title: "Running and waiting requests, and capacity" })}
        ${column("leased", "Leases", { className: "number leases", first: "-" })}
        ${column("progress", "No progress", { className: "number progress", first: "-", title: "Time in which neither the reported queue has shrunk nor a lease has ended" })}
        ${column("heartbeat", "Heartbeat", { className: "heartbeat", title: "Age of the last heartbeat. The bar runs out when the worker expires." })}
      </tr></thead>
      <tbody>${repeat(shown, (worker) => worker.worker_name, (worker) => row(worker, app))}</tbody>
    </table>` : html`<p class="calm">${cluster.workers.size ? "No worker matches." : "No worker is registered."}</p>`}
  </section>`;
}

function filters(app) {
  const { view } = app;
  const onState = (event) => app.show({ state: event.target.value, page: "" });
  return html`<div class="filters">
    <label>State <select @change=${onState} .value=${view.state}>
      <option value="">all</option>
      ${STATES.map((state) => html`<option value=${state} ?selected=${state === view.state}>${LABELS[state] ?? state}</option>`)}
    </select></label>
    ${view.serves ? html`<button type="button" class="chip" @click=${() => app.show({ serves: "", page: "" })}>
      serves ${name(view.serves)} <span aria-hidden="true">×</span><span class="hidden">(show all)</span></button>` : nothing}
    <button type="button" class="quiet" @click=${() => app.askFor("refresh")}>Refresh…</button>
  </div>`;
}

function row(worker, app) {
  const { cluster, view } = app;
  const heartbeat = cluster.heartbeat(worker);
  const stalled = cluster.stalled(worker);
  const state = cluster.state(worker);
  const level = heartbeat === null ? "good" : heartbeat.left <= 0 ? "bad" : heartbeat.share < 1 / 3 ? "warn" : "good";
  const [first, ...others] = worker.model_names;
  return html`<tr>
    <th scope="row" class="name">
      <a href=${link(view, { worker: worker.worker_name })} title=${visible(worker.worker_name)}>${shortName(worker.worker_name)}</a>
      <span class="models">${first === undefined ? "no models" : name(first)}${others.length ? ` +${others.length}` : ""}</span>
    </th>
    <td class="state">${badge(state)}</td>
    <td class="queue">${queue(worker.queue_length, worker.capacity)}</td>
    <td class="number leases">${worker.leased ? number(worker.leased) : html`<span class="muted">0</span>`}</td>
    <td class="number progress">${stalled === null || stalled < 10 ? html`<span class="muted">–</span>` : duration(stalled)}</td>
    <td class="heartbeat">${heartbeat === null
      ? html`<span class="muted">sends none</span>`
      : html`<div class="meter"><span class="amount">${duration(heartbeat.age)}</span>${bar(heartbeat.share, 1, { level })}</div>`}</td>
  </tr>`;
}
