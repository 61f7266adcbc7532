"use strict";
// What is selected, and everything that follows it.

const byText = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
const promptsKey = (i) => JSON.stringify([T.benchmark[i], T.task_set[i], T.question[i], T.prompt_set[i], T.samples[i]]);
const isCounted = (i) => isGone(T.superseded_by[i]);
const isAllowed = (i) => (byId("off").checked || !isOff(i)) && (byId("bounds").checked || !T.is_bound[i]);
const CANDIDATES = ROWS.filter((i) => isAverage(i) && !["accuracy", "perplexity", "total_ms", "ttft_ms"].every((name) => isGone(T[name][i])));
let selection = [];
const unseen = new Set();  // parts that are drawn once they are about to be seen

const selectedRows = () => selection.filter(isAllowed);
const offCount = () => (byId("off").checked ? 0 : selection.filter(isOff).length);

const LISTS = {
  model: { of: (i) => T.model[i], text: (value) => value, order: byText },
  length: { of: (i) => String(T.length[i]), text: (value) => `${tokens(Number(value))} tokens`, order: (a, b) => a - b },
  device: { of: (i) => T.device[i], text: (value) => value, order: byText },
  prompts: { of: promptsKey, text: promptsText, order: byText },
};

function promptsText(key, rows) {
  const [, , question, , n] = JSON.parse(key), lines = new Set(rows.map((i) => T.line[i])).size;
  const prompts = T.benchmark[rows[0]] === "perplexity" ? "documents" : "prompts", benchmark = T.benchmark[rows[0]] || "";
  const name = isGone(T.task_set[rows[0]]) ? tasksText(rows[0]) : T.task_set[rows[0]].startsWith(benchmark) ? tasksText(rows[0]) : `${benchmark}, ${tasksText(rows[0])}`;
  return `${name}${question && question !== "seen" ? `, question ${question}` : ""}${n === null ? "" : `: ${n} ${prompts}`}, ${lines} ${lines === 1 ? "line" : "lines"}`;
}

// The rows of the fullest choice: that with most methods, then most rows.
function fullest(rows, of) {
  const groups = new Map();
  for (const i of rows) groups.set(of(i), [...(groups.get(of(i)) || []), i]);
  const weight = (members) => 10000 * new Set(members.filter((i) => T.rankable[i]).map((i) => T.look[i])).size + members.length;
  return [...groups.entries()].sort((a, b) => weight(b[1]) - weight(a[1]) || byText(a[0], b[0]))[0]?.[0];
}

function select() {
  let rows = CANDIDATES;
  for (const [id, list] of Object.entries(LISTS)) {
    const groups = new Map();
    for (const i of rows) {
      const key = list.of(i);
      if (!groups.has(key)) groups.set(key, []);
      groups.get(key).push(i);
    }
    setChoices(id, [...groups.keys()].sort(list.order).map((key) => [key, list.text(key, groups.get(key))]), fullest(rows, list.of));
    rows = groups.get(byId(id).value) || [];
  }
  const places = new Set(rows.map((i) => JSON.stringify([T.study[i], T.line[i]])));  // of the same in two studies one counts
  selection = rows.filter((i) => isCounted(i) || !places.has(JSON.stringify([T.superseded_by[i], T.line[i]])));
}

function update() {
  select();
  updateFront();
  fillBoard();
  updateTasks();
}

function setTheme() {
  const chosen = byId("theme").value, dark = chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  document.documentElement.classList.toggle("dark", dark);
}

function setUpTheme() {
  let stored = "";
  try { stored = localStorage.getItem("theme") || ""; } catch { /* no storage for files in some browsers */ }
  byId("theme").value = ["light", "dark"].includes(stored) ? stored : "";
  setTheme();
  const redraw = () => { setTheme(); drawFront(); drawTasks(); if (!unseen.has("maps")) drawMap(DATA.maps[Number(byId("map").value)]); if (board) board.rows().invalidate().draw(false); };
  byId("theme").addEventListener("change", () => {
    try { localStorage.setItem("theme", byId("theme").value); } catch { /* as above */ }
    redraw();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
}

async function loadTables() {
  const bytes = Uint8Array.from(atob(byId("tables").textContent), (c) => c.charCodeAt(0));
  const address = URL.createObjectURL(new Blob([bytes], { type: "text/javascript" }));
  const library = await import(address);
  URL.revokeObjectURL(address);
  return library.default;
}

async function start() {
  setUpTheme();
  const many = (values, one, several) => `${new Set(values).size} ${new Set(values).size === 1 ? one : several}`;
  byId("summary").textContent = `${DATA.count.toLocaleString("en")} ${DATA.count === 1 ? "row" : "rows"} of ${many(T.study, "study", "studies")}, `
    + `${many(T.look, "method", "methods")}, ${many(T.model, "model", "models")}`;
  setUpFront();
  setUpTasks();
  for (const id of Object.keys(LISTS)) byId(id).addEventListener("change", update);
  for (const id of ["off", "bounds"]) byId(id).addEventListener("change", () => { updateFront(); fillBoard(); updateTasks(); });
  for (const form of document.forms) form.addEventListener("submit", (event) => event.preventDefault());
  select();
  updateFront();
  let width = innerWidth, timer = 0;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    clearTimeout(timer);
    timer = setTimeout(() => { drawFront(); drawTasks(); }, 100);
  });
  setUpMaps();
  setUpClaims();
  setUpVersions();
  whenSeen("tasks", updateTasks);
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
  whenSeen("board", () => showBoard().catch(sayFailure));
  setTimeout(() => (window.requestIdleCallback || setTimeout)(() => showBoard().catch(sayFailure)), 300);
}

// The table comes after the picture, whose choices work by then: when it is seen, or when the browser has nothing else to do.
let isBoardDue = true;
async function showBoard() {
  if (!isBoardDue) return;
  isBoardDue = false;
  setUpBoard(await loadTables());
  fillBoard();
}

// Draw a part once it is about to be seen, and again on every change after that.
function whenSeen(id, draw) {
  unseen.add(id);
  const watch = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    watch.disconnect();
    unseen.delete(id);
    draw();
  }, { rootMargin: "50px" });
  watch.observe(byId(id));
}

function sayFailure(error) {
  byId("failure").hidden = false;
  byId("failure").textContent = `The page could not be drawn (${error.message}). A newer browser may help.`;
  throw error;
}

start().catch(sayFailure);
