"use strict";
// What all of the page uses: the data, elements, numbers as text, and the state that outlives a reload.

const DATA = JSON.parse(document.getElementById("data").textContent);
const RUNS = DATA.runs;
const SEVERAL = RUNS.length > 1;
const COLOURS = 8;

/** Make an element. Text is always text: nothing that a run says is ever read as HTML. */
function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "class") node.className = value;
    else if (name in node && typeof value !== "string") node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

function section(id, title, lead, ...children) {
  const heading = el("h2", { id: `${id}-title` }, title);
  return el("section", { id, "aria-labelledby": `${id}-title` }, heading, lead && el("p", { class: "lead" }, lead), ...children);
}

function table(caption, head, rows, numeric = []) {
  const kind = (column) => (numeric.includes(column) ? "number" : undefined);
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    el("table", {}, el("caption", {}, caption),
      el("thead", {}, el("tr", {}, head.map((name, i) => el("th", { scope: "col", class: kind(i) }, name)))),
      el("tbody", {}, rows.map((row) => {
        const { cells, mark } = Array.isArray(row) ? { cells: row } : row;
        return el("tr", { class: mark }, cells.map((cell, i) => el(i ? "td" : "th", { class: kind(i), scope: i ? undefined : "row" }, cell)));
      }))));
}

const MINUS = "\u2212";

function number(value, digits = 4) {
  if (value === null || value === undefined || Number.isNaN(value)) return "\u2013";
  if (value === 0) return "0";
  const size = Math.abs(value);
  const [mantissa, exponent] = value.toExponential(2).split("e");
  const text = size >= 1e6 || size < 1e-4 ? `${Number(mantissa)}e${Number(exponent)}` : String(Number(value.toPrecision(digits)));
  return text.replaceAll("-", MINUS);
}

const signed = (value, digits = 3) => (value > 0 ? "+" : "") + number(value, digits);
const count = (value) => value.toLocaleString("en-US");

function clock(seconds) {
  const minutes = Math.round(seconds / 60);
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return minutes < 90 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

function words(name) {
  const known = Object.hasOwn(DATA.words, name) ? DATA.words[name] : undefined;
  return known ?? [name.replaceAll("_", " "), ""];
}

function runName(place, extra = "") {
  const index = place % COLOURS;
  return el("span", {}, el("span", { class: `swatch run-${index} dash-${Math.floor(place / COLOURS) % 4}`, "aria-hidden": "true" }), RUNS[place].name + extra);
}

const queriesAt = (run, epoch) => {
  const place = run.epochs.indexOf(epoch);
  return place >= 0 ? run.queries[place] : epoch === 0 ? 0 : null;
};

/** What a person has chosen; kept in the session, so that a live page goes on where it was. */
const state = { axis: "queries", view: "one", amount: 50, order: "drawn", theme: "auto", after: null, before: null, browse: {} };
const KEY = `ddpo-report:${RUNS.map((run) => run.name).join()}`;
try {
  Object.assign(state, JSON.parse(sessionStorage.getItem(KEY) ?? "{}"));
} catch { /* without storage the page begins anew */ }

function remember() {
  try {
    sessionStorage.setItem(KEY, JSON.stringify(state));
  } catch { /* likewise */ }
}
