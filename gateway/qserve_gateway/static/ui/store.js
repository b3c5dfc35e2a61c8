// What is known of the installation: filled by the events of the gateway, asked by the views.

const KEPT = 120; // looks, of which there are two a second

export class Store {
  constructor(onChange, onState) {
    this.applications = new Map();
    this.graphs = new Map();
    this.history = new Map();
    this.replicas = [];
    this.hosts = [];
    this.now = null;
    this.heardAt = 0;
    this.onChange = onChange;
    this.onState = onState;
    this.source = null;
  }

  open() {
    this.close();
    const source = (this.source = new EventSource("ui/events"));
    const on = (name, take) =>
      source.addEventListener(name, (event) => {
        take(JSON.parse(event.data));
        this.heardAt = Date.now();
        this.onChange(name);
      });
    on("graphs", (found) => this.graphs.set(found.application, found.graphs));
    on("application", (found) => {
      this.applications.set(found.name, found);
      this.remember(found);
    });
    on("replicas", (found) => (this.replicas = found.replicas));
    on("hosts", (found) => (this.hosts = found.hosts));
    on("now", (found) => {
      this.now = found;
      for (const name of [...this.applications.keys()]) {
        if (!found.applications.includes(name)) for (const map of [this.applications, this.graphs, this.history]) map.delete(name);
      }
    });
    source.onerror = () => this.onState(source.readyState === EventSource.CLOSED);
  }

  close() {
    this.source?.close();
    this.source = null;
  }

  remember(app) {
    const sum = (of) => app.deployments.reduce((total, one) => total + (of(one) ?? 0), 0);
    const known = this.history.get(app.name) ?? { waiting: [], rate: [], errors: [] };
    const add = (list, value) => list.push(value) > KEPT && list.shift();
    add(known.waiting, sum((one) => one.waiting));
    add(known.rate, throughput(app, this.graphs.get(app.name)) ?? 0);
    add(known.errors, sum((one) => one.errors));
    this.history.set(app.name, known);
  }
}

/** Calls a second that leave an application: those of its last deployments, or of its first where that is not known. */
export function throughput(app, graphs) {
  const ends = new Set();
  for (const graph of graphs ?? []) {
    const byId = new Map(graph.nodes.map((node) => [node.id, node]));
    for (const [child, user] of graph.edges) {
      if (byId.get(user)?.kind === "output" && byId.get(child)?.deployment) ends.add(byId.get(child).deployment);
    }
    if (!graph.nodes.some((node) => node.kind === "output")) {
      for (const [child, user] of graph.edges) if (child === "in") ends.add(byId.get(user).deployment);
    }
  }
  const rates = app.deployments.filter((one) => ends.has(one.name)).map((one) => one.rate);
  return rates.length && !rates.includes(null) ? rates.reduce((total, one) => total + one, 0) : null;
}

/** What colours a deployment: "held", "down", "paused", "slow", "busy", "idle" or "calm"; words say the same. */
export function stateOf(app, one) {
  if (app.bottleneck?.deployment === one.name) return "held";
  if (one.paused_by) return "paused";
  if (!one.replicas.RUNNING && one.wanted) return "down";
  if (one.waiting && one.oldest_s >= 0.1) return "slow";
  if (one.utilisation >= 0.8) return "busy";
  return one.rate || one.running || one.waiting ? "calm" : "idle";
}

export const WORDS = {
  held: "holds it up", paused: "paused", down: "no replica", slow: "calls wait", busy: "busy", calm: "flows", idle: "idle",
};

/** Ask the gateway; errors have its words. */
export async function ask(path, body, method) {
  const headers = { "x-qserve-ui": "1", ...(body !== undefined && { "content-type": "application/json" }) };
  const options = { method: method ?? (body === undefined ? "GET" : "POST"), headers, cache: "no-store", body: body && JSON.stringify(body) };
  const response = await fetch(`ui/${path}`, options);
  const text = await response.text();
  let found = null;
  try {
    found = text ? JSON.parse(text) : null;
  } catch {
    // a proxy has answered
  }
  if (response.ok) return found;
  const error = new Error(found?.error?.message ?? `the gateway has answered with status ${response.status}`);
  error.status = response.status;
  throw error;
}
