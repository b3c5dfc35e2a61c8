// Elements from plain data. What comes from an installation only ever becomes text or the value of an attribute.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...shown(children));
  return element;
}

const shown = (children) => children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);

export const h = (name, attributes, ...children) => fill(document.createElement(name), attributes, children);
export const svg = (name, attributes, ...children) => fill(document.createElementNS(SVG, name), attributes, children);

/** Put these into an element, in place of what is there. */
export const put = (element, ...children) => element.replaceChildren(...shown(children));

/** Change the text of an element, if it is another. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Change an attribute, if it is another. */
export function set(element, name, value) {
  if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

export const place = (id) => document.getElementById(id);

// -- numbers as people read them ----------------------------------------------------------------

const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const COMPACT = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

export const count = (value) => (value < 10000 ? WHOLE.format(value) : COMPACT.format(value));

export function rate(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  return value < 9.95 ? value.toFixed(1) : count(value);
}

export function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 0.9995) return millis(value * 1000);
  if (value < 9.95) return `${value.toFixed(1)} s`;
  if (value < 120) return `${WHOLE.format(value)} s`;
  if (value < 7200) return `${WHOLE.format(value / 60)} min`;
  return value < 172800 ? `${WHOLE.format(value / 3600)} h` : `${WHOLE.format(value / 86400)} d`;
}

export function millis(value) {
  if (value === null || value === undefined) return "–";
  if (value < 9.95) return value < 0.05 ? "0 ms" : `${value.toFixed(1)} ms`;
  return value < 999.5 ? `${WHOLE.format(value)} ms` : seconds(value / 1000);
}

export function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${value < 10 && unit ? value.toFixed(1) : WHOLE.format(value)} ${units[unit]}`;
}

export const clock = (unixSeconds) => new Date(unixSeconds * 1000).toLocaleTimeString();
export const date = (unixSeconds) => new Date(unixSeconds * 1000).toLocaleString();
export const short = (text, length) => (text.length <= length ? text : `${text.slice(0, length - 1)}…`);
export const plural = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;

/** A line of the last values, as a picture that says nothing to those who cannot see it. */
export function spark(values, width, height) {
  const top = Math.max(...values, 1e-9) * 1.3;
  const step = width / Math.max(values.length - 1, 1);
  const points = values.map((value, index) => `${(index * step).toFixed(1)} ${(height - 1.5 - (value / top) * (height - 3)).toFixed(1)}`);
  const line = points.length > 1 ? `M${points.join("L")}` : "";
  return [line, line && `${line}L${width} ${height}L0 ${height}Z`];
}
