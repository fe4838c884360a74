// Numbers, times and sizes as people read them; and small pieces of the page.

const units = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];

/** 12345 → 12.3k; null → – */
export function count(number) {
  if (number === null || number === undefined) return "–";
  for (const [size, unit] of units) {
    if (number >= size * 0.99995) return three(number / size) + unit;
  }
  return String(Math.round(number));
}

/** Three significant digits. */
function three(number) {
  if (number >= 99.95) return String(Math.round(number));
  return number >= 9.995 ? number.toFixed(1) : number.toFixed(2);
}

/** 12345 → 12.3k/s */
export function rate(number) {
  if (!number) return "0/s";
  return (number < 9.95 ? number.toFixed(1) : count(number)) + "/s";
}

/** All digits, in groups. */
export const exact = (number) => number === null || number === undefined ? "unknown" : number.toLocaleString("en").replaceAll(",", "\u202f");

export function bytes(number) {
  if (number === null || number === undefined) return "–";
  for (const [size, unit] of [[1 << 30, "GiB"], [1 << 20, "MiB"], [1 << 10, "KiB"]]) {
    if (number >= size) return three(number / size) + "\u202f" + unit;
  }
  return number + "\u202fB";
}

/** Microseconds → 4 s, 3 min, 2 h 5 min, 4 d */
export function span(us) {
  const s = Math.max(0, us / 1e6);
  if (s < 1) return "<\u202f1\u202fs";
  if (s < 60) return Math.floor(s) + "\u202fs";
  if (s < 3600) return Math.floor(s / 60) + "\u202fmin";
  if (s < 86400) {
    const minutes = Math.floor(s % 3600 / 60);
    return Math.floor(s / 3600) + "\u202fh" + (minutes ? " " + minutes + "\u202fmin" : "");
  }
  return Math.floor(s / 86400) + "\u202fd" + (s < 864000 ? " " + Math.floor(s % 86400 / 3600) + "\u202fh" : "");
}

/** A clock's time; with the date where that is another day. */
export function clock(us) {
  const time = new Date(us / 1000);
  const day = time.toDateString() === new Date().toDateString() ? "" : time.toLocaleDateString("sv") + " ";
  return day + time.toLocaleTimeString("sv");
}

/** An element: tag.class, attributes, children. */
export function h(tag, attributes, ...children) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name);
  if (classes.length) element.className = classes.join(" ");
  for (const [key, value] of Object.entries(attributes ?? {})) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** The same in SVG. */
export function s(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes ?? {})) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** Sets text where it is another one: what stays as it is costs nothing. */
export function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** A state in a word, and a sign that needs no colour. */
export const states = {
  up: ["working", "●"],
  starting: ["starting", "◔"],
  waiting: ["waiting", "❚❚"],
  down: ["down", "✕"],
  done: ["done", "✓"],
  elsewhere: ["not in this process", "↗"],
};

/** A cause without what the node that shows it says anyway. */
export const shortly = (cause) => cause?.replace(/^(\d+ of \d+: )?group \S+ on stream \S+: /, "$1").replace(/^waits for (\S+): group \S+ on stream \S+: /, "waits for $1: ");

/** Where Jaeger is; `{host}` in that is this page's host. */
export const jaegerAt = (url) => url.replace("{host}", location.hostname);
