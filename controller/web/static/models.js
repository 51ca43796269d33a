// The table of models.

import { html } from "./vendor/lit-html/lit-html.js";
import { repeat } from "./vendor/lit-html/directives/repeat.js";
import { link } from "./address.js";
import { number, visible } from "./format.js";
import { Order, pageNumber } from "./order.js";
import { name, pager, queue, sortable } from "./widgets.js";

const PAGE = 20;

const order = new Order({
  rows: "#models tbody",
  nameOf: (model) => model.name,
  columns: {
    name: (model) => model.name,
    workers: (model) => model.workers,
    queue: (model) => model.queue,
    saturation: (model) => (model.capacity ? model.sized / model.capacity : -1),
  },
});

/** The section of the page. */
export function modelsView(app) {
  const { cluster, view } = app;
  const wanted = view.q.toLowerCase();
  const sort = view.models || "name";
  const found = [...cluster.models.values()].filter((model) => model.name.toLowerCase().includes(wanted));
  const models = order.apply(found.length ? found : [...cluster.models.values()], sort); // the search is for a worker
  const pages = Math.ceil(models.length / PAGE);
  const page = pageNumber(view.mpage, pages);
  const shown = models.slice(page * PAGE, (page + 1) * PAGE);
  const column = (id, label, options = {}) =>
    sortable(id, label, { sort, onSort: (next) => app.show({ models: next === "name" ? "" : next, mpage: "" }), ...options });
  return html`<section aria-labelledby="models-title" id="models">
    <div class="title">
      <h2 id="models-title">Models <span class="muted">${number(models.length)}</span></h2>
      ${pager({ page, pages, total: models.length, noun: "models", shown: [page * PAGE + 1, page * PAGE + shown.length], onPage: (next) => app.show({ mpage: next ? String(next) : "" }) })}
    </div>
    ${models.length ? html`<table>
      <caption class="hidden">Models and the load of their workers</caption>
      <thead><tr>
        ${column("name", "Model", { className: "name" })}
        ${column("workers", "Workers", { className: "number", first: "-", title: "Workers that are neither draining nor failing, and all" })}
        ${column("queue", "Queue", { className: "queue", first: "-", title: "Running and waiting requests, and capacity" })}
        ${column("saturation", "Load", { className: "number", first: "-", title: "Requests per slot of the workers whose capacity is known" })}
      </tr></thead>
      <tbody>${repeat(shown, (model) => model.name, (model) => row(model, view))}</tbody>
    </table>` : html`<p class="calm">No model has a worker.</p>`}
  </section>`;
}

function row(model, view) {
  const load = model.capacity ? `${Math.round((100 * model.sized) / model.capacity)} %` : "–";
  return html`<tr>
    <th scope="row" class="name"><a href=${link(view, { model: model.name })} title=${visible(model.name)}>${name(model.name)}</a></th>
    <td class="number"><span class=${model.serving ? "" : "error"}>${number(model.serving)}</span><span class="muted"> / ${number(model.workers)}</span></td>
    <td class="queue">${queue(model.queue, model.capacity, model.sized)}</td>
    <td class="number">${load}</td>
  </tr>`;
}
