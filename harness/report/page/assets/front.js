"use strict";
// Accuracy against a cost, one line a method, and the front.

const COSTS = {
  density: { name: "density", title: "density (share of causal blocks kept)", of: (i) => (decodesOnly(i) ? null : T.density[i] ?? (T.is_dense[i] ? 1 : null)) },
  total_ms: { name: "attention time", title: "attention of a layer, selection included (ms)", log: true, low: "total_low", high: "total_high", dense: "dense_ms",
    of: (i) => (T.is_dense[i] ? T.dense_ms[i] ?? T.total_ms[i] : T.total_ms[i]) },
  ttft_ms: { name: "TTFT", title: "time to first token (ms)", log: true, low: "ttft_low", high: "ttft_high", dense: "dense_ttft_ms", of: (i) => T.ttft_ms[i] },
  peak_mib: { name: "memory", title: "memory of a prefill, weights included (MiB)", of: (i) => T.peak_mib[i] },
  decode_density: { name: "density while decoding", title: "density while decoding (share of the cache's blocks)", of: (i) => T.decode_density[i] ?? (T.is_dense[i] ? 1 : null) },
};
const VALUES = {
  accuracy: { title: "accuracy (%)", scale: 100, low: "accuracy_low", high: "accuracy_high", up: true },
  difference: { title: "accuracy less dense attention's (points)", scale: 100, low: "difference_low", high: "difference_high", up: true },
  perplexity: { title: "perplexity (less is better)", scale: 1, low: "perplexity_low", high: "perplexity_high", up: false },
  speedup: { title: "attention: times as fast as dense", scale: 1, up: true },
  ttft_speedup: { title: "TTFT: times as fast as dense", scale: 1, up: true },
};
const OF_DENSE = { difference: 0, speedup: 1, ttft_speedup: 1 };  // what dense attention has by definition
const FEW = 10;
const TICKS = [-3, -2, -1, 0, 1, 2, 3, 4, 5, 6].flatMap((power) => [1, 2, 5].map((digit) => Number(`${digit}e${power}`)));
const LOG_TICKS = { tickmode: "array", tickvals: TICKS, ticktext: TICKS.map((tick) => String(tick)) };


function valueOf(i, name) {
  const value = T[name][i];
  return isGone(value) ? (T.is_dense[i] ? OF_DENSE[name] ?? null : null) : VALUES[name].scale * value;
}
const isUsable = (i) => T.status[i] === "ok" && !isOff(i) && !T.is_bound[i];

// The rows that no other usable one beats in both, from the cheapest on.
function frontOf(rows, cost, value) {
  const sign = VALUES[value].up ? 1 : -1;
  const placed = rows.filter((i) => isUsable(i) && !isGone(COSTS[cost].of(i)) && !isGone(valueOf(i, value)));
  placed.sort((a, b) => COSTS[cost].of(a) - COSTS[cost].of(b) || sign * (valueOf(b, value) - valueOf(a, value)) || a - b);
  const front = [];
  for (const i of placed) {
    if (!front.length || sign * (valueOf(i, value) - valueOf(front[front.length - 1], value)) > 0) front.push(i);
  }
  return front;
}

function bars(rows, low, high, of, scale) {
  const ends = rows.map((i) => [low ? T[low][i] : null, high ? T[high][i] : null, of(i)]);
  const length = (end, middle) => (isGone(end) || isGone(middle) ? 0 : Math.max(0, Math.abs(scale * end - middle)));
  return { type: "data", symmetric: false, thickness: 1, width: 0,
    array: ends.map(([, end, middle]) => length(end, middle)), arrayminus: ends.map(([end, , middle]) => length(end, middle)) };
}

