// The topology: nodes as buttons, edges drawn between them. Columns run to the right, or, on a
// narrow screen, down.

import { Edge } from "./edges.js";
import { count, exact, h, put, rate, shortly, span, states } from "./format.js";

/** Narrower than this, the columns run down. */
const NARROW = 720;
const WIDE = { width: [168, 216], height: 84, gap: [114, 200], row: 1.4 };
const TALL = { width: [148, 300], height: 78, gap: 88 };
const SCALE_MIN = 0.78;
/** What is below the topology. */
const FOOT = 44;

export class Graph {
  constructor(root, open) {
    this.root = root;
    this.open = open;
    this.canvas = root.querySelector("#canvas");
    this.svg = root.querySelector("#edges");
    this.layer = root.querySelector("#nodes");
    this.nodes = [];
    this.edges = [];
    this.selected = null;
    new ResizeObserver(() => this.place()).observe(root);
    this.layer.addEventListener("keydown", (event) => this.step(event));
  }

  /** Another topology, or the first. */
  draw(state) {
    this.state = state;
    const focused = document.activeElement?.dataset?.id;
    this.nodes = state.nodes.map((node) => new Node(node, () => this.open(node.id)));
    this.layer.replaceChildren(...this.nodes.map((node) => node.element));
    this.edges = state.edges.map((edge) => new Edge(edge, state.nodes[edge.from], state.nodes[edge.to]));
    this.svg.replaceChildren(...this.edges.map((edge) => edge.group));
    const empty = this.root.querySelector("#empty");
    empty.hidden = state.nodes.length > 0;
    put(empty, `${state.about.file} names no component yet: add a source, a stream, a group and a sink, and they appear here.`);
    this.select(this.selected);
    this.layout = null;
    this.place();
    if (focused) this.layer.querySelector(`[data-id="${CSS.escape(focused)}"]`)?.focus();
  }

  update(state) {
    this.state = state;
    this.nodes.forEach((node, i) => node.update(state.nodes[i], state));
    this.edges.forEach((edge, i) => edge.update(state.edges[i], state.nodes));
  }

  select(id) {
    this.selected = id;
    for (const node of this.nodes) {
      node.element.setAttribute("aria-expanded", String(node.id === id));
      if (node.id === id) requestAnimationFrame(() => node.element.scrollIntoView({ block: "nearest", inline: "nearest" }));
    }
  }

  focus(id) {
    this.nodes.find((node) => node.id === id)?.element.focus();
  }

  /** Puts everything where it belongs at this size of the window. */
  place() {
    if (!this.state?.nodes.length) return;
    // An open panel takes nothing of the size: the topology stays as it is, and can be scrolled.
    const width = document.documentElement.clientWidth;
    const height = innerHeight - this.root.getBoundingClientRect().top - scrollY - FOOT;
    const key = [width, height, this.state.shape].join();
    if (this.layout === key) return;
    this.layout = key;
    const narrow = width < NARROW;
    this.root.classList.toggle("narrow", narrow);
    const fit = narrow ? this.down(width - 24) : this.right(width - 64, height - 48);
    const { size, at, total, scale } = fit;
    this.nodes.forEach((node, i) => {
      const { x, y } = at(this.state.nodes[i].column, this.state.nodes[i].y);
      const style = node.element.style;
      style.left = x - size.width / 2 + "px";
      style.top = y - size.height / 2 + "px";
      style.width = size.width + "px";
      style.height = size.height + "px";
    });
    this.svg.setAttribute("viewBox", `0 0 ${total.width} ${total.height}`);
    this.svg.style.width = this.canvas.style.width = total.width + "px";
    this.svg.style.height = this.canvas.style.height = total.height + "px";
    // `zoom` keeps the scrolled area as large as what is shown.
    this.canvas.style.zoom = scale;
    const places = this.state.nodes.map((node) => at(node.column, node.y));
    for (const edge of this.edges) edge.place(places, size, narrow, at);
  }

  right(width, height) {
    const { columns, height: units } = this.state;
    const [least, most] = WIDE.width;
    // Boxes give way before the gaps between them do, and both before all of it gets smaller.
    const share = (width - (columns - 1) * WIDE.gap[0]) / columns;
    const size = { width: Math.min(most, Math.max(least, share)), height: WIDE.height };
    const room = (width - columns * size.width) / Math.max(1, columns - 1);
    const gap = Math.min(WIDE.gap[1], Math.max(WIDE.gap[0], room));
    // Few rows may be further apart. The outer ones end half a box beyond their middle.
    const row = Math.min(WIDE.row, Math.max(1, (height - size.height) / Math.max(1, units - 1) / size.height)) * size.height;
    const total = { width: columns * size.width + (columns - 1) * gap, height: (units - 1) * row + size.height };
    // All of it on the screen, as long as it can be read.
    const wanted = Math.min(1, width / total.width, Math.max(0.8, height / total.height));
    const at = (column, y) => ({ x: column * (size.width + gap) + size.width / 2, y: (y - 0.5) * row + size.height / 2 });
    return { size, at, total, scale: Math.max(SCALE_MIN, wanted) };
  }

