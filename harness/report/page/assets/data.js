"use strict";
// Rows by column, how values are written, and the theme. Everything recorded is text: it is never markup.

const DATA = JSON.parse(document.getElementById("data").textContent);
const T = { average: DATA.rows.average };
for (const [name, column] of Object.entries(DATA.rows)) {
  if (name === "average" || name === "shared") continue;
  const values = Array.isArray(column) ? column : column.codes.map((code) => (code < 0 ? null : column.values[code]));
  T[name] = values;
  if (!DATA.rows.shared.includes(name)) continue;
  let place = 0;  // single tasks have what their average has
  const all = T.average.map((average) => (average === null ? values[place++] : undefined));
  T[name] = all.map((value, i) => (T.average[i] === null ? value : all[T.average[i]]));
}
const ROWS = Array.from({ length: DATA.count }, (_, i) => i);
const NONE = "–";
const byId = (id) => document.getElementById(id);
const escaped = (text) => String(text).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
const isGone = (value) => value === null || value === undefined || value === "";

function digits(value, count = 3) {
  if (isGone(value)) return NONE;
  if (value === 0) return "0";
  if (value < 0) return `−${digits(-value, count)}`;
  const size = Math.floor(Math.log10(Number(value.toPrecision(count))));
  return size >= count ? Math.round(value).toLocaleString("en") : value.toFixed(Math.min(6, count - 1 - size));
}
const percent = (share) => (isGone(share) ? NONE : (100 * share).toFixed(1));
const signed = (share) => (isGone(share) ? NONE : `${share > 0 ? "+" : share < 0 ? "−" : ""}${(100 * Math.abs(share)).toFixed(1)}`);
const range = (low, high, write) => (isGone(low) || isGone(high) ? "" : `${write(low)} to ${write(high)}`);
const tokens = (length) => (length % 1024 === 0 ? `${length / 1024}k` : `${length}`);
const isOff = (i) => T.match[i] === "off_density";
const decodesOnly = (i) => isGone(T.block_size[i]) && !T.is_dense[i];
const isGated = (i) => T.status[i] === "gated";
const isAverage = (i) => ["average", "times"].includes(T.kind[i]) || (T.benchmark[i] === "perplexity" && T.kind[i] === "cell");

function command(i) {
  const settings = T.settings[i] || (T.average[i] === null ? "" : T.settings[T.average[i]]);
  return settings ? `python -m harness ${settings}` : "";
}

function densityText(i) {
  if (isGone(T.density[i])) return NONE;
  return `${digits(T.density[i])}${isOff(i) ? " ≠" : T.match[i] === "nearest" ? " ≈" : ""}`;
}

// What the tasks of a row are called: the set of an average, or the task itself.
function tasksText(i) {
  const name = isGone(T.task_set[i]) ? T.task[i] || `${T.kind[i]} alone` : T.task_set[i];
  const names = name.split("+");
  return names.length > 2 ? `${names.length} tasks: ${names.slice(0, 2).join(", ")}, …` : names.join(", ");
}

function css(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }
const isDark = () => document.documentElement.dataset.theme === "dark";
const colourOf = (i) => DATA.looks[T.look[i]][isDark() ? "dark" : "light"];

// What pictures have in common.
function layout(more) {
  const axis = { gridcolor: css("--line"), zerolinecolor: css("--line"), linecolor: css("--grey"), automargin: true };
  return {
    paper_bgcolor: css("--paper"), plot_bgcolor: css("--paper"), font: { color: css("--ink"), size: 13 },
    hoverlabel: { align: "left", bgcolor: css("--raised"), bordercolor: css("--line"), font: { color: css("--ink"), size: 12 } },
    margin: { l: 60, r: 12, t: 12, b: 50 }, ...more,
    xaxis: { ...axis, ...more.xaxis }, yaxis: { ...axis, ...more.yaxis },
  };
}
const CONFIG = { displaylogo: false, responsive: false, modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"] };

// Set the choices of a list, each a value and a text; keeps what was chosen, where it is still there.
function setChoices(id, choices, otherwise) {
  const list = byId(id), before = list.value;
  list.replaceChildren(...choices.map(([value, text]) => {
    const option = document.createElement("option");
    option.value = value;
    option.textContent = text;
    return option;
  }));
  const values = choices.map(([value]) => String(value));
  list.value = values.includes(before) && list.dataset.set ? before : String(otherwise ?? values[0] ?? "");
  list.dataset.set = "1";
}

function counted(values) {
  const counts = new Map();
  for (const value of values) counts.set(value, (counts.get(value) || 0) + 1);
  return counts;
}

function median(values) {
  const sorted = values.filter((value) => !isGone(value)).sort((a, b) => a - b);
  return sorted.length ? sorted[Math.floor(sorted.length / 2)] : null;
}

function element(tag, text = "", name = "") {
  const node = document.createElement(tag);
  node.textContent = text;
  if (name) node.className = name;
  return node;
}