function drawFront() {
  const cost = byId("cost").value, value = byId("value").value, all = selectedRows();
  const rows = all.filter((i) => !isGone(COSTS[cost].of(i)) && !isGone(valueOf(i, value)));
  const front = frontOf(rows, cost, value), lines = new Map();
  for (const i of rows) lines.set(T.line[i], [...(lines.get(T.line[i]) || []), i]);
  const shown = chosenLines(lines, front, value);
  const traces = [...frontTrace(front, cost, value)], numbers = new Map();
  for (const name of [...lines.keys()].sort()) {
    const look = T.look[lines.get(name)[0]], number = numbers.get(look) || 0;
    numbers.set(look, number + 1);
    if (shown.has(name)) traces.push(...lineTraces(name, lines.get(name), number, cost, value));
  }
  const width = byId("front").clientWidth, narrow = width < 700, { up } = VALUES[value];
  const dense = denseOf(rows, cost, value);
  if (!rows.some((i) => T.is_dense[i])) traces.push(...denseTrace(dense, value));
  Plotly.react("front-plot", traces, layout({
    width, height: narrow ? 440 + 21 * (shown.size + 2) : Math.max(520, 90 + 21 * (shown.size + 1)), showlegend: true, hovermode: "closest", dragmode: narrow ? false : "zoom",
    legend: narrow ? { orientation: "v", yref: "container", y: 0.005, yanchor: "bottom", x: 0, maxheight: 2000 } : { x: 1.01, y: 1 },
    margin: { l: 60, r: 12, t: 12, b: narrow ? 85 + 21 * (shown.size + 2) : 50 },
    xaxis: { title: { text: COSTS[cost].title }, type: COSTS[cost].log ? "log" : "linear", ...(COSTS[cost].log ? LOG_TICKS : {}) },
    yaxis: { title: { text: VALUES[value].title } },
    shapes: dense.value === null ? [] : [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: dense.value, y1: dense.value,
      line: { dash: DATA.dense_dash, width: 1.2, color: css("--ink") } }],
    annotations: rows.some((i) => !T.is_dense[i]) || (rows.length && all.every((i) => T.is_dense[i])) ? [] : [{ text: "not measured for this selection", showarrow: false, xref: "paper", yref: "paper", x: 0.5, y: 0.5 }],
  }), CONFIG).then((plot) => {
    plot.removeAllListeners("plotly_click");
    plot.on("plotly_click", ({ points }) => { if (points[0].customdata !== undefined) showDetails(points[0].customdata); });
  });
  const hidden = all.length ? offCount() : 0;
  byId("front-note").textContent = [
    ...DATA.signs.map((sign) => `${sign}.`),
    shown.size < lines.size ? `${shown.size} of ${lines.size} lines are shown, those with most points on the front, then the best; “lines” shows all.` : "",
    hidden ? `${hidden} rows that are off the density asked for are hidden; the switch shows them.` : "",
    byId("intervals").checked && VALUES[value].low ? `Bars: 95 % intervals${COSTS[cost].low ? ", and across the 10th to the 90th percentile of the time" : ""}.` : "",
    `${COSTS[cost].log ? "Logarithmic across. " : ""}${up ? "" : "Less is better. "}Click a point for all that is recorded of it.`,
  ].filter(Boolean).join(" ");
}

// Dense attention on the same prompts, as rows of it or else the rows beside it have recorded it, and its cost in their rounds.
function denseOf(rows, cost, value) {
  const own = rows.find((i) => T.is_dense[i] && !isGated(i));
  if (own !== undefined) return { value: valueOf(own, value), cost: COSTS[cost].of(own) };
  const column = { accuracy: T.dense_accuracy, perplexity: T.dense_perplexity }[value];
  const { dense } = COSTS[cost], beside = column ? median(rows.map((i) => column[i])) : null;
  return { value: column ? (beside === null ? null : VALUES[value].scale * beside) : rows.length ? OF_DENSE[value] : null,
    cost: dense ? median(rows.map((i) => T[dense][i])) : cost === "peak_mib" ? null : 1 };
}

function denseTrace(dense, value) {
  if (dense.value === null || dense.cost === null) return [];
  return [{ type: "scatter", mode: "markers", name: "dense attention", x: [dense.cost], y: [dense.value], hoverinfo: "text",
    hovertext: `<b>dense attention</b><br>${escaped(VALUES[value].title)}: ${digits(dense.value)}<br>as the rows beside it recorded`,
    marker: { symbol: "circle", size: 9.5, opacity: 1, color: css("--ink") } }];
}

// The lines that are drawn: all, or of too many the best few: one of dense attention, a bound or two, then by points on the
// front and by the best of their values.
function chosenLines(lines, front, value) {
  const sign = VALUES[value].up ? 1 : -1, points = counted(front.map((i) => T.line[i]));
  const best = (name) => Math.max(...lines.get(name).map((i) => sign * valueOf(i, value)));
  const first = (column, most) => [...lines.keys()].filter((name) => T[column][lines.get(name)[0]]).sort().slice(0, most);
  const before = new Set([...first("is_dense", 1), ...first("is_bound", 2)]);
  const weight = (name) => (before.has(name) ? 1000 : 0) + (points.get(name) || 0);
  const names = [...lines.keys()].sort((a, b) => weight(b) - weight(a) || best(b) - best(a) || (a < b ? -1 : 1));
  return new Set(byId("lines").value === "few" ? names.slice(0, FEW) : names);
}

