// Requests: the list, and one with its waterfall.
import { count, date, h, plural, put, say, seconds, short } from "./dom.js";
import { ask } from "./store.js";

const AGAIN_MS = 2000;
const chip = (state) => h("span", { class: "chip", "data-status": state }, state || "not known");

/** Ask again and again while a view is open and can be seen. */
class Asking {
  constructor(look) {
    this.timer = setInterval(() => document.hidden || look(), AGAIN_MS);
  }

  end() {
    clearInterval(this.timer);
  }
}

export class RequestsView {
  title = "Requests";

  constructor(page) {
    this.page = page;
    this.state = h("select", { id: "state", onchange: () => this.look() }, h("option", { value: "" }, "all"));
    this.order = h("select", { id: "order", onchange: () => this.look() }, h("option", { value: "" }, "open ones first"), h("option", { value: "slowest" }, "slowest first"));
    this.name = h("input", { id: "request", type: "search", autocomplete: "off", spellcheck: "false", placeholder: "ID or X-Request-ID" });
    this.about = h("p", { class: "about" });
    this.body = h("tbody");
    const find = (event) => {
      event.preventDefault();
      if (this.name.value.trim()) location.hash = `#/requests/${encodeURIComponent(this.name.value.trim())}`;
    };
    const heads = ["Request", "State", "Called", "Took", "Since", "Where it is, or why it failed"];
    this.element = h("section", { "aria-labelledby": "requests-title" },
      h("h1", { id: "requests-title" }, "Requests"),
      h("div", { class: "row" },
        h("label", { for: "state" }, "State"), this.state, h("label", { for: "order" }, "Order"), this.order,
        h("form", { class: "row", role: "search", onsubmit: find }, h("label", { for: "request" }, "Find"), this.name, h("button", {}, "Open"))),
      this.about,
      h("div", { class: "panel table requests", tabindex: "0", role: "region", "aria-label": "List" },
        h("table", {}, h("thead", {}, h("tr", {}, heads.map((text) => h("th", { scope: "col" }, text)))), this.body)));
    this.asking = new Asking(() => this.look());
  }

  close() {
    this.asking.end();
  }

  update(event) {
    if (event === "all") this.look();
  }

  async look() {
    const query = new URLSearchParams({ state: this.state.value, ...(this.order.value && { slowest: "1" }) });
    try {
      this.show(await ask(`requests?${query}`));
    } catch (error) {
      this.page.complain(error.message);
    }
  }

  show({ requests, limit, states }) {
    if (this.state.options.length === 1) this.state.append(...states.map((state) => h("option", { value: state }, state)));
    const more = requests.length >= limit ? `the first ${count(limit)}` : plural(requests.length, "request");
    say(this.about, `${more}: those that are open; and of those that have ended, the dead letters and the traced ones of the last 15 minutes.`);
    const key = JSON.stringify(requests);
    if (key === this.key) return;
    this.key = key;
    const focused = document.activeElement?.dataset?.request;
    put(this.body, ...requests.map((one) => row(one)));
    if (focused) [...this.body.querySelectorAll("a")].find((link) => link.dataset.request === focused)?.focus();
  }
}

/** What was called: its application, and the deployment if that was called by itself. */
const target = (one) => [one.application, one.deployment].filter(Boolean).join(" · ");

function row(one) {
  const where = one.error || one.calls.map((call) => `${call.deployment} ${call.state}`).join(", ");
  return h("tr", {},
    h("th", { scope: "row" }, h("a", { href: `#/requests/${encodeURIComponent(one.request_id)}`, "data-request": one.request_id }, short(one.client_id || one.request_id, 36))),
    h("td", {}, chip(one.state), one.is_traced ? " traced" : ""), h("td", {}, target(one)), h("td", {}, seconds(one.duration_s)),
    h("td", {}, one.began ? date(one.began) : one.ended ? `ended ${date(one.ended)}` : "–"), h("td", { class: "wide" }, short(where, 160)));
}

export class RequestView {
  title = "Request";

  constructor(page, id) {
    this.page = page;
    this.id = id;
    this.element = h("article", { "aria-labelledby": "request-title" });
    this.asking = new Asking(() => this.isOpen && this.look());
  }

  close() {
    this.asking.end();
  }

  update(event) {
    if (event === "all") this.look();
  }

  async look() {
    try {
      const found = await ask(`request?id=${encodeURIComponent(this.id)}`);
      const key = JSON.stringify(found);
      if (key !== this.key) this.show(found);
      this.key = key;
    } catch (error) {
      this.isOpen = false;
      put(this.element, h("h1", { id: "request-title" }, "Request"), h("div", { class: "empty" }, h("p", {}, error.message), h("p", {}, h("a", { href: "#/requests" }, "All requests"))));
    }
  }

