// Small parts of the page.

import { html, nothing, svg } from "./vendor/lit-html/lit-html.js";
import { number, visible } from "./format.js";

// An inline style would need 'unsafe-inline' in the Content-Security-Policy. The attributes of SVG need nothing.

/** A bar of `value` on a scale up to `most`, with a mark at `limit`. */
export function bar(value, most, { limit = null, level = "good" } = {}) {
  const scale = 100 / (most || 1);
  const width = Math.min(100, value * scale);
  return html`<svg class="bar ${level}" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">
    <rect class="track" width="100" height="6" rx="1"></rect>
    <rect class="fill" width=${width.toFixed(1)} height="6" rx="1"></rect>
    ${limit !== null && limit < most ? svg`<rect class="limit" x=${(limit * scale).toFixed(1)} width="1" height="6"></rect>` : nothing}
  </svg>`;
}

/** The queue of a worker or a model against its capacity. */
export function queue(length, capacity, sized = length) {
  if (!capacity) return html`<div class="meter"><span class="amount">${number(length)}</span></div>`;
  const load = sized / capacity;
  const level = load > 1.5 ? "bad" : load > 1 ? "warn" : "good";
  return html`<div class="meter"><span class="amount">${number(length)}<span class="muted"> / ${number(capacity)}</span></span>${
    bar(sized, Math.max(capacity, sized), { limit: capacity, level })}</div>`;
}

/** A line of numbers. Where one is null, the line has a gap. */
export function sparkline(values, label, length = 60) {
  const known = values.filter((value) => value !== null);
  const most = Math.max(1, ...known);
  const first = length - values.length;
  const points = values.map((value, index) => value === null ? null : [first + index, 30 - (28 * value) / most]);
  const lines = [[]];
  for (const point of points) point ? lines.at(-1).push(point) : lines.at(-1).length && lines.push([]);
  return html`<svg class="spark" viewBox="0 0 ${length - 1} 32" preserveAspectRatio="none" role="img" aria-label=${label}>
    ${lines.map((line) => line.length ? svg`
      <path class="area" d="M${line[0][0]} 32L${line.join("L")}L${line.at(-1)[0]} 32Z"></path>
      <polyline points=${line.join(" ")} vector-effect="non-scaling-stroke"></polyline>` : nothing)}
  </svg>`;
}

/** The name of a worker for a table: most begin with the same scheme. */
export function shortName(text) {
  return name(text.replace(/^http:\/\//, ""));
}

/** The name of a worker or model, which others have chosen. */
export function name(text) {
  return html`<bdi>${visible(text)}</bdi>`;
}

export function badge({ label, level }) {
  return html`<span class="badge ${level}">${label}</span>`;
}

/** A column header that sorts. sort: the name of a column, with "-" for the reverse order. */
export function sortable(column, label, { sort, first = "", onSort, title = "", className = "" }) {
  const isUp = sort === column, isDown = sort === `-${column}`;
  const next = isUp ? `-${column}` : isDown ? column : first + column;
  return html`<th scope="col" class=${className} aria-sort=${isUp ? "ascending" : isDown ? "descending" : nothing}>
    <button type="button" class="sort" title=${title || nothing} @click=${() => onSort(next)}>
      ${label}<span aria-hidden="true">${isUp ? " ▲" : isDown ? " ▼" : ""}</span>
    </button>
  </th>`;
}

/** The numbers of the rows shown, and buttons for others. */
export function pager({ page, pages, total, shown, noun, onPage }) {
  if (pages <= 1) return nothing;
  const button = (label, target, text) => html`<button type="button" aria-label=${label}
    ?disabled=${target < 0 || target >= pages} @click=${() => onPage(target)}>${text}</button>`;
  return html`<nav class="pager" aria-label="Pages of ${noun}">
    ${button("Previous page", page - 1, "←")}
    <span>${number(shown[0])} to ${number(shown[1])} of ${number(total)}</span>
    ${button("Next page", page + 1, "→")}
  </nav>`;
}
