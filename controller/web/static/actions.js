// What an operator can do, each with a confirmation.

import { html, nothing } from "./vendor/lit-html/lit-html.js";
import { request } from "./stream.js";
import { name } from "./widgets.js";

const REASON = 500; // characters, as the controller allows

const ACTIONS = {
  drain: {
    path: "drain_worker",
    title: "Drain this worker?",
    text: "It gets no new requests. The ones that it has continue. You can resume it later.",
    button: "Drain",
    done: "The worker is draining.",
    hasReason: true,
  },
  resume: {
    path: "resume_worker",
    title: "Resume this worker?",
    text: "It gets requests again.",
    button: "Resume",
    done: "The worker gets requests again.",
    hasReason: true,
  },
  remove: {
    path: "remove_worker",
    title: "Remove this worker?",
    text: "It gets no new requests. A worker that still sends heartbeats registers again.",
    button: "Remove",
    done: "The worker was removed.",
    hasReason: true,
    isDanger: true,
  },
  refresh: {
    path: "refresh_all_workers",
    title: "Refresh all workers?",
    text: "The controller asks each worker for its status. A worker that does not answer two times is removed.",
    button: "Refresh",
    done: "All workers were asked for their status.",
  },
};

/** Send an action. Returns what to tell. Throws a Refusal, or TypeError if there is no response. */
async function act({ action, worker }, reason, token) {
  const { path, done, hasReason } = ACTIONS[action];
  const body = worker ? { worker_name: worker, ...(hasReason ? { reason } : {}) } : {};
  const response = await request(path, token, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  });
  const result = await response.json();
  return result?.exist === false ? "Nothing was done: the worker is not registered any more." : done;
}

/** Send the action that was asked for, and show the outcome. */
export async function confirm(app, form) {
  const ask = app.ask;
  ask.isRunning = true;
  ask.error = "";
  app.render();
  try {
    app.tell(await act(ask, form.elements.reason?.value ?? "", app.token));
    if (app.ask === ask) app.ask = null;
  } catch (error) {
    ask.error = error instanceof TypeError ? "The controller cannot be reached. Look whether it was done, and try again." : error.message;
    if (app.ask !== ask) app.tell(ask.error); // its window was closed meanwhile
  }
  ask.isRunning = false;
  app.render();
}

/** The content of the window that asks for a confirmation. `nothing` if it is closed. */
export function askView(app) {
  if (!app.ask) return nothing;
  const { action, worker, error, isRunning } = app.ask;
  const { title, text, button, hasReason, isDanger } = ACTIONS[action];
  const onSubmit = (event) => {
    event.preventDefault();
    if (!isRunning) confirm(app, event.target);
  };
  return html`<form @submit=${onSubmit}>
    <h2 id="ask-title">${title}</h2>
    ${worker ? html`<p class="subject">${name(worker)}</p>` : nothing}
    <p>${text}</p>
    ${hasReason ? html`<label class="block">Reason, for the events and the log (optional)
      <input name="reason" maxlength=${REASON} autocomplete="off"></label>` : nothing}
    ${error ? html`<p class="error" role="alert">${error}</p>` : nothing}
    <div class="actions">
      <button type="submit" class=${isDanger ? "danger primary" : "primary"} ?disabled=${isRunning}>${isRunning ? "Wait…" : button}</button>
      <button type="button" @click=${() => app.cancel()}>Cancel</button>
    </div>
  </form>`;
}
