// What happened recently: the events of GET /events.

import { html, nothing } from "./vendor/lit-html/lit-html.js";
import { link } from "./address.js";
import { count, duration, time } from "./format.js";
import { name } from "./widgets.js";

const SHOWN = 25;

const OF_WORKERS = {
  worker_registered: "registered",
  worker_changed: "registered with other models or another token",
  worker_restored: "is back",
  worker_expired: "expired",
  worker_removed: "was removed",
  worker_draining: "drains",
  worker_resumed: "gets requests again",
  worker_failing: "is failing",
  engine_unavailable: "is not ready",
  worker_recovered: "has recovered",
};
const LEVELS = {
  worker_expired: "bad",
  worker_failing: "bad",
  engine_unavailable: "bad",
  models_vanished: "bad",
  parent_failing: "bad",
  refused: "warn",
  gap: "warn",
  replica_left: "warn",
  store_created: "warn",
  store_recovered: "warn",
  worker_draining: "idle",
  worker_removed: "idle",
};

/** Return an event as a sentence without its end. */
function sentence(event, view) {
  const { kind } = event;
  const worker = event.worker && html`<a href=${link(view, { worker: event.worker, model: "" })}>${name(event.worker)}</a>`;
  if (kind in OF_WORKERS) return html`${worker} ${OF_WORKERS[kind]}`;
  switch (kind) {
    case "models_appeared": return html`${models(event, view)} ${event.count === 1 ? "has" : "have"} a worker`;
    case "models_vanished": return html`${models(event, view)} ${event.count === 1 ? "has" : "have"} no worker`;
    case "replica_joined": return html`Replica ${name(event.replica)} joined`;
    case "replica_left": return html`Replica ${name(event.replica)} left`;
    case "store_created": return "Redis was empty: it is new, or it lost its data";
    case "store_recovered": return html`Replica ${name(event.replica ?? "")} uses Redis again, after ${duration(event.seconds ?? 0)}`;
    case "parent_failing": return html`Parent ${name(event.parent ?? "")} does not accept heartbeats`;
    case "parent_recovered": return html`Parent ${name(event.parent ?? "")} accepts heartbeats again`;
    case "gap": return "Events are missing here";
    case "action":
    case "refused": return html`${kind === "refused" ? "Refused: " : ""}${name(event.action ?? "")} ${name(event.target ?? "")} ${name(event.detail ?? "")}`;
    default: return kind; // of a newer controller
  }
}

function models(event, view) {
  const [first, ...others] = event.models ?? [];
  const more = Math.max(others.length, (event.count ?? 0) - 1);
  const shown = first === undefined ? "No model" : html`<a href=${link(view, { model: first, worker: "" })}>${name(first)}</a>`;
  return html`${shown}${more > 0 ? ` and ${count(more, "other model")}` : nothing}`;
}

/** One event as an item of a list. */
function item(event, view) {
  const level = LEVELS[event.kind] ?? "good";
  return html`<li class=${level}>
    <time datetime=${event.time ? new Date(1000 * event.time).toISOString() : nothing}>${event.time ? time(event.time) : ""}</time>
    <span>${sentence(event, view)}${event.by ? html` <span class="muted">by ${name(event.by)}</span>` : nothing}${
      event.reason ? html`: ${name(event.reason)}` : nothing}</span>
  </li>`;
}

/** Events as a list, the latest first. */
export function eventList(events, view, most = SHOWN) {
  const shown = events.slice(-most).reverse();
  return shown.length ? html`<ol class="events">${shown.map((event) => item(event, view))}</ol>` : html`<p class="calm">Nothing.</p>`;
}

/** Return why a worker drains, as the last event about that says. "" if it gave no reason, or is long ago. */
export function reasonOfDrain(events, worker) {
  return events.findLast((event) => event.kind === "worker_draining" && event.worker === worker)?.reason ?? "";
}

/** The section of the page. */
export function happenedView({ events, view, eventsMessage }) {
  return html`<section aria-labelledby="events-title" id="events">
    <h2 id="events-title">What happened</h2>
    ${eventsMessage ? html`<p class="calm">${eventsMessage}</p>` : nothing}
    ${eventList(events, view)}
  </section>`;
}
