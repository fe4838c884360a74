// The page: gets the state as it changes, and shows it.

import { needsToken } from "./ask.js";
import { bytes, count, clock, exact, h, put, rate, shortly, span } from "./format.js";
import { Graph } from "./graph.js";
import { Panel } from "./panel.js";

const HISTORY = 60;
/** Without a word for so long, the server is away. Milliseconds. */
const SILENCE = 3500;
const RETRY = 1000;

const at = (id) => document.getElementById(id);
const panel = new Panel(at("panel"), (id) => graph.select(id));
const graph = new Graph(at("graph"), (id) => panel.open(id));

let state = null;
let heard = 0;
let lost = false;
let events = null;

function connect() {
  events?.close();
  events = new EventSource("/api/live");
  events.addEventListener("state", (event) => whole(JSON.parse(event.data)));
  events.addEventListener("tick", (event) => tick(JSON.parse(event.data)));
  events.onerror = () => {
    events.close();
    gone();
    setTimeout(connect, RETRY);
  };
}

function whole(next) {
  state = next;
  graph.draw(state);
  show();
}

function tick(next) {
  if (!state || next.shape !== state.shape) return;
  state.now = next.now;
  next.nodes.forEach((now, i) => { state.nodes[i].now = now; });
  const second = next.now.time_us - (tick.counted ?? 0) > 900000;
  if (second) tick.counted = next.now.time_us;
  next.edges.forEach((now, i) => {
    const edge = state.edges[i];
    edge.now = now;
    if (second && now.total !== null) edge.history = [...edge.history, now.last].slice(-HISTORY);
  });
  show();
}

function show() {
  heard = performance.now();
  lost = false;
  document.body.classList.remove("lost");
  needsToken(state.about.token);
  header();
  notes();
  graph.update(state);
  panel.update(state);
}

function gone() {
  if (lost) return;
  lost = true;
  document.body.classList.add("lost");
  health("away", "no connection");
  notes();
}

setInterval(() => {
  if (!lost && heard && performance.now() - heard > SILENCE) {
    gone();
    connect();
  }
}, 500);

function health(kind, word) {
  const pill = at("health");
  pill.className = "pill " + kind;
  put(pill.querySelector(".word"), word);
  const name = state ? state.about.file.split("/").pop() : "Aqueduct";
  document.title = kind === "good" ? `${name} · Aqueduct` : `${word} · ${name}`;
}

function header() {
  const { about, now } = state;
  put(at("file"), about.file);
  put(at("instance"), about.instance);
  const troubles = now.troubles.filter((trouble) => trouble.cause !== "is starting").length;
  if (troubles) health("bad", troubles === 1 ? "1 trouble" : `${troubles} troubles`);
  else if (about.refused) health("bad", "edit refused");
  else if (now.healthy) health("good", "all is well");
  else health("starting", "starting");
  put(at("f-in"), rate(now.published_rate));
  put(at("f-out"), rate(now.stored_rate));
  put(at("f-stored"), count(now.stored));
  at("f-stored").title = exact(now.stored);
  put(at("f-dead"), count(now.dead));
  at("f-dead").classList.toggle("some", now.dead > 0);
  put(at("f-cpu"), (now.cpu * 100).toFixed(now.cpu < 0.0995 ? 1 : 0) + "\u202f%");
  put(at("f-memory"), bytes(now.memory_bytes));
  put(at("f-up"), span(now.time_us - about.started_us));
  put(at("f-generation"), String(about.generation));
  at("f-generation").title = "since " + clock(about.since_us);
  put(at("version"), "Aqueduct " + about.version);
}

function notes() {
  const shown = [];
  if (lost) {
    const when = state ? `What is shown is how it was; last seen at ${clock(state.now.time_us)}.` : "";
    shown.push(["away", "The process does not answer.", [when, "This page is back by itself as soon as it does."]]);
  } else {
    const { refused, file } = state.about;
    if (refused) {
      const since = `${clock(refused.time_us)}: generation ${state.about.generation} runs on`;
      shown.push(["bad", `The last edit of ${file} was refused (${since}).`, refused.faults]);
    }
    const causes = new Map();
    for (const { name, cause } of state.now.troubles) {
      const why = shortly(cause);
      if (why !== "is starting") causes.set(why, [...causes.get(why) ?? [], name]);
    }
    if (causes.size) shown.push(["bad", "Not working", [...causes].map(([why, names]) => [names, why])]);
  }
  const key = JSON.stringify(shown);
  if (notes.key === key) return;
  notes.key = key;
  const link = (name) => h("button.link", { type: "button", onclick: () => panel.open(name) }, name);
  const line = (text) => Array.isArray(text)
    ? h("li", {}, text[0].map((name) => [link(name), " "]), h("span", {}, text[1]))
    : text && h("li", {}, text);
  at("notes").replaceChildren(...shown.map(([kind, head, lines]) => {
    const list = h("ul", {}, lines.slice(0, 12).map(line));
    const more = lines.length > 12 ? h("p", {}, `and ${lines.length - 12} more`) : null;
    return h("section.note." + kind, {}, h("strong", {}, head), list, more);
  }));
  const promises = at("promises");
  promises.hidden = !state?.about.promises.length;
  promises.querySelector("ul").replaceChildren(...(state?.about.promises ?? []).map((text) => h("li", {}, text)));
}

// What is not looked at is not asked for.
document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    events?.close();
    heard = 0;
  } else {
    connect();
  }
});

connect();