  show({ request: one, trace }) {
    this.isOpen = !one.ended && ["running", "waiting", "retrying", "awaiting"].includes(one.state);
    const facts = {
      Called: target(one), Version: one.version, Took: one.duration_s !== null && seconds(one.duration_s), Began: one.began && date(one.began), Ended: one.ended && !one.began && date(one.ended),
      Deadline: this.isOpen && one.deadline && date(one.deadline), Request: one.request_id, "X-Request-ID": one.client_id !== one.request_id && one.client_id,
      Progress: one.progress && `${one.progress.fraction === null ? "" : `${Math.round(one.progress.fraction * 100)} % `}${one.progress.message}`,
    };
    const text = (label, value) => value && [h("h2", {}, label), h("pre", { tabindex: "0", role: "region", "aria-label": label }, value)];
    const cancel = async () => {
      if (await this.page.sure("Cancel this request?", "Cancel the request")) await this.page.act("cancel", { id: one.request_id }, ({ cancelled }) => (cancelled ? "It is cancelled." : "It had ended already."));
      this.look();
    };
    put(this.element,
      h("p", {}, h("a", { href: "#/requests" }, "← Requests")),
      h("header", { class: "title" }, h("h1", { id: "request-title" }, short(one.client_id || one.request_id, 60)), chip(one.state)),
      ((this.isOpen && this.page.mayAct) || one.is_dead_letter) && h("div", { class: "row" },
        this.isOpen && this.page.mayAct && h("button", { type: "button", class: "danger", onclick: cancel }, "Cancel the request"),
        one.is_dead_letter && h("a", { href: `#/dead-letters/${encodeURIComponent(one.request_id)}` }, "Its dead letter")),
      h("dl", { class: "facts panel" }, Object.entries(facts).filter(([, value]) => value).map(([label, value]) => h("div", {}, h("dt", {}, label), h("dd", {}, value)))),
      trace ? waterfall(trace) : untraced(one),
      text("Error", one.error), text("Traceback", one.traceback), text("Result", one.result));
  }
}

function untraced(one) {
  const lines = one.calls.map((call) => h("li", {}, h("span", { class: "where" }, call.deployment), h("span", { class: "note" }, ` step ${call.step} · ${call.state} · try ${call.attempt}${call.replica ? ` · ${call.replica}` : ""}`)));
  return h("section", { class: "panel", "aria-label": "Steps" }, lines.length ? h("ul", { class: "lines" }, lines) : null,
    h("p", { class: "note" }, "It was not traced, so its steps are not known. Requests with the header ", h("code", {}, "X-Qserve-Trace: 1"), " are."));
}

// -- the waterfall -------------------------------------------------------------------------------

function waterfall(trace) {
  const rows = [...rowsOf(trace, trace.request.began ?? 0, 0)];
  const end = Math.max(1e-4, trace.request.duration_s ?? 0, ...rows.map(({ at, one }) => at + one.queued_s + one.run_s + one.forward_s));
  const step = nice(end / 5);
  const ticks = Array.from({ length: Math.floor((0.94 * end) / step) + 1 }, (_, index) => index * step);
  const axis = h("div", { class: "axis", "aria-hidden": "true" }, ticks.map((at) => moved(h("span", {}, at ? seconds(at) : "0"), at / end)));
  const heads = [["Step"], ["Time", axis], ["Waited"], ["Ran"], ["Passed on"], ["Outcome"]];
  return h("section", { class: "panel", "aria-labelledby": "waterfall-title" },
    h("header", { class: "row" }, h("h2", { id: "waterfall-title" }, "Waterfall"),
      h("ul", { class: "legend", "aria-label": "Colours" }, ["queued", "run", "forward"].map((kind, index) => h("li", {}, h("span", { class: `swatch bar ${kind}`, "aria-hidden": "true" }), ["waited", "ran", "passed on"][index])))),
    h("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Tries of steps" }, h("table", { class: "waterfall" },
      h("thead", {}, h("tr", {}, heads.map(([text, more]) => h("th", { scope: "col" }, more ? [h("span", { class: "unseen" }, text), more] : text)))),
      h("tbody", {}, rows.map((found) => line(found, end))))));
}

function* rowsOf(trace, zero, depth) {
  const offset = depth ? Math.max(0, (trace.request.began ?? zero) - zero) : 0;
  for (const one of trace.tries) yield { one, depth, at: offset + one.at_s };
  for (const inner of trace.inner) yield* rowsOf(inner, zero, depth + 1);
}

function line({ one, depth, at }, end) {
  const bars = [["queued", at, one.queued_s], ["run", at + one.queued_s, one.run_s], ["forward", at + one.queued_s + one.run_s, one.forward_s]];
  const name = h("th", { scope: "row" }, h("span", { class: "where" }, one.deployment), one.step.match(/^\d+$/) ? null : `.${one.step}`, one.attempt > 1 ? h("span", { class: "note" }, ` try ${one.attempt}`) : null);
  name.style.setProperty("--depth", depth);
  const outcome = one.is_taken_over ? `${one.outcome}, taken over` : one.outcome;
  return h("tr", { "data-outcome": one.outcome }, name,
    h("td", { class: "lane" }, h("div", { "aria-hidden": "true" }, bars.map(([kind, from, length]) => {
      const bar = moved(h("span", { class: `bar ${kind}` }), from / end);
      bar.style.width = `${(100 * length) / end}%`;
      return bar;
    }))),
    [one.queued_s, one.run_s, one.forward_s].map((value) => h("td", {}, seconds(value))),
    h("td", { title: one.replica }, outcome));
}

function moved(element, share) {
  element.style.left = `${100 * share}%`;
  return element;
}

function nice(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].find((factor) => factor * power >= value) * power;
}
