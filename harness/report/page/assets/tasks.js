"use strict";
// Accuracy by method and task at one length, or by method and length for one task.

const EVERY = "every";
const DECODING = "sparse decoding alone";
const WITHOUT = "at their own defaults";

// The rows of single tasks and averages of what is selected: with `lengths`, of every length.
function taskRows(lengths) {
  const chosen = T.kind.length ? selectedRows() : [], sets = new Set(chosen.map((i) => T.task_set[i])), questions = new Set(chosen.map((i) => T.question[i]));
  const seen = new Set(chosen), model = byId("model").value, device = byId("device").value;
  return ROWS.filter((i) => {
    if (T.model[i] !== model || T.device[i] !== device || isGone(T.accuracy[i]) || !isAllowed(i)) return false;
    const average = T.kind[i] === "average" ? i : T.average[i];
    if (average === null || !sets.has(T.task_set[average]) || !questions.has(T.question[average])) return false;
    return seen.has(average) || (lengths && isCounted(i));
  });
}

const densityKey = (i) => (T.is_dense[i] ? EVERY : decodesOnly(i) ? DECODING : isGone(T.requested_density[i]) ? WITHOUT : digits(T.requested_density[i]));

function updateTasks() {
  if (unseen.has("tasks")) return;
  const tasks = [...new Set(taskRows(true).map((i) => T.task[i]))].sort();
  const lengths = new Set(taskRows(true).map((i) => T.length[i]));
  setChoices("across", [["tasks", "tasks, at the selected length"],
    ...(lengths.size > 1 ? ["avg", ...tasks.filter((name) => name !== "avg")].map((name) => [`task:${name}`, `lengths, ${name === "avg" ? "mean of the tasks" : name}`]) : [])]);
  const sparse = selectedRows().filter((i) => !T.is_dense[i]), pairs = new Set(sparse.map((i) => JSON.stringify([densityKey(i), T.line[i]])));
  const densities = counted([...pairs].map((pair) => JSON.parse(pair)[0]));  // how many lines have each
  const order = [...densities.keys()].sort((a, b) => (Number(b) || 0) - (Number(a) || 0) || (a < b ? -1 : 1));
  const most = [...order].sort((a, b) => Number.isFinite(Number(b)) - Number.isFinite(Number(a)) || densities.get(b) - densities.get(a))[0];
  setChoices("density", [...order.map((key) => [key, `${key} (${densities.get(key)})`]), [EVERY, "every one"]], most ?? EVERY);
  drawTasks();
}

