// An application: what holds it up, its graphs, and its deployments as a table; and the list of all applications.
import { openDrawer } from "./deployment.js";
import { bytes, count, date, h, millis, plural, put, rate, say, seconds, set, spark, svg } from "./dom.js";
import { GraphPicture, legend } from "./graph.js";
import { stateOf, throughput, WORDS } from "./store.js";

const NARROW = matchMedia("(max-width: 720px)");
const READABLE = 0.72; // of its size, below which a graph is not shrunk to a narrow window

export class OverviewView {
  title = "Applications";

  constructor(page) {
    this.page = page;
    this.element = h("section", { "aria-label": "Applications" });
  }

  update(event) {
    if (!["all", "application", "now"].includes(event)) return;
    const apps = [...this.page.store.applications.values()];
    if (!apps.length) {
      if (!this.element.querySelector(".empty")) {
        put(this.element, h("div", { class: "empty" }, h("h1", {}, "Nothing is deployed"), h("p", {}, "Applications appear here as soon as they are: ", h("code", {}, "qserve deploy MODULE:NODE"))));
      }
      return;
    }
    const focused = document.activeElement?.dataset?.app;
    put(this.element, h("h1", {}, "Applications"), h("ul", { class: "cards" }, apps.map((app) => this.card(app))));
    if (focused) [...this.element.querySelectorAll("a")].find((link) => link.dataset.app === focused)?.focus();
  }

  card(app) {
    const waiting = app.deployments.reduce((total, one) => total + one.waiting, 0);
    return h("li", { class: "card", "data-state": app.bottleneck ? "held" : "calm" },
      h("a", { href: `#/app/${encodeURIComponent(app.name)}`, "data-app": app.name }, h("h2", {}, app.name)),
      h("p", {}, chip(app.status), " ", h("code", {}, app.route ?? "no HTTP")),
      h("p", {}, `${rate(throughput(app, this.page.store.graphs.get(app.name)))}/s · ${count(waiting)} waiting · ${plural(app.deployments.length, "deployment")}`),
      app.bottleneck && h("p", { class: "why" }, `${app.bottleneck.deployment} holds it up: ${app.bottleneck.why}`));
  }
}

const chip = (status) => h("span", { class: "chip", "data-status": status }, status.toLowerCase().replaceAll("_", " "));

export class ApplicationView {
  constructor(page, name) {
    this.page = page;
    this.name = name;
    this.title = name;
    this.pictures = [];
    this.shown = null;
    this.rows = new Map();
    this.element = h("article", { class: "application", "aria-labelledby": "app-name" });
    this.turn = () => this.drawGraphs();
    NARROW.addEventListener("change", this.turn);
  }

  close() {
    NARROW.removeEventListener("change", this.turn);
  }

  build(app) {
    const tile = (label, values) => {
      const parts = { value: h("strong", {}, "–"), note: h("span", { class: "note" }), line: svg("path", { class: "line" }), area: svg("path", { class: "area" }) };
      const picture = values && svg("svg", { class: "spark", viewBox: "0 0 120 34", preserveAspectRatio: "none", "aria-hidden": "true" }, parts.area, parts.line);
      parts.element = h("div", { class: "tile" }, h("span", { class: "label" }, label), parts.value, parts.note, picture);
      return parts;
    };
    this.tiles = { rate: tile("Throughput", true), waiting: tile("Waiting", true), errors: tile("Errors", true), slow: tile("Slowest step"), replicas: tile("Replicas"), broker: tile("Broker") };
    this.status = chip(app.status);
    this.about = h("p", { class: "about" });
    this.verdict = h("div", { class: "verdict" });
    this.change = h("section", { class: "panel change", "aria-label": "Rolling update", hidden: true });
    this.message = h("pre", { class: "message", hidden: true, tabindex: "0", "aria-label": "Message" });
    this.graphs = h("div", { class: "graphs" });
    this.body = h("tbody");
    const head = ["Deployment", "State", "Waiting", "Oldest", "Running", "Calls/s", "Errors/s", "p50", "p99", "In queue", "Replicas", "Load"];
    const table = h("table", {}, h("caption", {}, "Deployments"), h("thead", {}, h("tr", {}, head.map((text) => h("th", { scope: "col" }, text)))), this.body);
    put(this.element, 
      h("header", { class: "title" }, h("h1", { id: "app-name" }, this.name), this.status, this.about),
      this.verdict,
      h("div", { class: "tiles" }, Object.values(this.tiles).map((one) => one.element)),
      this.change, this.message, this.graphs,
      h("section", { class: "panel table", tabindex: "0", "aria-label": "Deployments" }, table));
    this.rows.clear();
    this.isBuilt = true;
  }

