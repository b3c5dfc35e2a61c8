// Dead letters: the list, and one with its traceback and its input.
import { count, date, h, plural, put, short } from "./dom.js";
import { ask } from "./store.js";

const LONG = 120;
const WHY = { retries: "every try failed", deaths: "its replicas died", unreadable: "cannot be read" };

/** The application, version and deployment in the place of a call; a name has no colon. */
const placed = (where) => {
  const [app, version, deployment] = where.split(":");
  return deployment ? { place: `${app} · ${deployment}`, version } : { place: where };
};

export class LettersView {
  title = "Dead letters";

  constructor(page) {
    this.page = page;
    this.chosen = new Set();
    this.letters = [];
    this.known = null;
    this.element = h("section", { "aria-labelledby": "letters-title" });
  }

  async update(event) {
    const number = this.page.store.now.dead_letters;
    if (!["all", "now"].includes(event) || (number === this.known && event !== "all")) return;
    this.known = number;
    try {
      const found = await ask("dead-letters");
      this.letters = found.letters;
      this.dropped = found.dropped;
      const ids = new Set(this.letters.map((one) => one.request_id));
      this.chosen = new Set([...this.chosen].filter((id) => ids.has(id)));
      this.show();
    } catch (error) {
      this.page.complain(error.message);
    }
  }

  show() {
    const { mayAct } = this.page;
    const title = h("h1", { id: "letters-title" }, "Dead letters");
    if (!this.letters.length) {
      put(this.element, title, h("div", { class: "empty" }, h("p", {}, "There are none: no call has failed for good.")));
      return;
    }
    const rows = this.letters.map((one) => {
      const pick = h("input", { type: "checkbox", "aria-label": `Choose ${one.request_id}`, checked: this.chosen.has(one.request_id), onchange: () => {
        this.chosen[pick.checked ? "add" : "delete"](one.request_id);
        this.showButtons();
      } });
      const link = h("a", { href: `#/dead-letters/${encodeURIComponent(one.request_id)}` }, short(one.client_id || one.request_id, 40));
      return h("tr", {}, mayAct && h("td", {}, pick), h("th", { scope: "row" }, link), h("td", { title: one.where }, placed(one.where).place), h("td", { class: "wide" }, short(one.error, 160)), h("td", {}, WHY[one.why] ?? one.why), h("td", {}, date(Date.parse(one.at) / 1000)));
    });
    const all = h("input", { type: "checkbox", "aria-label": "Choose all", onchange: () => {
      this.chosen = new Set(all.checked ? this.letters.map((one) => one.request_id) : []);
      this.show();
    } });
    all.checked = this.chosen.size === this.letters.length;
    const heads = ["Request", "Where", "Error", "Why", "When"].map((text) => h("th", { scope: "col" }, text));
    this.buttons = h("div", { class: "row" });
    const more = this.known > this.letters.length ? `the newest ${count(this.letters.length)} of ${count(this.known)}` : plural(this.letters.length, "dead letter");
    put(this.element, title, h("p", { class: "about" }, more, this.dropped ? `; ${count(this.dropped)} older ones were dropped` : ""), this.buttons,
      h("div", { class: "panel table", tabindex: "0", role: "region", "aria-label": "List" }, h("table", {}, h("thead", {}, h("tr", {}, mayAct && h("td", {}, all), heads)), h("tbody", {}, rows))));
    this.showButtons();
  }

  showButtons() {
    if (!this.page.mayAct) return;
    const ids = [...this.chosen];
    const none = !ids.length;
    put(this.buttons, 
      h("button", { type: "button", disabled: none, onclick: () => replay(this.page, ids) }, none ? "Replay" : `Replay ${ids.length}`),
      h("button", { type: "button", class: "danger", disabled: none, onclick: () => purge(this.page, ids) }, none ? "Purge" : `Purge ${ids.length}`));
  }
}

async function replay(page, ids) {
  const found = await page.act("replay", { ids }, ({ done }) => `${plural(done.length, "request")} run again.`);
  const failed = Object.entries(found?.failed ?? {});
  if (failed.length) page.complain(failed.map(([, why]) => why).slice(0, 3).join("\n"));
  if (found && page.view instanceof LettersView) page.view.update("all");
  return found?.done.length === ids.length;
}

async function purge(page, ids) {
  const isSure = await page.sure(`Delete ${plural(ids.length, "dead letter")} for good?`, "Delete");
  const found = isSure && (await page.act("purge", { ids }, ({ deleted }) => `${plural(deleted, "dead letter")} deleted.`));
  if (found && page.view instanceof LettersView) page.view.update("all");
  return Boolean(found);
}

export class LetterView {
  title = "Dead letter";

  constructor(page, id) {
    this.page = page;
    this.id = id;
    this.element = h("article", { "aria-labelledby": "letter-title" });
  }

  async update(event) {
    if (event !== "all") return;
    try {
      this.show(await ask(`dead-letter?id=${encodeURIComponent(this.id)}`));
    } catch (error) {
      put(this.element, h("h1", { id: "letter-title" }, "Dead letter"), h("div", { class: "empty" }, h("p", {}, error.message), h("p", {}, h("a", { href: "#/dead-letters" }, "All dead letters"))));
    }
  }

  show(one) {
    const back = (isDone) => isDone && (location.hash = "#/dead-letters");
    const { place, version } = placed(one.where);
    const facts = { Error: one.error.length > LONG && one.error, Where: place, Version: version, Why: WHY[one.why] ?? one.why, When: date(Date.parse(one.at) / 1000), Step: one.step, Request: one.request_id, "X-Request-ID": one.client_id, Trace: one.trace_id };
    const text = (label, value) => [h("h2", {}, label), h("pre", { tabindex: "0", role: "region", "aria-label": label }, value)];
    put(this.element, 
      h("p", {}, h("a", { href: "#/dead-letters" }, "← Dead letters")),
      h("h1", { id: "letter-title" }, short(one.error || "Dead letter", LONG)),
      this.page.mayAct && h("div", { class: "row" },
        h("button", { type: "button", onclick: async () => back(await replay(this.page, [one.request_id])) }, "Replay"),
        h("button", { type: "button", class: "danger", onclick: async () => back(await purge(this.page, [one.request_id])) }, "Purge")),
      h("dl", { class: "facts panel" }, Object.entries(facts).filter(([, value]) => value).map(([label, value]) => h("div", {}, h("dt", {}, label), h("dd", {}, value)))),
      one.traceback ? text("Traceback", one.traceback) : "",
      text("Input", one.payload.join("\n") || "none"),
      h("h2", {}, "History"),
      h("ol", { class: "history" }, one.history.map((event) => h("li", {}, h("time", {}, date(event.at)), ` ${event.replica} `, h("span", {}, event.what)))));
  }
}
