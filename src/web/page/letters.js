// What shows events, and so may ask for a token: those that passed of late, and dead letters.

import { NeedsToken, ask, keep } from "./ask.js";
import { clock, count, exact, h, jaegerAt, put, span } from "./format.js";

/** How often events are looked at, in milliseconds. */
const LOOK = 1000;

/** Asks for the token, once for all sections. */
export class TokenForm {
  constructor(retry) {
    const field = h("input", { type: "password", id: "token", name: "token", autocomplete: "off", required: true });
    this.said = h("p.bad", { role: "alert" });
    const submit = (event) => {
      event.preventDefault();
      keep(field.value);
      field.value = "";
      this.element.hidden = true;
      retry();
    };
    this.element = h("form.token", { hidden: true, onsubmit: submit },
      h("label", { for: "token" }, "Events and actions ask for the token of ", h("code", {}, "[http]")),
      h("div.row", {}, field, h("button.main", { type: "submit" }, "Unlock")), this.said);
  }

  show(error) {
    put(this.said, error.message);
    this.element.hidden = false;
  }
}

/** A part of the panel that asks the server. */
class Section {
  constructor(title, form) {
    this.form = form;
    this.body = h("div");
    this.side = h("span.side");
    this.element = h("section", {}, h("h3", {}, title, this.side), this.body);
  }

  failed(error) {
    if (error instanceof NeedsToken) {
      this.form.show(error);
      this.body.replaceChildren(h("p.dim", {}, "Locked."));
    } else {
      this.body.replaceChildren(h("p.dim", {}, "Cannot be shown: " + error.message));
    }
  }
}

function eventOf(event, state, head, foot) {
  const { jaeger } = state.about;
  const trace = event.trace_id && jaeger
    ? h("a", { href: `${jaegerAt(jaeger)}/trace/${event.trace_id}`, target: "_blank", rel: "noreferrer" }, "trace")
    : null;
  const cut = event.bytes > new TextEncoder().encode(event.body).length ? h("span.dim", {}, ` … ${exact(event.bytes)} bytes in all`) : null;
  const facts = [`from ${event.source}`, event.key ? `key ${event.key}` : null, event.type ? `type ${event.type}` : null, event.id].filter(Boolean).join(" · ");
  return h("li", {}, h("p.head", {}, head, trace && [" ", trace]), h("pre", {}, event.body, cut), h("p.facts", {}, facts), foot);
}

/** Events that passed of late. */
export class Passed extends Section {
  constructor(node, state, form) {
    super("Events passing", form);
    this.node = node;
    this.state = state;
    this.element.classList.add("passed");
  }

  async load() {
    clearTimeout(this.timer);
    if (this.stopped) return;
    let again = LOOK;
    try {
      const away = document.hidden || document.body.classList.contains("lost");
      if (!away) this.show((await ask("/api/events?node=" + encodeURIComponent(this.node.id))).events);
    } catch (error) {
      if (error instanceof NeedsToken) again = 0;
      this.failed(error);
    }
    if (again && !this.stopped) this.timer = setTimeout(() => this.load(), again);
  }

  stop() {
    this.stopped = true;
    clearTimeout(this.timer);
  }

  show(events) {
    put(this.side, events.length ? "a sample, newest first" : "");
    const key = events.map((event) => event.id + event.passed).join();
    if (key === this.key) return;
    this.key = key;
    if (!events.length) {
      this.body.replaceChildren(h("p.dim", {}, "None since this was opened."));
      return;
    }
    const chosen = getSelection();
    if (!chosen.isCollapsed && this.body.contains(chosen.anchorNode)) return;
    const list = events.map((event) => eventOf(event, this.state(), `${clock(event.seen_us)} ${event.passed}`));
    this.body.replaceChildren(h("ol.events", {}, list));
  }
}

/** Dead letters of a stream, or of one of its groups. */
export class Letters extends Section {
  constructor(stream, group, state, form) {
    super("Dead letters", form);
    Object.assign(this, { stream, group, state });
    this.said = h("p.said", { role: "status" });
    this.again = h("button", { type: "button", onclick: () => this.load() }, "Look again");
    this.element.append(this.said);
    this.element.classList.add("letters");
  }

