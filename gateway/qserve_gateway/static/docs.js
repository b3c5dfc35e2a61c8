// Shows openapi.json, which is next to this page, with Swagger UI. Nothing is read from or sent to another host.
"use strict";

const WATCH_MS = 10000;
const place = (id) => document.getElementById(id);
let token = "";
let shown = "";

function headers() {
  return token ? { Authorization: `Bearer ${token}` } : {};
}

async function load() {
  const response = await fetch("openapi.json", { headers: headers(), cache: "no-cache" });
  place("token").hidden = response.status !== 401;
  if (response.status === 401) {
    place("token").elements.token.focus();
    return token ? "This is not the token of this gateway." : "";
  }
  if (!response.ok) {
    return `openapi.json cannot be read: status ${response.status}.`;
  }
  shown = response.headers.get("etag");
  show(await response.json());
  return "";
}

function show(spec) {
  // relative to where this page is, as a browser sees it behind any proxy
  spec.servers = [{ url: new URL("..", location.href).href.replace(/\/$/, "") }];
  const ui = SwaggerUIBundle({
    spec,
    dom_id: "#api",
    deepLinking: true,
    defaultModelsExpandDepth: 0,
    displayRequestDuration: true,
    filter: true,
    validatorUrl: null,
    onComplete: () => token && ui.preauthorizeApiKey("gatewayToken", token),
  });
}

async function start() {
  let problem;
  try {
    problem = await load();
  } catch (error) {
    problem = `openapi.json cannot be read: ${error.message}`;
  }
  place("problem").textContent = problem;
  place("problem").hidden = !problem;
}

async function watch() {
  if (!shown || document.hidden) {
    return;
  }
  try {
    const response = await fetch("openapi.json", { method: "HEAD", headers: headers(), cache: "no-cache" });
    place("changed").hidden = !response.ok || response.headers.get("etag") === shown;
  } catch {
    // the gateway is away; the page stays as it is
  }
}

place("token").addEventListener("submit", (event) => {
  event.preventDefault();
  token = event.target.elements.token.value.trim();
  start();
});
document.addEventListener("visibilitychange", watch);
setInterval(watch, WATCH_MS);
start();
