// A deployment in a drawer: its numbers, its replicas, and what can be done with it.
import { count, h, millis, place, put, rate, say, seconds, set } from "./dom.js";
import { stateOf, WORDS } from "./store.js";

/** Open the drawer of a deployment; it follows the numbers until it is closed. */
export function openDrawer(page, appName, name) {
  const dialog = place("drawer");
  const facts = h("dl", { class: "facts" });
  const state = h("p", { class: "state" });
  const message = h("pre", { class: "message", tabindex: "0", "aria-label": "Message" });
  const body = h("tbody");
  const known = new Map();
  const actions = page.mayAct ? controls(page, appName, name) : null;
  const close = h("button", { type: "button", class: "quiet", onclick: () => dialog.close() }, "Close");
  put(dialog, 
    h("header", { class: "row" }, h("h2", { id: "drawer-title" }, name), close),
    state, facts, actions?.element ?? h("p", { class: "note" }, "Your token allows to look only."), message,
    h("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Replicas" }, h("table", {}, h("caption", {}, "Replicas"),
      h("thead", {}, h("tr", {}, ["State", "Host", "Process", "Version", "Name"].map((text) => h("th", { scope: "col" }, text)))), body)));

  const show = () => {
    const app = page.store.applications.get(appName);
    const one = app?.deployments.find((deployment) => deployment.name === name);
    if (!one) return dialog.close();
    const now = stateOf(app, one);
    set(dialog, "data-state", now);
    say(state, now === "held" ? `It holds the application up: ${app.bottleneck.why}.` : one.paused_by ? `Paused by ${one.paused_by}.` : `It ${now === "calm" ? "flows" : `is ${WORDS[now]}`}.`.replace("is calls wait", "makes calls wait").replace("is no replica", "has no replica"));
    const texts = {
      Status: one.status.toLowerCase().replaceAll("_", " "), Waiting: count(one.waiting), Oldest: one.waiting ? seconds(one.oldest_s) : "–", Running: count(one.running),
      Delayed: count(one.delayed), "Calls a second": rate(one.rate), "Errors a second": rate(one.errors), p50: millis(one.p50_ms), p99: millis(one.p99_ms),
      "In the queue, p50": millis(one.wait_p50_ms), Replicas: `${one.replicas.RUNNING ?? 0} of ${one.wanted}${one.is_autoscaled ? ", by load" : ""}`, "Places taken": `${Math.round(one.utilisation * 100)} % of ${count(one.max_ongoing * (one.replicas.RUNNING ?? 0))}`,
    };
    for (const [label, text] of Object.entries(texts)) {
      if (!known.has(label)) {
        known.set(label, h("dd"));
        facts.append(h("div", {}, h("dt", {}, label), known.get(label)));
      }
      say(known.get(label), text);
    }
    message.hidden = !one.message;
    say(message, one.message);
    actions?.update(one);
    const rows = page.store.replicas.filter((replica) => replica.application === appName && replica.deployment === name);
    const key = JSON.stringify(rows);
    if (body.dataset.key !== key) {
      body.dataset.key = key;
      put(body, ...rows.map((replica) => h("tr", { "data-status": replica.state }, [replica.state.toLowerCase(), replica.host, replica.pid || "–", replica.version, replica.name].map((text) => h("td", {}, text)))));
    }
    return undefined;
  };
  show();
  const timer = setInterval(show, 250);
  dialog.onclose = () => clearInterval(timer);
  dialog.showModal();
}

function controls(page, application, deployment) {
  const number = h("input", { id: "wanted", type: "number", min: "0", max: "10000", step: "1", inputmode: "numeric", required: true });
  const form = h("form", { class: "row", onsubmit: async (event) => {
    event.preventDefault();
    await page.act("scale", { application, deployment, count: Number(number.value) }, ({ now }) => `${deployment} is to have ${now} replicas.`);
  } }, h("label", { for: "wanted" }, "Replicas"), number, h("button", {}, "Scale"));
  const note = h("p", { class: "note" }, "Its load decides how many replicas it has.");
  let isPaused = false;
  const pause = h("button", { type: "button", class: "quiet", onclick: () => page.act("pause", { application, deployment, is_paused: !isPaused }, (found) => `${deployment} is ${found.is_paused ? "paused" : "resumed"}.`) });
  return {
    element: h("div", { class: "controls" }, form, note, pause),
    update(one) {
      isPaused = Boolean(one.paused_by);
      say(pause, isPaused ? "Resume" : "Pause");
      form.hidden = one.is_autoscaled;
      note.hidden = !one.is_autoscaled;
      if (!number.value && document.activeElement !== number) number.value = String(one.wanted);
    },
  };
}
