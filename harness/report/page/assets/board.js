"use strict";
// The leaderboard: DataTables sorts, searches and filters by column.

const textCell = (title, of, words = false) => ({ title, of, type: "string", className: words ? "words" : "", list: false });
const listCell = (title, of) => ({ title, of, type: "string", className: "", list: true });
const numberCell = (title, name, write) => ({ title, of: (i) => T[name][i], type: "num", className: "dt-right", write });
const BOARD = [
  textCell("method", (i) => T.line[i], true),
  { ...numberCell("density", "density", digits), shown: densityText },
  numberCell("density, decoding", "decode_density", digits),
  numberCell("accuracy %", "accuracy", percent),
  textCell("95 % interval", (i) => range(T.accuracy_low[i], T.accuracy_high[i], percent)),
  numberCell("Δ dense", "difference", signed),
  textCell("95 % interval of Δ", (i) => range(T.difference_low[i], T.difference_high[i], signed)),
  numberCell("p (Holm)", "p_holm", digits),
  numberCell("perplexity", "perplexity", digits),
  numberCell("attention ms", "total_ms", digits),
  numberCell("speed-up", "speedup", digits),
  numberCell("TTFT ms", "ttft_ms", digits),
  numberCell("TTFT speed-up", "ttft_speedup", digits),
  numberCell("memory MiB", "peak_mib", digits),
  listCell("model", (i) => T.model[i]),
  numberCell("length", "length", tokens),
  textCell("tasks", tasksText, true),
  numberCell("n", "samples", (n) => (isGone(n) ? NONE : String(n))),
  listCell("question", (i) => T.question[i] || NONE),
  listCell("device", (i) => T.device[i]),
  listCell("status", (i) => `${T.status[i]}${isOff(i) ? ", off density" : ""}${T.is_bound[i] ? ", bound" : ""}${T.superseded_by[i] ? ", repeated elsewhere" : ""}`),
  listCell("study", (i) => T.study[i]),
  listCell("date", (i) => T.date[i]),
];
let board = null;

function boardRows() {
  const scope = byId("scope").value;
  if (scope === "selection") return selectedRows();
  return ROWS.filter((i) => isAllowed(i) && (scope === "all" || (isAverage(i) && isCounted(i))));
}

function render(column) {
  const write = column.shown || ((i) => (column.write ? column.write(column.of(i)) : column.of(i)));
  return (value, type, row) => {
    const i = row.i;
    if (type === "sort" || type === "type") return isGone(value) ? (column.type === "num" ? null : "") : value;
    // DataTables reads the entities of what it filters by in an element: unescaped, that would be markup.
    if (type !== "display") return isGone(value) ? "" : column.type === "num" ? value : escaped(value);
    const text = escaped(write(i) ?? NONE);
    return column === BOARD[0] ? `<span class="dot" style="color:${colourOf(i)}"></span>${text}${T.is_bound[i] ? " <i>bound</i>" : ""}` : text;
  };
}

function setUpBoard(DataTable) {
  const menu = (column) => ["orderAsc", "orderDesc", "spacer", ...(column.list ? ["searchList"] : ["search"])];
  byId("board-table").createTHead().insertRow().append(...BOARD.map((column) => element("th", column.title)));
  board = new DataTable("#board-table", {
    data: [], deferRender: true, autoWidth: false, pageLength: 25, lengthMenu: [10, 25, 100, 500],
    order: [[3, "desc"]], orderMulti: true,
    layout: { topStart: "pageLength", topEnd: "search", bottomStart: "info", bottomEnd: "paging" },
    language: { search: "search", emptyTable: "no rows", info: "_START_ to _END_ of _TOTAL_ rows", infoEmpty: "no rows", lengthMenu: "_MENU_ rows a page", infoFiltered: "(of _MAX_)" },
    columns: BOARD.map((column, place) => ({
      title: column.title, name: column.title, type: column.type, className: column.className, data: (row) => row.values[place], render: render(column),
      columnControl: ["order", menu(column)], orderSequence: column.type === "num" ? ["desc", "asc"] : ["asc", "desc"],
    })),
    ordering: { indicators: false, handler: false },
  });
  board.on("click", "tbody tr", (event) => {
    const row = board.row(event.target.closest("tr")).data();
    if (!row) return;
    showDetails(row.i);
    byId("details").scrollIntoView({ block: "center" });
  });
  byId("scope").addEventListener("change", fillBoard);
}

function fillBoard() {
  if (!board) return;
  const rows = boardRows().map((i) => ({ i, values: BOARD.map((column) => column.of(i)) }));
  board.clear().rows.add(rows);
  BOARD.forEach((_, place) => {  // a column that is empty in all of these rows is not shown
    const isShown = !rows.length || rows.some((row) => !isGone(row.values[place]) && row.values[place] !== NONE);
    if (board.column(place).visible() !== isShown) board.column(place).visible(isShown, false);
  });
  board.draw();
  byId("board-note").textContent = "The arrows beside a title sort, and its menu filters. Δ dense is in points on the same prompts; speed-ups are over dense attention. "
    + "≠ marks a density more than 2 % off the request. Click a row for all that is recorded of it, and its command.";
}
