// The picture of a graph: drawn once, and changed in place when numbers change.
import { count, h, millis, plural, rate, say, seconds, set, short, svg } from "./dom.js";
import { stateOf, WORDS } from "./store.js";

const DOTS = 14;
const MOVING = 60; // edges, beyond which nothing moves

export class GraphPicture {
  /** Draw a graph of an application; `onChoose` is called with the name of a deployment. */
  constructor(graph, isTall, onChoose) {
    const shape = isTall ? graph.tall : graph.wide;
    this.graph = graph;
    this.size = shape;
    this.nodes = [];
    this.edges = [];
    this.hasHandles = false;
    const kinds = new Map(graph.nodes.map((node) => [node.id, node]));
    const lines = graph.edges.map(([child, user], index) => {
      const byHandle = kinds.get(user).kind === "handle" && kinds.get(child).deployment;
      this.hasHandles ||= Boolean(byHandle);
      const line = svg("path", { class: byHandle ? "edge by-handle" : "edge", d: shape.paths[index] });
      const flow = svg("path", { class: "flow", d: shape.paths[index] });
      this.edges.push({ line, flow, from: kinds.get(child).deployment, to: kinds.get(user).deployment });
      return [line, flow];
    });
    const boxes = graph.nodes.map((node) => this.box(node, shape.boxes[node.id], onChoose));
    const title = graph.name ? `Graph ${graph.name}` : "Graph";
    this.element = svg("svg", {
      class: "graph", viewBox: `0 0 ${shape.width} ${shape.height}`, width: shape.width, height: shape.height,
      role: "group", "aria-label": `${title}, ${plural(graph.nodes.filter((node) => node.deployment).length, "step")}. The table below has the same numbers.`,
    }, svg("g", { "aria-hidden": "true" }, lines), boxes);
    this.element.classList.toggle("still", graph.edges.length > MOVING);
  }

  box(node, [x, y, width, height], onChoose) {
    if (!node.deployment) {
      const text = node.kind === "input" ? "request" : "response";
      return svg("g", { class: "end", transform: `translate(${x} ${y})` },
        svg("rect", { width, height, rx: height / 2 }),
        svg("text", { x: width / 2, y: height / 2 + 4.5, "text-anchor": "middle" }, text));
    }
    const text = (name, left, top, more) => svg("text", { class: name, x: left, y: top, ...more });
    const end = { "text-anchor": "end" };
    const parts = {
      node,
      name: text("name", 16, 27), rate: text("rate", width - 16, 27, end), times: text("times", 16, 46),
      errors: text("errors", width - 16, 68, end), queue: text("queue", 16, 68), badge: text("badge", width / 2, 4, { "text-anchor": "middle" }),
      replicas: text("replicas", width - 16, 88, end), tip: svg("title"),
      dots: Array.from({ length: DOTS }, (_, index) => svg("circle", { cx: 20 + index * 10, cy: 84, r: 3.6 })),
      load: svg("rect", { class: "load", x: 0, y: height - 5, width: 0, height: 5 }),
    };
    const method = node.method && node.method !== "__call__" ? `.${node.method}` : "";
    parts.name.append(short(`${node.deployment}${method}`, 19));
    parts.label = `${node.deployment}${method}`;
    const clip = `clip-${Math.random().toString(36).slice(2)}`;
    const choose = () => onChoose(node.deployment);
    parts.group = svg("g", {
      class: "node", transform: `translate(${x} ${y})`, tabindex: "0", role: "button", "data-deployment": node.deployment,
      onclick: choose,
      onkeydown: (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        choose();
      },
    },
    parts.tip,
    svg("rect", { class: "halo", x: -5, y: -5, width: width + 10, height: height + 10, rx: 18 }),
    svg("clipPath", { id: clip }, svg("rect", { width, height, rx: 13 })),
    svg("rect", { class: "card", width, height, rx: 13 }),
    svg("g", { "clip-path": `url(#${clip})` }, svg("rect", { class: "track", x: 0, y: height - 5, width, height: 5 }), parts.load),
    parts.name, parts.rate, parts.times, parts.errors, parts.queue, parts.replicas, parts.dots,
    svg("g", { class: "tag" }, svg("rect", { x: width / 2 - 52, y: -12, width: 104, height: 23, rx: 11.5 }), parts.badge));
    parts.width = width;
    this.nodes.push(parts);
    return parts.group;
  }