  down(width) {
    const { columns, height: units } = this.state;
    const each = Math.min(TALL.width[1], Math.max(TALL.width[0], width / units));
    const size = { width: each, height: TALL.height };
    const total = { width: units * each, height: columns * size.height + (columns - 1) * TALL.gap };
    const at = (column, y) => ({ x: y * each, y: column * (size.height + TALL.gap) + size.height / 2 });
    return { size, at, total, scale: 1 };
  }

  /** Arrow keys go along the edges, and to the neighbours of a column. */
  step(event) {
    const from = this.nodes.findIndex((node) => node.element === document.activeElement);
    const narrow = this.root.classList.contains("narrow");
    const keys = narrow
      ? { ArrowDown: "on", ArrowUp: "back", ArrowRight: "next", ArrowLeft: "last" }
      : { ArrowRight: "on", ArrowLeft: "back", ArrowDown: "next", ArrowUp: "last" };
    const way = keys[event.key];
    if (from < 0 || !way) return;
    event.preventDefault();
    const { nodes, edges } = this.state;
    let to;
    if (way === "on") to = edges.find((edge) => edge.from === from)?.to;
    else if (way === "back") to = edges.find((edge) => edge.to === from)?.from;
    else {
      const column = nodes.map((_, i) => i).filter((i) => nodes[i].column === nodes[from].column);
      column.sort((a, b) => nodes[a].y - nodes[b].y);
      to = column[column.indexOf(from) + (way === "next" ? 1 : -1)];
    }
    if (to !== undefined) this.nodes[to].element.focus();
  }
}

class Node {
  constructor(node, open) {
    this.id = node.id;
    this.name = h("span.name", {}, node.name);
    this.chip = h("span.chip");
    this.detail = h("span.detail");
    this.figures = h("span.figures");
    this.restarts = h("span.restarts");
    this.element = h(
      "button.node." + node.room,
      { type: "button", "data-id": node.id, "aria-controls": "panel", onclick: open },
      h("span.head", {}, this.name, this.chip),
      this.detail,
      h("span.foot", {}, this.figures, this.restarts),
    );
  }

  update(node, state) {
    const { now } = node;
    const [word, sign] = states[now.state] ?? [now.state, "?"];
    const element = this.element;
    if (element.dataset.state !== now.state) element.dataset.state = now.state;
    put(this.chip, sign);
    const part = now.actors[1] < now.actors[0] && now.state === "down" && now.actors[1] > 0;
    const cause = now.cause && (part ? `${now.actors[0] - now.actors[1]} of ${now.actors[0]}: ${now.cause}` : now.cause);
    put(this.detail, shortly(cause) ?? node.detail);
    const figures = figuresOf(node, state);
    put(this.figures, figures);
    const told = [now.state === "up" ? null : word, now.restarts ? `↻ ${count(now.restarts)}` : null];
    put(this.restarts, told.filter(Boolean).join(" · "));
    this.restarts.title = now.restarts ? `started anew ${exact(now.restarts)} times` : "";
    const title = `${node.room} ${node.name} (${node.detail})`;
    if (element.title !== (cause ?? title)) element.title = cause ?? title;
    const label = [title, word, cause, figures, rate(now.rate), now.restarts ? `${now.restarts} restarts` : null];
    const text = label.filter(Boolean).join(", ");
    if (element.getAttribute("aria-label") !== text) element.setAttribute("aria-label", text);
  }
}

/** What a node has to say in a line. */
function figuresOf({ room, now }, state) {
  if (room === "source") return `${count(now.events)} published`;
  if (room === "sink") return `${count(now.events)} stored`;
  if (room === "stream") return now.length === null ? "" : `holds ${count(now.length)}`;
  if (room === "query") return "";
  if (now.lag === null && now.pending === null) return "";
  const parts = [`lag ${count(now.lag)}`, `pending ${count(now.pending)}`];
  const old = now.oldest_us === null ? 0 : state.now.time_us - now.oldest_us;
  if (old > 3e6 && (now.lag || now.pending)) parts.push(span(old));
  return parts.join(" · ");
}
