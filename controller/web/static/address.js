// What is shown, as the fragment of the page's address. So every view has a link, and no server sees it.

const DEFAULTS = { worker: "", model: "", q: "", serves: "", state: "", sort: "", models: "", page: "", mpage: "" };

/** Return the view that the address describes. */
export function read() {
  const parameters = new URLSearchParams(location.hash.slice(1));
  return Object.fromEntries(Object.keys(DEFAULTS).map((name) => [name, parameters.get(name) ?? ""]));
}

/** Return the address of a view with some parts changed. */
export function link(view, changes) {
  const parameters = new URLSearchParams();
  for (const [name, value] of Object.entries({ ...view, ...changes })) if (value) parameters.set(name, value);
  return `#${parameters}`;
}

/** Show another view without a new entry in the browser's history. */
export function replace(view, changes) {
  history.replaceState(null, "", link(view, changes));
}