  /** Show the numbers of the application now. */
  update(app) {
    const found = new Map(app.deployments.map((one) => [one.name, one]));
    for (const parts of this.nodes) {
      const one = found.get(parts.node.deployment);
      if (one) updateNode(parts, one, stateOf(app, one), app);
    }
    for (const { line, flow, from, to } of this.edges) {
      const through = (to ? found.get(to)?.rate : found.get(from)?.rate) ?? 0;
      const width = (1.6 + Math.min(2.6, Math.log10(1 + through) * 0.7)).toFixed(1);
      set(line, "stroke-width", width);
      set(flow, "stroke-width", width);
      const moves = String(through > 0);
      if (flow.dataset.moves !== moves) flow.dataset.moves = moves;
      const pace = `${Math.max(0.5, 2.4 - Math.log10(1 + through) * 0.55).toFixed(1)}s`;
      if (flow.style.animationDuration !== pace) flow.style.animationDuration = pace;
    }
  }
}

function updateNode(parts, one, state, app) {
  set(parts.group, "data-state", state);
  say(parts.rate, one.rate === null ? "–" : `${rate(one.rate)}/s`);
  say(parts.times, one.p50_ms === null ? "no calls lately" : `p50 ${millis(one.p50_ms)} · p99 ${millis(one.p99_ms)}`);
  say(parts.errors, one.errors ? `${rate(one.errors)} err/s` : "");
  say(parts.queue, queueOf(one));
  say(parts.badge, ["held", "paused", "down"].includes(state) ? WORDS[state] : "");
  const running = one.replicas.RUNNING ?? 0;
  say(parts.replicas, running === one.wanted ? plural(running, "replica") : `${running} of ${one.wanted} replicas`);
  const states = [...Array(Math.min(running, DOTS)).fill("RUNNING")];
  for (const name of ["STARTING", "FAILED"]) states.push(...Array(one.replicas[name] ?? 0).fill(name));
  while (states.length < Math.min(one.wanted, DOTS)) states.push("MISSING");
  const most = running > 99 || one.wanted > 99 ? 8 : 10;
  parts.dots.forEach((dot, index) => set(dot, "data-state", index < Math.min(states.length, most) ? states[index] : "NONE"));
  set(parts.load, "width", (one.utilisation * parts.width).toFixed(0));
  const words = describe(one, state, parts.label, app);
  say(parts.tip, words);
  set(parts.group, "aria-label", words);
}

export function queueOf(one) {
  const parts = [one.waiting ? `${count(one.waiting)} wait, ${seconds(one.oldest_s)}` : "none wait"];
  if (one.delayed) parts.push(`${count(one.delayed)} delayed`);
  return parts.join(" · ");
}

/** All that the box of a deployment shows, in words. */
export function describe(one, state, label, app) {
  const why = state === "held" ? `: ${app.bottleneck.why}` : "";
  return [
    `${label}: ${WORDS[state]}${why}`,
    `${count(one.waiting)} waiting${one.waiting ? `, the oldest for ${seconds(one.oldest_s)}` : ""}, ${count(one.running)} running`,
    one.rate === null ? "rate not known yet" : `${rate(one.rate)} calls a second, ${rate(one.errors)} errors a second`,
    `p50 ${millis(one.p50_ms)}, p99 ${millis(one.p99_ms)}`,
    `${one.replicas.RUNNING ?? 0} of ${plural(one.wanted, "replica")} running, ${Math.round(one.utilisation * 100)} % of their places taken`,
  ].join(". ");
}

/** The legend of the colours. */
export function legend() {
  const entry = (state) => h("li", {}, h("span", { class: "swatch", "data-state": state, "aria-hidden": "true" }), WORDS[state]);
  return h("ul", { class: "legend", "aria-label": "Colours" }, ["calm", "busy", "slow", "held", "down", "paused", "idle"].map(entry));
}
