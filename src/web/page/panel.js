// One node, opened: how it is, what waits, who works on it, what passed, and what was given up.

import { clock, count, exact, h, jaegerAt, put, rate, s, span, states } from "./format.js";
import { chart } from "./edges.js";
import { Letters, Passed, TokenForm } from "./letters.js";

export class Panel {
  constructor(root, select) {
    this.root = root;
    this.select = select;
    this.id = null;
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.id) this.close();
    });
    addEventListener("hashchange", () => this.fromHash());
  }

  /** `#sink.db` opens that node, so that it can be linked to. */
  fromHash() {
    const id = decodeURIComponent(location.hash.slice(1));
    if (id && this.find(id) && id !== this.id) this.open(id);
  }

  find(id) {
    return this.state?.nodes.find((node) => node.id === id);
  }

  open(id) {
    if (id === this.id) return this.close();
    if (!this.find(id)) return;
    this.leave();
    this.id = id;
    history.replaceState(null, "", "#" + encodeURIComponent(id));
    this.root.hidden = false;
    document.body.classList.add("open");
    this.select(id);
    this.build();
    this.update(this.state);
    this.root.scrollTop = 0;
    this.close_button.focus({ preventScroll: true });
  }

  close() {
    const id = this.id;
    this.leave();
    this.id = null;
    this.select(null);
    this.root.hidden = true;
    document.body.classList.remove("open");
    history.replaceState(null, "", location.pathname);
    document.querySelector(`[data-id="${CSS.escape(id)}"]`)?.focus({ preventScroll: true });
  }

  leave() {
    this.passed?.stop();
    this.passed = this.letters = null;
    this.keys = {};
  }

  build() {
    const node = this.find(this.id);
    const part = (name, title) => {
      this[name] = h("div");
      return h("section." + name, { hidden: true }, title && h("h3", {}, title), this[name]);
    };
    this.close_button = h("button.close", { type: "button", "aria-label": "Close", onclick: () => this.close() }, "×");
    this.chip = h("span.chip");
    const head = h("div.top." + node.room, {},
      h("div", {}, h("p.role", {}, node.room), h("h2", { id: "panel-name" }, node.name), h("p.detail", {}, node.detail)),
      this.chip, this.close_button);
    const parts = [
      part("trouble"), part("figures"), part("flows", "The last minute"), part("members", "Members"),
      part("shards", "Shards"), part("others", "Groups that are not in the file"),
    ];
    this.parts = parts;
    const asked = [];
    const form = new TokenForm(() => asked.forEach((section) => section.load()));
    const stream = this.streamOf(node);
    if (stream) {
      this.letters = new Letters(stream, node.room === "group" ? node.name : null, () => this.state, form);
      asked.push(this.letters);
    }
    if (node.room !== "query") {
      this.passed = new Passed(node, () => this.state, form);
      asked.push(this.passed);
    }
    const settings = h("dl.settings", {}, node.settings.map(([key, value]) => [h("dt", {}, key), h("dd", {}, value)]));
    this.root.replaceChildren(
      head, ...parts, form.element, ...asked.map((section) => section.element),
      this.traces(node), h("section", {}, h("h3", {}, "Settings"), settings));
    if (stream) this.letters.revive(this.isDown(stream));
    asked.forEach((section) => section.load());
  }

  isDown(stream) {
    return this.find("stream." + stream)?.now.state === "down";
  }

  /** The stream whose dead letters belong to a node. */
  streamOf(node) {
    if (node.room === "stream") return node.name;
    if (node.room !== "group") return null;
    const from = this.state.edges.find((edge) => this.state.nodes[edge.to].id === node.id)?.from;
    return from === undefined ? null : this.state.nodes[from].name;
  }

  traces(node) {
    const { jaeger, service } = this.state.about;
    if (!jaeger || !service || node.room === "query") return null;
    const tags = {
      source: { "aqueduct.source": node.name },
      stream: { "messaging.destination.name": node.name },
      group: { "messaging.consumer.group.name": node.name },
      sink: { "aqueduct.sink": node.name },
    }[node.room];
    const link = (text, more) => {
      const query = new URLSearchParams({ service, lookback: "1h", tags: JSON.stringify({ ...tags, ...more }) });
      return h("a", { href: `${jaegerAt(jaeger)}/search?${query}`, target: "_blank", rel: "noreferrer" }, text);
    };
    return h("section", {}, h("h3", {}, "Traces"),
      h("p", {}, link("of the last hour, in Jaeger"), " · ", link("those with an error", { error: "true" })));
  }

  update(state) {
    this.state = state;
    if (!this.id) {
      if (!this.started) {
        this.started = true;
        this.fromHash();
      }
      return;
    }
    const node = this.find(this.id);
    if (!node) return this.close();
    const { now } = node;
    const [word, sign] = states[now.state] ?? [now.state, "?"];
    this.chip.dataset.state = now.state;
    put(this.chip, `${sign} ${word}`);
    this.fill("trouble", this.troubleOf(node));
    this.fill("figures", figuresOf(node, state));
    this.fill("flows", flowsOf(node, state));
    this.fill("members", membersOf(node, state));
    this.fill("shards", shardsOf(node));
    this.fill("others", othersOf(node, state));
    this.letters?.revive(this.isDown(this.letters.stream));
    this.letters?.note(now.dead);
  }

  troubleOf({ now }) {
    const parts = [];
    if (now.cause) parts.push(h("p.cause." + now.state, {}, now.cause));
    const error = now.last_error;
    if (error && error.cause !== now.cause) parts.push(h("p.past", {}, h("strong", {}, "Last error "), error.cause));
    if (error) parts.push(h("p.when", {}, `${clock(error.time_us)}, ${span(this.state.now.time_us - error.time_us)} ago`));
    return parts;
  }

  /** Only what is another one is put in anew, so that text can be selected. */
  fill(name, content) {
    const place = this[name];
    const next = h("div", {}, ...content);
    if (place.innerHTML !== next.innerHTML) place.replaceChildren(...next.childNodes);
    place.parentElement.hidden = content.length === 0;
  }
}

