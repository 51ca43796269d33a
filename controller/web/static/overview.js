// The head of the page, the state of its connection, and the replicas and parents.

import { html, nothing } from "./vendor/lit-html/lit-html.js";
import { duration, number, time } from "./format.js";
import { badge, bar, name, sparkline } from "./widgets.js";

/** The head of the page: what this is, the connection, the search, and the figures of the cluster. */
export function headerView(app) {
  const { cluster, connection, signIn } = app;
  const { label, level } = signIn ? { label: "signed out", level: "idle" }
    : connection.state === "open" ? { label: "live", level: "good" } : { label: "not connected", level: "warn" };
  return html`<header>
    <div class="bar-of-header">
      <h1>Controller</h1>
      <span role="status">${badge({ label, level })}</span>
      <span class="muted replica">${cluster.head ? html`replica ${name(cluster.head.replica.name)}, version ${cluster.head.replica.version}` : nothing}</span>
      ${cluster.head ? search(app) : nothing}
      ${app.token ? html`<button type="button" class="quiet" @click=${() => app.signOut()}>Sign out</button>` : nothing}
    </div>
    ${cluster.head ? figures(cluster) : nothing}
  </header>`;
}

function search(app) {
  const onInput = (event) => app.show({ q: event.target.value, page: "", mpage: "" });
  return html`<search><input type="search" aria-label="Search workers and models" placeholder="Search workers and models"
    spellcheck="false" autocomplete="off" .value=${app.view.q} @input=${onInput}></search>`;
}

function figures(cluster) {
  const { load, head } = cluster;
  const states = Map.groupBy(cluster.workers.values(), (worker) => cluster.state(worker).key);
  const others = ["failing", "late", "stalled", "draining", "drained"]
    .filter((state) => states.has(state)).map((state) => `${number(states.get(state).length)} ${state}`);
  const rates = head.dispatches.per_second;
  const rate = rates.findLast((each) => each !== null) ?? null;
  const known = rates.filter((each) => each !== null);
  const scope = head.dispatches.scope === "controller" ? "of this controller" : "";
  return html`<dl class="figures">
    <div><dt>Workers</dt><dd>${number(load.workers)} <span class="muted">${others.join(", ")}</span></dd></div>
    <div><dt>Queue</dt><dd>${number(load.queue)}${load.capacity ? html`<span class="muted"> / ${number(load.capacity)}</span>
      ${bar(load.sized, Math.max(load.capacity, load.sized), { limit: load.capacity, level: load.sized > load.capacity ? "warn" : "good" })}` : nothing}</dd></div>
    <div><dt>Dispatches/s <span class="muted">${scope}</span></dt><dd class="rate">
      <span>${rate === null ? "–" : number(rate)}</span>
      ${known.length ? sparkline(rates, `Dispatches per second in the last minute: now ${number(rate)}, at most ${number(Math.max(...known))}`) : nothing}</dd></div>
    <div><dt>Leases</dt><dd>${number(load.leased)}</dd></div>
    <div><dt>Replicas</dt><dd>${number(head.replicas.length)}</dd></div>
  </dl>`;
}

/** What is wrong with the connection to the replica, or with that of the replica to Redis. */
export function connectionView({ cluster, connection }) {
  const parts = [];
  if (connection.state !== "open" && connection.message) {
    const left = Math.max(0, connection.retryAt - performance.now()) / 1000;
    // What changes each second is not for screen readers, which would read the alert each time.
    parts.push(html`<p class="banner warn" role="alert">${connection.message} <span aria-hidden="true">${cluster.head
      ? `The page shows the state of ${duration(cluster.now - cluster.head.time)} ago.` : nothing} Next try in ${duration(left)}.</span></p>`);
  } else if (!cluster.head) {
    parts.push(html`<p class="calm">Connecting…</p>`);
  }
  if (cluster.head?.degraded) {
    parts.push(html`<div class="banner bad" role="alert"><p><strong>Redis is unavailable.</strong> ${cluster.canDispatch
        ? "Replicas dispatch from their snapshots."
        : "No request gets a worker from this replica, because its snapshot is older than --heartbeat-expiration."} ${cluster.age === null ? "This replica has none." : html`<span aria-hidden="true">The page shows the workers of ${duration(cluster.age)} ago.</span>`}</p>
      <p class="reason">${cluster.head.degraded}</p></div>`);
  }
  return parts;
}

/** The form for a token. */
export function signInView(app) {
  const onSubmit = (event) => {
    event.preventDefault();
    app.useToken(event.target.elements.token.value.trim());
  };
  return html`<form class="sign-in" @submit=${onSubmit}>
    <h2>Sign in</h2>
    <p>This controller shows its state to callers with an admin token. The page keeps the token in memory until you close or reload it.</p>
    ${app.signIn.message ? html`<p class="error" role="alert">${app.signIn.message}</p>` : nothing}
    <label class="block">Admin token <input name="token" type="password" required autocomplete="current-password"
      spellcheck="false" pattern="\\s*[!-~]+\\s*" title="A token has letters, digits and signs, without spaces."></label>
    <div class="actions"><button type="submit" class="primary">Sign in</button></div>
  </form>`;
}

/** The replicas and the parents. */
export function clusterView({ cluster }) {
  const { replicas, replica, parents } = cluster.head;
  return html`<section aria-labelledby="replicas-title" id="replicas">
    <h2 id="replicas-title">Replicas</h2>
    ${replicas.length ? html`<table>
      <caption class="hidden">Live replicas</caption>
      <thead><tr><th scope="col" class="name">Replica</th><th scope="col">Version</th><th scope="col" class="number">Up for</th></tr></thead>
      <tbody>${replicas.map((each) => html`<tr>
        <th scope="row" class="name">${name(each.name)}${each.id === replica.id ? html` <span class="muted">this one</span>` : nothing}</th>
        <td>${each.version || "unknown"}</td>
        <td class="number">${each.started_at === null ? "–" : duration(cluster.now - each.started_at)}</td>
      </tr>`)}</tbody>
    </table>` : html`<p class="calm">They are not known, because Redis is unavailable.</p>`}
    ${parents.length ? html`<h2>Parents</h2><table>
      <caption class="hidden">Parent controllers, as this replica knows them</caption>
      <thead><tr><th scope="col" class="name">Parent</th><th scope="col">Last heartbeat of this replica</th></tr></thead>
      <tbody>${parents.map((each) => html`<tr>
        <th scope="row" class="name">${name(each.address)}</th>
        <td>${each.sent_at === null ? html`<span class="muted">none</span>`
          : html`${badge(each.is_failing ? { label: "failed", level: "bad" } : { label: "accepted", level: "good" })} ${time(each.sent_at)}`}</td>
      </tr>`)}</tbody>
    </table>` : nothing}
  </section>`;
}
