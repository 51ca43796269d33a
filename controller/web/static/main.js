// The page for operators: connects to a replica, and shows what it sends.

import { html, nothing, render as renderTo } from "./vendor/lit-html/lit-html.js";
import { askView } from "./actions.js";
import { read, replace } from "./address.js";
import { Cluster } from "./cluster.js";
import { detailsView } from "./details.js";
import { happenedView } from "./happened.js";
import { clusterView, connectionView, headerView, signInView } from "./overview.js";
import { modelsView } from "./models.js";
import { problemsView } from "./problems.js";
import { Refusal, request, Stream } from "./stream.js";
import { workersView } from "./workers.js";

const EVENTS = 300; // that are kept
const NOTICE = 6; // seconds for which an outcome is shown

const app = {
  cluster: new Cluster(),
  events: [], // the oldest first
  view: read(),
  connection: { state: "connecting" },
  eventsMessage: "", // why there are no events
  token: "", // kept in memory only
  signIn: null, // {message} while the controller refuses the data
  ask: null, // {action, worker, error, isRunning} while an action is to be confirmed
  explanation: null, // {model, result, message} of the last question
  notice: "",

  /** Show another view. */
  show(changes) {
    replace(this.view, changes);
    this.view = read();
    this.render();
  },

  /** Ask for the confirmation of an action. */
  askFor(action, worker = "") {
    this.ask = { action, worker, error: "", isRunning: false };
    this.render();
  },

  cancel() {
    this.ask = null;
    this.render();
  },

  /** Show the outcome of an action for a while. */
  tell(text) {
    this.notice = text;
    clearTimeout(this.noticeTimer);
    this.noticeTimer = setTimeout(() => {
      this.notice = "";
      this.render();
    }, 1000 * NOTICE);
  },

  /** Ask why the next request of a model would go where. */
  async explain(model) {
    const asked = { model, result: null, message: "" };
    this.explanation = asked;
    this.render();
    let answer;
    try {
      const response = await request(`explain?${new URLSearchParams({ model })}`, this.token);
      answer = { model, result: await response.json(), message: "" };
    } catch (error) {
      answer = { model, result: null, message: error instanceof Refusal ? error.message : "The controller cannot be reached." };
    }
    if (this.explanation === asked) this.explanation = answer; // otherwise another model was asked for, or none
    this.render();
  },

  /** Use a token, and try to connect. */
  useToken(token) {
    this.token = token;
    this.signIn = null;
    connect();
    this.render();
  },

  /** Drop the token, and what it has shown. */
  signOut(message = "") {
    disconnect();
    happened.rewind();
    Object.assign(this, { token: "", signIn: { message }, cluster: new Cluster(), events: [], ask: null, explanation: null });
    this.render();
  },

  isRenderDue: false,
  /** Update the page in the next frame. */
  render() {
    if (this.isRenderDue) return;
    this.isRenderDue = true;
    requestAnimationFrame(() => {
      this.isRenderDue = false;
      renderTo(pageView(this), document.getElementById("page"));
      syncWindows(this);
    });
  },
};

const overview = new Stream("overview", {
  silence: 10,
  token: () => app.token,
  onEvent(kind, message) {
    app.cluster.apply(kind, message);
    app.render();
  },
  onState(connection) {
    const wasOpen = app.connection.state === "open";
    app.connection = connection;
    if (connection.state === "denied") denied(connection);
    else if (!wasOpen || connection.state !== "open") app.render();
  },
});

const happened = new Stream("events", {
  silence: 40, // an empty line comes every 15 s
  token: () => app.token,
  onEvent(_, event) {
    if (event.id && event.id === app.events.at(-1)?.id) return;
    app.events.push(event);
    app.events.splice(0, app.events.length - EVENTS);
    app.render();
  },
  onState({ state, message }) {
    app.eventsMessage = state === "waiting" || state === "denied" ? message : "";
  },
});

function denied({ status, message }) {
  const known = status === 403 ? message : app.token ? "The controller does not accept this token." : "";
  app.signOut(known);
}

function connect() {
  overview.start();
  happened.start();
}

function disconnect() {
  overview.stop();
  happened.stop();
}

function pageView(app) {
  if (app.signIn) return html`${headerView(app)}<main>${signInView(app)}</main>`;
  if (!app.cluster.head) return html`${headerView(app)}<main>${connectionView(app)}</main>`;
  const close = () => app.show({ worker: "", model: "" });
  return html`${headerView(app)}
    <main>
      ${connectionView(app)}
      ${problemsView(app)}
      ${modelsView(app)}
      ${workersView(app)}
      <div class="columns">${happenedView(app)}${clusterView(app)}</div>
    </main>
    <p class="notice" role="status">${app.notice || nothing}</p>
    <dialog id="details" aria-labelledby="details-title" @close=${close}>${detailsView(app)}</dialog>
    <dialog id="ask" aria-labelledby="ask-title" @close=${() => app.ask && app.cancel()}>${askView(app)}</dialog>`;
}

/** Open and close the windows, which only methods can do. */
function syncWindows(app) {
  const { view } = app;
  sync("details", Boolean(view.worker || view.model));
  sync("ask", Boolean(app.ask));
  if (view.model && app.cluster.head && app.explanation?.model !== view.model) app.explain(view.model);
  const title = view.worker || view.model;
  document.title = title ? `${title.slice(0, 80)} – Controller` : "Controller";
}

function sync(id, isOpen) {
  const window = document.getElementById(id);
  if (!window || window.open === isOpen) return;
  if (isOpen) window.showModal();
  else window.close();
}

addEventListener("hashchange", () => {
  app.view = read();
  app.render();
});
document.addEventListener("visibilitychange", () => {
  if (app.signIn) return;
  if (document.hidden) disconnect(); // a hidden page costs nothing
  else connect();
});
setInterval(() => document.hidden || app.render(), 1000); // ages grow even if nothing arrives
if (!document.hidden) connect();
app.render();