  get path() {
    return `/api/streams/${encodeURIComponent(this.stream)}/dead`;
  }

  /** So many were given up by now: if it is another number, there is something new. */
  note(dead) {
    if (this.dead !== undefined && dead > this.dead && !this.busy) this.load();
    this.dead = dead;
  }

  /** A stream that is down is not asked; as soon as it is back, it is. */
  revive(down) {
    if (this.down && !down) this.load();
    this.down = down;
  }

  async load() {
    if (this.down) {
      this.body.replaceChildren(h("p.dim", {}, "They can be shown when the stream is back."));
      return;
    }
    try {
      this.show(await ask(this.path));
    } catch (error) {
      this.failed(error);
    }
  }

  show({ letters, total, groups }) {
    const all = this.group === null ? total : groups[this.group] ?? 0;
    const mine = letters.filter((letter) => this.group === null || letter.group === this.group);
    put(this.side, all ? exact(all) : "");
    if (!mine.length) {
      this.body.replaceChildren(h("p.dim", {}, all ? "Too many of other groups come before them: look at the stream." : "None."), this.again);
      return;
    }
    const items = mine.map((letter) => eventOf(letter, this.state(),
      [`${clock(letter.dead_us)} given up by ${letter.group} after ${letter.attempts} attempts`],
      [h("p.cause.down", {}, letter.reason), this.actions([letter.id], letters)]));
    // All of a stream, or those of a group that are listed: an id says nothing of the group.
    const whole = this.group === null ? { all: true } : { ids: mine.map((letter) => letter.id) };
    const many = mine.length > 1 || all > mine.length ? this.buttons(whole, this.group === null ? all : mine.length, "all") : null;
    const more = all > mine.length ? h("p.dim", {}, `${count(all - mine.length)} more are not listed.`) : null;
    this.body.replaceChildren(many ?? "", h("ol.events", {}, items), more ?? "", this.again);
  }

  actions(ids, letters) {
    const sharing = new Set(letters.filter((letter) => ids.includes(letter.id)).map((letter) => letter.group));
    const note = sharing.size > 1 ? h("p.dim", {}, `Of ${[...sharing].join(" and ")}: both go together.`) : null;
    return [note, this.buttons({ ids }, ids.length, "")];
  }

  buttons(which, number, word) {
    const box = h("p.row.actions");
    const what = number === 1 ? "this letter" : `${exact(number)} letters`;
    const replay = h("button.main", { type: "button", onclick: () => this.act("replay", which, box) }, `Replay ${word}`.trim());
    const drop = h("button.danger", { type: "button", onclick: () => sure() }, `Drop ${word} …`.replace("  ", " "));
    const sure = () => {
      const yes = h("button.danger", { type: "button", onclick: () => this.act("drop", which, box) }, "Drop for good");
      const no = h("button", { type: "button", onclick: () => { box.replaceChildren(replay, drop); drop.focus(); } }, "Keep");
      box.replaceChildren(h("span", {}, `Forget ${what}?`), yes, no);
      no.focus();
    };
    box.append(replay, drop);
    return box;
  }

  async act(what, which, box) {
    this.busy = true;
    box.replaceChildren(h("span.busy", {}, what === "replay" ? "Replaying …" : "Dropping …"));
    const since = performance.now();
    try {
      const done = await ask(`${this.path}/${what}`, which);
      const number = done.replayed ?? done.dropped;
      const took = span((performance.now() - since) * 1000);
      put(this.said, `${exact(number)} ${number === 1 ? "letter" : "letters"} ${what === "replay" ? "put back into the stream" : "dropped"} (${took}).`);
      this.said.classList.remove("bad");
    } catch (error) {
      put(this.said, `Not ${what === "replay" ? "replayed" : "dropped"}: ${error.message || "the token is missing"}`);
      this.said.classList.add("bad");
      if (error instanceof NeedsToken) this.form.show(error);
    }
    this.busy = false;
    await this.load();
  }
}