  update(event) {
    const app = this.page.store.applications.get(this.name);
    if (!app) {
      this.isBuilt = false;
      if (!this.element.querySelector(".empty")) put(this.element, h("div", { class: "empty" }, h("h1", { id: "app-name" }, this.name), h("p", {}, "is not deployed.")));
      return;
    }
    if (!this.isBuilt) {
      this.build(app);
      event = "all";
    }
    if (["all", "graphs"].includes(event)) this.drawGraphs();
    if (["all", "graphs", "application", "now"].includes(event)) this.showNumbers(app);
  }

  drawGraphs() {
    const graphs = this.page.store.graphs.get(this.name) ?? [];
    if (!this.isBuilt || (this.shown === graphs && this.wasNarrow === NARROW.matches)) return;
    this.shown = graphs;
    this.wasNarrow = NARROW.matches;
    this.pictures = graphs.map((graph) => new GraphPicture(graph, NARROW.matches, (name) => openDrawer(this.page, this.name, name)));
    put(this.graphs, ...this.pictures.map((picture, index) => this.frame(picture, index === 0)));
    const app = this.page.store.applications.get(this.name);
    if (app) for (const picture of this.pictures) picture.update(app);
  }

  frame(picture, isFirst) {
    const scroller = h("div", { class: "canvas", tabindex: "0", role: "region", "aria-label": `Graph ${picture.graph.name}`.trim() }, picture.element);
    const resize = (isFit) => scroller.classList.toggle("fit", isFit);
    const isLarge = picture.size.width > 2600 || picture.size.height > 1800;
    resize(!isLarge);
    if (!isLarge && NARROW.matches) picture.element.style.minWidth = `${Math.round(READABLE * picture.size.width)}px`;
    const fit = h("button", { type: "button", class: "quiet", "aria-pressed": String(!isLarge), onclick: () => {
      const isFit = fit.getAttribute("aria-pressed") !== "true";
      set(fit, "aria-pressed", String(isFit));
      resize(isFit);
    } }, "Fit");
    const dashed = picture.hasHandles && h("span", { class: "note" }, "dashed: calls by handle");
    return h("section", { class: "panel graph-panel" }, h("header", {}, h("h2", {}, `Graph ${picture.graph.name}`), dashed, isFirst && legend(), fit), scroller);
  }

  showNumbers(app) {
    for (const picture of this.pictures) picture.update(app);
    const { store } = this.page;
    const sum = (of) => app.deployments.reduce((total, one) => total + (of(one) ?? 0), 0);
    const history = store.history.get(app.name);
    const show = (tile, value, note, values) => {
      say(tile.value, value);
      say(tile.note, note);
      if (!values) return;
      const [line, area] = spark(values, 120, 34);
      set(tile.line, "d", line);
      set(tile.area, "d", area);
    };
    const oldest = Math.max(0, ...app.deployments.map((one) => (one.waiting ? one.oldest_s : 0)));
    const slow = app.deployments.reduce((worst, one) => ((one.p99_ms ?? -1) > (worst?.p99_ms ?? -1) ? one : worst), null);
    const running = sum((one) => one.replicas.RUNNING);
    const wanted = sum((one) => one.wanted);
    const { broker } = store.now;
    const through = throughput(app, store.graphs.get(app.name));
    show(this.tiles.rate, through === null ? "–" : `${rate(through)}/s`, `${count(sum((one) => one.running))} running`, history?.rate);
    show(this.tiles.waiting, count(sum((one) => one.waiting)), oldest ? `oldest ${seconds(oldest)}` : "none waits", history?.waiting);
    show(this.tiles.errors, `${rate(sum((one) => one.errors))}/s`, store.now.dead_letters ? plural(store.now.dead_letters, "dead letter") : "no dead letters", history?.errors);
    show(this.tiles.slow, slow?.p99_ms == null ? "–" : millis(slow.p99_ms), slow?.p99_ms == null ? "no calls lately" : `p99 of ${slow.name}`);
    show(this.tiles.replicas, `${running}/${wanted}`, running === wanted ? "all run" : "run of those wanted");
    show(this.tiles.broker, broker.commit_p50_ms === null ? "–" : millis(broker.commit_p50_ms), `a commit · ${bytes(broker.used_bytes)}${broker.limit_bytes ? ` of ${bytes(broker.limit_bytes)}` : ""}`);
    say(this.status, app.status.toLowerCase().replaceAll("_", " "));
    set(this.status, "data-status", app.status);
    say(this.about, [app.route ?? "no HTTP", `version ${app.version}`, app.deployed_s ? `deployed ${date(app.deployed_s)}` : ""].filter(Boolean).join(" · "));
    this.showVerdict(app);
    this.showChange(app);
    this.message.hidden = !app.message;
    say(this.message, app.message);
    this.showRows(app);
  }

