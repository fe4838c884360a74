// An edge: the way, what flows on it, and a minute of it as a small chart that stands on the way.

import { rate, s } from "./format.js";

const POINTS = 60;
/** How much of the way is straight, for the chart. */
const STRAIGHT = 92;
const STRAIGHT_DOWN = 40;
const CHART = { width: 84, height: 20 };

export class Edge {
  constructor(edge, from, to) {
    this.edge = edge;
    this.asks = to.room === "query";
    // The chart stands where the edge is alone: groups and sources have one way out.
    this.early = to.room !== "group";
    this.way = s("path", { class: "way" });
    this.flow = s("path", { class: "flow" });
    this.tip = s("path", { class: "tip" });
    this.area = s("path", { class: "area" });
    this.line = s("path", { class: "line" });
    this.text = s("text", { class: "rate" });
    this.chart = s("g", { class: "chart" }, this.area, this.line);
    const parts = this.asks ? [this.way, this.tip] : [this.way, this.flow, this.tip, this.chart, this.text];
    this.group = s("g", { class: `edge from-${from.room}${this.asks ? " asks" : ""}` }, ...parts);
    this.speed = -1;
  }

  /** Where it runs: `at` tells the place of a column and a height. */
  place(places, size, narrow, at) {
    const { from, to, passes } = this.edge;
    const along = narrow ? "height" : "width";
    // In the direction of the flow, and across it.
    const point = ({ x, y }) => narrow ? [y, x] : [x, y];
    const write = (a, c) => narrow ? `${round(c)} ${round(a)}` : `${round(a)} ${round(c)}`;
    const half = size[along] / 2;
    let [a, c] = point(places[from]);
    a += half;
    const [end, across] = point(places[to]);
    const tip = end - half - 6;
    const straight = this.asks ? 0 : narrow ? STRAIGHT_DOWN : STRAIGHT;
    let path = `M ${write(a, c)}`;
    const curve = (toA, toC) => {
      const middle = (a + toA) / 2;
      path += ` C ${write(middle, c)} ${write(middle, toC)} ${write(toA, toC)}`;
      [a, c] = [toA, toC];
    };
    const go = (toA) => {
      path += ` L ${write(toA, c)}`;
      a = toA;
    };
    let chart = [a, c];
    if (this.early && straight) go(a + straight);
    for (const [column, height] of passes) {
      const [middle, other] = point(at(column, height));
      curve(middle - half, other);
      go(middle + half);
    }
    const late = !this.early && straight;
    curve(late ? Math.max(a, tip - straight) : tip, across);
    if (late) {
      chart = [a, c];
      go(tip);
    }
    this.way.setAttribute("d", path);
    this.flow.setAttribute("d", path);
    this.tip.setAttribute("d", `M ${write(tip, c - 4)} L ${write(tip + 6, c)} L ${write(tip, c + 4)} Z`);
    const [x, y] = narrow ? [chart[1] + 7, chart[0] + 22] : [chart[0] + 4, chart[1] - 1];
    this.narrow = narrow;
    this.chart.setAttribute("transform", `translate(${round(x)} ${round(y)})`);
    this.text.setAttribute("x", round(x));
    this.text.setAttribute("y", round(y + 15));
  }

  update(edge) {
    this.edge = edge;
    if (this.asks) return;
    const { now, history } = edge;
    const speed = now.rate <= 0 ? 0 : Math.min(5, 1 + Math.floor(Math.log10(Math.max(1, now.rate))));
    if (speed !== this.speed) {
      this.speed = speed;
      this.group.dataset.speed = speed;
    }
    const text = now.total === null ? "" : rate(now.rate);
    if (this.text.textContent !== text) this.text.textContent = text;
    const width = this.narrow ? 58 : CHART.width;
    const { area, line } = chart(history, width, CHART.height);
    this.area.setAttribute("d", area);
    this.line.setAttribute("d", line);
  }
}

/** A minute of events/s as a line and the area under it, on a baseline of 0. */
export function chart(history, width, height) {
  const most = Math.max(...history, 0);
  if (!most || history.length < 2) return { area: "", line: "", most };
  const step = width / (POINTS - 1);
  const start = (POINTS - history.length) * step;
  const points = history.map((value, i) => `${round(start + i * step)} ${round(-value / most * height)}`);
  const line = "M " + points.join(" L ");
  return { area: `${line} L ${round(width)} 0 L ${round(start)} 0 Z`, line, most };
}

const round = (number) => Math.round(number * 10) / 10;