function frontTrace(front, cost, value) {
  if (!front.length) return [];
  return [{ type: "scatter", mode: "lines", name: "front", x: front.map((i) => COSTS[cost].of(i)), y: front.map((i) => valueOf(i, value)),
    line: { shape: "hv", color: css("--front"), width: 5 }, opacity: 0.45, hoverinfo: "skip" }];
}

// A line goes through its rows by what was kept, whatever they cost.
const along = (i) => T.decode_density[i] ?? T.density[i] ?? 0;

function lineTraces(name, rows, number, cost, value) {
  const onLine = rows.filter((i) => !isOff(i) && !T.native[i]).sort((a, b) => along(a) - along(b));
  const beside = rows.filter((i) => isOff(i) || T.native[i]);
  const first = rows[0], dash = T.is_bound[first] ? DATA.bound_dash : T.is_dense[first] ? DATA.dense_dash : DATA.dashes[number % DATA.dashes.length];
  const title = escaped(T.is_bound[first] ? `${name}, a bound` : name), traces = [];
  for (const [members, mode] of [[onLine, "lines+markers"], [beside, "markers"]]) {
    if (!members.length) continue;
    const { symbol } = DATA.looks[T.look[first]];
    traces.push({
      type: "scatter", mode, name: title, legendgroup: name, showlegend: members === onLine || !onLine.length,
      x: members.map(COSTS[cost].of), y: members.map((i) => valueOf(i, value)), customdata: members,
      hovertext: members.map(hoverText), hoverinfo: "text",
      line: { color: colourOf(first), dash, width: 1.6 },
      marker: { opacity: 1, color: colourOf(first), symbol: members.map((i) => (isOff(i) ? `${symbol}-open` : symbol)), size: members.map((i) => (isOff(i) ? 8 : 9.5)),
        line: { width: members.map((i) => (isOff(i) ? 1.5 : 0)) } },
      ...(byId("intervals").checked ? {
        error_y: { ...bars(members, VALUES[value].low, VALUES[value].high, (i) => valueOf(i, value), VALUES[value].scale), color: faded(colourOf(first)) },
        ...(COSTS[cost].low ? { error_x: { ...bars(members, COSTS[cost].low, COSTS[cost].high, COSTS[cost].of, 1), color: faded(colourOf(first)) } } : {}),
      } : {}),
    });
  }
  const signs = [[rows.filter((i) => T.native[i]), "circle-open", 17], [rows.filter(isGated), "x-thin-open", 14]];
  for (const [members, symbol, size] of signs) {
    if (members.length) traces.push({ type: "scatter", mode: "markers", legendgroup: name, showlegend: false, hoverinfo: "skip",
      x: members.map(COSTS[cost].of), y: members.map((i) => valueOf(i, value)), marker: { symbol, size, color: css("--ink"), line: { width: 1.2 } } });
  }
  return traces;
}

const faded = (colour) => `${colour}99`;

function setUpFront() {
  for (const id of ["cost", "value", "lines", "intervals"]) byId(id).addEventListener("change", drawFront);
}

// Choices that depend on the selection: what was measured of it.
function updateFront() {
  const rows = selectedRows(), has = (name) => rows.some((i) => !isGone(valueOf(i, name)) && !T.is_dense[i]) || rows.some((i) => !isGone(T[name][i]));
  setChoices("value", Object.keys(VALUES).filter(has).map((name) => [name, VALUES[name].title]), undefined);
  if (!byId("value").value) setChoices("value", [["accuracy", VALUES.accuracy.title]]);
  const measured = (name) => rows.some((i) => !T.is_dense[i] && !isGone(COSTS[name].of(i)));
  if (!measured(byId("cost").value || "density")) delete byId("cost").dataset.set;  // the choice of another selection
  setChoices("cost", Object.keys(COSTS).map((name) => [name, COSTS[name].name + (measured(name) ? "" : " (not measured)")]), Object.keys(COSTS).find(measured));
  const names = new Set(rows.map((i) => T.line[i]));
  setChoices("lines", names.size > FEW ? [["few", `the best ${FEW}`], ["all", `all ${names.size}`]] : [["few", `all ${names.size}`]]);
  drawFront();
}
