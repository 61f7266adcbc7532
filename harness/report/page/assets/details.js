"use strict";
// All that is recorded of one row, and the command that measures it again.

const FOLDED = new Set(["settings", "line"]);

function valueText(name, i) {
  const value = T[name][i], unit = DATA.columns[name].unit;
  if (["rankable", "is_bound", "is_dense"].includes(name)) return value ? "yes" : "no";
  return (typeof value === "number" && !Number.isInteger(value) ? digits(value, 4) : String(value)) + (unit ? ` ${unit}` : "");
}

function showDetails(i) {
  const place = byId("details"), list = document.createElement("dl");
  for (const name of Object.keys(DATA.columns).filter((column) => !FOLDED.has(column) && !isGone(T[column][i]))) {
    const pair = document.createElement("div"), term = element("dt", name.replaceAll("_", " "));
    term.title = DATA.columns[name].meaning;
    pair.append(term, element("dd", valueText(name, i)));
    list.append(pair);
  }
  place.replaceChildren(element("strong", T.line[i]), list);
  const text = command(i);
  if (!text) return;
  const shown = element("pre", text), button = element("button", "copy the command");
  button.type = "button";
  button.addEventListener("click", async () => {
    getSelection().selectAllChildren(shown);
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "copied";
    } catch {
      button.textContent = "selected: press Ctrl+C";
    }
  });
  place.append(shown, button);
}

// The text at a point, in the few marks that plotly reads: what is recorded is escaped.
function hoverText(i) {
  const n = T.samples[i], lines = [`<b>${escaped(T.line[i])}</b>`];
  const say = (title, text) => { if (text && text !== NONE) lines.push(`${title}: ${escaped(text)}`); };
  say("density", isGone(T.density[i]) ? "" : densityText(i) + (isGone(T.requested_density[i]) ? "" : `, asked ${digits(T.requested_density[i])}`));
  if (!isGone(T.accuracy[i])) say("accuracy %", `${percent(T.accuracy[i])} (${range(T.accuracy_low[i], T.accuracy_high[i], percent)}), n = ${n}`);
  if (!isGone(T.difference[i])) say("to dense, points", `${signed(T.difference[i])} (${range(T.difference_low[i], T.difference_high[i], signed)})`);
  if (!isGone(T.perplexity[i])) say("perplexity", `${digits(T.perplexity[i])} (${range(T.perplexity_low[i], T.perplexity_high[i], digits)})`);
  if (!isGone(T.total_ms[i])) say("attention", `${digits(T.total_ms[i])} ms, ${digits(T.speedup[i])}× dense`);
  if (!isGone(T.ttft_ms[i])) say("TTFT", `${digits(T.ttft_ms[i])} ms`);
  if (!isGone(T.peak_mib[i])) say("memory", `${digits(T.peak_mib[i])} MiB`);
  if (T.is_bound[i]) lines.push("a bound: no usable method");
  if (isGated(i)) say("held back", T.reason[i] || "by a check");
  say("study", `${T.study[i]}, ${T.date[i]}`);
  const width = innerWidth < 700 ? 40 : 80, words = command(i).split(" ").flatMap((word) => word.match(new RegExp(`.{1,${width}}`, "gsu")) || []);
  let line = "";
  const folded = [];
  for (const word of words) {
    if (line && line.length + word.length >= width) { folded.push(line); line = ""; }
    line += (line ? " " : "") + word;
  }
  if (line) folded.push(line);
  return [...lines, ...folded.map((part) => `<i>${escaped(part)}</i>`)].join("<br>");
}
