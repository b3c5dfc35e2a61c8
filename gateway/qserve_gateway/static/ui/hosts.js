// Hosts and what runs where.
import { bytes, count, h, plural, put, seconds } from "./dom.js";

export class HostsView {
  title = "Hosts";

  constructor(page) {
    this.page = page;
    this.element = h("section", { "aria-labelledby": "hosts-title" });
    this.key = "";
  }

  update(event) {
    if (!["all", "hosts", "replicas"].includes(event)) return;
    const { hosts, replicas } = this.page.store;
    const byWorker = grouped(replicas);
    const known = new Set(hosts.map((one) => one.worker));
    const others = [...byWorker.keys()].filter((worker) => !known.has(worker));
    const cards = hosts.map((one) => this.card(one.worker, one, byWorker.get(one.worker) ?? []));
    cards.push(...others.map((worker) => this.card(worker, null, byWorker.get(worker))));
    put(this.element, 
      h("h1", { id: "hosts-title" }, "Hosts"),
      cards.length ? h("ul", { class: "cards" }, cards) : h("div", { class: "empty" }, h("p", {}, "No worker runs: start ", h("code", {}, "qserve worker"), ".")));
  }

  card(worker, host, replicas) {
    const running = replicas.filter((one) => one.state === "RUNNING").length;
    const places = host?.places ?? 0;
    const name = host?.host ?? replicas[0]?.host ?? worker;
    const groups = [...grouped(replicas, (one) => `${one.application}/${one.deployment}`)].sort();
    const line = ([place, found]) => {
      const versions = [...new Set(found.map((one) => one.version))];
      const dots = found.slice(0, 24).map((one) => h("span", { class: "dot", "data-state": one.state, title: `${one.name}: ${one.state.toLowerCase()}, process ${one.pid}` }));
      return h("li", {}, h("span", { class: "where" }, place), h("span", { class: "dots", role: "img", "aria-label": plural(found.length, "replica") }, dots), h("span", { class: "note" }, `${found.length} · version ${versions.join(", ")}`));
    };
    return h("li", { class: "card", "data-state": host?.is_draining ? "paused" : "calm" },
      h("h2", {}, name),
      h("p", { class: "note" }, `worker ${worker || "of an older release"}`),
      h("p", {}, places ? placesOf(host) : `${plural(running, "replica")} of its own`, host?.devices.length ? ` · devices ${host.devices.join(", ")}` : "", host?.is_draining ? " · draining" : ""),
      places ? h("progress", { max: Math.max(places, host.used), value: host.used, "aria-label": `Places used on ${name}` }) : null,
      h("ul", { class: "lines" }, groups.map(line)),
      host?.stored.length ? [h("h3", {}, "Large values"), h("ul", { class: "lines", "aria-label": `Large values on ${name}` }, host.stored.map(stored))] : null);
  }
}

function stored({ store, values, bytes: size, oldest_s: age, fallbacks }) {
  const facts = [plural(values, "value"), bytes(size), values && `the oldest for ${seconds(age)}`, fallbacks && `${count(fallbacks)} found no room`];
  return h("li", {}, h("span", { class: "where" }, store), h("span", { class: "note" }, facts.filter(Boolean).join(" · ")));
}

/** A deployment gets as many replicas as it is to have although no place is free, unless it says what it needs. */
function placesOf({ used, places }) {
  return used > places ? `all of ${plural(places, "place")} used, and ${plural(used - places, "replica")} more` : `${used} of ${plural(places, "place")} used`;
}

function grouped(items, key = (one) => one.worker) {
  const found = new Map();
  for (const one of items) found.set(key(one), [...(found.get(key(one)) ?? []), one]);
  return found;
}