function figuresOf({ room, now }, state) {
  const all = [];
  const figure = (name, value, title) => all.push(h("div", title ? { title } : {}, h("dt", {}, name), h("dd", {}, value)));
  if (room === "group") {
    figure("lag", count(now.lag), exact(now.lag));
    figure("pending", count(now.pending), exact(now.pending));
    const waits = (now.lag || now.pending) && now.oldest_us !== null;
    figure("oldest waits", waits ? span(state.now.time_us - now.oldest_us) : "–");
  }
  if (room === "stream") {
    figure("holds", count(now.length), exact(now.length));
    const groups = state.edges.filter((edge) => state.nodes[edge.from].now === now);
    const oldest = groups.map((edge) => state.nodes[edge.to].now).filter((it) => (it.lag || it.pending) && it.oldest_us !== null).map((it) => it.oldest_us);
    figure("oldest waits", oldest.length ? span(state.now.time_us - Math.min(...oldest)) : "–");
  }
  if (room !== "query") {
    const word = { source: "published", stream: "appended here", group: "stored", sink: "stored" }[room];
    figure(word, count(now.events), exact(now.events));
    figure("now", rate(now.rate));
  }
  if (room === "group") {
    figure("refused", count(now.refused), exact(now.refused));
    figure("given up", count(now.dead), exact(now.dead));
  }
  if (now.actors[0] > 1) figure("actors", now.actors[0] === now.actors[1] ? String(now.actors[0]) : `${now.actors[1]} of ${now.actors[0]} work`);
  figure("restarts", count(now.restarts), exact(now.restarts));
  return [h("dl.grid", {}, all)];
}

function flowsOf(node, state) {
  const mine = state.edges.filter((edge) => edge.now.total !== null && [edge.from, edge.to].some((i) => state.nodes[i] === node));
  return mine.map((edge) => {
    const leaves = state.nodes[edge.from] === node;
    const other = state.nodes[leaves ? edge.to : edge.from];
    const { area, line, most } = chart(edge.history, 240, 40);
    const picture = s("svg", { viewBox: "0 -42 240 44", preserveAspectRatio: "none", "aria-hidden": "true" },
      s("path", { class: "area", d: area }), s("path", { class: "line", d: line }));
    return h("figure.from-" + state.nodes[edge.from].room, {},
      h("figcaption", {}, h("span", {}, leaves ? `to ${other.id}` : `from ${other.id}`), h("strong", {}, rate(edge.now.rate)), h("span", {}, `at most ${rate(most)}`)),
      picture);
  });
}

function membersOf({ room, now }, state) {
  if (room !== "group" || !now.members_count) return [];
  const rows = now.members.map((member) => {
    const own = member.name.startsWith(state.about.instance + "/");
    const name = own ? "this process / " + member.name.split("/").pop() : member.name;
    const idle = member.idle_ms === null ? "–" : span(member.idle_ms * 1000);
    return h("tr", {}, h("td", { title: member.name }, name), h("td", {}, count(member.pending)), h("td", {}, idle));
  });
  const more = now.members_count - now.members.length;
  return [
    h("table", {}, h("thead", {}, h("tr", {}, h("th", {}, "member"), h("th", {}, "holds"), h("th", {}, "silent for"))), h("tbody", {}, rows)),
    more > 0 ? h("p.dim", {}, `and ${more} more`) : "",
  ];
}

function shardsOf({ room, now }) {
  if (room !== "stream" || now.shards.length < 2) return [];
  const most = Math.max(...now.shards, 1);
  const bar = (events, i) => h("tr", {}, h("td", {}, String(i)), h("td", {}, s("svg", { viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true" }, s("rect", { width: Math.max(events / most * 100, events ? 1 : 0), height: 6, rx: 1 }))), h("td", {}, count(events)));
  return [h("table.bars", {}, h("thead", {}, h("tr", {}, h("th", {}, "shard"), h("th", {}, ""), h("th", {}, "events"))), h("tbody", {}, now.shards.map(bar)))];
}

function othersOf({ now }, state) {
  if (!now.others.length) return [];
  return [
    h("p.dim", {}, "Another program's, or gone from the file: what they have not acknowledged is held until ", h("code", {}, `aqueduct group drop ${state.about.file} GROUP`), "."),
    h("table", {}, h("thead", {}, h("tr", {}, h("th", {}, "group"), h("th", {}, "lag"), h("th", {}, "pending"))),
      h("tbody", {}, now.others.map((group) => h("tr", {}, h("td", {}, group.name), h("td", {}, count(group.lag)), h("td", {}, count(group.pending)))))),
  ];
}