function drawTasks() {
  if (unseen.has("tasks")) return;
  const across = byId("across").value, byLength = across.startsWith("task:"), task = across.slice(5), key = byId("density").value;
  const rows = taskRows(byLength).filter((i) => (key === EVERY || densityKey(i) === EVERY || densityKey(i) === key) && (!byLength || T.task[i] === task));
  const kind = byId("colour").value, isDifference = kind === "difference";
  const columnOf = (i) => (byLength ? tokens(T.length[i]) : T.task[i] === "avg" ? "mean" : T.task[i]);
  const nameOf = (i) => (key === EVERY && !T.is_dense[i] && !decodesOnly(i) ? `${T.line[i]}, ${densityKey(i) === WITHOUT ? "own defaults" : densityKey(i)}` : T.line[i]);
  const columns = byLength ? [...new Set(rows.map((i) => T.length[i]))].sort((a, b) => a - b).map(tokens)
    : [...new Set(rows.map(columnOf))].sort((a, b) => (b === "mean") - (a === "mean") || (a < b ? -1 : 1));
  const cells = new Map();
  for (const i of rows) {  // of several seeds or studies the one with most prompts
    const place = JSON.stringify([nameOf(i), columnOf(i)]), other = cells.get(place);
    if (other === undefined || T.samples[i] > T.samples[other]) cells.set(place, i);
  }
  const at = (name, column) => cells.get(JSON.stringify([name, column]));
  const mean = (name) => {
    const present = columns.map((column) => T.accuracy[at(name, column)]).filter((share) => !isGone(share));
    return present.reduce((sum, share) => sum + share, 0) / present.length;
  };
  const denseNames = new Set(rows.filter((i) => T.is_dense[i]).map(nameOf));
  const names = [...new Set(rows.map(nameOf))].sort((a, b) => denseNames.has(a) - denseNames.has(b) || mean(a) - mean(b) || (a < b ? 1 : -1));
  const value = (i) => (i === undefined || isGone(T[kind][i]) ? (i !== undefined && isDifference && T.is_dense[i] ? 0 : null) : 100 * T[kind][i]);
  let dense = null;
  const grid = names.map((name) => columns.map((column) => at(name, column)));
  const text = (i) => (value(i) === null ? "" : `${isDifference && Math.round(value(i)) > 0 ? "+" : ""}${String(Math.round(value(i))).replace("-", "−")}${i !== undefined && isOff(i) ? "≠" : ""}${i !== undefined && isGated(i) ? "×" : ""}`);
  if (names.length && !rows.some((i) => T.is_dense[i])) {  // what the rows beside it recorded of dense attention on their prompts
    const beside = new Map();
    for (const i of rows) if (!beside.has(columnOf(i)) && !isGone(T.dense_accuracy[i])) beside.set(columnOf(i), 100 * T.dense_accuracy[i]);
    dense = columns.map((column) => (isDifference ? 0 : beside.get(column) ?? null));
  }
  const width = Math.max(byId("tasks").clientWidth, 250 + 44 * columns.length);
  Plotly.react("tasks-plot", [{
    type: "heatmap", x: columns.map(escaped), y: [...names.map(escaped), ...(dense ? ["dense attention"] : [])], xgap: 1, ygap: 1,
    z: [...grid.map((line) => line.map(value)), ...(dense ? [dense] : [])], customdata: [...grid, ...(dense ? [columns.map(() => null)] : [])],
    text: [...grid.map((line) => line.map(text)), ...(dense ? [dense.map((z) => (z === null ? "" : Math.round(z)))] : [])], texttemplate: "%{text}",
    hovertext: [...grid.map((line) => line.map((i) => (i === undefined ? "not measured" : `${escaped(columnOf(i))}<br>${hoverText(i)}`))),
      ...(dense ? [columns.map((column) => `dense attention on the same prompts: ${escaped(column)}`)] : [])], hoverinfo: "text",
    colorscale: isDifference ? "RdBu" : "Cividis", reversescale: isDifference, ...(isDifference ? { zmid: 0, zmin: -50, zmax: 50 } : { zmin: 0, zmax: 100 }),
    colorbar: { title: { text: isDifference ? "points" : "%" }, thickness: 12, lenmode: "pixels", len: 200, y: 1, yanchor: "top", tickfont: { color: css("--ink") } },
  }], layout({
    height: 140 + 24 * Math.max(3, names.length + 1), width, margin: { l: 20, r: 20, t: 8, b: 20 },
    xaxis: { type: "category", side: "top", showgrid: false, tickangle: byLength ? 0 : -40 }, yaxis: { type: "category", showgrid: false },
    annotations: rows.length ? [] : [{ text: "no single tasks were recorded for this selection", showarrow: false, xref: "paper", yref: "paper", x: 0.5, y: 0.5 }],
  }), { ...CONFIG, displayModeBar: false }).then((plot) => {
    plot.removeAllListeners("plotly_click");
    plot.on("plotly_click", ({ points }) => { if (points[0].customdata !== undefined && points[0].customdata !== null) showDetails(points[0].customdata); });
  });
  byId("tasks-note").textContent = `${isDifference ? "Points of accuracy more than dense attention on the same prompts; the colour ends at ±50." : "Accuracy in per cent."} `
    + `${byLength ? "One task at every length" : `Tasks at ${tokens(Number(byId("length").value) || 0)} tokens`}; blank: not measured. Rows of bounds and those off their density (≠) follow the switches above.`;
}

function setUpTasks() {
  for (const id of ["across", "density", "colour"]) byId(id).addEventListener("change", drawTasks);
}
