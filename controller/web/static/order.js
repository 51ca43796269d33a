// The order of the rows of a table, and the page of them that is shown.

import { compare } from "./format.js";

const RESORT = 3; // seconds for which rows stay where they are, so that a click meets the row that it was meant for

/** Return a part of an address as the number of a page. */
export function pageNumber(text, pages) {
  const number = Math.trunc(Number(text)) || 0;
  return Math.max(0, Math.min(number, pages - 1));
}

/**
 * The order of one table.
 *
 * rows: a CSS selector of its body.
 * nameOf: returns the name of a row.
 * columns: by name, the function that returns what a row is sorted by. `name` is used for unknown ones.
 */
export class Order {
  #places = new Map(); // of the rows at the last sorting
  #sort = "";
  #at = 0;

  constructor({ rows, nameOf, columns }) {
    Object.assign(this, { rows, nameOf, columns });
  }

  /**
   * Sort rows by a column, or the other way round with "-" before its name.
   *
   * While the pointer or the focus is in the rows, only new rows move.
   */
  apply(rows, sort) {
    const { nameOf } = this;
    const byName = (one, other) => compare(nameOf(one), nameOf(other));
    const isUsed = document.querySelector(`${this.rows}:is(:hover, :focus-within)`) !== null;
    if (sort === this.#sort && this.#places.size && (isUsed || performance.now() - this.#at < 1000 * RESORT)) {
      const place = (row) => this.#places.get(nameOf(row)) ?? Number.MAX_VALUE;
      return rows.sort((one, other) => compare(place(one), place(other)) || byName(one, other));
    }
    const column = sort.replace("-", ""); // from the address, which may name any
    const key = Object.hasOwn(this.columns, column) ? this.columns[column] : this.columns.name;
    const direction = sort.startsWith("-") ? -1 : 1;
    rows.sort((one, other) => direction * compare(key(one), key(other)) || byName(one, other));
    this.#places = new Map(rows.map((row, index) => [nameOf(row), index]));
    this.#sort = sort;
    this.#at = performance.now();
    return rows;
  }
}
