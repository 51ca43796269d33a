// Numbers, times and names as text.

const whole = new Intl.NumberFormat("en");
const one = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const day = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric" });

/** Return a number with at most one decimal. */
export function number(value) {
  return (Number.isInteger(value) ? whole : one).format(value);
}

/** Return seconds as "9 s", "3 min", "2 h 5 min" or "4 d 3 h". */
export function duration(seconds) {
  const total = Math.max(0, Math.round(seconds));
  if (total < 100) return `${total} s`;
  const minutes = Math.floor(total / 60);
  if (minutes < 60) return minutes < 10 ? `${minutes} min ${total % 60} s` : `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 24) return `${hours} h ${minutes % 60} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** Return a time, in seconds since 1970, as that of the viewer. */
export function time(seconds) {
  const at = new Date(1000 * seconds);
  const isToday = at.toDateString() === new Date().toDateString();
  return isToday ? clock.format(at) : `${day.format(at)}, ${clock.format(at)}`;
}

const collator = new Intl.Collator("en", { numeric: true });

/** Compare two numbers, or two texts, of which "a2" comes before "a10". */
export function compare(one, other) {
  return typeof one === "string" ? collator.compare(one, other) : one - other;
}

/** Return "1 worker" or "5 workers". */
export function count(total, noun) {
  return `${number(total)} ${noun}${total === 1 ? "" : "s"}`;
}

/**
 * Return a name with its invisible characters spelled out.
 *
 * A name may contain marks that turn the direction of text, or characters without a width. Two names would look alike.
 */
export function visible(name) {
  return name.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Co}\p{Cn}]/gu, (character) => {
    return `\\u{${character.codePointAt(0).toString(16).toUpperCase()}}`;
  });
}