  showVerdict(app) {
    const { bottleneck } = app;
    const state = bottleneck ? "held" : "calm";
    set(this.verdict, "data-state", state);
    if (!bottleneck) {
      if (this.verdict.dataset.name !== "") put(this.verdict, h("p", {}, h("strong", {}, "Nothing holds it up."), " No step makes calls wait."));
      this.verdict.dataset.name = "";
      return;
    }
    if (this.verdict.dataset.name !== bottleneck.deployment) {
      this.verdict.dataset.name = bottleneck.deployment;
      this.why = h("span");
      const open = h("button", { type: "button", onclick: () => openDrawer(this.page, this.name, bottleneck.deployment) }, "Look into it");
      put(this.verdict, h("p", {}, h("strong", {}, `${bottleneck.deployment} holds it up`), this.why), open);
    }
    say(this.why, ` — its calls wait ${seconds(bottleneck.delay_s)}: ${bottleneck.why}.`);
  }

  showChange(app) {
    const { change } = app;
    this.change.hidden = !change;
    if (!change) return;
    const bars = app.deployments.map((one) => {
      const running = change.running[one.name] ?? 0;
      return h("li", {}, h("span", {}, one.name), h("progress", { max: Math.max(one.wanted, running, 1), value: running, "aria-label": `New replicas of ${one.name}` }), h("span", { class: "note" }, `${running} of ${one.wanted}`));
    });
    const words = [change.share ? `${Math.round(change.share * 100)} % of new requests go to it` : "no requests go to it yet", change.by && `by ${change.by}`, change.started_s && `since ${seconds(Math.max(0, this.page.store.now.at_s - change.started_s))}`];
    const what = change.version ? `Version ${change.version} comes up` : "It is being deleted";
    put(this.change, h("h2", {}, what), h("p", {}, words.filter(Boolean).join(" · ")), change.version ? h("ul", {}, bars) : "");
  }

  showRows(app) {
    const names = new Set(app.deployments.map((one) => one.name));
    for (const [name, row] of this.rows) {
      if (names.has(name)) continue;
      row.element.remove();
      this.rows.delete(name);
    }
    for (const one of app.deployments) {
      let row = this.rows.get(one.name);
      if (!row) {
        const cells = Array.from({ length: 10 }, () => h("td"));
        const state = h("td");
        const open = h("button", { type: "button", class: "link", onclick: () => openDrawer(this.page, this.name, one.name) }, one.name);
        row = { cells, state, element: h("tr", {}, h("th", { scope: "row" }, open), state, cells) };
        this.rows.set(one.name, row);
        this.body.append(row.element);
      }
      const state = stateOf(app, one);
      set(row.element, "data-state", state);
      say(row.state, WORDS[state]);
      const texts = [count(one.waiting), one.waiting ? seconds(one.oldest_s) : "–", count(one.running), rate(one.rate), rate(one.errors), millis(one.p50_ms), millis(one.p99_ms), millis(one.wait_p50_ms), `${one.replicas.RUNNING ?? 0}/${one.wanted}`, `${Math.round(one.utilisation * 100)} %`];
      texts.forEach((text, index) => say(row.cells[index], text));
    }
  }
}
