// Starts the page: signs in, follows the events, and shows the view that the address names.
import { ApplicationView, OverviewView } from "./application.js";
import { h, place, put, say, seconds } from "./dom.js";
import { HostsView } from "./hosts.js";
import { LetterView, LettersView } from "./letters.js";
import { RequestsView, RequestView } from "./requests.js";
import { ask, Store } from "./store.js";

const VIEWS = {
  "": (page) => (page.store.applications.size === 1 ? new ApplicationView(page, [...page.store.applications.keys()][0]) : new OverviewView(page)),
  app: (page, name) => new ApplicationView(page, name),
  "dead-letters": (page, id) => (id ? new LetterView(page, id) : new LettersView(page)),
  requests: (page, id) => (id ? new RequestView(page, id) : new RequestsView(page)),
  hosts: (page) => new HostsView(page),
};

class Page {
  constructor() {
    this.mayAct = false;
    this.view = null;
    this.isDue = false;
    this.spoken = new Map();
    this.store = new Store((event) => this.changed(event), (isClosed) => this.lost(isClosed));
    addEventListener("hashchange", () => this.show());
    place("sign-in").addEventListener("submit", (event) => {
      event.preventDefault();
      this.signIn(place("token").value.trim());
    });
    place("sign-out").addEventListener("click", async () => {
      await ask("session", undefined, "DELETE").catch(() => undefined);
      location.reload();
    });
    for (const dialog of document.querySelectorAll("dialog")) {
      dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
    }
    setInterval(() => this.showHealth(), 500);
  }

  async start() {
    const given = location.hash.match(/^#token=(.+)$/);
    if (given) {
      history.replaceState(null, "", location.pathname + location.search); // not to be kept, copied or seen
      return this.signIn(decodeURIComponent(given[1]));
    }
    try {
      const { may_act: mayAct } = await ask("session");
      this.begin(mayAct);
    } catch (error) {
      if (error.status !== 401) this.complain(error.message);
      this.askForToken();
    }
  }

  async signIn(token) {
    this.complain("");
    try {
      const { may_act: mayAct } = await ask("session", { token });
      place("token").value = "";
      this.begin(mayAct);
    } catch (error) {
      this.complain(error.message);
      this.askForToken();
    }
  }

  askForToken() {
    this.store.close();
    place("sign-in").hidden = false;
    for (const id of ["tabs", "health", "sign-out"]) place(id).hidden = true;
    put(place("main"), );
    place("token").focus();
  }

  begin(mayAct) {
    this.mayAct = mayAct;
    place("sign-in").hidden = true;
    for (const id of ["tabs", "health", "sign-out"]) place(id).hidden = false;
    this.store.open();
  }

  /** Show the view of the address; before the first picture there is nothing to show. */
  show() {
    if (!this.store.now) return;
    const [, name = "", rest = ""] = location.hash.match(/^#\/([\w-]*)\/?(.*)$/) ?? [];
    let what = "";
    try {
      what = decodeURIComponent(rest);
    } catch {
      // it names nothing
    }
    this.view?.close?.();
    this.isSingle = this.store.applications.size === 1; // of one application its view is the first, of several their list
    this.view = (VIEWS[name] ?? VIEWS[""])(this, what);
    put(place("main"), this.view.element);
    document.title = `${this.view.title} · qserve`;
    this.showTabs(name);
    this.view.update("all");
    scrollTo(0, 0);
  }

  showTabs(name) {
    const tab = (target, text) => h("a", { href: `#/${target}`, "aria-current": name === target || (name === "app" && target === "") ? "page" : undefined }, text);
    const letters = h("span", { class: "badge", id: "letters-badge" });
    const tabs = [tab("", "Applications"), tab("requests", "Requests")];
    const dead = tab("dead-letters", "Dead letters");
    dead.append(" ", letters);
    put(place("tabs"), ...tabs, dead, tab("hosts", "Hosts"));
    this.showBadge();
  }

  showBadge() {
    const badge = place("letters-badge");
    const count = this.store.now?.dead_letters ?? 0;
    if (!badge) return;
    say(badge, count ? String(count) : "");
    badge.hidden = !count;
  }

  /** Take in an event; whatever comes together is drawn once, and nothing is while nobody can see it. */
  changed(event) {
    if (event === "now") this.complain("");
    this.events = (this.events ?? new Set()).add(event);
    if (this.isDue) return;
    this.isDue = true;
    requestAnimationFrame(() => {
      this.isDue = false;
      const { events } = this;
      this.events = null;
      const isFirst = !/^#\/\w/.test(location.hash);
      if (!this.view || (isFirst && this.isSingle !== (this.store.applications.size === 1))) this.show();
      else for (const one of events) this.view.update(one);
      this.showBadge();
      this.speak();
    });
  }

  showHealth() {
    const { store } = this;
    if (!store.now) return;
    const age = (Date.now() - store.heardAt) / 1000;
    const [state, text] = age > 5 ? ["lost", `no news for ${seconds(age)}`] : store.now.broker.is_up ? ["live", "live"] : ["lost", "the broker is away"];
    if (place("health").dataset.state !== state) place("health").dataset.state = state;
    say(place("health-text"), text);
  }

  /** Tell screen readers what changes what holds an application up, and when that passes. */
  speak() {
    for (const app of this.store.applications.values()) {
      const name = app.bottleneck?.deployment ?? "";
      const before = this.spoken.get(app.name);
      if (before === name) continue;
      this.spoken.set(app.name, name);
      if (name) say(place("news"), `${name} holds up ${app.name}: ${app.bottleneck.why}.`);
      else if (before) say(place("news"), `${app.name} flows again.`);
    }
  }

  lost(isClosed) {
    if (!isClosed) return; // the browser connects again by itself
    this.store.close();
    setTimeout(() => {
      ask("session").then(() => this.store.open(), (error) => (error.status === 401 ? this.askForToken() : this.lost(true)));
    }, 2000);
  }

  complain(text) {
    say(place("problem"), text);
    place("problem").hidden = !text;
  }

  /** Do something, and say what has become of it. */
  async act(name, body, told) {
    try {
      const found = await ask(name, body);
      say(place("news"), told(found));
      this.complain("");
      return found;
    } catch (error) {
      this.complain(error.message);
      return null;
    }
  }

  /** Ask whether something is meant; resolves to true or false. */
  sure(question, button) {
    const dialog = place("question");
    return new Promise((resolve) => {
      put(dialog, 
        h("form", { method: "dialog" },
          h("h2", { id: "question-title" }, question),
          h("div", { class: "row" }, h("button", { value: "no", class: "quiet", autofocus: true }, "Cancel"), h("button", { value: "yes", class: "danger" }, button))));
      dialog.returnValue = "";
      dialog.onclose = () => resolve(dialog.returnValue === "yes");
      dialog.showModal();
    });
  }
}

new Page().start();
