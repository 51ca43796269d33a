// The window about one worker or one model.

import { html, nothing } from "./vendor/lit-html/lit-html.js";
import { link } from "./address.js";
import { count, duration, number } from "./format.js";
import { eventList, reasonOfDrain } from "./happened.js";
import { badge, name, queue, shortName, sparkline } from "./widgets.js";

/** The content of the window. `nothing` if it is closed. */
export function detailsView(app) {
  const { view } = app;
  if (!app.cluster.head || !(view.worker || view.model)) return nothing;
  return html`<div class="title">
      <h2 id="details-title">${view.worker ? "Worker" : "Model"} ${name(view.worker || view.model)}</h2>
      <button type="button" class="close" aria-label="Close" @click=${() => app.show({ worker: "", model: "" })}>×</button>
    </div>
    ${view.worker ? workerDetails(app, view.worker) : modelDetails(app, view.model)}`;
}

function facts(pairs) {
  return html`<dl>${pairs.filter(Boolean).map(([term, value]) => html`<div><dt>${term}</dt><dd>${value}</dd></div>`)}</dl>`;
}

function workerDetails(app, workerName) {
  const { cluster, view, events } = app;
  const worker = cluster.workers.get(workerName);
  const own = events.filter((event) => event.worker === workerName);
  const story = html`<h3>What happened to it</h3>${eventList(own, view, 10)}`;
  if (!worker) {
    return html`<p>This worker is not live. It was removed, it has expired, or its name is misspelt.</p>${story}`;
  }
  const queues = cluster.queues(workerName);
  const heartbeat = cluster.heartbeat(worker);
  const stalled = cluster.stalled(worker);
  const source = { configured: " (configured)", learned: " (learned)", reported: " (reported)" }[worker.capacity_source] ?? "";
  return html`<p class="lead">${badge(cluster.state(worker))} ${explainState(worker, events)}</p>
    <div class="actions">
      ${worker.draining
        ? html`<button type="button" @click=${() => app.askFor("resume", workerName)}>Resume…</button>`
        : html`<button type="button" @click=${() => app.askFor("drain", workerName)}>Drain…</button>`}
      <button type="button" class="danger" @click=${() => app.askFor("remove", workerName)}>Remove…</button>
    </div>
    ${facts([
      ["Queue", queue(worker.queue_length, worker.capacity)],
      ["Last reported", number(worker.reported)],
      ["Capacity", worker.capacity === null ? "unknown" : number(worker.capacity) + source],
      ["Leases", number(worker.leased)],
      ["Last finished", stalled === null ? (worker.reported ? "unknown: it reports nothing" : "it has no requests") : `none for ${duration(stalled)}`],
      ["Heartbeat", heartbeat === null ? "sends none" : `${duration(heartbeat.age)} ago`],
      heartbeat && ["Expires", heartbeat.left > 0 ? `in ${duration(heartbeat.left)}` : "overdue"],
      ["Speed", number(worker.speed)],
      ["Answers polls", worker.polled ? "yes" : "has answered none"],
      worker.multimodal && ["Multimodal", "yes"],
      worker.engine && ["Engine", name(worker.engine)],
      worker.registered_by && ["Registered by", name(worker.registered_by)],
    ])}
    <h3>Queue in the last ${queues.length} s</h3>
    ${sparkline(queues, `Queue, from ${queues[0]} to ${queues.at(-1)}, at most ${Math.max(...queues)}`)}
    <h3>${count(worker.model_names.length, "model")}</h3>
    <ul class="names">${worker.model_names.map((each) => html`<li><a href=${link(view, { model: each, worker: "" })}>${name(each)}</a></li>`)}</ul>
    ${story}`;
}

function explainState(worker, events) {
  if (worker.draining) {
    const reason = reasonOfDrain(events, worker.worker_name);
    const text = worker.drained ? "It has finished its requests, so you can stop it." : "It gets no new requests.";
    return html`${text}${reason ? html` Reason: ${name(reason)}` : nothing}`;
  }
  if (worker.failing) {
    const cause = worker.failing === "polls" ? "It does not answer polls." : "A request to it has failed.";
    return `${cause} It gets requests only if no other worker can serve them.`;
  }
  return "";
}

function modelDetails(app, modelName) {
  const { cluster, view } = app;
  const model = cluster.models.get(modelName);
  return html`${model
    ? html`${facts([
        ["Workers", number(model.workers)],
        ["Serving", number(model.serving)],
        ["Queue", queue(model.queue, model.capacity, model.sized)],
        ["Leases", number(model.leased)],
      ])}
      <p><a href=${link(view, { model: "", worker: "", serves: modelName, q: "", state: "", page: "" })}>Show its workers</a></p>`
    : html`<p>No live worker serves this model.</p>`}
    ${explanationView(app, modelName)}`;
}

function explanationView(app, modelName) {
  const { result, message } = app.explanation?.model === modelName ? app.explanation : {};
  return html`<h3>The next request</h3>
    <div aria-live="polite">${message ? html`<p class="error">${message}</p>` : result ? choice(result, app.view) : html`<p class="calm">…</p>`}</div>
    ${result?.candidates.length ? candidates(result, app.view) : nothing}
    ${result?.excluded.length ? html`<p>Excluded: ${result.excluded.slice(0, 16).map((each) => html`${workerLink(each.worker_name, app.view)} (${each.reason}) `)}
      ${result.excluded.length > 16 ? `and ${number(result.excluded.length - 16)} more.` : nothing}</p>` : nothing}
    <p><button type="button" @click=${() => app.explain(modelName)}>Ask again</button></p>`;
}

function workerLink(worker, view, show = name) {
  return html`<a href=${link(view, { worker, model: "" })}>${show(worker)}</a>`;
}

function choice({ chosen, method, candidates: found }, view) {
  if (chosen) return html`<p>It would go to ${workerLink(chosen, view)}, which has the lowest cost.</p>`;
  if (found.length && method === "lottery") return html`<p>The lottery draws one of these, with odds by speed.</p>`;
  return html`<p>It would get no worker.</p>`;
}

function candidates({ candidates: found, workers, method }, view) {
  const isLottery = method === "lottery";
  return html`<table class="candidates">
    <caption>${found.length < workers ? `The first ${found.length} of ${number(workers)} workers` : count(found.length, "worker")}, the best first</caption>
    <thead><tr><th scope="col" class="name">Worker</th><th scope="col" class="number">${isLottery ? "Odds" : "Cost"}</th>
      <th scope="col" class="number">Queue</th><th scope="col" class="number">Speed</th><th scope="col">State</th></tr></thead>
    <tbody>${found.map((each) => html`<tr>
      <th scope="row" class="name">${workerLink(each.worker_name, view, shortName)}</th>
      <td class="number">${isLottery ? `${number(100 * each.odds)} %` : each.cost.toFixed(2)}</td>
      <td class="number">${number(each.queue_length)}${each.capacity === null ? nothing : html`<span class="muted"> / ${number(each.capacity)}</span>`}</td>
      <td class="number">${number(each.speed)}</td>
      <td>${each.state}</td>
    </tr>`)}</tbody>
  </table>`;
}
