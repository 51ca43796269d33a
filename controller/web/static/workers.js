// The table of workers.

import { html, nothing } from "./vendor/lit-html/lit-html.js";
import { repeat } from "./vendor/lit-html/directives/repeat.js";
import { link } from "./address.js";
import { duration, number, visible } from "./format.js";
import { Order, pageNumber } from "./order.js";
import { badge, bar, name, pager, queue, shortName, sortable } from "./widgets.js";

const PAGE = 50; // rows: a page of thousands of workers has as many elements as one of 50
const STATES = ["serving", "full", "draining", "drained", "failing", "late", "stalled"];
const LABELS = { late: "late heartbeat" };
const LEVELS = { bad: 0, warn: 1, idle: 2, good: 3 };

let cluster = null; // the last state, for the columns

const order = new Order({
  rows: "#workers tbody",
  nameOf: (worker) => worker.worker_name,
  columns: {
    name: (worker) => worker.worker_name,
    state: (worker) => LEVELS[cluster.state(worker).level],
    queue: (worker) => worker.queue_length,
    leased: (worker) => worker.leased,
    heartbeat: (worker) => cluster.heartbeat(worker)?.left ?? Number.MAX_VALUE,
    stalled: (worker) => cluster.stalled(worker) ?? -1,
  },
});

/** Return the workers that the search and the filters let through. */
function chosen({ view }) {
  const wanted = view.q.toLowerCase();
  return [...cluster.workers.values()].filter((worker) =>
    (!view.serves || cluster.serves(worker, view.serves)) &&
    (!view.state || cluster.state(worker).key === view.state) &&
    (!wanted || worker.worker_name.toLowerCase().includes(wanted) || worker.model_names.some((model) => model.toLowerCase().includes(wanted))));
}

/** The section of the page. */
export function workersView(app) {
  const { view } = app;
  cluster = app.cluster;
  const sort = view.sort || "name";
  const workers = order.apply(chosen(app), sort);
  const pages = Math.ceil(workers.length / PAGE);
  const page = pageNumber(view.page, pages);
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
        ${column("stalled", "Stalled for", { className: "number stalled", first: "-", title: "Time for which none of its requests has finished" })}
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
  const { view } = app;
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
    <td class="number stalled">${stalled === null || stalled < 10 ? html`<span class="muted">–</span>` : duration(stalled)}</td>
    <td class="heartbeat">${heartbeat === null
      ? html`<span class="muted">sends none</span>`
      : html`<div class="meter"><span class="amount">${duration(heartbeat.age)}</span>${bar(heartbeat.share, 1, { level })}</div>`}</td>
  </tr>`;
}
